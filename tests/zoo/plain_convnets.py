"""Convolutional networks without residual branches."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tests.zoo.data import images
from tests.zoo.entry import Entry, sgd
from tests.zoo.parts import Branches, Pooled, conv_act, he, xavier


def lenet5() -> nn.Module:
    return xavier(
        nn.Sequential(
            *(nn.Conv2d(1, 6, 5), nn.Tanh(), nn.AvgPool2d(2)),
            *(nn.Conv2d(6, 16, 5), nn.Tanh(), nn.AvgPool2d(2)),
            *(nn.Conv2d(16, 120, 5), nn.Tanh(), nn.Flatten()),
            *(nn.Linear(120, 84), nn.Tanh(), nn.Linear(84, 10)),
        )
    )


def alexnet() -> nn.Module:
    """As in torchvision: torch's own initialisation. A quarter of the channels."""
    return nn.Sequential(
        *(nn.Conv2d(3, 16, 11, 4, 2), nn.ReLU(True), nn.MaxPool2d(3, 2)),
        *(nn.Conv2d(16, 48, 5, padding=2), nn.ReLU(True), nn.MaxPool2d(3, 2)),
        *(nn.Conv2d(48, 96, 3, padding=1), nn.ReLU(True)),
        *(nn.Conv2d(96, 64, 3, padding=1), nn.ReLU(True)),
        *(nn.Conv2d(64, 64, 3, padding=1), nn.ReLU(True), nn.MaxPool2d(3, 2)),
        *(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Dropout(), nn.Linear(256, 256)),
        *(nn.ReLU(True), nn.Dropout(), nn.Linear(256, 256), nn.ReLU(True), nn.Linear(256, 10)),
    )


PLANS = {
    11: (16, 0, 32, 0, 64, 64, 0, 128, 128, 0, 128, 128, 0),
    16: (16, 16, 0, 32, 32, 0, 64, 64, 64, 0, 128, 128, 128, 0, 128, 128, 128, 0),
}


def vgg(depth: int, norm: bool) -> nn.Module:
    """A quarter of the channels; dense weights as strong as 0.01 is for 4096 inputs."""
    layers: list[nn.Module] = []
    channels = 3
    for width in PLANS[depth]:
        if not width:
            layers += [nn.MaxPool2d(2)]
            continue
        layers += [nn.Conv2d(channels, width, 3, padding=1)]
        layers += [nn.BatchNorm2d(width), nn.ReLU(True)] if norm else [nn.ReLU(True)]
        channels = width
    dense = nn.Linear(128, 256), nn.Linear(256, 256), nn.Linear(256, 10)
    model = nn.Sequential(
        *(*layers, nn.Flatten(), dense[0], nn.ReLU(True), nn.Dropout()),
        *(dense[1], nn.ReLU(True), nn.Dropout(), dense[2]),
    )
    he(model)
    for layer in dense:
        nn.init.normal_(layer.weight, std=0.01 * (4096 / layer.in_features) ** 0.5)
        nn.init.zeros_(layer.bias)
    return model


def fire(inputs: int, squeeze: int, expand: int) -> nn.Sequential:
    return nn.Sequential(
        *(nn.Conv2d(inputs, squeeze, 1), nn.ReLU(True)),
        Branches(
            nn.Sequential(nn.Conv2d(squeeze, expand, 1), nn.ReLU(True)),
            nn.Sequential(nn.Conv2d(squeeze, expand, 3, padding=1), nn.ReLU(True)),
        ),
    )


def squeezenet() -> nn.Module:
    """Version 1.1; the classifier is a convolution, then a ReLU, then the mean over positions."""
    last = nn.Conv2d(512, 10, 1)
    model = nn.Sequential(
        *(nn.Conv2d(3, 64, 3, 2), nn.ReLU(True), nn.MaxPool2d(3, 2, ceil_mode=True)),
        *(fire(64, 16, 64), fire(128, 16, 64), nn.MaxPool2d(3, 2, ceil_mode=True)),
        *(fire(128, 32, 128), fire(256, 32, 128), nn.MaxPool2d(3, 2, ceil_mode=True)),
        *(fire(256, 48, 192), fire(384, 48, 192), fire(384, 64, 256), fire(512, 64, 256)),
        *(nn.Dropout(), last, nn.ReLU(True), Pooled()),
    )
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_uniform_(module.weight)
            nn.init.zeros_(module.bias)
    nn.init.normal_(last.weight, std=0.01)
    return model


