"""An attention scorer that is born dead, with a ReLU right before its softmax.

A bag holds four of scikit-learn's digits, and its label is the largest of them. Attention pooling
(Ilse et al. 2018) has to find it: a scorer gives each picture a weight. Here the scorer's hidden
biases begin at -1, so that it looks at little in the beginning, and its scores pass a ReLU before
the softmax. Nothing passes such a scorer, all pictures weigh the same, and no gradient tells it.

That is seen before training, by a `scan` of one batch. Where the ReLU before the softmax stays, a
policy wakes the hidden units, but not always the scores; it says that softmax reads them.

The score is the held-out accuracy.

    python -m examples.recipes.attention_scorer [--seeds 3] [--quick]
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from deadwatch import Watch
from examples.recipes.frame import Recipe, Run, digits

BAG, HEADS, WIDTH = 4, 4, 32


@dataclass(frozen=True)
class Arm:
    """One way to train."""

    relu: bool = True
    bias: float = -1.0
    policy: str | None = None


class Pooling(nn.Module):
    """Embeds the pictures of a bag (N, BAG, 64), and pools them by four heads of attention."""

    def __init__(self, relu: bool, bias: float) -> None:
        super().__init__()
        self.embed = nn.Sequential(nn.Linear(64, WIDTH), nn.ReLU())
        first, last = nn.Linear(WIDTH, 16), nn.Linear(16, HEADS)
        nn.init.constant_(first.bias, bias)
        self.scorer = nn.Sequential(first, nn.ReLU(), last, *[nn.ReLU()] * relu, nn.Softmax(1))
        self.head = nn.Linear(HEADS * WIDTH, 10)

    def forward(self, x: Tensor) -> Tensor:
        embedded = self.embed(x)
        pooled = self.scorer(embedded).transpose(1, 2) @ embedded
        out: Tensor = self.head(pooled.flatten(1))
        return out


def bags(x: Tensor, y: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Pictures drawn at random (count, BAG, 64), and the largest digit of each bag."""
    rows = torch.randint(len(x), (count, BAG))
    return x[rows], y[rows].amax(1)


def train(arm: Arm, seed: int, quick: bool) -> Run:
    torch.manual_seed(seed)
    images, held_out, labels, truth = digits()
    x, y = bags(images, labels, 2000 if quick else 4000)
    asked, answers = bags(held_out, truth, 2000)
    model = Pooling(arm.relu, arm.bias)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.003)
    epochs = 6 if quick else 20
    steps = epochs * -(-len(x) // 64)
    with Watch(
        model,
        optimizer=optimizer,
        policy=arm.policy,
        include="scorer*",
        total_steps=steps,
        advice=True,
    ) as watch:
        for _ in range(epochs):
            for rows in torch.randperm(len(x)).split(64):
                loss = nn.functional.cross_entropy(model(x[rows]), y[rows])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                watch.step(loss)
            report = watch.close_window(treat=watch.steps < steps)
    with torch.no_grad():
        score = 100 * float((model.eval()(asked).argmax(1) == answers).float().mean())
    return Run.of(score, report)


RECIPE = Recipe(
    name="An attention scorer",
    score="accuracy, %",
    train=train,
    arms={
        "biases −1, ReLU before the softmax": Arm(),
        'policy="revive"': Arm(policy="revive"),
        "no ReLU before the softmax": Arm(relu=False),
        'no ReLU there, policy="revive"': Arm(relu=False, policy="revive"),
        "no ReLU there, biases 0": Arm(relu=False, bias=0.0),
    },
)

if __name__ == "__main__":
    RECIPE.main()
