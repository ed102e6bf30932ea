"""What advice tests share: advice on a model and a batch, by rule."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from deadwatch import Finding, advise, scan


def advised(model: nn.Module, x: Tensor | None = None, **arguments: Any) -> list[Finding]:
    """Advice on a model, scanned with a batch if there is one."""
    report = None if x is None else scan(model, [x])
    return advise(model, report=report, **arguments)


def by(rule: str, findings: list[Finding]) -> list[Finding]:
    """The findings of one rule."""
    return [finding for finding in findings if finding.id == rule]


def deep(layers: int, width: int, inputs: int = 6) -> nn.Sequential:
    """A chain of ReLU layers."""
    sizes = [inputs, *[width] * layers]
    hidden = [part for a, b in pairwise(sizes) for part in (nn.Linear(a, b), nn.ReLU())]
    return nn.Sequential(*hidden, nn.Linear(width, 3))


def tdnn(first: Callable[[int], nn.Module], then: Callable[[int], nn.Module]) -> nn.Sequential:
    """Time-delay layers (x-vectors): what follows each convolution, in which order."""
    layers: list[nn.Module] = []
    for inputs, outputs in ((8, 16), (16, 16)):
        layers += [nn.Conv1d(inputs, outputs, 3), first(outputs), then(outputs)]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(16, 4))


class Scorer(nn.Module):
    """Attention pooling: a score for each token, softmax over tokens, their weighted sum."""

    def __init__(self, last: nn.Module, units: int = 1) -> None:
        super().__init__()
        self.values = nn.Linear(8, 16)
        self.scores = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, units), last)

    def forward(self, x: Tensor) -> Tensor:
        weights = torch.softmax(self.scores(x) / 2, dim=1)
        pooled: Tensor = (weights * self.values(x)).sum(1)
        return pooled


def signals() -> Tensor:
    return torch.randn(40, 8, 30, generator=torch.Generator().manual_seed(0))


def tokens() -> Tensor:
    return torch.randn(40, 12, 8, generator=torch.Generator().manual_seed(0))


def rows(count: int = 500, features: int = 6) -> Tensor:
    return torch.randn(count, features, generator=torch.Generator().manual_seed(0))