def inception_block(inputs: int, a: int, b: int, c: int, d: int) -> nn.Module:
    return Branches(
        conv_act(inputs, a),
        nn.Sequential(conv_act(inputs, b // 2), conv_act(b // 2, b, 3)),
        nn.Sequential(conv_act(inputs, c // 2), conv_act(c // 2, c, 3), conv_act(c, c, 3)),
        nn.Sequential(nn.MaxPool2d(3, 1, 1), conv_act(inputs, d)),
    )


def inception() -> nn.Module:
    """GoogLeNet with batch norm, truncated normal weights as in torchvision."""
    model = nn.Sequential(
        *(conv_act(3, 16, 7, 2), nn.MaxPool2d(3, 2, 1), conv_act(16, 16), conv_act(16, 48, 3)),
        *(inception_block(48, 16, 32, 8, 8), inception_block(64, 32, 48, 24, 16)),
        *(nn.MaxPool2d(3, 2, 1), inception_block(120, 48, 52, 12, 16)),
        *(inception_block(128, 40, 56, 16, 16), nn.MaxPool2d(3, 2, 1)),
        *(inception_block(128, 64, 80, 32, 32), Pooled(), nn.Dropout(0.2), nn.Linear(208, 10)),
    )
    for module in model.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            nn.init.trunc_normal_(module.weight, std=0.01, a=-2, b=2)
    return model


def network_in_network() -> nn.Module:
    def block(inputs: int, width: int, size: int) -> tuple[nn.Module, ...]:
        return (
            *(nn.Conv2d(inputs, width, size, padding=size // 2), nn.ReLU()),
            *(nn.Conv2d(width, width, 1), nn.ReLU(), nn.Conv2d(width, width, 1), nn.ReLU()),
        )

    return he(
        nn.Sequential(
            *(*block(3, 48, 5), nn.MaxPool2d(3, 2, 1), nn.Dropout()),
            *(*block(48, 48, 5), nn.AvgPool2d(3, 2, 1), nn.Dropout(), *block(48, 48, 3)),
            *(nn.Conv2d(48, 10, 1), Pooled()),
        )
    )


class Maxout(nn.Module):
    """The greatest of k dense layers."""

    def __init__(self, inputs: int, outputs: int, k: int = 3) -> None:
        super().__init__()
        self.linear, self.k = nn.Linear(inputs, outputs * k), k

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.linear(x).unflatten(-1, (-1, self.k)).amax(-1)
        return out


def maxout() -> nn.Module:
    return nn.Sequential(nn.Flatten(), Maxout(256, 64), Maxout(64, 64), nn.Linear(64, 10))


class Highway(nn.Module):
    """``t · relu(h) + (1 − t) · x``, with gates that begin almost closed."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.plain, self.gate, self.act = (
            nn.Linear(width, width),
            nn.Linear(width, width),
            nn.ReLU(),
        )
        nn.init.constant_(self.gate.bias, -2.0)

    def forward(self, x: Tensor) -> Tensor:
        carry = torch.sigmoid(self.gate(x))
        out: Tensor = carry * self.act(self.plain(x)) + (1 - carry) * x
        return out


def highway() -> nn.Module:
    blocks = [Highway(50) for _ in range(10)]
    return nn.Sequential(nn.Flatten(), nn.Linear(256, 50), nn.ReLU(), *blocks, nn.Linear(50, 10))


ENTRIES = {
    "LeNet-5": Entry("LeCun et al. 1998", lenet5, images(400, 32, 1)),
    "AlexNet": Entry("Krizhevsky et al. 2012; torchvision", alexnet, images(320, 80)),
    "VGG-11": Entry("arXiv:1409.1556", lambda: vgg(11, False), images(320, 32), lr=3e-4),
    "VGG-16": Entry("arXiv:1409.1556", lambda: vgg(16, False), images(320, 32), lr=3e-4),
    "VGG-11 with batch norm": Entry(
        "arXiv:1409.1556; torchvision", lambda: vgg(11, True), images(320, 32)
    ),
    "VGG-16 with batch norm": Entry(
        "arXiv:1409.1556; torchvision",
        lambda: vgg(16, True),
        images(320, 32),
        lr=0.01,
        optimizer=sgd,
    ),
    "SqueezeNet": Entry("arXiv:1602.07360; torchvision", squeezenet, images(40, 64), lr=3e-4),
    "Inception with batch norm": Entry("arXiv:1409.4842; torchvision", inception, images(80, 64)),
    "Network in Network": Entry("arXiv:1312.4400", network_in_network, images(40, 32)),
    "Maxout": Entry("arXiv:1302.4389", maxout, images(400, 16, 1), sites=False),
    "Highway network": Entry("arXiv:1505.00387", highway, images(400, 16, 1)),
}
