"""Trainings in which plain ReLU networks suffer, and some in which they do not.

All data are bundled with scikit-learn. To measure your own case, put a list ``SCENARIOS`` of
`Scenario` into a file and run ``python benchmarks/efficacy.py --file yours.py``.

A scenario's kind says what it may be used for: presets were tuned on ``"listed"`` ones; nothing
should be done in ``"healthy"`` ones; ``"held out"`` ones were looked at only after tuning.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache, partial
from itertools import pairwise
from typing import Any, Literal

import torch
from sklearn import datasets
from sklearn.model_selection import train_test_split
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import SGD, Adam, Optimizer, RMSprop

Activation = Callable[[], nn.Module]


@dataclass(frozen=True, eq=False)
class Task:
    """Training and held-out samples (N, …) and their targets."""

    x: Tensor
    y: Tensor
    x_out: Tensor
    y_out: Tensor


def cross_entropy(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(model(x), y)


def accuracy(model: nn.Module, task: Task) -> float:
    """Held-out accuracy in %."""
    return 100 * float((model(task.x_out).argmax(1) == task.y_out).float().mean())


def fitted(model: nn.Module, task: Task) -> float:
    """Accuracy on the training set in %: for labels that hold no rule to generalise."""
    return 100 * float((model(task.x).argmax(1) == task.y).float().mean())


@dataclass(frozen=True)
class Scenario:
    """A network, what it learns one after another, and how it is trained and scored.

    Attributes:
        name: Heading of its column.
        build: The network with the given activation.
        optimizer: Its optimizer, from ``model.parameters()``.
        tasks: What is learned one after another; may draw from torch's random stream.
        epochs: Passes over the training set of each task.
        lr: Factor of the learning rate, from the step's number and the number of all steps.
        loss: From model, samples and targets.
        score: After each task, in evaluation mode; the result is the mean over tasks.
        lower: Whether a lower score is better.
        batch: Samples in a step.
        kind: ``"listed"``, ``"healthy"`` or ``"held out"``.
    """

    name: str
    build: Callable[[Activation], nn.Module]
    optimizer: Callable[[Any], Optimizer]
    tasks: Callable[[], list[Task]]
    epochs: int = 20
    lr: Callable[[int, int], float] = lambda step, steps: (1 + math.cos(math.pi * step / steps)) / 2
    loss: Callable[[nn.Module, Tensor, Tensor], Tensor] = cross_entropy
    score: Callable[[nn.Module, Task], float] = accuracy
    lower: bool = False
    batch: int = 64
    kind: Literal["listed", "healthy", "held out"] = "listed"

    def batches(self, task: Task) -> Iterator[tuple[Tensor, Tensor]]:
        """One epoch."""
        for rows in torch.randperm(len(task.x)).split(self.batch):
            yield task.x[rows], task.y[rows]


# ── data ────────────────────────────────────────────────────────────────────────────────


@cache
def bundled(name: str) -> Task:
    """One of scikit-learn's data sets: features standardised (pixels in 0 to 1), a quarter out."""
    x, y = getattr(datasets, f"load_{name}")(return_X_y=True)
    classes = name != "diabetes"
    x, x_out, y, y_out = train_test_split(
        x, y, test_size=0.25, random_state=0, stratify=y if classes else None
    )
    low, size = (0, 16) if name == "digits" else (x.mean(0), x.std(0))
    shift, scale = (0, 1) if classes else (y.mean(), y.std())
    kind = torch.long if classes else torch.float32
    return Task(
        torch.tensor((x - low) / size, dtype=torch.float32),
        torch.tensor((y - shift) / scale, dtype=kind),
        torch.tensor((x_out - low) / size, dtype=torch.float32),
        torch.tensor((y_out - shift) / scale, dtype=kind),
    )


def one(name: str) -> list[Task]:
    return [bundled(name)]


def permuted(count: int) -> list[Task]:
    """The digits with their pixels in another order in each task."""
    task = bundled("digits")
    orders = [torch.randperm(64) for _ in range(count)]
    return [Task(task.x[:, o], task.y, task.x_out[:, o], task.y_out) for o in orders]


def relabelled(count: int, images: int = 512) -> list[Task]:
    """Some digits with labels at random, drawn anew in each task."""
    x = bundled("digits").x[:images]
    labels = [torch.randint(10, (images,)) for _ in range(count)]
    return [Task(x, y, x, y) for y in labels]


def drifting(count: int) -> list[Task]:
    """The digits with their classes renamed in each task."""
    task = bundled("digits")
    names = [torch.randperm(10) for _ in range(count)]
    return [Task(task.x, n[task.y], task.x_out, n[task.y_out]) for n in names]


