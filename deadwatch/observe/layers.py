"""Rules for what has weights: it reads the units of its input, and produces new ones."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import Tensor

from deadwatch.observe.arithmetic import unlisted
from deadwatch.observe.labels import (
    Label,
    Op,
    Place,
    Rule,
    as_tuple,
    cut_stem,
    tensors_in,
    unknown,
)
from deadwatch.records import Wire

Names = tuple[str | None, str | None]

_MIXING = ("layer_norm", "group_norm")


# ── linear layers and convolutions ──────────────────────────────────────────────────────────


def linear(op: Op) -> None:
    """``y = x Wᵀ + b``."""
    weight, bias = op.argument(1, "weight"), op.argument(2, "bias")
    if weight.ndim != 2:
        return unknown(op)
    wire, note = _wire(op, "linear", weight, bias)
    return _layer(op, op.first, wire, -1, note)


def conv(op: Op) -> None:
    """A convolution, possibly in groups."""
    wire, note = _wire(op, "conv", op.argument(1, "weight"), op.argument(2, "bias"))
    wire = replace(wire, padded=pads(op.argument(4, "padding")))
    groups = op.argument(6, "groups") or 1
    _layer(op, op.first, wire, -1 - int(op.name[4]), note, groups=groups)


def conv_transpose(op: Op) -> None:
    """A transposed convolution: its inputs lie along axis 0 of the weight, its outputs along 1."""
    wire, note = _wire(op, "conv_transpose", op.argument(1, "weight"), op.argument(2, "bias"))
    # Each output pixel is fed by a part of the kernel only, as it is at a padded border.
    wire = replace(wire, axis=1, groups=op.argument(6, "groups") or 1, padded=True)
    _layer(op, op.first, wire, -1 - int(op.name[-2]), note)


def pads(padding: Any) -> bool:
    """Whether a layer's ``padding`` puts anything around its input."""
    return padding not in (None, "valid", 0) and any(as_tuple(padding))


def _wire(op: Op, kind: str, weight: Any, bias: Any) -> tuple[Wire, str]:
    """A layer as a producer, and why its parameters cannot be treated together, if so."""
    names = op.parameter(weight), op.parameter(bias)
    shape = () if weight is None else tuple(map(int, weight.shape))
    wire = Wire(kind, _module_of(*names), *names, shape=shape)
    return wire, _unfit(kind, names, bias is not None)


def _module_of(*names: str | None) -> str:
    """Path of the module that owns the named tensors."""
    return next((name for name in names if name), "").rpartition(".")[0]


def _unfit(kind: str, names: Names, biased: bool) -> str:
    weight, bias = names
    if weight is None or (biased and bias is None):
        which = "weight" if weight is None else "bias"
        return f"the {which} of its {kind} layer is not a parameter of the model"
    if bias is not None and _module_of(weight) != _module_of(bias):
        return f"{weight} and {bias} belong to different modules"
    return ""


def _layer(op: Op, data: Tensor, wire: Wire, dim: int, note: str, *, groups: int = 1) -> None:
    """A layer that sums over axis ``dim`` < 0 of ``data``, and has its new units there.

    ``wire`` is the layer as a producer; as a reader it has the weight's other axis, in ``groups``.
    """
    op.tracer.feed(wire.weight, data, dim)
    label = op.tracer.label_of(data)
    if label is not None:
        label.read_by(wire.kind)
        reader = replace(wire, axis=1 - wire.axis, groups=groups)
        _consume(label, reader, dim + len(op.shapes[id(data)]), note)
    known = () if label is None else (label,)
    axis = dim % op.result.ndim if -dim <= op.result.ndim else None
    stem = () if note or axis is None else cut_stem((wire,), 0, op.result.shape[axis])
    op.produce(Label(axis, stem, note), *known)


def _consume(label: Label, wire: Wire, dim: int, note: str) -> None:
    if label.dim != dim:
        note = note or f"its units are not on the axis that the {wire.kind} layer sums over"
    for part in label.parts:
        part.end(wire.kind)
    if note:
        return label.lose_parts(note)
    for part in label.parts:
        reader = replace(
            wire,
            units=part.units,
            offset=part.offset,
            block=part.block,
            padded=wire.padded or part.padded,
            shared=part.shared,
            through=part.through,
        )
        part.flow.consumers.append(reader)
    return None


# ── products with a matrix ──────────────────────────────────────────────────────────────────


def matmul(op: Op) -> None:
    """``x @ W``: a linear layer if W is a parameter or its transpose."""
    left, right = (*op.args, *op.kwargs.values())[:2]
    _product(op, left, right, None)


def addmm(op: Op) -> None:
    """``b + x @ W``, unless it is scaled."""
    if op.kwargs or len(op.args) != 3:
        return unknown(op)
    return _product(op, op.args[1], op.args[2], op.args[0])


def _product(op: Op, left: Tensor, right: Tensor, bias: Tensor | None) -> None:
    matrix, axis = _matrix(op, right)
    label = op.tracer.label_of(right)
    if matrix is not None and op.parameter(left) is None:
        wire, note = _wire(op, "linear", matrix, bias)
        _layer(op, left, replace(wire, axis=axis), -1, note)
    elif label is not None and label.dim is not None and op.place(right, label)[-1] == -1:
        op.keep_axis(op.place(right, label), f"it is produced by {op.name}")  # attention @ values
    elif op.parameter(_base(left)) is not None and op.result.ndim > 1:
        op.keep_axis((-2,), f"it is produced by {op.name}")
    elif op.parameter(_base(right)) is not None:
        op.keep_axis(_columns(right), f"it is produced by {op.name}")
    else:
        _keep_rows(op, left, right)


