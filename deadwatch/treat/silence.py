"""Quiet treatment: the treated units' outgoing columns are zeroed, and the function stays."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from deadwatch.errors import CannotTreat
from deadwatch.records import Wire
from deadwatch.treat import shards
from deadwatch.treat.optim import Restart
from deadwatch.treat.places import places, restarts
from deadwatch.treat.surgery import Edit

if TYPE_CHECKING:
    from deadwatch.treat.case import Case


def silence(case: Case, quiet: bool | None) -> tuple[tuple[Edit, ...], tuple[Restart, ...], bool]:
    """See `Case.silence`."""
    loud = _loud(case)
    if quiet is False:
        return (), (), False
    if loud and quiet:
        raise CannotTreat(loud)
    if loud:
        return (*_zeroed(case, _hushed(case)), False)
    readers = case.report.site.consumers
    case.require_trainable(*(wire.weight for wire in readers))
    folded = tuple(_fold(case))
    edits, starts = _zeroed(case, readers)
    return (*folded, *edits), starts, True


def _hushed(case: Case) -> tuple[Wire, ...]:
    """The readers within the forward, where others may read the units after it.

    Those see the units come back at once, say a penalty on activations, but the layers do not.
    """
    site = case.report.site
    silent = (case.report.mean_out[case.units] == 0).all()
    plain = [w for w in site.known_consumers if not (w.shared or w.through) and case.trained(w)]
    return tuple(plain) if silent and not site.consumers else ()


def _zeroed(case: Case, readers: tuple[Wire, ...]) -> tuple[tuple[Edit, ...], tuple[Restart, ...]]:
    """Zeros for the units' columns in their readers, whose state starts afresh."""
    edits: list[Edit] = []
    starts: list[Restart] = []
    for wire in readers:
        assert wire.weight is not None
        shape = case.surgery.tensor(wire.weight).shape
        outgoing = places(wire, wire.weight, case.units, shape)
        for each in outgoing:
            old = case.surgery.rows(wire.weight, each.index, each.axis, each.rows)
            zeros = torch.zeros_like(old)
            edits.append(Edit(wire.weight, each.axis, each.index, zeros, each.rows))
        live = places(wire, wire.weight, case.live, shape)
        starts += restarts(wire.weight, outgoing, live)
    return tuple(edits), tuple(starts)


def _loud(case: Case) -> str:
    """Why zeroed columns would not keep the function as it is; empty if they would."""
    site = case.report.site
    if not site.consumers:
        return f"not all layers that read it are known: {site.consumers_note}"
    for wire in site.consumers:
        if wire.shared:
            return f"{wire.module} reads it together with other values"
        if wire.through:
            return f"a {wire.through} stands between it and {wire.module}"
    return ""


def _fold(case: Case) -> Iterator[Edit]:
    """Move the units' mean contribution into the readers' biases."""
    mean = case.report.mean_out[case.units]
    low, high = case.report.min[case.units], case.report.max[case.units]
    gate = case.report.site.gate
    if gate.inside and ((low <= gate.low) & (high >= gate.high)).any():
        raise CannotTreat("quiet treatment is not possible: its output flips between two values")
    if not mean.any():
        return
    shares: dict[str, Tensor] = {}
    for wire in case.report.site.consumers:
        if np.isnan(mean).any() or wire.bias is None or wire.padded:
            reason = "was not measured" if np.isnan(mean).any() else f"{wire.module} cannot absorb"
            raise CannotTreat(f"quiet treatment is not possible: its mean output {reason}")
        case.require_trainable(wire.bias)
        # A layer may read the units at several places of one concatenation.
        share = _share(case, wire)
        shares[wire.bias] = shares.get(wire.bias, torch.zeros_like(share)) + share
    for bias, share in shares.items():
        rows = np.arange(len(share))
        yield Edit(bias, 0, rows, case.surgery.rows(bias, rows) + share, shared=True)


def _share(case: Case, wire: Wire) -> Tensor:
    """What the units contribute on average to each output of a reader: what it makes of them."""
    assert wire.weight is not None
    weight = shards.whole(case.surgery.tensor(wire.weight))
    weight = weight.to(torch.promote_types(weight.dtype, torch.float32))
    inputs = np.zeros(weight.shape[wire.axis] * wire.groups)
    inside = [unit for unit in case.units if unit in wire.units]
    inputs[wire.slices(case.units)] = np.repeat(case.report.mean_out[inside], wire.block)
    means = torch.as_tensor(inputs).to(weight).view(wire.groups, -1)
    matrix = weight.flatten(2).sum(2) if weight.ndim > 2 else weight
    matrix = matrix if wire.axis else matrix.t()
    return torch.einsum("goi,gi->go", matrix.unflatten(0, (wire.groups, -1)), means).flatten()
