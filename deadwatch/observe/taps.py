"""The hooks. This is the only file that registers hooks; the function mode is in `listen.py`.

Activation modules are seen by hooks, activation functions (``F.relu``, ``x.sigmoid()``) by a
function mode that is on during counted frames (see `frames.py` for what counts). What an
activation module calls inside is its own affair: the call is one site.

A hook launches tensor operations and returns: it never waits for the device. If it fails, its
activation is no longer observed, one warning says so, and training goes on.
"""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from deadwatch.errors import NoSiteWarning
from deadwatch.observe import checkpoint
from deadwatch.observe.accumulate import restart
from deadwatch.observe.calls import Calls
from deadwatch.observe.clock import Clock
from deadwatch.observe.frames import Counting
from deadwatch.observe.gauges import Gauging
from deadwatch.observe.hooks import Hook, remove
from deadwatch.observe.layout import Group, Layout
from deadwatch.observe.listen import Ears
from deadwatch.observe.lookout import forget_graphs
from deadwatch.observe.meter import Meter, told
from deadwatch.observe.places import Place, source_of
from deadwatch.observe.readings import Readings, gauges_of
from deadwatch.observe.reduce import alike, every_rank, is_too_much, merge, mine, rank
from deadwatch.observe.remarks import FAILED
from deadwatch.observe.roll import Roll
from deadwatch.observe.rows import rows_of
from deadwatch.observe.sites import Selection
from deadwatch.observe.strategies import staged, tensor_parallel
from deadwatch.observe.transfer import fetch
from deadwatch.records import Ints, Snapshot, Window


