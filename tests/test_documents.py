"""Documents are made smaller without losing what is dead, and say what they show."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deadwatch import State
from deadwatch.show import documents
from tests.histories import STEPS, Log, decoded, history, outcome, site, treatment, window

UNITS = 6


@settings(deadline=None, max_examples=40)
@given(
    states=st.lists(
        st.lists(st.integers(0, 5), min_size=UNITS, max_size=UNITS), min_size=1, max_size=9
    ),
    cells=st.integers(1, 12),
)
def test_an_overview_that_was_made_smaller_shows_the_worst_window_of_each_column(
    states: list[list[int]], cells: int
) -> None:
    run = Log().write(window(i, site("act", row)) for i, row in enumerate(states)).run()
    found = documents.overview(run, cells)
    dead, judged, at = (decoded(found[name])[0] for name in ("dead", "judged", "at"))
    assert len(found["columns"]) == len(dead) <= cells
    assert found["windows"] == len(states)
    covered: list[int] = []
    for column, spans in enumerate(found["columns"]):
        first, last = spans["windows"]
        assert spans["steps"] == [first * STEPS, last * STEPS + STEPS - 1]
        covered += range(first, last + 1)
        reports = [site("act", states[i]) for i in range(first, last + 1)]
        ratios = [report.dead_ratio for report in reports if report.judged]
        assert (judged[column] > 0) == bool(ratios)
        if ratios:
            assert dead[column] / judged[column] == pytest.approx(max(ratios))
            shown = reports[at[column] - first]
            assert (shown.dead.sum(), shown.judged) == (dead[column], judged[column])
    assert covered == list(range(len(states)))


@settings(deadline=None, max_examples=40)
@given(
    states=st.lists(
        st.lists(st.integers(0, 5), min_size=UNITS, max_size=UNITS), min_size=1, max_size=9
    ),
    rows=st.integers(1, 8),
    columns=st.integers(1, 12),
    first=st.integers(0, UNITS - 1),
)
def test_units_that_were_made_smaller_show_the_worst_state_of_each_cell(
    states: list[list[int]], rows: int, columns: int, first: int
) -> None:
    run = Log().write(window(i, site("act", row)) for i, row in enumerate(states)).run()
    found = documents.units(run, "act", first, UNITS, rows, columns)
    picture, brightness = decoded(found["state"]), decoded(found["open"])
    assert picture.shape == brightness.shape == (len(found["rows"]), len(found["columns"]))
    assert picture.shape[0] <= rows
    assert picture.shape[1] <= columns
    table = np.array(states).T
    for r, (a, b) in enumerate(found["rows"]):
        for c, column in enumerate(found["columns"]):
            w, v = column["windows"]
            cell = set(table[a:b, w : v + 1].ravel().tolist()) - {State.UNSEEN}
            order = [2, 3, 1, 4, 5]
            worst = next((state for state in order if state in cell), State.UNSEEN)
            assert picture[r, c] == worst
    assert found["rows"][0][0] == first
    assert found["rows"][-1][1] == UNITS


def test_brightness_is_the_mean_open_fraction_and_255_where_nothing_was_measured() -> None:
    reports = [window(i, site("act", [5] * 4, seed=i, measured=0.5)) for i in range(6)]
    shares = np.stack([report["act"].open_fraction for report in reports], 1)
    found = decoded(documents.units(Log().write(reports).run(), "act")["open"])
    assert ((found == 255) == np.isnan(shares)).all()
    measured = ~np.isnan(shares)
    assert found[measured] == pytest.approx(shares[measured] * 250, abs=0.51)


def test_a_dead_unit_among_16384_is_not_lost() -> None:
    states = np.full(16_384, State.ALIVE)
    states[9_999] = State.DEAD
    run = Log().write([window(0, site("act", states.tolist()))]).run()
    found = documents.units(run, "act")
    (row,) = np.flatnonzero(decoded(found["state"])[:, 0] == State.DEAD)
    assert len(found["rows"]) == documents.ROWS
    assert found["rows"][row][0] <= 9_999 < found["rows"][row][1]
    assert decoded(documents.overview(run)["dead"]).tolist() == [[1]]


def test_a_table_tells_how_each_site_is_now_and_was_at_its_worst() -> None:
    reports = [
        window(0, site("act", [2, 5, 5, 5]), site("idle", [])),
        window(
            *(1, site("act", [2, 2, 2, 5]), site("idle", [])),
            treatments=(treatment(1, [0, 1, 2]),),
            outcomes=(outcome(),),
        ),
        window(2, site("act", [2, 5, 1, 5]), site("idle", [])),
        window(3, site("act", [1, 1, 1, 1]), site("idle", [])),
    ]
    act, idle = documents.table(Log().write(reports).run())["rows"]
    assert act["now"] == {"dead": 1, "judged": 3, "window": 2}
    assert act["worst"] == {"dead": 3, "judged": 4, "window": 1}
    assert act["states"] == [0, 1, 1, 0, 0, 2]
    assert act["treated"] == 3
    assert act["last"]["units"] == 3
    assert idle["now"] is idle["worst"] is idle["last"] is idle["sparsity"] is idle["mean"] is None


def test_a_unit_has_gaps_where_nothing_was_measured() -> None:
    reports = [window(i, site("act", [2, 5], seed=i, measured=0.5)) for i in range(8)]
    found = documents.unit(Log().write(reports).run(), "act", 1)
    for name in ("open_fraction", "mean", "std", "min", "max"):
        expected = [float(getattr(report["act"], name)[1]) for report in reports]
        assert [value is None for value in found[name]] == np.isnan(expected).tolist()
        given = [(a, b) for a, b in zip(found[name], expected, strict=True) if a is not None]
        assert all(a == pytest.approx(b, rel=1e-3) for a, b in given)
    assert found["state"] == [5] * 8


@pytest.mark.parametrize("windows", [0, 1, 3])
@pytest.mark.parametrize("units", [0, 1, 5])
def test_every_document_is_json_for_runs_of_any_size(windows: int, units: int) -> None:
    reports: list[Any] = history(windows, units)
    run = Log().write(reports).run()
    made = [documents.overview(run), documents.overview(run, 1), documents.table(run)]
    for known in run.sites:
        made += [documents.units(run, known["name"], rows=2, columns=2)]
        made += [documents.unit(run, known["name"], i) for i in range(units)]
    json.dumps(made, allow_nan=False)
    for document in made[3:]:
        if "rows" in document:
            shape = [len(document["rows"]), len(document["columns"])]
            assert document["state"]["shape"] == document["open"]["shape"] == shape


def test_a_table_advises_on_dead_units_by_whether_they_do_harm() -> None:
    sites = [site("bad", [2, 5]), site("few", [2, 5]), site("none", [5, 5]), site("blind", [1, 1])]
    sites[0] = replace(sites[0], harmful=True)
    rows = documents.table(Log().write([window(0, *sites)]).run())["rows"]
    told = [row.get("advice") for row in rows]
    assert told[0].startswith("Treat them")
    assert told[1].startswith("Leave them")
    assert told[2:] == [None, None]
