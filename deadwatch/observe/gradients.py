"""How large the loss's gradient is at the pre-activations, on steps whose statistics are taken.

It is what the backward pass brings: with a ``GradScaler`` it is scaled, after two backward passes
it is of both, and with a sum for a loss it grows with the batch. So only the ratio of two sites of
one window means something. It is missing where no hook is told of it: in compiled graphs, under
reentrant checkpoints, and where an activation writes over a view of what the layer made.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from deadwatch.errors import SiteDisabledWarning
from deadwatch.observe.accumulate import SiteState
from deadwatch.observe.hooks import no_dispatch_modes
from deadwatch.observe.sharding import local_of
from deadwatch.observe.stats import real_dtype
from deadwatch.observe.transfer import by_device
from deadwatch.observe.views import chunks

Squares = tuple[float, float]
"""Sum of the squares of a site's gradients, and how many they are."""


@dataclass(frozen=True, eq=False)
class _Norm:
    """The norm of one gradient, on the device (), and how many elements it has."""

    site: str
    norm: Tensor
    count: int


class Gradients:
    """Adds up the squares of gradients, by hooks on the tensors that activations are given.

    A hook launches a pass over the gradient, and returns; what it found is added up once a step.
    Gradients with elements that are not finite are left out, as steps that a ``GradScaler`` skips.
    """

    def __init__(self) -> None:
        self._norms: list[_Norm] = []
        self._sums: dict[str, tuple[Tensor, Tensor]] = {}
        self._failed: set[str] = set()

    def feel(self, state: SiteState, source: Tensor, step: int) -> None:
        """A site is given ``source``; if it takes statistics, see what gradient comes back."""
        # A leaf would keep the hook for ever, and no layer has made it.
        if state.sampled == step and source.requires_grad and source.grad_fn is not None:
            module = state.module
            halves = module.dim if isinstance(module, nn.GLU) else None
            source.register_hook(partial(self._take, state.site.name, state.dim, halves))

    def _take(self, site: str, dim: int, halves: int | None, grad: Tensor) -> None:
        try:
            with torch.no_grad(), torch._C.DisableTorchFunction(), no_dispatch_modes():
                local = local_of(grad.detach())
                z = local if halves is None else local.chunk(2, halves)[1]
                if site not in self._failed and z.numel():
                    self._norms.append(_Norm(site, _norm(z, dim), z.numel()))
        except Exception as error:  # never break training
            self._failed.add(site)
            warnings.warn(
                f"measuring the gradient at {site!r} failed and is switched off; training goes on. "
                f"{type(error).__name__}: {error}",
                SiteDisabledWarning,
                stacklevel=2,
            )

    @torch.no_grad()
    def fold(self) -> None:
        """Add up what the hooks have found."""
        norms, self._norms = self._norms, []
        while norms:
            firsts = {one.site: one for one in reversed(norms)}
            for device in {one.norm.device for one in firsts.values()}:
                self._add([one for one in firsts.values() if one.norm.device == device])
            norms = [one for one in norms if firsts[one.site] is not one]

    def _add(self, norms: list[_Norm]) -> None:
        squares = torch.stack([one.norm for one in norms]).square()
        finite = squares.isfinite()
        kept = torch.where(finite, squares, 0).unbind()
        counts = torch._foreach_mul(
            list(finite.to(squares.dtype).unbind()), [float(one.count) for one in norms]
        )
        known = [self._known(one) for one in norms]
        torch._foreach_add_([sums[0] for sums in known], list(kept))
        torch._foreach_add_([sums[1] for sums in known], list(counts))

    def _known(self, one: _Norm) -> tuple[Tensor, Tensor]:
        sums = self._sums.get(one.site)
        if sums is None:
            sums = torch.zeros_like(one.norm), torch.zeros_like(one.norm)
        elif sums[0].device != one.norm.device:
            sums = sums[0].to(one.norm), sums[1].to(one.norm)
        self._sums[one.site] = sums
        return sums

    def restart(self) -> None:
        """Begin a window."""
        self.fold()
        self._sums.clear()

    def fetch(self) -> dict[str, Squares]:
        """What was measured of each site, in one transfer a device."""
        self.fold()
        found: dict[str, Squares] = {}
        for names in by_device(self._sums, lambda name: self._sums[name][0]).values():
            table = torch.stack([torch.stack(self._sums[name]) for name in names]).tolist()
            found |= {
                name: (total, count) for name, (total, count) in zip(names, table, strict=True)
            }
        return {name: found[name] for name in self._sums if found[name][1]}

    def load(self, saved: Mapping[str, Squares]) -> None:
        """Go on from what another run had measured in this window."""
        self._sums = {
            name: (_exact(total), _exact(count)) for name, (total, count) in saved.items()
        }


def _exact(value: float) -> Tensor:
    return torch.tensor(value, dtype=torch.float64)


def _norm(z: Tensor, dim: int) -> Tensor:
    """The norm of a gradient (), in double precision: else the squares of small ones were zero."""
    z = z.reshape(1) if z.ndim == 0 else z
    real = real_dtype(z.device)
    norms = [torch.linalg.vector_norm(part.to(real)) for part in _pieces(z, dim)]
    norm: Tensor = norms[0] if len(norms) == 1 else torch.linalg.vector_norm(torch.stack(norms))
    return norm


def _pieces(z: Tensor, dim: int) -> Iterator[Tensor]:
    for chunk in chunks(z, dim):
        yield from chunk.split(max(1, _PIECE * len(chunk) // chunk.numel()))


_PIECE = 1 << 21
"""Elements that are widened at once: 16 MB, where a whole gradient might take gigabytes."""
