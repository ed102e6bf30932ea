"""Sites × windows as an RGB array, drawn with NumPy alone, for whatever takes pictures.

Rows are sites in the order in which they appeared, columns are windows; dark blue is 0% dead, the
lighter the deader, and light grey is what was not judged. The colours differ in lightness, so that
they can be told apart without seeing hue.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from deadwatch.records import WindowReport

Picture = npt.NDArray[np.uint8]
"""Height × width × RGB."""

COLUMNS, ROWS = 256, 512
"""Columns and rows at most; beyond, several windows or sites share one, which shows the worst."""

EVERY = 64
"""Up to here each window gets a picture; beyond, one comes whenever there is 1/64 more to see."""

UNJUDGED = (214, 214, 214)
_STOPS = np.array([0.0, 1e-9, 0.25, 0.5, 1.0])
_COLOURS = np.array(
    [(23, 37, 84), (40, 70, 125), (120, 90, 140), (221, 120, 92), (255, 226, 128)], np.float64
)
"""A single dead unit is a step away from none."""


def coloured(ratios: npt.NDArray[Any]) -> Picture:
    """Dead ratios of any shape as colours, along a new last axis; NaN is not judged."""
    known = np.nan_to_num(ratios, nan=0.0)
    channels = [np.interp(known, _STOPS, _COLOURS[:, channel]) for channel in range(3)]
    colours = np.stack(channels, -1)
    colours[np.isnan(ratios)] = UNJUDGED
    return colours.round().astype(np.uint8)


def enlarged(picture: Picture, least: int = 192, most: int = 16) -> Picture:
    """A picture with each cell as a block of pixels, so that it can be seen."""
    height, width = (min(most, max(1, -(-least // max(1, n)))) for n in picture.shape[:2])
    return picture.repeat(height, 0).repeat(width, 1)


class History:
    """Dead ratios of sites over the windows so far."""

    def __init__(self) -> None:
        self._rows: dict[str, int] = {}
        self._columns: list[npt.NDArray[np.float32]] = []
        self._each = 1  # windows in a column
        self._windows = 0
        self._drawn = 0

    @property
    def names(self) -> list[str]:
        """Which site each row is, from above."""
        return list(self._rows)

    @property
    def due(self) -> bool:
        """Whether there is enough that no picture has shown."""
        more = self._windows - self._drawn
        return bool(self._rows) and more > 0 and more * EVERY >= self._windows

    def add(self, report: WindowReport) -> None:
        """Take a window in."""
        ratios = {name: site.dead_ratio for name, site in report.items()}
        for name in ratios:
            self._rows.setdefault(name, len(self._rows))
        column = np.full(len(self._rows), np.nan, np.float32)
        column[[self._rows[name] for name in ratios]] = list(ratios.values())
        if self._windows % self._each:
            self._columns[-1] = _worst([self._columns[-1], column])
        else:
            self._columns.append(column)
        self._windows += 1
        if len(self._columns) > COLUMNS:
            pairs = zip(self._columns[::2], [*self._columns[1::2], column], strict=False)
            self._columns = [_worst(pair) for pair in pairs]
            self._each *= 2

    def picture(self) -> Picture:
        """All that was taken in."""
        self._drawn = self._windows
        whole = np.full((len(self._rows), len(self._columns)), np.nan, np.float32)
        for at, column in enumerate(self._columns):
            whole[: len(column), at] = column
        size = max(1, -(-len(whole) // ROWS))
        spans = [whole[start : start + size] for start in range(0, len(whole), size)]
        return enlarged(coloured(np.stack([np.fmax.reduce(span) for span in spans])))


def _worst(columns: Sequence[npt.NDArray[np.float32]]) -> npt.NDArray[np.float32]:
    longest = max(map(len, columns))
    table = np.full((len(columns), longest), np.nan, np.float32)
    for row, column in zip(table, columns, strict=True):
        row[: len(column)] = column
    found: npt.NDArray[np.float32] = np.fmax.reduce(table)
    return found
