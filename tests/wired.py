"""Small networks whose units are made and read in every way that surgery must understand."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from tests.setting import Setting


class Net(nn.Module):
    """Layers by name and a forward that says how they are wired."""

    def __init__(self, forward: Callable[[Any, Tensor], Tensor], **layers: nn.Module) -> None:
        super().__init__()
        self._wiring = forward
        for name, layer in layers.items():
            self.add_module(name, layer)

    def forward(self, x: Tensor) -> Tensor:
        return self._wiring(self, x)


class Product(nn.Module):
    """A linear layer that keeps its weight the other way round."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(inputs, outputs))
        self.bias = nn.Parameter(torch.randn(outputs))

    def forward(self, x: Tensor) -> Tensor:
        return torch.addmm(self.bias, x, self.weight)


def drawn(model: nn.Module) -> nn.Module:
    """A copy of a model with parameters drawn now."""
    model = copy.deepcopy(model)
    for module in model.modules():
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()
    return model


def sums(**layers: nn.Module) -> Callable[[], nn.Module]:
    """Two layers, each with a norm or none, are added; what follows the sum is ``after``."""

    def forward(net: Any, x: Tensor) -> Tensor:
        hidden = net.norm1(net.up1(x)) + net.norm2(net.up2(x))
        out: Tensor = net.down(net.act(net.after(hidden)))
        return out

    ups = {"up1": nn.Linear(12, 8), "up2": nn.Linear(12, 8)}
    norms = {name: nn.Identity() for name in ("norm1", "norm2", "after")}
    rest = {"act": nn.ReLU(), "down": nn.Linear(8, 5)}
    return lambda: drawn(Net(forward, **(ups | norms | rest | layers)))


def skip(after: nn.Module) -> Callable[[], nn.Module]:
    """A residual block without a norm of its own: what the activation before gave is added."""

    def forward(net: Any, x: Tensor) -> Tensor:
        first = net.act1(net.stem(x))
        out: Tensor = net.down(net.act2(net.after(net.up(first) + first)))
        return out

    layers = {"stem": nn.Linear(12, 8), "act1": nn.ReLU(), "up": nn.Linear(8, 8), "after": after}
    return lambda: drawn(Net(forward, **layers, act2=nn.ReLU(), down=nn.Linear(8, 5)))


def projected(net: Any, x: Tensor) -> Tensor:
    first = net.act(net.bn1(net.conv1(x)))
    out: Tensor = net.down(net.act(net.bn2(net.conv2(first)) + net.bn3(net.short(x))))
    return out


def shortcut() -> nn.Module:
    """A residual block with a projection on the short way, as in a ResNet."""
    return Net(
        projected,
        conv1=nn.Conv2d(3, 6, 3, padding=1, bias=False),
        bn1=nn.BatchNorm2d(6),
        conv2=nn.Conv2d(6, 8, 3, padding=1, bias=False),
        bn2=nn.BatchNorm2d(8),
        short=nn.Conv2d(3, 8, 1, bias=False),
        bn3=nn.BatchNorm2d(8),
        act=nn.ReLU(),
        down=nn.Conv2d(8, 4, 2),
    )


def concatenated(net: Any, x: Tensor) -> Tensor:
    hidden = net.act(net.up(x))
    out: Tensor = net.down(torch.cat([x, hidden, x, hidden], 1))
    return out


def chain(*layers: nn.Module) -> Callable[[], nn.Module]:
    return lambda: drawn(nn.Sequential(*layers))


def dense(*middle: nn.Module, bias: bool = True, act: nn.Module | None = None) -> Any:
    return chain(nn.Linear(12, 8, bias=bias), *middle, act or nn.ReLU(), nn.Linear(8, 5))


def vectors() -> Tensor:
    return torch.randn(200, 12)


def positive() -> Tensor:
    return torch.rand(200, 12)


def signals() -> Tensor:
    return torch.randn(40, 4, 6)


def images() -> Tensor:
    return torch.randn(20, 3, 6, 6)


_relu, _tanh = nn.ReLU, nn.Hardtanh
_conv, _convt = nn.Conv1d, nn.ConvTranspose1d

