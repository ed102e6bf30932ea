"""Records and plain values: nothing is lost, nothing but plain values is written."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from deadwatch import (
    DeadwatchError,
    Gate,
    Recycle,
    Refusal,
    Site,
    State,
    Treatment,
    WindowReport,
    Wire,
)
from deadwatch.plain import VERSION, from_plain, require_version, stamped, to_plain
from deadwatch.records import Change
from tests.clinic import Patient
from tests.resuming import same, through_a_file

PLAIN = (dict, list, tuple, str, bytes, bool, int, float, type(None), torch.Tensor)


def is_plain(value: Any) -> bool:
    if isinstance(value, Mapping):
        return type(value) is dict and all(map(is_plain, value)) and is_plain([*value.values()])
    if isinstance(value, (list, tuple)):
        return all(map(is_plain, value))
    return type(value) in PLAIN


FLOATS = st.floats(allow_nan=True, allow_infinity=True)
WIRES = st.builds(
    Wire,
    st.sampled_from(["linear", "skip"]),
    st.text(),
    st.none() | st.text(),
    st.none() | st.text(),
    axis=st.integers(0, 3),
    units=st.builds(range, st.integers(0, 9), st.integers(9, 99)),
    padded=st.booleans(),
)
SITES = st.builds(
    Site,
    *(st.text(), st.text(), st.integers(1, 9), st.text()),
    gate=st.builds(Gate, FLOATS, FLOATS, st.booleans(), st.booleans()),
    unit_dim=st.none() | st.integers(-4, 4),
    producers=st.lists(WIRES, max_size=3).map(tuple),
)


@given(site=SITES)
def test_a_site_comes_back_as_it_was(site: Site) -> None:
    plain = to_plain(site)
    assert is_plain(plain)
    assert same(from_plain(Site, through_a_file(plain)), site)


ARRAYS = [
    np.array([True, False]),
    np.array([1, -(2**62)]),
    np.array([math.nan, math.inf, -math.inf, -0.0, 5e-324]),
    np.array([[1.5], [2.5]], np.float32),
    np.zeros((0, 3)),
    np.array([1, 2, 3])[::-1],
]


@pytest.mark.parametrize("array", ARRAYS, ids=str)
def test_arrays_come_back_bit_for_bit(array: npt.NDArray[Any]) -> None:
    change = Change("w", 1, np.arange(2), array, array, range(1, 4), "exp_avg")
    plain = to_plain(change)
    assert is_plain(plain)
    back = from_plain(Change, through_a_file(plain))
    assert back.before.dtype == array.dtype
    assert back.before.tobytes() == array.tobytes()
    assert back.rows == range(1, 4)


def test_a_report_with_treatments_comes_back_as_it_was() -> None:
    patient = Patient.of()
    report, watch = patient.treated(Recycle())
    watch.detach()
    assert report.treatments[0].changes
    refused = Refusal("Recycle", "1", np.arange(3), 0, "no reason")
    report = WindowReport(report.window, report.sites, report.treatments, (refused,))
    plain = to_plain(report)
    assert is_plain(plain)
    back = from_plain(WindowReport, through_a_file(plain))
    assert same(back, report)
    assert isinstance(back.treatments[0], Treatment)
    assert back.dead_ratio == report.dead_ratio > 0


def test_what_is_written_and_what_is_read_are_copies() -> None:
    age = np.zeros(2, np.int64)
    plain = to_plain({"age": age})
    back = from_plain(dict[str, npt.NDArray[np.int64]], plain)
    age[0] = 1
    back["age"][1] = 1
    assert plain["age"].tolist() == [0, 0]


@dataclass(frozen=True)
class Odd:
    state: State
    either: int | str
    pair: tuple[int, str]
    roles: set[tuple[str, int]]
    lists: list[Gate]
    tensor: torch.Tensor


def test_enums_unions_pairs_sets_and_tensors_come_back() -> None:
    roles = {("b", 2), ("a", 1)}
    odd = Odd(State.RARE, "x", (1, "y"), roles, [Gate(0, 1)], torch.ones(2))
    plain = to_plain(odd)
    assert is_plain(plain)
    back = from_plain(Odd, through_a_file(plain))
    assert back.state is State.RARE
    assert (back.either, back.pair, back.roles, back.lists) == ("x", (1, "y"), roles, odd.lists)
    assert torch.equal(back.tensor, odd.tensor)
    assert back.tensor is not plain["tensor"] is not odd.tensor


def test_what_has_no_plain_form_is_refused_by_name() -> None:
    with pytest.raises(DeadwatchError, match="Linear cannot be saved"):
        to_plain([nn.Linear(1, 1)])


@pytest.mark.parametrize("value", [{"low": 0.0}, {"low": 0, "high": 1, "odd": 2}, [1, 2]], ids=str)
def test_a_damaged_record_is_refused_by_name(value: Any) -> None:
    with pytest.raises(DeadwatchError, match="saved Gate is damaged: expected the fields"):
        from_plain(Gate, value)


def test_another_version_is_refused_by_both_numbers() -> None:
    require_version(stamped({}))
    with pytest.raises(DeadwatchError, match=rf"version 99, and .* reads version {VERSION}"):
        require_version({"version": 99})


@pytest.mark.parametrize("state", [None, {}, {"model": 1}], ids=str)
def test_what_is_no_saved_state_is_refused(state: Any) -> None:
    with pytest.raises(DeadwatchError, match="no state that deadwatch saved"):
        require_version(state)
