"""Records from anywhere: damaged and hostile ones are counted, later ones read as far as known."""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deadwatch import State
from deadwatch.errors import DeadwatchError
from deadwatch.show import archive, documents
from deadwatch.show.archive import COUNTS, EVENTS, LAYOUT, SITES, UNITS, VERSION, pack, unpack
from deadwatch.show.findings import plain
from deadwatch.show.run import Record, Run
from tests.findings import finding
from tests.histories import Log, decoded, outcome, refusal, site, treatment, window

TAGS = (LAYOUT, COUNTS, SITES, EVENTS, f"{UNITS}/act")


def log() -> Log:
    first = window(
        *(0, site("act", [2, 5, 5])),
        treatments=(treatment(0, [0]),),
        refusals=(refusal(0, [1]),),
        notes=("told",),
        outcomes=(outcome(),),
        findings=(finding("DW401", "error", "act"), finding()),
        advised=True,
    )
    return Log().write([first, window(1, site("act", [5, 5, 1]))])


def drawn(run: Run) -> list[Any]:
    """Every document of a run."""
    made = [documents.overview(run), documents.table(run), documents.findings(run)]
    for known in run.sites:
        made.append(documents.units(run, known["name"]))
        made += [documents.unit(run, known["name"], unit) for unit in range(known["units"])]
    json.dumps(made, allow_nan=False)
    return made


def line(head: Any, rest: bytes = b"") -> bytes:
    return zlib.compress(json.dumps(head).encode() + b"\n" + rest)


def shaped(*shape: Any, dtype: Any = "<i4") -> bytes:
    return line({"version": 1, "arrays": {"states": [dtype, list(shape)]}}, b"\0" * 64)


HOSTILE = {
    "nothing": b"",
    "no compressed data": b"hello",
    "a bomb": zlib.compress(bytes(archive.LARGEST + 1), 9),
    "cut short": archive.pack({}, {})[:-3],
    "no JSON": zlib.compress(b"{what\n"),
    "no mapping": line([1, 2]),
    "a number": line(3),
    "deep": zlib.compress(b"[" * 100_000 + b"\n"),
    "deep in a key": zlib.compress(b'{"arrays": ' + b'{"a":' * 100_000 + b"\n"),
    "NaN": zlib.compress(b'{"version": 1, "arrays": {}, "window": NaN}\n'),
    "no arrays": line({"version": 1}),
    "no version": line({"arrays": {}}),
    "arrays in a list": line({"version": 1, "arrays": [1]}),
    "an array without shape": line({"version": 1, "arrays": {"states": ["<i4"]}}),
    "a huge shape": shaped(1 << 40, 1 << 40),
    "a huge empty shape": shaped(0, 1 << 80),
    "too many axes": shaped(*[1] * 99),
    "a negative shape": shaped(-1),
    "a shape of texts": shaped("3"),
    "a shape of truths": shaped(True),
    "a dtype that is none": shaped(3, dtype=7),
    "objects": shaped(2, dtype="|O"),
    "cut arrays": line({"version": 1, "arrays": {"states": ["<i4", [9, 9]]}}, b"\0" * 8),
    "half a character": zlib.compress(b'{"a": "\xff"}\n'),
}


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.parametrize("tag", TAGS)
def test_a_damaged_record_is_counted_and_costs_nothing_else(tag: str, name: str) -> None:
    found = log()
    whole = drawn(found.run())
    found.tags[tag].insert(1, Record(0.5, HOSTILE[name]))
    run = found.run()
    kept = drawn(run)
    assert run.damaged == 1
    assert kept[0].pop("damaged") in (0, 1)
    assert whole[0].pop("damaged") == 0
    assert kept == whole


def test_a_damaged_record_says_that_it_is_damaged() -> None:
    with pytest.raises(DeadwatchError, match="no record of deadwatch's, or a damaged one"):
        unpack(b"hello")


