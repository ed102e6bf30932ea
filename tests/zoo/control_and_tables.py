"""Reinforcement learning, tables, retrieval and representations."""

from __future__ import annotations

from typing import Any

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from tests.zoo.data import features, fields, pictures, table
from tests.zoo.entry import Batch, Entry, adam, squared, yes_or_no
from tests.zoo.residual_convnets import resnet18


def dqn() -> nn.Module:
    """Mnih et al. 2015, on 84 × 84 × 4; the dense layer is half as wide."""
    return nn.Sequential(
        *(nn.Conv2d(4, 32, 8, 4), nn.ReLU(), nn.Conv2d(32, 64, 4, 2), nn.ReLU()),
        *(nn.Conv2d(64, 64, 3, 1), nn.ReLU(), nn.Flatten()),
        *(nn.Linear(64 * 7 * 7, 256), nn.ReLU(), nn.Linear(256, 6)),
    )


def screens(generator: Generator) -> Batch:
    """Four frames in [0, 1], mostly dark, as Atari's are after division by 255."""
    x = (fields(320, 4, 84, generator) * 0.2 + 0.2).clamp(0, 1)
    return Batch((x,), returns(x))


def returns(x: Tensor) -> Tensor:
    """What six actions bring (N, 6): around zero, as with clipped rewards."""
    bright = x.mean((2, 3))[:, [0, 1, 2, 3, 0, 1]]
    return (3 * (bright - 0.21)).clamp(-1, 1)


def impala() -> nn.Module:
    """The residual network of Espeholt et al. 2018: activations before convolutions."""

    class Block(nn.Module):
        def __init__(self, width: int) -> None:
            super().__init__()
            self.conv1 = nn.Conv2d(width, width, 3, padding=1)
            self.conv2 = nn.Conv2d(width, width, 3, padding=1)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = x + self.conv2(F.relu(self.conv1(F.relu(x))))
            return out

    def stage(inputs: int, width: int) -> tuple[nn.Module, ...]:
        first = nn.Conv2d(inputs, width, 3, padding=1)
        return first, nn.MaxPool2d(3, 2, 1), Block(width), Block(width)

    return nn.Sequential(
        *(*stage(4, 16), *stage(16, 32), *stage(32, 32), nn.ReLU(), nn.Flatten()),
        *(nn.Linear(32 * 6 * 6, 256), nn.ReLU(), nn.Linear(256, 6)),
    )


def small_screens(generator: Generator) -> Batch:
    x = (fields(40, 4, 48, generator) * 0.2 + 0.2).clamp(0, 1)
    return Batch((x,), returns(x))


class ActorCritic(nn.Module):
    """PPO for continuous control: tanh, orthogonal weights, a last layer of 0.01."""

    def __init__(self, inputs: int = 17, actions: int = 6) -> None:
        super().__init__()
        self.actor, self.critic = self.mlp(inputs, actions, 0.01), self.mlp(inputs, 1, 1.0)
        self.log_std = nn.Parameter(torch.zeros(actions))

    @staticmethod
    def mlp(inputs: int, outputs: int, gain: float) -> nn.Module:
        model = nn.Sequential(
            *(nn.Linear(inputs, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh()),
            nn.Linear(64, outputs),
        )
        for layer, of in zip(model[::2], (2**0.5, 2**0.5, gain), strict=True):
            nn.init.orthogonal_(layer.weight, of)
            nn.init.zeros_(layer.bias)
        return model

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.actor(x), self.critic(x)], -1)


