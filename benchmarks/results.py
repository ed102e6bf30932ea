"""Results of runs: the file that keeps them, and the tables that are made of them."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean, variance

from benchmarks.scenarios import Scenario

NONE = "none"
ORACLE = "LeakyReLU from the start"


@dataclass(frozen=True)
class Result:
    """What one run came to.

    Attributes:
        score: As the scenario scores it.
        dead: Dead ratio of the last window; NaN if nothing could be judged.
        treated: How many units were treated, counted once for each treatment.
        seconds: Processor time.
    """

    score: float
    dead: float
    treated: int
    seconds: float


Results = dict[str, dict[str, dict[str, Result]]]
"""Scenario → arm → seed → result."""


def load(out: Path) -> Results:
    """The results of a file; none if it does not exist."""
    kept = json.loads(out.read_text()) if out.exists() else {}
    return {
        name: {
            arm: {seed: Result(**one) for seed, one in seeds.items()} for arm, seeds in of.items()
        }
        for name, of in kept.items()
    }


def save(results: Results, out: Path) -> None:
    """Write all results; whoever interrupts this still has the old file."""
    plain = {
        name: {arm: {seed: asdict(one) for seed, one in of.items()} for arm, of in arms.items()}
        for name, arms in results.items()
    }
    fresh = out.with_suffix(".part")
    fresh.write_text(json.dumps(plain, indent=1, sort_keys=True) + "\n")
    fresh.replace(out)


# ── tables ──────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Sample:
    """The scores of one arm on one scenario, turned so that higher is better."""

    scores: tuple[float, ...]

    @property
    def mean(self) -> float:
        return mean(self.scores)

    @property
    def variance(self) -> float:
        return variance(self.scores) if len(self.scores) > 1 else 0.0

    def above(self, other: Sample) -> float:
        """Difference of the means."""
        return self.mean - other.mean

    def clearly_below(self, other: Sample) -> bool:
        """Whether it is more than one standard error of the difference below another."""
        squared = self.variance / len(self.scores) + other.variance / len(other.scores)
        return self.above(other) < -math.sqrt(squared)


def sample(scenario: Scenario, results: Results, arm: str) -> Sample:
    sign = -1 if scenario.lower else 1
    return Sample(tuple(sign * one.score for one in results[scenario.name][arm].values()))


def cell(results: Iterable[Result]) -> str:
    """Mean ± std over seeds, and the mean share of dead units at the end.

    Without a share, some run went to NaN: its units are uncertain, not dead.
    """
    results = list(results)
    scores = Sample(tuple(one.score for one in results))
    dead = mean(one.dead for one in results)
    share = "diverged" if math.isnan(dead) else f"{100 * dead:.0f}%"
    return f"{scores.mean:.1f} ± {math.sqrt(scores.variance):.1f} ({share})"


def figures(results: Results, scenarios: Sequence[Scenario], arms: Sequence[str]) -> str:
    """A row for each arm, a column for each scenario."""
    heads = [f"{one.name}, lower is better" if one.lower else one.name for one in scenarios]
    rows = [[arm, *(cell(results[one.name][arm].values()) for one in scenarios)] for arm in arms]
    return markdown([["", *heads], *rows])


def summary(results: Results, scenarios: Sequence[Scenario], arms: Sequence[str]) -> str:
    """How each arm compares with doing nothing and with the oracle: mean, and range.

    The share of the gap: gains over doing nothing, as a share of the oracle's, summed over the
    scenarios in which the oracle is clearly better than nothing.
    """
    heads = ["", "above none", "above oracle", "gap closed", "clearly below none"]
    rows = [[*heads, "clearly below oracle"]]
    for arm in arms:
        trios = {
            one.name: [sample(one, results, name) for name in (arm, NONE, ORACLE)]
            for one in scenarios
        }
        gaps = [(a.above(n), o.above(n)) for a, n, o in trios.values() if n.clearly_below(o)]
        gap = sum(whole for _, whole in gaps)
        rows.append(
            [
                arm,
                spread(a.above(n) for a, n, _ in trios.values()),
                spread(a.above(o) for a, _, o in trios.values()),
                f"{100 * sum(closed for closed, _ in gaps) / gap:.0f}%" if gap else "–",
                told({name: a.above(n) for name, (a, n, _) in trios.items() if a.clearly_below(n)}),
                told({name: a.above(o) for name, (a, _, o) in trios.items() if a.clearly_below(o)}),
            ]
        )
    return markdown(rows)


def spread(differences: Iterable[float]) -> str:
    """The mean, and in brackets the range."""
    each = list(differences)
    return f"{mean(each):+.1f} ({min(each):+.1f} to {max(each):+.1f})"


def told(differences: dict[str, float]) -> str:
    """Scenarios and differences, worst first."""
    worst = sorted(differences.items(), key=lambda pair: pair[1])
    return ", ".join(f"{name} {value:+.1f}" for name, value in worst) or "–"


def markdown(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["| " + " | ".join(map(str.ljust, row, widths)) + " |" for row in rows]
    rule = "|" + "|".join("-" * (width + 2) for width in widths) + "|"
    return "\n".join([lines[0], rule, *lines[1:]])


def tables(results: Results, scenarios: Sequence[Scenario], arms: Sequence[str]) -> str:
    """All tables, for each kind of scenario; only what has been run is in them."""
    parts = []
    for kind in dict.fromkeys(one.kind for one in scenarios):
        some = [s for s in scenarios if s.kind == kind and {NONE, ORACLE} <= set(results[s.name])]
        done = [arm for arm in arms if all(arm in results[one.name] for one in some)]
        if some and done:
            seeds = sorted({len(of) for one in some for of in results[one.name].values()})
            parts.append(f"{kind.capitalize()} scenarios, seeds: {', '.join(map(str, seeds))}")
            parts.append(figures(results, some, done))
            parts.append(summary(results, some, done))
    return "\n\n".join(parts)
