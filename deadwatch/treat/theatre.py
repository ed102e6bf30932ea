"""Where plans are carried out, and taken back."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager

import torch
from torch import nn

from deadwatch.activations import SwappedActivation
from deadwatch.errors import ResumeWarning
from deadwatch.records import SiteReport, Treatment
from deadwatch.treat.optim import OptimizerState
from deadwatch.treat.remedies.base import Plan
from deadwatch.treat.surgery import Surgery


class Theatre:
    """Applies plans to a model and to the state of its optimizers.

    Args:
        model: The model.
        optimizers: The state that goes with its parameters.
        aside: Makes a context in which no hook of ours is on the model.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizers: OptimizerState,
        aside: Callable[[], AbstractContextManager[None]],
    ) -> None:
        self.surgery = Surgery(model, aside)
        self.optimizers = optimizers
        self._model = model
        self._swapped: dict[tuple[str, int, int], nn.Module] = {}

    def apply(self, plan: Plan, report: SiteReport, window: int, step: int) -> Treatment:
        """Carry a plan out; the treatment says all that was written."""
        changes = list(self.surgery.apply(plan.edits))
        for restart in plan.restarts:
            changes += self.optimizers.restart(self.surgery.tensor(restart.tensor), restart)
        site = report.site
        before: tuple[int, ...] | None = ()
        if plan.swap is not None:
            old = self.surgery.module(plan.swap[0])
            self._swapped[site.name, step, int(plan.units[0])] = old
            before = _units_of(old) if isinstance(plan.swap[1], SwappedActivation) else None
            self._swap(*plan.swap, report)
        return Treatment(
            plan.remedy,
            site.name,
            plan.units,
            window,
            step,
            plan.quiet,
            tuple(changes),
            plan.note,
            plan.swap[0] if plan.swap is not None else "",
            before,
        )

    def undo(self, treatment: Treatment) -> None:
        """Take a treatment back, to the bit; treatments are taken back last first.

        What the treated units learned since is lost; what live units learned in a bias that the
        treatment had changed stays.
        """
        if treatment.swapped:
            self._swap_back(treatment)
        for change in reversed(treatment.changes):
            if change.state:
                self.optimizers.undo(self.surgery.tensor(change.tensor), change)
            else:
                self.surgery.undo(change)

    def forget(self) -> None:
        """No treatment so far will be undone any more."""
        self._swapped.clear()

    def _swap(self, path: str, module: nn.Module, report: SiteReport) -> None:
        self.surgery.replace(path, module)
        producers = report.site.producers
        for parameter in module.parameters():
            if self.optimizers.owner(parameter) is None and producers:
                assert producers[0].weight is not None
                beside = self.surgery.tensor(producers[0].weight)
                self.optimizers.insert(parameter, beside, dict(self._model.named_parameters()))

    def _swap_back(self, treatment: Treatment) -> None:
        now = self.surgery.module(treatment.swapped)
        key = treatment.site, treatment.step, int(treatment.units[0])
        before = self._swapped.pop(key, None) or _rebuilt(now, treatment)
        kept = {id(parameter) for parameter in before.parameters()}
        self.surgery.replace(treatment.swapped, before)
        for parameter in now.parameters():
            if id(parameter) not in kept:
                self.optimizers.remove(parameter)


def _units_of(module: nn.Module) -> tuple[int, ...]:
    """The units that are swapped in a module, none if it is no swap."""
    if not isinstance(module, SwappedActivation):
        return ()
    return tuple(module.units().nonzero().flatten().tolist())


def _rebuilt(now: nn.Module, treatment: Treatment) -> nn.Module:
    """What stood in the place of a swap that was made before the run was resumed."""
    if treatment.swapped_before is None:
        warnings.warn(
            f"{treatment.swapped} was replaced by a module that a resumed run cannot take back; "
            "it stays, and the rest of the treatment is undone",
            ResumeWarning,
            stacklevel=2,
        )
    if not isinstance(now, SwappedActivation):
        return now  # or the swap has come back by itself
    if not treatment.swapped_before:
        return now.restored()
    mask = torch.zeros_like(now.deadwatch_mask)
    mask[list(treatment.swapped_before)] = 1
    return now.masked(mask)
