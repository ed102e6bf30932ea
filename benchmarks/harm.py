"""When do dead units do harm? A share of a network is killed while it trains, and left dead.

An MLP with two hidden layers learns the digits. After epoch 5 a share of both layers is closed for
good, by biases so low that no data open them; the rest trains on to epoch 40. Beside it the same
under the policy ``"revive"``, which treats them where the verdict calls so many dead units harmful.

    python -m benchmarks.harm [--seeds 3] [--write]

With ``--write`` the table goes into ``docs/dying.md``.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from statistics import mean

import torch
from torch import nn

from benchmarks.quoting import write
from benchmarks.results import markdown
from benchmarks.scenarios import accuracy, bundled, late, mlp
from deadwatch import Watch

WIDTHS = (16, 32, 64, 256)
SHARES = (0.25, 0.5, 0.75, 0.9)
EPOCHS, KILLED_AFTER = 40, 5
DEEP = -1000.0


@dataclass(frozen=True)
class Case:
    """One training.

    Attributes:
        width: Units of each hidden layer.
        share: Share of them that is killed.
        policy: What treats them.
    """

    width: int
    share: float = 0.0
    policy: str | None = None


def kill(model: nn.Sequential, share: float) -> None:
    """Close a share of each hidden layer for all data."""
    for layer in list(model)[:-1:2]:
        assert isinstance(layer, nn.Linear)
        with torch.no_grad():
            layer.bias[: round(share * layer.out_features)] = DEEP


@cache
def trained(case: Case, seed: int) -> float:
    """Held-out accuracy in %."""
    torch.manual_seed(seed)
    task = bundled("digits")
    model = mlp(nn.ReLU, (64, case.width, case.width, 10))
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    steps = EPOCHS * math.ceil(len(task.x) / 64)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: late(step, steps))
    with Watch(model, optimizer=optimizer, policy=case.policy, total_steps=steps) as watch:
        for epoch in range(EPOCHS):
            if epoch == KILLED_AFTER:
                kill(model, case.share)
            for rows in torch.randperm(len(task.x)).split(64):
                loss = nn.functional.cross_entropy(model(task.x[rows]), task.y[rows])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
                watch.step(loss)
            watch.close_window(treat=watch.steps < steps)
    with torch.no_grad():
        return accuracy(model.eval(), task)


def lost(case: Case, seeds: int) -> float:
    """Points of accuracy that it is above the same training in which nothing was killed."""
    whole = Case(case.width)
    return mean(trained(case, seed) - trained(whole, seed) for seed in range(seeds))


def table(seeds: int) -> str:
    """A row for each width: left dead, and in brackets under ``"revive"``."""
    rows = [["units in each layer", *(f"{share:.0%} killed" for share in SHARES)]]
    for width in WIDTHS:
        cells = []
        for share in SHARES:
            left, revived = (lost(Case(width, share, p), seeds) for p in (None, "revive"))
            cells.append(f"{left:+.1f} ({revived:+.1f})")
        rows.append([str(width), *cells])
    return markdown(rows)


def main(arguments: Sequence[str] | None = None) -> None:
    """Train, print the table, and write it into the document if asked to."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--write", action="store_true", help="into docs/dying.md, too")
    options = parser.parse_args(arguments)
    made = table(options.seeds)
    print(made)
    if options.write:
        write("harm", made)


if __name__ == "__main__":
    main()
