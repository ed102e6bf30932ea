"""Small networks for the settings tables."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

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


@dataclass(frozen=True)
class Setting:
    """A network, its input, and the unit axis of each activation."""

    name: str
    build: Callable[[], nn.Module]
    batch: Callable[[], Tensor]
    dims: dict[str, int]
    dtype: torch.dtype = torch.float32
    channels_last: bool = False
    tolerance: float = field(default=1e-5)


def vectors() -> Tensor:
    return torch.randn(20, 12)


_CONV = [
    Setting(
        f"conv{n}d{'-norm' if norm else ''}{'-inplace' if inplace else ''}",
        lambda n=n, norm=norm, inplace=inplace: conv(n, norm, inplace),  # type: ignore[misc]
        lambda n=n: images(n),  # type: ignore[misc]
        {"2" if norm else "1": 1, "6" if norm else "5": -1},
    )
    for n in (1, 2, 3)
    for norm in (False, True)
    for inplace in (False, True)
]

SETTINGS = [
    Setting("mlp", mlp, vectors, {"1": -1, "3": -1}),
    Setting("mlp-inplace", lambda: mlp(lambda: nn.ReLU(True)), vectors, {"1": -1, "3": -1}),
    Setting("mlp-bfloat16", mlp, vectors, {"1": -1, "3": -1}, torch.bfloat16, tolerance=1e-5),
    Setting("mlp-float64", mlp, vectors, {"1": -1, "3": -1}, torch.float64, tolerance=1e-12),
    Setting("mlp-sigmoid", lambda: mlp(nn.Sigmoid), vectors, {"1": -1, "3": -1}),
    Setting("mlp-relu6", lambda: mlp(nn.ReLU6), vectors, {"1": -1, "3": -1}),
    Setting("mlp-elu", lambda: mlp(nn.ELU), vectors, {"1": -1, "3": -1}),
    Setting("mlp-hardshrink", lambda: mlp(nn.Hardshrink), vectors, {"1": -1, "3": -1}),
    Setting("mlp-leaky", lambda: mlp(nn.LeakyReLU), vectors, {"1": -1, "3": -1}),
    Setting("mlp-logsigmoid", lambda: mlp(nn.LogSigmoid), vectors, {"1": -1, "3": -1}),
    Setting("tokens", Tokens, lambda: torch.randn(4, 5, 8), {"act": -1}),
    Setting("shared", SharedReLU, lambda: images(2), {"relu": 1}),
    Setting(
        "channels-last",
        lambda: conv(2, norm=True),
        lambda: images(2),
        {"2": 1, "6": -1},
        channels_last=True,
    ),
    Setting(
        "conv2d-bfloat16",
        lambda: conv(2, norm=True),
        lambda: images(2),
        {"2": 1, "6": -1},
        torch.bfloat16,
    ),
    *_CONV,
]
