"""Whether a payload holds what is read of it: event files come from anywhere.

What is there beyond that is left alone, since a later version may have more.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from deadwatch.errors import DeadwatchError
from deadwatch.records import SEVERITIES, State
from deadwatch.show.archive import COUNTS, EVENTS, FIGURES, LAYOUT, SITES, Array, Payload

MOST = 1 << 26
"""Units that a site may claim to have."""

_WHOLE = 1 << 53  # beyond it the front end could not tell numbers apart

_TREATMENT = {"remedy": str, "site": str, "units": list, "window": int, "step": int, "note": str}
_REFUSAL = {"remedy": str, "site": str, "units": list, "reason": str}
_COUNTED = ("treatments", "units", "revived", "relapsed", "still_dead", "undone", "written", "open")
_OUTCOME = {"remedy": str, **dict.fromkeys(_COUNTED, int)}
_SITE = {"name": str, "units": int}
_TEXTS = ("id", "severity", "title", "message", "reason", "source", "code")
_FINDING = {**dict.fromkeys(_TEXTS, str), "where": list, "numbers": dict}


def intact(name: str, payload: Payload) -> Payload:
    """A payload of the tag ``name``, in which units are only of states that are known.

    Raises:
        DeadwatchError: It lacks something, or something is of another kind than expected.
    """
    head = payload.head
    _fields(head, {"session": str, "window": int, "steps": list})
    _expect(len(head["steps"]) == 2 and all(map(_whole, head["steps"])), "steps are no two numbers")
    if name.startswith(FIGURES):
        return payload  # whatever fits the units is taken
    return _CHECKS.get(name, _units)(payload)


def _layout(payload: Payload) -> Payload:
    _records(payload.head, "sites", _SITE, required=True)
    for site in payload.head["sites"]:
        _expect(0 <= site["units"] <= MOST, f"a site has {site['units']} units")
        for wires in (site.get("producers", ""), site.get("consumers", "")):
            known = isinstance(wires, list) and all(isinstance(wire, str) for wire in wires)
            _expect(known or isinstance(wires, str), "wires are no texts")
    return payload


def _counts(payload: Payload) -> Payload:
    states, kept = (_array(payload, name, d) for name, d in (("states", 2), ("kept", 1)))
    _expect(len(states) == len(kept), "its arrays are of different lengths")
    whole = states.dtype.kind == "i" and states.min(initial=0) >= 0
    whole = whole and bool(states.max(initial=0) <= MOST)
    _expect(whole and kept.dtype.kind == "u", "counts are no whole numbers")
    harmful = payload.arrays.get("harmful")
    arrays = dict(payload.arrays)
    if harmful is not None and (harmful.shape != kept.shape or harmful.dtype.kind != "u"):
        del arrays["harmful"]
    if states.shape[1] == len(State):  # as a rule, and there are thousands
        return Payload(payload.head, {**arrays, "states": states})
    known = states[:, : len(State)].astype(np.int64)
    known = np.pad(known, ((0, 0), (0, len(State) - known.shape[1])))
    known[:, State.UNCERTAIN] += states[:, len(State) :].sum(1, dtype=np.int64)
    return Payload(payload.head, {**arrays, "states": known})


def _sites(payload: Payload) -> Payload:
    columns, values = payload.head.get("columns"), _array(payload, "measures", 2)
    named = isinstance(columns, list) and all(isinstance(name, str) for name in columns)
    _expect(named and len(columns or ()) == values.shape[1], "its columns do not fit its values")
    return payload


def _events(payload: Payload) -> Payload:
    head = payload.head
    treated = [*_records(head, "treatments", _TREATMENT), *_records(head, "refusals", _REFUSAL)]
    for record in treated:
        units = record["units"]
        _expect(all(_whole(unit) and unit >= 0 for unit in units), "units are no numbers")
    _records(head, "outcomes", _OUTCOME)
    notes = head.get("notes", [])
    listed = isinstance(notes, list) and all(isinstance(note, str) for note in notes)
    _expect(listed, "notes are no texts")
    if "findings" not in head:
        return payload
    return Payload({**head, "findings": _findings(head)}, payload.arrays)


def _findings(head: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The findings, without those of a severity that only a later version knows."""
    found = _records(head, "findings", _FINDING)
    for finding in found:
        listed = all(isinstance(name, str) for name in finding["where"])
        _expect(listed, "a finding is nowhere that has a name")
        _expect(all(map(_finite, finding["numbers"].values())), "a number of a finding is none")
    return [finding for finding in found if finding["severity"] in SEVERITIES]


def _units(payload: Payload) -> Payload:
    state = _array(payload, "state", 1)
    _expect(state.dtype.kind == "u", "states are no small numbers")
    known = np.where(state < len(State), state, State.UNCERTAIN).astype(np.uint8)
    rest = {n: array for n, array in payload.arrays.items() if array.shape == state.shape}
    return Payload(payload.head, {**rest, "state": known})


_CHECKS: dict[str, Callable[[Payload], Payload]] = {
    LAYOUT: _layout,
    COUNTS: _counts,
    SITES: _sites,
    EVENTS: _events,
}


def _records(
    head: Mapping[str, Any], name: str, kinds: Mapping[str, type], *, required: bool = False
) -> list[Mapping[str, Any]]:
    found = head.get(name, None if required else [])
    _expect(isinstance(found, list), f"{name} is no list")
    for record in found:
        _fields(record, kinds)
    return list(found)


def _fields(record: Any, kinds: Mapping[str, type]) -> None:
    _expect(isinstance(record, Mapping), "an entry is no mapping")
    for name, kind in kinds.items():
        value = record.get(name)
        _expect(_whole(value) if kind is int else type(value) is kind, f"{name} is {value!r:.99}")


def _finite(value: object) -> bool:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return value is None or (number and abs(value) <= sys.float_info.max)  # type: ignore[arg-type]


def _whole(value: object) -> bool:
    return type(value) is int and abs(value) < _WHOLE


def _array(payload: Payload, name: str, axes: int) -> Array:
    array = payload.arrays.get(name)
    if array is None or array.ndim != axes:
        raise DeadwatchError(f"a record of deadwatch's is damaged: it has no {name} as expected")
    return array


def _expect(fits: bool, otherwise: str) -> None:
    if not fits:
        raise DeadwatchError(f"a record of deadwatch's is damaged: {otherwise}")
