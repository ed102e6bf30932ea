"""Convolutional networks with residual or dense connections."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.zoo.data import images
from tests.zoo.entry import Entry, adam, sgd
from tests.zoo.parts import Pooled, Residual, SqueezeExcite, conv, conv_act, he, head


def zero_last(model: nn.Module) -> nn.Module:
    """Residual branches that begin as nothing (Goyal et al. 2017): their last norm is zero."""
    for module in model.modules():
        if isinstance(module, Residual):
            norms = [part for part in module.main.modules() if isinstance(part, nn.BatchNorm2d)]
            nn.init.zeros_(norms[-1].weight)
    return model


def basic(inputs: int, outputs: int, stride: int, excite: bool = False) -> nn.Module:
    parts = [conv_act(inputs, outputs, 3, stride), conv(outputs, outputs, 3)]
    if excite:
        parts.append(nn.Sequential(SqueezeExcite(outputs, outputs // 4)))
    skip = conv(inputs, outputs, 1, stride) if (inputs, stride) != (outputs, 1) else None
    return Residual(nn.Sequential(*parts), skip, nn.ReLU(True))


def bottleneck(inputs: int, inner: int, stride: int, groups: int = 1, outer: int = 0) -> nn.Module:
    outputs = outer or 4 * inner
    main = nn.Sequential(
        *(conv_act(inputs, inner), conv_act(inner, inner, 3, stride, groups)),
        conv(inner, outputs),
    )
    skip = conv(inputs, outputs, 1, stride) if (inputs, stride) != (outputs, 1) else None
    return Residual(main, skip, nn.ReLU(True))


def stem(width: int = 16) -> tuple[nn.Module, ...]:
    return conv_act(3, width, 7, 2), nn.MaxPool2d(3, 2, 1)


def resnet18(zero: bool = False, excite: bool = False) -> nn.Module:
    """A quarter of the channels."""
    blocks, inputs = [], 16
    for stage, width in enumerate((16, 32, 64, 128)):
        blocks += [basic(inputs, width, 2 if stage else 1, excite), basic(width, width, 1, excite)]
        inputs = width
    model = he(nn.Sequential(*stem(), *blocks, *head(128)))
    for module in model.modules():
        if isinstance(module, SqueezeExcite):  # dense layers there, with torch's own weights
            module.squeeze.reset_parameters()
            module.excite.reset_parameters()
    return zero_last(model) if zero else model


def resnet50(zero: bool = False, groups: int = 1, wide: int = 1) -> nn.Module:
    """A quarter of the channels; in groups, with twice the inner ones, a ResNeXt."""
    blocks: list[nn.Module] = []
    inputs = 16
    for stage, (width, depth) in enumerate(zip((16, 32, 64, 128), (3, 4, 6, 3), strict=True)):
        for block in range(depth):
            stride = 2 if stage and not block else 1
            blocks.append(bottleneck(inputs, wide * width, stride, groups, 4 * width))
            inputs = 4 * width
    model = he(nn.Sequential(*stem(), *blocks, *head(512)))
    return zero_last(model) if zero else model


class PreActivation(nn.Module):
    """Norm and activation before each convolution (He et al. 2016)."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1, dropout: float = 0.0) -> None:
        super().__init__()
        self.norm1, self.act1 = nn.BatchNorm2d(inputs), nn.ReLU(True)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.norm2, self.act2 = nn.BatchNorm2d(outputs), nn.ReLU(True)
        self.drop = nn.Dropout(dropout)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.skip: nn.Module | None = None
        if (inputs, stride) != (outputs, 1):
            self.skip = nn.Conv2d(inputs, outputs, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = self.act1(self.norm1(x))
        x = x if self.skip is None else self.skip(y)
        out: Tensor = x + self.conv2(self.drop(self.act2(self.norm2(self.conv1(y)))))
        return out


def pre_activation(widths: tuple[int, ...], depth: int, dropout: float = 0.0) -> nn.Module:
    blocks: list[nn.Module] = []
    inputs = 16
    for stage, width in enumerate(widths):
        for block in range(depth):
            stride = 2 if stage and not block else 1
            blocks.append(PreActivation(inputs, width, stride, dropout))
            inputs = width
    first = nn.Conv2d(3, 16, 3, padding=1, bias=False)
    return he(nn.Sequential(first, *blocks, nn.BatchNorm2d(inputs), nn.ReLU(True), *head(inputs)))


class DenseLayer(nn.Module):
    def __init__(self, inputs: int, growth: int) -> None:
        super().__init__()
        self.parts = nn.Sequential(
            *(nn.BatchNorm2d(inputs), nn.ReLU(True), nn.Conv2d(inputs, 4 * growth, 1, bias=False)),
            *(nn.BatchNorm2d(4 * growth), nn.ReLU(True)),
            nn.Conv2d(4 * growth, growth, 3, padding=1, bias=False),
        )

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, self.parts(x)], 1)


