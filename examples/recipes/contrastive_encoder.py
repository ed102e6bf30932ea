"""A contrastive encoder whose projection head ends in a ReLU.

An encoder learns scikit-learn's digits without labels, as in SimCLR (Chen et al. 2020): two noisy,
shifted views of a picture shall lie close together, and far from all others. Where the head ends in
a ReLU, a good part of the embedding is closed for every picture, already at Adam's usual rate, and
what is left cannot point below zero. The remedy is in the structure: no activation at the end.
Nothing that a policy may do helps there, and it says why: the loss reads the units outside of the
model, so that no remedy knows what it would do to it.

The score is the held-out accuracy of 5 nearest neighbours by the cosine of the embeddings.

    python -m examples.recipes.contrastive_encoder [--seeds 3] [--quick]
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from deadwatch import Watch
from examples.recipes.frame import Recipe, Run, digits

TEMPERATURE = 0.2


@dataclass(frozen=True)
class Arm:
    """One way to train."""

    ends_in_relu: bool = True
    policy: str | None = None


def encoder(ends_in_relu: bool) -> nn.Sequential:
    """Two hidden layers, and a head of 64 units that gives an embedding in 32 dimensions."""
    return nn.Sequential(
        *(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU()),
        *(nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, 32), *[nn.ReLU()] * ends_in_relu),
    )


def view(x: Tensor) -> Tensor:
    """The pictures (N, 64), shifted by a pixel at most, brighter or darker, and noisy."""
    across, down = torch.randint(-1, 2, (2,)).tolist()
    padded = F.pad(x.view(-1, 8, 8), (1, 1, 1, 1)).roll((across, down), (1, 2))
    bright = padded[:, 1:9, 1:9] * (0.6 + 0.8 * torch.rand(len(x), 1, 1))
    return (bright + 0.2 * torch.randn_like(bright)).flatten(1)


def contrastive(embedded: Tensor) -> Tensor:
    """NT-Xent of two views, one half of the batch (2N, D) each."""
    unit = F.normalize(embedded, dim=1)
    alike = (unit @ unit.T / TEMPERATURE).fill_diagonal_(-1e9)
    return F.cross_entropy(alike, torch.arange(len(unit)).roll(len(unit) // 2))


def neighbours(model: nn.Module, data: tuple[Tensor, Tensor, Tensor, Tensor]) -> float:
    """Held-out accuracy in % of the 5 nearest neighbours among the embeddings."""
    x, held_out, y, truth = data
    known, asked = (F.normalize(model(part), dim=1) for part in (x, held_out))
    votes = y[(asked @ known.T).topk(5).indices]
    return 100 * float((votes.mode(1).values == truth).float().mean())


def train(arm: Arm, seed: int, quick: bool) -> Run:
    torch.manual_seed(seed)
    data = digits()
    model = encoder(arm.ends_in_relu)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.001)
    with Watch(model, optimizer=optimizer, policy=arm.policy, advice=True) as watch:
        for _ in range(20 if quick else 60):
            for rows in torch.randperm(len(data[0])).split(128):
                x = data[0][rows]
                loss = contrastive(model(torch.cat([view(x), view(x)])))
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                watch.step(loss)
            report = watch.close_window()
    with torch.no_grad():
        score = neighbours(model.eval(), data)
    return Run.of(score, report)


RECIPE = Recipe(
    name="A contrastive encoder",
    score="neighbours right, %",
    train=train,
    arms={
        "the head ends in a ReLU": Arm(),
        'policy="revive"': Arm(policy="revive"),
        "no ReLU at the end": Arm(ends_in_relu=False),
        'no ReLU at the end, policy="revive"': Arm(ends_in_relu=False, policy="revive"),
    },
)

if __name__ == "__main__":
    RECIPE.main()
