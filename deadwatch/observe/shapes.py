"""Rules for what moves, joins and separates entries without weights."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from types import EllipsisType
from typing import Any

import torch
from torch import Tensor

from deadwatch.observe.labels import (
    Label,
    Op,
    Part,
    Place,
    Rule,
    as_tuple,
    cut_stem,
    on_label,
    tensors_in,
    unknown,
)
from deadwatch.observe.layers import pads

Shape = tuple[int, ...]


# ── views: permute, squeeze, expand, slice, split ───────────────────────────────────────────


@on_label
def viewed(op: Op, label: Label, dim: int) -> None:
    """A function whose results are views of its first argument, or of it alone.

    The function itself is asked where the units go: it is applied to a tensor without data whose
    strides count the units and are 0 along all other axes. The strides and the storage offset of
    what comes out then tell which units lie where.
    """
    probe = _probe(op.shape, (*label.spread, dim))
    views = list(tensors_in(op.on(probe)))
    storage = probe.untyped_storage()._cdata
    if op.shape[dim] == 1 or any(v.untyped_storage()._cdata != storage for v in views):
        return unknown(op)
    for result, seen in zip(tensors_in(op.result), views, strict=True):
        found = _seen_through(op, label, seen)
        if found is None:
            op.tracer.forget(result)
        else:
            op.tracer.set_label(result, found)
    # All results hang on one node of the graph.
    label.edges -= (len(views) - 1) * torch.is_grad_enabled()
    return None


def _probe(shape: Shape, axes: Sequence[int]) -> Tensor:
    strides, step = [0] * len(shape), 1
    for axis in reversed(axes):
        strides[axis] = step
        step *= shape[axis]
    return torch.empty_strided(shape, strides, device="meta")


def _seen_through(op: Op, label: Label, seen: Tensor) -> Label | None:
    """The label of one result, from the probe's view."""
    steps = enumerate(zip(seen.stride(), seen.shape, strict=True))
    axes = sorted(((step, axis) for axis, (step, size) in steps if step and size > 1), reverse=True)
    if not axes:
        label.read_by(op.name)
        label.lose_parts(f"{op.name} picks a single unit")
        return None
    *spread, dim = (axis for _, axis in axes)
    if label.spread or spread or axes[0][0] > 1:
        reason = f"{op.name} takes some of its units, or spreads them over several axes"
        label.read_by(op.name)
        label.lose_parts(reason)
        return label.then(dim, spread=tuple(spread), stem=(), note=label.note or reason, parts=())
    start = int(seen.storage_offset())
    stop = start + seen.shape[dim]
    label.read_by(op.name, range(start, stop))
    parts = (part.cut(start, stop) for part in label.parts)
    return label.then(
        dim, stem=cut_stem(label.stem, start, stop), parts=tuple(part for part in parts if part)
    )


def getitem(op: Op) -> None:
    """Indexing: by numbers, slices, None and Ellipsis, or by tensors ahead of the units."""
    index = op.args[1] if isinstance(op.args[1], tuple) else (op.args[1],)
    if all(item is None or type(item) in (int, slice, EllipsisType) for item in index):
        return viewed(op)
    return _gather(op, index)


def _gather(op: Op, index: tuple[Any, ...]) -> None:
    label = op.label
    taken = 0
    for item in index:
        boolean = isinstance(item, Tensor) and item.dtype in (torch.bool, torch.uint8)
        taken += item.ndim if boolean else 1
    plain = all(type(item) in (int, slice) or isinstance(item, Tensor) for item in index)
    if label is None or label.dim is None or not plain or taken > label.dim or label.spread:
        return unknown(op)
    return op.follow(op.result.ndim - len(op.shape) + label.dim)


# ── reshapes ────────────────────────────────────────────────────────────────────────────────


