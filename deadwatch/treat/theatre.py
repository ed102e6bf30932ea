"""Where plans are carried out, and taken back."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager

import numpy as np
from torch import Tensor, nn

from deadwatch.activations import MASK, SwappedActivation
from deadwatch.records import Change, SiteReport, Treatment
from deadwatch.treat.optim import OptimizerState
from deadwatch.treat.remedies.base import Plan
from deadwatch.treat.slopes import Average, SharedSlopes
from deadwatch.treat.surgery import Surgery, host_copy


class Theatre:
    """Applies plans to a model and to the state of its optimizers.

    Args:
        model: The model.
        optimizers: The state that goes with its parameters.
        aside: Makes a context in which no hook of ours is on the model.
        average: Averages gradients over all ranks; None where there is only one.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizers: OptimizerState,
        aside: Callable[[], AbstractContextManager[None]],
        average: Average | None = None,
    ) -> None:
        self.surgery = Surgery(model, aside)
        self.slopes = SharedSlopes(model, average)
        self.optimizers = optimizers
        self._model = model
        self._replaced: dict[nn.Module, nn.Module] = {}

    def apply(self, plan: Plan, report: SiteReport, window: int, step: int) -> Treatment:
        """Carry a plan out; the treatment says all that was written."""
        changes = list(self.surgery.apply(plan.edits))
        try:
            for restart in plan.restarts:
                changes += self.optimizers.restart(self.surgery.tensor(restart.tensor), restart)
            if plan.swap is not None:
                changes += self._swap(*plan.swap, report)
        except Exception:
            self._undo(changes)
            raise
        site = report.site
        return Treatment(
            plan.remedy,
            site.name,
            plan.units,
            window,
            step,
            plan.quiet,
            tuple(changes),
            plan.note + (self.slopes.told(plan.swap[1]) if plan.swap is not None else ""),
            plan.swap[0] if plan.swap is not None else "",
        )

    def undo(self, treatment: Treatment) -> None:
        """Take a treatment back, to the bit; treatments are taken back last first.

        What the treated units learned since is lost; what live units learned in a bias that the
        treatment had changed stays.
        """
        if treatment.swapped:
            self._swap_back(treatment)
        self._undo(treatment.changes)

    def _undo(self, changes: Sequence[Change]) -> None:
        for change in reversed(changes):
            if change.state:
                self.optimizers.undo(self.surgery.tensor(change.tensor), change)
            else:
                self.surgery.undo(change)

    def forget(self) -> None:
        """No treatment so far will be undone any more."""
        self._replaced.clear()

    def _swap(self, path: str, module: nn.Module, report: SiteReport) -> list[Change]:
        old = self.surgery.module(path)
        self.surgery.replace(path, module)
        self._replaced[module] = old
        producers = report.site.producers
        for parameter in module.parameters():
            if self.optimizers.owner(parameter) is None and producers:
                assert producers[0].weight is not None
                beside = self.surgery.tensor(producers[0].weight)
                self.optimizers.insert(parameter, beside, dict(self._model.named_parameters()))
                self.optimizers.exempt([parameter])  # a slope shall not decay to zero
                self.slopes.add([parameter])
        if isinstance(old, SwappedActivation) and isinstance(module, SwappedActivation):
            return [self._widened(path, old.deadwatch_mask)]
        return []

    def _widened(self, path: str, before: Tensor) -> Change:
        """The change of the mask where a swap was extended."""
        name, index = f"{path}.{MASK}", np.arange(len(before))
        after = self.surgery.rows(name, index)
        return Change(name, 0, index, host_copy(before), host_copy(after))

    def _swap_back(self, treatment: Treatment) -> None:
        path = treatment.swapped
        now = self.surgery.module(path)
        before = self._replaced.get(now)
        if any(change.tensor == f"{path}.{MASK}" for change in treatment.changes):
            assert isinstance(now, SwappedActivation)
            before = now.masked(now.units())  # its mask is written back with the changes
        elif before is None and isinstance(now, SwappedActivation):
            before = now.restored()  # the run was resumed since
        elif before is None:  # an annealed swap has returned already
            return
        kept = {id(parameter) for parameter in before.parameters()}
        self.surgery.replace(path, before)
        for parameter in now.parameters():
            if id(parameter) not in kept:
                self.optimizers.remove(parameter)
                self.slopes.discard(parameter)
