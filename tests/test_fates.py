"""What became of treated units, in the documents that the pictures are drawn from."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest

from deadwatch.records import Gate, Site, SiteReport, State, Treatment, Window, WindowReport
from deadwatch.show import documents
from deadwatch.show.archive import Archivist
from deadwatch.show.documents import NEVER, RELAPSED, REVIVED, TREATED
from deadwatch.show.run import Record, Run

U, N, D, S, R, A = State


def site(name: str, state: Sequence[int]) -> SiteReport:
    some = np.arange(len(state)) / 10.0
    where = Site(name, name, 1, "ReLU", Gate(0.0, np.inf), 1)
    states = np.array(state, np.int64)
    age = np.zeros_like(states)
    figures = (some, some, some, some, some, some, some, some, some)
    return SiteReport(where, 400, states, age, *figures, 0.5)


def run_of(states: Mapping[str, Sequence[Sequence[int]]], *done: tuple[str, list[int], int]) -> Run:
    """A run of sites whose states are given window by window; treatments: (site, units, window)."""
    archivist = Archivist()
    kept: dict[str, list[Record]] = {}
    for window in range(len(next(iter(states.values())))):
        treatments = tuple(
            Treatment("Recycle", name, np.array(units), at, at, quiet=True)
            for name, units, at in done
            if at == window
        )
        sites = {name: site(name, rows[window]) for name, rows in states.items()}
        report = WindowReport(Window(window, window, window), sites, treatments)
        for tag, data in archivist.records(report):
            kept.setdefault(tag, []).append(Record(float(window), data))
    return Run(lambda tag: kept.get(tag, []))


def read(packed: dict[str, Any]) -> list[list[int]]:
    data = np.frombuffer(base64.b64decode(packed["data"]), packed["dtype"])
    return list(data.reshape(packed["shape"]).tolist())


# units: revived and relapsed; never back; never treated; treated but not judged afterwards
HISTORY = [[D, D, D, D], [A, D, A, N], [D, D, D, U], [S, D, D, N], [R, D, A, N]]


def test_revived_and_relapsed_are_told_apart_by_what_came_after_a_treatment() -> None:
    document = documents.units(run_of({"a": HISTORY}, ("a", [0, 1, 3], 0)), "a")
    assert read(document["fate"]) == [
        [NEVER, REVIVED, RELAPSED, RELAPSED, REVIVED],
        [NEVER, TREATED, TREATED, TREATED, TREATED],
        [NEVER] * 5,
        [NEVER] * 5,
    ]


def test_a_unit_alone_has_the_same_fates() -> None:
    run = run_of({"a": HISTORY}, ("a", [0, 1, 3], 0))
    together = read(documents.units(run, "a")["fate"])
    assert [documents.unit(run, "a", unit)["fate"] for unit in range(4)] == together


def test_a_layer_that_was_never_treated_has_no_fates() -> None:
    assert documents.units(run_of({"a": HISTORY}), "a")["fate"] is None


def test_a_range_of_units_has_what_the_whole_has() -> None:
    run = run_of({"a": HISTORY}, ("a", [1], 0), ("a", [0, 3], 2))
    whole, part = documents.units(run, "a"), documents.units(run, "a", 1, 3)
    assert part["rows"] == [(1, 2), (2, 3)]
    for name in ("state", "open", "fate"):
        assert read(part[name]) == read(whole[name])[1:3]


@pytest.mark.parametrize(("rows", "columns"), [(2, 5), (4, 2), (1, 1)])
def test_a_cell_of_several_shows_the_worst_fate(rows: int, columns: int) -> None:
    run = run_of({"a": HISTORY}, ("a", [0, 1, 3], 0))
    whole = np.array(read(documents.units(run, "a")["fate"]))
    small = documents.units(run, "a", rows=rows, columns=columns)
    across, down = documents.split(5, columns), small["rows"]
    expected = [[whole[a:b, c:d].max() for c, d in across] for a, b in down]
    assert read(small["fate"]) == expected


def test_a_cell_of_several_tells_how_much_of_it_is_dead() -> None:
    run = run_of({"a": HISTORY})
    assert documents.units(run, "a")["dead"] is None  # each cell is one unit's
    small = documents.units(run, "a", rows=2, columns=2)  # two units, three windows and two
    assert read(small["dead"]) == [[209, 125], [125, 63]]  # 5/6, 2/4, 3/6, 1/4: rounded up


def test_the_table_tells_what_came_of_the_last_treatment() -> None:
    run = run_of({"a": HISTORY, "b": HISTORY}, ("a", [2], 0), ("a", [0, 1, 3], 1))
    first, second = documents.table(run)["rows"]
    assert first["result"] == {"open": 1, "revived": 1, "still_dead": 1, "relapsed": 0}
    assert second["result"] is None


def test_the_table_says_for_how_many_layers_it_looked_what_came_of_treatments() -> None:
    run = run_of({"a": HISTORY, "b": HISTORY, "c": HISTORY}, ("a", [0], 0), ("b", [0], 2))
    document = documents.table(run, results=5)
    assert document["results"] == [1, 2]
    assert [bool(row["result"]) for row in document["rows"]] == [False, True, False]


def test_a_treatment_of_units_that_are_not_there_any_more_is_no_error() -> None:
    run = run_of({"a": HISTORY}, ("a", [0, 99], 0))
    assert documents.table(run)["rows"][0]["result"]["revived"] == 1
    assert read(documents.units(run, "a")["fate"])[0][-1] == REVIVED
