"""What the hooks do while `torch.compile` traces them: counting becomes part of the graph.

The compiler follows hooks and function modes into the graph it builds, so that the statistics are
fused into its kernels and no graph is broken. What runs there may touch tensors and plain
attributes only; all bookkeeping (which module is being called, whether a site is known) is done by
functions that the compiler calls while it traces, and never again: those named ``trace_*``.

The sites themselves are found by a forward that runs eagerly (see `Taps`). One that a trace meets
without knowing it is not counted by that graph; ``missed`` then asks for another eager forward.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from itertools import count
from typing import Any, ParamSpec, TypeVar
from weakref import WeakValueDictionary, ref

import torch
from torch import Tensor, nn

from deadwatch.observe import kernels, stats
from deadwatch.observe.functions import Row
from deadwatch.observe.hooks import no_dispatch_modes
from deadwatch.observe.places import Place
from deadwatch.observe.sites import pre_activation

P = ParamSpec("P")
R = TypeVar("R")


class InGraph:
    """The counterpart of `Taps` inside of compiled graphs.

    Args:
        model: The model.
        find: The place of a function of the given kind, by the paths of the modules being called
            inside of the graph; None if it is not known.
        in_frame: Whether a frame is in progress outside of the graph.

    Attributes:
        on: Whether graphs are to count at all.
        weights: One or zero (1,) on each device: whether what runs now counts.
        moments: Whether moments are taken.
        traced: Whether the model, or a part of it, is known to be compiled.
        missed: Whether a trace has met a site that is not known.
        listed: The places of functions, which graphs know by number.

    The others are the state of the trace in progress, for the functions below.
    """

    def __init__(
        self,
        model: nn.Module,
        find: Callable[[list[str], str], Place | None],
        in_frame: Callable[[], bool],
    ) -> None:
        self._model = model
        self._counted = True
        self.weights: dict[torch.device, Tensor] = {}
        self.on = False
        self.moments = True
        self.traced = False
        self.missed = False
        self.listed: list[Place] = []
        self._several: list[Place] = []
        self._fresh: list[Place] = []
        self.find = find
        self.in_frame = in_frame
        self.modules: list[str] = []
        self.inside = False
        self.gradients = True
        self.calls: Counter[tuple[str, bool]] = Counter()
        self.trace: Callable[[], Any] = lambda: None
        self.key = next(_KEYS)
        _KNOWN[self.key] = self

    def know(self, place: Place) -> None:
        """A place has one more site."""
        device = place.states[-1].seen.device
        if device not in self.weights:
            with torch.inference_mode(False):
                self.weights[device] = torch.ones(1, dtype=torch.int64, device=device)
        if len(place.states) == 1 and place.functional:
            self.listed.append(place)
        elif len(place.states) == 2:
            self._fresh.append(place)

    def count_from_here(self) -> None:
        """From the frame that begins on, count the calls of places that have several sites."""
        if not self.traced:
            return
        for place in self._fresh:
            place.several = True
        self._several += self._fresh
        self._fresh.clear()

    def weigh(self, counted: bool) -> None:
        """Whether graphs that run from here on count, without choosing other graphs."""
        # Activation checkpointing demands that recomputation runs the graph of the forward.
        if self.traced and self._counted != counted:
            self._counted = counted
            with torch.no_grad(), torch._C.DisableTorchFunction(), no_dispatch_modes():
                for weight in self.weights.values():
                    weight.fill_(counted)

    # ── in the graph ────────────────────────────────────────────────────────────────────

    def enter(self, path: str) -> None:
        """The module at ``path`` is called."""
        if trace_enter(self.key, path):
            self.begin()

    def begin(self) -> None:
        """A frame begins."""
        for place in self._several:
            place.calls = 0

    def _listens(self) -> bool:
        if not self.on or not self._model.training:
            return False
        if trace_forbids(self.key):
            return False
        return torch.is_grad_enabled() or not trace_gradients(self.key)

    def leave(self, path: str) -> None:
        """Its call ended."""
        trace_leave(self.key, path)

    def before(self, place: Place, source: Tensor) -> None:
        """An activation module is called."""
        trace_inside(self.key, True)
        if place.active and self._listens():
            self._observe(place, source)

    def after(self, place: Place, output: Tensor) -> None:
        """An activation module returned."""
        trace_inside(self.key, False)
        if place.active and self._listens():
            self._observe_output(place, output)

    def function(self, row: Row, func: Any, args: Any, kwargs: Any) -> Any:
        """Call a torch function that is an activation, or might be."""
        source = row.source(args, kwargs)
        if source is None or not self._listens():
            return func(*args, **kwargs)
        index = trace_function(self.key, row.kind)
        if index < 0:
            return func(*args, **kwargs)
        self._observe(self.listed[index], source)
        output = func(*args, **kwargs)
        self._observe_output(self.listed[index], output)
        return output

    def _observe(self, place: Place, source: Tensor) -> None:
        call = self._call(place)
        if call < 0:
            trace_missed(self.key)
            return
        state = place.states[call]
        with torch.no_grad():
            z = pre_activation(state.module, _local(source) if state.distributed else source)
            if z.numel():
                weight = self.weights[z.device]
                state.seen.add_(weight * (z.numel() // state.units))
                pivot = kernels.pivot_of(z, state.dim, state.data) if self.moments else None
                batch = kernels.fused(z, state.dim, state.gate, state.low, pivot)
                stats.update_(state.data, stats.weighted(batch, weight))

    def _observe_output(self, place: Place, output: Tensor) -> None:
        call = self._call(place)
        if call < 0:
            return
        # Within a checkpointed region the compiler lets nothing but tensors change.
        if not trace_call(self.key, place.base) and place.several:
            place.calls += 1
        state = place.states[call]
        with torch.no_grad():
            if self.moments and output.numel():
                h = (_local(output) if state.distributed else output).detach()
                batch = kernels.fused_outputs(h, state.dim, signed=state.signed)
                stats.update_(state.data, stats.weighted(batch, self.weights[h.device]))

    def _call(self, place: Place) -> int:
        """How often a place was called before, in this frame; -1 if its next site is not known."""
        calls = trace_calls(self.key, place.base, place.several)
        if place.several:
            calls += place.calls
        elif len(place.states) > 1:
            return -1  # the calls of this frame have not been counted
        return calls if calls < len(place.states) else -1


def _local(tensor: Any) -> Tensor:
    """The local part of a DTensor; here the compiler does not know what has one and what not."""
    local: Tensor = tensor.to_local()
    return local


def trace_time(function: Callable[P, R]) -> Callable[P, R]:
    """Mark a function that the compiler calls while it traces, and not again."""
    marked: Callable[P, R] = torch.compiler.assume_constant_result(function)
    return marked


_KEYS = count()
_KNOWN: WeakValueDictionary[int, InGraph] = WeakValueDictionary()


# ── while tracing ───────────────────────────────────────────────────────────────────────


def _current(key: int) -> InGraph:
    """The one with this key, told of a trace that has just begun."""
    known = _KNOWN[key]
    trace = _translation()  # their numbers begin anew when the compiler is reset
    if known.trace() is not trace:
        known.trace, known.traced = ref(trace), True
        known.modules, known.inside = [], False
        known.calls.clear()
        known.gradients = torch.is_grad_enabled()
    return known


@trace_time
def trace_enter(key: int, path: str) -> bool:
    """Note that the module at ``path`` is called; returns whether a frame begins with it."""
    known = _current(key)
    known.modules.append(path)
    return len(known.modules) == 1 and not known.in_frame()


@trace_time
def trace_leave(key: int, path: str) -> int:
    """Note that its call ended."""
    modules = _current(key).modules
    if path in modules:
        del modules[modules.index(path) :]
    return 0


@trace_time
def trace_inside(key: int, inside: bool) -> int:
    """Note that an activation module is called, or returned."""
    _current(key).inside = inside
    return 0


@trace_time
def trace_gradients(key: int) -> bool:
    """Whether gradients were on where the graph is called."""
    return _current(key).gradients


@trace_time
def trace_calls(key: int, base: str, in_region: bool) -> int:
    """How often a place was called in this graph, or only within its checkpointed regions."""
    calls = _current(key).calls
    return calls[base, True] + (0 if in_region else calls[base, False])


@trace_time
def trace_call(key: int, base: str) -> bool:
    """Note the call of a place; returns whether it stands in a checkpointed region."""
    in_region = _translation().current_tracer.parent is not None
    _current(key).calls[base, in_region] += 1
    return in_region


@trace_time
def trace_forbids(key: int) -> bool:
    """Whether nothing may be written here.

    A checkpointed region saves what it reads, and its backward pass finds it changed; unless the
    compiler's own backend has made the graph free of writes.
    """
    translation = _translation()
    if translation.current_tracer.parent is None:
        return False
    backend = translation.compiler_fn
    while backend is not None:
        if isinstance(backend, torch._TorchCompileInductorWrapper):
            return False
        backend = getattr(backend, "_torchdynamo_orig_backend", None)
    return True


def _translation() -> Any:
    from torch._dynamo.symbolic_convert import InstructionTranslator

    translator: Any = InstructionTranslator.current_tx()
    return translator.output


@trace_time
def trace_missed(key: int) -> int:
    """Note that a site was met that is not known."""
    _current(key).missed = True
    return 0


@trace_time
def trace_function(key: int, kind: str) -> int:
    """Where in ``listed`` the place of a function stands; -1 if it is not to be counted."""
    known = _current(key)
    if known.inside:
        return -1
    place = known.find(known.modules, kind)
    if place is None:
        known.missed = True
        return -1
    if not place.active:
        return -1
    return known.listed.index(place)
