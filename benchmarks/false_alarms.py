"""Does advice cry wolf? What it says of healthy, well-known architectures.

Each entry of ``tests/zoo`` is looked at fresh from its constructor, in training and in evaluation
mode and from several seeds, with the optimizer that is usual for it; then it is trained for three
windows of twelve steps, with a warm-up over the first, and what advice finds at the end of each
counts. Whatever is found there is a false alarm if it is a warning or an error.

    python -m benchmarks.false_alarms [--seeds 3] [--only NAME …] [--write]

With ``--write`` the counts go into ``false_alarms.json``, and the table into ``README.md``.
"""

from __future__ import annotations

import argparse
import json
import sys
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import cast

import torch
from torch import nn
from tqdm.auto import tqdm

from benchmarks.quoting import write
from benchmarks.results import markdown
from deadwatch import Finding, Watch, advise, scan
from deadwatch.errors import NoSiteWarning
from deadwatch.records import SEVERITIES, Severity
from tests.zoo import ZOO, Entry, run

COUNTS = Path(__file__).with_suffix(".json")
README = Path(__file__).parent.parent / "README.md"
WINDOWS, STEPS, BATCHES = 3, 12, 4


@dataclass(frozen=True)
class Count:
    """What was found in one architecture.

    Attributes:
        fresh: How often a finding was made in fresh models, by ``"DW203 info"``.
        trained: The same at the ends of windows.
        looks: Fresh models looked at.
        windows: Windows of training looked at.
        loss: The training loss at the end, relative to that of the first step.
    """

    fresh: dict[str, int]
    trained: dict[str, int]
    looks: int
    windows: int
    loss: float


Counts = dict[str, Count]
"""By name of the architecture."""


def fresh(entry: Entry, seed: int) -> Iterator[list[Finding]]:
    """What advice finds before the first step, in both modes."""
    for training in (True, False):
        model = entry.model(seed).train(training)
        optimizer = entry.optimizer(model.parameters(), entry.lr)
        report = scan(model, entry.batches(1, seed), forward=run)
        yield advise(model, report=report, optimizer=optimizer)


def trained(entry: Entry, seed: int) -> Iterator[tuple[float, list[Finding]]]:
    """The loss at the end of each window, relative to the first, and what advice finds there."""
    model, batches = entry.model(seed), entry.batches(BATCHES, seed)
    optimizer = entry.optimizer(model.parameters(), entry.lr)
    warm = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda n: min(1.0, (n + 1) / STEPS))
    first = None
    with torch.random.fork_rng([]), _watched(model, optimizer) as watch:
        torch.manual_seed(seed)
        for _ in range(WINDOWS):
            for step in range(STEPS):
                batch = batches[step % BATCHES]
                loss = entry.loss(run(model, batch), batch.target)
                loss.backward()
                optimizer.step()
                optimizer.zero_grad()
                warm.step()
                watch.step(loss)
                last = float(loss.detach())
                first = last if first is None else first
            assert first is not None
            yield last / first, list(watch.close_window().findings)


def _watched(model: nn.Module, optimizer: torch.optim.Optimizer) -> Watch:
    return Watch(model, optimizer=optimizer, advice=True, gradients=True)


def kinds(findings: Sequence[Finding]) -> Counter[str]:
    return Counter(f"{one.id} {one.severity}" for one in findings)


def count(name: str, seeds: int) -> Count:
    """Look at one architecture from some seeds, train it from the first, and tell false alarms."""
    entry = ZOO[name]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NoSiteWarning)  # some have nothing to watch
        looks = [found for seed in range(seeds) for found in fresh(entry, seed)]
        ends = list(trained(entry, 0))
    for finding in [one for found in (*looks, *(f for _, f in ends)) for one in found]:
        if finding.at_least("warning"):
            tqdm.write(f"{name}: {finding}", file=sys.stderr)
    return Count(
        dict(kinds([one for found in looks for one in found])),
        dict(kinds([one for _, found in ends for one in found])),
        *(len(looks), len(ends), ends[-1][0]),
    )


# ── the table ───────────────────────────────────────────────────────────────────────────


def alarms(found: dict[str, int]) -> int:
    """Warnings and errors."""
    return sum(n for kind, n in found.items() if not kind.endswith(" info"))


def table(counts: Counts) -> str:
    """How much was looked at, how often advice was wrong, and in how many each rule spoke."""
    all_of_them = counts.values()
    parts = [[one.fresh for one in all_of_them], [one.trained for one in all_of_them]]
    rows = [
        ["", "fresh", "in training"],
        ["healthy architectures", *(str(len(counts)) for _ in parts)],
        ["looked at", _looks(all_of_them), _windows(all_of_them)],
        ["**false alarms**", *(f"**{sum(map(alarms, part))}**" for part in parts)],
        ["architectures with any", *(str(sum(alarms(one) > 0 for one in part)) for part in parts)],
    ]
    for kind in sorted({kind for part in parts for one in part for kind in one}, key=_order):
        spoken = (sum(kind in one for one in part) for part in parts)
        rows.append([f"architectures with {kind}", *map(str, spoken)])
    return markdown(rows)


def _looks(counts: Iterable[Count]) -> str:
    return f"{sum(one.looks for one in counts)} models"


def _windows(counts: Iterable[Count]) -> str:
    return f"{sum(one.windows for one in counts)} windows"


def _order(kind: str) -> tuple[int, str]:
    """The most severe first, then by rule."""
    name, _, severity = kind.partition(" ")
    return -SEVERITIES.index(cast(Severity, severity)), name


def load(file: Path = COUNTS) -> Counts:
    return {name: Count(**one) for name, one in json.loads(file.read_text()).items()}


def save(counts: Counts, file: Path = COUNTS) -> None:
    plain = {name: asdict(one) for name, one in counts.items()}
    file.write_text(json.dumps(plain, indent=1, sort_keys=True) + "\n")


def main(arguments: Sequence[str] | None = None) -> None:
    """Look at all of them, print the table, and write it into the README if asked to."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--only", nargs="*", default=list(ZOO), choices=ZOO, metavar="NAME")
    parser.add_argument("--write", action="store_true", help="into README.md, too")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    counts = {name: count(name, options.seeds) for name in tqdm(options.only)}
    print(table(counts))
    if options.write:
        save(counts)
        write("false alarms", table(counts), README)


if __name__ == "__main__":
    main()
