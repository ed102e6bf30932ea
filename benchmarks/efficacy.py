"""Does treating help? Every remedy and preset on every scenario: the table in the README.

Each run is a plain loop with `Watch`, judged once an epoch. "LeakyReLU from the start" is what a
user would have done who had known: the oracle. "Textbook" remedies have ``quiet=False`` and no
guard.

    python -m benchmarks.efficacy [--seeds 5] [--jobs 2] [--only ARM …] [--scenarios NAME …]

Results are written into a JSON file after each run, and what is in there is not run again; begin
another file (``--out``) when anything but the lists of arms and scenarios has changed.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import math
import sys
import time
import warnings
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from functools import cache
from multiprocessing import get_context
from pathlib import Path
from statistics import mean, variance
from typing import get_args

import torch
from torch import nn
from tqdm.auto import tqdm

from benchmarks.scenarios import Scenario
from deadwatch import BiasWarming, Policy, Recycle, Restandardize, Swap, ThermalKick, Watch
from deadwatch.errors import DeadwatchWarning
from deadwatch.treat.optim import OptimizerState, Rule

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Arm:
    """One way to train.

    Attributes:
        policy: What treats dead units.
        act: The activation from the start.
        rule: What becomes of the optimizer state of treated rows; None for the library's choice.
    """

    policy: Policy | str | None = None
    act: type[nn.Module] = nn.ReLU
    rule: Rule | None = None


ORACLE = "LeakyReLU from the start"
ARMS = {
    "none": Arm(),
    ORACLE: Arm(act=nn.LeakyReLU),
    "BiasWarming, textbook": Arm(Policy(BiasWarming(quiet=False), when=0.1, guard=False)),
    "ThermalKick, textbook": Arm(Policy(ThermalKick(quiet=False), when=0.1, guard=False)),
    "Swap, textbook": Arm(Policy(Swap(only="all", quiet=False), when=0.1, guard=False)),
    "BiasWarming, quiet": Arm(Policy(BiasWarming(quiet=True))),
    "BiasWarming, closed loop": Arm(Policy(BiasWarming(schedule="closed-loop"))),
    "ThermalKick, quiet": Arm(Policy(ThermalKick(quiet=True))),
    "Swap, quiet": Arm(Policy(Swap(quiet=True))),
    "Restandardize": Arm(Policy(Restandardize())),
    "Recycle": Arm(Policy(Recycle())),
    **{f'"{name}"': Arm(name) for name in ("gentle", "ladder", "revive")},
}
RULES = {
    f"{remedy.name}, {rule}": Arm(Policy(remedy), rule=rule)
    for remedy in (Recycle(), BiasWarming(quiet=True))
    for rule in get_args(Rule)
}


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


def run(scenario: Scenario, arm: Arm, seed: int) -> Result:
    """Train once, in a plain loop."""
    began = time.process_time()
    torch.manual_seed(seed)
    tasks = scenario.tasks()
    model = scenario.build(arm.act)
    optimizer = scenario.optimizer(model.parameters())
    steps = sum(math.ceil(len(task.x) / scenario.batch) * scenario.epochs for task in tasks)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda n: scenario.lr(n, steps))
    scores = []
    watch = Watch(model, optimizer=optimizer, policy=arm.policy, total_steps=steps)
    if arm.rule is not None:
        watch._optimizers = OptimizerState([optimizer], arm.rule)  # users have no such choice
    with watch:
        for task in tasks:
            for _ in range(scenario.epochs):
                for x, y in scenario.batches(task):
                    loss = scenario.loss(model, x, y)
                    loss.backward()
                    optimizer.step()
                    optimizer.zero_grad()
                    schedule.step()
                    watch.step(loss)
                report = watch.close_window(treat=watch.steps < steps)
            model.eval()
            with torch.no_grad():
                scores.append(scenario.score(model, task))
            model.train()
        treated = sum(len(entry.treatment.units) for entry in watch.ledger)
    return Result(mean(scores), report.dead_ratio, treated, time.process_time() - began)


# ── all runs, and the file that keeps them ──────────────────────────────────────────────

Results = dict[str, dict[str, dict[str, Result]]]
"""Scenario → arm → seed → result."""


@cache
def scenarios_of(file: Path) -> dict[str, Scenario]:
    """The scenarios that a Python file lists, by name."""
    spec = importlib.util.spec_from_file_location(file.stem, file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[file.stem] = module
    spec.loader.exec_module(module)
    return {scenario.name: scenario for scenario in module.SCENARIOS}


def job(file: Path, name: str, arm: str, seed: int) -> Result:
    """One run; works in a process of its own, too."""
    torch.set_num_threads(1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeadwatchWarning)
        return run(scenarios_of(file)[name], (ARMS | RULES)[arm], seed)


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


Key = tuple[str, str, int]


def missing(results: Results, names: Sequence[str], arms: Sequence[str], seeds: int) -> list[Key]:
    """The runs that are still to be made, seed by seed."""
    return [
        (name, arm, seed)
        for seed in range(seeds)
        for name in names
        for arm in arms
        if str(seed) not in results.get(name, {}).get(arm, {})
    ]


def made(keys: Sequence[Key], file: Path, jobs: int) -> Iterator[tuple[Key, Result]]:
    """Make the runs, ``jobs`` at a time, and yield each when it is done."""
    if jobs == 1:
        yield from ((key, job(file, *key)) for key in keys)
        return
    with ProcessPoolExecutor(jobs, get_context("spawn")) as pool:
        futures = {pool.submit(job, file, *key): key for key in keys}
        yield from ((futures[future], future.result()) for future in as_completed(futures))


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
    """How each arm compares with doing nothing and with the oracle.

    The share of the gap: gains over doing nothing, as a share of the oracle's, summed over the
    scenarios in which the oracle is clearly better than nothing.
    """
    heads = ["", "above none", "above oracle", "gap closed", "clearly below oracle"]
    rows = [[*heads, "clearly below none"]]
    for arm in arms:
        trios = {
            one.name: [sample(one, results, name) for name in (arm, "none", ORACLE)]
            for one in scenarios
        }
        gaps = [(a.above(n), o.above(n)) for a, n, o in trios.values() if n.clearly_below(o)]
        gap = sum(whole for _, whole in gaps)
        rows.append(
            [
                arm,
                f"{mean(a.above(n) for a, n, _ in trios.values()):+.1f}",
                f"{mean(a.above(o) for a, _, o in trios.values()):+.1f}",
                f"{100 * sum(closed for closed, _ in gaps) / gap:.0f}%" if gap else "–",
                told({name: a.above(o) for name, (a, _, o) in trios.items() if a.clearly_below(o)}),
                told({name: a.above(n) for name, (a, n, _) in trios.items() if a.clearly_below(n)}),
            ]
        )
    return markdown(rows)


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
        some = [s for s in scenarios if s.kind == kind and {"none", ORACLE} <= set(results[s.name])]
        done = [arm for arm in arms if all(arm in results[one.name] for one in some)]
        if some and done:
            seeds = sorted({len(of) for one in some for of in results[one.name].values()})
            parts.append(f"{kind.capitalize()} scenarios, seeds: {', '.join(map(str, seeds))}")
            parts.append(figures(results, some, done))
            parts.append(summary(results, some, done))
    return "\n\n".join(parts)


def main(arguments: Sequence[str] | None = None) -> Results:
    """Make the runs that are missing and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--jobs", type=int, default=2, help="processes, of one thread each")
    parser.add_argument("--only", nargs="+", metavar="ARM", help="besides none and the oracle")
    parser.add_argument("--rules", action="store_true", help="compare rules for optimizer state")
    parser.add_argument("--scenarios", nargs="+", metavar="NAME")
    parser.add_argument("--file", type=Path, default=HERE / "scenarios.py")
    parser.add_argument("--out", type=Path, default=HERE / "efficacy.json")
    options = parser.parse_args(arguments)
    known = scenarios_of(options.file)
    names = chosen(parser, "--scenarios", options.scenarios, list(known))
    arms = chosen(parser, "--only", options.only, list(RULES if options.rules else ARMS))
    arms = list(dict.fromkeys(["none", ORACLE, *arms]))
    results = load(options.out)
    keys = missing(results, names, arms, options.seeds)
    for (name, arm, seed), one in tqdm(
        made(keys, options.file, options.jobs), total=len(keys), unit="run", disable=not keys
    ):
        results.setdefault(name, {}).setdefault(arm, {})[str(seed)] = one
        save(results, options.out)
    print(tables(results, [known[name] for name in names], arms))
    return results


def chosen(
    parser: argparse.ArgumentParser, option: str, given: list[str] | None, known: list[str]
) -> list[str]:
    """What an option names, in the order of what is known; all of it if it names nothing."""
    strange = sorted(set(given or ()) - set(known))
    if strange:
        parser.error(f"{option}: no {', '.join(strange)}; there are: {', '.join(known)}")
    return [name for name in known if given is None or name in given]


if __name__ == "__main__":
    main()
