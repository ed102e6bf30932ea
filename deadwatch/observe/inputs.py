"""What layers are given, in the forwards that are followed anyhow.

Of raw data it is known that they come from outside of the model: the arguments of the forward, and
what is made of these and of buffers alone. Whatever has not been seen is not called raw.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from deadwatch.activations import readable
from deadwatch.observe.hooks import is_real
from deadwatch.observe.labels import Op, tensors_in
from deadwatch.observe.transfer import by_device
from deadwatch.observe.views import wide
from deadwatch.records import LayerInput


@dataclass(frozen=True, eq=False)
class Given:
    """What one layer was given; the figure is on the device.

    Attributes:
        centre: ‖mean‖ / ‖std‖ over its features, of no axes.
        features: Number of features.
        samples: Values of each feature.
        raw: Whether it comes from outside of the model.
    """

    centre: Tensor
    features: int
    samples: int
    raw: bool


class Inputs:
    """Notes the input of each layer in its first call of a forward; that of the latest stays."""

    def __init__(self) -> None:
        self.given: dict[str, Given] = {}
        self._taken: set[str] = set()
        self._raw: dict[int, weakref.ref[Tensor]] = {}

    def begin(self, arguments: object) -> None:
        """A forward with these arguments is followed."""
        self._taken.clear()
        self._raw.clear()
        self._mark(tensor for tensor in tensors_in(arguments) if tensor.grad_fn is None)

    def end(self) -> None:
        """It has ended."""
        self._raw.clear()

    def follow(self, op: Op) -> None:
        """An operation was called, and its result labelled."""
        given, results = list(tensors_in((op.args, op.kwargs))), list(tensors_in(op.result))
        raw = all(self.is_raw(t) or op.tracer.buffer_name(t) is not None for t in given)
        if raw and not any(op.tracer.label_of(t) for t in results):
            self._mark(results)
        else:
            for tensor in results or given[:1]:
                self._raw.pop(id(tensor), None)

    def _mark(self, tensors: Iterable[Tensor]) -> None:
        self._raw |= {id(tensor): weakref.ref(tensor) for tensor in tensors}

    def is_raw(self, tensor: Tensor) -> bool:
        """Whether a tensor is known to come from outside of the model."""
        reference = self._raw.get(id(tensor))
        return reference is not None and reference() is tensor

    def take(self, weight: str, data: Tensor, dim: int) -> None:
        """The layer of a weight is given ``data``, with its features along ``dim`` < 0."""
        name = readable(weight)
        usable = type(data) is Tensor and data.is_floating_point() and is_real(data)
        if name in self._taken or not usable or not data.numel():
            return
        self._taken.add(name)
        features = data.shape[dim]
        centre = centre_of(data, dim)
        self.given[name] = Given(centre, features, data.numel() // features, self.is_raw(data))

    def fetch(self) -> dict[str, LayerInput]:
        """What was noted, in one transfer a device; what is no number is left out."""
        found: dict[str, float] = {}
        for names in by_device(self.given, lambda name: self.given[name].centre).values():
            centres = torch.stack([self.given[name].centre.double() for name in names])
            found |= zip(names, centres.tolist(), strict=True)
        return {
            name: LayerInput(found[name], one.features, one.samples, one.raw)
            for name, one in self.given.items()
            if not math.isnan(found[name])
        }

    def load(self, known: Mapping[str, LayerInput]) -> None:
        """Go on with what another run has noted."""
        self.given |= {
            name: Given(torch.tensor(one.centre), one.features, one.samples, one.raw)
            for name, one in known.items()
        }


@torch.no_grad()
def centre_of(data: Tensor, dim: int) -> Tensor:
    """‖mean‖ / ‖std‖ over the features along ``dim`` (), in single precision.

    It is infinite where nothing varies.
    """
    others = [axis for axis in range(-data.ndim, 0) if axis != dim]
    x = wide(data.detach())
    variance, mean = (
        torch.var_mean(x, dim=others, correction=0) if others else (torch.zeros_like(x), x)
    )
    size, spread = torch.linalg.vector_norm(mean), variance.sum().sqrt()
    # A deviation that is within the rounding of the mean is none.
    varies = spread > 4 * torch.finfo(x.dtype).eps * size
    return torch.where(varies | spread.isnan(), size / spread, math.inf).float()
