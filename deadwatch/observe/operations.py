"""What each torch function does to the units of its input: one row of `RULES` each.

A rule reads the label of its input and labels its result. A function without a row is unknown:
whatever labelled tensor it reads is from then on read by something unknown, and its result has
no label. So a missing row costs knowledge, never truth.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, fields, is_dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor

from deadwatch.records import Wire


@dataclass
class Flow:
    """Who reads a site's output, directly or through operations that keep its units apart."""

    consumers: list[Wire] = field(default_factory=list)
    note: str = ""

    def lose(self, reason: str) -> None:
        """Not all readers are known; the first reason stays."""
        self.note = self.note or reason


@dataclass
class Label:
    """What is known of one tensor.

    Attributes:
        dim: The axis of its units, non-negative.
        stem: What produced the units so far, in the order of the data.
        note: Why the producers are unknown; empty if they are known.
        flow: The site whose output this is, possibly pooled, reshaped or dropped out.
        block: Entries along ``dim`` per unit of that site.
        padded: Whether zeros were averaged into the border on the way.
        before: The label this one continues.
        readers: Everything seen to read the tensor.
        edges: How many of them autograd's graph should know.
        node: Where the tensor stands in that graph.
        lost: Why not everything that reads the tensor is known; empty if it is.
    """

    dim: int | None
    stem: tuple[Wire, ...] = ()
    note: str = ""
    flow: Flow | None = None
    block: int = 1
    padded: bool = False
    before: Label | None = None
    readers: list[str] = field(default_factory=list)
    edges: int = 0
    node: tuple[Any, int] | None = None
    lost: str = ""

    def read_by(self, reader: str) -> None:
        """Note a reader."""
        self.readers.append(reader)
        self.edges += torch.is_grad_enabled()

    def lose(self, reason: str) -> None:
        """Something unknown reads the tensor."""
        self.lost = self.lost or reason
        if self.flow is not None:
            self.flow.lose(reason)


class Labels(Protocol):
    """What a rule needs of the tracer."""

    def label_of(self, tensor: Tensor) -> Label | None:
        """The label of a tensor."""

    def set_label(self, tensor: Tensor, label: Label) -> None:
        """Label a tensor."""

    def forget(self, tensor: Tensor) -> None:
        """Take a tensor's label off."""

    def read(self, label: Label, reader: str) -> None:
        """Note a reader that the chain does not run through."""

    def parameter_name(self, tensor: Any) -> str | None:
        """The name of a parameter of the model; None for anything else."""

    def buffer_name(self, tensor: Any) -> str | None:
        """The name of a buffer of the model; None for anything else."""


@dataclass
class Op:
    """One call of a torch function, as a rule sees it; ``shapes`` are from before the call."""

    tracer: Labels
    name: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    result: Any
    shapes: dict[int, tuple[int, ...]]

    def argument(self, position: int, name: str) -> Any:
        """An argument given by position or by name; None if absent."""
        return self.args[position] if len(self.args) > position else self.kwargs.get(name)

    @property
    def label(self) -> Label | None:
        """The label of the first argument."""
        first = self.argument(0, "input")
        return self.tracer.label_of(first) if isinstance(first, Tensor) else None

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the first argument before the call."""
        return self.shapes[id(self.argument(0, "input"))]

    def parameter(self, tensor: Any) -> str | None:
        """The name of a parameter of the model; None for anything else."""
        return self.tracer.parameter_name(tensor)

    def produce(self, label: Label, known: Label | None = None) -> None:
        """Label the result; every labelled argument but ``known`` is read by something unknown."""
        for tensor in tensors_in((self.args, self.kwargs)):
            other = self.tracer.label_of(tensor)
            if other is not None and other is not known:
                self.tracer.read(other, self.name)
        if isinstance(self.result, Tensor):
            self.tracer.set_label(self.result, label)
        elif known is not None:
            known.lose(f"it is read by {self.name}")

    def follow(
        self, dim: int, block: int = 1, wire: Wire | None = None, padded: bool = False
    ) -> None:
        """Label the result as the first argument's units, kept apart, along ``dim``."""
        old = self.label
        assert old is not None
        old.read_by(self.name)
        stem = (*old.stem, wire) if wire else old.stem
        padded = padded or old.padded
        self.produce(Label(dim, stem, old.note, old.flow, block, padded, old), known=old)


