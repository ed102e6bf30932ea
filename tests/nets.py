"""Small networks that many tests use."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn


class SharedReLU(nn.Module):
    """A block in the manner of torchvision's: one in-place ReLU, called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 6, 3, padding=1)
        self.bn1 = nn.BatchNorm2d(6)
        self.conv2 = nn.Conv2d(6, 3, 3, padding=1)
        self.bn2 = nn.BatchNorm2d(3)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.relu(self.bn1(self.conv1(x)))
        out: Tensor = self.relu(self.bn2(self.conv2(hidden)) + x)
        return out


class Tokens(nn.Module):
    """A transformer's feed-forward block on (B, T, D)."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(8)
        self.up = nn.Linear(8, 16)
        self.act = nn.GELU()
        self.down = nn.Linear(16, 8)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.down(self.act(self.up(self.norm(x))))
        return out


def mlp(act: Callable[[], nn.Module] = nn.ReLU, width: int = 16) -> nn.Sequential:
    return nn.Sequential(
        *(nn.Linear(12, width), act()), *(nn.Linear(width, width), act()), nn.Linear(width, 5)
    )


def conv(n: int, norm: bool = False, inplace: bool = False) -> nn.Sequential:
    layer = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[n - 1]
    batch_norm = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)[n - 1]
    pool = (nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d)[n - 1]
    middle: list[nn.Module] = [batch_norm(7)] if norm else []
    return nn.Sequential(
        layer(3, 7, 3, padding=1),
        *middle,
        nn.ReLU(inplace=inplace),
        pool(2),
        nn.Flatten(),
        nn.Linear(7 * 2**n, 9),
        nn.ReLU(inplace=inplace),
        nn.Linear(9, 4),
    )


def images(n: int, batch: int = 6) -> Tensor:
    return torch.randn(batch, 3, *[4] * n)


def vectors() -> Tensor:
    return torch.randn(20, 12)
