"""Writes ``tests/data/version1``: an event file of records of version 1, and what it holds.

It was run once, when version 1 was new; what it wrote is read by ``test_version1.py`` for ever. A
new version of records gets a file of its own and leaves this one alone.

    python -m tests.make_version1
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from deadwatch import WindowReport
from deadwatch.show import documents
from deadwatch.show.archive import DETAILS, VERSION
from deadwatch.show.events import runs
from deadwatch.show.run import Run
from deadwatch.show.summary import summary
from tests.histories import HOSTILE, outcome, refusal, site, treatment, window, written

FOLDER = Path(__file__).parent / "data" / "version1"


def reports() -> list[WindowReport]:
    """A site that is treated, one that appears later, one that never ran."""
    states = [[2, 2, 5, 5], [2, 2, 5, 4], [5, 2, 5, 3], [5, 5, 1, 5]]
    idle, late = site("idle", []), site(HOSTILE, [2, 5])
    told = {
        "treatments": (treatment(1, [0, 1], note="rows of 0 drawn afresh"),),
        "refusals": (refusal(1, [3]),),
        "notes": ("two dead units of act were left alone",),
        "outcomes": (outcome(),),
    }
    made = [window(i, site("act", row, seed=i), idle) for i, row in enumerate(states[:2])]
    made[1] = window(1, *made[1].values(), **told)
    return made + [
        window(i, site("act", row, seed=i), idle, late) for i, row in enumerate(states[2:], start=2)
    ]


def content(run: Run) -> dict[str, Any]:
    """What is read of a run, unit by unit."""
    kept = ("state", "treatments", *DETAILS)
    units: dict[str, Any] = {}
    for known in run.sites:
        read = [documents.unit(run, known["name"], n) for n in range(known["units"])]
        units[known["name"]] = [{key: one[key] for key in kept} for one in read]
    return {"units": units, "notes": run.notes, "counts": run.counts.tolist()}


def main() -> None:
    """Write both files."""
    assert VERSION == 1, "this is what version 1 left behind"
    FOLDER.mkdir(parents=True)
    made = reports()
    for session, part in (("first", made[:3]), ("resumed", made[2:])):
        written(FOLDER, part).rename(FOLDER / f"events.out.tfevents.{session}")
    found = runs(FOLDER)
    told = summary(found)
    for row in told["runs"]["."]["sites"]:
        row.pop("result", None)  # which is concluded, not recorded
    held = {"summary": told, **content(found["."].run)}
    (FOLDER / "content.json").write_text(json.dumps(held, indent=1) + "\n")


if __name__ == "__main__":
    main()
