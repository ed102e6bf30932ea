"""How units came to be dead: followed from window to window, and told with what is known of it.

A unit that is dead in a window was never open in it; when it was open in the window before, it fell
silent in that one. What it was like *as usual* is taken from the latest window in which it was open
on a share of the data that is no exception. See `deadwatch.records.Death` for the causes.

Not claimed: that a cause is proven. It is what the evidence speaks for, which is told beside it; a
unit of which too little was measured has no cause.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from deadwatch.judge.causes import CAUSES, Fall, Moved, causes_of, culprit
from deadwatch.plain import from_plain, to_plain
from deadwatch.records import (
    Bools,
    Death,
    Floats,
    Gauges,
    Ints,
    Rows,
    SiteReport,
    State,
    Update,
    WindowReport,
)

_USUAL = 0.05
"""Share of the data on which a unit is open as usual; below it, it may be on its way down."""

_FIGURES = ("mean", "std", "open_fraction", "bias")


@dataclass
class Units:
    """What is kept of the units of one site, each (C,) or (C, figures).

    Attributes:
        opened: The last window in which each was open, -1 for none.
        usual: Its figures when it was open as usual.
        cause: Why it is dead, as the number of a cause; -1 while it is not.
        fell: The last window in which it was open, when it died.
        first: The last step in which it was seen open; the window's first if that is not known.
        last: The first step of the window in which it was silent.
        before: `usual` when it died.
        after: Its figures in the first window in which it was dead.
        moved: By how much its row had moved in the window in which it fell silent, relative to it.
        rate: The largest learning rate in that window.
        culprits: The weights whose updates stood out when units fell silent, by `fell`.
    """

    opened: Ints
    usual: Floats
    cause: Ints
    fell: Ints
    first: Ints
    last: Ints
    before: Floats
    after: Floats
    moved: Floats
    rate: Floats
    culprits: dict[int, tuple[str, Update]]

    @classmethod
    def new(cls, units: int) -> Units:
        """Nothing known of some units yet."""
        whole: dict[str, Any] = {name: np.full(units, -1, np.int64) for name in _WHOLE}
        real: dict[str, Any] = {name: np.full((units, len(_FIGURES)), np.nan) for name in _REAL}
        nan = np.full(units, np.nan)
        return cls(**whole, **real, moved=nan, rate=nan.copy(), culprits={})


_WHOLE = ("opened", "cause", "fell", "first", "last")
_REAL = ("usual", "before", "after")


class History:
    """Follows the units of all sites through the windows of a run."""

    def __init__(self) -> None:
        self._units: dict[str, Units] = {}
        self._rows: list[Mapping[str, Rows]] = []  # at the ends of the last two windows
        self._window = (-1, -1)
        self._gauges = Gauges()
        self._whole = True  # whether the run has been followed from its first window on

    def begin(self, rows: Mapping[str, Rows]) -> None:
        """Take in what makes the units before the first window, if that is known."""
        self._rows = [rows]

    def interrupt(self) -> None:
        """Treatments have changed rows: how far these move from here on says nothing of training.

        What dies of it in the windows after has no cause that could be told.
        """
        self._rows = []

    def follow(self, report: WindowReport) -> tuple[Death, ...]:
        """Take in a window; returns how the units that are dead in it have died."""
        if self._window[0] < 0:  # nothing was followed before
            self._whole = report.window.index == 0
        gauges = report.gauges or Gauges()
        moved = Moved([*self._rows, gauges.rows])
        deaths: list[Death] = []
        for site in report.values():
            if site.samples:
                deaths += self._site(site, report, moved)
        self._rows = [*self._rows[-1:], gauges.rows]
        self._window = report.window.first_step, report.window.last_step
        self._gauges = replace(gauges, rows={}, inputs={}, gradients={})
        return tuple(deaths)

    def _site(self, site: SiteReport, report: WindowReport, moved: Moved) -> Iterator[Death]:
        name = site.site.name
        units = self._units.get(name)
        if units is None or len(units.opened) != site.units:
            units = self._units[name] = Units.new(site.units)
        start = self._rows[-1] if self._rows else {}
        figures = _figures(site, start.get(name))
        silent = np.isin(site.state, (State.UNCERTAIN, State.DEAD)) & (units.cause < 0)
        if silent.any():
            self._note(units, silent, site, report, figures, moved)
        alive = site.state >= State.RARE
        units.cause[alive] = -1
        units.opened[alive] = report.window.index
        usual = alive & ~(site.open_fraction < _USUAL)  # also where it was not sampled
        usual |= alive & np.isnan(units.usual[:, 0])
        units.usual[usual] = figures[usual]
        yield from _told(site, units)

    def _note(
        self,
        units: Units,
        silent: Bools,
        site: SiteReport,
        report: WindowReport,
        figures: Floats,
        moved: Moved,
    ) -> None:
        """Note how some units fell silent that were open in the window before, or never."""
        name = site.site.name
        units.fell[silent], units.before[silent] = units.opened[silent], units.usual[silent]
        units.after[silent] = figures[silent]
        units.rate[silent] = max((max(pair) for pair in self._gauges.rates), default=np.nan)
        units.moved[silent] = moved.of(name, site.units)[silent]
        units.first[silent], units.last[silent] = self._window[0], report.window.first_step
        seen = self._gauges.last_open.get(name)
        if seen is not None and len(seen) == site.units:
            known = silent & (seen >= units.first)
            units.first[known] = seen[known]
        fall = Fall(
            born=(units.opened[silent] < 0) & self._whole,
            first=units.first[silent],
            last=units.last[silent],
            before=units.before[silent],
            after=units.after[silent],
            moved=units.moved[silent],
            upstream=moved.upstream(name, list(report)),
        )
        layers = tuple(one.site for one in report.values())
        found = culprit(site.site, layers, self._gauges)
        if found is not None:  # a site may have been unseen for some windows
            units.culprits |= dict.fromkeys(units.fell[silent].tolist(), found)
        units.cause[silent] = causes_of(fall, None if found is None else found[1])

    def state_dict(self) -> dict[str, Any]:
        """Plain values to go on from."""
        own = {"units": self._units, "rows": self._rows, "gauges": self._gauges}
        return to_plain({**own, "window": self._window, "whole": self._whole})  # type: ignore[no-any-return]

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a `state_dict`."""
        self._units = from_plain(dict[str, Units], state["units"])
        self._rows = from_plain(list[Mapping[str, Rows]], state["rows"])
        self._gauges = from_plain(Gauges, state["gauges"])
        self._window = from_plain(tuple[int, int], state["window"])
        self._whole = from_plain(bool, state["whole"])