@on_label
def reshape(op: Op, label: Label, dim: int) -> None:
    """Keeps the units on one axis, spreads them over several, or merges what was spread."""
    units = (*label.spread, dim)
    if op.result.dtype != op.first.dtype:
        return unknown(op)  # the same bytes in another meaning
    found = _regroup(op.shape, tuple(op.result.shape), units)
    if not found or (len(found) > 1 and len(op.shape) == 2):
        return unknown(op)  # features unfolded into an image: which axis is meant is open
    *spread, (axis, factor) = found
    if label.spread or spread:
        reason = "a reshape spreads its units over several axes"
        label.lose_parts(reason)
        places = tuple(axis for axis, _ in spread)
        return op.follow(axis, spread=places, stem=(), note=label.note or reason, parts=())
    return op.follow(axis, **_widened(label, factor))


def _widened(label: Label, factor: int, padded: bool = False) -> dict[str, Any]:
    """Changes to a label when every unit's entry becomes ``factor`` entries side by side."""
    if factor == 1:
        return {}
    note = label.note or "several entries of each of its units lie side by side"
    parts = label.parts_with(padded=padded)
    return {"note": note, "stem": (), "parts": tuple(part.widened(factor) for part in parts)}


def _regroup(old: Shape, new: Shape, units: Sequence[int]) -> list[tuple[int, int]]:
    """The new axes that hold nothing but units, or units as blocks: (axis, entries per unit)."""
    found: list[tuple[int, int]] = []
    for left, right in _runs(old, new):
        held = [axis for axis in left if old[axis] > 1 or axis in units]
        into = [axis for axis in right if new[axis] > 1] or right[-1:]
        if held and all(axis in units for axis in held):
            found += [(axis, 1) for axis in into]
        elif held and list(units) == held[:1] and len(into) == 1:
            found.append((into[0], math.prod(old[axis] for axis in held[1:])))
    return found


def _runs(old: Shape, new: Shape) -> Iterator[tuple[list[int], list[int]]]:
    """Cut two shapes of one tensor into the shortest runs of axes that hold equally much."""
    i = j = 0
    while 0 not in old and i < len(old) and j < len(new):
        left, right = [i], [j]
        while (gap := math.prod(old[i] for i in left) - math.prod(new[j] for j in right)) != 0:
            if gap < 0:
                left.append(left[-1] + 1)
            else:
                right.append(right[-1] + 1)
        yield left, right
        i, j = left[-1] + 1, right[-1] + 1


# ── joining ─────────────────────────────────────────────────────────────────────────────────


def cat(op: Op) -> None:
    """Along the units each part takes the next entries; along another axis all share theirs."""
    place = _common_place(op)
    if place is None:
        return unknown(op)
    axis = (op.argument(1, "dim") or op.kwargs.get("axis") or 0) % op.result.ndim
    dim, along = place % op.result.ndim, axis == place % op.result.ndim
    parts: list[Part] = []
    start = 0
    for tensor in tensors_in(op.args[:1] or op.kwargs["tensors"]):
        label = op.tracer.label_of(tensor)
        if label is not None:
            label.read_by(op.name)
            parts += (
                (part.moved(start) for part in label.parts)
                if along
                else label.parts_with(shared=True)
            )
        shape = op.shapes[id(tensor)]
        start += shape[axis] if len(shape) == op.result.ndim else 0  # torch takes empty vectors
    note = f"{op.name} stands between its producers and the activation"
    label = Label(dim, note=note, parts=tuple(parts))
    label.step(op.name)
    return op.tracer.set_label(op.result, label)


def stack(op: Op) -> None:
    """As a concatenation along a new axis."""
    place = _common_place(op)
    if place is None:
        return unknown(op)
    axis = (op.argument(1, "dim") or 0) % op.result.ndim - op.result.ndim
    dim = (place if axis < place else place - 1) % op.result.ndim
    parts: list[Part] = []
    for _, label in op.labelled():
        label.read_by(op.name)
        parts += label.parts_with(shared=True)
    note = f"{op.name} stands between its producers and the activation"
    label = Label(dim, note=note, parts=tuple(parts))
    label.step(op.name)
    return op.tracer.set_label(op.result, label)


