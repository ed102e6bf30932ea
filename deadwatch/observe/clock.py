"""Steps, windows, and on which steps moments are taken."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class Clock:
    """Steps and windows.

    Attributes:
        every: Moments are taken on every ``every``-th step of a window, beginning with the first;
            None while that is still to be found out, and then on steps 0, 1, 2, 4, 8 … of it.
        tick: Steps so far; counted frames in a loop that never reports its steps.
        reported: Whether the loop reports its steps.
        window: Index of the window.
        start: Its first step.
        auto: Whether ``every`` is found out.
    """

    every: int | None
    tick: int = 0
    reported: bool = False
    window: int = 0
    start: int = 0
    auto: bool = False

    @property
    def gap(self) -> int:
        """After how many steps a site that gave its moments is asked for them again."""
        return self.every or max(1, (self.tick - self.start + 1) // 2)

    @property
    def last_moments(self) -> int:
        """The last step of this window that was due for moments; -1 if it has none yet."""
        done = self.tick - 1 - self.start
        if done < 0:
            return -1
        if self.every:
            return self.start + done // self.every * self.every
        return self.start + (1 << done.bit_length() >> 1)

    @property
    def takes_moments(self) -> bool:
        """Whether moments are taken on this step."""
        done = self.tick - self.start
        return done % self.every == 0 if self.every else done & (done - 1) == 0
