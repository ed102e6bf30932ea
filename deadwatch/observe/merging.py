"""What ranks tell each other of their gauges, as arrays that merge by sums and maxima.

They travel in the buffers of the sites' statistics, so that gauges take no collective of their own.
Where two numbers belong together, such as a peak and its step, they are packed into the 53 exact
bits of a float64, the one that decides first.

Legend: W weights that are updated; L layers that are given something; C units of a site.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from deadwatch.observe.gradients import Squares
from deadwatch.observe.readings import Readings
from deadwatch.observe.updates import Moved
from deadwatch.records import Floats, Gauges, Ints, LayerInput, SiteSnapshot

Key = tuple[str, str]
"""What is told: a kind, and the name of a weight where it is told of that."""

UPDATE, INPUT = "update", "input"
GRADIENTS, OPENINGS = ("gradients", ""), ("openings", "")

SUMS = ("gradient", "moved")
MAXIMA = ("last_open", "peaks", "given")

_STEPS = 1 << 21
"""More steps than a window has; later ones count as the last of these."""

_BITS = 31
_PLACE = 1 << _BITS
"""Values below it are packed behind a rank, of which there are fewer than 2¹⁷."""

_RANKS = 1 << 17

Row = dict[str, Any]


def keys_of(gauges: Gauges | None) -> set[Key]:
    """What a rank has to tell."""
    if not isinstance(gauges, Readings):
        return set()
    found = {(UPDATE, name) for name in gauges.moved} | {(INPUT, name) for name in gauges.inputs}
    found |= {GRADIENTS} if gauges.squares else set()
    return found | ({OPENINGS} if gauges.last_open else set())


def _names(kind: str, keys: Collection[Key]) -> list[str]:
    return sorted(name for one, name in keys if one == kind)


# ── by weight ───────────────────────────────────────────────────────────────────────────────


def offered(gauges: Gauges | None, keys: Collection[Key], first_step: int, rank: int) -> Row:
    """What a rank tells of weights; the same keys on all ranks give the same shapes."""
    own = gauges if isinstance(gauges, Readings) else Readings()
    moved = [own.moved.get(name, Moved()) for name in _names(UPDATE, keys)]
    given = [own.inputs.get(name) for name in _names(INPUT, keys)]
    if not (moved or given):
        return {}
    sums = np.array([(one.total, one.steps) for one in moved], np.float64).reshape(-1)
    peaks = np.array([(_peak(one, first_step), one.steps) for one in moved], np.float64).reshape(-1)
    inputs = np.array([_input(one, rank) for one in given], np.float64).reshape(-1)
    return {"moved": sums, "peaks": peaks, "given": inputs}


def _peak(one: Moved, first_step: int) -> float:
    """The peak, and of equal ones the first step."""
    if not one.steps:
        return -1.0
    late = min(max(one.peak_step - first_step, 0), _STEPS - 1)
    return float(_bits(one.peak) * _STEPS + _STEPS - 1 - late)


def _input(one: LayerInput | None, rank: int) -> list[float]:
    """What one layer is given, behind a number that is the larger the earlier the rank."""
    if one is None:
        return [0.0] * 4
    values = (_bits(one.centre), min(one.features, _PLACE - 1), min(one.samples, _PLACE - 1))
    return [float((_RANKS - rank) * _PLACE + value) for value in (*values, int(one.raw))]


def _bits(value: float) -> int:
    """A non-negative float32 as a whole number below 2³¹, in the same order."""
    return int(np.float32(value).view(np.uint32))


def _float(bits: int) -> float:
    return float(np.uint32(bits).view(np.float32))


def taken(row: Mapping[str, Floats], keys: Collection[Key], first_step: int) -> dict[str, Any]:
    """What all ranks told of weights, as fields of `Readings`."""
    if not row:
        return {}
    moved, inputs = {}, {}
    table = np.hstack([row["moved"].reshape(-1, 2), row["peaks"].reshape(-1, 2)])
    for name, line in zip(_names(UPDATE, keys), table, strict=True):
        total, told, packed, steps = map(float, line)
        if steps:
            bits, rest = divmod(int(packed), _STEPS)
            peak_step = first_step + _STEPS - 1 - rest
            # The ranks' mean, weighted by steps; to the bit where all have the same.
            moved[name] = Moved(total / (told / steps), int(steps), _float(bits), peak_step)
    for name, values in zip(_names(INPUT, keys), row["given"].reshape(-1, 4), strict=True):
        if values[0]:
            bits, features, samples, raw = (int(value) % _PLACE for value in values)
            inputs[name] = LayerInput(_float(bits), features, samples, bool(raw))
    return {"moved": moved, "inputs": inputs}


# ── by site ─────────────────────────────────────────────────────────────────────────────────


def offered_of(site: SiteSnapshot, gauges: Gauges | None, keys: Collection[Key]) -> Row:
    """What a rank tells of a site, which may have a part of its units."""
    own = gauges if isinstance(gauges, Readings) else Readings()
    name, row = site.site.name, Row()
    if GRADIENTS in keys:
        counts = site.share.counts and name in own.squares
        row["gradient"] = np.array(own.squares[name] if counts else (0.0, 0.0))
    if OPENINGS in keys:
        last = np.full(site.share.total or site.units, -1, np.int64)
        known = own.last_open.get(name, last[:0])
        if len(known) == site.units:
            last[site.share.first : site.share.first + site.units] = known
        row["last_open"] = last
    return row


def taken_of(rows: Mapping[str, Row]) -> dict[str, Any]:
    """What all ranks told of their sites, as fields of `Readings`."""
    squares: dict[str, Squares] = {}
    openings: dict[str, Ints] = {}
    for name, row in rows.items():
        if "gradient" in row and row["gradient"][1]:
            squares[name] = float(row["gradient"][0]), float(row["gradient"][1])
        if "last_open" in row:
            openings[name] = row["last_open"].astype(np.int64)
    return {"squares": squares, "last_open": openings}


def merged(
    gauges: Gauges | None,
    keys: Collection[Key],
    weights: Mapping[str, Floats],
    sites: Mapping[str, Row],
    first_step: int,
) -> Gauges | None:
    """The gauges of all ranks; rates are this rank's."""
    if not keys and gauges is None:
        return None
    own = gauges if isinstance(gauges, Readings) else Readings()
    return replace(own, **taken_of(sites), **taken(weights, keys, first_step))
