"""Where plans are carried out, and taken back."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

from torch import Tensor, nn

from deadwatch.activations import MASK, SwappedActivation
from deadwatch.records import SiteReport, Treatment
from deadwatch.treat.optim import OptimizerState
from deadwatch.treat.remedies.base import Plan
from deadwatch.treat.surgery import Surgery

_Key = tuple[str, int, int]
"""Site, step and first unit of a treatment."""


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
        self._swapped: dict[_Key, nn.Module] = {}
        self._masks: dict[_Key, Tensor | None] = {}

    def apply(self, plan: Plan, report: SiteReport, window: int, step: int) -> Treatment:
        """Carry a plan out; the treatment says all that was written."""
        changes = list(self.surgery.apply(plan.edits))
        for restart in plan.restarts:
            changes += self.optimizers.restart(self.surgery.tensor(restart.tensor), restart)
        site = report.site
        if plan.swap is not None:
            self._swapped[site.name, step, int(plan.units[0])] = self.surgery.module(plan.swap[0])
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
        self._masks.clear()

    def _swap(self, path: str, module: nn.Module, report: SiteReport) -> None:
        self.surgery.replace(path, module)
        producers = report.site.producers
        for parameter in module.parameters():
            if self.optimizers.owner(parameter) is None and producers:
                assert producers[0].weight is not None
                beside = self.surgery.tensor(producers[0].weight)
                self.optimizers.insert(parameter, beside, dict(self._model.named_parameters()))
                self.optimizers.exempt([parameter])  # a slope shall not decay to zero

    def state_dict(self) -> list[dict[str, Any]]:
        """Plain values to go on from: what stood in the place of each swap that may be undone."""
        masks = dict(self._masks)
        for key, module in self._swapped.items():
            swapped = isinstance(module, SwappedActivation)
            masks[key] = module.state_dict()[MASK].cpu() if swapped else None
        return [{"key": key, "mask": mask} for key, mask in masks.items()]

    def load_state_dict(self, state: list[dict[str, Any]]) -> None:
        """Go on from a `state_dict`."""
        self._masks = {tuple(saved["key"]): saved["mask"] for saved in state}

    def _rebuilt(self, now: nn.Module, key: _Key) -> nn.Module:
        """What stood in the place of a swap in the run that a checkpoint is from."""
        assert isinstance(now, SwappedActivation)
        mask = self._masks.pop(key)
        return now.restored() if mask is None else now.masked(mask.to(now.deadwatch_mask.device))

    def _swap_back(self, treatment: Treatment) -> None:
        now = self.surgery.module(treatment.swapped)
        key = treatment.site, treatment.step, int(treatment.units[0])
        before = self._swapped.pop(key, None) or self._rebuilt(now, key)
        kept = {id(parameter) for parameter in before.parameters()}
        self.surgery.replace(treatment.swapped, before)
        for parameter in now.parameters():
            if id(parameter) not in kept:
                self.optimizers.remove(parameter)
