"""The hooks. This is the only file that registers hooks or enters a function mode.

Activation modules are seen by hooks, activation functions (``F.relu``, ``x.sigmoid()``) by a
function mode that is on during counted frames (see `frames.py` for what counts). What an
activation module calls inside is its own affair: the call is one site.

A hook launches tensor operations and returns: it never waits for the device. If it fails, its
activation is no longer observed, one warning says so, and training goes on.
"""

from __future__ import annotations

import sys
import threading
import warnings
from collections import Counter
from collections.abc import Mapping
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from deadwatch.errors import AmbiguousUnitDimWarning, NoSiteWarning, SiteDisabledWarning
from deadwatch.observe.accumulate import SiteState, fetch
from deadwatch.observe.frames import Counting, CurrentFrame, Frame
from deadwatch.observe.functions import FunctionalCall, Row
from deadwatch.observe.hooks import (
    Eager,
    Hook,
    forget_graphs,
    is_real,
    is_running,
    no_dispatch_modes,
    remove,
)
from deadwatch.observe.ingraph import InGraph
from deadwatch.observe.layout import Group, Layout
from deadwatch.observe.listen import Ears
from deadwatch.observe.places import Place, call_name, source_of
from deadwatch.observe.sites import Selection, assumed_unit_dim, function_base, pre_activation
from deadwatch.observe.wiring import Tracer
from deadwatch.records import Ints, Site, Snapshot, Window