HEAD: dict[str, Any] = {"session": "s", "window": 0, "steps": [0, 9]}
OK = {"states": np.zeros((1, 6), "<i4"), "kept": np.ones(1, "|u1")}
TORN = plain([finding()])[0]
DONE = {"remedy": "R", "site": "act", "units": [0], "window": 0, "step": 3, "note": ""}
WRONG: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    (COUNTS, {"window": None}, OK),
    (COUNTS, {"window": 1e300}, OK),
    (COUNTS, {"window": 1 << 70}, OK),
    (COUNTS, {"steps": [0]}, OK),
    (COUNTS, {"steps": [0, "9"]}, OK),
    (COUNTS, {"session": 3}, OK),
    (COUNTS, {}, {"states": OK["states"]}),
    (COUNTS, {}, {"states": OK["states"], "kept": np.ones(2, "|u1")}),
    (COUNTS, {}, {"states": OK["states"] - 1, "kept": OK["kept"]}),
    (COUNTS, {}, {"states": OK["states"] + (1 << 30), "kept": OK["kept"]}),
    (COUNTS, {}, {"states": np.zeros((1, 6), "<f4"), "kept": OK["kept"]}),
    (COUNTS, {}, {"states": np.zeros(6, "<i4"), "kept": OK["kept"]}),
    (COUNTS, {}, {"states": OK["states"], "kept": np.full(1, np.nan, "<f4")}),
    (SITES, {"columns": ["mean"]}, {"measures": np.zeros((1, 2), "<f4")}),
    (SITES, {"columns": [1, 2]}, {"measures": np.zeros((1, 2), "<f4")}),
    (SITES, {}, {"measures": np.zeros((1, 2), "<f4")}),
    (SITES, {"columns": ["mean"]}, {}),
    (LAYOUT, {}, {}),
    (LAYOUT, {"sites": {}}, {}),
    (LAYOUT, {"sites": [3]}, {}),
    (LAYOUT, {"sites": [{"name": "act"}]}, {}),
    (LAYOUT, {"sites": [{"name": 3, "units": 3}]}, {}),
    (LAYOUT, {"sites": [{"name": "act", "units": -1}]}, {}),
    (LAYOUT, {"sites": [{"name": "act", "units": 1 << 50}]}, {}),
    (LAYOUT, {"sites": [{"name": "act", "units": 3, "producers": [{}]}]}, {}),
    (EVENTS, {"treatments": {}}, {}),
    (EVENTS, {"treatments": [{**DONE, "units": "all"}]}, {}),
    (EVENTS, {"treatments": [{**DONE, "units": [{}]}]}, {}),
    (EVENTS, {"treatments": [{**DONE, "step": None}]}, {}),
    (EVENTS, {"treatments": [{**DONE, "site": ["act"]}]}, {}),
    (EVENTS, {"refusals": [{"remedy": "R"}]}, {}),
    (EVENTS, {"notes": "told"}, {}),
    (EVENTS, {"notes": [{}]}, {}),
    (EVENTS, {"findings": None}, {}),
    (EVENTS, {"findings": {}}, {}),
    (EVENTS, {"findings": ["DW103"]}, {}),
    (EVENTS, {"findings": [{"id": "DW103", "severity": "info"}]}, {}),
    (EVENTS, {"findings": [TORN | {"severity": 3}]}, {}),
    (EVENTS, {"findings": [TORN | {"where": "act"}]}, {}),
    (EVENTS, {"findings": [TORN | {"where": [3]}]}, {}),
    (EVENTS, {"findings": [TORN | {"numbers": {"a": "1"}}]}, {}),
    (EVENTS, {"findings": [TORN | {"numbers": {"a": True}}]}, {}),
    (EVENTS, {"findings": [TORN | {"numbers": {"a": 10**400}}]}, {}),
    (EVENTS, {"findings": [TORN | {"code": None}]}, {}),
    (EVENTS, {"outcomes": [{"remedy": "R", "units": "3"}]}, {}),
    (f"{UNITS}/act", {}, {}),
    (f"{UNITS}/act", {}, {"state": np.zeros((3, 1), "|u1")}),
    (f"{UNITS}/act", {}, {"state": np.zeros(3, "<f4")}),
]


@pytest.mark.parametrize("case", range(len(WRONG)))
def test_a_record_that_is_of_another_form_is_counted(case: int) -> None:
    tag, head, arrays = WRONG[case]
    found = log()
    found.tags[tag].append(Record(99.0, pack(HEAD | head, arrays)))
    run = found.run()
    drawn(run)
    assert run.damaged == 1
    assert [w.index for w in run.windows] == [0, 1]


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=6,
)


