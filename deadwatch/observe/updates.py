"""How far training steps move the weights: rms(ΔW) / max(rms(W before), rms(W after)).

A weight that is close to zero yet, as one that was initialised there, is compared with
0.3 / √fan_in: until it is as large as that, it does little to its units.

Of each weight a fixed sample is kept, of `SAMPLES` elements at most. All samples lie in one matrix,
a row for each weight, so that a step takes a dozen launches whatever the number of weights.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from deadwatch.activations import readable
from deadwatch.observe.sharding import local_of
from deadwatch.observe.stats import real_dtype

SAMPLES = 256

_LEAST = 0.3
"""What a weight is compared with at least, in units of 1 / √fan_in; torch's own are 0.58 of it."""


class Moved(NamedTuple):
    """What a window's updates of one weight come to.

    Attributes:
        total: Sum of the relative updates.
        steps: Steps that moved it.
        peak: The largest; of single precision.
        peak_step: The first step it was in.
    """

    total: float = 0.0
    steps: int = 0
    peak: float = 0.0
    peak_step: int = 0


class Updates:
    """Compares the samples of all weights from step to step, without waiting for the device.

    A weight counts as moved in a step if any element of its sample is another one than after the
    step before. Samples that are not finite, or of which the whole was replaced, say nothing.
    """

    def __init__(self) -> None:
        self._groups: list[_Group] = []
        self._figures: dict[str, Tensor] = {}
        self._weights: dict[str, Tensor] = {}
        self._lazy = False

    @torch.no_grad()
    def survey(self, model: nn.Module) -> None:
        """Take samples anew, of the weights that there are now; what was measured stays."""
        self.release()
        self._weights = dict(_weights(model))
        self._lazy = any(is_lazy(parameter) for parameter in model.parameters())
        lying: dict[tuple[torch.device, bool], list[str]] = {}
        for name, weight in self._weights.items():
            lying.setdefault((weight.device, weight.dtype == torch.float64), []).append(name)
        for (device, wide), names in lying.items():
            figures = [self._figures.pop(name, None) for name in names]
            weights = [self._weights[name] for name in names]
            self._groups.append(_Group.of(names, weights, device, wide, figures))

    def follow(self, model: nn.Module) -> None:
        """Survey a model again if it has other weights by now."""
        now = dict(_weights(model))
        same = now.keys() == self._weights.keys()
        if self._groups and not (same and all(now[n] is w for n, w in self._weights.items())):
            self.survey(model)

    @torch.no_grad()
    def retake(self) -> None:
        """Something else than a step has changed weights: go on from what they are now."""
        for group in self._groups:
            group.take()
            group.turn()

    @torch.no_grad()
    def step(self, step: int, model: nn.Module) -> None:
        """Measure what this step did."""
        if self._lazy or any(group.has_left() for group in self._groups):
            self.survey(model)
        for group in self._groups:
            group.step(step)

    def release(self) -> None:
        """Keep nothing of the model; what was measured stays."""
        for group in self._groups:
            if not group.figures.is_meta:
                self._figures |= dict(zip(group.names, group.figures.unbind(1), strict=True))
        self._groups, self._weights = [], {}

    def restart(self) -> None:
        """Begin a window."""
        self._figures.clear()
        for group in self._groups:
            group.figures.zero_()

    def fetch(self) -> dict[str, Moved]:
        """What was measured of each weight that moved, in one transfer a device."""
        found: dict[str, Tensor] = {name: one.cpu() for name, one in self._figures.items()}
        for group in (one for one in self._groups if not one.figures.is_meta):
            host = group.figures.cpu()
            found |= dict(zip(group.names, host.unbind(1), strict=True))
        told = {name: figures.tolist() for name, figures in found.items()}
        return {
            name: Moved(total, int(count), peak, int(step))
            for name, (total, count, peak, step) in told.items()
            if count
        }

    def load(self, moved: Mapping[str, Moved]) -> None:
        """Go on from what another run had measured in this window."""
        self._figures |= {name: torch.tensor(one, dtype=_KEPT) for name, one in moved.items()}


_KEPT = torch.float64


