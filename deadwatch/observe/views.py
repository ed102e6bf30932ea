"""Activations as the reductions like them best: canonical views, chunks, and two-stage reductions.

A *canonical view* of an activation is (R, C), units last, or (N, C, L), whatever its own axes and
strides: no data is moved. Over (N, C, L) a host reduces one axis after the other, the one that
makes the longer inner loop first; over both at once it is up to 20 times slower where L is small.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import lru_cache
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

CHUNK = 1 << 18
"""Elements of a chunk on the host: it and its scratch stay in a core's own cache."""

DEVICE_CHUNK = 1 << 24
"""Elements of a chunk elsewhere: enough to fill a device, so that launches do not dominate."""

LONG = 48
"""Length from which the innermost axis is reduced before the outermost."""

Reduction = Callable[[Tensor, Any], Tensor]


def canonical(z: Tensor, dim: int) -> Tensor | None:
    """A view of z with its units on axis 1 of two or three; None if its strides allow none."""
    if type(z) is not Tensor or z.layout != torch.strided:
        return None
    found = _lens(z.shape, z.stride(), dim % z.ndim)
    return None if found is None else z.as_strided(*found)


@lru_cache(maxsize=4096)
def _lens(
    shape: tuple[int, ...], stride: tuple[int, ...], dim: int
) -> tuple[tuple[int, ...], tuple[int, ...]] | None:
    """Size and strides of the canonical view."""
    others = [d for d in range(len(shape)) if d != dim and shape[d] > 1]
    others.sort(key=lambda d: -stride[d])
    outer = [d for d in others if shape[dim] == 1 or stride[d] > stride[dim]]
    inner = others[len(outer) :]
    for group in (outer, inner):
        if any(stride[a] != stride[b] * shape[b] for a, b in pairwise(group)):
            return None
    rows, step = math.prod(shape[d] for d in outer), stride[outer[-1]] if outer else 1
    if not inner:
        return (rows, shape[dim]), (step, stride[dim])
    length = math.prod(shape[d] for d in inner)
    return (rows, shape[dim], length), (step, stride[dim], stride[inner[-1]])


def reduced(reduction: Reduction, x: Tensor) -> Tensor:
    """Reduce a canonical view to one value for each unit (C,)."""
    if x.ndim == 2:
        return reduction(x, 0)
    if not x.is_cpu:
        return reduction(x, (0, 2))
    if x.shape[2] >= LONG:
        return reduction(reduction(x, 2), 0)
    return reduction(reduction(x, 0), 1)


def chunks(z: Tensor, dim: int) -> Iterator[Tensor]:
    """Canonical views of slices of z, in float32 or wider; each is copied if it has to be."""
    size = CHUNK if z.is_cpu else DEVICE_CHUNK
    x = canonical(z, dim)
    if x is not None:
        yield from map(wide, _split(x, size))
        return
    if z.ndim < 2:
        yield wide(z).reshape(1, -1)
        return
    along = max((d for d in range(z.ndim) if d != dim % z.ndim), key=lambda d: z.shape[d])
    for part in z.split(max(1, size * z.shape[along] // max(1, z.numel())), along):
        yield wide(part).movedim(dim, -1).reshape(-1, z.shape[dim])


def chunks_with_scratch(z: Tensor, dim: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """The chunks of z, each with two tensors of its shape to write on."""
    a = b = None
    for chunk in chunks(z, dim):
        if a is None or b is None or a.shape != chunk.shape:
            del a, b  # before others take their place
            a, b = torch.empty_like(chunk), torch.empty_like(chunk)
        yield chunk, a, b


def _split(x: Tensor, size: int) -> tuple[Tensor, ...]:
    rows = size * x.shape[0] // max(1, x.numel())
    if rows >= x.shape[0]:
        return (x,)
    if rows == 0 and x.ndim == 3:
        return torch.split(x, max(1, size * x.shape[2] * x.shape[0] // x.numel()), 2)
    return torch.split(x, max(1, rows))


def wide(x: Tensor) -> Tensor:
    """Float32, or x itself if it is float32 or float64: half precision cannot count."""
    return x if x.dtype in (torch.float32, torch.float64) else x.float()


def per_unit(values: Tensor, x: Tensor) -> Tensor:
    """Values of units (C,), shaped to broadcast against a canonical view."""
    return values if x.ndim == 2 else values[:, None]
