"""Reports of windows that nobody trained for, and runs read back from what was kept of them."""

from __future__ import annotations

import base64
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch.utils.tensorboard import SummaryWriter

from deadwatch import (
    Gate,
    Outcome,
    Refusal,
    Site,
    SiteReport,
    State,
    TensorBoardView,
    Treatment,
    WindowReport,
)
from deadwatch.records import Window
from deadwatch.show.archive import Archivist
from deadwatch.show.run import Record, Run

STEPS = 10  # of a window
HOSTILE = "<img src=x onerror=window.hacked=1>"


def site(name: str, states: Sequence[int], seed: int = 0, measured: float = 0.8) -> SiteReport:
    """A site with the given states; of some units nothing is measured."""
    count, rng = len(states), np.random.default_rng(seed)
    figures = {
        kind: np.where(rng.random(count) < measured, rng.standard_normal(count), math.nan)
        for kind in ("mean", "std", "min", "max", "mean_abs", "mean_out", "dormancy")
    }
    share = np.where(rng.random(count) < measured, rng.random(count), math.nan)
    return SiteReport(
        Site(name, name, 1, "ReLU", Gate(0, math.inf), 1),
        samples=640,
        state=np.array(states, np.int64),
        age=np.zeros(count, np.int64),
        open_fraction=share,
        nonfinite=np.zeros(count),
        sparsity=float(rng.random()) if count else math.nan,
        **figures,
    )


def window(index: int, *sites: SiteReport, **told: Any) -> WindowReport:
    span = Window(index, index * STEPS, index * STEPS + STEPS - 1)
    return WindowReport(span, {report.site.name: report for report in sites}, **told)


def history(windows: int = 6, units: int = 8, name: str = "act", seed: int = 0) -> list[Any]:
    rng = np.random.default_rng(seed)
    return [
        window(i, site(name, rng.integers(0, len(State), units).tolist(), seed=seed + i))
        for i in range(windows)
    ]


def treatment(index: int, units: Sequence[int], name: str = "act", **given: Any) -> Treatment:
    given = {"remedy": "Recycle", "quiet": True, "note": "drawn afresh"} | given
    step = index * STEPS + STEPS
    return Treatment(site=name, units=np.array(units), window=index, step=step, **given)


def refusal(index: int, units: Sequence[int], name: str = "act") -> Refusal:
    return Refusal("Swap", name, np.array(units), index, "it is shared")


def outcome(units: int = 3, revived: int = 1, remedy: str = "Recycle") -> Outcome:
    return Outcome(remedy, 1, units, revived, 0, 0, 0, 99)


def written(folder: Path, reports: Iterable[WindowReport], **given: Any) -> Path:
    """An event file of one session, as a plain loop would write it; returns its path."""
    before = set(folder.glob("*"))
    with SummaryWriter(folder, **given) as writer:
        view = TensorBoardView(writer)
        for report in reports:
            view(report)
    (path,) = set(folder.glob("*")) - before
    return path


class Log:
    """Keeps records by tag, in the order they come in."""

    def __init__(self) -> None:
        self.tags: dict[str, list[Record]] = {}
        self._now = 0.0

    def write(self, reports: Iterable[WindowReport], **budgets: int) -> Log:
        """What one session writes."""
        archivist = Archivist(**budgets)
        for report in reports:
            self.add(archivist.records(report))
        return self

    def add(self, records: Iterable[tuple[str, bytes]]) -> None:
        for tag, data in records:
            self._now += 1.0
            self.tags.setdefault(tag, []).append(Record(self._now, data))

    def run(self) -> Run:
        return Run(lambda tag: self.tags.get(tag, []))


def halved(values: Any) -> Any:
    """What is left of figures that are kept as float16."""
    return np.asarray(values, np.float32).astype(np.float16).astype(np.float32)


def equal(found: Any, expected: Any) -> bool:
    return bool(np.array_equal(found, expected, equal_nan=True))


def decoded(document: Mapping[str, Any]) -> Any:
    """An array of a document."""
    data = base64.b64decode(document["data"])
    return np.frombuffer(data, document["dtype"]).reshape(document["shape"])
