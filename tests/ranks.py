"""Runs a script in two real processes, as the ranks of a gloo group."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path


def run_ranks(script: str, folder: Path, world: int = 2) -> None:
    """Run ``script RANK WORLD FOLDER`` in all processes at once; all have to end well."""
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", script, str(rank), str(world), str(folder)],
            cwd=Path(__file__).parent.parent,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(world)
    ]
    for process in processes:
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors
