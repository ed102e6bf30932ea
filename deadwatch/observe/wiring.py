"""Which parameters produce a site's units, and which read them.

Resolved from real data flow, once: while the first counted forward runs, a function mode attaches
a label to every tensor whose unit axis it understands and follows it through the operations of
the forward. What it does not understand is recorded with its reason, never guessed: a remedy can
then refuse.

Words: a *stem* is the chain of tensors from a producer to the activation (convolution → norm →
activation). A *flow* is what happens to a site's output until it is read.
"""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, is_dataclass, replace
from typing import Any

from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from deadwatch.records import Wire


@dataclass
class _Flow:
    """Who reads a site's output, directly or through operations that keep its units apart."""

    consumers: list[Wire] = field(default_factory=list)
    note: str = ""


@dataclass
class _Label:
    """What is known of one tensor."""

    dim: int | None
    stem: tuple[Wire, ...] = ()
    note: str = ""
    flow: _Flow | None = None
    block: int = 1
    before: _Label | None = None
    readers: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Wiring:
    """The wires of one site, or why they are unknown."""

    producers: tuple[Wire, ...]
    consumers: tuple[Wire, ...]
    producers_note: str
    consumers_note: str


class Tracer(TorchFunctionMode):
    """Follows labels through one forward pass.

    Set ``paused`` above zero to let operations pass unseen (inside an activation, and while
    deadwatch itself computes).
    """

    def __init__(self, parameters: Iterable[tuple[str, nn.Parameter]]) -> None:
        super().__init__()
        self.paused = 0
        self._names = {id(parameter): name for name, parameter in parameters}
        self._uses: Counter[str] = Counter()
        self._labels: dict[int, tuple[weakref.ref[Tensor], _Label]] = {}
        self._sites: dict[str, tuple[_Label | None, _Flow]] = {}

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if self.paused:
            return func(*args, **kwargs)
        name = getattr(func, "__name__", str(func))
        shapes = {id(t): tuple(t.shape) for t in _tensors((args, kwargs))}
        result = func(*args, **kwargs)
        if any(True for _ in _tensors(result)):
            self._see(name, args, kwargs, result, shapes)
        return result

    def unit_dim(self, z: Tensor) -> int | None:
        """The unit axis of a pre-activation, -1 for the last one; None if unknown."""
        label = self._label(z)
        if label is None or label.dim is None:
            return None
        return -1 if label.dim == z.ndim - 1 else label.dim

    def enter_site(self, site: str, z: Tensor) -> None:
        """Record that activation ``site`` reads pre-activation ``z``."""
        label = self._label(z)
        if label is not None:
            self._read(label, site)
        self._sites[site] = (label, _Flow())

    def leave_site(self, site: str, h: Tensor, dim: int) -> None:
        """Record that ``h`` is the output of activation ``site``, with units along ``dim``."""
        flow = self._sites[site][1]
        self._set(h, _Label(dim % h.ndim, note=f"fed by the activation {site}", flow=flow))

    def returned(self, output: Any) -> None:
        """Record what the forward hands to code that is not seen."""
        for tensor in _tensors(output):
            label = self._label(tensor)
            if label is not None:
                self._read(label, "code outside the forward")

    def saw(self, site: str) -> bool:
        """Whether the site ran in this forward."""
        return site in self._sites

    def wiring(self, site: str, units: int, shapes: Mapping[str, tuple[int, ...]]) -> Wiring:
        """The wiring of a site; ``shapes`` are those of the model's parameters."""
        label, flow = self._sites[site]
        producers, producers_note = self._producers(label, units, shapes)
        consumers, consumers_note = self._consumers(flow, units, shapes)
        return Wiring(producers, consumers, producers_note, consumers_note)

    def _producers(
        self, label: _Label | None, units: int, shapes: Mapping[str, tuple[int, ...]]
    ) -> tuple[tuple[Wire, ...], str]:
        if label is None:
            return (), "no known operation produces its pre-activation"
        if label.note or not label.stem:
            return (), label.note or "no known operation produces its pre-activation"
        link: _Label | None = label
        while link is not None:
            if len(link.readers) > 1:
                return (), f"its pre-activation is read by {' and '.join(link.readers)}"
            link = link.before
        for wire in label.stem:
            for name in filter(None, (wire.weight, wire.bias)):
                if self._uses[name] > 1:
                    return (), f"{name} is used {self._uses[name]} times in a forward"
                if shapes[name][0] != units:
                    return (), f"{name} has {shapes[name][0]} rows for {units} units"
        return label.stem, ""

    def _consumers(
        self, flow: _Flow, units: int, shapes: Mapping[str, tuple[int, ...]]
    ) -> tuple[tuple[Wire, ...], str]:
        if flow.note or not flow.consumers:
            return (), flow.note or "nothing in the forward reads it"
        for wire in flow.consumers:
            assert wire.weight is not None
            if self._uses[wire.weight] > 1:
                return (), f"{wire.weight} is used {self._uses[wire.weight]} times in a forward"
            if shapes[wire.weight][1] != units * wire.block:
                return (), f"{wire.weight} has {shapes[wire.weight][1]} columns for {units} units"
        return tuple(flow.consumers), ""

    # ── following one operation ─────────────────────────────────────────────────────────

    def _see(
        self, name: str, args: Any, kwargs: Any, result: Any, shapes: dict[int, tuple[int, ...]]
    ) -> None:
        for tensor in _tensors((args, kwargs)):
            if id(tensor) in self._names:
                self._uses[self._names[id(tensor)]] += 1
        _RULES.get(name, _unknown)(_Op(self, name, args, kwargs, result, shapes))

    def _label(self, tensor: Tensor) -> _Label | None:
        reference, label = self._labels.get(id(tensor), (None, None))
        return label if reference is not None and reference() is tensor else None

    def _set(self, tensor: Tensor, label: _Label) -> None:
        self._labels[id(tensor)] = (weakref.ref(tensor), label)

    def _read(self, label: _Label, reader: str) -> None:
        """Note a reader that the chain does not run through."""
        label.readers.append(reader)
        if label.flow is not None:
            label.flow.note = label.flow.note or f"it is read by {reader}"


@dataclass
class _Op:
    """One call of a torch function, as a rule sees it; ``shapes`` are from before the call."""

    tracer: Tracer
    name: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    result: Any
    shapes: dict[int, tuple[int, ...]]

    def argument(self, position: int, name: str) -> Any:
        """An argument given by position or by name; None if absent."""
        return self.args[position] if len(self.args) > position else self.kwargs.get(name)

    @property
    def label(self) -> _Label | None:
        """The label of the first argument."""
        first = self.argument(0, "input")
        return self.tracer._label(first) if isinstance(first, Tensor) else None

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the first argument before the call."""
        return self.shapes[id(self.argument(0, "input"))]

    def parameter(self, tensor: Any) -> str | None:
        """The name of a parameter of the model; None for anything else."""
        return self.tracer._names.get(id(tensor))

    def produce(self, label: _Label, known: _Label | None = None) -> None:
        """Label the result; every labelled argument but ``known`` is read by something unknown."""
        for tensor in _tensors((self.args, self.kwargs)):
            other = self.tracer._label(tensor)
            if other is not None and other is not known:
                self.tracer._read(other, self.name)
        if isinstance(self.result, Tensor):
            self.tracer._set(self.result, label)
        elif known is not None and known.flow is not None:
            known.flow.note = known.flow.note or f"it is read by {self.name}"

    def follow(self, dim: int | None, block: int = 1, wire: Wire | None = None) -> None:
        """Label the result as the first argument's units, kept apart, along ``dim``."""
        old = self.label
        assert old is not None
        old.readers.append(self.name)
        stem = (*old.stem, wire) if wire else old.stem
        self.produce(_Label(dim, stem, old.note, old.flow, block, before=old), known=old)