def _paths(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield path
    if isinstance(value, (dict, list)):
        for key, item in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _paths(item, (*path, key))


def _changed(value: Any, path: tuple[Any, ...], new: Any) -> Any:
    if not path:
        return new
    copied = value.copy()
    copied[path[0]] = _changed(value[path[0]], path[1:], new)
    return copied


@settings(deadline=None, max_examples=150)
@given(st.data())
def test_no_change_of_what_is_in_a_record_raises_out_of_a_run(data: st.DataObject) -> None:
    found = log()
    tag = data.draw(st.sampled_from(TAGS))
    at = data.draw(st.integers(0, len(found.tags[tag]) - 1))
    raw = zlib.decompress(found.tags[tag][at].data)
    head, _, rest = raw.partition(b"\n")
    content = json.loads(head)
    path = data.draw(st.sampled_from([p for p in _paths(content) if p]))
    content = _changed(content, path, data.draw(json_values))
    found.tags[tag][at] = Record(found.tags[tag][at].wall_time, line(content, rest))
    drawn(found.run())


@settings(deadline=None, max_examples=100)
@given(st.data())
def test_no_change_of_its_bytes_raises_out_of_a_run(data: st.DataObject) -> None:
    found = log()
    tag = data.draw(st.sampled_from(TAGS))
    raw = bytearray(zlib.decompress(found.tags[tag][0].data))
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    found.tags[tag][0] = Record(found.tags[tag][0].wall_time, zlib.compress(bytes(raw)))
    drawn(found.run())


# ── later versions ──────────────────────────────────────────────────────────────────────


def _later(found: Log, tag: str, arrays: dict[str, Any], **head: Any) -> None:
    """Rewrite the last record of a tag as a later version might have written it."""
    last = found.tags[tag][-1]
    raw = zlib.decompress(last.data)
    before, _, rest = raw.partition(b"\n")
    content = json.loads(before)
    content |= {"version": VERSION + 1, **head}
    shapes = {name: [array.dtype.str, list(array.shape)] for name, array in arrays.items()}
    content["arrays"] = shapes | content["arrays"]  # before those that are known
    data = b"".join(array.tobytes() for array in arrays.values())
    found.tags[tag][-1] = Record(last.wall_time, line(content, data + rest))


@pytest.mark.parametrize("dtype", ["<f8", "<u2", "|b1", "<c8", "|S5", ">f4", "<f4"])
@pytest.mark.parametrize("tag", TAGS)
def test_an_unknown_array_of_a_later_version_costs_nothing(tag: str, dtype: str) -> None:
    found = log()
    expected = drawn(found.run())
    _later(found, tag, {"new": np.ones((3, 2), dtype)}, surprise={"x": [None, 1.5]})
    run = found.run()
    assert drawn(run) == expected
    assert run.damaged == 0


def test_arrays_before_one_of_unknown_size_are_read() -> None:
    data = line({"version": 9, "arrays": {"a": ["<i4", [1]], "b": ["?!", [1]]}}, b"\7\0\0\0rest")
    payload = unpack(data)
    assert list(payload.arrays) == ["a"]
    assert payload.arrays["a"].tolist() == [7]


def test_a_state_that_is_not_known_is_uncertain() -> None:
    reports = [window(0, site("act", [2, 5, 5]))]
    found = Log().write(reports)
    head = {"session": "later", "window": 1, "steps": [10, 19]}
    layout = {"sites": [{"name": "act", "units": 3}]}
    states, kept = np.array([[0, 0, 1, 0, 0, 1, 1]], "<i4"), np.ones(1, "|u1")
    found.add(
        [
            (LAYOUT, pack(head | layout, {})),
            (COUNTS, pack(head, {"states": states, "kept": kept})),
            (f"{UNITS}/act", pack(head, {"state": np.array([2, 6, 5], "|u1")})),
        ]
    )
    run = found.run()
    assert run.units("act").state[:, 1].tolist() == [State.DEAD, State.UNCERTAIN, State.ALIVE]
    assert run.counts[0, 1].tolist() == [0, 1, 1, 0, 0, 1]
    assert decoded(documents.units(run, "act")["state"])[:, 1].tolist() == [2, 1, 5]


def test_an_unknown_column_of_a_later_version_is_left_out() -> None:
    found = log()
    expected = found.run().measures
    values = np.array([[0.5, 9.0, 0.25]], "<f4")
    head = json.loads(zlib.decompress(found.tags[SITES][-1].data).partition(b"\n")[0])
    head = {"session": head["session"], "window": 1, "steps": [10, 19]}
    columns = {"columns": ["mean", "beauty", "sparsity"]}
    found.tags[SITES][-1] = Record(50.0, pack(head | columns, {"measures": values}))
    run = found.run()
    assert (run.measures["mean"][0, 1], run.measures["sparsity"][0, 1]) == (0.5, 0.25)
    assert np.isnan(run.measures["std"][0, 1])
    assert run.measures["mean"][0, 0] == expected["mean"][0, 0]
    assert run.damaged == 0
