"""A GAN whose generator loses its ReLU units to Adam's rate.

A small GAN (Goodfellow et al. 2014) draws scikit-learn's digits. The rate is ten times the usual
one, and no norm stands between the generator's layers, so that units die one by one: what is left
of the generator draws with fewer and fewer of them. Batch norm before the ReLU, as in DCGAN
(Radford et al. 2016), is the remedy in the structure.

The score is the Fréchet distance between the pixels of drawn and of held-out digits, both taken
for Gaussians: of two halves of the real digits it is 0.1.

    python -m examples.recipes.gan_generator [--seeds 3] [--quick]
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from deadwatch import Watch
from examples.recipes.frame import Recipe, Run, digits

NOISE, WIDTH = 16, 64


@dataclass(frozen=True)
class Arm:
    """One way to train."""

    norm: bool = False
    rate: float = 0.01
    policy: str | None = None


def generator(norm: bool) -> nn.Sequential:
    def layer(size: int) -> list[nn.Module]:
        return [nn.Linear(size, WIDTH), *[nn.BatchNorm1d(WIDTH)] * norm, nn.ReLU()]

    return nn.Sequential(*layer(NOISE), *layer(WIDTH), nn.Linear(WIDTH, 64), nn.Sigmoid())


def discriminator() -> nn.Sequential:
    hidden = nn.Linear(64, WIDTH), nn.LeakyReLU(0.2), nn.Linear(WIDTH, WIDTH), nn.LeakyReLU(0.2)
    return nn.Sequential(*hidden, nn.Linear(WIDTH, 1))


def frechet(drawn: Tensor, real: Tensor) -> float:
    """Squared distance of two Gaussians with the means and covariances of these (N, 64)."""
    ours, theirs = torch.cov(drawn.T).double(), torch.cov(real.T).double()
    root = torch.linalg.eigvals(ours @ theirs).real.clamp_min(0).sqrt().sum()
    apart = (drawn.mean(0) - real.mean(0)).square().sum()
    return float(apart + ours.trace() + theirs.trace() - 2 * root)


def train(arm: Arm, seed: int, quick: bool) -> Run:
    torch.manual_seed(seed)
    x, held_out, _, _ = digits()
    draws, judges = generator(arm.norm), discriminator()
    ours = torch.optim.Adam(draws.parameters(), lr=arm.rate, betas=(0.5, 0.999))
    theirs = torch.optim.Adam(judges.parameters(), lr=0.001, betas=(0.5, 0.999))
    # Only the generator is watched: its optimizer, its loss.
    with Watch(draws, optimizer=ours, policy=arm.policy, advice=True) as watch:
        for _ in range(15 if quick else 60):
            for rows in torch.randperm(len(x)).split(64):
                fake = draws(torch.randn(len(rows), NOISE))
                theirs.zero_grad()
                told = softplus(-judges(x[rows])).mean() + softplus(judges(fake.detach())).mean()
                told.backward()
                theirs.step()
                ours.zero_grad()
                loss = softplus(-judges(fake)).mean()
                loss.backward()
                ours.step()
                watch.step(loss)
            report = watch.close_window()
    with torch.no_grad():
        drawn = draws.eval()(torch.randn(2000, NOISE))
    return Run.of(frechet(drawn, held_out), report)


RECIPE = Recipe(
    name="A GAN's generator",
    score="Fréchet distance, lower is better",
    train=train,
    arms={
        "no norm, Adam at 0.01": Arm(),
        'policy="revive"': Arm(policy="revive"),
        "Adam at 0.001": Arm(rate=0.001),
        "batch norm before each ReLU": Arm(norm=True),
        'batch norm and policy="revive"': Arm(norm=True, policy="revive"),
    },
)

if __name__ == "__main__":
    RECIPE.main()
