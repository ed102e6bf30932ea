"""All documents of some runs in one, as the report carries them along, within a budget of bytes.

How a run went as a whole, its table and its findings are always there. Pictures of single layers
come next, layers with dead or treated units first; then what single units did, treated ones first.
What did not fit is named.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping

import numpy as np

from deadwatch.records import State
from deadwatch.show import documents
from deadwatch.show.documents import Document
from deadwatch.show.run import Run

BUDGET = 8_000_000
"""Bytes of a report."""

_SIZES = ((documents.ROWS, documents.COLUMNS), (256, 256), (128, 128))
"""Rows and columns of the picture of a layer, the finest first that all layers fit in."""

_CELL = 18  # bytes of a cell of an overview
_LAYERS = 4  # arrays of one byte a cell in the picture of a layer, at most
_POINT = 80  # bytes of one window of a unit


def bundle(runs: Mapping[str, Run], budget: int = BUDGET) -> Document:
    """What the front end's ``embedded`` takes.

    Args:
        runs: The runs by name.
        budget: Bytes that it may have, beyond what is always there.

    Returns:
        ``runs``, ``overview``, ``table``, ``findings``, ``units`` and ``unit``, and under
        ``left_out`` for each run how many pictures of layers and of units are missing of how many.
    """
    share = budget // max(1, len(runs))
    parts = {name: _Part(run, share) for name, run in runs.items()}
    kinds = ("overview", "table", "findings", "units", "unit", "left_out")
    found = {kind: {name: getattr(part, kind) for name, part in parts.items()} for kind in kinds}
    return {"runs": list(runs), **found}


def left_out(bundled: Document) -> list[str]:
    """A sentence for each kind of picture of which some are not in a bundle."""
    told = []
    for run, missing in bundled["left_out"].items():
        for kind, (count, total) in missing.items():
            if count:
                told.append(f"Run {run}: {count:,} of {total:,} {kind} are left out to save space.")
    return told


class _Part:
    """The documents of one run."""

    def __init__(self, run: Run, budget: int) -> None:
        self._run = run
        cells = min(documents.CELLS, budget // 2 // _CELL)
        self.overview, self.table = documents.overview(run, max(1, cells)), documents.table(run)
        self.findings = documents.findings(run)
        left = budget - sum(map(_size, (self.overview, self.table, self.findings)))
        self.units, wanted = self._units(left * 3 // 4)
        self.unit = self._unit(wanted, left - _size(self.units))
        units, drawn = sum(map(len, wanted.values())), sum(map(len, self.unit.values()))
        sites = len(run.sites)
        self.left_out = {
            "pictures of layers": (sites - len(self.units), sites),
            "curves of dead or treated units in the other layers": (units - drawn, units),
        }

    def _units(self, left: int) -> tuple[dict[str, Document], dict[str, list[int]]]:
        """Pictures of layers, and which units of them are worth a curve, the most so first."""
        found: dict[str, Document] = {}
        wanted: dict[str, list[int]] = {}
        rows, columns = self._finest(left)
        for site in severe_first(self.table["rows"]):
            document = documents.units(self._run, site, rows=rows, columns=columns)
            left -= _size(document)
            if left < 0:
                break
            found[site], wanted[site] = document, self._marked(site)
        return found, wanted

    def _finest(self, left: int) -> tuple[int, int]:
        windows, units = len(self._run.windows), [site["units"] for site in self._run.sites]
        for rows, columns in _SIZES:
            cells = sum(min(rows, count) * min(columns, windows) for count in units)
            if cells * _LAYERS * 4 // 3 <= left:
                break
        return rows, columns

    def _marked(self, site: str) -> list[int]:
        done = [t["units"] for t in self._run.treatments if t["site"] == site]
        treated = sorted({unit for units in done for unit in units})
        dead = np.flatnonzero((self._run.units(site, ()).state == State.DEAD).any(1)).tolist()
        count = self._run.sites[self._run.row[site]]["units"]
        return [u for u in dict.fromkeys([*treated, *dead]) if u < count]

    def _unit(self, wanted: Mapping[str, list[int]], left: int) -> dict[str, dict[str, Document]]:
        """Curves of units; a few of each layer before more of any."""
        each = max(1, len(self._run.windows)) * _POINT + 300
        chosen = sorted(_ranked(wanted))[: max(0, left) // each]
        found: dict[str, dict[str, Document]] = {}
        for _, at, index in sorted(chosen, key=lambda choice: choice[1]):
            site = list(wanted)[at]
            curves = found.setdefault(site, {})
            curves[str(index)] = documents.unit(self._run, site, index)
        return found


def _ranked(wanted: Mapping[str, list[int]]) -> Iterator[tuple[int, int, int]]:
    """Each unit with its rank within its site, and the number of the site."""
    for at, units in enumerate(wanted.values()):
        yield from ((rank, at, unit) for rank, unit in enumerate(units))


def severe_first(rows: list[Document]) -> list[str]:
    """The sites of a table: those with dead or treated units first, the worst of them first."""

    def order(row: Document) -> tuple[bool, float]:
        worst = row["worst"] or {"dead": 0, "judged": 1}
        marked = worst["dead"] > 0 or row["treated"] > 0
        return not marked, -worst["dead"] / max(1, worst["judged"]) - _asleep(row)

    return [row["site"] for row in sorted(rows, key=order)]


def _asleep(row: Document) -> float:
    """Less than a dead unit counts: the share of units that are not open as usual."""
    states = row.get("states")
    if not states or not sum(states):
        return 0.0
    asleep: float = 1 - states[State.ALIVE] / sum(states)
    return 1e-3 * asleep


def _size(document: object) -> int:
    return math.ceil(len(json.dumps(document)) if document else 0)
