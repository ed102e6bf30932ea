"""The roll is the same on all ranks after each window, and nobody repeats what all know."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deadwatch.observe.roll import Entry, Roll, digest, entry_of
from deadwatch.records import Gate, Share, Site, SiteSnapshot, Wire

RELU = Gate(0.0, np.inf)


def snap(name: str, units: int = 3, readers: Sequence[str] = ("reader",)) -> SiteSnapshot:
    wires = tuple(Wire("linear", reader, f"{reader}.weight", None) for reader in readers)
    made = (Wire("linear", "maker", "maker.weight", "maker.bias"),)
    site = Site(name, name, 1, "ReLU", RELU, -1, made, wires, "", "", ndim=2)
    return SiteSnapshot(site, 5, {}, np.zeros(units, np.int64), np.ones(units, np.bool_))


def exchange(rolls: list[Roll], sites: list[list[SiteSnapshot]]) -> int:
    """What `reduce` does; returns how many entries were sent, beside digests."""
    news = [roll.news(own) for roll, own in zip(rolls, sites, strict=True)]
    if len(set(map(digest, news))) == 1:
        for roll, own in zip(rolls, sites, strict=True):
            roll.settle(news[0])
            roll.told(own)
        return 0
    answers = [roll.answer(news[0], own) for roll, own in zip(rolls, news, strict=True)]
    for roll, own in zip(rolls, sites, strict=True):
        roll.combine(news[0], answers)
        roll.told(own)
    return len(news[0]) + sum(len(others) for others, _ in answers)


SITES = st.lists(
    st.builds(
        snap,
        st.sampled_from("abcd"),
        st.sampled_from([0, 3, 3, 3, 4]),
        st.lists(st.sampled_from("xyz"), min_size=1, unique=True),
    ),
    unique_by=lambda snap: snap.site.name,
)


@settings(max_examples=40)
@given(st.lists(st.tuples(SITES, SITES, SITES), min_size=1, max_size=4))
def test_all_ranks_have_the_same_roll_after_every_window(
    windows: list[tuple[list[SiteSnapshot], ...]],
) -> None:
    rolls = [Roll() for _ in range(3)]
    for window in windows:
        exchange(rolls, list(window))
        assert list(rolls[0].entries.items()) == list(rolls[1].entries.items())
        assert list(rolls[0].entries.items()) == list(rolls[2].entries.items())
        aligned = [roll.align(own) for roll, own in zip(rolls, window, strict=True)]
        for one, *others in zip(*aligned, strict=True):
            assert all(other.site == one.site for other in others)
        assert {s.site.name for own in window for s in own} <= set(rolls[0].entries)
        # What all have told is not told again.
        assert not any(roll.news(own) for roll, own in zip(rolls, window, strict=True))


def test_the_same_news_are_not_sent() -> None:
    rolls = [Roll(), Roll()]
    sites = [[snap("a"), snap("b")] for _ in rolls]
    assert exchange(rolls, sites) == 0
    assert list(rolls[0].entries) == ["a", "b"]
    assert exchange(rolls, [[*own, snap("c")] for own in sites]) == 0


def test_only_what_differs_is_sent_and_once() -> None:
    rolls = [Roll(), Roll()]
    many = [snap(f"s{index}") for index in range(50)]
    assert exchange(rolls, [many, many]) == 0
    assert exchange(rolls, [many, [*many, snap("late")]]) == 1
    assert exchange(rolls, [many, [*many, snap("late")]]) == 0
    assert exchange(rolls, [[*many, snap("late")], [*many, snap("late")]]) == 0


def test_readers_that_any_rank_has_seen_are_readers_on_all() -> None:
    rolls = [Roll(), Roll()]
    exchange(rolls, [[snap("a", readers="x")], [snap("a", readers="xy")]])
    for roll in rolls:
        assert [wire.module for wire in roll.entries["a"][0].consumers] == ["x", "y"]
        assert not roll.entries["a"][0].consumers_note


def test_a_wiring_that_one_rank_does_not_understand_is_understood_on_none() -> None:
    lost = snap("a")
    note = "it goes through a sort"
    lost = replace(lost, site=replace(lost.site, consumers=(), consumers_note=note))
    rolls = [Roll(), Roll()]
    exchange(rolls, [[snap("a")], [lost]])
    for roll in rolls:
        assert roll.entries["a"][0].consumers == ()
        assert roll.entries["a"][0].consumers_note == note


def test_layers_that_differ_between_ranks_make_a_site_that_cannot_be_treated() -> None:
    other = snap("a")
    made = (Wire("linear", "other", "other.weight", None),)
    other = replace(other, site=replace(other.site, producers=made))
    rolls = [Roll(), Roll()]
    exchange(rolls, [[snap("a")], [other]])
    assert rolls[0].entries["a"][0].producers == ()
    assert "other layers feed it on other processes" in rolls[1].entries["a"][0].producers_note


def test_a_rank_that_has_not_traced_yet_takes_over_what_others_know() -> None:
    known = snap("a")
    fresh = replace(known, site=Site("a", "a", 1, "ReLU", RELU, -1, ndim=2))
    for order in ([known, fresh], [fresh, known]):
        rolls = [Roll(), Roll()]
        exchange(rolls, [[one] for one in order])
        assert rolls[0].entries["a"] == rolls[1].entries["a"] == entry_of(known)


def test_what_all_ranks_know_otherwise_now_replaces_what_they_knew() -> None:
    rolls = [Roll(), Roll()]
    exchange(rolls, [[snap("a", readers="x")]] * 2)
    # Something else is new on one rank alone, so that all is exchanged.
    exchange(rolls, [[snap("a", readers="y")], [snap("a", readers="y"), snap("b")]])
    assert [wire.module for wire in rolls[0].entries["a"][0].consumers] == ["y"]


@pytest.mark.parametrize("units", [(3, 4), (4, 3)])
def test_a_site_with_another_width_on_each_rank_is_apart(units: tuple[int, int]) -> None:
    rolls = [Roll(), Roll()]
    sites = [[snap("a", one)] for one in units]
    exchange(rolls, sites)
    for roll, own in zip(rolls, sites, strict=True):
        assert "not the same number of units" in roll.conflict("a")
        (aligned,) = roll.align(own)
        assert (aligned.units, aligned.samples, aligned.data) == (0, 0, {})


def test_a_site_that_never_ran_here_has_the_units_that_it_has_elsewhere() -> None:
    rolls = [Roll(), Roll()]
    never = snap("a", 0)
    exchange(rolls, [[never], [snap("a")]])
    (aligned,) = rolls[0].align([never])
    assert (aligned.units, aligned.samples) == (3, 0)


def test_any_difference_between_two_sites_shows_in_the_digest() -> None:
    one = snap("a").site
    others = [
        replace(one, unit_dim=1),
        replace(one, gate=Gate(0.0, 6.0)),
        replace(one, consumers=(replace(one.consumers[0], padded=True),)),
        replace(one, consumers=(replace(one.consumers[0], branch=1),)),
        replace(one, consumers=()),
    ]
    entries: list[Entry] = [(site, 3, Share()) for site in (one, *others)]
    entries += [(one, 4, Share()), (one, 3, Share(total=3)), (one, 3, Share(stages=(1,)))]
    found = {digest([entry]) for entry in entries} | {digest([])}
    assert len(found) == len(others) + 5
    assert digest([(one, 3, Share())]) == digest([(replace(one), 3, Share())])
    assert all(0 <= number < 1 << 62 for number in found)


def test_pipeline_stages_of_one_name_are_apart() -> None:
    rolls = [Roll(), Roll()]
    sites = [[replace(snap("a"), share=Share(stages=(stage,)))] for stage in range(2)]
    exchange(rolls, sites)
    for roll in rolls:
        assert "pipeline stages 0 and 1 each have" in roll.conflict("a")


def test_parts_of_a_sharded_site_are_one() -> None:
    rolls = [Roll(), Roll()]
    parts = [replace(snap("a"), share=Share(first, total=6)) for first in (0, 3)]
    assert exchange(rolls, [[part] for part in parts]) == 0
    for roll, part in zip(rolls, parts, strict=True):
        assert not roll.conflict("a")
        (aligned,) = roll.align([part])
        assert aligned.share.first == part.share.first
        assert len(roll.align([])[0].age) == 6
