"""The latest treatments, until it is clear that they did no harm."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from deadwatch.errors import warn_failed
from deadwatch.plain import from_plain, to_plain
from deadwatch.records import Treatment
from deadwatch.treat.chart import Chart
from deadwatch.treat.guard import LOOK, LossBand
from deadwatch.treat.ledger import Ledger
from deadwatch.treat.theatre import Theatre

_BROKEN = 2  # more than whether a trial goes on


class Trial:
    """Takes treatments back if the loss leaves its band, and lets their remedies rest.

    Args:
        theatre: Where they are taken back.
        ledger: Where that is noted.
        charts: Each site's history.
        largest: The largest of the numbers that all ranks have; a collective call.
    """

    def __init__(
        self,
        theatre: Theatre,
        ledger: Ledger,
        charts: Mapping[str, Chart],
        largest: Callable[[int], int],
    ) -> None:
        self._theatre = theatre
        self._ledger = ledger
        self._charts = charts
        self._largest = largest
        self._band = LossBand()
        self._treatments: list[Treatment] = []

    def begin(self, treatments: list[Treatment]) -> str:
        """Put treatments on trial; returns why they are not guarded, if that matters."""
        if not self._band.known:
            quiet = all(treatment.quiet for treatment in treatments)
            return "" if quiet else "not guarded: too few losses were given to watch.step(loss)"
        # What is still in progress can still do harm.
        self._treatments = [t for t in self._treatments if self._going(t)] + treatments
        self._band.open(quiet=all(treatment.quiet for treatment in self._treatments))
        return ""

    def step(self, loss: Tensor | float, window: int) -> list[str]:
        """Take in a step's loss; returns what there is to tell."""
        self._band.note(loss)
        if not self._treatments or not self._band.due:
            return []
        reason = self._band.broken()
        going = self._band.since < LOOK or any(map(self._going, self._treatments))
        # All ranks look as long as one has to: a course may have failed on some.
        found = self._largest(_BROKEN if reason else int(going))
        if found == _BROKEN:
            return self._undo(reason or "the loss left its band on another rank", window)
        if not found:
            self._end()
        return []

    def _going(self, treatment: Treatment) -> bool:
        return any(c.belongs_to(treatment) for c in self._charts[treatment.site].courses)

    def _undo(self, reason: str, window: int) -> list[str]:
        loud = [treatment for treatment in self._treatments if not treatment.quiet]
        notes = []
        for treatment in reversed(self._treatments):
            chart = self._charts[treatment.site]
            chart.courses = [c for c in chart.courses if not c.belongs_to(treatment)]
            note = f"{treatment.remedy} on {treatment.site} was undone: {reason}"
            try:
                self._theatre.undo(treatment)
            except Exception as error:  # never break training: say, a layer was replaced since
                what = f"undoing {treatment.remedy} on {treatment.site}"
                notes.append(f"{what}: {warn_failed(what, error)}")
                continue
            self._ledger.undo(treatment)
            if not (loud and treatment.quiet):  # beside a loud one, a quiet one is not to blame
                windows = chart.hold(treatment.remedy, window)
                note += f"; it rests there for {windows} windows"
            notes.append(note)
        self._band.forgive()
        self._end()
        return notes

    def _end(self) -> None:
        self._treatments = []
        self._band.close()
        self._theatre.forget()

    def state_dict(self) -> dict[str, Any]:
        """Plain values to go on from."""
        treatments = [to_plain(treatment) for treatment in self._treatments]
        return {"band": self._band.state_dict(), "treatments": treatments}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a `state_dict`."""
        self._band.load_state_dict(state["band"])
        self._treatments = [from_plain(Treatment, one) for one in state["treatments"]]
