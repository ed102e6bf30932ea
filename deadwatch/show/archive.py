"""Records → bytes that an event file holds, and back to plain dicts and arrays.

Every window leaves, each under a tag of its own:

- ``layout``: the sites, whenever they are others than in the window before;
- ``sites``: what is averaged over the units of each site;
- ``events``: treatments, refusals, notes and outcomes, if there are any, and the findings of advice
  whenever they are others than in the window before;
- ``units/<site>``: the state of each unit, if it is another than in the window before, and its
  share of open gates, as far as the budget for these goes;
- ``figures/<site>``: its pre-activations, as far as the budget for these goes;
- ``counts``: how many units of each site are in which state, and where units were written. It comes
  last: a window that has it is there as a whole, for whoever reads while it is written.

A payload is compressed: one line of JSON, which names the version, the window and the arrays that
follow it, and the arrays. A newer reader finds in an older payload what that has; an older one
leaves out what it does not know. Nothing here imports torch, nor is anything executed to read.
"""

from __future__ import annotations

import json
import math
import re
import uuid
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from deadwatch.errors import DeadwatchError
from deadwatch.records import Floats, SiteReport, State, WindowReport
from deadwatch.show.findings import plain

PLUGIN = "deadwatch"
VERSION = 1
ROOT = "deadwatch/record"
LAYOUT, COUNTS, SITES = f"{ROOT}/layout", f"{ROOT}/counts", f"{ROOT}/sites"
EVENTS, UNITS, FIGURES = f"{ROOT}/events", f"{ROOT}/units", f"{ROOT}/figures"

MEASURES = ("open_fraction", "mean", "std", "sparsity", "dormant", "wasted")
"""The columns of ``sites``."""

PRE_ACTIVATION = ("mean", "std", "min", "max")

DETAILS = ("open_fraction", *PRE_ACTIVATION)
"""What is kept of each unit beside its state."""

DORMANT = 0.025
"""ReDo's threshold on the dormancy score (Sokar et al. 2023)."""

LARGEST = 1 << 26
"""Bytes that a payload may have when it is unpacked: states of 64 million units."""

_DTYPES = ("<i4", "<i8", "<f2", "<f4", "|u1")
_SIZED = re.compile(r"[<>|=][biufcSV](\d{1,4})")  # of which the digits are the bytes of an item

Array = npt.NDArray[Any]


@dataclass(frozen=True, eq=False)
class Payload:
    """What one record holds.

    Attributes:
        head: Its version, window, and what else is no array.
        arrays: Its arrays by name.
    """

    head: Mapping[str, Any]
    arrays: Mapping[str, Array]


def pack(head: Mapping[str, Any], arrays: Mapping[str, Array]) -> bytes:
    """A payload as bytes."""
    shapes = {name: [array.dtype.str, list(array.shape)] for name, array in arrays.items()}
    line = json.dumps({"version": VERSION, **head, "arrays": shapes}, allow_nan=False)
    parts = [line.encode(), b"\n", *(np.ascontiguousarray(a).tobytes() for a in arrays.values())]
    return zlib.compress(b"".join(parts), level=1)


def unpack(data: bytes) -> Payload:
    """Read a payload.

    Arrays of a kind that is not known here are left out: a later version may have written them.

    Raises:
        DeadwatchError: It is none, or damaged.
    """
    try:
        opened = zlib.decompressobj()
        raw = opened.decompress(data, LARGEST)
        if opened.unconsumed_tail or not opened.eof:
            raise ValueError("it does not end where it should")
        line, _, rest = raw.partition(b"\n")
        head = json.loads(line, parse_constant=_refused)
        arrays = dict(_arrays(head.pop("arrays"), rest))
        if type(head["version"]) is not int:
            raise ValueError(f"its version is {head['version']!r}")
        return Payload(head, arrays)
    except _DAMAGE as error:
        raise DeadwatchError(
            f"this is no record of deadwatch's, or a damaged one: {error!r}"
        ) from error


def _refused(constant: str) -> None:
    raise ValueError(f"{constant} is no JSON")


_DAMAGE = (
    *(ValueError, KeyError, TypeError, AttributeError, OverflowError, zlib.error),
    *(RecursionError, MemoryError),  # JSON that is too deep, a shape that is too large
)