def pictures() -> list[Task]:
    """The digits as their own targets, less the mean picture."""
    task = bundled("digits")
    x, x_out = task.x - task.x.mean(0), task.x_out - task.x.mean(0)
    return [Task(x, x, x_out, x_out)]


# ── networks ────────────────────────────────────────────────────────────────────────────


def mlp(act: Activation, sizes: tuple[int, ...] = (64, 64, 64, 10)) -> nn.Sequential:
    layers: list[nn.Module] = []
    for fan_in, fan_out in pairwise(sizes):
        layers += [nn.Linear(fan_in, fan_out), act()]
    return nn.Sequential(*layers[:-1])


def buried(act: Activation) -> nn.Sequential:
    """Every hidden bias starts at -3: dead on arrival."""
    model = mlp(act)
    for layer in (model[0], model[2]):
        assert isinstance(layer, nn.Linear)
        nn.init.constant_(layer.bias, -3)
    return model


def deep(act: Activation, depth: int, width: int) -> nn.Sequential:
    """A deep narrow network, drawn as He et al. (2015) advise."""
    model = mlp(act, (64, *[width] * depth, 10))
    for layer in model:
        if isinstance(layer, nn.Linear):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            nn.init.zeros_(layer.bias)
    return model


def born_dead(act: Activation, depth: int, width: int) -> nn.Sequential:
    """The first draw of a deep narrow network in which no input passes some ReLU layer."""
    while True:
        model = deep(act, depth, width)
        x = bundled("digits").x
        with torch.no_grad():
            for layer in list(model)[:-1:2]:
                x = layer(x).relu()
        if not x.any():
            return model


def cnn(act: Activation, norm: bool = False) -> nn.Sequential:
    """Two convolutions on the 8 × 8 pictures, without a norm or with batch norm."""
    return nn.Sequential(
        nn.Unflatten(1, (1, 8, 8)),
        *(nn.Conv2d(1, 8, 3, padding=1), *[nn.BatchNorm2d(8)] * norm, act()),
        *(nn.Conv2d(8, 16, 3, padding=1), *[nn.BatchNorm2d(16)] * norm, act(), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Linear(256, 32), act(), nn.Linear(32, 10)),
    )


class SparseAutoencoder(nn.Module):
    """128 latents with negative biases; the loss reads them from ``latents``."""

    def __init__(self, act: Activation) -> None:
        super().__init__()
        self.encoder, self.act = nn.Linear(64, 128), act()
        self.decoder = nn.Linear(128, 64)
        nn.init.constant_(self.encoder.bias, -0.4)

    def forward(self, x: Tensor) -> Tensor:
        self.latents: Tensor = self.act(self.encoder(x))
        out: Tensor = self.decoder(self.latents)
        return out


class AttentionPooling(nn.Module):
    """Rows of the picture, pooled by a scorer whose hidden biases start at -3.

    Only the scorer knows which row is which.
    """

    def __init__(self, act: Activation) -> None:
        super().__init__()
        self.embed = nn.Sequential(nn.Linear(8, 32), act())
        self.scorer = nn.Sequential(nn.Linear(16, 16), act(), nn.Linear(16, 4))
        self.head = nn.Linear(4 * 32, 10)
        assert isinstance(self.scorer[0], nn.Linear)
        nn.init.constant_(self.scorer[0].bias, -3)

    def forward(self, x: Tensor) -> Tensor:
        rows = x.view(-1, 8, 8)
        places = torch.eye(8).expand(len(x), 8, 8)
        weights = self.scorer(torch.cat([rows, places], 2)).softmax(1)  # (N, 8, 4)
        pooled = weights.transpose(1, 2) @ self.embed(rows)
        out: Tensor = self.head(pooled.flatten(1))
        return out


class Transformer(nn.Module):
    """Two encoder layers over the rows of the picture."""

    def __init__(self, act: Activation) -> None:
        super().__init__()
        self.embed = nn.Linear(8, 24)
        self.place = nn.Parameter(torch.randn(8, 24) / 10)
        self.layers = nn.Sequential(
            *(
                nn.TransformerEncoderLayer(24, 2, 48, 0.0, act(), batch_first=True, norm_first=True)
                for _ in range(2)
            )
        )
        self.head = nn.Linear(24, 10)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.layers(self.embed(x.view(-1, 8, 8)) + self.place)
        out: Tensor = self.head(tokens.mean(1))
        return out