def densenet(growth: int = 12, depths: tuple[int, ...] = (4, 6, 6)) -> nn.Module:
    layers: list[nn.Module] = [*stem(2 * growth)]
    width = 2 * growth
    for stage, depth in enumerate(depths):
        if stage:
            layers += [
                nn.BatchNorm2d(width),
                nn.ReLU(True),
                nn.Conv2d(width, width // 2, 1, bias=False),
            ]
            layers += [nn.AvgPool2d(2)]
            width //= 2
        layers += [DenseLayer(width + growth * layer, growth) for layer in range(depth)]
        width += growth * depth
    model = he(nn.Sequential(*layers, nn.BatchNorm2d(width), nn.ReLU(True), *head(width)), "fan_in")
    nn.init.zeros_(model[-1].bias)
    return model


class RepBlock(nn.Module):
    """RepVGG's three branches, each with a norm."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.wide, self.thin = conv(inputs, outputs, 3, stride), conv(inputs, outputs, 1, stride)
        self.same = nn.BatchNorm2d(inputs) if (inputs, stride) == (outputs, 1) else None
        self.act = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        y = self.wide(x) + self.thin(x)
        out: Tensor = self.act(y if self.same is None else y + self.same(x))
        return out


def repvgg() -> nn.Module:
    plan = [(3, 24, 2), (24, 24, 2), (24, 24, 1), (24, 48, 2), *[(48, 48, 1)] * 3, (48, 96, 2)]
    return nn.Sequential(*(RepBlock(*sizes) for sizes in plan), *head(96))


class ScaledConv(nn.Conv2d):
    """Weights are standardised in each forward, with a gain (Brock et al. 2021)."""

    def __init__(self, inputs: int, outputs: int, size: int, stride: int = 1) -> None:
        super().__init__(inputs, outputs, size, stride, size // 2)
        self.gain = nn.Parameter(torch.ones(outputs, 1, 1, 1))
        nn.init.kaiming_normal_(self.weight, nonlinearity="linear")
        nn.init.zeros_(self.bias)

    def forward(self, x: Tensor) -> Tensor:
        fan = self.weight[0].numel()
        variance, mean = torch.var_mean(self.weight, (1, 2, 3), keepdim=True, correction=0)
        weight = (self.weight - mean) * torch.rsqrt(fan * variance).clamp(max=1e4) * self.gain
        out: Tensor = self._conv_forward(x, weight, self.bias)
        return out


GAIN = math.sqrt(2 / (1 - 1 / math.pi))  # makes the variance of a ReLU of a normal one


class NormFree(nn.Module):
    """A block without norms: α-scaled, with a skip gain that begins at zero."""

    def __init__(self, width: int, beta: float) -> None:
        super().__init__()
        self.first, self.second = ScaledConv(width, width, 3), ScaledConv(width, width, 3)
        self.beta, self.gain = beta, nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(F.relu(x / self.beta) * GAIN)
        out: Tensor = x + 0.2 * self.gain * self.second(F.relu(y) * GAIN)
        return out


class NFNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(ScaledConv(3, 32, 3, 2), nn.MaxPool2d(2))
        betas = [math.sqrt(1 + 0.04 * n) for n in range(6)]
        self.blocks = nn.Sequential(*(NormFree(32, beta) for beta in betas))
        self.head = nn.Linear(32, 10)
        nn.init.normal_(self.head.weight, std=0.01)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head((F.relu(self.blocks(self.stem(x))) * GAIN).mean((2, 3)))
        return out


class ResidualOnly(nn.Module):
    """Fixup: residual networks without norms, scaled by depth, with scalar biases."""

    def __init__(self, width: int, blocks: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.second = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.biases = nn.Parameter(torch.zeros(4))
        self.scale, self.act = nn.Parameter(torch.ones(1)), nn.ReLU()
        nn.init.normal_(self.first.weight, std=(2 / (9 * width)) ** 0.5 * blocks**-0.5)
        nn.init.zeros_(self.second.weight)

    def forward(self, x: Tensor) -> Tensor:
        a, b, c, d = self.biases
        y = self.second(self.act(self.first(x + a) + b) + c) * self.scale + d
        out: Tensor = F.relu(x + y)
        return out


def fixup() -> nn.Module:
    first = nn.Conv2d(3, 32, 3, 2, 1)
    nn.init.kaiming_normal_(first.weight, mode="fan_out", nonlinearity="relu")
    last = nn.Linear(32, 10)
    nn.init.zeros_(last.weight)
    blocks = [ResidualOnly(32, 6) for _ in range(6)]
    return nn.Sequential(first, nn.ReLU(), *blocks, Pooled(), last)


HE = "arXiv:1512.03385"
PICTURES = images(80, 64)
SMALL = images(32, 32)
ENTRIES = {
    "ResNet-18": Entry(HE, resnet18, PICTURES, lr=0.03, optimizer=sgd),
    "ResNet-18, zero-init residual": Entry(
        "arXiv:1706.02677", lambda: resnet18(True), PICTURES, lr=0.03, optimizer=sgd
    ),
    "ResNet-50": Entry(HE, resnet50, PICTURES, lr=0.03, optimizer=sgd),
    "ResNet-50, zero-init residual": Entry("arXiv:1706.02677", lambda: resnet50(True), PICTURES),
    "ResNeXt-50": Entry("arXiv:1611.05431", lambda: resnet50(groups=8, wide=2), PICTURES),
    "SE-ResNet-18": Entry(
        "arXiv:1709.01507", lambda: resnet18(excite=True), images(320, 32), optimizer=adam
    ),
    "Pre-activation ResNet": Entry(
        "arXiv:1603.05027", lambda: pre_activation((16, 32, 64), 3), SMALL, lr=0.025, optimizer=sgd
    ),
    "WideResNet-10-4": Entry(
        "arXiv:1605.07146", lambda: pre_activation((64, 128, 256), 1, 0.3), images(16, 32)
    ),
    "DenseNet": Entry("arXiv:1608.06993", densenet, PICTURES, lr=0.03, optimizer=sgd),
    "RepVGG": Entry("arXiv:2101.03697", repvgg, PICTURES),
    "NF-ResNet": Entry("arXiv:2101.08692", NFNet, PICTURES),
    "Fixup ResNet": Entry("arXiv:1901.09321", fixup, SMALL),
}
