"""Runs → one JSON document for programs, such as ``deadwatch report LOGDIR --json`` prints.

``{"format": "deadwatch-report", "version": 1, "runs": {name: run}}``. Of a run:

- ``windows``, ``steps``: how many windows there are, and the first and the last step (or null);
- ``dead``, ``judged``, ``dead_ratio``: over all sites in the last window; the ratio is null where
  nothing was judged;
- ``sites``: one entry each, in the order of the data: ``site``, ``units``, ``activation``,
  ``producers``, ``consumers`` (texts, or a sentence on why they are not known); ``now`` and
  ``worst``: ``{"dead", "judged", "window"}`` of the last window with evidence and of the one with
  the highest dead ratio, or null; ``states``: units by state in the window of ``now``;
  ``open_fraction``, ``mean``, ``std``, ``sparsity``, ``dormant``, ``wasted`` (elements of
  parameters that make dead units or read them): as last measured, or null;
  ``advice``: a sentence on its dead units, or null; ``findings``: ids of the findings there;
  ``treated``: how many units were treated, again and again included; ``last``: the last treatment,
  and its ``result`` if it was worked out;
- ``findings``: the advice that stands at the end, as `deadwatch.show.findings.plain` describes it,
  each with the ``window`` in which it was first told; null where no advice was asked for;
- ``treatments``, ``outcomes``, ``notes``: all there were, ``units`` being their numbers;
- ``damaged``: records that could not be read; ``cut``: files that could not be read to their end.

What was not measured is null, never 0. Later versions may add keys; they change the version where
one goes or changes its meaning.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from deadwatch.records import State
from deadwatch.show import documents
from deadwatch.show.documents import Document
from deadwatch.show.events import Found
from deadwatch.show.run import Run

VERSION = 1


def summary(runs: Mapping[str, Found]) -> Document:
    """The document described above."""
    told = {name: _run(found) for name, found in runs.items()}
    return {"format": "deadwatch-report", "version": VERSION, "runs": told}


def _run(found: Found) -> Document:
    run = found.run
    sites = [_site(run, row) for row in documents.table(run)["rows"]]
    dead, judged = (int(table[:, -1:].sum()) for table in (run.dead, run.judged))
    return {
        "windows": len(run.windows),
        "steps": [run.windows[0].first_step, run.windows[-1].last_step] if run.windows else None,
        "dead": dead,
        "judged": judged,
        "dead_ratio": dead / judged if judged else None,
        "sites": sites,
        "treatments": run.treatments,
        "outcomes": run.outcomes,
        "notes": run.notes,
        "findings": documents.findings(run)["findings"] if run.findings is not None else None,
        "damaged": run.damaged,
        "cut": list(found.cut),
    }


def _site(run: Run, row: Document) -> Document:
    known: Mapping[str, Any] = run.sites[run.row[row["site"]]]
    states = row.get("states")
    named = {state.name.lower(): states[state] for state in State} if states else None
    about = {name: known.get(name) for name in ("activation", "producers", "consumers")}
    return {**row, **about, "states": named, "advice": row.get("advice")}