class SoftActor(nn.Module):
    """SAC: ReLU, actions squashed by tanh, the log of their std kept in [−20, 2]."""

    def __init__(self, inputs: int = 17, actions: int = 6) -> None:
        super().__init__()
        self.body = nn.Sequential(
            *(nn.Linear(inputs, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU())
        )
        self.mean, self.log_std = nn.Linear(256, actions), nn.Linear(256, actions)

    def forward(self, x: Tensor) -> Tensor:
        y = self.body(x)
        std = self.log_std(y).clamp(-20, 2).exp()
        mean = self.mean(y)
        return torch.tanh(mean + std * torch.randn_like(mean))


class SimCLR(nn.Module):
    """A ResNet and a projection head of two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(*list(resnet18())[:-1])
        self.head = nn.Sequential(nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 64))

    def forward(self, x: Tensor) -> Tensor:
        return F.normalize(self.head(self.encoder(x)), dim=-1)


def views(generator: Generator) -> Batch:
    """Two views of each image: flipped, with noise."""
    (x,) = pictures(160, 3, 48, 10, generator).inputs
    other = x.flip(-1) + 0.3 * torch.randn(x.shape, generator=generator)
    return Batch((torch.cat([x, other]),), torch.arange(160))


def contrastive(out: Tensor, target: Tensor) -> Tensor:
    a, b = out.chunk(2)
    return F.cross_entropy(a @ b.T / 0.5, target)


class WideAndDeep(nn.Module):
    """A linear part over crossed columns, and an MLP over embeddings and numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.wide = nn.EmbeddingBag(200, 1, mode="sum")
        self.embeddings = nn.ModuleList(nn.Embedding(50, 16) for _ in range(4))
        self.deep = nn.Sequential(
            *(nn.Linear(64 + 10, 128), nn.ReLU(), nn.Linear(128, 64), nn.ReLU()),
            *(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 1)),
        )

    def forward(self, numbers: Tensor, kinds: Tensor) -> Tensor:
        parts = [of(kinds[:, n]) for n, of in enumerate(self.embeddings)]
        crossed = kinds + 50 * torch.arange(4)
        out: Tensor = self.wide(crossed) + self.deep(torch.cat([numbers, *parts], -1))
        return out


class DLRM(nn.Module):
    """Products of all pairs of embeddings, between two MLPs that end in ReLU and in a logit."""

    def __init__(self) -> None:
        super().__init__()
        self.embeddings = nn.ModuleList(nn.Embedding(50, 16) for _ in range(4))
        self.bottom = nn.Sequential(
            *(nn.Linear(10, 64), nn.ReLU(), nn.Linear(64, 32), nn.ReLU()),
            *(nn.Linear(32, 16), nn.ReLU()),
        )
        self.top = nn.Sequential(
            nn.Linear(26, 64), nn.ReLU(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 1)
        )
        for table_of in self.embeddings:
            nn.init.uniform_(table_of.weight, -(50**-0.5), 50**-0.5)
        for layer in [*self.bottom, *self.top]:
            if isinstance(layer, nn.Linear):
                nn.init.normal_(layer.weight, 0, (2 / sum(layer.weight.shape)) ** 0.5)
                nn.init.normal_(layer.bias, 0, layer.out_features**-0.5)

    def forward(self, numbers: Tensor, kinds: Tensor) -> Tensor:
        x = self.bottom(numbers)
        parts = [of(kinds[:, n]) for n, of in enumerate(self.embeddings)]
        all_of_them = torch.stack([x, *parts], 1)
        rows, columns = torch.tril_indices(5, 5, -1)
        pairs = (all_of_them @ all_of_them.mT)[:, rows, columns]
        out: Tensor = self.top(torch.cat([x, pairs], -1))
        return out


def clicks(generator: Generator) -> Batch:
    """Ten numbers, four kinds of which few are frequent, and whether someone clicked."""
    numbers = table(1000, 10, generator)
    often = 1 / torch.arange(1, 51)
    kinds = torch.multinomial(often, 4000, True, generator=generator).view(1000, 4)
    return Batch((numbers, kinds), (numbers[:, 0] + 0.1 * kinds[:, 0] > 0.5).float())


class TwoTowers(nn.Module):
    """Users and items, each with an MLP; inner products of the results."""

    def __init__(self) -> None:
        super().__init__()
        self.users, self.items = nn.Embedding(200, 64), nn.Embedding(200, 64)
        self.user, self.item = self.tower(), self.tower()

    @staticmethod
    def tower() -> nn.Module:
        return nn.Sequential(
            *(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, 32))
        )

    def forward(self, users: Tensor, items: Tensor) -> Tensor:
        a = F.normalize(self.user(self.users(users)), dim=-1)
        b = F.normalize(self.item(self.items(items)), dim=-1)
        return a @ b.T / 0.1


def ratings(generator: Generator) -> Batch:
    users = torch.randint(200, (512,), generator=generator)
    items = (users + torch.randint(5, (512,), generator=generator)) % 200
    return Batch((users, items), torch.arange(512))


