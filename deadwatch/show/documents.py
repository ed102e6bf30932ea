"""What the pictures are drawn from: plain documents, made of a run, that JSON can hold.

They are the same for the TensorBoard tab, which asks for them one by one, and for the report, which
carries them along. Arrays travel as base64 of little-endian bytes. What does not fit is made
smaller here, and the document says so: several windows become one column, several units one row,
of which each cell shows the worst, so that nothing dead is ever lost between the pixels.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from deadwatch.records import SEVERITIES, State
from deadwatch.show.archive import DETAILS, MEASURES
from deadwatch.show.run import Run

Document = dict[str, Any]
Array = npt.NDArray[Any]

CELLS = 300_000
"""Cells that a picture of all sites has at most."""

COLUMNS = 1_000
ROWS = 1_024
"""Columns and rows of a picture of one site's units."""

RESULTS = 20_000
"""Windows of sites that are read at most to tell what came of treatments: a second or two."""

_WORST_FIRST = tuple(reversed(SEVERITIES))

SEVERITY = (State.ALIVE, State.RARE, State.UNCERTAIN, State.SATURATED, State.DEAD)
"""From what may be hidden behind others in one cell to what never is; unseen shows where all is."""


def overview(run: Run, cells: int = CELLS) -> Document:
    """All sites over all windows: dead and judged units of each cell."""
    most = max(1, cells // max(1, len(run.sites)))
    spans = split(len(run.windows), most)
    worst = [_worst(run.dead[:, a:b], run.judged[:, a:b]) for a, b in spans]
    at = np.stack([a + w for (a, _), w in zip(spans, worst, strict=True)], 1) if spans else None
    dead, judged = (_taken(table, at) for table in (run.dead, run.judged))
    seen = _taken(run.counts.sum(-1) - run.counts[..., State.UNSEEN], at)
    return {
        "sites": run.sites,
        "columns": _columns(run, spans),
        "windows": len(run.windows),
        "dead": encoded(dead, "<i4"),
        "judged": encoded(judged, "<i4"),
        "seen": encoded(seen > 0, "|u1"),
        "at": encoded(at if at is not None else dead, "<i4"),
        "treatments": [_mark(run, treatment) for treatment in run.treatments],
        "notes": run.notes,
        "outcomes": run.outcomes,
        "damaged": run.damaged,
    }


def table(run: Run, results: int = RESULTS) -> Document:
    """One row for each site: how it is now, how it was at its worst, what was done last.

    ``advice`` says what to do about its dead units, if there are any and their harm was judged;
    ``wasted`` are the elements of parameters that make them or read them; ``findings`` the ids of
    what advice there is on the site.

    What came of the last treatment needs the units of a site, which take time to read: it is worked
    out for the sites treated last, within ``results`` windows in all, and missing for the others.
    ``results`` of the document tells how many of how many treated sites have it.
    """
    done: dict[str, list[Document]] = {site["name"]: [] for site in run.sites}
    for treatment in run.treatments:
        done.setdefault(treatment["site"], []).append(treatment)
    treated = [site["name"] for site in run.sites if done[site["name"]]]
    latest = sorted(treated, key=lambda site: -int(done[site][-1]["window"]))
    known = latest[: results // max(1, len(run.windows))]
    found = {site: _result(run, site, done[site][-1]) for site in known}
    ids: dict[str, list[str]] = {site["name"]: [] for site in run.sites}
    for finding in run.findings or ():
        for place in set(finding["where"]) & ids.keys():
            ids[place].append(finding["id"])
    rows = [_row(run, at, done[site["name"]]) for at, site in enumerate(run.sites)]
    return {
        "rows": [
            row | {"result": found.get(row["site"]), "findings": ids[row["site"]]} for row in rows
        ],
        "windows": len(run.windows),
        "results": [len(known), len(treated)],
    }


def findings(run: Run) -> Document:
    """All advice that stands, the most severe first, and what was looked at to find it.

    ``asked`` says whether advice was asked for: without, nothing found means nothing.
    """
    found = sorted(run.findings or [], key=lambda f: (_WORST_FIRST.index(f["severity"]), f["id"]))
    return {
        "asked": run.findings is not None,
        "findings": found,
        "sites": len(run.sites),
        "judged": int(run.judged[:, -1:].sum()),
        "windows": len(run.windows),
    }


def _row(run: Run, at: int, done: list[Document]) -> Document:
    site, counts = run.sites[at], run.counts[at]
    judged = np.flatnonzero(run.judged[at])
    row: Document = {"site": site["name"], "units": site["units"], "now": None, "worst": None}
    ratios = run.dead[at, judged] / run.judged[at, judged]
    if len(judged):
        row["now"] = _cell(run, at, int(judged[-1]))
        row["worst"] = _cell(run, at, int(judged[np.argmax(ratios)]))
        row["states"] = counts[judged[-1]].tolist()
        row["advice"] = _advice(run, at, int(judged[-1]))
    for name in MEASURES:
        values = run.measures[name][at]
        measured = values[np.isfinite(values)]
        row[name] = float(measured[-1]) if len(measured) else None
    row["treated"] = sum(len(t["units"]) for t in done)
    row["last"] = {**done[-1], "units": len(done[-1]["units"])} if done else None
    return row


def _result(run: Run, site: str, treatment: Document) -> dict[str, int]:
    """What became of the units of a treatment, as far as later windows have judged them."""
    state = run.units(site, ()).state
    state = state[_units_of(treatment, len(state))]
    fate = fates(run, state, [treatment | {"units": range(len(state))}])
    found = [row[row > 0][-1] if row.any() else 0 for row in fate]
    numbers = np.bincount(np.array(found, np.int64), minlength=4).tolist()
    return dict(zip(("open", "revived", "still_dead", "relapsed"), numbers, strict=True))


def _advice(run: Run, at: int, column: int) -> str | None:
    """What to do about the dead units of a site, as `deadwatch.Rules` has found it out."""
    if not run.dead[at, column] or run.harmful[at, column] < 0:
        return None
    if run.harmful[at, column]:
        return "Treat them: so many dead units do harm in a layer of this width."
    return "Leave them: so few dead units were harmless where it was measured."


def _cell(run: Run, at: int, column: int) -> Document:
    dead, judged = int(run.dead[at, column]), int(run.judged[at, column])
    return {"dead": dead, "judged": judged, "window": run.windows[column].index}


def units(
    run: Run,
    site: str,
    first: int = 0,
    last: int | None = None,
    rows: int = ROWS,
    columns: int = COLUMNS,
) -> Document:
    """The units of one site over all windows.

    Args:
        run: The run.
        site: The site's name.
        first: The first unit.
        last: The unit behind the last one; all of them for None.
        rows: Rows of the picture at most.
        columns: Columns of the picture at most.
    """
    count = run.sites[run.row[site]]["units"]
    last = count if last is None else min(last, count)
    found = run.units(site, ("open_fraction",), slice(first, last))
    done = [t for t in run.treatments if t["site"] == site]
    fate = fates(run, found.state, [_within(t, first, last) for t in done])
    across, down = split(len(run.windows), columns), split(last - first, rows)
    state = _worst_state(_worst_state(found.state, down, 0), across, 1)
    share = np.full((len(down), len(run.windows)), np.nan)
    if found.kept.any():
        share[:, found.kept] = _mean_of(found.details["open_fraction"][:, found.kept], down, 0)
    share = _mean_of(share, across, 1)
    return {
        "site": site,
        "units": count,
        "rows": [(first + a, first + b) for a, b in down],
        "columns": _columns(run, across),
        "windows": len(run.windows),
        "state": encoded(state, "|u1"),
        "open": encoded(np.where(np.isnan(share), 255, np.round(share.clip(0, 1) * 250)), "|u1"),
        "fate": encoded(_pooled(np.maximum, fate, down, across), "|u1") if done else None,
        "dead": _dead_share(found.state, down, across),
        "kept": int(found.kept.sum()),
        "treatments": done,
    }


def unit(run: Run, site: str, index: int) -> Document:
    """One unit over all windows, with all its figures."""
    found = run.units(site, DETAILS, slice(index, index + 1))
    done = [t for t in run.treatments if t["site"] == site and index in t["units"]]
    alone = [t | {"units": [0]} for t in done]
    return {
        "site": site,
        "unit": index,
        "columns": _columns(run, split(len(run.windows), len(run.windows))),
        "state": found.state[0].tolist(),
        "fate": fates(run, found.state, alone)[0].tolist(),
        **{name: _numbers(found.details[name][0]) for name in DETAILS},
        "treatments": [t | {"units": len(t["units"])} for t in done],
    }


# ── what became of treated units ────────────────────────────────────────────────────────

NEVER, REVIVED, TREATED, RELAPSED = range(4)
"""In a window a unit was not treated before (or is not judged), is alive after a treatment, has not
come back since, or came back and is closed again."""


def fates(run: Run, state: Array, treatments: Sequence[Document]) -> Array:
    """For states (C, W), what became of the treated ones among the units by each window (C, W)."""
    fate = np.zeros(state.shape, np.uint8)
    if not treatments:
        return fate
    first = np.full(len(state), np.iinfo(np.int64).max)
    for treatment in treatments:
        at = _units_of(treatment, len(state))
        first[at] = np.minimum(first[at], treatment["window"])
    units = np.flatnonzero(first < np.iinfo(np.int64).max)
    after = np.array([window.index for window in run.windows]) > first[units, None]
    alive = after & (state[units] >= State.RARE)
    closed = after & np.isin(state[units], (State.DEAD, State.SATURATED))
    back = np.logical_or.accumulate(alive, 1)
    fate[units] = np.select([alive, closed & ~back, closed], [REVIVED, TREATED, RELAPSED], NEVER)
    return fate


def _units_of(treatment: Document, count: int) -> Array:
    units = np.asarray(treatment["units"], np.int64)
    return units[units < count]


def _within(treatment: Document, first: int, last: int) -> Document:
    units = _units_of(treatment, last)
    return treatment | {"units": units[units >= first] - first}


# ── making smaller ──────────────────────────────────────────────────────────────────────


def split(length: int, most: int) -> list[tuple[int, int]]:
    """Cut ``length`` things into at most ``most`` spans of one size, but for the last."""
    size = max(1, math.ceil(length / max(1, most)))
    return [(start, min(start + size, length)) for start in range(0, length, size)]


def _worst(dead: Array, judged: Array) -> Array:
    """Of some windows, the one with the highest dead ratio, site by site (S,)."""
    ratio = np.where(judged > 0, dead / np.maximum(judged, 1), -1.0)
    found: Array = ratio.shape[1] - 1 - np.argmax(ratio[:, ::-1], 1)  # the last of them
    return found


def _taken(table: Array, at: Array | None) -> Array:
    return table[:, :0] if at is None else np.take_along_axis(table, at, 1)


def _worst_state(state: Array, spans: list[tuple[int, int]], axis: int) -> Array:
    ranks = np.zeros(len(State), np.uint8)
    ranks[list(SEVERITY)] = np.arange(1, 1 + len(SEVERITY))
    back = np.argsort(ranks)
    found: Array = back[_reduced(np.maximum, ranks[state], spans, axis)]
    return found


Spans = list[tuple[int, int]]


def _pooled(operation: np.ufunc, values: Array, down: Spans, across: Spans) -> Array:
    return _reduced(operation, _reduced(operation, values, down, 0), across, 1)


def _dead_share(state: Array, down: Spans, across: Spans) -> Document | None:
    """How much of each cell is dead, in 250ths and rounded up; None if each is one unit's."""
    if len(down) == state.shape[0] and len(across) == state.shape[1]:
        return None
    dead = _pooled(np.add, (state == State.DEAD).astype(np.int32), down, across)
    size = np.outer([b - a for a, b in down], [b - a for a, b in across])
    return encoded(np.ceil(dead / size * 250), "|u1")


def _mean_of(values: Array, spans: list[tuple[int, int]], axis: int) -> Array:
    there = np.isfinite(values)
    total = _reduced(np.add, np.where(there, values, 0).astype(np.float64), spans, axis)
    count = _reduced(np.add, there.astype(np.int64), spans, axis)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def _reduced(operation: np.ufunc, values: Array, spans: list[tuple[int, int]], axis: int) -> Array:
    if len(spans) == values.shape[axis]:
        return values
    if not spans or not values.size:  # one of its axes has no length
        return np.take(values, range(len(spans)), axis)
    found: Array = operation.reduceat(values, [start for start, _ in spans], axis)
    return found


# ── plain values ────────────────────────────────────────────────────────────────────────


def encoded(values: Array, dtype: str) -> Document:
    """An array as JSON can hold it."""
    data = np.ascontiguousarray(values, dtype)
    return {
        "dtype": dtype,
        "shape": list(data.shape),
        "data": base64.b64encode(data.tobytes()).decode(),
    }


def _numbers(values: Array) -> list[float | None]:
    # Seven digits are what a float32 holds.
    return [float(f"{value:.7g}") if math.isfinite(value) else None for value in values]


def _columns(run: Run, spans: list[tuple[int, int]]) -> list[Document]:
    return [
        {
            "windows": [run.windows[a].index, run.windows[b - 1].index],
            "steps": [run.windows[a].first_step, run.windows[b - 1].last_step],
        }
        for a, b in spans
    ]


def _mark(run: Run, treatment: Document) -> Document:
    return {**treatment, "units": len(treatment["units"]), "row": run.row.get(treatment["site"])}
