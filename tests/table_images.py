"""Rows of networks on images, sequences of samples, and points."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.nets import images
from tests.oracle import backward
from tests.setting import Setting, loss_of


class BasicBlock(nn.Module):
    """ResNet's: one ReLU for two calls, and a shortcut."""

    def __init__(self, wide: int, out: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(wide, out, 3, stride, 1, bias=False)
        self.bn1, self.bn2 = nn.BatchNorm2d(out), nn.BatchNorm2d(out)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(out, out, 3, 1, 1, bias=False)
        shortcut = nn.Sequential(nn.Conv2d(wide, out, 1, stride), nn.BatchNorm2d(out))
        self.downsample = shortcut if wide != out else None

    def forward(self, x: Tensor) -> Any:
        identity = x if self.downsample is None else self.downsample(x)
        out = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        out += identity
        return self.relu(out)


class Bottleneck(nn.Module):
    """ResNet's deeper block: one ReLU, three calls."""

    def __init__(self, wide: int, narrow: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(wide, narrow, 1), nn.BatchNorm2d(narrow)
        self.conv2, self.bn2 = nn.Conv2d(narrow, narrow, 3, 1, 1), nn.BatchNorm2d(narrow)
        self.conv3, self.bn3 = nn.Conv2d(narrow, wide, 1), nn.BatchNorm2d(wide)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Any:
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.relu(self.bn2(self.conv2(out)))
        return self.relu(self.bn3(self.conv3(out)) + x)


class ResNet(nn.Module):
    def __init__(self, functional: bool = False) -> None:
        super().__init__()
        self.conv1, self.bn1, self.relu = nn.Conv2d(3, 8, 3, 1, 1), nn.BatchNorm2d(8), nn.ReLU(True)
        self.layer1 = nn.Sequential(BasicBlock(8, 8), BasicBlock(8, 12, 2))
        self.layer2 = nn.Sequential(Bottleneck(12, 6))
        self.fc = nn.Linear(12, 5)
        self.functional = functional

    def forward(self, x: Tensor) -> Any:
        x = self.bn1(self.conv1(x))
        x = F.relu(x, inplace=True) if self.functional else self.relu(x)
        return self.fc(self.layer2(self.layer1(x)).mean((2, 3)))


class BasicConv2d(nn.Module):
    """GoogLeNet's and Inception's: the activation is a function."""

    def __init__(self, wide: int, out: int, size: int = 1, inplace: bool = True) -> None:
        super().__init__()
        self.conv = nn.Conv2d(wide, out, size, padding=size // 2, bias=False)
        self.bn = nn.BatchNorm2d(out, eps=0.001)
        self.inplace = inplace

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv(x)), inplace=self.inplace)


class Mixed(nn.Module):
    """An Inception block: branches side by side."""

    def __init__(self, wide: int) -> None:
        super().__init__()
        self.branch1x1 = BasicConv2d(wide, 4)
        self.branch3x3 = nn.Sequential(BasicConv2d(wide, 4), BasicConv2d(4, 6, 3))
        self.branch_pool = BasicConv2d(wide, 3, inplace=False)

    def forward(self, x: Tensor) -> Tensor:
        pooled = F.avg_pool2d(x, 3, 1, 1)
        return torch.cat([self.branch1x1(x), self.branch3x3(x), self.branch_pool(pooled)], 1)


class Inception(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.Mixed_5b, self.Mixed_5c = BasicConv2d(3, 8, 3), Mixed(8), Mixed(13)
        self.fc1, self.fc2 = nn.Linear(13, 8), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Any:
        x = F.adaptive_avg_pool2d(self.Mixed_5c(self.Mixed_5b(self.stem(x))), 1)
        return self.fc2(F.dropout(F.relu(self.fc1(torch.flatten(x, 1))), 0.0))


class DenseLayer(nn.Module):
    """DenseNet's: norm and activation before the convolution, which reads all before it."""

    def __init__(self, wide: int) -> None:
        super().__init__()
        self.norm1, self.relu1 = nn.BatchNorm2d(wide), nn.ReLU(inplace=True)
        self.conv1 = nn.Conv2d(wide, 8, 1, bias=False)
        self.norm2, self.relu2 = nn.BatchNorm2d(8), nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(8, 4, 3, 1, 1, bias=False)

    def forward(self, features: list[Tensor]) -> Any:
        narrow = self.conv1(self.relu1(self.norm1(torch.cat(features, 1))))
        return self.conv2(self.relu2(self.norm2(narrow)))


class DenseNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, 1, 1)
        self.denselayer1, self.denselayer2 = DenseLayer(6), DenseLayer(10)
        self.norm5, self.classifier = nn.BatchNorm2d(14), nn.Linear(14, 5)

    def forward(self, x: Tensor) -> Any:
        features = [self.stem(x)]
        for layer in (self.denselayer1, self.denselayer2):
            features.append(layer(features))
        out = F.relu(self.norm5(torch.cat(features, 1)), inplace=True)
        return self.classifier(F.adaptive_avg_pool2d(out, (1, 1)).flatten(1))


class SqueezeExcite(nn.Module):
    def __init__(self, wide: int, functional: bool) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Conv2d(wide, 4, 1), nn.Conv2d(4, wide, 1)
        self.activation, self.scale_activation = nn.ReLU(), nn.Sigmoid()
        self.functional = functional

    def forward(self, x: Tensor) -> Any:
        scale = F.adaptive_avg_pool2d(x, 1)
        if self.functional:
            return x * F.hardsigmoid(self.fc2(F.relu(self.fc1(scale))), inplace=True)
        return x * self.scale_activation(self.fc2(self.activation(self.fc1(scale))))


class InvertedResidual(nn.Module):
    """MobileNet's: expand, depthwise, squeeze and excite, project."""

    def __init__(self, act: type[nn.Module], functional: bool) -> None:
        super().__init__()
        self.block = nn.Sequential(
            *(nn.Conv2d(6, 12, 1, bias=False), nn.BatchNorm2d(12), act()),
            *(nn.Conv2d(12, 12, 3, 1, 1, groups=12), nn.BatchNorm2d(12), act()),
            SqueezeExcite(12, functional),
            *(nn.Conv2d(12, 6, 1), nn.BatchNorm2d(6)),
        )

    def forward(self, x: Tensor) -> Any:
        return x + self.block(x)


def mobilenet(act: type[nn.Module], functional: bool) -> nn.Module:
    blocks = (InvertedResidual(act, functional), InvertedResidual(act, functional))
    return nn.Sequential(nn.Conv2d(3, 6, 3, 2, 1), act(), *blocks)


class LayerScale(nn.Module):
    """Element-wise and a leaf, but linear: no activation."""

    def __init__(self, wide: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.full((wide,), 0.1))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma


class DropPath(nn.Module):
    """A leaf, and random: no activation."""

    def forward(self, x: Tensor) -> Tensor:
        return x * x.new_empty(len(x), *[1] * (x.ndim - 1)).bernoulli_(0.8) / 0.8


class ConvNeXtBlock(nn.Module):
    def __init__(self, wide: int) -> None:
        super().__init__()
        self.dwconv = nn.Conv2d(wide, wide, 3, padding=1, groups=wide)
        self.norm = nn.LayerNorm(wide)
        self.pwconv1, self.act = nn.Linear(wide, 4 * wide), nn.GELU()
        self.pwconv2 = nn.Linear(4 * wide, wide)
        self.scale, self.drop_path = LayerScale(wide), DropPath()

    def forward(self, x: Tensor) -> Any:
        h = self.norm(self.dwconv(x).permute(0, 2, 3, 1))
        h = self.scale(self.pwconv2(self.act(self.pwconv1(h))))
        return x + self.drop_path(h.permute(0, 3, 1, 2))


class UNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.down1, self.down2 = self.stage(3, 4), self.stage(4, 8)
        self.up, self.join = nn.ConvTranspose2d(8, 4, 2, 2), self.stage(8, 4)
        self.out = nn.Conv2d(4, 1, 1)

    @staticmethod
    def stage(wide: int, out: int) -> nn.Sequential:
        return nn.Sequential(
            *(nn.Conv2d(wide, out, 3, 1, 1), nn.GroupNorm(2, out), nn.ReLU(True)),
            *(nn.Conv2d(out, out, 3, 1, 1), nn.InstanceNorm2d(out, affine=True), nn.ReLU(True)),
        )

    def forward(self, x: Tensor) -> Any:
        skip = self.down1(x)
        deep = self.up(self.down2(F.max_pool2d(skip, 2)))
        return torch.sigmoid(self.out(self.join(torch.cat([skip, deep], 1))))


class Autoencoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Conv2d(3, 6, 3, 2, 1), nn.ReLU(), nn.Flatten())
        self.code = nn.Linear(24, 8)
        self.decoder = nn.Sequential(
            *(nn.Linear(8, 24), nn.LeakyReLU(), nn.Unflatten(1, (6, 2, 2))),
            *(nn.ConvTranspose2d(6, 3, 4, 2, 1), nn.Tanh()),
        )

    def forward(self, x: Tensor) -> Any:
        return self.decoder(F.softplus(self.code(self.encoder(x))))


