"""What an entry of the zoo is: an architecture as published, and data as it expects them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F


@dataclass(frozen=True)
class Batch:
    """What a model is given, and what is wanted of it."""

    inputs: tuple[Tensor, ...]
    target: Tensor


Loss = Callable[[Any, Tensor], Tensor]


def classified(out: Tensor, target: Tensor) -> Tensor:
    """Cross-entropy over the last axis, or over channels where pixels are classified."""
    if out.ndim == 4:
        return F.cross_entropy(out, target)
    return F.cross_entropy(out.flatten(0, -2), target.flatten())


def squared(out: Tensor, target: Tensor) -> Tensor:
    return F.mse_loss(out, target)


def yes_or_no(out: Tensor, target: Tensor) -> Tensor:
    return F.binary_cross_entropy_with_logits(out.squeeze(-1), target)


def sgd(parameters: Iterable[nn.Parameter], lr: float) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr, momentum=0.9, weight_decay=1e-4)


def adamw(parameters: Iterable[nn.Parameter], lr: float) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, lr, weight_decay=0.01)


def adam(parameters: Iterable[nn.Parameter], lr: float) -> torch.optim.Optimizer:
    return torch.optim.Adam(parameters, lr)


@dataclass(frozen=True)
class Entry:
    """An architecture.

    Attributes:
        source: Where it was published.
        build: Makes it, with its own initialisation.
        batch: Makes a batch of the data that it was made for, as they are given to it.
        loss: What it is trained on.
        lr: Learning rate that is usual for it; with SGD in proportion to the batch.
        optimizer: Makes the optimizer that is usual for it.
        sites: Whether it has any activation that can be watched.
    """

    source: str
    build: Callable[[], nn.Module]
    batch: Callable[[Generator], Batch]
    loss: Loss = classified
    lr: float = 1e-3
    optimizer: Callable[[Iterable[nn.Parameter], float], torch.optim.Optimizer] = adamw
    sites: bool = True

    def model(self, seed: int = 0) -> nn.Module:
        """A fresh model, in training mode."""
        with torch.random.fork_rng([]):
            torch.manual_seed(seed)
            return self.build()

    def batches(self, count: int = 1, seed: int = 0) -> list[Batch]:
        generator = Generator().manual_seed(seed)
        return [self.batch(generator) for _ in range(count)]


def run(model: nn.Module, batch: Batch) -> Any:
    """A forward, as `deadwatch.scan` takes one."""
    return model(*batch.inputs)
