"""The networks whose training steps `overhead.py` times, plain torch so that any torch runs them.

Also imported in the environments of the peers (`peers.py`), where deadwatch is not installed: this
file imports torch alone.
"""

from __future__ import annotations

import platform
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn


class Block(nn.Module):
    """A residual block of two 3×3 convolutions with one shared in-place ReLU."""

    def __init__(self, width: int, out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, out, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(out)
        self.conv2 = nn.Conv2d(out, out, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(out)
        self.relu = nn.ReLU(inplace=True)
        self.skip = nn.Identity() if stride == 1 else nn.Conv2d(width, out, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.relu(self.bn1(self.conv1(x)))
        result: Tensor = self.relu(self.bn2(self.conv2(hidden)) + self.skip(x))
        return result


def resnet() -> nn.Module:
    """Shaped like ResNet-18: 17 sites in 9 activation modules."""
    widths = [(64, 64, 1), (64, 64, 1), (64, 128, 2), (128, 128, 1)]
    widths += [(128, 256, 2), (256, 256, 1), (256, 512, 2), (512, 512, 1)]
    return nn.Sequential(
        *(nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64), nn.ReLU(inplace=True)),
        *(nn.MaxPool2d(3, 2, 1), *(Block(*width) for width in widths)),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, 10)),
    )


def transformer() -> nn.Module:
    """Four encoder layers of width 256 with GELU modules."""
    layer = nn.TransformerEncoderLayer(
        256, 4, 1024, dropout=0.0, activation=nn.GELU(), batch_first=True
    )
    return nn.TransformerEncoder(layer, 4, enable_nested_tensor=False)


def mlp() -> nn.Module:
    """Three hidden layers of 512 units: the shortest step, in which hooks weigh most."""
    hidden = [part for _ in range(3) for part in (nn.Linear(512, 512), nn.ReLU())]
    return nn.Sequential(*hidden, nn.Linear(512, 10))


@dataclass(frozen=True)
class Network:
    """A network and its batch; ``steps`` multiplies the steps of a round for the fast ones."""

    name: str
    build: Callable[[], nn.Module]
    batch: tuple[int, ...]
    steps: int


NETWORKS = [
    Network("MLP 3×512, batch 128", mlp, (128, 512), 10),
    Network("transformer 4×256, 8×64 tokens", transformer, (8, 64, 256), 1),
    Network("ResNet-18-shaped, 32×3×64×64", resnet, (32, 3, 64, 64), 1),
]


def machine(threads: int) -> str:
    """What a table was measured on."""
    return f"{platform.machine()} CPU, {threads} thread(s), torch {torch.__version__}"


def train(model: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor, steps: int) -> None:
    """A number of plain training steps."""
    for _ in range(steps):
        model(x).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
