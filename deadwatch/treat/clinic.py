"""Carries a policy out: which units, which remedy, apply, follow."""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from torch import nn

from deadwatch.errors import DeadwatchError
from deadwatch.records import Bools, Ints, Refusal, SiteReport, Treatment, WindowReport
from deadwatch.treat.ledger import Ledger
from deadwatch.treat.optim import OptimizerState
from deadwatch.treat.policy import Policy
from deadwatch.treat.remedies.base import CannotTreat, Case, Course, Plan, Remedy
from deadwatch.treat.surgery import Surgery


@dataclass(eq=False)
class _Chart:
    """What the clinic remembers of one site."""

    rung: Ints
    streak: int = 0
    rest_until: int = 0
    courses: list[tuple[Ints, Course]] = field(default_factory=list)

    def in_course(self) -> Bools:
        busy = np.zeros(len(self.rung), np.bool_)
        for units, _ in self.courses:
            busy[units] = True
        return busy


class Clinic:
    """Applies a policy to a model, window by window.

    Args:
        policy: When to treat, and with what.
        model: The model to treat.
        optimizers: The state that goes with its parameters.
        seed: Seed of all random draws, equal on all ranks.
    """

    def __init__(
        self, policy: Policy, model: nn.Module, optimizers: OptimizerState, seed: int
    ) -> None:
        self.ledger = Ledger()
        self.no_swaps = ""
        self._policy = policy
        self._model = model
        self._surgery = Surgery(model)
        self._optimizers = optimizers
        self._seed = seed
        self._charts: dict[str, _Chart] = {}
        self._waiting: list[SiteReport] = []
        self._window = 0
        self._calls: Mapping[str, int] = {}

    @property
    def due(self) -> bool:
        """Whether the last verdict left anything to treat."""
        return bool(self._waiting)

    @property
    def in_course(self) -> int:
        """Units with a scheduled remedy in progress."""
        return sum(int(chart.in_course().sum()) for chart in self._charts.values())

    @property
    def held(self) -> float:
        """Largest distance that a schedule holds any parameter from its own value."""
        courses = [course for chart in self._charts.values() for _, course in chart.courses]
        return max((course.held for course in courses), default=0.0)

    @property
    def replaced(self) -> int:
        """How many modules of the model have been replaced so far."""
        return self._surgery.replaced

    def step(self) -> None:
        """Advance every scheduled remedy by one training step."""
        for chart in self._charts.values():
            if chart.courses:
                going = [pair for pair in chart.courses if not pair[1].step(self._surgery)]
                chart.courses = going

    def consider(self, verdict: WindowReport) -> None:
        """Follow up earlier treatments and decide which sites are due."""
        self.ledger.follow(verdict)
        self._window = verdict.window.index
        paths = [site.site.module for site in verdict.sites.values()]
        calls = Counter(id(self._surgery.module(path)) for path in paths)
        self._calls = {path: calls[id(self._surgery.module(path))] for path in paths}
        self._waiting = [report for report in verdict.sites.values() if self._is_due(report)]

    def _is_due(self, report: SiteReport) -> bool:
        chart = self._charts.get(report.site.name)
        if chart is None or len(chart.rung) != report.units:
            chart = self._charts[report.site.name] = _Chart(np.zeros(report.units, np.int64))
        over = report.dead.any() and report.dead_ratio >= self._policy.when
        chart.streak = chart.streak + 1 if over else 0
        return chart.streak >= self._policy.patience and self._window >= chart.rest_until

    def treat(self, step: int) -> tuple[tuple[Treatment, ...], tuple[Refusal, ...]]:
        """Treat the sites that are due; returns what was done and what could not be."""
        treatments: list[Treatment] = []
        refusals: list[Refusal] = []
        for report in self._waiting:
            done, refused = self._treat_site(report, step)
            treatments += done
            refusals += refused
            if done:
                chart = self._charts[report.site.name]
                chart.rest_until = self._window + 1 + self._policy.cooldown
        self._waiting = []
        self.ledger.record(treatments)
        return tuple(treatments), tuple(refusals)

    def _treat_site(self, report: SiteReport, step: int) -> tuple[list[Treatment], list[Refusal]]:
        chart = self._charts[report.site.name]
        todo = report.dead & ~chart.in_course()
        last = len(self._policy.ladder) - 1
        done: list[Treatment] = []
        refused: list[Refusal] = []

        def refuse(remedy: Remedy, units: Ints, reason: str) -> None:
            refused.append(Refusal(remedy.name, report.site.name, units, self._window, reason))

        for rung, remedy in enumerate(self._policy.ladder):
            units = np.flatnonzero(todo & (np.minimum(chart.rung, last) <= rung))
            if not len(units):
                continue
            try:
                plan = self._plan(remedy, report, units)
            except CannotTreat as reason:
                refuse(remedy, units, str(reason))
                continue
            done.append(self._apply(plan, report, step))
            todo[plan.units] = False
            chart.rung[plan.units] = rung + 1
            if plan.course is not None:
                chart.courses.append((plan.units, plan.course))
            left = np.setdiff1d(units, plan.units)
            if len(left):
                refuse(remedy, left, plan.left_out or "the remedy left them out and gave no reason")
        return done, refused

    def _plan(self, remedy: Remedy, report: SiteReport, units: Ints) -> Plan:
        plan = remedy.plan(self._case(remedy, report, units))
        if not isinstance(plan, Plan):
            raise DeadwatchError(
                f"{remedy.name}.plan returned {plan!r}; expected a Plan (no return?)"
            )
        if plan.swap is not None and self.no_swaps:
            raise CannotTreat(self.no_swaps)
        return plan

    def _case(self, remedy: Remedy, report: SiteReport, units: Ints) -> Case:
        site = report.site
        key = f"{self._seed}/{self._window}/{site.name}/{remedy.name}"
        calls = self._calls[site.module]
        seed = zlib.crc32(key.encode())
        return Case(report, units, calls, self._surgery, self._optimizers, seed)

    def _apply(self, plan: Plan, report: SiteReport, step: int) -> Treatment:
        changes = self._surgery.apply(plan.edits)
        for restart in plan.restarts:
            self._optimizers.restart(self._surgery.tensor(restart.tensor), restart)
        if plan.swap is not None:
            self._swap(*plan.swap, report)
        return Treatment(
            plan.remedy,
            report.site.name,
            plan.units,
            self._window,
            step,
            plan.quiet,
            changes,
            plan.note,
        )

    def _swap(self, path: str, module: nn.Module, report: SiteReport) -> None:
        self._surgery.replace(path, module)
        producers = report.site.producers
        for parameter in module.parameters():
            if self._optimizers.owner(parameter) is None and producers:
                assert producers[0].weight is not None
                beside = self._surgery.tensor(producers[0].weight)
                self._optimizers.insert(parameter, beside, dict(self._model.named_parameters()))