class SparseAutoencoder(nn.Module):
    """Four times as many latents as inputs, a bias before, decoder rows of norm one."""

    def __init__(self, width: int = 64, latents: int = 256) -> None:
        super().__init__()
        self.before = nn.Parameter(torch.zeros(width))
        self.encoder, self.decoder = nn.Linear(width, latents), nn.Linear(latents, width, False)
        self.act = nn.ReLU()
        with torch.no_grad():
            self.decoder.weight.copy_(F.normalize(torch.randn(width, latents), dim=0))
            self.encoder.weight.copy_(self.decoder.weight.T)
            self.encoder.bias.zero_()

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        z = self.act(self.encoder(x - self.before))
        return self.decoder(z) + self.before, z


def mixtures(generator: Generator) -> Batch:
    """Activations that are sums of few of many directions, as superposition would have them."""
    directions = F.normalize(torch.randn(256, 64, generator=Generator().manual_seed(0)), dim=-1)
    present = torch.rand(2048, 256, generator=generator) < 0.02
    x = (present * torch.rand(2048, 256, generator=generator)) @ directions
    x = x / x.norm(dim=-1).mean() * 8  # mean norm √width, as is usual
    return Batch((x,), x)


def sparse(out: Any, target: Tensor) -> Tensor:
    rebuilt, z = out
    loss: Tensor = F.mse_loss(rebuilt, target) + 1e-3 * z.abs().sum(-1).mean()
    return loss


class TabularResNet(nn.Module):
    """Gorishniy et al. 2021: batch norm, dense, ReLU, dense, and what was there before."""

    def __init__(self, width: int = 64, depth: int = 3) -> None:
        super().__init__()
        self.first = nn.Linear(30, width)
        self.blocks = nn.ModuleList(
            nn.Sequential(
                *(nn.BatchNorm1d(width), nn.Linear(width, 2 * width), nn.ReLU()),
                *(nn.Dropout(0.2), nn.Linear(2 * width, width)),
            )
            for _ in range(depth)
        )
        self.head = nn.Sequential(nn.BatchNorm1d(width), nn.ReLU(), nn.Linear(width, 1))

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        for block in self.blocks:
            x = x + block(x)
        out: Tensor = self.head(x)
        return out


class AttentionPooling(nn.Module):
    """Multiple instance learning of Ilse et al. 2018: gated scores over a bag of instances."""

    def __init__(self) -> None:
        super().__init__()
        self.each = nn.Sequential(nn.Linear(30, 64), nn.ReLU())
        self.value, self.gate, self.score = nn.Linear(64, 32), nn.Linear(64, 32), nn.Linear(32, 1)
        self.head = nn.Linear(64, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.each(x)
        scores = self.score(torch.tanh(self.value(h)) * torch.sigmoid(self.gate(h)))
        out: Tensor = self.head((scores.softmax(1) * h).sum(1))
        return out


def bags(generator: Generator) -> Batch:
    x = table(64 * 20, 30, generator).view(64, 20, 30)
    return Batch((x,), (x[..., 0].amax(1) > 2).float())


CONTROL = features(1000, 17, 7)
ENTRIES = {
    "Nature DQN": Entry("Mnih et al. 2015", dqn, screens, squared, 1e-4, adam),
    "IMPALA ResNet": Entry("arXiv:1802.01561", impala, small_screens, squared, 3e-4, adam),
    "PPO actor and critic": Entry("arXiv:1707.06347", ActorCritic, CONTROL, squared, 3e-4, adam),
    "SAC actor": Entry("arXiv:1801.01290", SoftActor, features(1000, 17, 6), squared, 3e-4, adam),
    "SimCLR": Entry("arXiv:2002.05709", SimCLR, views, contrastive),
    "Wide & Deep": Entry("arXiv:1606.07792", WideAndDeep, clicks, yes_or_no),
    "DLRM": Entry("arXiv:1906.00091", DLRM, clicks, yes_or_no),
    "Two towers": Entry("Covington et al. 2016", TwoTowers, ratings),
    "Sparse autoencoder": Entry(
        "Bricken et al. 2023", SparseAutoencoder, mixtures, sparse, 1e-3, adam
    ),
    "Tabular ResNet": Entry("arXiv:2106.11959", TabularResNet, features(1000, 30), squared),
    "Attention pooling": Entry("arXiv:1802.04712", AttentionPooling, bags, yes_or_no),
}