class Taps:
    """Observes the activations of a model while hooks are attached.

    Args:
        model: The model; never written to.
        selection: Which activations to watch.
        every: Moments are taken on every ``every``-th step of a window, beginning with the first;
            None to find that out (`find_interval`).
        counting: Which forwards count.
        gauges: What else is measured; None for nothing.
    """

    def __init__(
        self,
        model: nn.Module,
        selection: Selection,
        every: int | None,
        counting: Counting | None = None,
        gauges: Gauging | None = None,
    ) -> None:
        self.enabled = True
        self._model = model
        self._selection = selection
        self._counting = counting = counting or Counting()
        self._layout = Layout(model, selection, yields=not counting.evaluation)
        self._clock = Clock(every, auto=every is None)
        self._gauges = gauges
        me: Any = weakref.proxy(self)  # no cycle shall keep the model alive
        self._calls = Calls(
            model,
            self._layout,
            selection,
            self._clock,
            counting,
            lambda: me._adjust(),
        )
        self._graph = self._calls.graph
        if gauges is not None:
            self._calls.tracer.inputs = gauges.inputs
            self._calls.gradients = gauges.gradients
        if self._clock.auto:
            self._calls.meter = Meter(next((p.device for p in model.parameters()), _HOST))
        self._attached = False
        self._asleep = False
        self._told_bare = False

    # ── attaching ───────────────────────────────────────────────────────────────────────

    @property
    def attached(self) -> bool:
        """Whether hooks are on the model."""
        return self._attached

    def attach(self) -> None:
        """Register the hooks; does nothing if they are on."""
        self._asleep = False
        if not self._attached:
            self._attached = True
            if not self._counting.evaluation:  # graphs look only at what trains
                forget_graphs(Ears.hears)
            self._calls.lookout.begin()
            self._calls.parallel = bool(tensor_parallel(self._model))
            self._layout.refresh()
            self._graph.traced = self._graph.traced or self._layout.compiled
            self.warn_if_bare(ran=False)
            for group in self._layout.groups:
                self._register(group)
        if self._gauges is not None:
            self._gauges.attach(self._model)
        self._between_steps()

    def __enter__(self) -> Taps:
        self.attach()
        return self

    def __exit__(self, *exception: object) -> None:
        self.detach()

    @property
    def compiled(self) -> bool:
        """Whether compiled code is being watched: it is slow to follow hooks that come and go."""
        return self._graph.traced

    @property
    def outdated(self) -> bool:
        """Whether modules of the model have been replaced since the hooks were put on."""
        return set(self._model.modules()) != set(self._layout.paths)

    def suspend(self) -> None:
        """Count nothing until `attach`; hooks stay on what is compiled, where they cost nothing."""
        if self.compiled:
            self._asleep = True
            self._between_steps()
        else:
            self.detach()

    def warn_if_bare(self, *, ran: bool) -> None:
        """Warn once if there is nothing to watch, for certain or after the model ``ran``."""
        bare = not self._calls.sites and (ran or not self._layout.calls_functions)
        if self._told_bare or not bare or any(place.wanted for place in self._layout.places):
            return
        self._told_bare = True
        warnings.warn(
            "include and exclude leave no activation to watch"
            if self._layout.places
            else "the model holds no activation that can be watched, neither a module nor a "
            "function such as F.relu in a counted forward",
            NoSiteWarning,
            stacklevel=4,
        )

    def detach(self) -> None:
        """Remove every hook; does nothing if none is on."""
        self._attached = False
        self._between_steps()
        self._calls.lookout.end()
        for group in self._layout.groups:
            remove(group.handles)
        if self._gauges is not None:
            self._gauges.detach()

    def _register(self, group: Group) -> None:
        for module, place in group.parts if group.wants_hooks else ():
            if place is None:
                before, after = self._hooks_of_container(module)
            else:
                before, after = self._hooks_of_activation(place)
            # Around an activation itself, inside of the hooks that the user has put there.
            outside = place is None
            pre = module.register_forward_pre_hook(before, prepend=outside, with_kwargs=True)
            post = module.register_forward_hook(after, prepend=not outside, always_call=True)
            group.handles += [pre, post]

    def _hooks_of_container(self, module: nn.Module) -> tuple[Hook, Hook]:
        path = self._layout.path_of(module)

        def before(module: nn.Module, args: Any, kwargs: Any) -> None:
            if not torch.compiler.is_compiling():
                self._calls.enter(module, args, kwargs)
            elif not torch.compiler.is_exporting():
                self._graph.enter(path)

        def after(module: nn.Module, args: Any, output: Any) -> None:
            if not torch.compiler.is_compiling():
                self._calls.leave(module, output)
            elif not torch.compiler.is_exporting():
                self._graph.leave(path)

        return Hook(before, self._calls.meter), Hook(after, self._calls.meter)

    def _hooks_of_activation(self, place: Place) -> tuple[Hook, Hook]:
        def before(module: nn.Module, args: Any, kwargs: Any) -> None:
            if not torch.compiler.is_compiling():
                self._calls.before(place, module, args, kwargs)
            elif not torch.compiler.is_exporting():
                self._graph.before(place, source_of(args, kwargs))

        def after(module: nn.Module, args: Any, output: Any) -> None:
            if not torch.compiler.is_compiling():
                self._calls.after(place, module, output)
            elif not torch.compiler.is_exporting():
                self._graph.after(place, output)

        return Hook(before, self._calls.meter), Hook(after, self._calls.meter)

    def _adjust(self) -> None:
        """Let hooks that depend on the training mode of their layer follow it."""
        for group in self._layout.groups:
            if group.layer is not None and bool(group.handles) != group.wants_hooks:
                remove(group.handles)
                self._register(group)

    # ── steps ───────────────────────────────────────────────────────────────────────────

    def resume(self, *, reports_steps: bool = False) -> None:
        """Count from here on; ``reports_steps`` says in advance that `step` will be called."""
        self.enabled = True
        self._clock.reported = self._clock.reported or reports_steps
        self._between_steps()

    def pause(self) -> None:
        """Count nothing until `resume`."""
        self.enabled = False
        self._between_steps()

    def step(self) -> None:
        """Count one training step."""
        clock = self._clock
        if not clock.reported:
            # Until now each counted forward passed for a step of its own.
            clock.reported, clock.tick = True, clock.start
            for state in self._calls.sites.values():
                state.sampled = min(state.sampled, clock.tick)
        self._calls.next_step()
        if self._gauges is not None:
            sites, in_graph = self._calls.sites.values(), self._graph.traced and self._graph.moments
            self._gauges.step(clock.tick - 1, self._model, sites, in_graph=in_graph)
        self._calls.lookout.step(clock.tick - 1)
        self._between_steps()

    def _between_steps(self) -> None:
        self._calls.counts = self.enabled and self._attached and not self._asleep
        self._calls.between_steps()
        if self._attached:
            self._adjust()

    @property
    def steps(self) -> int:
        """Steps so far: calls of `step`, or counted frames in a loop that never calls it."""
        return self._clock.tick

    # ── reading ─────────────────────────────────────────────────────────────────────────

    def read(self) -> Snapshot:
        """What was measured since the window began, in the order of the data."""
        shapes = {n: tuple(p.shape) for n, p in self._model.named_parameters() if not is_lazy(p)}
        knowledge, sites = self._calls.tracer.knowledge, self._calls.sites.values()
        for state in sites:
            state.hidden = self._calls.lookout.is_hidden(state, self._clock.tick)
            state.lost = state.base in self._calls.given_up
            if knowledge.saw(state.site.name):
                state.resolve(knowledge, shapes)
        ran = {state.base for state in sites}
        places = [place for place in self._layout.places if place.wanted]
        never = [place.unseen() for place in places if place.base not in ran]
        clock = self._clock
        window = Window(clock.window, clock.start, max(clock.start, clock.tick - 1))
        lost = self._calls.given_up
        lost = lost.union(state.site.name for state in sites if state.base in lost)
        found = staged(self._model, (*fetch(list(sites)), *never))
        gauges = None if self._gauges is None else self._gauges.read()
        return Snapshot(window, found, clock.tick, dict.fromkeys(lost, FAILED), gauges)

    def complete(self, snapshot: Snapshot) -> Snapshot:
        """What all ranks measured, with what their gauges come to."""
        readings = snapshot.gauges
        if not isinstance(readings, Readings):
            return snapshot
        return replace(
            snapshot,
            gauges=gauges_of(
                readings, rows_of(self._model, snapshot.sites) if readings.layers else {}
            ),
        )

    def restart(self, ended: Snapshot) -> None:
        """Begin the next window; ``ended`` is what all ranks measured in the last."""
        self.warn_if_bare(ran=True)
        ages = {site.site.name: site.age for site in ended.sites}
        clock = self._clock
        clock.tick = max(clock.tick, ended.steps)  # a rank may have run out of data
        clock.window, clock.start = clock.window + 1, clock.tick
        self._calls.frames.clear()
        if clock.window & (clock.window - 1) == 0:
            # At windows 1, 2, 4, 8 …: the forward may take other ways by now.
            self._calls.traced.clear()
            if self.compiled:
                self._calls.lookout.begin()
        restart(self._calls.sites.values(), ages)
        if self._gauges is not None:
            self._gauges.restart(self._model)
        for place in self._layout.places if not self.compiled else ():
            place.relearn()  # a graph would be compiled anew for every gate
        self._between_steps()

    def find_interval(self, overhead: float, largest: Callable[[int], int]) -> tuple[str, ...]:
        """Find out how often moments are taken from the next window on, if that is still open.

        Args:
            overhead: What watching may add, as a share of a step without it.
            largest: The largest of the numbers that all processes propose, 0 of those that cannot.

        Returns:
            What was found, in words; empty if nothing new was.
        """
        calls = self._calls
        if calls.meter is None:
            return ()
        cost = calls.meter.read()
        proposed = 0 if cost is None else cost.interval(overhead)
        every = largest(_USUAL if self.compiled else proposed)
        if every:
            calls.clock.every, calls.meter.on, calls.meter = every, False, None
        return (told(every, None if self.compiled else cost, overhead),) if every else ()

    def retake(self) -> None:
        """Weights were changed by something else than a training step."""
        if self._gauges is not None:
            self._gauges.retake()

    def forget(self, site: str, units: Ints) -> None:
        """Drop the evidence against units that have just been treated."""
        if site in self._calls.sites:
            self._calls.sites[site].age[units] = 0

    # ── checkpoints ─────────────────────────────────────────────────────────────────────

    def state_dict(self, measured: Snapshot | None = None) -> dict[str, Any]:
        """Where the run stands, in plain values; see `checkpoint.save`."""
        gauges = None if self._gauges is None else self._gauges.state_dict()
        return {**checkpoint.save(self._calls, self._model, measured), "gauges": gauges}

    def gather(self, roll: Roll, own: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Where each process stands, with what else is its ``own``; a collective call.

        Where that would be too much for each of them, one state of all together.
        """
        if not is_too_much(checkpoint.size_of(self._calls)):
            return every_rank({**own, "taps": self.state_dict()})
        taps = self.state_dict(merge(self.read(), roll))
        known = {**taps, "sites": []}
        if not alike(known) or known["gauges"] is not None:  # which is as every rank has it
            taps = checkpoint.merged([{**taps, "gauges": None}, *every_rank(known)])
        return [{**own, "taps": taps}]

    def share_out(self, ranks: list[dict[str, Any]]) -> dict[str, Any]:
        """Go on where the processes stood whose `gather` this is; returns what was one's own.

        If there were as many as now, each goes on as itself. Else the first takes over what all
        had measured; the others know the same, and measure from here on.
        """
        own: dict[str, Any] | None = mine(ranks)
        if own is not None:
            self.load_state_dict(own["taps"])
            return own
        self.load_state_dict(checkpoint.merged([one["taps"] for one in ranks]), empty=rank() > 0)
        return ranks[rank() % len(ranks)]

    def load_state_dict(self, saved: Mapping[str, Any], *, empty: bool = False) -> None:
        """Go on where another run stood; see `checkpoint.load`."""
        checkpoint.load(saved, self._calls, self._layout, self._selection, self._model, empty=empty)
        if self._clock.every:
            self._calls.meter = None
        if self._gauges is not None and saved["gauges"] is not None:
            self._gauges.load(saved["gauges"], empty=empty)
        self._between_steps()


_HOST = torch.device("cpu")

_USUAL = 10
"""The interval where what moments cost cannot be measured, inside of compiled graphs."""
