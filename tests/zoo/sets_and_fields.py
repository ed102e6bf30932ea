"""Points, sets, graphs, and networks that are a function of coordinates."""

from __future__ import annotations

import math
from itertools import pairwise

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from tests.zoo.data import fields, labelled, table
from tests.zoo.entry import Batch, Entry, adam, squared


def points(generator: Generator) -> Batch:
    """Clouds of 64 points in the unit ball: ellipsoids, of ten shapes."""
    target = torch.randint(10, (320,), generator=generator)
    drawn = F.normalize(torch.randn(320, 64, 3, generator=generator), dim=-1)
    shapes = torch.rand(10, 1, 3, generator=Generator().manual_seed(0)) * 0.8 + 0.2
    return Batch((drawn * shapes[target],), target)


def shared(*widths: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(widths):
        layers += [nn.Conv1d(inputs, outputs, 1), nn.BatchNorm1d(outputs), nn.ReLU()]
    return nn.Sequential(*layers)


class PointNet(nn.Module):
    """With the transform of the input, which begins as none."""

    def __init__(self) -> None:
        super().__init__()
        self.look, self.turn = shared(3, 32, 64, 128), nn.Linear(128, 9)
        nn.init.zeros_(self.turn.weight)
        nn.init.zeros_(self.turn.bias)
        self.points = shared(3, 64, 64, 64, 128, 256)
        self.head = nn.Sequential(
            *(nn.Linear(256, 128), nn.BatchNorm1d(128), nn.ReLU()),
            *(nn.Linear(128, 64), nn.Dropout(0.3), nn.BatchNorm1d(64), nn.ReLU()),
            nn.Linear(64, 10),
        )

    def forward(self, x: Tensor) -> Tensor:
        turn = self.turn(self.look(x.mT).amax(-1)).view(-1, 3, 3) + torch.eye(3)
        out: Tensor = self.head(self.points((x @ turn).mT).amax(-1))
        return out


class DeepSets(nn.Module):
    """Each element by itself, their mean, then the whole."""

    def __init__(self) -> None:
        super().__init__()
        self.each = nn.Sequential(nn.Linear(3, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU())
        self.all = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.all(self.each(x).mean(1))
        return out


class GCN(nn.Module):
    """Kipf & Welling 2017: two layers, Glorot weights, normalised rows as inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(128, 32, bias=False), nn.Linear(32, 7, bias=False)
        self.bias = nn.Parameter(torch.zeros(32))
        for layer in (self.first, self.second):
            nn.init.xavier_uniform_(layer.weight)

    def forward(self, x: Tensor, adjacency: Tensor) -> Tensor:
        x = F.relu(adjacency @ self.first(x) + self.bias)
        out: Tensor = adjacency @ self.second(F.dropout(x, 0.5, self.training))
        return out


def graph(generator: Generator) -> Batch:
    """Nodes of seven kinds, linked mostly to their own; words that they hold, as in Cora."""
    kinds = torch.randint(7, (500,), generator=generator)
    same = kinds[:, None] == kinds
    linked = torch.rand(500, 500, generator=generator) < torch.where(same, 0.02, 0.001)
    linked = (linked | linked.T).float().fill_diagonal_(1.0)
    degree = linked.sum(1).rsqrt()
    often = torch.rand(7, 128, generator=Generator().manual_seed(0)) ** 4 * 0.3
    words = (torch.rand(500, 128, generator=generator) < often[kinds]).float()
    x = words / words.sum(1, keepdim=True).clamp(min=1)
    return Batch((x, degree[:, None] * linked * degree), kinds)


class NeRF(nn.Module):
    """Eight layers of 256 with the encoded position again at the fifth; density and colour."""

    def __init__(self, width: int = 256) -> None:
        super().__init__()
        sizes = [63, *[width] * 4, width + 63, *[width] * 2]
        self.layers = nn.ModuleList(nn.Linear(size, width) for size in sizes)
        self.density, self.feature = nn.Linear(width, 1), nn.Linear(width, width)
        self.view, self.colour = nn.Linear(width + 27, width // 2), nn.Linear(width // 2, 3)

    def forward(self, places: Tensor, views: Tensor) -> Tensor:
        x = encoded(places, 10)
        y = x
        for number, layer in enumerate(self.layers):
            y = F.relu(layer(torch.cat([x, y], -1) if number == 5 else y))
        density = F.relu(self.density(y))
        seen = F.relu(self.view(torch.cat([self.feature(y), encoded(views, 4)], -1)))
        return torch.cat([torch.sigmoid(self.colour(seen)), density], -1)


def encoded(x: Tensor, octaves: int) -> Tensor:
    angles = x[..., None] * 2.0 ** torch.arange(octaves) * math.pi
    return torch.cat([x, angles.sin().flatten(-2), angles.cos().flatten(-2)], -1)


def rays(generator: Generator) -> Batch:
    places = torch.rand(1024, 3, generator=generator) * 2 - 1
    views = F.normalize(torch.randn(1024, 3, generator=generator), dim=-1)
    inside = (places.norm(dim=-1, keepdim=True) < 0.8).float()
    return Batch((places, views), torch.cat([(places + 1) / 2, inside], -1))


class Sine(nn.Module):
    """A dense layer and ``sin(30 · z)``."""

    def __init__(self, inputs: int, outputs: int, first: bool = False) -> None:
        super().__init__()
        self.linear = nn.Linear(inputs, outputs)
        bound = 1 / inputs if first else math.sqrt(6 / inputs) / 30
        nn.init.uniform_(self.linear.weight, -bound, bound)

    def forward(self, x: Tensor) -> Tensor:
        return torch.sin(30 * self.linear(x))


def siren(width: int = 128) -> nn.Module:
    last = nn.Linear(width, 3)
    bound = math.sqrt(6 / width) / 30
    nn.init.uniform_(last.weight, -bound, bound)
    return nn.Sequential(Sine(2, width, True), Sine(width, width), Sine(width, width), last)


def pixels(generator: Generator) -> Batch:
    picture = fields(1, 3, 64, Generator().manual_seed(0))[0] * 0.3
    places = torch.randint(64, (1024, 2), generator=generator)
    colour = picture[:, places[:, 0], places[:, 1]].T
    return Batch((places / 31.5 - 1,), colour.clamp(-1, 1))


def self_normalising(depth: int = 8, width: int = 64) -> nn.Module:
    """SELU, LeCun normal weights, alpha dropout."""
    layers: list[nn.Module] = []
    for inputs in [30, *[width] * (depth - 1)]:
        layers += [nn.Linear(inputs, width), nn.SELU(), nn.AlphaDropout(0.05)]
    model = nn.Sequential(*layers, nn.Linear(width, 10))
    for module in model.modules():
        if isinstance(module, nn.Linear):
            nn.init.kaiming_normal_(module.weight, nonlinearity="linear")
            nn.init.zeros_(module.bias)
    return model


def elu_mlp() -> nn.Module:
    """Clevert et al. 2015: eight layers of 128 with He's weights."""
    layers: list[nn.Module] = []
    for inputs in [30, *[128] * 7]:
        layers += [nn.Linear(inputs, 128), nn.ELU()]
        nn.init.kaiming_normal_(layers[-2].weight)
    return nn.Sequential(*layers, nn.Linear(128, 10))


def relu_mlp() -> nn.Module:
    """Three layers with torch's own initialisation: what most people begin with."""
    return nn.Sequential(
        *(nn.Linear(30, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU()),
        *(nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 10)),
    )


def physics(width: int = 50) -> nn.Module:
    """A physics-informed network: tanh, Xavier weights, place and time as inputs."""
    layers: list[nn.Module] = []
    for inputs in [2, *[width] * 4]:
        layers += [nn.Linear(inputs, width), nn.Tanh()]
    model = nn.Sequential(*layers, nn.Linear(width, 1))
    for module in model.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_normal_(module.weight)
            nn.init.zeros_(module.bias)
    return model


def collocation(generator: Generator) -> Batch:
    """Places in [−1, 1], times in [0, 1], and a travelling wave."""
    x = torch.rand(1000, 2, generator=generator)
    x[:, 0] = 2 * x[:, 0] - 1
    return Batch((x,), torch.sin(math.pi * (x[:, :1] - x[:, 1:])))


class Messages(nn.Module):
    """A layer of a graph network that sums messages: GIN, ε = 0, norms in its MLP."""

    def __init__(self, inputs: int, width: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(
            *(nn.Linear(inputs, width), nn.BatchNorm1d(width), nn.ReLU()),
            *(nn.Linear(width, width), nn.BatchNorm1d(width), nn.ReLU()),
        )

    def forward(self, x: Tensor, adjacency: Tensor) -> Tensor:
        out: Tensor = self.mlp(x + adjacency @ x)
        return out


class GIN(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = Messages(16, 64), Messages(64, 64)
        self.head = nn.Linear(64, 7)

    def forward(self, x: Tensor, adjacency: Tensor) -> Tensor:
        out: Tensor = self.head(self.second(self.first(x, adjacency), adjacency))
        return out


def molecules(generator: Generator) -> Batch:
    """Sparse links, features that lie around zero, seven kinds of node."""
    x = table(500, 16, generator)
    linked = (torch.rand(500, 500, generator=generator) < 0.004).float()
    return Batch((x, (linked + linked.T).clamp(max=1)), x[:, :7].argmax(1))


ROWS = labelled(1000, 30)
ENTRIES = {
    "PointNet": Entry("arXiv:1612.00593", PointNet, points),
    "DeepSets": Entry("arXiv:1703.06114", DeepSets, points),
    "GCN": Entry("arXiv:1609.02907", GCN, graph, lr=1e-2, optimizer=adam),
    "GIN": Entry("arXiv:1810.00826", GIN, molecules),
    "NeRF": Entry("arXiv:2003.08934", NeRF, rays, squared, 5e-4, adam),
    "SIREN": Entry("arXiv:2006.09661", siren, pixels, squared, 1e-4, adam, False),
    "Self-normalising MLP": Entry("arXiv:1706.02515", self_normalising, ROWS),
    "ELU MLP": Entry("arXiv:1511.07289", elu_mlp, ROWS),
    "ReLU MLP": Entry("Nair & Hinton 2010; torch.nn", relu_mlp, ROWS),
    "Physics-informed network": Entry(
        "arXiv:1711.10561", physics, collocation, squared, 1e-3, adam
    ),
}
