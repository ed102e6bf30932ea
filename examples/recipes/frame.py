"""What all recipes share: the digits, the command, and the table that it prints."""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import mean, stdev
from typing import Generic, TypeVar

import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor

from benchmarks.results import markdown
from deadwatch import Finding, WindowReport

Arm = TypeVar("Arm")


@dataclass(frozen=True)
class Run:
    """What one training came to.

    Attributes:
        score: As the recipe scores it.
        dead: Share of dead units in the last window.
        advice: Ids of the findings that warned at the end.
        causes: What the units that are dead at the end died of, with their number.
    """

    score: float
    dead: float
    advice: frozenset[str]
    causes: Mapping[str, int]

    @classmethod
    def of(cls, score: float, report: WindowReport) -> Run:
        """A run that ended with this report, of a watch with ``advice=True``."""
        causes: Counter[str] = Counter()
        for death in report.deaths:
            causes[death.cause] += len(death.units)
        return cls(score, report.dead_ratio, frozenset(warnings(report.findings)), causes)


@dataclass(frozen=True)
class Recipe(Generic[Arm]):
    """An illness, and what was tried against it.

    Attributes:
        name: Its name in the documentation.
        score: What the score is, for the table's heading.
        train: Trains one arm with a seed, in small if ``quick``.
        arms: What is tried, by its name in the table; the first is the illness itself.
    """

    name: str
    score: str
    train: Callable[[Arm, int, bool], Run]
    arms: Mapping[str, Arm]

    def main(self, arguments: Sequence[str] | None = None) -> dict[str, list[Run]]:
        """Train all arms and print the table."""
        parser = argparse.ArgumentParser(description=f"Recipe: {self.name}")
        parser.add_argument("--seeds", type=int, default=3)
        parser.add_argument("--quick", action="store_true", help="one seed, in small")
        options = parser.parse_args(arguments)
        runs = self.runs(1 if options.quick else options.seeds, options.quick)
        print(self.table(runs))
        return runs

    def runs(self, seeds: int, quick: bool) -> dict[str, list[Run]]:
        """Every arm with every seed."""
        return {
            name: [self.train(arm, seed, quick) for seed in range(seeds)]
            for name, arm in self.arms.items()
        }

    def table(self, runs: Mapping[str, Sequence[Run]]) -> str:
        """A row for each arm."""
        rows = [["", self.score, "dead at the end", "died of (DW5xx)", "advice warns of"]]
        for arm, some in runs.items():
            dead = spread([100 * run.dead for run in some], digits=0)
            scores = spread([run.score for run in some])
            rows.append([arm, scores, f"{dead} %", died_of(some), warned(some)])
        return markdown(rows)


def spread(values: Sequence[float], digits: int = 1) -> str:
    """Mean ± standard deviation over seeds."""
    deviation = stdev(values) if len(values) > 1 else 0.0
    return f"{mean(values):.{digits}f} ± {deviation:.{digits}f}"


def died_of(runs: Sequence[Run]) -> str:
    """The causes of at least 5% of the deaths, the most frequent first, with their shares."""
    causes: Counter[str] = Counter()
    for run in runs:
        causes.update(run.causes)
    whole = causes.total()
    most = [(cause, n / whole) for cause, n in causes.most_common() if n >= 0.05 * whole]
    shares = [f"{cause} {share:.0%}" for cause, share in most]
    return ", ".join(shares) or "–"


def warned(runs: Sequence[Run]) -> str:
    """The ids, with the number of runs that have them where not all do.

    Without the causes of death (DW5xx), which have a column of their own.
    """
    ids = sorted({one for run in runs for one in run.advice if not one.startswith("DW5")})
    counts = {one: sum(one in run.advice for run in runs) for one in ids}
    some = [one if n == len(runs) else f"{one} ({n} of {len(runs)})" for one, n in counts.items()]
    return ", ".join(some) or "–"


def warnings(findings: Iterable[Finding]) -> set[str]:
    """Ids of the findings that are more than worth knowing."""
    return {finding.id for finding in findings if finding.at_least("warning")}


def digits() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Training and held-out images (N, 64) in 0 to 1, and their labels."""
    images, labels = load_digits(return_X_y=True)
    parts = train_test_split(images / 16, labels, test_size=0.25, random_state=0, stratify=labels)
    x, held_out = (torch.tensor(part, dtype=torch.float32) for part in parts[:2])
    y, truth = map(torch.tensor, parts[2:])
    return x, held_out, y, truth