def _columns(weight: Tensor) -> Place:
    """The units of a product with a weight, of which every head or expert may have its own."""
    base = _base(weight)
    return (-3, -1) if weight.ndim == base.ndim == 3 and len(weight) == len(base) else (-1,)


def _keep_rows(op: Op, left: Tensor, right: Tensor) -> None:
    """A product of activations keeps the rows of the left one; the heads, if it sums over units."""
    for tensor, summed in ((left, -1), (right, -2)):
        label = op.tracer.label_of(tensor)
        if label is None or label.dim is None:
            continue
        *spread, axis = op.place(tensor, label)
        place = tuple(spread) if axis == summed else (*spread, axis) if tensor is left else ()
        if place and summed not in place:
            return op.keep_axis(place, f"it is produced by {op.name}")
    return unknown(op)


def baddbmm(op: Op) -> None:
    """``b + x @ W`` for each head."""
    if len(op.args) != 3 or op.parameter(_base(op.args[2])) is None:
        return unknown(op)
    return op.keep_axis(_columns(op.args[2]), f"it is produced by {op.name}")


def _matrix(op: Op, tensor: Tensor) -> tuple[Tensor | None, int]:
    """The parameter that a matrix is, or is the transpose of, and the axis of its outputs."""
    base = _base(tensor)
    if tensor.ndim != 2 or base.ndim != 2 or op.parameter(base) is None:
        return None, 0
    if tensor is base:
        return base, 1
    transposed = tensor.stride() == base.stride()[::-1] and tensor.shape == base.shape[::-1]
    return (base, 0) if transposed and base.stride()[0] != base.stride()[1] else (None, 0)


def _base(tensor: Tensor) -> Tensor:
    """The tensor of which it is a view, or itself."""
    return tensor if tensor._base is None else tensor._base


def einsum(op: Op) -> None:
    """The units are the last letter of the result that only a parameter brings in."""
    equation, operands = op.args[0], list(tensors_in(op.args[1:]))
    place = _einsum_place(op, equation, operands) if isinstance(equation, str) else None
    if place is None:
        return unknown(op)
    return op.keep_axis(place, "it is produced by einsum")


def _einsum_place(op: Op, equation: str, operands: list[Tensor]) -> Place | None:
    inputs, arrow, output = equation.replace(" ", "").replace("...", ".").partition("->")
    terms = inputs.split(",")
    weights = [op.parameter(_base(tensor)) is not None for tensor in operands]
    data = "".join(t for t, weight in zip(terms, weights, strict=True) if not weight)
    brought = [letter for letter in output if arrow and letter not in f"{data}."]
    if not any(weights) or not brought:
        return None
    behind = output[output.index(brought[-1]) :]
    return (-len(behind),) if "." not in behind else None


# ── what is known by its axis alone ─────────────────────────────────────────────────────────


def last_axis(what: str) -> Rule:
    """A rule for what has its units on the last axis of its results, say an embedding."""
    return lambda op: op.keep_axis((-1,), f"it is produced by {what}")


def attention(op: Op) -> None:
    """Attention mixes tokens; its units are those of its values, heads included."""
    value = op.argument(2, "value")
    label = op.tracer.label_of(value)
    place = (-1,) if label is None or label.dim is None else op.place(value, label)
    op.keep_axis(place if place[-1] == -1 else (-1,), f"it is produced by {op.name}")


def multi_head_attention(op: Op) -> None:
    """Ends in a linear layer, whose weight and bias are the arguments 11 and 12."""
    wire, note = _wire(
        op, "linear", op.argument(11, "out_proj_weight"), op.argument(12, "out_proj_bias")
    )
    result = next(tensors_in(op.result))
    stem = () if note else cut_stem((wire,), 0, result.shape[-1])
    op.produce(Label(result.ndim - 1, stem, note))


# ── norms ───────────────────────────────────────────────────────────────────────────────────


def norm(kind: str) -> Rule:
    """A rule for one kind of norm, called as the modules of ``torch.nn`` do."""

    def rule(op: Op) -> None:
        axes = op.argument(1, "normalized_shape") if kind == "layer_norm" else (1,)
        if "weight" not in op.kwargs or len(axes) != 1:
            return unlisted(op)
        dim = op.result.ndim - 1 if kind == "layer_norm" else 1
        label = op.label
        if label is None or label.dim != dim or label.spread:
            return op.produce(Label(dim, note=f"its {kind} has no producer with the same units"))
        return _normed(op, kind, label, dim)

    return rule


def _normed(op: Op, kind: str, label: Label, dim: int) -> None:
    """A norm's rows join what produces the units; readers behind it see other values."""
    weight, bias = op.kwargs.get("weight"), op.kwargs.get("bias")
    running = op.tracer.buffer_name(op.argument(1, "running_mean"))
    wire, note = _wire(op, kind, weight, bias)
    wire = replace(wire, module=wire.module or _module_of(running))
    note = label.note or (note if weight is not None else "")
    if label.parts and not label.stem:
        note = f"its {kind} has no producer with the same units"
    if kind in _MIXING:
        label.lose_parts(f"a {kind} between it and its readers mixes the units")
    op.follow(
        dim,
        stem=() if note else (*label.stem, *cut_stem((wire,), 0, op.result.shape[dim])),
        note=note,
        parts=label.parts_with(through=kind),
    )
