"""Records of version 1 are read for ever: see ``make_version1.py``."""

from __future__ import annotations

import json
from typing import Any

import numpy as np

from deadwatch.show.archive import DETAILS
from deadwatch.show.events import runs
from deadwatch.show.summary import summary
from tests.histories import halved
from tests.make_version1 import FOLDER, content, reports


def holds(found: Any, expected: Any, where: str = "") -> None:
    """All that was there then is there now, and the same; there may be more now."""
    if isinstance(expected, dict):
        for key, value in expected.items():
            holds(found[key], value, f"{where}/{key}")
    elif isinstance(expected, list):
        assert len(found) == len(expected), where
        for at, (one, other) in enumerate(zip(found, expected, strict=True)):
            holds(one, other, f"{where}/{at}")
    else:
        assert found == expected, where


def test_a_run_of_version_1_is_read() -> None:
    found = runs(FOLDER)
    expected = json.loads((FOLDER / "content.json").read_text())
    holds({"summary": summary(found), **content(found["."].run)}, expected)
    assert found["."].run.damaged == 0


def test_what_is_read_is_what_was_reported() -> None:
    run = runs(FOLDER)["."].run
    for at, report in enumerate(reports()):
        for name, there in report.items():
            units = run.units(name)
            assert units.state[:, at].tolist() == there.state.tolist()
            for detail in DETAILS:
                wanted = halved(getattr(there, detail))
                assert np.array_equal(units.details[detail][:, at], wanted, equal_nan=True)
