"""Runs a script in real processes, as the ranks of a gloo group."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path


def run_ranks(script: str, folder: Path, ranks: int = 2) -> None:
    """Run ``script RANK RANKS FOLDER`` in that many processes at once; all have to end well."""
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", script, str(rank), str(ranks), str(folder)],
            cwd=Path(__file__).parent.parent,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(ranks)
    ]
    try:
        for process in processes:
            _, errors = process.communicate(timeout=240)
            assert process.returncode == 0, errors
    finally:
        for process in processes:
            process.kill()  # those that would wait for one that has failed