def _figures(site: SiteReport, rows: Rows | None) -> Floats:
    bias = np.full(site.units, np.nan)
    if rows is not None and len(rows.bias) == site.units:
        bias = rows.bias
    found: Floats = np.stack([site.mean, site.std, site.open_fraction, bias], 1)
    return found


def _told(site: SiteReport, units: Units) -> Iterator[Death]:
    """The units of a site that are dead now, by cause and window."""
    dead = np.flatnonzero(site.dead)
    keys = np.stack([units.cause[dead], units.fell[dead]], 1)
    for cause, window in np.unique(keys, axis=0).tolist():
        own = dead[(keys == (cause, window)).all(1)]
        before, after = _means(units.before[own]), _means(units.after[own])
        steps = int(units.first[own].min()), int(units.last[own].max())
        moved = units.moved[own]
        if np.isfinite(moved).any():
            after["moved"] = float(np.nanmean(moved))
        weight, update = "", None
        if CAUSES[cause] == "update":
            weight, update = units.culprits[window]
        rate = float(units.rate[own].max())
        told = before, after, rate, weight, update
        yield Death(site.site.name, own, CAUSES[cause], window, steps, *told)


def _means(figures: Floats) -> dict[str, float]:
    columns = dict(zip(_FIGURES, figures.T, strict=True))
    known = {name: column[np.isfinite(column)] for name, column in columns.items()}
    return {name: float(column.mean()) for name, column in known.items() if len(column)}