def unknown(op: Op) -> None:
    """An operation that is not understood: its readers are noted, the result is unlabelled."""
    for tensor in tensors_in((op.args, op.kwargs)):
        label = op.tracer.label_of(tensor)
        if label is not None:
            op.tracer.read(label, op.name)
    for tensor in tensors_in(op.result):
        op.tracer.forget(tensor)


def _linear(op: Op) -> None:
    _weighted(op, "linear", -1, padded=False)


def _conv(op: Op) -> None:
    spatial = int(op.name[4])
    padded = _pads(op.argument(4, "padding"))
    groups = op.argument(6, "groups") or 1
    _weighted(op, "conv", -1 - spatial, padded=padded, groups=groups)


def _pads(padding: Any) -> bool:
    return padding not in (None, "valid", 0) and any(_as_tuple(padding))


def _module_of(*names: str | None) -> str:
    """Path of the module that owns the named tensors."""
    return next((name for name in names if name), "").rpartition(".")[0]


def _unfit(kind: str, names: tuple[str | None, str | None], biased: bool) -> str:
    """Why a layer's parameters cannot be treated together; empty if they can."""
    weight, bias = names
    if weight is None or (biased and bias is None):
        which = "weight" if weight is None else "bias"
        return f"the {which} of its {kind} layer is not a parameter of the model"
    if bias is not None and _module_of(weight) != _module_of(bias):
        return f"{weight} and {bias} belong to different modules"
    return ""


def _weighted(op: Op, kind: str, dim: int, *, padded: bool, groups: int = 1) -> None:
    """A layer with a weight: it reads the units of its input and produces new ones."""
    weight, bias = op.argument(1, "weight"), op.argument(2, "bias")
    names = op.parameter(weight), op.parameter(bias)
    label = op.label
    wire = Wire(kind, _module_of(*names), *names, padded=padded)
    note = _unfit(kind, names, bias is not None)
    if label is not None:
        label.read_by(kind)
        if label.flow is not None:
            _consume(op, label.flow, label, wire, dim, note, groups)
    axis = dim % op.result.ndim if -dim <= op.result.ndim else None
    op.produce(Label(axis, () if note else (wire,), note), known=label)


def _consume(
    op: Op, flow: Flow, label: Label, wire: Wire, dim: int, note: str, groups: int
) -> None:
    if label.dim is None or label.dim - len(op.shape) != dim:
        note = note or f"its units are not on the axis that the {wire.kind} layer sums over"
    if groups != 1:
        note = note or "it is read by a grouped convolution"
    if note:
        flow.lose(note)
    else:
        padded = wire.padded or label.padded
        flow.consumers.append(replace(wire, block=label.block, padded=padded))


def _conv_transpose(op: Op) -> None:
    dim = op.result.ndim - 1 - int(op.name[-2])
    op.produce(Label(dim, note="it is produced by a transposed convolution"))


def _norm(kind: str) -> Callable[[Op], None]:
    def rule(op: Op) -> None:
        if "weight" not in op.kwargs:
            return unknown(op)  # not the call that torch.nn's modules make
        weight, bias = op.kwargs.get("weight"), op.kwargs.get("bias")
        dim = op.result.ndim - 1 if kind == "layer_norm" else 1
        if kind == "layer_norm" and len(op.argument(1, "normalized_shape")) != 1:
            return unknown(op)
        label = op.label
        if label is None or label.flow is not None or label.dim != dim:
            return op.produce(Label(dim, note=f"its {kind} has no producer with the same units"))
        names = op.parameter(weight), op.parameter(bias)
        running = op.tracer.buffer_name(op.argument(1, "running_mean"))
        note = _unfit(kind, names, bias is not None) if weight is not None else ""
        if note:
            return op.produce(Label(dim, note=note))
        return op.follow(dim, wire=Wire(kind, _module_of(*names, running), *names))

    return rule


def _same(op: Op) -> None:
    """Keeps every unit where it is."""
    label = op.label
    if label is None or label.dim is None:
        return unknown(op)
    return op.follow(label.dim, label.block)


def _pool(op: Op) -> None:
    """Keeps every unit where it is, unless it pools over the units themselves."""
    label = op.label
    pooled = int(op.name[-2])  # the last axes
    if label is None or label.dim is None or label.dim >= len(op.shape) - pooled:
        return unknown(op)
    # An average may take in zeros at the border.
    padded = op.name.startswith("avg") and _pads(op.argument(3, "padding"))
    return op.follow(label.dim, label.block, padded=padded)