class Residual(nn.Module):
    """Four residual blocks without a norm."""

    def __init__(self, act: Activation) -> None:
        super().__init__()
        self.stem, self.head = nn.Linear(64, 32), nn.Linear(32, 10)
        self.blocks = nn.ModuleList(mlp(act, (32, 32, 32)) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = x + block(x)
        out: Tensor = self.head(x)
        return out


# ── losses and scores ───────────────────────────────────────────────────────────────────


def sparse_loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Squared error plus a fraction of the sum of latent sizes."""
    assert isinstance(model, SparseAutoencoder)
    wrong: Tensor = model(x) - y
    return wrong.square().sum(1).mean() + 0.03 * model.latents.abs().sum(1).mean()


def squared_error(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    wrong: Tensor = model(x).view_as(y) - y
    return wrong.square().mean()


def relative(model: nn.Module, task: Task) -> float:
    """Held-out squared error in % of the variance; 100, which the mean alone reaches, at most."""
    error = float(squared_error(model, task.x_out, task.y_out) / task.y_out.square().mean())
    return 100 * error if error < 1 else 100.0


def sparse(model: nn.Module, task: Task) -> float:
    """Held-out `sparse_loss` in % of the variance; 100 at most."""
    error = float(sparse_loss(model, task.x_out, task.y_out) / task.y_out.square().sum(1).mean())
    return 100 * error if error < 1 else 100.0


def bandit(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Policy gradient with an entropy bonus: of an action drawn for each sample, the reward."""
    log_p: Tensor = model(x).log_softmax(1)
    p = log_p.exp()
    action = p.detach().nan_to_num(1).clamp_min(1e-9).multinomial(1).squeeze(1)
    reward = (action == y).float()
    chosen = log_p.gather(1, action[:, None]).squeeze(1)
    return 0.1 * (p * log_p).sum(1).mean() - ((reward - reward.mean()) * chosen).mean()


def spike(step: int, steps: int) -> float:
    """One update at 300 times the learning rate, after a quarter of the training."""
    return 300.0 if step == steps // 4 else 1.0


def late(step: int, steps: int) -> float:
    """Steady, and down to zero in the last quarter."""
    return min(1.0, 4 * (1 - step / steps))


def steady(step: int, steps: int) -> float:
    return 1.0


# ── scenarios ───────────────────────────────────────────────────────────────────────────


def adam(lr: float) -> Callable[[Any], Optimizer]:
    return partial(Adam, lr=lr)


digits = partial(one, "digits")
wide = partial(mlp, sizes=(64, 128, 128, 10))
three = partial(mlp, sizes=(64, 64, 64, 64, 10))
small = partial(mlp, sizes=(10, 16, 16, 1))
bottleneck = partial(mlp, sizes=(64, 32, 16, 32, 64))

SCENARIOS = [
    Scenario("spike", mlp, adam(0.02), digits, lr=spike),
    Scenario("biases −3", buried, adam(3e-3), digits),
    Scenario("CNN, Adam", cnn, adam(0.05), digits, 12, batch=32),
    Scenario("MLP, Adam", mlp, adam(0.2), digits, batch=32),
    Scenario("MLP, SGD", three, partial(SGD, lr=0.2, momentum=0.9), digits, lr=late),
    Scenario("permuted", mlp, adam(0.01), partial(permuted, 30), 5, steady),
    Scenario("relabelled", mlp, adam(0.01), partial(relabelled, 20), 25, steady, score=fitted),
    Scenario("14 × 6", partial(deep, depth=14, width=6), adam(3e-3), digits, 40),
    Scenario("born dead", partial(born_dead, depth=16, width=8), adam(3e-3), digits, 40),
    Scenario(
        *("sparse", SparseAutoencoder, adam(3e-3), pictures, 30),
        loss=sparse_loss,
        score=sparse,
        lower=True,
    ),
    Scenario("attention −3", AttentionPooling, adam(0.01), digits, 30),
    Scenario("healthy MLP", wide, adam(3e-3), digits, kind="healthy"),
    Scenario("healthy CNN", cnn, adam(2e-3), digits, 25, kind="healthy"),
    Scenario("batch norm", partial(cnn, norm=True), adam(0.1), digits, 10, kind="held out"),
    Scenario("residual", Residual, adam(0.03), digits, 20, kind="held out"),
    Scenario("transformer", Transformer, adam(0.1), digits, 8, kind="held out"),
    Scenario("RMSprop", mlp, partial(RMSprop, lr=0.04), digits, kind="held out"),
    Scenario(
        *("bandit", mlp, adam(0.003), partial(drifting, 6), 12, steady, bandit),
        batch=32,
        kind="held out",
    ),
    Scenario(
        *("autoencoder", bottleneck, adam(0.03), pictures),
        loss=squared_error,
        score=relative,
        lower=True,
        kind="held out",
    ),
    Scenario(
        *("diabetes", small, adam(0.1), partial(one, "diabetes"), 30),
        loss=squared_error,
        score=relative,
        lower=True,
        batch=32,
        kind="held out",
    ),
]
