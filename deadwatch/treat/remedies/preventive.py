"""What is done once, before any unit is dead, so that fewer will die."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import nn

from deadwatch.treat.optim import OptimizerState


class Preventive(ABC):
    """Something to do once to a model or its optimizers, after the first training step."""

    @property
    def name(self) -> str:
        """What logs and reports call it."""
        return type(self).__name__

    @abstractmethod
    def apply(self, model: nn.Module, optimizers: OptimizerState) -> str:
        """Do it, and say in a few words what was done.

        Raises:
            CannotTreat: It does not apply.
        """

    def resume(  # noqa: B027 - to override where there is something to do
        self, model: nn.Module, optimizers: OptimizerState
    ) -> None:
        """Put back what lasts only as long as deadwatch is attached; by default nothing does."""
