"""What was done, and what came of it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import numpy as np

from deadwatch.records import Bools, State, Treatment, WindowReport


@dataclass(frozen=True, eq=False)
class Entry:
    """One treatment and the later fate of its units.

    Attributes:
        treatment: What was done (without the written values).
        alive: Units alive or rare in the latest window that judged them (K,).
        ever: Units alive or rare in any window since (K,).
        judged: Units that some later window has judged (K,).
    """

    treatment: Treatment
    alive: Bools
    ever: Bools
    judged: Bools

    @property
    def revived(self) -> int:
        """Units that are alive now."""
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

    def record(self, treatments: Iterable[Treatment]) -> None:
        """Open an entry for each treatment."""
        for treatment in treatments:
            blank = np.zeros(len(treatment.units), np.bool_)
            self._entries.append(Entry(replace(treatment, changes=()), blank, blank, blank))

    def follow(self, verdict: WindowReport) -> None:
        """Note what a later window says of the treated units."""
        self._entries = [_followed(entry, verdict) for entry in self._entries]


def _followed(entry: Entry, verdict: WindowReport) -> Entry:
    if entry.treatment.site not in verdict:
        return entry
    state = verdict[entry.treatment.site].state[entry.treatment.units]
    judged = state >= State.DEAD
    alive = np.where(judged, state >= State.RARE, entry.alive)
    return replace(entry, alive=alive, ever=entry.ever | alive, judged=entry.judged | judged)
