"""Rules for sums, scales, and everything else that works entry by entry."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from deadwatch.observe.labels import Label, Op, on_label, tensors_in, unknown
from deadwatch.records import Wire

# Longer sums, say of the steps of a loop, are not worth their bookkeeping.
_MOST = 500

# What may return the shape it was given with the axes changed.
_MOVING = frozenset(
    {"rot90", "inverse", "pinverse", "cov", "corrcoef", "cdist"}
    | {"tensordot", "inner", "chain_matmul", "addbmm", "baddbmm"}
)


@on_label
def same(op: Op, label: Label, dim: int) -> None:
    """Keeps every unit where it is."""
    op.follow(dim)


def changed(op: Op) -> None:
    """Keeps every unit where it is, with other values."""
    label = op.label
    if label is None or label.dim is None or _writes_elsewhere(op):
        return mixed(op)
    parts, note = label.parts_with(through=op.name), label.note or _between(op)
    return op.follow(label.dim, note=note, stem=(), parts=parts)


def scale(op: Op) -> None:
    """A product with, or quotient by, a number."""
    if len(op.args) == 2 and not op.kwargs and isinstance(op.args[1], (int, float)):
        return changed(op)
    return mixed(op)


def add(op: Op) -> None:
    """A sum of two tensors with the same units: what produces it is both, in branches."""
    operands = op.args[:2] if len(op.args) == 2 and not op.kwargs else ()
    if operands and isinstance(operands[1], (int, float)) and operands[1] == 0:
        return same(op)  # as Python's own sum() begins
    found = op.labelled()
    if len(operands) != 2 or len(found) != 2 or _writes_elsewhere(op) or not _aligned(op, found):
        return mixed(op)
    if sum(len(label.parts) for _, label in found) > _MOST:
        return mixed(op)
    for _, label in found:
        label.read_by(op.name)
    summands = [_summand(op, tensor, label) for tensor, label in found]
    stem = _branches(summands)
    dim = op.place(*found[0])[-1] % op.result.ndim
    parts = (part for _, label in found for part in label.parts_with(shared=True))
    before = tuple(label for _, label in found if label.stem)
    note = "" if stem else _between(op)
    label = Label(dim, stem, note, parts=tuple(parts), before=before if stem else ())
    label.step(op.name)
    return op.tracer.set_label(op.result, label)


def _aligned(op: Op, found: list[tuple[Tensor, Label]]) -> bool:
    places = {op.place(tensor, label) for tensor, label in found}
    if len(places) != 1:
        return False
    (place,) = places
    return len(place) == 1 and len({op.shapes[id(t)][place[0]] for t, _ in found}) == 1


def _summand(op: Op, tensor: Tensor, label: Label) -> tuple[Wire, ...]:
    """What produces a summand: its stem, or the sites that it skips here from."""
    if label.stem and not label.note:
        return label.stem
    assert label.dim is not None
    size = op.shapes[id(tensor)][label.dim]
    covered = sum(len(part.units) * part.block for part in label.parts)
    if covered != size or any(part.shared for part in label.parts):
        return ()
    sites = dict.fromkeys(part.flow.site for part in label.parts)
    return tuple(Wire("skip", site, None, None, units=range(size)) for site in sites)


def _repeat(summands: list[tuple[Wire, ...]]) -> bool:
    """Whether a layer adds to several summands, as in a loop that sums up its results."""
    weights = [wire.weight for chain in summands for wire in chain if wire.weight is not None]
    return len(set(weights)) < len(weights)


def _branches(summands: list[tuple[Wire, ...]]) -> tuple[Wire, ...]:
    """The chains of all summands, numbered from 1; empty if one is not known."""
    wires: list[Wire] = []
    count = 0
    if _repeat(summands) or sum(map(len, summands)) > _MOST:
        return ()
    for chain in summands:
        numbers = {wire.branch for wire in chain}
        if not chain or (len(numbers) > 1 and 0 in numbers):
            return ()  # unknown, or itself a sum and what follows it
        wires += [replace(wire, branch=count + (wire.branch or 1)) for wire in chain]
        count += max(numbers) or 1
    return tuple(wires)


def mixed(op: Op) -> None:
    """Keeps the unit axis, but a unit is no longer made by one producer alone."""
    places = {op.place(tensor, label) for tensor, label in op.labelled()}
    if len(places) == 1:
        op.keep_axis(places.pop(), _between(op))
    else:
        unknown(op)


def unlisted(op: Op) -> None:
    """A function without a rule: what leaves the shape as it is leaves the axis, too."""
    shapes = {tuple(result.shape) for result in tensors_in(op.result)}
    kept = [(t, label) for t, label in op.labelled() if op.shapes[id(t)] in shapes]
    places = {op.place(tensor, label) for tensor, label in kept}
    if len(places) == 1 and op.name not in _MOVING and not op.name.startswith("linalg"):
        op.keep_axis(places.pop(), _between(op))
    else:
        unknown(op)


def _between(op: Op) -> str:
    return f"{op.name} stands between its producers and the activation"


def _writes_elsewhere(op: Op) -> bool:
    """Whether it writes in place, where other tensors see it whose labels know nothing of it."""
    seen = op.label is not None and op.label.readers
    return op.result is op.first and bool(op.first._is_view() or seen)