SIGNALS: dict[str, Callable[[], nn.Module]] = {
    "grouped-reader": chain(_conv(4, 8, 1), _relu(), _conv(8, 6, 2, groups=2)),
    "grouped-reader-folded": chain(_conv(4, 8, 1), _tanh(), _conv(8, 6, 2, groups=2)),
    "grouped-both": chain(_conv(4, 8, 1, groups=2), _tanh(), _conv(8, 8, 2, groups=4)),
    "depthwise-reader": chain(_conv(4, 8, 1), _tanh(), _conv(8, 16, 2, groups=8)),
    "depthwise-producer": chain(_conv(4, 8, 2, groups=4), _tanh(), _conv(8, 3, 1)),
    "transposed-reader": chain(_conv(4, 8, 1), _relu(), _convt(8, 6, 2, groups=2)),
    "transposed-producer": chain(_convt(4, 8, 2), _relu(), _conv(8, 3, 1)),
    "transposed-groups": chain(_convt(4, 8, 2, groups=2), _tanh(), _conv(8, 3, 1)),
    "transposed-depthwise": chain(_convt(4, 8, 2, groups=4), _relu(), _conv(8, 3, 1)),
    "flattened": chain(_conv(4, 8, 1), _tanh(), nn.Flatten(), nn.Linear(48, 5)),
    "concatenated-groups": lambda: Net(
        concatenated, up=_conv(4, 8, 1), act=_tanh(), down=_conv(24, 6, 1, groups=3)
    ),
    "group-norm": chain(_conv(4, 8, 1), nn.GroupNorm(2, 8), _relu(), _conv(8, 3, 1)),
    "batch-norm-groups": chain(
        _conv(4, 8, 1, bias=False), nn.BatchNorm1d(8), _tanh(), _conv(8, 6, 1, groups=2)
    ),
}

DENSE: dict[str, Callable[[], nn.Module]] = {
    "batch-norm": dense(nn.BatchNorm1d(8)),
    "batch-norm-plain": dense(nn.BatchNorm1d(8, affine=False)),
    "layer-norm": dense(nn.LayerNorm(8)),
    "layer-norm-no-bias": dense(nn.LayerNorm(8, bias=False)),
    "two-norms": dense(nn.LayerNorm(8), nn.BatchNorm1d(8)),
    "threshold": dense(act=nn.Threshold(2.0, 0.5)),
    "relu6": dense(act=nn.ReLU6()),
    "gelu": dense(act=nn.GELU()),
    "product": lambda: nn.Sequential(Product(12, 8), nn.Hardtanh(), Product(8, 5)),
    "sum": sums(),
    "sum-one-bias": sums(up1=nn.Linear(12, 8, bias=False)),
    "sum-normed": sums(norm1=nn.BatchNorm1d(8), norm2=nn.LayerNorm(8)),
    "sum-half-normed": sums(norm1=nn.BatchNorm1d(8)),
    "sum-then-batch-norm": sums(after=nn.BatchNorm1d(8)),
    "sum-then-layer-norm": sums(after=nn.LayerNorm(8)),
    "skip": skip(nn.Identity()),
    "skip-then-batch-norm": skip(nn.BatchNorm1d(8)),
}

NO_BIAS: dict[str, Callable[[], nn.Module]] = {
    "no-bias": dense(bias=False),
    "sum-no-bias": sums(up1=nn.Linear(12, 8, bias=False), up2=nn.Linear(12, 8, bias=False)),
}

IMAGES: dict[str, Callable[[], nn.Module]] = {
    "shortcut": shortcut,
    "unshuffled": chain(
        nn.Conv2d(3, 6, 1), _tanh(), nn.PixelUnshuffle(2), nn.Conv2d(24, 8, 1, groups=8)
    ),
}

WIRED = [
    Setting(name, build, batch, {})
    for table, batch in (
        (SIGNALS, signals),
        (DENSE, vectors),
        (NO_BIAS, positive),
        (IMAGES, images),
    )
    for name, build in table.items()
]