class Taps:
    """Observes the activations of a model while hooks are attached.

    Args:
        model: The model; never written to.
        selection: Which activations to watch.
        every: Moments are taken on every ``every``-th step of a window, beginning with the first.
        counting: Which forwards count.
    """

    def __init__(
        self, model: nn.Module, selection: Selection, every: int, counting: Counting | None = None
    ) -> None:
        self.enabled = True
        self._model = model
        self._selection = selection
        self._every = every
        self._counting = counting or Counting()
        self._layout = Layout(model, selection)
        self._places: dict[str, Place] = {place.base: place for place in self._layout.places}
        self._sites: dict[str, SiteState] = {}  # in the order of the data
        self._current = CurrentFrame()
        self._graph = InGraph(model, self._find_function, lambda: self._current.frame is not None)
        self._ears = Ears(self, self._graph)
        self._lock = threading.Lock()
        self._tracer = Tracer(model)
        self._tracing: Frame | None = None
        self._traced: set[nn.Module] = set()
        self._eager = Eager()
        self._met: set[nn.Module] = set()  # parts that have run since `_look_around`
        self._attached = False
        self._asleep = False
        self._told_bare = False
        self._tick = 0
        self._reported = False
        self._window = 0
        self._window_start = 0

    # ── attaching ───────────────────────────────────────────────────────────────────────

    @property
    def _counts(self) -> bool:
        return self.enabled and self._attached and not self._asleep

    @property
    def attached(self) -> bool:
        """Whether hooks are on the model."""
        return self._attached

    def attach(self) -> None:
        """Register the hooks; does nothing if they are on."""
        self._asleep = False
        if self.attached:
            return
        self._attached = True
        forget_graphs()
        self._look_around()
        self._layout.refresh()
        self._warn_if_bare()
        for group in self._layout.groups:
            self._register(group)

    def suspend(self) -> None:
        """Count nothing until `attach`; hooks stay on what is compiled, where they cost nothing."""
        if self._graph.traced:
            self._asleep = True
            self._end_frame()
        else:
            self.detach()

    def _look_around(self) -> None:
        """Let the next forward of every part run uncompiled, so that its sites are found."""
        self._graph.missed = False
        self._met.clear()
        self._eager.begin()

    def _warn_if_bare(self) -> None:
        wanted = any(place.wanted for place in self._layout.places)
        if wanted or self._layout.calls_functions or self._told_bare:
            return
        self._told_bare = True
        warnings.warn(
            "include and exclude leave no activation to watch"
            if self._layout.places
            else "the model holds no activation that can be watched",
            NoSiteWarning,
            stacklevel=4,
        )

    def detach(self) -> None:
        """Remove every hook; does nothing if none is on."""
        self._attached = False
        self._end_frame()
        self._eager.end()
        for group in self._layout.groups:
            remove(group.handles)

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
                self._enter(module, args, kwargs)
            elif not torch.compiler.is_exporting():
                self._graph.enter(path)

        def after(module: nn.Module, args: Any, output: Any) -> None:
            if not torch.compiler.is_compiling():
                self._leave(module, output)
            elif not torch.compiler.is_exporting():
                self._graph.leave(path)

        return Hook(before), Hook(after)

    def _hooks_of_activation(self, place: Place) -> tuple[Hook, Hook]:
        def before(module: nn.Module, args: Any, kwargs: Any) -> None:
            if not torch.compiler.is_compiling():
                self._before(place, module, args, kwargs)
            elif not torch.compiler.is_exporting():
                self._graph.before(place, source_of(args, kwargs))

        def after(module: nn.Module, args: Any, output: Any) -> None:
            if not torch.compiler.is_compiling():
                self._after(place, module, output)
            elif not torch.compiler.is_exporting():
                self._graph.after(place, output)

        return Hook(before), Hook(after)

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
        self._reported = self._reported or reports_steps
        self._between_steps()

    def pause(self) -> None:
        """Count nothing until `resume`."""
        self.enabled = False
        self._between_steps()

    def step(self) -> None:
        """Count one training step."""
        if not self._reported:
            # Until now each counted forward passed for a step of its own.
            self._tick = self._window_start
            for state in self._sites.values():
                state.sampled = min(state.sampled, self._tick)
        self._tick += 1
        self._reported = True
        if self._graph.missed:
            self._look_around()
        elif self._met:
            self._eager.end()
        self._between_steps()

    def _between_steps(self) -> None:
        self._end_frame()
        self._graph.moments = (self._tick - self._window_start) % self._every == 0
        if self._attached:
            self._adjust()

    @property
    def steps(self) -> int:
        """Steps so far: calls of `step`, or counted frames in a loop that never calls it."""
        return self._tick

    # ── frames ──────────────────────────────────────────────────────────────────────────

    def _enter(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        frame = self._current.running()
        if frame is None:
            # 0 is this function, 1 and 2 the hook, 3 the module call that ran it.
            frame = self._begin_frame(module, sys._getframe(3))
        frame.modules.append(module)
        if self._graph.traced:
            self._graph.weigh(frame.counted and self._counting.call())
        if frame.counted and frame.quiet is None:
            reason = self._layout.must_not_listen(module)
            if reason:
                frame.quiet = module
                self._ears.stop()
                if self._tracing is frame:
                    self._tracer.overlook(module, (args, kwargs), reason)

    def _leave(self, module: nn.Module, output: Any) -> None:
        frame = self._current.frame
        if frame is None:
            return
        if frame.quiet is module:
            frame.quiet = None
            self._ears.listen(frame)
        if frame.leave(module):
            # The hook also runs when the forward raised.
            if self._tracing is frame and sys.exc_info()[1] is frame.error:
                self._finish_trace(module, output)
            self._end_frame()
            if frame.counted and not self._reported:
                self._tick += 1
        elif self._graph.traced:
            self._graph.weigh(frame.counted and self._counting.call())

    def _begin_frame(self, module: nn.Module, python: FrameType) -> Frame:
        self._end_frame()
        self._adjust()
        counted = self._counts and self._counting.frame(module)
        frame = self._current.frame = Frame(python, counted, sys.exc_info()[1])
        self._graph.on = self._counts
        self._graph.begin()
        if counted:
            if module in self._met:  # a loop that reports no steps has begun another one
                self._eager.end()
            self._met.add(module)
            if module not in self._traced:
                self._start_trace(frame, module)
        # Recomputation has to run the graphs of the forward, which listen.
        listens = self._layout.calls_functions or self._tracing is frame
        if listens and (counted or self._graph.traced):
            self._ears.listen(frame)
        return frame

    def _end_frame(self) -> None:
        """Forget the frame, also one that an interrupt left open, and number calls from 1."""
        self._ears.stop()
        self._graph.on = self._counts
        self._graph.weigh(True)
        if self._tracing is not None and self._tracing is self._current.frame:
            self._drop_trace()
        self._current.frame = None
        self._current.loose.clear()

    def _start_trace(self, frame: Frame, module: nn.Module) -> None:
        if self._tracing is not None and not is_running(self._tracing.python):
            self._drop_trace()
        if self._tracing is None and not any(is_lazy(p) for p in self._model.parameters()):
            self._tracing = frame
            self._tracer.begin(self._layout.path_of(module))

    def _drop_trace(self) -> None:
        self._tracing = None
        self._tracer.abandon()

    def _finish_trace(self, module: nn.Module, output: Any) -> None:
        self._ears.stop()
        self._tracing = None
        self._traced.add(module)
        self._tracer.finish(output)

    # ── one call ────────────────────────────────────────────────────────────────────────

    def _before(self, place: Place, module: nn.Module, args: Any, kwargs: Any) -> None:
        frame = self._current.frame or self._bare_frame(module)
        frame.inside = place
        if not (place.active and frame.counted and self._counting.call()):
            return
        try:
            base = place.base_within(self._layout.path_of(frame.module))
            source = source_of(args, kwargs)
            frame.site = self._observe(frame, place, base, module, source)
        except Exception as error:  # never break training: the site is given up, loudly
            self._give_up(place, error)

    def _after(self, place: Place, module: nn.Module, output: Any) -> None:
        frame = self._current.frame
        if frame is None:
            return
        state, frame.site, frame.inside = frame.site, None, None
        if state is not None and output is not None:  # none if the activation raised
            self._observe_output(frame, place, state, output)
        if frame.module is module:
            self._current.frame = None

    def _bare_frame(self, module: nn.Module) -> Frame:
        """The frame of an activation that the training loop calls itself."""
        counted = self._counts and self._counting.frame(module)
        # Nothing but `step` can tell where the numbering of such calls starts again.
        calls = self._current.loose if self._reported else Counter[str]()
        frame = Frame(sys._getframe(3), counted, None, [module], calls)
        self._current.frame = frame
        return frame

    def operation(self, frame: Frame, func: Any, args: Any, kwargs: Any) -> Any:
        """Call a torch function that is no activation."""
        if self._tracing is frame:
            return self._tracer.run(func, args, kwargs)
        return func(*args, **kwargs)

    def function(self, frame: Frame, row: Row, func: Any, args: Any, kwargs: Any) -> Any:
        """Call a torch function that is an activation, or might be."""
        counts = frame.counted and self._counting.call()
        call = row(args, kwargs) if counts else None
        place = None if call is None else self._place_of(frame, call)
        if call is None or place is None or not place.active:
            return self.operation(frame, func, args, kwargs)
        state = None
        try:
            state = self._observe(frame, place, place.base, call.module, call.source)
        except Exception as error:  # as above
            self._give_up(place, error)
        result = func(*args, **kwargs)
        if state is not None:
            self._observe_output(frame, place, state, result)
        return result

    def _function_base(self, path: str, kind: str) -> str:
        base = function_base(path, kind)
        return base if base not in self._layout.names else f"{path}--{kind}"

    def _find_function(self, modules: list[str], kind: str) -> Place | None:
        """The place of a function called in a compiled graph, inside of ``modules``."""
        frame = self._current.frame
        if modules:
            path = modules[-1]
        elif frame is not None:
            path = self._layout.path_within(frame.modules[-1], frame.module)
        else:
            return None
        return self._places.get(self._function_base(path, kind))

    def _place_of(self, frame: Frame, call: FunctionalCall) -> Place:
        path = self._layout.path_within(frame.modules[-1], frame.module)
        base = self._function_base(path, call.kind)
        place = self._places.get(base)
        if place is None:
            wanted = self._selection.wants(base)
            place = self._places[base] = Place.of_function(base, path, call.module, wanted)
        return place

    def _observe(
        self, frame: Frame, place: Place, base: str, module: nn.Module, source: Tensor
    ) -> SiteState | None:
        if not is_real(source):
            return None
        with torch.no_grad(), torch._C.DisableTorchFunction(), no_dispatch_modes(), self._lock:
            z = pre_activation(module, source)
            call = self._number(frame, place, base)
            name = call_name(base, call, self._layout.names)
            state = self._sites.get(name)
            if state is None:
                state = self._add_site(
                    frame, place, place.site(name, base, call), module, z, source
                )
            elif place.functional:
                place.follow(state, module)
            state.observe(z, self._tick, self._every)
        if self._tracing is frame:
            self._tracer.enter_site(name, source, state.dim_of(source))
        return state

    def _number(self, frame: Frame, place: Place, base: str) -> int:
        """Which call of a place within its frame this is."""
        if self._graph.traced and len(place.states) > 1:
            place.calls += 1  # compiled graphs count on from here
            return place.calls
        frame.calls[base] += 1
        return frame.calls[base]

    def _observe_output(self, frame: Frame, place: Place, state: SiteState, output: Tensor) -> None:
        try:
            with torch.no_grad(), torch._C.DisableTorchFunction(), no_dispatch_modes(), self._lock:
                state.observe_output(output.detach(), self._tick)
            if self._tracing is frame:
                self._tracer.leave_site(state.site.name, output, state.dim_of(output))
        except Exception as error:  # as above
            self._give_up(place, error)

    def _add_site(
        self,
        frame: Frame,
        place: Place,
        site: Site,
        module: nn.Module,
        z: Tensor,
        source: Tensor,
    ) -> SiteState:
        guessed = False
        base = site.name if site.call == 1 else place.base
        dim = self._selection.dim_of(base, module)
        if dim is None and self._tracing is frame:
            dim = self._tracer.unit_dim(source)
        if dim is None:
            dim, guessed = assumed_unit_dim(z)
        state = self._sites[site.name] = place.start(site, module, z, dim)
        self._graph.know(place)
        if self._tracing is not frame:
            self._traced.discard(frame.module)  # it takes a way that was not traced yet
        if guessed:
            warnings.warn(
                f"{site.name}: which axis of {tuple(z.shape)} holds the units is not known; axis "
                f"{state.site.unit_dim} is assumed. Settle it with unit_dim={{{base!r}: axis}}.",
                AmbiguousUnitDimWarning,
                stacklevel=2,
            )
        return state

    def _give_up(self, place: Place, error: Exception) -> None:
        place.failed = True
        frame = self._current.frame
        if frame is not None:
            frame.site = None
            if self._tracing is frame:  # what it would miss could be taken for absent
                self._drop_trace()
        warnings.warn(
            f"observing {place.base!r} failed and is switched off; training goes on. "
            f"{type(error).__name__}: {error}",
            SiteDisabledWarning,
            stacklevel=2,
        )

    # ── reading ─────────────────────────────────────────────────────────────────────────

    def read(self) -> Snapshot:
        """What was measured since the window began, in the order of the data."""
        shapes = {n: tuple(p.shape) for n, p in self._model.named_parameters() if not is_lazy(p)}
        for state in self._sites.values():
            if self._tracer.saw(state.site.name):
                state.resolve(self._tracer, shapes)
        places = [place for place in self._layout.places if place.wanted and not place.states]
        never = [place.unseen() for place in places]
        last = max(self._window_start, self._tick - 1)
        window = Window(self._window, self._window_start, last)
        return Snapshot(window, (*fetch(list(self._sites.values())), *never))

    def restart(self, ages: Mapping[str, Ints]) -> None:
        """Begin the next window; ``ages`` are those of the one that ended, by site name."""
        self._window, self._window_start = self._window + 1, self._tick
        if self._window & (self._window - 1) == 0:
            self._traced.clear()  # at windows 1, 2, 4, 8 …: the forward may take other ways by now
            if self._graph.traced:
                self._look_around()
        for name, state in self._sites.items():
            state.restart(ages[name])
        for place in self._layout.places:
            place.relearn()
        self._between_steps()

    def forget(self, site: str, units: Ints) -> None:
        """Drop the evidence against units that have just been treated."""
        if site in self._sites:
            self._sites[site].age[units] = 0
