"""Parts that several architectures share."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

Act = Callable[[], nn.Module]


class Residual(nn.Module):
    """``after(skip(x) + main(x))``."""

    def __init__(
        self, main: nn.Module, skip: nn.Module | None = None, after: nn.Module | None = None
    ) -> None:
        super().__init__()
        self.main, self.skip = main, skip or nn.Identity()
        self.after = after or nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.after(self.skip(x) + self.main(x))
        return out


class Branches(nn.Module):
    """Several parts of the same input, along the channels."""

    def __init__(self, *parts: nn.Module) -> None:
        super().__init__()
        self.parts = nn.ModuleList(parts)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([part(x) for part in self.parts], 1)


class SqueezeExcite(nn.Module):
    """Hu et al. 2018; MobileNetV3 and EfficientNet change the two activations."""

    def __init__(
        self, channels: int, inner: int, act: Act = nn.ReLU, gate: Act = nn.Sigmoid
    ) -> None:
        super().__init__()
        self.squeeze, self.act = nn.Conv2d(channels, inner, 1), act()
        self.excite, self.gate = nn.Conv2d(inner, channels, 1), gate()

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x * self.gate(self.excite(self.act(self.squeeze(x.mean((2, 3), True)))))
        return out


class Shuffle(nn.Module):
    """Interleaves the groups of channels."""

    def __init__(self, groups: int) -> None:
        super().__init__()
        self.groups = groups

    def forward(self, x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        return x.view(n, self.groups, c // self.groups, h, w).transpose(1, 2).reshape(n, c, h, w)


class Transpose(nn.Module):
    """Swaps the last two axes."""

    def forward(self, x: Tensor) -> Tensor:
        return x.transpose(-1, -2)


class Pooled(nn.Module):
    """The mean over all positions of images (N, C, H, W)."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mean((2, 3))


def conv(
    inputs: int, outputs: int, size: int = 1, stride: int = 1, groups: int = 1
) -> nn.Sequential:
    """A convolution without bias, and its batch norm."""
    made = nn.Conv2d(inputs, outputs, size, stride, size // 2, groups=groups, bias=False)
    return nn.Sequential(made, nn.BatchNorm2d(outputs))


def conv_act(
    inputs: int, outputs: int, size: int = 1, stride: int = 1, groups: int = 1, act: Act = nn.ReLU
) -> nn.Sequential:
    """A convolution, its batch norm and an activation."""
    return nn.Sequential(*conv(inputs, outputs, size, stride, groups), act())


def head(features: int, classes: int = 10) -> tuple[nn.Module, ...]:
    return Pooled(), nn.Linear(features, classes)


CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.ConvTranspose2d)


def zero_biases(model: nn.Module) -> None:
    for module in model.modules():
        if isinstance(module, (*CONVOLUTIONS, nn.Linear)) and module.bias is not None:
            nn.init.zeros_(module.bias)


def he(model: nn.Module, mode: str = "fan_out") -> nn.Module:
    """He et al. 2015 for convolutions, zero biases; dense layers keep torch's own."""
    for module in model.modules():
        if isinstance(module, CONVOLUTIONS):
            nn.init.kaiming_normal_(module.weight, mode=mode, nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    return model


def normal(model: nn.Module, std: float = 0.02) -> nn.Module:
    """The same normal weights everywhere (embeddings too), zero biases."""
    for module in model.modules():
        if isinstance(module, (*CONVOLUTIONS, nn.Linear, nn.Embedding)):
            nn.init.normal_(module.weight, std=std)
    zero_biases(model)
    return model


def xavier(model: nn.Module) -> nn.Module:
    """Glorot & Bengio 2010, zero biases."""
    for module in model.modules():
        if isinstance(module, (*CONVOLUTIONS, nn.Linear)):
            nn.init.xavier_uniform_(module.weight)
    zero_biases(model)
    return model
