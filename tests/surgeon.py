"""Treats any site of any architecture, and measures what came of it."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from deadwatch import CannotTreat, Case, Plan, Remedy, Rules, SiteReport, Watch, WindowReport
from deadwatch.treat.optim import OptimizerState
from deadwatch.treat.surgery import Surgery
from tests.setting import Setting

DEPTH = 40.0


@dataclass
class Theatre:
    """A setting's model under a watch, with one batch on which everything is measured."""

    setting: Setting
    model: nn.Module = field(init=False)
    reports: WindowReport = field(init=False)

    def __post_init__(self) -> None:
        self.model = self.setting.model()
        torch.manual_seed(1)
        self._batch = self.setting.next_batch()
        trainable = [p for p in self.model.parameters() if p.requires_grad]
        self._optimizer = torch.optim.Adam(trainable, lr=0.0)
        self._surgery = Surgery(self.model)
        self._watch = Watch(self.model, stats_every_n_steps=1, rules=Rules(min_samples=1))

    def __enter__(self) -> Theatre:
        self._warnings = warnings.catch_warnings()
        self._warnings.__enter__()
        warnings.simplefilter("ignore")  # that axes are guessed, or sites never run
        self._watch.attach()
        self.look()
        self._optimizer.step()  # so that there is state
        return self

    def __exit__(self, *exception: Any) -> None:
        self._watch.detach()
        self._warnings.__exit__(*exception)

    def look(self) -> Tensor:
        """Run the batch; what the sites showed is in ``reports``."""
        torch.manual_seed(2)
        out = self.setting.run(self.model, self._batch, 0)
        self.reports = self._watch.close_window()
        return out.detach().clone()

    def state(self) -> dict[str, Any]:
        """The model's state, to come back to."""
        return copy.deepcopy(self.model.state_dict())

    def load(self, state: dict[str, Any]) -> None:
        """Come back to a state."""
        self.model.load_state_dict(state)

    def case(self, report: SiteReport, units: list[int]) -> Case:
        """A case as the clinic would make it."""
        optimizers = OptimizerState([self._optimizer])
        return Case(report, np.array(units), 1, self._surgery, optimizers, seed=3)

    def kill(self, report: SiteReport) -> list[int]:
        """Push two units of a site far down, by their shift or by the rows that make them.

        Rows of negative weights are enough where no input is negative.
        """
        units = sorted({1 % report.units, report.units - 1})
        case = self.case(report, units)
        try:
            rows = {case.shift(): torch.as_tensor(DEPTH)}
        except CannotTreat:
            made = [wire for wire in report.site.producers if wire.kind in ("linear", "conv")]
            weights = [name for wire in made for name in wire.names[:1]]
            rows = {name: case.rows(name).abs() + 1 for name in weights}
        for name, depth in rows.items():
            self._surgery.apply(case.edits(name, case.rows(name).double() - depth))
        return units

    def treat(self, plan: Plan) -> dict[str, float]:
        """Apply a plan as the clinic would; returns the share of each parameter that changed."""
        before = {name: value.detach().clone() for name, value in self.model.named_parameters()}
        self._surgery.apply(plan.edits)
        for restart in plan.restarts:
            tensor = self._surgery.tensor(restart.tensor)
            OptimizerState([self._optimizer]).restart(tensor, restart)
        changed = {n: (v != before[n]).double().mean() for n, v in self.model.named_parameters()}
        return {name: float(share) for name, share in changed.items() if share > 0}


@dataclass(frozen=True)
class Outcome:
    """What a remedy did to two dead units of a site, or why it refused.

    Attributes:
        site: Name of the site.
        remedy: The remedy.
        refusal: Why it does not apply; empty if it does.
        moved: How far the model's output moved, relative to its size.
        strayed: How far the statistics of any other unit of any site moved, likewise.
        written: The share of each parameter that changed, where any of it did.
        treated: What the site showed after the treatment.
        plan: What was done.
    """

    site: str
    remedy: Remedy
    refusal: str = ""
    moved: float = 0.0
    strayed: float = 0.0
    written: dict[str, float] = field(default_factory=dict)
    treated: SiteReport | None = None
    plan: Plan | None = None


def outcomes(setting: Setting, remedies: list[Remedy]) -> Iterator[Outcome]:
    """Every remedy on every site, two units of which have been killed."""
    with Theatre(setting) as theatre:
        start = theatre.state()
        for name in theatre.reports:
            theatre.load(start)
            theatre.look()
            if theatre.reports[name].samples:
                yield from _at(theatre, name, remedies)


def _at(theatre: Theatre, name: str, remedies: list[Remedy]) -> Iterator[Outcome]:
    units = theatre.kill(theatre.reports[name])
    dead, out = theatre.state(), theatre.look()
    before = theatre.reports
    closed = before[name].open_fraction == 0
    units = [unit for unit in units if closed[unit]] or np.flatnonzero(closed)[:2].tolist()
    for remedy in remedies if units else ():
        theatre.load(dead)
        try:
            plan = remedy.plan(theatre.case(before[name], units))
        except CannotTreat as refusal:
            yield Outcome(name, remedy, str(refusal))
            continue
        written = theatre.treat(plan)
        moved = _apart(theatre.look(), out)
        strayed = max(_strayed(theatre.reports, before, name, plan.units))
        yield Outcome(name, remedy, "", moved, strayed, written, theatre.reports[name], plan)


def _apart(one: Tensor, other: Tensor) -> float:
    """Largest difference, relative to the largest value."""
    return float((one - other).abs().max() / (1e-3 + other.abs().max()))


def _strayed(
    after: WindowReport, before: WindowReport, treated: str, units: Any
) -> Iterator[float]:
    """How far all units but the treated ones moved, at every site, relative to the largest."""
    for name, old in before.items():
        for statistic in ("mean", "std", "min", "max"):
            one, other = getattr(old, statistic), getattr(after[name], statistic)
            apart = np.abs(one - other)
            if name == treated:
                apart = np.delete(apart, units)
            if apart.size and np.isfinite(one).any():
                yield float(np.nanmax(apart) / (1e-3 + np.nanmax(np.abs(one))))
    yield 0.0