def _mixed(op: Op) -> None:
    """Keeps the unit axis, but a unit is no longer made by one producer alone."""
    dims = set()
    for tensor in tensors_in((op.args, op.kwargs)):
        label = op.tracer.label_of(tensor)
        if label is not None and label.dim is not None:
            dims.add(label.dim - len(op.shapes[id(tensor)]))
    unknown(op)
    if len(dims) == 1 and isinstance(op.result, Tensor) and op.result.ndim >= -min(dims):
        note = f"{op.name} stands between its producers and the activation"
        op.tracer.set_label(op.result, Label(dims.pop() % op.result.ndim, note=note))


def _reshape(op: Op) -> None:
    label = op.label
    if label is None or label.dim is None:
        return unknown(op)
    place = _relocate(op.shape, tuple(op.result.shape), label.dim)
    if place is None:
        return unknown(op)
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


def _permute(op: Op) -> None:
    label = op.label
    if label is None or label.dim is None:
        return unknown(op)
    axes = list(range(len(op.shape)))
    if op.name == "permute":
        given = op.argument(1, "dims")
        order = list(given) if isinstance(given, (tuple, list)) else list(op.args[1:])
        axes = [axis % len(axes) for axis in order]
    else:
        first, second = op.argument(1, "dim0") % len(axes), op.argument(2, "dim1") % len(axes)
        axes[first], axes[second] = axes[second], axes[first]
    return op.follow(axes.index(label.dim), label.block)


def _mean(op: Op) -> None:
    """A mean over other axes keeps units apart (global pooling)."""
    label, dims = op.label, op.argument(1, "dim")
    if label is None or label.dim is None or dims is None or dims == ():
        return unknown(op)
    gone = {dim % len(op.shape) for dim in _as_tuple(dims)}
    if label.dim in gone:
        return unknown(op)
    kept = op.result.ndim == len(op.shape)
    shift = 0 if kept else sum(dim < label.dim for dim in gone)
    return op.follow(label.dim - shift, label.block)


def _rules() -> dict[str, Callable[[Op], None]]:
    rules: dict[str, Callable[[Op], None]] = {"linear": _linear}
    rules |= {f"conv{n}d": _conv for n in (1, 2, 3)}
    rules |= {f"conv_transpose{n}d": _conv_transpose for n in (1, 2, 3)}
    norms = {"batch_norm": "batch_norm", "instance_norm": "batch_norm"}
    norms |= {"layer_norm": "layer_norm", "group_norm": "group_norm"}
    rules |= {name: _norm(kind) for name, kind in norms.items()}
    pools = ("max_pool", "avg_pool", "adaptive_avg_pool", "adaptive_max_pool")
    rules |= {f"{pool}{n}d": _pool for pool in pools for n in (1, 2, 3)}
    same = {"dropout", "dropout1d", "dropout2d", "dropout3d"}
    same |= {"contiguous", "clone", "to", "float", "half", "bfloat16"}
    rules |= dict.fromkeys(same, _same)
    rules |= dict.fromkeys(("flatten", "reshape", "view", "unflatten"), _reshape)
    rules |= dict.fromkeys(("permute", "transpose"), _permute)
    mixed = ("add", "add_", "sub", "sub_", "mul", "mul_", "div", "div_", "cat", "where", "pad")
    dunder = ("__add__", "__iadd__", "__radd__", "__mul__", "__imul__", "__sub__", "interpolate")
    rules |= dict.fromkeys((*mixed, *dunder), _mixed)
    return rules | {"mean": _mean}


RULES = _rules()


def tensors_in(value: Any, seen: frozenset[int] = frozenset()) -> Iterator[Tensor]:
    """All tensors in nested arguments or results, which may hold themselves."""
    if isinstance(value, Tensor):
        yield value
    elif id(value) not in seen:
        parts: Iterable[Any] = ()
        if isinstance(value, dict):
            parts = list(value.values())
        elif isinstance(value, (tuple, list)):
            parts = list(value)
        elif is_dataclass(value) and not isinstance(value, type):
            parts = [getattr(value, part.name, None) for part in fields(value)]
        for part in parts:
            yield from tensors_in(part, seen | {id(value)})


def _as_tuple(value: Any) -> tuple[Any, ...]:
    return tuple(value) if isinstance(value, (tuple, list)) else (value,)


def _product(sizes: Iterable[int]) -> int:
    total = 1
    for size in sizes:
        total *= size
    return total
