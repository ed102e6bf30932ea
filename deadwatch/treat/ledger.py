"""What was done, and what came of it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from deadwatch.plain import from_plain, to_plain
from deadwatch.records import Bools, Ints, Outcome, State, Treatment, WindowReport

CONTROL = "no treatment (control)"
"""What the ledger calls the units that a policy leaves untreated for comparison."""


@dataclass(frozen=True, eq=False)
class Entry:
    """One treatment and the later fate of its units.

    A unit is followed until it is treated again, and not while its remedy is still in progress.

    Attributes:
        treatment: What was done (without the written values).
        alive: Units alive or rare in the latest window that judged them (K,).
        ever: Units alive or rare in any window since (K,).
        judged: Units that some later window has judged (K,).
        followed: Units that are still followed (K,).
        written: Elements of parameters that were written.
        undone: Whether the guard took it back.
        told: What the remedy had to tell when it ended.
    """

    treatment: Treatment
    alive: Bools
    ever: Bools
    judged: Bools
    followed: Bools
    written: int = 0
    undone: bool = False
    told: str = ""

    @property
    def revived(self) -> int:
        """Units that are alive now, or were when they were last followed."""
        return int(self.alive.sum())

    @property
    def relapsed(self) -> int:
        """Units that came back and died again."""
        return int((self.ever & ~self.alive).sum())

    @property
    def still_dead(self) -> int:
        """Units that were judged and never came back."""
        return int((self.judged & ~self.ever).sum())


class Ledger:
    """All treatments of a run, followed over the later windows."""

    def __init__(self) -> None:
        self._entries: list[Entry] = []

    def __iter__(self) -> Iterator[Entry]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def outcomes(self) -> tuple[Outcome, ...]:
        """What came of each remedy over the run, in the order of their first use."""
        names = dict.fromkeys(entry.treatment.remedy for entry in self._entries)
        return tuple(_outcome(name, self._entries) for name in names)

    def record(self, treatments: Iterable[Treatment]) -> None:
        """Open an entry for each treatment; earlier ones follow its units no more."""
        for treatment in treatments:
            self._entries = [_superseded(entry, treatment) for entry in self._entries]
            self._entries.append(_opened(treatment))

    def follow(self, verdict: WindowReport, busy: Mapping[str, Bools]) -> None:
        """Note what a later window says of the treated units.

        Args:
            verdict: The window's verdict.
            busy: By site, the units whose remedy is still in progress (C,).
        """
        self._entries = [_followed(entry, verdict, busy) for entry in self._entries]

    def note(self, site: str, units: Ints, told: str) -> None:
        """Add what a remedy tells of units of a site to their latest entry."""
        for index, entry in reversed(list(enumerate(self._entries))):
            treatment = entry.treatment
            if treatment.site == site and np.isin(units, treatment.units).all():
                self._entries[index] = replace(entry, told=told)
                return

    def undo(self, treatment: Treatment) -> None:
        """Mark a treatment as taken back; its units are followed no more."""
        for index, entry in enumerate(self._entries):
            same = entry.treatment.site == treatment.site, entry.treatment.step == treatment.step
            if all(same) and np.array_equal(entry.treatment.units, treatment.units):
                gone = np.zeros_like(entry.followed)
                self._entries[index] = replace(entry, undone=True, followed=gone)

    def state_dict(self) -> list[Any]:
        """Plain values to go on from."""
        return [to_plain(entry) for entry in self._entries]

    def load_state_dict(self, state: list[Any]) -> None:
        """Go on from a `state_dict`."""
        self._entries = [from_plain(Entry, value) for value in state]


def _opened(treatment: Treatment) -> Entry:
    blank = np.zeros(len(treatment.units), np.bool_)
    written = sum(change.after.size for change in treatment.changes if not change.state)
    return Entry(replace(treatment, changes=()), blank, blank, blank, ~blank, written)


def _superseded(entry: Entry, treatment: Treatment) -> Entry:
    if entry.treatment.site != treatment.site:
        return entry
    again = np.isin(entry.treatment.units, treatment.units)
    return replace(entry, followed=entry.followed & ~again)


def _followed(entry: Entry, verdict: WindowReport, busy: Mapping[str, Bools]) -> Entry:
    site, units = entry.treatment.site, entry.treatment.units
    if site not in verdict:
        return entry
    state = verdict[site].state[units]
    judged = entry.followed & (state >= State.DEAD)
    if site in busy:
        judged &= ~busy[site][units]
    alive = np.where(judged, state >= State.RARE, entry.alive)
    return replace(entry, alive=alive, ever=entry.ever | alive, judged=entry.judged | judged)


def _outcome(remedy: str, entries: list[Entry]) -> Outcome:
    own = [entry for entry in entries if entry.treatment.remedy == remedy]
    return Outcome(
        remedy=remedy,
        treatments=len(own),
        units=sum(len(entry.treatment.units) for entry in own),
        revived=sum(entry.revived for entry in own),
        relapsed=sum(entry.relapsed for entry in own),
        still_dead=sum(entry.still_dead for entry in own),
        undone=sum(entry.undone for entry in own),
        written=sum(entry.written for entry in own),
    )