def dcgan() -> nn.ModuleDict:
    generator = nn.Sequential(
        *(nn.ConvTranspose2d(5, 6, 2), nn.BatchNorm2d(6), nn.ReLU(True)),
        *(nn.ConvTranspose2d(6, 3, 4, 2, 1), nn.Tanh()),
    )
    discriminator = nn.Sequential(
        *(nn.Conv2d(3, 6, 4, 2, 1), nn.LeakyReLU(0.2, True)),
        *(nn.Conv2d(6, 1, 2), nn.Sigmoid(), nn.Flatten()),
    )
    return nn.ModuleDict({"generator": generator, "discriminator": discriminator})


def adversaries(model: Any, batch: tuple[Tensor, ...], step: int) -> Tensor:
    """The discriminator learns on real and made images, then the generator through it."""
    real, noise = batch
    fake = model["generator"](noise)
    on_real, on_fake = model["discriminator"](real), model["discriminator"](fake.detach())
    backward(F.relu(1 - on_real).mean() + F.relu(1 + on_fake).mean())  # a loss is no activation
    out: Tensor = model["discriminator"](fake)
    backward(F.softplus(-out).mean())
    return out


class TCN(nn.Module):
    """Dilated causal convolutions on (B, C, L)."""

    def __init__(self) -> None:
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv1d(4, 4, 3, dilation=2**n) for n in range(2))
        self.act, self.drop = nn.ReLU(), nn.Dropout(0.2)

    def forward(self, x: Tensor) -> Tensor:
        for n, conv in enumerate(self.convs):
            x = F.relu(self.drop(self.act(conv(F.pad(x, (2 * 2**n, 0))))) + x)
        return x