def _weights(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Every trainable weight, tied ones by their first name."""
    for name, one in model.named_parameters():
        usable = one.requires_grad and not is_lazy(one) and one.is_floating_point()
        if usable and one.ndim >= 2 and local_of(one.detach()).numel():
            yield readable(name), one


@dataclass(eq=False)
class _Group:
    """The weights that lie on one device.

    Attributes:
        names: Their names.
        weights: The weights L.
        figures: `Moved` of each (4, L).
        old: Samples after the step before (L, SAMPLES); 0 where there is none.
        new: The same of now.
        size: Norms of the old samples (L,).
        least: What changes are compared with at least (L,).
        views: The samples, where the weights are.
        slots: Where they go in ``old`` and ``new``.
        lying: Where the weights were when the views were made.
    """

    names: list[str]
    weights: list[Tensor]
    figures: Tensor
    old: Tensor
    new: Tensor
    size: Tensor
    least: Tensor
    views: list[Tensor] = field(default_factory=list)
    slots: tuple[list[Tensor], list[Tensor]] = field(default_factory=lambda: ([], []))
    lying: list[int] = field(default_factory=list)

    @classmethod
    def of(
        cls,
        names: list[str],
        weights: list[Tensor],
        device: torch.device,
        wide: bool,
        figures: Iterable[Tensor | None],
    ) -> _Group:
        """Begin with samples of what the weights are now."""
        kept = torch.zeros(4, len(names), dtype=real_dtype(device), device=device)
        for index, known in enumerate(figures):
            if known is not None:
                kept[:, index] = known.to(kept)
        dtype = torch.float64 if wide else torch.float32
        old, new = (torch.zeros(len(names), SAMPLES, dtype=dtype, device=device) for _ in range(2))
        views = [_sample(local_of(weight.detach())) for weight in weights]
        least = kept.new_tensor([_least(w, v) for w, v in zip(weights, views, strict=True)])
        group = cls(names, weights, kept, old, new, kept.new_zeros(len(names)), least, views)
        group.lying = group.places()
        group.slots = tuple([row(m, i, v) for i, v in enumerate(group.views)] for m in (old, new))  # type: ignore[assignment]
        group.take()
        group.turn()
        return group

    def places(self) -> list[int]:
        """Where the weights are; 0 for one that is nowhere."""
        return [_local(weight).data_ptr() for weight in self.weights]

    def has_left(self) -> bool:
        """Whether a weight is on another device, or of another type, by now."""
        device, wide = self.old.device, self.old.dtype == torch.float64
        return any(w.device != device or (w.dtype == torch.float64) != wide for w in self.weights)

    def take(self) -> list[int]:
        """Take new samples; returns those of weights that were put elsewhere since."""
        now = self.places()
        moved = [] if now == self.lying else [i for i, at in enumerate(now) if at != self.lying[i]]
        for index in moved:
            weight = _local(self.weights[index]).detach()
            self.views[index] = view = _sample(weight if now[index] else weight.new_empty(0))
            for slots, matrix in zip(self.slots, (self.old, self.new), strict=True):
                matrix[index].zero_()
                slots[index] = row(matrix, index, view)
        self.lying = now
        torch._foreach_copy_(self.slots[1], self.views)
        return moved

    def turn(self, size: Tensor | None = None) -> None:
        """The new samples become the old ones."""
        self.size = self._norm(self.new) if size is None else size
        self.old, self.new, self.slots = self.new, self.old, self.slots[::-1]

    def step(self, step: int) -> None:
        """Compare the samples with those of the step before."""
        for index in self.take():
            self.old[index] = self.new[index]
        size = self._norm(self.new)
        # Of single precision, so that ranks can tell each other the peak and its step at once.
        whole = torch.maximum(torch.maximum(size, self.size), self.least)
        ratio = (self._norm(self.new - self.old) / whole).float()
        total, count, peak, peak_step = self.figures
        moved = ratio > 0  # not where it is NaN
        total.add_(torch.where(moved, ratio, 0))
        count.add_(moved)
        peak_step.masked_fill_(ratio > peak, step)
        torch.fmax(peak, ratio.to(peak.dtype), out=peak)
        self.turn(size)

    def _norm(self, matrix: Tensor) -> Tensor:
        # In double precision, where the squares of the smallest updates are not zero.
        norm: Tensor = torch.linalg.vector_norm(matrix, dim=1, dtype=self.figures.dtype)
        return norm


def _least(weight: Tensor, sample: Tensor) -> float:
    fan_in = weight.numel() / max(1, weight.shape[0])
    return _LEAST * math.sqrt(sample.numel() / max(1, fan_in))


def _local(weight: Tensor) -> Tensor:
    return weight if type(weight) is nn.Parameter else local_of(weight)


def row(matrix: Tensor, index: int, sample: Tensor) -> Tensor:
    """Where a sample goes in a matrix of samples."""
    return matrix[index, : sample.numel()].view(sample.shape)


def _sample(weight: Tensor) -> Tensor:
    """A view of at most `SAMPLES` elements, spread over all rows and columns."""
    dense = weight.permute(sorted(range(weight.ndim), key=weight.stride, reverse=True))
    if not dense.is_contiguous():
        while weight.numel() > SAMPLES:
            axis = max(range(weight.ndim), key=lambda axis: weight.shape[axis])
            halved: Any = (slice(None),) * axis + (slice(None, None, 2),)
            weight = weight[halved]
        return weight
    stride = max(1, math.ceil(weight.numel() / SAMPLES))
    # A stride that divides the length of a row would look at a few columns only.
    while math.gcd(stride, weight.numel()) > 1:
        stride += 1
    return dense.reshape(-1)[::stride]