def _arrays(shapes: Mapping[str, Any], rest: bytes) -> Iterator[tuple[str, Array]]:
    offset = 0
    for name, (dtype, shape, *_) in shapes.items():
        sized = _SIZED.fullmatch(dtype)
        if sized is None:
            return  # where the arrays behind this one begin cannot be known
        if type(shape) is not list or any(type(n) is not int or n < 0 for n in shape):
            raise ValueError(f"array {name!r} is of shape {shape!r}")
        size = math.prod(shape) * int(sized[1])
        if offset + size > len(rest):
            raise ValueError(f"array {name!r} is cut short")
        if dtype in _DTYPES:
            yield name, np.ndarray(shape, dtype, rest[offset : offset + size] or b"\0" * 8)
        offset += size


class Archivist:
    """Turns reports into records, one after the other.

    States are always kept.

    Args:
        shares: Bytes a window, before compression, for the units' shares of open gates.
        figures: Bytes a window for their pre-activations.
    """

    def __init__(self, shares: int = 1 << 17, figures: int = 1 << 18) -> None:
        self._shares, self._figures = Budget(shares, 3), Budget(figures, 2 * len(PRE_ACTIVATION))
        self._sites: list[dict[str, Any]] = []
        self._states: dict[str, Array] = {}
        self._begin()

    def _begin(self) -> None:
        """Begin a session, which builds on nothing that was written before."""
        self._sites, self._states = [], {}
        self._session, self._last = uuid.uuid4().hex, -1
        self._told: tuple[int, dict[str, list[Any]]] = (-1, {})
        self._findings: list[dict[str, Any]] | None = None

    def _head(self, report: WindowReport) -> dict[str, Any]:
        window = report.window
        steps = [window.first_step, window.last_step]
        return {"session": self._session, "window": window.index, "steps": steps}

    def records(self, report: WindowReport) -> Iterator[tuple[str, bytes]]:
        """Tags and payloads of one window."""
        if report.window.index <= self._last:  # a run that went back to a checkpoint, or a new one
            self._begin()
        self._last = report.window.index
        head, sites = self._head(report), list(report.values())
        described = [describe(site) for site in sites]
        if described != self._sites:
            self._sites = described
            yield LAYOUT, pack({**head, "sites": described}, {})
        changed = [self._changed(site) for site in sites]
        shared = self._shares.chosen(sites, changed)
        kept = [2 * (i in shared) or int(changed[i]) for i in range(len(sites))]
        averages = _single(np.array([_measures(site) for site in sites]))
        arrays = {"measures": averages.reshape(-1, len(MEASURES))}
        yield SITES, pack({**head, "columns": MEASURES}, arrays)
        yield from self.events(report)
        for site, how in zip(sites, kept, strict=True):
            if how != UNCHANGED:
                self._states[site.site.name] = site.state
                yield _of(head, UNITS, site, _units(site, how))
        for i in sorted(self._figures.chosen(sites, changed)):
            figures = {name: _half(getattr(sites[i], name)) for name in PRE_ACTIVATION}
            yield _of(head, FIGURES, sites[i], figures)
        yield COUNTS, pack(head, _counted(sites, kept))

    def events(self, report: WindowReport) -> Iterator[tuple[str, bytes]]:
        """Tag and payload of what was done and told in a window so far, if there is more now."""
        index, before = self._told
        told = events(report)
        found = self._found(report)
        if not any(told.values()) and not found:
            return
        # A reader may keep one record a step: the last one has to hold what came before.
        if index == report.window.index:
            told = {name: _both(before[name], told[name]) for name in told}
            told["outcomes"] = events(report)["outcomes"] or before["outcomes"]
            found = found or {name: before[name] for name in ("findings",) if name in before}
        told |= found
        self._told = report.window.index, told
        yield EVENTS, pack({**self._head(report), **told}, {})

    def _found(self, report: WindowReport) -> dict[str, list[Any]]:
        """The findings that stand now, if they are others than those last written."""
        known = self._findings
        if not report.advised:
            return {}
        self._findings = plain(report.findings)
        return {} if self._findings == known else {"findings": self._findings}

    def _changed(self, site: SiteReport) -> bool:
        before = self._states.get(site.site.name)
        return before is None or not np.array_equal(before, site.state)


def _both(before: list[Any], after: list[Any]) -> list[Any]:
    return [*before, *(item for item in after if item not in before)]


UNCHANGED, STATES, SHARES = range(3)
"""What a window keeps of a site's units: that they are as before, their states, or shares too."""