def _common_place(op: Op) -> int | None:
    """The unit axis, from the end, on which all labelled arguments agree; None if none."""
    places = {op.place(tensor, label) for tensor, label in op.labelled()}
    place: Place = places.pop() if len(places) == 1 else ()
    return place[0] if len(place) == 1 else None


# ── pooling, padding, resampling ────────────────────────────────────────────────────────────


@on_label
def pool(op: Op, label: Label, dim: int) -> None:
    """Keeps every unit where it is, unless it pools over the units themselves."""
    pooled = int(op.name[-2])  # the last axes
    if dim >= len(op.shape) - pooled or label.spread:
        return unknown(op)
    # An average may take in zeros at the border.
    padded = op.name.startswith("avg") and pads(op.argument(3, "padding"))
    return op.follow(dim, parts=label.parts_with(padded=padded))


def reduce(through: str = "") -> Rule:
    """A rule for what takes the mean, sum or greatest along some axes: units stay apart."""

    @on_label
    def rule(op: Op, label: Label, dim: int) -> None:
        dims = op.argument(1, "dim")
        if dims is None or dims == () or isinstance(dims, Tensor):
            return unknown(op)
        gone = {axis % len(op.shape) for axis in as_tuple(dims)}
        units = [axis for axis in (*label.spread, dim) if axis not in gone]
        if not units:
            return unknown(op)
        ndim = next(tensors_in(op.result)).ndim
        removed = gone if ndim < len(op.shape) else ()
        *spread, dim = (axis - sum(other < axis for other in removed) for axis in units)
        if label.spread:
            place = tuple(axis - ndim for axis in (*spread, dim))
            return op.keep_axis(place, f"{op.name} stands between its producers and the activation")
        return op.follow(dim, parts=label.parts_with(through=through))

    return rule


@on_label
def pad(op: Op, label: Label, dim: int) -> None:
    """Padding around the units, or of other axes."""
    widths = as_tuple(op.argument(1, "pad"))
    before, after = (*widths, *[0] * (2 * len(op.shape)))[2 * (len(op.shape) - 1 - dim) :][:2]
    if label.spread or before < 0 or after < 0:
        return unknown(op)
    parts = tuple(part.moved(before) for part in label.parts_with(padded=True))
    if not before and not after:
        return op.follow(dim, parts=parts)
    note = label.note or "pad stands between its producers and the activation"
    return op.follow(dim, stem=(), note=note, parts=parts)


@on_label
def interpolate(op: Op, label: Label, dim: int) -> None:
    """Resamples the axes from the third on."""
    return op.follow(dim) if dim == 1 and not label.spread else unknown(op)


@on_label
def repeat(op: Op, label: Label, dim: int) -> None:
    """Repeats along axes; ahead of, or behind, the units nothing changes for them."""
    times = as_tuple(op.args[1]) if len(op.args) == 2 else op.args[1:]
    if label.spread or not times or times[dim - len(op.shape)] != 1:
        return unknown(op)
    return op.follow(dim + op.result.ndim - len(op.shape))


@on_label
def unfold(op: Op, label: Label, dim: int) -> None:
    """Tensor.unfold is a view; functional.unfold makes a block of every unit's patch."""
    if op.result.ndim > len(op.shape):
        return viewed(op)
    if dim != len(op.shape) - 3 or label.spread:
        return unknown(op)
    padded = pads(op.argument(3, "padding"))
    return op.follow(dim, **_widened(label, op.result.shape[-2] // op.shape[dim], padded))


@on_label
def pixel_unshuffle(op: Op, label: Label, dim: int) -> None:
    """Makes a block of every unit's pixels."""
    if dim != len(op.shape) - 3 or label.spread:
        return unknown(op)
    return op.follow(dim, **_widened(label, op.result.shape[dim] // op.shape[dim]))


def pixel_shuffle(op: Op) -> None:
    """Spreads units over pixels; channels stay on their axis."""
    op.keep_axis((-3,), "pixel_shuffle stands between its producers and the activation")
