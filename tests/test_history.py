"""How units died: each cause from the evidence that speaks for it, and from no other."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from deadwatch.judge.history import History
from deadwatch.records import (
    Death,
    Gate,
    Gauges,
    Rows,
    Site,
    SiteReport,
    State,
    Update,
    Window,
    WindowReport,
    Wire,
)

STEPS = 100


def site(name: str, weight: str) -> Site:
    wire = Wire("linear", weight.partition(".")[0], weight, None, units=range(4), shape=(4, 3))
    return Site(name, name, 1, "ReLU", Gate(0.0, np.inf), producers=(wire,), producers_note="")


SITES = (site("a", "0.weight"), site("b", "2.weight"))


def measured(where: Site, dead: Sequence[int], mean: float, **given: Any) -> SiteReport:
    """Four units, some dead, with one mean pre-activation for those and 1 for the others."""
    state = np.full(4, State.ALIVE)
    state[list(dead)] = given.pop("state", State.DEAD)
    means = np.where(state == State.ALIVE, 1.0, mean)
    shares = np.where(state == State.ALIVE, given.pop("open_fraction", 0.5), 0.0)
    nan = np.full(4, np.nan)
    figures = {"min": nan, "max": nan, "mean_abs": nan, "mean_out": nan, "dormancy": nan}
    arrays = {**figures, "nonfinite": nan, "std": np.ones(4), "age": np.zeros(4, np.int64)}
    return SiteReport(
        where, 500, state, mean=means, open_fraction=shares, sparsity=0.5, **arrays, **given
    )


def rows(bias: float = 0.0, sketch: float = 1.0) -> Rows:
    """Rows of size 1 that lie at ``sketch`` along one direction."""
    return Rows(np.full(4, bias), np.ones(4), np.full((4, 1), sketch))


def window(index: int, *, dead: Sequence[int] = (), mean: float = -3.0, **given: Any) -> Any:
    """The report of a window; ``a`` is alive, unless it is said otherwise."""
    above: Mapping[str, Rows] = {"a": given.pop("rows_a", rows()), "b": given.pop("rows", rows())}
    gauges = Gauges(rows=above, **given.pop("gauges", {}))
    first = measured(SITES[0], given.pop("dead_a", ()), -3.0)
    second = measured(SITES[1], dead, mean, **given)
    when = Window(index, STEPS * index, STEPS * index + STEPS - 1)
    return WindowReport(when, {"a": first, "b": second}, gauges=gauges)


def followed(*windows: WindowReport) -> tuple[Death, ...]:
    history = History()
    found: tuple[Death, ...] = ()
    for one in windows:
        found = history.follow(one)
    return found


def test_units_that_were_never_open_are_dead_from_birth() -> None:
    (death,) = followed(window(0, dead=[1, 3]), window(1, dead=[1, 3]))
    assert (death.site, death.cause, death.window) == ("b", "birth", -1)
    assert death.units.tolist() == [1, 3]


def test_units_that_were_uncertain_before_they_were_judged_are_dead_from_birth() -> None:
    early = window(0, dead=[1], state=State.UNCERTAIN)
    assert not followed(early)
    (death,) = followed(early, window(1, dead=[1]))
    assert death.cause == "birth"


LEAP = {"2.weight": Update(mean=0.02, peak=1.5, peak_step=150, steps=100)}
STEADY = {"2.weight": Update(mean=0.002, peak=0.004, peak_step=150, steps=100)}


def last(step: int) -> dict[str, Any]:
    return {"last_open": {"b": np.full(4, step)}}


def test_units_that_fell_silent_at_a_step_that_stands_out_died_of_it() -> None:
    leap = window(1, gauges={"updates": LEAP, **last(148)})
    (death,) = followed(window(0), leap, window(2, dead=[0, 2]))
    assert (death.cause, death.window, death.weight) == ("update", 1, "2.weight")
    assert death.update == LEAP["2.weight"]
    assert death.steps == (148, 200)
    assert death.before["mean"] == 1
    assert death.after["mean"] == -3


@pytest.mark.parametrize("step", [20, 170], ids=["long before", "afterwards"])
def test_units_that_were_silent_before_it_or_open_afterwards_did_not_die_of_it(step: int) -> None:
    leap = window(1, gauges={"updates": LEAP, **last(step)}, rows=rows(sketch=2.0))
    (death,) = followed(window(0), leap, window(2, dead=[0]))
    assert death.cause == ("weights" if step > 100 else "update")


def test_units_behind_a_layer_with_a_large_update_may_have_died_of_it() -> None:
    leap = {"0.weight": LEAP["2.weight"]}
    gauges = {"updates": leap, **last(148)}
    (death,) = followed(window(0), window(1, gauges=gauges), window(2, dead=[0]))
    assert (death.cause, death.weight) == ("update", "0.weight")


def test_a_large_update_of_a_later_layer_kills_nobody_before_it() -> None:
    gauges = {"updates": LEAP, "last_open": {"a": np.full(4, 148)}}
    deaths = followed(window(0), window(1, gauges=gauges), window(2, dead_a=[0]))
    assert [death.cause for death in deaths] == ["data"]


def test_units_die_of_updates_that_are_all_too_large() -> None:
    rush = {"2.weight": Update(mean=0.2, peak=0.3, peak_step=101, steps=100)}
    (death,) = followed(
        window(0), window(1, gauges={"updates": rush, **last(190)}), window(2, dead=[0])
    )
    assert death.cause == "update"


def test_units_whose_bias_fell_died_of_that() -> None:
    falling = [
        window(index, rows=rows(bias=-index), gauges={"updates": STEADY}) for index in range(3)
    ]
    (death,) = followed(*falling, window(3, dead=[2], mean=-0.5, rows=rows(bias=-3)))
    assert (death.cause, death.window) == ("bias", 2)
    assert death.before["bias"] == -1  # as the window began in which it was open as usual
    assert death.after["bias"] == -2


def test_a_bias_is_compared_with_that_of_when_the_unit_was_open_as_usual() -> None:
    usual = window(0)
    fading = [
        window(index, rows=rows(bias=-index), open_fraction=0.01, gauges={"updates": STEADY})
        for index in (1, 2)
    ]
    history = History()
    history.begin({"a": rows(), "b": rows()})
    for one in (usual, *fading):
        history.follow(one)
    (death,) = history.follow(window(3, dead=[2], rows=rows(bias=-3)))
    assert death.cause == "bias"
    assert (death.before["bias"], death.before["open_fraction"]) == (0, 0.5)


def test_units_that_hardly_moved_were_left_behind_by_the_data() -> None:
    (death,) = followed(
        window(0), window(1, rows=rows(sketch=1.02)), window(2, dead=[0], rows=rows(sketch=1.03))
    )
    assert death.cause == "data"
    assert death.after["moved"] == pytest.approx(0.02)


def test_a_small_movement_far_from_zero_may_be_what_closed_a_unit() -> None:
    moved = rows(sketch=1.05)
    high = window(0)
    b = high["b"]
    far = SiteReport(**{**vars(b), "mean": np.full(4, 100.0)})
    high = WindowReport(high.window, {**high.sites, "b": far}, gauges=high.gauges)
    later = WindowReport(
        window(1).window, high.sites, gauges=window(1, rows=moved).gauges
    )  # 5% of 100 explains a fall by 5
    (death,) = followed(high, later, window(2, dead=[0], mean=95.0, rows=moved))
    assert death.cause == "unknown"


@pytest.mark.parametrize("moving", ["rows", "rows_a"])
def test_units_whose_weights_or_those_before_them_moved_died_of_that(moving: str) -> None:
    moved = {moving: rows(sketch=1.4)}
    (death,) = followed(window(0), window(1, **moved), window(2, dead=[0], **moved))
    assert death.cause == "weights"


def test_where_too_little_was_measured_the_cause_is_not_known() -> None:
    blind = Gauges()
    windows = [
        WindowReport(one.window, one.sites, gauges=blind)
        for one in (window(0), window(1), window(2, dead=[0]))
    ]
    (death,) = followed(*windows)
    assert death.cause == "unknown"
    assert "moved" not in death.after
    assert "bias" not in death.before
    assert np.isnan(death.rate)


def test_a_pre_activation_that_did_not_fall_is_no_work_of_the_data() -> None:
    (death,) = followed(window(0), window(1), window(2, dead=[0], mean=1.5))
    assert death.cause == "unknown"


def test_units_that_came_back_have_no_cause_until_they_die_again() -> None:
    history = History()
    for one in (window(0, dead=[0]), window(1), window(2)):
        deaths = history.follow(one)
    assert deaths == ()
    (death,) = history.follow(window(3, dead=[0]))
    assert (death.cause, death.window) == ("data", 2)


def test_units_of_one_site_are_told_by_cause_and_window() -> None:
    deaths = followed(window(0, dead=[0]), window(1, dead=[0]), window(2, dead=[0, 1, 2]))
    assert [(death.cause, death.units.tolist()) for death in deaths] == [
        ("birth", [0]),
        ("data", [1, 2]),
    ]


def test_a_window_in_which_a_site_did_not_run_changes_nothing() -> None:
    unseen = window(1)
    gone = measured(SITES[1], [0, 1, 2, 3], np.nan, state=State.UNSEEN)
    gone = SiteReport(**{**vars(gone), "samples": 0})
    hidden = WindowReport(unseen.window, {**unseen.sites, "b": gone}, gauges=unseen.gauges)
    assert not followed(window(0), hidden)
    (death,) = followed(window(0), hidden, window(2, dead=[0]))
    assert death.window == 0


def test_units_that_died_of_a_step_while_their_site_did_not_run_are_told_of_it() -> None:
    leap = window(1, gauges={"updates": LEAP, **last(98)})
    gone = measured(SITES[1], [0, 1, 2, 3], np.nan, state=State.UNSEEN)
    gone = SiteReport(**{**vars(gone), "samples": 0})
    hidden = WindowReport(leap.window, {**leap.sites, "b": gone}, gauges=leap.gauges)
    rush = {"2.weight": Update(mean=0.2, peak=0.3, peak_step=101, steps=100)}
    hidden = replace(hidden, gauges=replace(leap.gauges, updates=rush))
    (death,) = followed(window(0), hidden, window(2, dead=[0]))
    assert (death.cause, death.window, death.update) == ("update", 0, rush["2.weight"])


def test_the_largest_rate_of_the_window_of_death_is_told() -> None:
    gauges = {"rates": ((0.1, 0.3), (0.2, 0.2))}
    (death,) = followed(window(0), window(1, gauges=gauges), window(2, dead=[0]))
    assert death.rate == 0.3


def test_a_history_that_was_saved_goes_on_as_if_it_had_not_been() -> None:
    leap = window(1, gauges={"updates": LEAP, **last(148), "rates": ((0.1, 0.3),)})
    windows = [window(0, dead=[3]), leap, window(2, dead=[0, 3]), window(3, dead=[0, 1, 3])]
    for cut in range(1, len(windows)):
        history = History()
        for one in windows[:cut]:
            history.follow(one)
        state = torch.load(_saved(history.state_dict()), weights_only=True)
        resumed = History()
        resumed.load_state_dict(state)
        for one in windows[cut:]:
            assert told(resumed.follow(one)) == told(history.follow(one))


def _saved(state: Any) -> Any:
    buffer = io.BytesIO()
    torch.save(state, buffer)
    buffer.seek(0)
    return buffer


def told(deaths: tuple[Death, ...]) -> list[str]:
    return list(map(repr, deaths))
