"""An environment for each peer, and the timing that runs inside it."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.peers.table import Peer, named

ROOT = Path(__file__).resolve().parents[2]
CACHE = ROOT / ".peers"
HOUR = 3600.0


class CannotMeasure(Exception):
    """A peer that cannot be installed or run here; says why in one sentence."""


def run(command: Sequence[object], **options: Any) -> str:
    """What a command prints.

    Raises:
        CannotMeasure: If it fails, with the line in which it says why.
    """
    try:
        done = subprocess.run(
            [*map(str, command)], capture_output=True, text=True, timeout=HOUR, **options
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise CannotMeasure(f"{type(error).__name__}: {error}") from error
    if done.returncode:
        raise CannotMeasure(reason(done.stdout + done.stderr) or f"exit code {done.returncode}")
    return str(done.stdout)


def reason(printed: str) -> str:
    """The first error that pip names and what clashed, or else the last line; no addresses."""
    lines = [line.strip() for line in printed.splitlines() if line.strip()]
    errors = [line.removeprefix("ERROR: ") for line in lines if line.startswith("ERROR: ")]
    clashes = [line for line in lines if re.match(r"\S+ \S+ depends on ", line)]
    why = ": ".join([*(error.rstrip(".") for error in errors[:1]), *clashes[:1]])
    return re.sub(r"\w+://\S+", "…", why or "".join(lines[-1:]))


def environment(peer: Peer, cache: Path = CACHE) -> Path:
    """The folder of the peer's environment, made once.

    One that is there is used as it is: made by an earlier call or by hand, say for a peer whose
    torch is not the one of ``constraints.txt``. Delete it to have it made anew.

    Args:
        peer: whose requirements are installed.
        cache: where the environments are kept.

    Raises:
        CannotMeasure: If the requirements cannot be installed.
    """
    folder = cache / peer.name
    if folder.exists():
        return folder
    try:
        run([sys.executable, "-m", "venv", folder])
        # Asked for by its exact version, so that pip takes no newer torch with gigabytes of CUDA.
        torch = re.search(r"^torch==.*$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
        wanted = [*([torch.group()] if torch else []), *peer.requirements]
        constraints = ["-c", ROOT / "constraints.txt"]
        run([folder / "bin/python", "-m", "pip", "install", *constraints, *wanted])
    except BaseException:  # nothing half made may be taken for an environment
        shutil.rmtree(folder, ignore_errors=True)
        raise
    return folder


def measure_one(peer: Peer, arguments: Sequence[str], threads: int, cache: Path) -> dict[str, Any]:
    """What the runner prints in the peer's environment, or ``{"failed": why}``."""
    try:
        python = environment(peer, cache).absolute() / "bin/python"
        paths = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": str(threads)}
        command = [python, "-m", "benchmarks.peers", "--run", peer.name, *arguments]
        with tempfile.TemporaryDirectory() as folder:  # for the files that peers write
            printed = run(command, cwd=folder, env=os.environ | paths)
        result: dict[str, Any] = json.loads(printed.splitlines()[-1])
    except (CannotMeasure, OSError, ValueError, IndexError) as error:
        return {"failed": str(error) or type(error).__name__}
    return result


def measure(
    names: Iterable[str],
    rounds: int,
    steps: int,
    threads: int,
    networks: str = "",
    cache: Path = CACHE,
) -> dict[str, dict[str, Any]]:
    """Times peers one after another, each beside the bare loop in its own environment.

    Args:
        names: of peers in the table.
        rounds: whose medians are taken.
        steps: of a round, multiplied by what the network asks for.
        threads: of torch.
        networks: a text that the names of the timed networks hold.
        cache: where the environments are kept.

    Returns:
        For each peer what `timing.report` gives, or ``{"failed": why}`` where it cannot be
        installed or run.

    Raises:
        ValueError: If no peer has one of the names.
    """
    peers = [named(name) for name in names]
    given = {"rounds": rounds, "steps": steps, "threads": threads}
    arguments = [text for key, value in given.items() for text in (f"--{key}", str(value))]
    arguments += ["--networks", networks]
    return {peer.name: measure_one(peer, arguments, threads, cache) for peer in peers}
