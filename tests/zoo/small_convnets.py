"""Convolutional networks for little compute, and the modern ones that came of them."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from tests.zoo.data import images
from tests.zoo.entry import Entry, sgd
from tests.zoo.parts import Act, Pooled, Residual, Shuffle, SqueezeExcite, conv, conv_act, he, head


def small_head(model: nn.Module, std: float = 0.01) -> nn.Module:
    for module in model.modules():
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=std)
            nn.init.zeros_(module.bias)
    return model


def inverted(
    *sizes: int,
    size: int = 3,
    act: Act = nn.ReLU6,
    excite: Callable[[int], nn.Module] | None = None,
) -> nn.Module:
    """Expand, filter each channel by itself, project without an activation."""
    inputs, inner, outputs, stride = sizes
    parts: list[nn.Module] = [conv_act(inputs, inner, act=act)] if inner != inputs else []
    parts.append(conv_act(inner, inner, size, stride, inner, act))
    parts += [excite(inner)] if excite else []
    main = nn.Sequential(*parts, conv(inner, outputs))
    return Residual(main) if (inputs, stride) == (outputs, 1) else main


def mobilenet_v2() -> nn.Module:
    plan = [(16, 16, 8, 1), (8, 48, 12, 2), (12, 72, 12, 1), (12, 72, 16, 2), (16, 96, 16, 1)]
    plan += [(16, 96, 32, 2), (32, 192, 32, 1), (32, 192, 48, 1), (48, 288, 80, 2)]
    return small_head(
        he(
            nn.Sequential(
                *(conv_act(3, 16, 3, 2, act=nn.ReLU6), *(inverted(*sizes) for sizes in plan)),
                *(conv_act(80, 320, act=nn.ReLU6), Pooled(), nn.Dropout(0.2), nn.Linear(320, 10)),
            )
        )
    )


def mobilenet_v3() -> nn.Module:
    """Small, as in torchvision, with half of the channels."""

    def excite(channels: int) -> nn.Module:
        return SqueezeExcite(channels, max(8, channels // 4), gate=nn.Hardsigmoid)

    def h(*sizes: int) -> nn.Module:
        return inverted(*sizes, size=5, act=nn.Hardswish, excite=excite)

    return small_head(
        he(
            nn.Sequential(
                conv_act(3, 16, 3, 2, act=nn.Hardswish),
                inverted(16, 24, 16, 2, act=nn.ReLU, excite=excite),
                inverted(16, 48, 16, 2, act=nn.ReLU),
                inverted(16, 64, 16, 1, act=nn.ReLU),
                *(h(16, 64, 24, 2), h(24, 120, 24, 1), h(24, 120, 24, 1), h(24, 72, 48, 2)),
                *(h(48, 288, 48, 1), conv_act(48, 288, act=nn.Hardswish), Pooled()),
                *(nn.Linear(288, 512), nn.Hardswish(), nn.Dropout(0.2), nn.Linear(512, 10)),
            )
        )
    )


class ShuffleUnit(nn.Module):
    """ShuffleNet v2: half of the channels pass by, then all are interleaved."""

    def __init__(self, width: int, down: bool = False) -> None:
        super().__init__()
        self.down, half = down, width // 2
        inputs, stride = (width, 2) if down else (half, 1)
        self.right = nn.Sequential(
            *(conv_act(inputs, width if down else half), nn.Identity()),
            conv(*(width, width, 3, 2, width) if down else (half, half, 3, stride, half)),
            conv_act(inputs, width if down else half),
        )
        self.left = (
            nn.Sequential(conv(width, width, 3, 2, width), conv_act(width, width)) if down else None
        )
        self.shuffle = Shuffle(2)

    def forward(self, x: Tensor) -> Tensor:
        if self.left is not None:
            both = torch.cat([self.left(x), self.right(x)], 1)
        else:
            kept, changed = x.chunk(2, 1)
            both = torch.cat([kept, self.right(changed)], 1)
        out: Tensor = self.shuffle(both)
        return out


def shufflenet() -> nn.Module:
    return nn.Sequential(
        *(conv_act(3, 24, 3, 2), nn.MaxPool2d(3, 2, 1)),
        *(ShuffleUnit(24, True), ShuffleUnit(48), ShuffleUnit(48), ShuffleUnit(48)),
        *(ShuffleUnit(48, True), ShuffleUnit(96), ShuffleUnit(96)),
        *(conv_act(96, 256), *head(256)),
    )


def efficientnet() -> nn.Module:
    """B0 with half of the channels and the first block of each stage."""

    def block(size: int, *sizes: int) -> nn.Module:
        inner = sizes[0] // 2  # as wide as in the whole
        return inverted(
            *sizes, size=size, act=nn.SiLU, excite=lambda c: SqueezeExcite(c, inner, nn.SiLU)
        )

    model = he(
        nn.Sequential(
            *(conv_act(3, 16, 3, 2, act=nn.SiLU), block(3, 16, 16, 8, 1), block(3, 8, 48, 12, 2)),
            *(block(5, 12, 72, 20, 2), block(3, 20, 120, 40, 2), block(5, 40, 240, 56, 1)),
            *(block(5, 56, 336, 56, 1), block(5, 56, 336, 96, 1)),
            *(conv_act(96, 384, act=nn.SiLU), Pooled(), nn.Dropout(0.2), nn.Linear(384, 10)),
        )
    )
    bound = 1 / 10**0.5
    nn.init.uniform_(model[-1].weight, -bound, bound)
    nn.init.zeros_(model[-1].bias)
    return model


def regnet() -> nn.Module:
    """Y, 400 MF, in groups of 8, with half of the channels."""

    def block(inputs: int, outputs: int, stride: int) -> nn.Module:
        main = nn.Sequential(
            *(conv_act(inputs, outputs), conv_act(outputs, outputs, 3, stride, outputs // 8)),
            *(SqueezeExcite(outputs, inputs // 2), conv(outputs, outputs)),
        )
        skip = conv(inputs, outputs, 1, stride) if (inputs, stride) != (outputs, 1) else None
        return Residual(main, skip, nn.ReLU(True))

    widths = [(16, 24, 2), (24, 48, 2), (48, 48, 1), (48, 104, 2), (104, 104, 1), (104, 208, 2)]
    blocks = [block(*sizes) for sizes in widths]
    return small_head(he(nn.Sequential(conv_act(3, 16, 3, 2), *blocks, *head(208))))


class ConvNeXtBlock(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.filter = nn.Conv2d(width, width, 7, padding=3, groups=width)
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.up, self.act = nn.Linear(width, 4 * width), nn.GELU()
        self.down = nn.Linear(4 * width, width)
        self.scale = nn.Parameter(torch.full((width, 1, 1), 1e-6))

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.filter(x).permute(0, 2, 3, 1))
        out: Tensor = x + self.scale * self.down(self.act(self.up(y))).permute(0, 3, 1, 2)
        return out


class ChannelNorm(nn.LayerNorm):
    """A layer norm over the channels of images (N, C, H, W)."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def convnext() -> nn.Module:
    model = nn.Sequential(
        *(nn.Conv2d(3, 32, 4, 4), ChannelNorm(32), ConvNeXtBlock(32), ConvNeXtBlock(32)),
        *(ChannelNorm(32), nn.Conv2d(32, 64, 2, 2), ConvNeXtBlock(64), ConvNeXtBlock(64)),
        *(ChannelNorm(64), nn.Conv2d(64, 128, 2, 2), ConvNeXtBlock(128)),
        *(Pooled(), nn.LayerNorm(128), nn.Linear(128, 10)),
    )
    for module in model.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            nn.init.trunc_normal_(module.weight, std=0.02)
            nn.init.zeros_(module.bias)
    return model