def _unknown(op: _Op) -> None:
    """An operation that is not understood: its readers are noted, the result is unlabelled."""
    for tensor in _tensors((op.args, op.kwargs)):
        label = op.tracer._label(tensor)
        if label is not None:
            op.tracer._read(label, op.name)
    for tensor in _tensors(op.result):
        op.tracer._labels.pop(id(tensor), None)


def _linear(op: _Op) -> None:
    _weighted(op, "linear", -1, padded=False)


def _conv(op: _Op) -> None:
    spatial = int(op.name[4])
    padding = op.argument(4, "padding")
    padded = padding not in (None, "valid", 0) and any(_as_tuple(padding))
    groups = op.argument(6, "groups") or 1
    _weighted(op, "conv", -1 - spatial, padded=padded, groups=groups)


def _weighted(op: _Op, kind: str, dim: int, *, padded: bool, groups: int = 1) -> None:
    """A layer with a weight: it reads the units of its input and produces new ones."""
    weight, bias = op.argument(1, "weight"), op.argument(2, "bias")
    names = op.parameter(weight), op.parameter(bias)
    label = op.label
    note = "" if names[0] else f"the weight of its {kind} layer is not a parameter of the model"
    if bias is not None and names[1] is None:
        note = note or f"the bias of its {kind} layer is not a parameter of the model"
    wire = Wire(kind, (names[0] or "").rpartition(".")[0], *names, padded=padded)
    if label is not None:
        label.readers.append(kind)
        if label.flow is not None:
            _consume(op, label.flow, label, wire, dim, note, groups)
    op.produce(_Label(dim % op.result.ndim, () if note else (wire,), note), known=label)


def _consume(
    op: _Op, flow: _Flow, label: _Label, wire: Wire, dim: int, note: str, groups: int
) -> None:
    if label.dim != dim % len(op.shape):
        note = note or f"its units are not on the axis that the {wire.kind} layer sums over"
    if groups != 1:
        note = note or "it is read by a grouped convolution"
    if note:
        flow.note = flow.note or note
    else:
        flow.consumers.append(replace(wire, block=label.block))


def _conv_transpose(op: _Op) -> None:
    dim = op.result.ndim - 1 - int(op.name[-2])
    op.produce(_Label(dim, note="it is produced by a transposed convolution"))


def _norm(kind: str) -> Callable[[_Op], None]:
    def rule(op: _Op) -> None:
        weight, bias = op.kwargs.get("weight"), op.kwargs.get("bias")
        dim = op.result.ndim - 1 if kind == "layer_norm" else 1
        if kind == "layer_norm" and len(op.argument(1, "normalized_shape")) != 1:
            return _unknown(op)
        label = op.label
        if label is None or label.flow is not None or label.dim != dim:
            return op.produce(_Label(dim, note=f"its {kind} has no producer with the same units"))
        names = op.parameter(weight), op.parameter(bias)
        module = (names[0] or names[1] or "").rpartition(".")[0]
        return op.follow(dim, wire=Wire(kind, module, *names))

    return rule


def _same(op: _Op) -> None:
    """Keeps every unit where it is."""
    label = op.label
    if label is not None:
        op.follow(label.dim, label.block)


def _mixed(op: _Op) -> None:
    """Keeps the unit axis, but a unit is no longer made by one producer alone."""
    dims = set()
    for tensor in _tensors((op.args, op.kwargs)):
        label = op.tracer._label(tensor)
        if label is not None and label.dim is not None:
            dims.add(label.dim - len(op.shapes[id(tensor)]))
    _unknown(op)
    if len(dims) == 1 and isinstance(op.result, Tensor):
        note = f"{op.name} stands between its producers and the activation"
        op.tracer._set(op.result, _Label(dims.pop() % op.result.ndim, note=note))


