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
import math
import sys
import time
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from functools import cache
from multiprocessing import get_context
from pathlib import Path
from statistics import mean
from typing import get_args

import torch
from torch import nn
from tqdm.auto import tqdm

from benchmarks.results import NONE, ORACLE, Result, Results, load, save, tables
from benchmarks.scenarios import Scenario
from deadwatch import (
    BiasWarming,
    Policy,
    PositiveBias,
    Recycle,
    Restandardize,
    Swap,
    ThermalKick,
    Watch,
)
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


ARMS = {
    NONE: Arm(),
    ORACLE: Arm(act=nn.LeakyReLU),
    "BiasWarming, textbook": Arm(Policy(BiasWarming(quiet=False), when=0.1, guard=False)),
    "ThermalKick, textbook": Arm(Policy(ThermalKick(quiet=False), when=0.1, guard=False)),
    "Swap, textbook": Arm(Policy(Swap(only="all", quiet=False), when=0.1, guard=False)),
    "BiasWarming, quiet": Arm(Policy(BiasWarming(quiet=True))),
    "BiasWarming, closed loop": Arm(Policy(BiasWarming(schedule="closed-loop"))),
    "ThermalKick, quiet": Arm(Policy(ThermalKick(quiet=True))),
    "Swap, quiet": Arm(Policy(Swap(quiet=True))),
    "Swap, annealed": Arm(Policy(Swap(anneal=200))),
    # Nothing is treated after step 0.
    "PositiveBias": Arm(Policy(Recycle(), until=0, prevent=[PositiveBias(0.1)])),
    "Restandardize": Arm(Policy(Restandardize())),
    "Recycle": Arm(Policy(Recycle())),
    **{f'"{name}"': Arm(name) for name in ("gentle", "revive")},
}
RULES = {
    f"{remedy.name}, {rule}": Arm(Policy(remedy), rule=rule)
    for remedy in (Recycle(), BiasWarming(quiet=True))
    for rule in get_args(Rule)
}


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


# ── all runs ────────────────────────────────────────────────────────────────────────────


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
    arms = list(dict.fromkeys([NONE, ORACLE, *arms]))
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
