"""What all remedies share: plan first, then apply.

A remedy's `plan` reads a `Case` and returns a frozen `Plan`, or raises `CannotTreat` with the
reason; only the clinic applies plans. So a refusal changes nothing.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

from torch import nn

from deadwatch.errors import ConfigError, DeadwatchError
from deadwatch.records import Ints
from deadwatch.treat.case import Case
from deadwatch.treat.course import Course
from deadwatch.treat.optim import Restart
from deadwatch.treat.surgery import Edit, Surgery


@dataclass(frozen=True, eq=False)
class Plan:
    """What a remedy would do: everything needed to apply it, and nothing applied yet."""

    remedy: str
    units: Ints
    edits: tuple[Edit, ...] = ()
    restarts: tuple[Restart, ...] = ()
    swap: tuple[str, nn.Module] | None = None
    course: Course | None = None
    quiet: bool = False
    note: str = ""
    left_out: str = ""


class Remedy(ABC):
    """One way to bring dead units back.

    To write your own, derive from it and implement `plan`.
    """

    @property
    def name(self) -> str:
        """What logs and reports call it."""
        return type(self).__name__

    @property
    def parts(self) -> tuple[Remedy, ...]:
        """What it consists of: each is tried on the units that those before left out."""
        return (self,)

    @abstractmethod
    def plan(self, case: Case) -> Plan:
        """Say what would be done to the case.

        Raises:
            CannotTreat: The remedy does not apply.
        """

    def resume(self, state: dict[str, Any], surgery: Surgery) -> Course:
        """Go on with a course of this remedy from its `Course.state_dict`.

        Raises:
            DeadwatchError: The remedy has courses and does not say how they go on.
        """
        raise DeadwatchError(
            f"a checkpoint holds a course of {self.name}, which cannot go on; give {self.name} a "
            "resume(state, surgery)"
        )


def require_number(name: str, value: object, low: float, hint: str, *, whole: bool = False) -> None:
    """Check an argument at construction.

    Raises:
        ConfigError: It is below ``low``, or not a (whole) finite number.
    """
    kind = int if whole else (int, float)
    fits = isinstance(value, kind) and not isinstance(value, bool)
    if not fits or not low <= value < float("inf"):  # type: ignore[operator]
        what = "a whole number" if whole else "a number"
        raise ConfigError(f"{name} is {value!r}; expected {what} of {low} or more ({hint})")


def require_quiet(value: object) -> None:
    """Check the ``quiet`` argument that several remedies share.

    Raises:
        ConfigError: It is not True, False or None.
    """
    if value is not None and not isinstance(value, bool):
        raise ConfigError(
            f"quiet is {value!r}; expected True (insist), False (textbook form) or None (quiet "
            "where all readers are known)"
        )