def _reshape(op: _Op) -> None:
    label = op.label
    if label is None or label.dim is None:
        return _unknown(op)
    place = _relocate(op.shape, tuple(op.result.shape), label.dim)
    if place is None:
        return _unknown(op)
    return op.follow(place[0], label.block * place[1])


def _relocate(old: tuple[int, ...], new: tuple[int, ...], dim: int) -> tuple[int, int] | None:
    """Where an axis goes in a reshape, and how many entries one of its indices becomes."""
    ahead, width = _product(old[:dim]), old[dim]
    rest = _product(old[dim + 1 :])
    passed = 1
    for index, size in enumerate(new):
        if passed == ahead and size % width == 0 and rest % (size // width) == 0 and size >= width:
            return index, size // width
        passed *= size
    return None


def _permute(op: _Op) -> None:
    label = op.label
    if label is None or label.dim is None:
        return _unknown(op)
    axes = list(range(len(op.shape)))
    if op.name == "permute":
        given = op.argument(1, "dims")
        order = list(given) if isinstance(given, (tuple, list)) else list(op.args[1:])
        axes = [axis % len(axes) for axis in order]
    else:
        first, second = op.argument(1, "dim0") % len(axes), op.argument(2, "dim1") % len(axes)
        axes[first], axes[second] = axes[second], axes[first]
    return op.follow(axes.index(label.dim), label.block)


def _mean(op: _Op) -> None:
    """A mean over other axes keeps units apart (global pooling)."""
    label, dims = op.label, op.argument(1, "dim")
    if label is None or label.dim is None or dims is None:
        return _unknown(op)
    gone = {dim % len(op.shape) for dim in _as_tuple(dims)}
    if label.dim in gone:
        return _unknown(op)
    kept = op.result.ndim == len(op.shape)
    shift = 0 if kept else sum(dim < label.dim for dim in gone)
    return op.follow(label.dim - shift, label.block)


def _rules() -> dict[str, Callable[[_Op], None]]:
    rules: dict[str, Callable[[_Op], None]] = {"linear": _linear}
    rules |= {f"conv{n}d": _conv for n in (1, 2, 3)}
    rules |= {f"conv_transpose{n}d": _conv_transpose for n in (1, 2, 3)}
    norms = {"batch_norm": "batch_norm", "instance_norm": "batch_norm"}
    norms |= {"layer_norm": "layer_norm", "group_norm": "group_norm"}
    rules |= {name: _norm(kind) for name, kind in norms.items()}
    pools = ("max_pool", "avg_pool", "adaptive_avg_pool", "adaptive_max_pool", "lp_pool")
    same = {f"{pool}{n}d" for pool in pools for n in (1, 2, 3)}
    same |= {"dropout", "dropout1d", "dropout2d", "dropout3d", "alpha_dropout"}
    same |= {"feature_alpha_dropout", "contiguous", "clone", "to", "float", "half", "bfloat16"}
    rules |= dict.fromkeys(same, _same)
    rules |= dict.fromkeys(("flatten", "reshape", "view", "unflatten"), _reshape)
    rules |= dict.fromkeys(("permute", "transpose"), _permute)
    mixed = ("add", "add_", "sub", "sub_", "mul", "mul_", "div", "div_", "cat", "where", "pad")
    dunder = ("__add__", "__iadd__", "__radd__", "__mul__", "__imul__", "__sub__", "interpolate")
    rules |= dict.fromkeys((*mixed, *dunder), _mixed)
    return rules | {"mean": _mean}


_RULES = _rules()


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from _tensors(item)
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from _tensors(item)
    elif is_dataclass(value):
        yield from _tensors(vars(value))


def _as_tuple(value: Any) -> tuple[Any, ...]:
    return tuple(value) if isinstance(value, (tuple, list)) else (value,)


def _product(sizes: Iterable[int]) -> int:
    total = 1
    for size in sizes:
        total *= size
    return total