def conv_mixer(width: int = 64, depth: int = 4) -> nn.Module:
    """A norm after each activation, as published."""

    def mixed() -> nn.Module:
        spatial = nn.Conv2d(width, width, 5, padding=2, groups=width)
        return nn.Sequential(
            Residual(nn.Sequential(spatial, nn.GELU(), nn.BatchNorm2d(width))),
            *(nn.Conv2d(width, width, 1), nn.GELU(), nn.BatchNorm2d(width)),
        )

    patches = nn.Conv2d(3, width, 4, 4), nn.GELU(), nn.BatchNorm2d(width)
    return nn.Sequential(*patches, *(mixed() for _ in range(depth)), *head(width))


PICTURES = images(80, 64)
ENTRIES = {
    "MobileNetV2": Entry("arXiv:1801.04381", mobilenet_v2, PICTURES, lr=0.04, optimizer=sgd),
    "MobileNetV3": Entry("arXiv:1905.02244", mobilenet_v3, images(320, 64)),
    "ShuffleNetV2": Entry("arXiv:1807.11164", shufflenet, PICTURES, lr=0.04, optimizer=sgd),
    "EfficientNet": Entry("arXiv:1905.11946", efficientnet, images(320, 48)),
    "RegNet": Entry("arXiv:2003.13678", regnet, images(320, 48)),
    "ConvNeXt": Entry("arXiv:2201.03545", convnext, images(32, 64)),
    "ConvMixer": Entry("arXiv:2201.09792", conv_mixer, images(32, 32)),
}
