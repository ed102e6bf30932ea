"""What was done to units, what could not be, and what came of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy.typing as npt

from deadwatch.records.arrays import Ints


@dataclass(frozen=True, eq=False)
class Change:
    """What a treatment wrote into one tensor: slices ``index`` along ``axis``.

    Attributes:
        tensor: Name of the parameter or buffer.
        axis: Axis along which the slices lie.
        index: The slices.
        before: Their values before.
        after: Their values after.
        rows: Only within these indices of axis 0; None for all of them.
        state: What the optimizer keeps for the parameter, such as ``"exp_avg"``, if it was that
            which was written; empty for the tensor itself.
        shared: Whether live units use the slices as well: taking the change back takes out what
            it added, and leaves what was learned since.
    """

    tensor: str
    axis: int
    index: Ints
    before: npt.NDArray[Any]
    after: npt.NDArray[Any]
    rows: range | None = None
    state: str = ""
    shared: bool = False


@dataclass(frozen=True, eq=False)
class Treatment:
    """What one remedy did to one site.

    Attributes:
        remedy: The remedy's name.
        site: The site's name.
        units: Treated units.
        window: Index of the window whose verdict led to it.
        step: Step count of the watch when it was applied.
        quiet: True if the outgoing columns were zeroed, so that the function did not change.
        changes: Every tensor slice that was written, with values before and after.
        note: Anything worth telling, such as the bias that was added or a module replaced.
        swapped: Path of the module that was replaced; empty for none.
    """

    remedy: str
    site: str
    units: Ints
    window: int
    step: int
    quiet: bool
    changes: tuple[Change, ...] = field(repr=False, default=())
    note: str = ""
    swapped: str = ""


@dataclass(frozen=True, eq=False)
class Refusal:
    """A remedy that could not be applied, and why."""

    remedy: str
    site: str
    units: Ints
    window: int
    reason: str


@dataclass(frozen=True)
class Outcome:
    """What came of one remedy over a run so far.

    A unit that was treated several times counts each time. `revived`, `relapsed` and
    `still_dead` leave out units that no later window has judged yet.

    Attributes:
        remedy: The remedy's name; that of the control group for units left untreated.
        treatments: How often it was applied.
        units: Units treated.
        revived: Units alive when last judged, before any later treatment.
        relapsed: Units that came back and died again.
        still_dead: Units that never came back.
        undone: Treatments that the guard took back.
        written: Elements of parameters that were written: what it cost the network.
    """

    remedy: str
    treatments: int
    units: int
    revived: int
    relapsed: int
    still_dead: int
    undone: int
    written: int

    @property
    def open(self) -> int:
        """Units of which nothing is known yet, or will be: their treatment was undone."""
        return self.units - self.revived - self.relapsed - self.still_dead
