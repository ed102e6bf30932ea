"""The command: measures peers, or, inside an environment, times the one that is installed there."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch

from benchmarks.peers.environments import CACHE, measure
from benchmarks.peers.table import PEERS, named
from benchmarks.peers.timing import report


def main(arguments: list[str] | None = None) -> None:
    """Print the result as JSON, on one line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.peers")
    names = [peer.name for peer in PEERS]
    parser.add_argument("--peers", nargs="+", metavar="NAME", default=names, help=", ".join(names))
    parser.add_argument("--run", metavar="NAME", help="time this peer here, where it is installed")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--networks", default="", help="a part of the names of those to time")
    parser.add_argument("--cache", type=Path, default=CACHE, help="where the environments are")
    given = parser.parse_args(arguments)
    torch.set_num_threads(given.threads)
    common = (given.rounds, given.steps)
    if given.run is not None:
        print(json.dumps(report(named(given.run), *common, given.networks)))
    else:
        result = measure(given.peers, *common, given.threads, given.networks, given.cache)
        print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
