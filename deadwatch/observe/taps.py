"""The hooks. This is the only file that registers hooks or enters a function mode.

What is counted: a *frame* is one outermost call into the model (or into any part of it, when a
training loop calls parts directly). A frame counts if the part called is in training mode and
gradients are on when it is entered; so evaluation, teachers under ``no_grad`` and sanity checks
do not count, while reentrant checkpointing inside a counted frame does. Recomputation by
activation checkpointing runs inside the backward pass and is skipped.

Within a frame the calls of one activation module are numbered; each number is a site of its own.
A hook launches tensor operations and returns: it never waits for the device. If it fails, its
activation is no longer observed, one warning says so, and training goes on.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from types import FrameType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.overrides import TorchFunctionMode, _get_current_function_mode_stack
from torch.utils.hooks import RemovableHandle

from deadwatch.errors import AmbiguousUnitDimWarning, NoSiteWarning, SiteDisabledWarning
from deadwatch.observe.accumulate import SiteState, fetch
from deadwatch.observe.hooks import Hook, is_recomputing, is_running, no_dispatch_modes, remove
from deadwatch.observe.sites import Candidate, Selection, assumed_unit_dim, pre_activation
from deadwatch.observe.wiring import Tracer
from deadwatch.records import Ints, Site, SiteSnapshot, Snapshot, Window

_FAST = (nn.TransformerEncoder, nn.TransformerEncoderLayer, nn.MultiheadAttention)


@dataclass(eq=False)
class _Tap:
    """One watched activation module, its call sites so far, and the call in progress."""

    candidate: Candidate
    sites: dict[str, SiteState] = field(default_factory=dict)
    calls: int = 0
    current: SiteState | None = None
    handles: list[RemovableHandle] = field(default_factory=list)
    disabled: bool = False


@dataclass(eq=False)
class _Frame:
    """The outermost call in progress."""

    module: nn.Module
    python: FrameType
    counted: bool
    error: BaseException | None
    depth: int = 1


class _Listener(TorchFunctionMode):
    """Hands every torch function that is called to the tracer; above zero ``paused`` stops it."""

    def __init__(self, tracer: Tracer) -> None:
        super().__init__()
        self.paused = 0
        self._tracer = tracer

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        return func(*args, **kwargs) if self.paused else self._tracer.run(func, args, kwargs)


class Taps:
    """Observes the activations of a model while hooks are attached.

    Args:
        model: The model; never written to.
        selection: Which activations to watch.
        every: Moments are taken on every ``every``-th step of a window, beginning with the first.
    """

    def __init__(self, model: nn.Module, selection: Selection, every: int) -> None:
        self.enabled = True
        self._model = model
        self._selection = selection
        self._every = every
        self._taps = {c.path: _Tap(c) for c in selection.candidates(model)}
        self._paths = {module: path for path, module in model.named_modules()}
        self._attached = False
        self._told_empty = False
        self._handles: list[RemovableHandle] = []
        self._frame: _Frame | None = None
        self._tracer = Tracer(model)
        self._mode = _Listener(self._tracer)
        self._tracing = False  # a trace is being taken
        self._entered = False  # its mode is on torch's stack
        self._modes = ExitStack()
        self._traced: set[nn.Module] = set()
        self._ran: list[SiteState] = []
        self._tick = 0
        self._reported = False
        self._window = 0
        self._window_start = 0

    # ── attaching ───────────────────────────────────────────────────────────────────────

    @property
    def attached(self) -> bool:
        """Whether hooks are on the model."""
        return self._attached

    def attach(self) -> None:
        """Register the hooks; does nothing if they are on."""
        if self.attached:
            return
        self._attached = True
        if not self._taps and not self._told_empty:
            self._told_empty = True
            hidden = bool(Selection().candidates(self._model))
            warnings.warn(
                "include and exclude leave no activation module to watch"
                if hidden
                else "the model holds no activation module that can be watched: functional calls "
                "such as F.relu are not seen yet; use nn.ReLU() and its like as modules (for "
                "nn.TransformerEncoderLayer, activation=nn.ReLU())",
                NoSiteWarning,
                stacklevel=3,
            )
        self._adopt_swaps()
        for container in self._containers():
            pre = container.register_forward_pre_hook(Hook(self._enter), prepend=True)
            post = container.register_forward_hook(Hook(self._leave), always_call=True)
            self._handles += [pre, post]
        for tap in self._taps.values():
            if not tap.disabled:
                self._register(tap)

    def _adopt_swaps(self) -> None:
        for candidate in self._selection.candidates(self._model):
            tap = self._taps[candidate.path]
            if tap.candidate.module is not candidate.module:
                tap.candidate = candidate
                for state in tap.sites.values():
                    state.adopt(candidate)

    def detach(self) -> None:
        """Remove every hook; does nothing if none is on."""
        self._attached = False
        self._reset_frame()
        remove(self._handles)
        for tap in self._taps.values():
            remove(tap.handles)

    def _containers(self) -> Iterator[nn.Module]:
        """Modules through which a frame can be entered: all that hold a watched activation."""
        watched = {tap.candidate.module for tap in self._taps.values()}
        for module in self._model.modules():
            if module not in watched and not watched.isdisjoint(module.modules()):
                yield module

    def _register(self, tap: _Tap) -> None:
        module = tap.candidate.module

        def before(module: nn.Module, args: Any, kwargs: Any) -> None:
            self._before(tap, module, args, kwargs)

        def after(module: nn.Module, args: Any, output: Any) -> None:
            self._after(tap, output)

        # Around the activation itself, inside of the hooks that the user has put there.
        pre = module.register_forward_pre_hook(Hook(before), with_kwargs=True)
        tap.handles = [pre, module.register_forward_hook(Hook(after), prepend=True)]

    # ── frames ──────────────────────────────────────────────────────────────────────────

    def resume(self, *, reports_steps: bool = False) -> None:
        """Count from here on; ``reports_steps`` says in advance that `step` will be called."""
        self.enabled = True
        self._reported = self._reported or reports_steps
        self._reset_frame()

    def pause(self) -> None:
        """Count nothing until `resume`."""
        self.enabled = False
        self._reset_frame()

    def step(self) -> None:
        """Count one training step."""
        # Until the first report each counted forward passed for a step of its own.
        self._tick = self._tick + 1 if self._reported else self._window_start + 1
        self._reported = True
        self._reset_frame()

    @property
    def steps(self) -> int:
        """Steps so far: calls of `step`, or counted frames in a loop that never calls it."""
        return self._tick

    def _reset_frame(self) -> None:
        """Forget a frame that an interrupt left open, and number calls from 1 again."""
        self._drop_trace()
        self._frame = None
        for tap in self._taps.values():
            tap.calls, tap.current = 0, None

    def _enter(self, module: nn.Module, args: Any) -> None:
        if torch.compiler.is_compiling():
            return
        frame = self._frame
        if frame is not None and not is_running(frame.python):
            frame = None  # an interrupt cut it short
        if frame is None:
            self._reset_frame()
            # 0 is this function, 1 the hook object, 2 the module call that ran it.
            python, error = sys._getframe(2), sys.exc_info()[1]
            self._frame = _Frame(module, python, self._counts(module), error)
            if self._frame.counted and module not in self._traced:
                self._start_trace(module)
        elif frame.module is module:
            frame.depth += 1

    def _leave(self, module: nn.Module, args: Any, output: Any) -> None:
        frame = self._frame
        if torch.compiler.is_compiling() or frame is None or frame.module is not module:
            return
        frame.depth -= 1
        if frame.depth == 0:
            # The hook also runs when the forward raised.
            if self._tracing and sys.exc_info()[1] is frame.error:
                self._finish_trace(module, output)
            self._reset_frame()
            if frame.counted and not self._reported:
                self._tick += 1

    def _counts(self, module: nn.Module) -> bool:
        gradients = torch.is_grad_enabled() and not is_recomputing()
        return self.enabled and module.training and gradients

    def _start_trace(self, module: nn.Module) -> None:
        fast = [m for m in self._model.modules() if isinstance(m, _FAST) and not m.training]
        if fast:  # a mode would switch off torch's fast path, and change numbers by a rounding
            self._tracer.failed = f"a {type(fast[0]).__name__} in eval mode cannot be traced"
        if self._tracer.failed:
            self._traced.add(module)
        elif not self._entered and not any(is_lazy(p) for p in self._model.parameters()):
            self._tracing = self._entered = True
            self._mode.paused = 0
            self._tracer.begin(self._paths[module])
            self._modes.enter_context(self._mode)

    def _finish_trace(self, module: nn.Module, output: Any) -> None:
        self._leave_mode()
        self._traced.add(module)
        self._tracer.finish(output)

    def _drop_trace(self) -> None:
        if self._tracing:
            self._leave_mode()
            self._tracer.abandon()
        elif self._entered:  # an interrupt left it below another mode
            self._leave_mode()

    def _leave_mode(self) -> None:
        self._tracing = False
        self._mode.paused += 1  # harmless, should another mode still stand above it
        stack = _get_current_function_mode_stack()
        if self._mode not in stack:  # some other mode's exit took it off
            self._modes.pop_all()
            self._entered = False
        elif stack[-1] is self._mode:
            self._modes.close()
            self._entered = False

    # ── one activation call ─────────────────────────────────────────────────────────────

    def _before(self, tap: _Tap, module: nn.Module, args: Any, kwargs: Any) -> None:
        frame = self._frame
        counted = self._counts(module) if frame is None else frame.counted
        # A backward inside of a counted forward recomputes as well.
        if not counted or is_recomputing() or torch.compiler.is_compiling():
            return
        if self._tracing:
            self._mode.paused += 1
        source = args[0] if args else kwargs.get("input")
        try:
            with torch.no_grad(), torch._C.DisableTorchFunction(), no_dispatch_modes():
                self._observe(tap, pre_activation(module, source).detach(), source)
            if self._tracing and (state := tap.current) is not None:
                dim = state.dim_of(source)
                self._tracer.enter_site(state.site.name, source, dim, state.units)
        except Exception as error:  # never break training: the site is given up, loudly
            self._disable(tap, error)

    def _after(self, tap: _Tap, output: Tensor) -> None:
        state, tap.current = tap.current, None
        if state is None:
            return
        try:
            with torch.no_grad(), torch._C.DisableTorchFunction(), no_dispatch_modes():
                state.observe_output(output.detach(), self._tick)
            if self._tracing:
                self._tracer.leave_site(state.site.name, output, state.dim_of(output))
                self._mode.paused -= 1
        except Exception as error:  # as above
            self._disable(tap, error)

    def _observe(self, tap: _Tap, z: Tensor, source: Tensor) -> None:
        # Outside of a frame nothing but `step` can tell where the numbering starts again.
        tap.calls = tap.calls + 1 if self._frame is not None or self._reported else 1
        name = self._name(tap.candidate, tap.calls)
        tap.current = tap.sites.get(name) or self._add_site(tap, name, z, source)
        tap.current.observe(z, self._tick, self._every)

    def _name(self, candidate: Candidate, call: int) -> str:
        name = self._path_in_frame(candidate) or candidate.activation.lower()
        if call > 1:  # a module may be called "relu-2" as well
            name += f"-{call}" if f"{name}-{call}" not in self._taps else f"--{call}"
        return name

    def _site(self, candidate: Candidate, call: int, name: str) -> Site:
        path = self._path_in_frame(candidate)
        return Site(name, path, call, candidate.activation, candidate.gate)

    def _path_in_frame(self, candidate: Candidate) -> str:
        """Where the activation stands below the module of the frame, if it stands in several."""
        if self._frame is None or len(candidate.paths) == 1:
            return candidate.path
        within = f"{self._paths[self._frame.module]}."
        return next((path for path in candidate.paths if path.startswith(within)), candidate.path)

    def _add_site(self, tap: _Tap, name: str, z: Tensor, source: Tensor) -> SiteState:
        guessed = False
        dim = self._selection.dim_of(tap.candidate)
        if dim is None and self._tracing:
            dim = self._tracer.unit_dim(source)
        if dim is None:
            dim, guessed = assumed_unit_dim(z)
        site = self._site(tap.candidate, tap.calls, name)
        state = tap.sites[name] = SiteState.start(site, tap.candidate, z, dim)
        self._ran.append(state)
        if self._frame is not None and not self._tracing:
            self._traced.discard(self._frame.module)  # it takes a way that was not traced yet
        if guessed:
            warnings.warn(
                f"{name}: which axis of {tuple(z.shape)} holds the units is not known; axis "
                f"{state.site.unit_dim} is assumed. Settle it with "
                f"unit_dim={{{site.module!r}: axis}}.",
                AmbiguousUnitDimWarning,
                stacklevel=2,
            )
        return state

    def _disable(self, tap: _Tap, error: Exception) -> None:
        remove(tap.handles)
        tap.current, tap.disabled = None, True
        self._drop_trace()  # what it would miss from here on could be taken for absent
        warnings.warn(
            f"observing {tap.candidate.path!r} failed and is switched off; training goes on. "
            f"{type(error).__name__}: {error}",
            SiteDisabledWarning,
            stacklevel=2,
        )

    # ── reading ─────────────────────────────────────────────────────────────────────────

    def read(self) -> Snapshot:
        """What was measured since the window began, in the order of the data."""
        shapes = {n: tuple(p.shape) for n, p in self._model.named_parameters() if not is_lazy(p)}
        for state in self._ran:
            if self._tracer.saw(state.site.name):
                state.resolve(self._tracer, shapes)
        never = [self._unseen(tap.candidate) for tap in self._taps.values() if not tap.sites]
        last = max(self._window_start, self._tick - 1)
        window = Window(self._window, self._window_start, last)
        return Snapshot(window, (*fetch(self._ran), *never))

    def _unseen(self, candidate: Candidate) -> SiteSnapshot:
        site = self._site(candidate, 1, self._name(candidate, 1))
        return SiteSnapshot(site, 0, {}, np.zeros(0, np.int64), np.zeros(0, np.bool_))

    def restart(self, ages: Mapping[str, Ints]) -> None:
        """Begin the next window; ``ages`` are those of the one that ended, by site name."""
        self._window, self._window_start = self._window + 1, self._tick
        if self._window & (self._window - 1) == 0:
            self._traced.clear()  # at windows 1, 2, 4, 8 …: the forward may take other ways by now
        for state in self._ran:
            state.restart(ages[state.site.name])

    def forget(self, site: str, units: Ints) -> None:
        """Drop the evidence against units that have just been treated."""
        for state in self._ran:
            if state.site.name == site:
                state.age[units] = 0
