"""Carries a policy out: which units, which remedy, apply, follow, take back."""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from deadwatch.activations import slopes_of
from deadwatch.errors import CannotTreat, DeadwatchError, warn_failed
from deadwatch.plain import from_plain, to_plain
from deadwatch.records import Bools, Ints, Outcome, Refusal, SiteReport, Treatment, WindowReport
from deadwatch.treat.chart import Chart, InCourse
from deadwatch.treat.ledger import CONTROL, Ledger
from deadwatch.treat.optim import OptimizerState
from deadwatch.treat.planning import Planning
from deadwatch.treat.policy import Policy
from deadwatch.treat.prevention import Prevention
from deadwatch.treat.remedies.base import Plan, Remedy
from deadwatch.treat.slopes import Average
from deadwatch.treat.theatre import Theatre
from deadwatch.treat.trial import Trial


class Clinic:
    """Applies a policy to a model, window by window.

    Args:
        policy: When to treat, and with what.
        model: The model to treat.
        optimizers: The state that goes with its parameters.
        seed: Seed of all random draws, equal on all ranks.
        total_steps: Training steps of the whole run, None if unknown.
        largest: The largest of the numbers that all ranks have; a collective call.
        alike: Whether a value is the same on all ranks; a collective call.
        aside: Makes a context in which no hook of ours is on the model.
        average: Averages gradients over all ranks; None where there is only one.
    """

    def __init__(
        self,
        policy: Policy,
        model: nn.Module,
        optimizers: OptimizerState,
        seed: int,
        total_steps: int | None = None,
        largest: Callable[[int], int] = int,
        alike: Callable[[object], bool] = lambda value: True,
        aside: Callable[[], AbstractContextManager[None]] = nullcontext,
        average: Average | None = None,
    ) -> None:
        self.ledger = Ledger()
        self.notes: list[str] = []
        self._policy = policy
        self._model = model
        self._theatre = Theatre(model, optimizers, aside, average)
        self._surgery = self._theatre.surgery
        self._optimizers = optimizers
        self._planning = Planning(model, self._theatre, seed)
        self._prevention = Prevention(policy.prevent, model, self._theatre, self._planning)
        self._total_steps = total_steps
        self._charts: dict[str, Chart] = {}
        self._trial = Trial(self._theatre, self.ledger, self._charts, largest)
        self._alike = alike
        self._waiting: dict[str, Ints] = {}
        self._unreviewed = False

    @property
    def _window(self) -> int:
        return self._planning.window

    def forbid_swaps(self, reason: str) -> None:
        """Refuse remedies that replace modules, with this reason."""
        self._planning.no_swaps = reason

    @property
    def due(self) -> bool:
        """Whether the last verdict left anything to do."""
        return bool(self._waiting) or self._unreviewed

    @property
    def in_course(self) -> int:
        """Units with a scheduled remedy in progress."""
        return sum(int(chart.in_course().sum()) for chart in self._charts.values())

    @property
    def held(self) -> tuple[int, float]:
        """Units of which something is on loan, and the most of it."""
        goings = [going.course for chart in self._charts.values() for going in chart.courses]
        on_loan = [(len(course.units), course.held) for course in goings if course.held]
        return sum(n for n, _ in on_loan), max((held for _, held in on_loan), default=0.0)

    @property
    def replaced(self) -> int:
        """How many modules of the model have been replaced so far."""
        return self._surgery.replaced

    @property
    def outcomes(self) -> tuple[Outcome, ...]:
        """What came of each remedy so far."""
        return self.ledger.outcomes

    def told(self) -> tuple[str, ...]:
        """What there is to tell since the last call."""
        told, self.notes = tuple(self.notes), []
        return told

    # ── each step ───────────────────────────────────────────────────────────────────────

    @torch.inference_mode(False)  # what is made here has to last
    def step(self, loss: Tensor | float | None = None) -> None:
        """Advance every scheduled remedy by one training step, and look after the loss."""
        for site, chart in self._charts.items():
            if chart.courses:
                chart.courses = [c for c in chart.courses if not self._advanced(site, c)]
        if loss is not None and self._policy.guard:
            self.notes += self._trial.step(loss, self._window)

    def _advanced(self, site: str, going: InCourse) -> bool:
        ended = going.step(self._surgery)
        if ended:
            self._discharge(site, going)
        return ended

    def _discharge(self, site: str, going: InCourse) -> None:
        if going.told:
            self.ledger.note(site, going.treated, going.told)
            self.notes.append(f"{site}: {going.told}")

    # ── before the first window ─────────────────────────────────────────────────────────

    def attach(self) -> None:
        """Put in force what lasts only as long as deadwatch is attached."""
        slopes = slopes_of(self._model).values()
        self._optimizers.exempt(slopes)
        self._theatre.slopes.add(slopes)
        self._prevention.resume()

    def detach(self) -> None:
        """Leave nothing of ours on the optimizers; the ledger knows what is still going on."""
        self._optimizers.release()
        self._theatre.slopes.release()
        for site, chart in self._charts.items():
            for going in chart.courses:
                self.ledger.note(site, going.treated, going.course.told)

    @property
    def prevents(self) -> bool:
        """Whether preventives are still to be applied."""
        return not self._prevention.done

    @torch.inference_mode(False)
    def prevent(self, verdict: WindowReport, step: int) -> None:
        """Apply the policy's preventives; what was done is noted."""
        self._planning.begin(verdict)
        self.notes += self._prevention.apply(verdict, step)

    # ── each window ─────────────────────────────────────────────────────────────────────

    def consider(self, verdict: WindowReport, step: int) -> None:
        """Follow up earlier treatments and decide which units are due."""
        busy = {name: chart.in_course() for name, chart in self._charts.items()}
        self.ledger.follow(verdict, busy)
        self._planning.begin(verdict)
        self._unreviewed = any(chart.courses for chart in self._charts.values())
        open_now = step >= self._policy.warmup and not self._policy.ended(step, self._total_steps)
        self._waiting = {}
        for name, report in verdict.sites.items():
            chart = self._chart(report)
            due = self._due(report, verdict)
            chart.streak = chart.streak + 1 if due.any() else 0
            ready = chart.streak >= self._policy.patience and self._window >= chart.rest_until
            if ready and open_now and self._policy.ladder:
                self._waiting[name] = np.flatnonzero(due)
            self.notes += filter(None, [self._policy.spared(report)])

    def _due(self, report: SiteReport, verdict: WindowReport) -> Bools:
        due: Bools = np.asarray(self._policy.due(report, verdict))
        if due.dtype != np.bool_ or due.shape != (report.units,):
            raise DeadwatchError(
                f"{type(self._policy).__name__}.due returned {due.dtype} of shape {due.shape}; "
                f"expected one boolean for each of the {report.units} units of {report.site.name}"
            )
        return due

    def _chart(self, report: SiteReport) -> Chart:
        chart = self._charts.get(report.site.name)
        if chart is None or len(chart.rung) != report.units:
            chart = self._charts[report.site.name] = Chart.of(report.units)
        return chart

    @torch.inference_mode(False)
    def treat(
        self, verdict: WindowReport, step: int
    ) -> tuple[tuple[Treatment, ...], tuple[Refusal, ...]]:
        """Let courses follow the verdict, and treat the units that are due."""
        self._review(verdict)
        treatments: list[Treatment] = []
        refusals: list[Refusal] = []
        before = {name: self._charts[name].copy() for name in self._waiting}
        with self._surgery.surveyed():
            for name, units in self._waiting.items():
                done, refused = self._treat_site(verdict[name], units, step)
                treatments += done
                refusals += refused
                if done:
                    self._charts[name].rest_until = self._window + 1 + self._policy.cooldown
        told = [(each.remedy, each.site, each.units.tobytes()) for each in treatments]
        if self._waiting and not self._alike(told):
            treatments, refusals = [], self._take_back(treatments, before)
        self._waiting = {}
        self.ledger.record(treatments)
        if treatments and self._policy.guard:
            self.notes += filter(None, [self._trial.begin(treatments)])
        return tuple(treatments), tuple(refusals)

    def _take_back(
        self, treatments: Sequence[Treatment], before: Mapping[str, Chart]
    ) -> list[Refusal]:
        """Not all ranks have treated alike: none has, and all let the sites rest."""
        for treatment in reversed(treatments):
            try:
                self._theatre.undo(treatment)
            except Exception as error:  # never break training
                warn_failed(f"undoing {treatment.remedy} on {treatment.site}", error)
        why = "not all processes could treat these units alike, so that none of them has"
        for name, chart in before.items():
            for part in (part for remedy in self._policy.ladder for part in remedy.parts):
                chart.hold(part.name, self._window)
            self._charts[name] = replace(chart, controls=self._charts[name].controls)
        names = " → ".join(remedy.name for remedy in self._policy.ladder)
        return [
            Refusal(names, name, units, self._window, why) for name, units in self._waiting.items()
        ]

    def _review(self, verdict: WindowReport) -> None:
        self._unreviewed = False
        for site, chart in self._charts.items():
            for going in list(chart.courses):
                if site in verdict and going.review(verdict[site], self._surgery):
                    chart.courses.remove(going)
                    self._discharge(site, going)

    def _treat_site(
        self, report: SiteReport, due: Ints, step: int
    ) -> tuple[list[Treatment], list[Refusal]]:
        chart = self._charts[report.site.name]
        todo = self._admitted(report, due, step)
        last = len(self._policy.ladder) - 1
        done: list[Treatment] = []
        refused: list[Refusal] = []
        for rung, remedy in enumerate(self._policy.ladder):
            begun = todo & (np.minimum(chart.rung, last) <= rung)
            left, reasons = begun.copy(), dict[str, tuple[Ints, str]]()
            for part, one in enumerate(remedy.parts):
                units = np.flatnonzero(left)
                plan, reason = self._try(one, report, units, step, done)
                if plan is not None:
                    left[plan.units] = False
                    chart.treated(plan.units, rung)
                    self._enter(chart, plan, rung, part, step)
                if reason:
                    reasons[one.name] = (np.flatnonzero(left & begun), reason)
            todo &= left | ~begun
            refused += self._refusals(report, left, reasons)
        return done, refused

    def _enter(self, chart: Chart, plan: Plan, rung: int, part: int, step: int) -> None:
        if plan.course is not None:
            chart.courses.append(InCourse(plan.course, rung, part, plan.units, step))

    def _refusals(
        self, report: SiteReport, left: Bools, reasons: Mapping[str, tuple[Ints, str]]
    ) -> list[Refusal]:
        """Why each remedy refused units that no later part of it took either."""
        refusals = []
        for name, (units, reason) in reasons.items():
            units = units[left[units]]
            if len(units):
                site, window = report.site.name, self._window
                refusals.append(Refusal(name, site, units, window, reason))
        return refusals

    def _admitted(self, report: SiteReport, due: Ints, step: int) -> Bools:
        """The units that are treated now, within all limits of the policy (C,)."""
        chart, policy = self._charts[report.site.name], self._policy
        todo = np.zeros(report.units, np.bool_)
        todo[due] = True
        todo &= ~chart.in_course()
        controls = todo & self._control_group(report)
        self._follow_controls(chart, report, controls & ~chart.controls, step)
        todo &= ~controls
        if policy.per_unit is not None:
            todo &= chart.times < policy.per_unit
        most = max(1, math.floor(policy.budget * report.units))
        first = np.flatnonzero(todo)[np.argsort(-report.age[todo], kind="stable")][:most]
        admitted = np.zeros_like(todo)
        admitted[first] = True
        return admitted

    def _control_group(self, report: SiteReport) -> Bools:
        seed = zlib.crc32(f"{self._planning.seed}/{report.site.name}/control".encode())
        drawn: Bools = np.random.default_rng(seed).random(report.units) < self._policy.control
        return drawn

    def _follow_controls(self, chart: Chart, report: SiteReport, units: Bools, step: int) -> None:
        if units.any():
            chart.controls |= units
            name, which = report.site.name, np.flatnonzero(units)
            self.ledger.record([Treatment(CONTROL, name, which, self._window, step, True)])

    def _try(
        self, remedy: Remedy, report: SiteReport, units: Ints, step: int, done: list[Treatment]
    ) -> tuple[Plan | None, str]:
        """The plan that was carried out, or None; and why not for all units."""
        if not len(units):
            return None, ""
        if self._window < self._charts[report.site.name].hold_until.get(remedy.name, 0):
            return None, "it is on hold here since it was undone"
        try:
            plan = self._planning.plan(remedy, report, units)
            done.append(self._theatre.apply(plan, report, self._window, step))
        except CannotTreat as reason:
            return None, str(reason)
        except Exception as error:  # never break training
            return None, warn_failed(f"{remedy.name} on {report.site.name}", error)
        if len(plan.units) == len(units):
            return plan, ""
        return plan, plan.left_out or "the remedy left them out and gave no reason"

    # ── checkpoints ─────────────────────────────────────────────────────────────────────

    def state_dict(self) -> dict[str, Any]:
        """Plain values to go on from."""
        return {
            "seed": self._planning.seed,
            "window": self._planning.window,
            "calls": dict(self._planning.calls),
            "prevented": self._prevention.done,
            "unreviewed": self._unreviewed,
            "ladder": [[part.name for part in remedy.parts] for remedy in self._policy.ladder],
            "charts": {name: chart.state_dict() for name, chart in self._charts.items()},
            "waiting": to_plain(self._waiting),
            "ledger": self.ledger.state_dict(),
            "notes": list(self.notes),
            "trial": self._trial.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a `state_dict`."""
        self._planning.seed, self._planning.window = state["seed"], state["window"]
        self._planning.calls = dict(state["calls"])
        self._prevention.done = state["prevented"]
        self._unreviewed = state["unreviewed"]
        self._charts.clear()
        for name, chart in state["charts"].items():
            self._charts[name] = self._resumed(chart, state["ladder"])
        self._waiting = from_plain(dict[str, Ints], state["waiting"])
        self.ledger.load_state_dict(state["ledger"])
        self.notes = list(state["notes"])
        self._trial.load_state_dict(state["trial"])

    def _resumed(self, state: dict[str, Any], ladder: list[list[str]]) -> Chart:
        chart = Chart.resume(state)
        for saved in state["courses"]:
            rung, part = saved["rung"], saved["part"]
            remedy = self._same_remedy(ladder[rung][part], rung, part)
            course = remedy.resume(saved["course"], self._surgery)
            treated = from_plain(Ints, saved["treated"])
            chart.courses.append(InCourse(course, rung, part, treated, saved["step"]))
        return chart

    def _same_remedy(self, name: str, rung: int, part: int) -> Remedy:
        """The remedy whose course is to go on; it stands where it stood in the policy."""
        for remedy in self._policy.ladder[rung : rung + 1]:
            for one in remedy.parts[part : part + 1]:
                if one.name == name:
                    return one
        names = " → ".join(remedy.name for remedy in self._policy.ladder)
        raise DeadwatchError(
            f"the state holds a {name} in progress, on rung {rung + 1} of the ladder of its "
            f"policy, and this policy ({names}) has none there; resume with the policy it was "
            "saved with, or with policy=None, which leaves in the model what is in it"
        )
