"""Parameters that are spread over ranks, read as if they were whole, written where they lie.

Under ``fully_shard`` (and in tensor parallelism) a parameter and its optimizer state are DTensors:
each rank holds some of the rows. Plans are made from whole values, so that every rank makes the
same one, and so does a single process; of what is written, each rank takes its own share.

This is the only file of the treatment that calls a collective: every rank has to read the same
tensors in the same order, which it does, for verdicts and plans are the same on all ranks.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from deadwatch.records import Ints


def is_sharded(tensor: Tensor) -> bool:
    """Whether other ranks may hold other parts of a tensor."""
    module: Any = sys.modules.get("torch.distributed.tensor")
    # Who never imported it, which takes a while, has no DTensor.
    return module is not None and isinstance(tensor, module.DTensor)


def whole(tensor: Tensor) -> Tensor:
    """All values of a tensor, also of a sharded one; then it is a copy, and all ranks must call."""
    with torch.no_grad():
        full: Any = tensor.detach()
        found: Tensor = full.full_tensor() if is_sharded(tensor) else full
        return found


def slices(tensor: Tensor, axis: int, index: Ints, rows: range | None = None) -> Tensor:
    """A copy of the slices ``index`` along ``axis``, within ``rows`` of axis 0."""
    within = narrowed(whole(tensor), rows)
    return within.index_select(axis, torch.as_tensor(index, device=within.device))


def narrowed(tensor: Tensor, rows: range | None) -> Tensor:
    """A view of some indices of axis 0; all of them for None."""
    return tensor if rows is None else tensor.narrow(0, rows.start, len(rows))


def share(
    tensor: Tensor, axis: int, index: Ints, value: Tensor, rows: range | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """What of new slices falls on this rank's part of a tensor.

    Args:
        tensor: The tensor, sharded or not.
        axis: The axis of the slices.
        index: Where they lie along it.
        value: Their new values.
        rows: The indices of axis 0 within which they lie; all of them for None.

    Returns:
        The part to write into, where along ``axis``, and the values.
    """
    at = torch.as_tensor(index, device=tensor.device)
    if not is_sharded(tensor):
        return narrowed(tensor, rows), at, value
    part = _here(tensor)
    first = rows.start if rows is not None else 0
    for dim, span in enumerate(spans(tensor)):
        if dim == axis:
            at = at + (first if dim == 0 else 0)
            here = (at >= span.start) & (at < span.stop)
            at, value = at[here] - span.start, value[_along(dim, here)]
        elif dim == 0 and rows is not None:
            low, high = max(rows.start, span.start), min(rows.stop, span.stop)
            value = value.narrow(0, low - rows.start if high > low else 0, max(0, high - low))
            part = part.narrow(0, low - span.start if high > low else 0, max(0, high - low))
        else:
            value = value.narrow(dim, span.start, len(span))
    return part, at, value


def present(tensor: Tensor, index: Ints, otherwise: Tensor) -> Tensor:
    """The entries ``index`` of a vector where this rank holds them, else ``otherwise``.

    It needs no other rank.
    """
    if not is_sharded(tensor):
        return slices(tensor, 0, index)
    (span,) = spans(tensor)
    part = _here(tensor.detach())
    at = torch.as_tensor(index, device=part.device)
    here = (at >= span.start) & (at < span.stop)
    found = otherwise.to(part, copy=True)
    found[here] = part[at[here] - span.start]
    return found


def spans(tensor: Tensor) -> tuple[range, ...]:
    """Which indices of each axis this rank holds of a sharded tensor."""
    from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

    sharded: Any = tensor
    shape, offset = compute_local_shape_and_global_offset(
        sharded.shape, sharded.device_mesh, sharded.placements
    )
    return tuple(range(start, start + size) for start, size in zip(offset, shape, strict=True))


def foreign(tensor: Tensor) -> str:
    """How a tensor is spread over ranks, if in a way that cannot be written slice by slice."""
    placements = getattr(tensor, "placements", ())
    odd = [str(p) for p in placements if type(p).__name__ not in ("Shard", "Replicate")]
    return " and ".join(odd)


def resharded(modules: Iterable[nn.Module]) -> None:
    """Have ``fully_shard`` put away what it left whole after a forward.

    Until its backward the outermost module keeps whole parameters in the place of its own, which
    no optimizer knows and to which nothing may be written; a window may end there, say after a
    validation. With a number for ``reshard_after_forward`` all keep theirs spread over fewer ranks.
    """
    fsdp: Any = sys.modules.get("torch.distributed.fsdp")
    for module in modules if fsdp is not None else ():
        if isinstance(module, fsdp.FSDPModule):
            module.reshard()


def _here(tensor: Any) -> Tensor:
    part: Tensor = tensor.to_local()
    return part


def _along(dim: int, chosen: Tensor) -> tuple[Any, ...]:
    return (*[slice(None)] * dim, chosen)
