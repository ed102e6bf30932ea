"""A remedy that takes time: what goes on in a model after the treatment itself."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

from deadwatch.errors import DeadwatchError
from deadwatch.records import Ints, SiteReport
from deadwatch.treat.surgery import Surgery


class Course(ABC):
    """A scheduled remedy in progress.

    While it lasts its units are not treated again, and being alive is not counted as revived.

    Attributes:
        units: Units that are still in it (K,); may shrink as it goes on.
    """

    units: Ints

    @property
    def told(self) -> str:
        """What the ledger should know once it has ended, or watching has; empty for nothing."""
        return ""

    @abstractmethod
    def step(self, surgery: Surgery) -> bool:
        """Advance one training step, without waiting for the device; True once it has ended."""

    def follow(self, steps: int, surgery: Surgery) -> bool:
        """Advance by steps that other ranks alone have taken; True once it has ended.

        The parameters are those of the ranks that took them, as DDP's ``join`` leaves them; all
        else in the model is this rank's own.
        """
        return any(self.step(surgery) for _ in range(steps))  # one that has ended takes no more

    def review(self, report: SiteReport, surgery: Surgery) -> bool:
        """Follow the verdict of a window, between two steps; True once it has ended."""
        return False

    @property
    def held(self) -> float:
        """What is on loan: how far a parameter is from its own value; 0 if it may stay there."""
        return 0.0

    def state_dict(self) -> dict[str, Any]:
        """What `Remedy.resume` needs to go on with it: numbers, strings, tensors, lists of them.

        Raises:
            DeadwatchError: It does not say how it can be saved.
        """
        raise DeadwatchError(
            f"{type(self).__name__} cannot be saved in a checkpoint; give it a state_dict, and "
            "its remedy a resume(state, surgery)"
        )
