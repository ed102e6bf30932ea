"""One row of the settings table: a network, its input, its training loop, and what to expect."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from tests.oracle import backward

Run = Callable[[Any, tuple[Tensor, ...], int], Tensor]
"""Takes a model, a batch and the number of the step; leaves gradients and returns outputs."""


def loss_of(out: Tensor) -> Tensor:
    return out.float().square().mean()


def once(model: Any, batch: tuple[Tensor, ...], step: int) -> Tensor:
    """The plain training step: one forward, one backward."""
    out: Tensor = model(*batch)
    backward(loss_of(out))
    return out


@dataclass(frozen=True)
class Setting:
    """A network and all that the oracle cannot know about it.

    Attributes:
        name: Name of the row.
        build: Makes the network.
        batch: Makes one batch.
        dims: Unit axis by site name or pattern, as the package is to report it; first match holds.
        run: One training step.
        own: Paths of the model's own activations, and whether each is flat where it is closed.
        unseen: Activation modules that never run in a counted forward.
        ambiguous: Sites whose unit axis the package may warn that it guessed.
        compilable: Whether `torch.compile` can be expected to see the same sites.
        tolerance: Relative, of moments.
    """

    name: str
    build: Callable[[], nn.Module]
    batch: Callable[[], Tensor | tuple[Tensor, ...]]
    dims: Mapping[str, int]
    run: Run = once
    own: Mapping[str, bool] = field(default_factory=dict)
    unseen: tuple[str, ...] = ()
    ambiguous: tuple[str, ...] = ()
    dtype: torch.dtype = torch.float32
    channels_last: bool = False
    compilable: bool = False
    tolerance: float = 1e-5

    def model(self) -> nn.Module:
        """The network, the same each time, with some of its units pushed far down."""
        torch.manual_seed(0)
        model = self.build().to(self.dtype)
        kill_some(model)
        return model.to(memory_format=torch.channels_last) if self.channels_last else model

    def next_batch(self) -> tuple[Tensor, ...]:
        made = self.batch()
        tensors = made if isinstance(made, tuple) else (made,)
        return tuple(self._cast(tensor) for tensor in tensors)

    def _cast(self, tensor: Tensor) -> Tensor:
        if not tensor.is_floating_point():
            return tensor
        tensor = tensor.to(self.dtype)
        wanted = self.channels_last and tensor.ndim == 4
        return tensor.to(memory_format=torch.channels_last) if wanted else tensor


def kill_some(model: nn.Module) -> None:
    """Push the first units of every layer far down, so that there is something to find."""
    with torch.no_grad():
        for module in model.modules():
            bias = getattr(module, "bias", None)
            if isinstance(bias, nn.Parameter) and len(bias) > 1:
                bias[: max(1, len(bias) // 4)] -= 40
