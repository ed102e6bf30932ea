"""Which part of a site's units lies in this process, under tensor parallelism.

An activation there is a DTensor, which says how it lies over the processes, or what one gave as its
local part (``use_local_output=True``): then autograd's graph remembers it. What cannot be told is
refused with a reason, so that units of different processes are never taken for the same.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn

from deadwatch.observe.accumulate import SiteState
from deadwatch.observe.remarks import tell_another
from deadwatch.observe.sites import ELEMENT_WISE, name_of
from deadwatch.records import Share


def local_of(tensor: Tensor) -> Tensor:
    """What of a tensor lies in this process: the local part of a DTensor, else all of it."""
    local: Tensor = tensor.to_local() if hasattr(tensor, "to_local") else tensor
    return local


def whole_units(source: Tensor, units: int, share: Share) -> int:
    """How many units ``source`` has: all, if it is a DTensor."""
    return units if share.total is None or not hasattr(source, "placements") else share.total


def known(
    state: SiteState | None, source: Tensor, z: Tensor, *, parallel: bool
) -> SiteState | None:
    """What is kept of a site; None if nothing, or what a checkpoint knew of another model.

    Args:
        state: What is kept under its name.
        source: The input of the activation.
        z: The pre-activation, so far as it lies here.
        parallel: Whether the model is tensor parallel.

    Raises:
        ValueError: It is sharded otherwise than in its first call.
    """
    distributed = type(source) is not Tensor and hasattr(source, "placements")
    if state is None or not (state.waiting or state.distributed or distributed):
        return state  # what is plain is not looked at again: it would take too long
    if state.fits(z) and share_of(source, state, parallel=parallel) == state.share:
        state.distributed = distributed
        return state
    if not state.waiting:
        raise ValueError(f"{_SHARDED}, and otherwise than they were before")
    tell_another(state, z)
    return None


def locate(state: SiteState, source: Tensor, *, parallel: bool) -> None:
    """Note which part of a new site ``source`` holds; raises as `share_of` does."""
    state.share = share_of(source, state, parallel=parallel)
    state.distributed = hasattr(source, "placements")


def share_of(source: Tensor, state: SiteState, *, parallel: bool) -> Share:
    """The share of a site's units that ``source`` holds in this process.

    Args:
        source: The input of the activation.
        state: The site.
        parallel: Whether the model is tensor parallel.

    Raises:
        ValueError: It cannot be told; the message says why.
    """
    dim = state.dim_of(source)
    shares = {_share(spec, source, dim) for spec in _specs(source, parallel=parallel)}
    split = {share for share in shares if share.total is not None}
    if len({(share.first, share.total) for share in split}) > 1:
        raise ValueError(f"{_SHARDED}, differently in what its pre-activation is made of")
    if not split:
        return Share(counts=not shares or any(share.counts for share in shares))
    share = next(iter(split))
    if isinstance(state.module, nn.GLU) or share.first + state.units > (share.total or 0):
        raise ValueError(f"{_SHARDED}, and not as it has them ({_WAY_OUT})")
    return share


_SHARDED = "its units are sharded over processes"
_WAY_OUT = "exclude it, or give it a DTensor with use_local_output=False"


def _specs(source: Tensor, *, parallel: bool) -> list[Any]:
    """How what ``source`` is made of lies over processes; all of them have its axes if sharded."""
    if hasattr(source, "placements"):
        return [source._spec]  # type: ignore[attr-defined]
    if not parallel:
        return []
    if source.grad_fn is None:
        raise ValueError(
            "the model is tensor parallel, and autograd's graph, which would tell whether this is "
            f"a part of its units, does not reach it ({_WAY_OUT}, or checkpoint it with "
            "use_reentrant=False)"
        )
    found = []
    for spec, exact in _local_parts(source.grad_fn):
        sharded = any(not placement.is_replicate() for placement in spec.placements)
        if sharded and not (exact and len(spec.shape) == source.ndim):
            raise ValueError(
                f"{_SHARDED}, or what they are made of is; which are here is not known ({_WAY_OUT})"
            )
        found.append(spec)
    return found


def _local_parts(root: Any) -> Iterator[tuple[Any, bool]]:
    """The DTensors whose local parts a tensor is made of, and whether element by element."""
    pending, seen = [(root, True)], {(root, True)}
    while pending:
        node, exact = pending.pop()
        spec = getattr(node, "dtensor_spec", None)
        if spec is not None:
            yield spec, exact
            continue
        exact = exact and name_of(node) in ELEMENT_WISE
        for parent, _ in node.next_functions:
            if parent is not None and (parent, exact) not in seen:
                seen.add((parent, exact))
                pending.append((parent, exact))


def _share(spec: Any, source: Tensor, dim: int) -> Share:
    from torch.distributed.tensor import Shard
    from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

    axis = dim % source.ndim
    own = [type(place) for place in spec.placements if not place.is_replicate()]
    if any(kind is not Shard for kind in own):
        names = ", ".join(sorted({kind.__name__ for kind in own}))
        raise ValueError(f"its pre-activation lies over processes as {names}, not as Shard")
    here = spec.mesh.get_coordinate()
    if here is None:
        raise ValueError("its pre-activation lies in other processes alone")
    # Of those that hold the same values, one counts.
    pairs = zip(spec.placements, here, strict=True)
    counts = not any(place.is_replicate() and at for place, at in pairs)
    if not any(
        place.is_shard(axis) or place.is_shard(axis - source.ndim) for place in spec.placements
    ):
        return Share(counts=counts)
    _, offset = compute_local_shape_and_global_offset(spec.shape, spec.mesh, spec.placements)
    return Share(int(offset[axis]), int(spec.shape[axis]), counts)
