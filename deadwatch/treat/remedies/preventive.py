"""Preventives: what keeps units from dying, applied once before there is anything to treat."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

from torch import nn

if TYPE_CHECKING:
    from deadwatch.treat.optim import OptimizerState


class Preventive(ABC):
    """Something to do to a model or its optimizers at the start of training."""

    @property
    def name(self) -> str:
        """What logs and reports call it."""
        return type(self).__name__

    @abstractmethod
    def apply(self, model: nn.Module, optimizers: OptimizerState) -> str:
        """Apply it; returns a note of what was done."""
