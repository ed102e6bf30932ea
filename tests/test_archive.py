"""What a run leaves behind and what is read of it, with the reports themselves as the oracle."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deadwatch import State, WindowReport
from deadwatch.show.archive import COUNTS, DETAILS, DORMANT, EVENTS, LAYOUT, UNITS, Archivist, tag
from deadwatch.show.run import Run
from tests.histories import (
    HOSTILE,
    STEPS,
    Log,
    equal,
    halved,
    history,
    outcome,
    refusal,
    site,
    treatment,
    window,
)

WIDTHS = {"act": 5, "a b": 3, "a_20_b": 4, HOSTILE: 1, "never ran": 0}

states = st.integers(0, len(State) - 1)


@st.composite
def runs(draw: st.DrawFn) -> list[WindowReport]:
    """Some windows, of which each has some of the sites, in any order."""
    reports = []
    for index in range(draw(st.integers(1, 5))):
        names = draw(st.permutations(list(WIDTHS)))[: draw(st.integers(0, len(WIDTHS)))]
        sites = [
            site(name, draw(st.lists(states, min_size=n, max_size=n)), seed=draw(st.integers(0, 9)))
            for name, n in ((name, WIDTHS[name]) for name in names)
        ]
        reports.append(window(index, *sites))
    return reports


def holds(run: Run, reports: list[WindowReport], *, detailed: bool) -> None:
    """Whether a run is what the reports of its windows say."""
    assert run.damaged == 0
    assert run.windows == [report.window for report in reports]
    assert {known["name"] for known in run.sites} == {name for r in reports for name in r}
    for name in (known["name"] for known in run.sites):
        found, row = run.units(name), run.row[name]
        for at, report in enumerate(reports):
            _holds(run, name, row, at, report)
            if name not in report:
                assert (found.state[:, at] == State.UNSEEN).all()
                assert not found.kept[at]
                continue
            assert equal(found.state[:, at], report[name].state)
            assert found.kept[at] or not detailed or not report[name].units
            for detail in DETAILS:
                values, expected = found.details[detail][:, at], getattr(report[name], detail)
                kept = bool(found.kept[at]) if detail == "open_fraction" else detailed
                absent = np.isnan(values).all() and not kept
                assert absent or equal(values, halved(expected))


def _holds(run: Run, name: str, row: int, at: int, report: WindowReport) -> None:
    counts = run.counts[row, at]
    if name not in report:
        assert not counts.any()
        assert all(np.isnan(table[row, at]) for table in run.measures.values())
        return
    there = report[name]
    assert counts.tolist() == [int((there.state == state).sum()) for state in State]
    assert (run.dead[row, at], run.judged[row, at]) == (int(there.dead.sum()), there.judged)
    for kind in ("open_fraction", "mean", "std"):
        values = getattr(there, kind)
        measured = values[~np.isnan(values)]
        expected = measured.mean() if len(measured) else np.nan
        assert run.measures[kind][row, at] == pytest.approx(expected, rel=1e-5, nan_ok=True)
    dormancy = there.dormancy[~np.isnan(there.dormancy)]
    share = (dormancy <= DORMANT).mean() if len(dormancy) else np.nan
    assert run.measures["dormant"][row, at] == pytest.approx(share, nan_ok=True)
    assert run.measures["sparsity"][row, at] == pytest.approx(there.sparsity, nan_ok=True)


@settings(deadline=None, max_examples=60)
@given(runs())
def test_a_run_read_back_is_what_its_reports_say(reports: list[WindowReport]) -> None:
    holds(Log().write(reports).run(), reports, detailed=True)


@settings(deadline=None, max_examples=60)
@given(runs(), st.integers(1, 40), st.integers(1, 300))
def test_states_are_right_whatever_the_budget_and_details_not_kept_are_nan(
    reports: list[WindowReport], shares: int, figures: int
) -> None:
    run = Log().write(reports, shares=shares, figures=figures).run()
    holds(run, reports, detailed=False)


def test_every_site_has_its_turn_where_the_budget_is_for_one_of_three() -> None:
    fixed = [site(name, [State.ALIVE] * 8) for name in "abc"]
    reports = [window(i, *fixed) for i in range(9)]
    run = Log().write(reports, shares=8 * 3, figures=8 * 8).run()
    assert [int(run.units(name).kept.sum()) for name in "abc"] == [3, 3, 3]
    means = [run.units(name).details["mean"] for name in "abc"]
    assert [int((~np.isnan(mean)).any(0).sum()) for mean in means] == [3, 3, 3]


def test_a_site_larger_than_the_budget_saves_it_up() -> None:
    wide, small = site("wide", [State.ALIVE] * 40), site("small", [State.ALIVE] * 2)
    run = Log().write([window(i, wide, small) for i in range(9)], shares=30, figures=100).run()
    assert run.units("wide").kept.tolist() == [*[False, False, False, True] * 2, False]
    assert run.units("small").kept.sum() >= 7
    kept = ~np.isnan(run.units("wide").details["mean"]).all(0)
    assert kept.tolist() == [*[False, False, False, True] * 2, False]


def test_figures_that_float16_cannot_hold_are_kept_as_they_are() -> None:
    one = site("act", [State.ALIVE] * 3)
    one.mean[1] = 1e6
    run = Log().write([window(0, one)]).run()
    assert run.units("act").details["mean"][1, 0] == 1e6


def test_figures_that_float32_cannot_hold_are_missing_and_never_zero() -> None:
    blown = replace(site("act", [5, 5], measured=1.0), mean=np.array([1e300, 1e5]))
    run = Log().write([window(0, blown)]).run()
    assert equal(run.units("act").details["mean"][:, 0], [np.nan, 1e5])
    assert equal(run.measures["mean"], [[np.nan]])


def test_sites_that_changed_are_served_first() -> None:
    calm = site("calm", [State.ALIVE] * 4)
    shifting = [site("shifting", [State.ALIVE] * 3 + [i % 6]) for i in range(6)]
    reports = [window(i, calm, one) for i, one in enumerate(shifting)]
    run = Log().write(reports, shares=4 * 3).run()
    assert run.units("shifting").kept.tolist() == [False, *[True] * 5]
    assert not run.units("calm").kept[1:].any()


def test_a_site_that_is_as_before_costs_nothing_once_the_budget_is_spent() -> None:
    reports = [window(i, site("act", [State.DEAD] * 4)) for i in range(5)]
    log = Log().write(reports, shares=1, figures=1)
    assert len(log.tags[f"{UNITS}/act"]) == 1
    assert len(log.tags[COUNTS]) == 5
    assert len(log.tags[LAYOUT]) == 1


# ── sessions ────────────────────────────────────────────────────────────────────────────


def test_a_resumed_run_joins_without_doubled_windows() -> None:
    first, second = history(6, seed=1), history(9, seed=2)
    run = Log().write(first).write(second[4:]).run()
    holds(run, [*first[:4], *second[4:]], detailed=True)


def test_one_view_over_a_run_that_went_back_to_a_checkpoint_joins_it() -> None:
    """In a plain loop view and writer may outlive what they are given."""
    first, again = history(6, seed=1), history(9, seed=1)[3:]
    again[0] = window(3, first[5]["act"])  # as it was in the last window that was written
    run = Log().write([*first, *again]).run()
    holds(run, [*first[:3], *again], detailed=True)


def test_an_event_file_that_is_there_twice_doubles_no_window() -> None:
    reports = [window(i, site("act", [2, 5]), notes=(f"note {i}",)) for i in range(4)]
    log = Log().write(reports)
    for records in log.tags.values():
        records += records
    holds(log.run(), reports, detailed=True)
    assert len(log.run().notes) == 4


def test_a_window_that_is_being_written_is_not_there_before_it_is_whole() -> None:
    reports = history(3)
    archivist, seen = Archivist(), []
    records = [record for report in reports for record in archivist.records(report)]
    for there in range(len(records) + 1):
        log = Log()
        log.add(records[:there])
        run = log.run()
        seen.append(len(run.windows))
        if run.windows:
            holds(run, reports[: len(run.windows)], detailed=True)
    assert seen == sorted(seen)
    assert set(seen) == {0, 1, 2, 3}


def test_a_run_that_was_started_anew_in_the_same_directory_is_the_later_one() -> None:
    second = history(3, seed=2)
    holds(Log().write(history(6, seed=1)).write(second).run(), second, detailed=True)


def test_a_resumed_run_with_other_sites_keeps_those_of_both() -> None:
    first, second = history(4, name="old"), history(6, name="new")
    run = Log().write(first).write(second[3:]).run()
    holds(run, [*first[:3], *second[3:]], detailed=True)


def test_what_the_first_session_told_of_windows_that_were_redone_is_dropped() -> None:
    first = [
        window(i, site("act", [2, 5]), treatments=(treatment(i, [0]),), notes=(f"first {i}",))
        for i in range(4)
    ]
    second = [window(i, site("act", [2, 5]), notes=(f"second {i}",)) for i in range(2, 5)]
    run = Log().write(first).write(second).run()
    assert [done["window"] for done in run.treatments] == [0, 1]
    told = [note["text"] for note in run.notes]
    assert told == ["first 0", "first 1", "second 2", "second 3", "second 4"]


def test_a_site_that_appears_later_is_unseen_before() -> None:
    early, late = site("early", [5, 5]), site("late", [2, 5, 5])
    reports = [window(0, early), window(1, early, late), window(2, late)]
    run = Log().write(reports).run()
    holds(run, reports, detailed=True)
    assert run.units("late").state[:, 0].tolist() == [State.UNSEEN] * 3


def test_a_site_that_ran_late_has_its_units_from_then_on() -> None:
    reports = [window(0, site("act", [])), window(1, site("act", [2, 5]))]
    run = Log().write(reports).run()
    assert run.sites[0]["units"] == 2
    assert run.units("act").state.tolist() == [[0, 2], [0, 5]]
    assert run.counts[0, 0].tolist() == [0] * 6


# ── what was done ───────────────────────────────────────────────────────────────────────


def test_treatments_refusals_notes_and_outcomes_are_read_back() -> None:
    done, refused = treatment(0, [1, 2], note="γ 0.5"), refusal(0, [3])
    report = window(
        *(0, site("act", [2, 5, 5, 5])),
        treatments=(done,),
        refusals=(refused,),
        notes=("left alone",),
        outcomes=(outcome(),),
    )
    run = Log().write([report]).run()
    (read,) = run.treatments
    assert read == {
        "remedy": "Recycle",
        "site": "act",
        "units": [1, 2],
        "window": 0,
        "step": STEPS,
        "quiet": True,
        "note": "γ 0.5",
    }
    texts = [note["text"] for note in run.notes]
    assert texts == ["left alone", "Swap refused on 1 units of act: it is shared"]
    assert run.outcomes == [{**vars(outcome()), "open": outcome().open}]


def test_what_is_told_later_of_a_window_adds_to_what_was_told() -> None:
    """Lightning treats after a window was written; a reader may keep the later record alone."""
    verdict = window(3, site("act", [2, 5]), notes=("two epochs of evidence",))
    done = window(3, site("act", [2, 5]), treatments=(treatment(3, [0]),), outcomes=(outcome(),))
    archivist, log = Archivist(), Log()
    log.add(archivist.records(verdict))
    log.add(archivist.events(done))
    whole = log.run()
    assert len(log.tags[EVENTS]) == 2
    del log.tags[EVENTS][0]
    for run in (whole, log.run()):
        assert [done["units"] for done in run.treatments] == [[0]]
        assert [note["text"] for note in run.notes] == ["two epochs of evidence"]
        assert len(run.outcomes) == 1


def test_two_names_that_share_a_tag_stay_two_sites() -> None:
    assert tag("a b") == tag("a_20_b")
    reports = [window(i, site("a b", [2, 5]), site("a_20_b", [5, 5])) for i in range(2)]
    holds(Log().write(reports).run(), reports, detailed=True)


def test_a_run_without_records_is_empty() -> None:
    run = Log().run()
    assert (run.windows, run.sites, run.treatments, run.notes, run.outcomes) == ([],) * 5
    assert run.counts.shape == (0, 0, len(State))
