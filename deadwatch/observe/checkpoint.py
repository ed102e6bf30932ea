"""What a checkpoint keeps of the observations, so that a resumed run goes on where it stopped."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import nn

from deadwatch.activations import readable
from deadwatch.errors import DeadwatchError, ResumeWarning
from deadwatch.observe.accumulate import SiteState
from deadwatch.observe.calls import Calls
from deadwatch.observe.knowledge import Knowledge
from deadwatch.observe.layout import Layout
from deadwatch.observe.progress import Progress, as_one
from deadwatch.observe.sites import Selection
from deadwatch.plain import from_plain, to_plain
from deadwatch.records import Snapshot


def save(calls: Calls, model: nn.Module, measured: Snapshot | None = None) -> dict[str, Any]:
    """The window so far, and what is known of sites and wiring, in plain values.

    Args:
        calls: What is kept.
        model: The model.
        measured: What all processes measured; None for what this one did.
    """
    paths = {module: readable(path) for path, module in model.named_modules()}
    return {
        "clock": {name: getattr(calls.clock, name) for name in _OF_CLOCK},
        "interval": calls.clock.every if calls.clock.auto else None,
        "sites": [_site(state, calls) for state in _states(calls, measured)],
        "wiring": to_plain(calls.tracer.knowledge),
        "traced": sorted(paths[module] for module in calls.traced if module in paths),
        "given_up": sorted(calls.given_up),
    }


_OF_CLOCK = ("tick", "reported", "window", "start")


def _site(state: SiteState, calls: Calls) -> dict[str, Any]:
    saved = state.state_dict()
    if calls.graph.traced:  # graphs take moments by the clock and do not note when
        saved["sampled"] = max(state.sampled, calls.clock.last_moments)
    return saved


def size_of(calls: Calls) -> int:
    """Bytes of the statistics that `save` takes, on the whole."""
    return sum(t.nbytes for state in calls.sites.values() for t in state.data.values())


def _states(calls: Calls, measured: Snapshot | None) -> Iterator[SiteState]:
    found = dict(calls.sites)
    for snap in measured.sites if measured is not None else ():
        if snap.data:
            found[snap.site.name] = SiteState.of(snap, found.get(snap.site.name))
    yield from found.values()


def load(
    saved: Mapping[str, Any],
    calls: Calls,
    layout: Layout,
    selection: Selection,
    model: nn.Module,
    *,
    empty: bool,
) -> None:
    """Take over what `save` returned.

    Args:
        saved: That.
        calls: Where it goes; nothing may have been counted yet.
        layout: The modules of the model.
        selection: Which activations to watch.
        model: The model.
        empty: Whether another process takes over what was measured in the window so far.

    Raises:
        DeadwatchError: Forwards have been counted already.
    """
    if calls.clock.tick or calls.sites:
        raise DeadwatchError(
            "the state is loaded after forwards have been counted; make a new Watch and load it "
            "before the first forward"
        )
    for name in _OF_CLOCK:
        setattr(calls.clock, name, saved["clock"][name])
    calls.clock.every = calls.clock.every or saved["interval"]
    modules = {readable(path): module for path, module in model.named_modules()}
    states = [SiteState.load(site) for site in saved["sites"]]
    kept = [state for state in states if _is_there(state, layout, selection, modules)]
    _warn_of_others(states, kept)
    for state in kept:
        calls.sites[state.site.name] = state
        if empty:
            sampled = state.sampled
            state.restart(state.age)
            state.sampled = sampled  # all processes take moments on the same steps
    calls.tracer.knowledge = from_plain(Knowledge, saved["wiring"])
    calls.traced = {modules[path] for path in saved["traced"] if path in modules}
    calls.given_up = set(saved["given_up"])
    _load_places(kept, layout, calls.given_up)


def merged(saved: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """One state out of those of several processes, as if one had seen all their data.

    Ages, steps and intervals are the same on all that have them, and so is the rest of what is
    known of a site; what was measured adds up.
    """
    states: dict[str, SiteState] = {}
    knowledge = Knowledge()
    for one in saved:
        knowledge.learn(from_plain(Knowledge, one["wiring"]))
        for site in map(SiteState.load, one["sites"]):
            known = states.setdefault(site.site.name, site)
            if known is not site and known.units == site.units:
                known.merge(site)
    return {
        "clock": {name: max(one["clock"][name] for one in saved) for name in _OF_CLOCK},
        "interval": saved[0]["interval"],
        "sites": [state.state_dict() for state in states.values()],
        "wiring": to_plain(knowledge),
        "traced": sorted({path for one in saved for path in one["traced"]}),
        "given_up": sorted({name for one in saved for name in one["given_up"]}),
        "gauges": _gauges([one["gauges"] for one in saved]),
    }


def _gauges(saved: Sequence[Mapping[str, Any] | None]) -> dict[str, Any] | None:
    ranks = [from_plain(Progress, one) for one in saved if one is not None]
    found: dict[str, Any] | None = to_plain(as_one(ranks)) if ranks else None
    return found


def _is_there(
    state: SiteState, layout: Layout, selection: Selection, modules: Mapping[str, nn.Module]
) -> bool:
    if state.site.functional:
        return readable(state.site.module) in modules and selection.wants(state.base)
    return any(place.wanted and place.base == state.base for place in layout.places)


def _warn_of_others(states: list[SiteState], kept: list[SiteState]) -> None:
    others = [state.site.name for state in states if state not in kept]
    if others:
        warnings.warn(
            f"the saved state knows activations that are not watched now, and that part of it is "
            f"left out: {', '.join(others)}",
            ResumeWarning,
            stacklevel=5,
        )


def _load_places(states: list[SiteState], layout: Layout, given_up: set[str]) -> None:
    """Give modules the gates that they had when the window began; they may be learned."""
    gates = {(state.base, state.site.activation): state.gate for state in states}
    for place in layout.places:
        candidate = place.candidate
        gate = gates.get((place.base, candidate.activation), candidate.gate)
        place.candidate = replace(candidate, gate=gate)
        place.waiting = [state for state in states if state.base == place.base]
        place.failed = place.base in given_up