class Budget:
    """Which sites may write how much in each window.

    Those whose units changed are served first, then those that have waited longest. A site that is
    larger than what a window may write waits as many windows as it takes to save it up.

    Args:
        each: Bytes a window.
        unit: Bytes a unit.
    """

    def __init__(self, each: int, unit: int) -> None:
        self._each, self._unit = each, unit
        self._window = 0
        self._last: dict[str, int] = {}

    def chosen(self, sites: Sequence[SiteReport], changed: Sequence[bool]) -> set[int]:
        """Where in ``sites`` those stand that may write in this window."""
        self._window += 1
        names = [site.site.name for site in sites]
        last = [self._last.get(name, 0) for name in names]
        chosen, left = set[int](), self._each
        for i in sorted(range(len(sites)), key=lambda i: (not changed[i], last[i])):
            size = sites[i].units * self._unit
            saved = size > self._each and (self._window - last[i]) * self._each >= size
            if size and (size <= left or saved):
                chosen.add(i)
                left -= size
                self._last[names[i]] = self._window
        return chosen


def _of(
    head: Mapping[str, Any], kind: str, site: SiteReport, arrays: Mapping[str, Array]
) -> tuple[str, bytes]:
    name = site.site.name  # which two tags may share
    return f"{kind}/{tag(name)}", pack({**head, "site": name}, arrays)


def _units(site: SiteReport, how: int) -> dict[str, Array]:
    arrays: dict[str, Array] = {"state": site.state.astype("|u1")}
    return arrays | ({"open_fraction": _half(site.open_fraction)} if how == SHARES else {})


def _half(values: Floats) -> Array:
    """Three digits are enough to draw; what float16 cannot hold stays float32."""
    fits = not (np.abs(values[np.isfinite(values)]) > 60_000).any()
    return values.astype("<f2") if fits else _single(values)


def _single(values: Array) -> Array:
    """As float32; what that cannot hold, of a run in float64 that blew up, is missing."""
    with np.errstate(over="ignore"):
        single = values.astype("<f4")
    return np.where(np.isinf(single), np.float32(np.nan), single)


def _counted(sites: Sequence[SiteReport], kept: Sequence[int]) -> dict[str, Array]:
    rows = [np.bincount(site.state, minlength=len(State)) for site in sites]
    return {
        "states": np.array(rows, "<i4").reshape(-1, len(State)),
        "samples": np.array([site.samples for site in sites], "<i8"),
        "kept": np.array(kept, "|u1"),
        "harmful": np.array([site.harmful for site in sites], "|u1"),
    }


def _measures(site: SiteReport) -> list[float]:
    dormancy = site.dormancy[np.isfinite(site.dormancy)]
    dormant = float((dormancy <= DORMANT).mean()) if len(dormancy) else math.nan
    means = [average(getattr(site, name)) for name in ("open_fraction", "mean", "std")]
    return [*means, site.sparsity, dormant, site.wasted]


def average(values: Floats) -> float:
    """The mean of what was measured; NaN if nothing was."""
    measured = values[np.isfinite(values)]
    return float(measured.mean()) if len(measured) else math.nan


def describe(report: SiteReport) -> dict[str, Any]:
    """What there is to know of a site beside its figures."""
    site = report.site
    return {
        "name": site.name,
        "tag": tag(site.name),
        "units": report.units,
        "activation": site.activation,
        "producers": [str(wire) for wire in site.producers] or site.producers_note,
        "consumers": [str(wire) for wire in site.consumers] or site.consumers_note,
    }


def events(report: WindowReport) -> dict[str, list[Any]]:
    """What was done in a window and what there is to tell, as plain values."""
    done, refused = ("window", "step", "quiet", "note"), ("window", "reason")
    return {
        "treatments": [_plain(treatment, *done) for treatment in report.treatments],
        "refusals": [_plain(refusal, *refused) for refusal in report.refusals],
        "notes": list(report.notes),
        "outcomes": [{**vars(outcome), "open": outcome.open} for outcome in report.outcomes],
    }


def _plain(record: Any, *names: str) -> dict[str, Any]:
    common = {"remedy": record.remedy, "site": record.site, "units": record.units.tolist()}
    return common | {name: getattr(record, name) for name in names}


def tag(name: str) -> str:
    """A site's name with what TensorBoard does not allow in a tag written as its code point."""
    return re.sub(r"[^-\w.]", lambda match: f"_{ord(match[0]):x}_", name)
