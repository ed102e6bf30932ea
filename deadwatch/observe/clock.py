"""Steps, windows, and on which steps moments are taken."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class Clock:
    """Steps and windows.

    Attributes:
        every: Moments are taken on every ``every``-th step of a window, beginning with the first.
        tick: Steps so far; counted frames in a loop that never reports its steps.
        reported: Whether the loop reports its steps.
        window: Index of the window.
        start: Its first step.
    """

    every: int
    tick: int = 0
    reported: bool = False
    window: int = 0
    start: int = 0

    @property
    def takes_moments(self) -> bool:
        """Whether this step is one of every so many."""
        return (self.tick - self.start) % self.every == 0
