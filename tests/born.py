"""Models and batches that a command line names."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache, partial
from typing import Any

import torch
from torch import Tensor, nn

UNDOTTED = "<img src=x onerror=alert(1)>"


def model(dead: int = 3) -> nn.Module:
    torch.manual_seed(0)
    made = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2))
    with torch.no_grad():
        made[0].bias[:dead] = -99
    return made


def batches() -> Iterator[Tensor]:
    generator = torch.Generator().manual_seed(1)
    for _ in range(5):
        yield torch.randn(200, 4, generator=generator)


def both() -> tuple[nn.Module, Any]:
    return model(), [(x, None) for x in batches()]


def hostile() -> nn.Module:
    made = nn.Sequential()
    for name, child in model()[:2].named_children():
        made.add_module(f"{name}{UNDOTTED}[red]\x1b[2J\n", child)
    return made


def failing() -> nn.Module:
    raise RuntimeError("no licence")


LISTED = list(batches())
NUMBER = 3
WIDE = [torch.randn(3, 5)]
EMPTY: list[Tensor] = []


def talking() -> tuple[nn.Module, list[Tensor]]:
    """Prints something, as code that loads data may."""
    print("loading data")
    return model(), list(batches())


def ending() -> nn.Module:
    """Ends the program, as ``argparse`` does, and says that all went well."""
    raise SystemExit(0)


class Ending(nn.Module):
    """Ends the program in its forward."""

    def forward(self, x: Tensor) -> Tensor:
        raise SystemExit(0)


def both_ending() -> tuple[nn.Module, list[Tensor]]:
    """A model that ends the program, and batches."""
    return nn.Sequential(nn.ReLU(), Ending()), list(batches())


def normed(bias: bool = True) -> nn.Module:
    """A model with a bias before a norm, which is worth knowing (DW103)."""
    torch.manual_seed(0)
    first = nn.Linear(4, 32, bias=bias)
    return nn.Sequential(first, nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 2))


def healthy() -> tuple[nn.Module, Any]:
    """A model in which there is nothing to find."""
    torch.manual_seed(0)
    made = nn.Sequential(nn.Linear(4, 64), nn.ReLU(), nn.Linear(64, 2))
    nn.init.kaiming_normal_(made[0].weight, nonlinearity="relu")
    nn.init.zeros_(made[0].bias)
    return made, batches()


def normed_with_batches() -> tuple[nn.Module, Any]:
    return normed(), batches()


def normed_twice() -> tuple[nn.Module, Any]:
    """With two such biases."""
    return nn.Sequential(normed(), nn.BatchNorm1d(2), nn.ReLU()), batches()


def with_optimizer() -> tuple[nn.Module, Any, torch.optim.Optimizer]:
    made = normed()
    return made, batches(), adam(made)


def without_batches() -> tuple[nn.Module, None, torch.optim.Optimizer]:
    made = normed()
    return made, None, adam(made)


def adam(made: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(made.parameters(), lr=0.125, weight_decay=0.25)


def endless() -> tuple[nn.Module, Any]:
    """Batches without an end."""
    return normed(), (torch.randn(50, 4) for _ in iter(int, 1))


@lru_cache
def cached() -> nn.Module:
    """A factory behind a decorator."""
    return normed()


ANOTHER = partial(normed, bias=True)
