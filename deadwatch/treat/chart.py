"""What is remembered of one site while a policy treats it."""

from __future__ import annotations

from collections.abc import Callable
from copy import copy
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from deadwatch.errors import warn_failed
from deadwatch.plain import from_plain, to_plain
from deadwatch.records import Bools, Ints, SiteReport, Treatment
from deadwatch.treat.course import Course
from deadwatch.treat.surgery import Surgery

_HOLD = 4  # windows for which a remedy rests after its first treatment was undone; then 8, 16 …


@dataclass(eq=False)
class InCourse:
    """A course in progress, and where it comes from.

    Attributes:
        course: The course.
        rung: The rung of the policy's ladder.
        part: Which part of the remedy on that rung.
        treated: The units its treatment began with (K,).
        began: The step at which it did.
        failed: Why it was given up; empty if it was not.
    """

    course: Course
    rung: int
    part: int
    treated: Ints
    began: int
    failed: str = ""

    @property
    def told(self) -> str:
        """What the ledger should know once it has ended."""
        return "; ".join(filter(None, (self.course.told, self.failed)))

    def step(self, surgery: Surgery) -> bool:
        """Advance the course one training step; True once it has ended."""
        return self._ended(lambda: self.course.step(surgery))

    def review(self, report: SiteReport, surgery: Surgery) -> bool:
        """Have the course follow a window's verdict; True once it has ended."""
        return self._ended(lambda: self.course.review(report, surgery))

    def _ended(self, advance: Callable[[], bool]) -> bool:
        try:
            return advance()
        except Exception as error:  # never break training: say, a layer was replaced since
            self.failed = warn_failed(f"a {type(self.course).__name__} in progress", error)
            return True

    def belongs_to(self, treatment: Treatment) -> bool:
        """Whether a treatment of the same site began it."""
        return self.began == treatment.step and np.array_equal(self.treated, treatment.units)


_CHANGING = ("rung", "times", "controls", "undone", "hold_until", "courses")


@dataclass(eq=False)
class Chart:
    """One site's history.

    Attributes:
        rung: Where on the ladder each unit stands (C,).
        times: How often each unit was treated (C,).
        controls: Units of the control group that were due before (C,).
        streak: Windows in a row over the threshold.
        rest_until: Window until which the site is left alone.
        undone: How often each remedy's treatment was undone here.
        hold_until: Window until which each remedy rests here.
        courses: What is in progress.
    """

    rung: Ints
    times: Ints
    controls: Bools
    streak: int = 0
    rest_until: int = 0
    undone: dict[str, int] = field(default_factory=dict)
    hold_until: dict[str, int] = field(default_factory=dict)
    courses: list[InCourse] = field(default_factory=list)

    @classmethod
    def of(cls, units: int) -> Chart:
        """A blank chart for a site with so many units."""
        return cls(np.zeros(units, np.int64), np.zeros(units, np.int64), np.zeros(units, np.bool_))

    def copy(self) -> Chart:
        """The chart as it is now; the courses in progress are the same."""
        held = {name: copy(getattr(self, name)) for name in _CHANGING}
        return replace(self, **held)

    def in_course(self) -> Bools:
        """Units whose remedy is still in progress (C,)."""
        busy = np.zeros(len(self.rung), np.bool_)
        for going in self.courses:
            busy[going.course.units] = True
        return busy

    def treated(self, units: Ints, rung: int) -> None:
        """Note that units were treated from a rung."""
        self.rung[units] = rung + 1
        self.times[units] += 1

    def hold(self, remedy: str, window: int) -> int:
        """Put a remedy on hold, each time for twice as long; returns for how many windows."""
        times = self.undone[remedy] = self.undone.get(remedy, 0) + 1
        windows = _HOLD << times - 1
        self.hold_until[remedy] = window + 1 + windows
        return windows

    def state_dict(self) -> dict[str, Any]:
        """Plain values to go on from; the courses' own state is among them."""
        courses = [
            {
                "rung": going.rung,
                "part": going.part,
                "treated": to_plain(going.treated),
                "step": going.began,
                "course": going.course.state_dict(),
            }
            for going in self.courses
        ]
        units = {name: to_plain(getattr(self, name)) for name in ("rung", "times", "controls")}
        numbers = {name: getattr(self, name) for name in ("streak", "rest_until")}
        holds = {name: dict(getattr(self, name)) for name in ("undone", "hold_until")}
        return {**units, **numbers, **holds, "courses": courses}

    @classmethod
    def resume(cls, state: dict[str, Any]) -> Chart:
        """Go on from a `state_dict`, without the courses."""
        return cls(
            from_plain(Ints, state["rung"]),
            from_plain(Ints, state["times"]),
            from_plain(Bools, state["controls"]),
            state["streak"],
            state["rest_until"],
            dict(state["undone"]),
            dict(state["hold_until"]),
        )
