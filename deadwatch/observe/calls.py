"""What happens while the model is called: frames, and the activations called in them."""

from __future__ import annotations

import sys
import threading
import weakref
from collections import Counter
from collections.abc import Callable
from contextlib import nullcontext
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from deadwatch.observe.accumulate import SiteState
from deadwatch.observe.clock import Clock
from deadwatch.observe.frames import Counting, CurrentFrame, Frame, is_redirected
from deadwatch.observe.functions import FunctionalCall, Row
from deadwatch.observe.gradients import Gradients
from deadwatch.observe.hooks import is_real, is_running, no_dispatch_modes
from deadwatch.observe.ingraph import InGraph
from deadwatch.observe.layout import Layout, is_stock
from deadwatch.observe.listen import Ears
from deadwatch.observe.lookout import Lookout
from deadwatch.observe.meter import Meter
from deadwatch.observe.places import Place, call_name, source_of
from deadwatch.observe.remarks import tell_failure, tell_guess
from deadwatch.observe.sharding import known, local_of, locate, whole_units
from deadwatch.observe.sites import Selection, assumed_unit_dim, function_base, pre_activation
from deadwatch.observe.strategies import tensor_parallel
from deadwatch.observe.wiring import Tracer


class Calls:
    """Observes what is called while the model runs; `Taps` tells it by hooks.

    Args:
        model: The model.
        layout: Its modules.
        selection: Which activations to watch.
        clock: The current step.
        counting: Which forwards count.
        before_frame: Called before a frame begins.

    Attributes:
        counts: Whether anything counts now.
        sites: What is kept of each site, in the order of the data.
        graph: The same for compiled graphs.
        tracer: Follows the wiring.
        lookout: Keeps compiled code from running, while sites are looked for.
        traced: The parts whose wiring is known.
        meter: Measures what watching costs, while that decides how often moments are taken.
        gradients: Measures the gradients at pre-activations, if that is asked for.
        given_up: Names of the places that are no longer observed.
        parallel: Whether the model is tensor parallel.
        frames: Counted frames of each module in this window, while functions are only looked for.
    """

    def __init__(
        self,
        model: nn.Module,
        layout: Layout,
        selection: Selection,
        clock: Clock,
        counting: Counting,
        before_frame: Callable[[], None],
    ) -> None:
        self.counts = False
        self.sites: dict[str, SiteState] = {}
        me: Any = weakref.proxy(self)  # no cycle shall keep the model alive
        self.graph = InGraph(
            model,
            lambda modules, kind: me._find_function(modules, kind),
            lambda: me._current.frame is not None,
        )
        self.lookout = Lookout(self.graph)
        self.tracer = Tracer(model)
        self.traced: set[nn.Module] = set()
        self.gradients: Gradients | None = None
        self.given_up: set[str] = set()
        self.parallel = False
        self.clock = clock
        self.meter: Meter | None = None
        self._model = model
        self._layout, self._selection = layout, selection
        self._counting, self._before_frame = counting, before_frame
        self.frames: Counter[nn.Module] = Counter()
        self._places: dict[str, Place] = {}
        self._current = CurrentFrame()
        self._ears = Ears(me, self.graph)
        self._lock = threading.Lock()
        self._tracing: Frame | None = None

    # ── frames ──────────────────────────────────────────────────────────────────────────

    def between_steps(self) -> None:
        """Nothing is being called now."""
        self.end_frame()
        self.graph.moments = self.clock.takes_moments
        # A container of torch is compiled with its hooks: no frame begins outside of its graph.
        stays = self.counts and self.graph.traced and is_stock(self._model)
        self._ears.stay(stays and self._layout.calls_functions)

    def next_step(self) -> None:
        """A step ended."""
        self.clock.tick += 1
        if self.meter is not None:
            self.meter.begin_step(self.clock.tick - self.clock.start)

    def enter(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        """A module that is no activation is called."""
        frame = self._current.running()
        if frame is None:
            if "forward" in module.__dict__ and is_redirected(module):
                return
            # 0 is this function, 1 and 2 the hook, 3 the module call that ran it.
            frame = self._begin_frame(module, sys._getframe(3), (args, kwargs))
        elif not frame.follows:
            frame.enter_unfollowed(module)
            return
        frame.modules.append(module)
        if self.graph.traced:
            self.graph.weigh(frame.counted and self._counting.call())
        if frame.counted and frame.quiet is None:
            reason = self._layout.must_not_listen(module)
            if reason:
                frame.quiet = module
                self._ears.stop()
                if self._tracing is frame:
                    with torch._C.DisableTorchFunction(), no_dispatch_modes():
                        self.tracer.overlook(module, (args, kwargs), reason)

    def leave(self, module: nn.Module, output: Any) -> None:
        """Its call ended, or raised."""
        frame = self._current.frame
        if frame is None or frame.is_within(module):
            return
        if frame.quiet is module:
            frame.quiet = None
            self._ears.listen(frame)
        if frame.leave(module):
            # The hook also runs when the forward raised.
            if self._tracing is frame and sys.exc_info()[1] is frame.error:
                self._finish_trace(module, output)
            self.end_frame()
            if frame.counted and not self.clock.reported:
                self.next_step()
        elif self.graph.traced:
            self.graph.weigh(frame.counted and self._counting.call())

    def _begin_frame(self, module: nn.Module, python: FrameType, given: Any) -> Frame:
        self.end_frame()
        self._before_frame()
        counted = self.counts and self._counting.frame(module)
        frame = self._current.frame = Frame(python, counted, sys.exc_info()[1])
        self.graph.count_from_here()
        self.graph.begin()
        if counted:
            self.lookout.meet(module, self.clock.tick)
            if module not in self.traced:
                self._start_trace(frame, module, given)
        # Recomputation has to run the graphs of the forward, which listen.
        if (counted or self.graph.traced) and self._must_listen(frame, module):
            self._ears.listen(frame)
        else:
            frame.follows = self.graph.traced
        return frame

    def _must_listen(self, frame: Frame, module: nn.Module) -> bool:
        """Whether functions may be called that count, or that show the wiring.

        Where none is known, only frames 1, 2, 4, 8 … of each window are looked at.
        """
        if self._tracing is frame or any(place.active for place in self._places.values()):
            return True
        if not self._layout.calls_functions or self.graph.traced or module not in self.traced:
            return self._layout.calls_functions
        self.frames[module] += frame.counted
        return self.frames[module] & (self.frames[module] - 1) == 0

    def end_frame(self) -> None:
        """Forget the frame, also one that an interrupt left open, and number calls from 1."""
        self._ears.stop()
        self.graph.on = self.counts
        self.graph.weigh(True)
        if self._tracing is not None and self._tracing is self._current.frame:
            self._drop_trace()
        self._current.frame = None
        self._current.loose.clear()

    def _start_trace(self, frame: Frame, module: nn.Module, given: Any) -> None:
        if self._tracing is not None and not is_running(self._tracing.python):
            self._drop_trace()
        self.parallel = self.parallel or bool(tensor_parallel(self._model))
        if self._tracing is None and not any(is_lazy(p) for p in self._model.parameters()):
            self._tracing = frame
            self.tracer.begin(self._layout.path_of(module), given)

    def _drop_trace(self) -> None:
        self._tracing = None
        self.tracer.abandon()

    def _finish_trace(self, module: nn.Module, output: Any) -> None:
        self._ears.stop()
        self._tracing = None
        with torch._C.DisableTorchFunction(), no_dispatch_modes():
            self.tracer.finish(output)
        self.traced.add(module)

    # ── one call ────────────────────────────────────────────────────────────────────────

    def before(self, place: Place, module: nn.Module, args: Any, kwargs: Any) -> None:
        """An activation module is called."""
        frame = self._current.running() or self._bare_frame(module)
        if frame.inside is not None:
            return
        frame.inside = place
        if not (place.active and frame.counted and self._counting.call()):
            return
        try:
            base = place.base_within(self._layout.path_of(frame.module))
            source = source_of(args, kwargs)
            if not self._pass_by(frame, place, base, source, module):
                frame.site = self._observe(frame, place, base, module, source)
        except Exception as error:  # never break training: the site is given up, loudly
            self._give_up(place, error)

    def after(self, place: Place, module: nn.Module, output: Any) -> None:
        """It returned ``output``, or raised; then that is None."""
        frame = self._current.frame
        if frame is None or frame.inside is not place:
            return
        state, frame.site, frame.inside = frame.site, None, None
        if state is not None and output is not None:  # none if the activation raised
            self._observe_output(frame, place, state, output)
        if frame.module is module:
            self._current.frame = None

    def _bare_frame(self, module: nn.Module) -> Frame:
        """The frame of an activation that the training loop calls itself."""
        self._ears.stop()  # should an interrupt have left it on
        counted = self.counts and self._counting.frame(module)
        # Nothing but `step` can tell where the numbering of such calls starts again.
        calls = self._current.loose if self.clock.reported else Counter[str]()
        frame = Frame(sys._getframe(4), counted, None, [module], calls)
        self._current.frame = frame
        return frame

    def operation(self, frame: Frame, func: Any, args: Any, kwargs: Any) -> Any:
        """Call a torch function that is no activation."""
        if self._tracing is frame and is_running(frame.python):
            return self.tracer.run(func, args, kwargs)
        return func(*args, **kwargs)

    def function(
        self, frame: Frame, row: Row, owner: nn.Module | None, func: Any, args: Any, kwargs: Any
    ) -> Any:
        """Call a torch function that is an activation, or might be, perhaps that of a module."""
        place = state = None
        metered = nullcontext() if self.meter is None else self.meter
        try:
            with metered, torch._C.DisableTorchFunction():
                counts = frame.counted and self._counting.call()
                call = row(args, kwargs) if counts else None
                place = None if call is None else self._place_of(frame, call, owner)
            if call is not None and place is not None and place.active:
                base = place.base_within(self._layout.path_of(frame.module))
                with metered:
                    if not self._pass_by(frame, place, base, call.source, call.module):
                        state = self._observe(frame, place, base, call.module, call.source)
        except Exception as error:  # as above
            self._give_up(place, error)
        if place is None or state is None:
            return self.operation(frame, func, args, kwargs)
        result = func(*args, **kwargs)
        with metered:
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

    def _place_of(self, frame: Frame, call: FunctionalCall, owner: nn.Module | None) -> Place:
        if owner in self._layout.activations:
            return self._layout.activations[owner]
        path = self._layout.path_within(frame.modules[-1], frame.module)
        base = self._function_base(path, call.kind)
        place = self._places.get(base)
        if place is None:
            wanted = self._selection.wants(base)
            place = self._places[base] = Place.of_function(base, path, call.module, wanted)
            place.failed = base in self.given_up
        return place

    def _pass_by(
        self, frame: Frame, place: Place, base: str, source: Tensor, module: nn.Module
    ) -> bool:
        """Count a call of which nothing is to be learned; returns whether it is one."""
        if self._tracing is not None or self.graph.traced:
            return False
        call = frame.calls[base] + 1
        state = self.sites.get(call_name(base, call, self._layout.names))
        if state is None or not state.is_idle(source, self.clock.tick, self.clock.gap):
            return False
        if place.functional and state.module is not module:  # it may have another gate
            return False
        with self._lock:
            frame.calls[base] = call
            state.pass_by(source, self.clock.tick)
        return True

    def _observe(
        self, frame: Frame, place: Place, base: str, module: nn.Module, source: Tensor
    ) -> SiteState | None:
        with torch._C.DisableTorchFunction(), torch.no_grad(), no_dispatch_modes(), self._lock:
            if not (is_real(source) and source.is_floating_point()):
                return None
            z = pre_activation(module, source if type(source) is Tensor else local_of(source))
            call = place.number(frame.calls, base, in_graph=self.graph.traced)
            name = call_name(base, call, self._layout.names)
            state = known(self.sites.get(name), source, z, parallel=self.parallel)
            if state is None:
                dim, guessed = self._axis(frame, base, module, source)
                state = place.start(place.site(name, base, call), module, z, dim)
                locate(state, source, parallel=self.parallel)
                self._add_site(frame, place, state)
                if guessed:
                    tell_guess(state.site, base, z)
            elif state.waiting:
                place.take_up(state, module, z)
                self.graph.know(place)
            elif place.functional:
                place.follow(state, module)
            if self.graph.traced:
                state.finite = None  # graphs add to it
            state.observe(z, self.clock.tick, self.clock.gap)
            if self.gradients is not None and not self.graph.traced:
                self.gradients.feel(state, source, self.clock.tick)
        with torch._C.DisableTorchFunction():  # but with gradients as they are
            if self._tracing is frame and source.ndim:
                units = whole_units(source, state.units, state.share)
                self.tracer.enter_site(name, source, state.dim_of(source), units)
        return state

    def _observe_output(self, frame: Frame, place: Place, state: SiteState, output: Tensor) -> None:
        try:
            with torch._C.DisableTorchFunction(), no_dispatch_modes(), self._lock:
                with torch.no_grad():
                    h = output if type(output) is Tensor else local_of(output)
                    state.observe_output(h.detach(), self.clock.tick)
                if self._tracing is frame and output.ndim:
                    self.tracer.leave_site(state.site.name, output, state.dim_of(output))
        except Exception as error:  # as above
            self._give_up(place, error)

    def _axis(self, frame: Frame, base: str, module: nn.Module, source: Tensor) -> tuple[int, bool]:
        """The unit axis of a site that is new, and whether that is a mere guess."""
        dim = self._selection.dim_of(base, module)
        if dim is None and self._tracing is frame:
            dim = self.tracer.unit_dim(source)
        return assumed_unit_dim(source) if dim is None else (dim, False)

    def _add_site(self, frame: Frame, place: Place, state: SiteState) -> None:
        self.sites[state.site.name] = state
        self.graph.know(place)
        if self._tracing is not frame:
            self.traced.discard(frame.module)  # it takes a way that was not traced yet

    def _give_up(self, place: Place | None, error: Exception) -> None:
        if place is not None:
            place.failed = True
            self.given_up.add(place.base)
            with torch._C.DisableTorchFunction(), torch.no_grad(), no_dispatch_modes():
                for state in self.sites.values():
                    if state.base == place.base:
                        state.restart(state.age)  # part of the evidence is none
        frame = self._current.frame
        if frame is not None:
            frame.site = None
            if self._tracing is frame:  # what it would miss could be taken for absent
                self._drop_trace()
        tell_failure(place, error)
