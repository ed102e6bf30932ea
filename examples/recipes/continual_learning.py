"""A run of task after task, which loses its units.

Twenty tasks, each scikit-learn's digits with their pixels in another order, one after another and
without a break for the optimizer (Goodfellow et al. 2013; Dohare et al. 2024). Each new order
finds fewer units alive, and the later tasks are learned worse: the network loses its plasticity.

The score is the held-out accuracy at the end of a task, mean over the last five tasks.

    python -m examples.recipes.continual_learning [--seeds 3] [--quick]
"""

from __future__ import annotations

from dataclasses import dataclass
from statistics import mean

import torch
from torch import nn

from deadwatch import Watch
from examples.recipes.frame import Recipe, Run, digits


@dataclass(frozen=True)
class Arm:
    """One way to train."""

    act: type[nn.Module] = nn.ReLU
    rate: float = 0.01
    decay: float = 0.0
    policy: str | None = None


def mlp(act: type[nn.Module]) -> nn.Sequential:
    hidden = nn.Linear(64, 64), act(), nn.Linear(64, 64), act()
    return nn.Sequential(*hidden, nn.Linear(64, 10))


def train(arm: Arm, seed: int, quick: bool) -> Run:
    torch.manual_seed(seed)
    x, held_out, y, truth = digits()
    model = mlp(arm.act)
    optimizer = torch.optim.AdamW(model.parameters(), lr=arm.rate, weight_decay=arm.decay)
    scores: list[float] = []
    with Watch(model, optimizer=optimizer, policy=arm.policy, advice=True) as watch:
        for _ in range(9 if quick else 20):
            pixels = torch.randperm(64)
            task = x[:, pixels]
            for _ in range(5):
                for rows in torch.randperm(len(task)).split(64):
                    loss = nn.functional.cross_entropy(model(task[rows]), y[rows])
                    optimizer.zero_grad()
                    loss.backward()
                    optimizer.step()
                    watch.step(loss)
                report = watch.close_window()
            with torch.no_grad():
                right = model.eval()(held_out[:, pixels]).argmax(1) == truth
            model.train()
            scores.append(100 * float(right.float().mean()))
    return Run.of(mean(scores[-5:]), report)


RECIPE = Recipe(
    name="A continual run",
    score="accuracy, last 5 tasks, %",
    train=train,
    arms={
        "AdamW at 0.01": Arm(),
        'policy="revive"': Arm(policy="revive"),
        "LeakyReLU from the start": Arm(act=nn.LeakyReLU),
        "weight decay 0.1": Arm(decay=0.1),
        "AdamW at 0.001": Arm(rate=0.001),
    },
)

if __name__ == "__main__":
    RECIPE.main()