class WaveNetBlock(nn.Module):
    def __init__(self, chunked: bool) -> None:
        super().__init__()
        self.conv, self.out = nn.Conv1d(4, 16, 2), nn.Conv1d(8, 4, 1)
        self.chunked = chunked

    def forward(self, x: Tensor) -> Any:
        both = self.conv(F.pad(x, (1, 0)))
        filtered, gate = both.chunk(2, 1) if self.chunked else (both[:, :8], both[:, 8:])
        return x + self.out(torch.tanh(filtered) * torch.sigmoid(gate))


def wavenet() -> nn.Module:
    return nn.Sequential(nn.Conv1d(2, 4, 1), WaveNetBlock(True), WaveNetBlock(False), nn.ReLU())


class PointNet(nn.Module):
    """A shared MLP as convolutions over (B, C, N), the maximum over points, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv1d(3, 8, 1), nn.BatchNorm1d(8)
        self.conv2, self.bn2 = nn.Conv1d(8, 16, 1), nn.BatchNorm1d(16)
        self.fc1, self.bn3, self.fc2 = nn.Linear(16, 8), nn.BatchNorm1d(8), nn.Linear(8, 5)

    def forward(self, points: Tensor) -> Any:
        x = F.relu(self.bn1(self.conv1(points.transpose(2, 1))))
        x = self.bn2(self.conv2(x)).relu().amax(-1)
        return self.fc2(F.relu(self.bn3(self.fc1(x))))


def wide(batch: int = 4, size: int = 8) -> Tensor:
    return torch.randn(batch, 3, size, size)


def siamese(model: Any, batch: tuple[Tensor, ...], step: int) -> Tensor:
    """One net, called twice before a single backward."""
    one, two = (model(x) for x in batch)
    backward(loss_of(F.relu(1 - (one - two).abs().sum(-1))))
    return torch.cat([one, two])


def convnext() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 6, 1), ConvNeXtBlock(6))


def image_layer() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 5, 3), nn.ReLU())


def sequence_layer() -> nn.Module:
    return nn.Sequential(nn.Conv1d(3, 5, 3), nn.ELU())


CODE = {"encoder.1": 1, "decoder.4": 1, "*": -1}
CHANNELS = {"*": 1}
HEAD = {"relu": -1, "*": 1}

ROWS = [
    Setting("resnet", ResNet, wide, CHANNELS, compilable=True),
    Setting("resnet-channels-last", ResNet, wide, CHANNELS, channels_last=True),
    Setting("resnet-bfloat16", ResNet, wide, CHANNELS, dtype=torch.bfloat16),
    Setting("resnet-stem-functional", partial(ResNet, True), wide, CHANNELS, unseen=("relu",)),
    Setting("inception", Inception, wide, HEAD, compilable=True),
    Setting("inception-channels-last", Inception, wide, HEAD, channels_last=True),
    Setting("densenet", DenseNet, wide, CHANNELS, compilable=True),
    Setting("mobilenet-v2", partial(mobilenet, nn.ReLU6, False), wide, CHANNELS),
    Setting(
        "mobilenet-v3",
        partial(mobilenet, nn.Hardswish, True),
        wide,
        CHANNELS,
        unseen=tuple(
            f"{n}.block.6.{act}" for n in (2, 3) for act in ("activation", "scale_activation")
        ),
    ),
    Setting("convnext", convnext, wide, {"*": -1}),
    Setting("unet", UNet, wide, CHANNELS, compilable=True),
    Setting("autoencoder", Autoencoder, partial(images, 2), CODE),
    Setting("dcgan", dcgan, lambda: (images(2), torch.randn(6, 5, 1, 1)), CHANNELS, adversaries),
    Setting("siamese", Inception, lambda: (wide(), wide()), HEAD, siamese),
    Setting("tcn", TCN, lambda: torch.randn(5, 4, 9), CHANNELS),
    Setting("wavenet", wavenet, lambda: torch.randn(5, 2, 9), CHANNELS, compilable=True),
    Setting("pointnet", PointNet, lambda: torch.randn(4, 10, 3), {"relu-3": -1, "*": 1}),
    Setting("unbatched-images", image_layer, lambda: wide()[0], {"1": 0}),
    Setting("unbatched-sequence", sequence_layer, lambda: torch.randn(3, 9), {"1": 0}),
]
