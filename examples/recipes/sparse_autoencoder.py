"""A sparse autoencoder whose latents die, under Lightning.

256 latents, a penalty on their sum, and a rate of Adam that is high for it: half of the latents
are pushed below zero on all data early on, and when the rate has come down they cannot return. The
usual ways out are a lower rate, a penalty that grows slowly, and drawing dead latents afresh
(Bricken et al. 2023, who call it resampling), which is what `"revive"` does.

The penalty is the sum of a latent's value times the norm of its decoder row, so that it cannot be
evaded by small latents with large decoders. The score is the held-out loss in % of the variance.

    python -m examples.recipes.sparse_autoencoder [--seeds 3] [--quick]
"""

from __future__ import annotations

import io
import logging
import warnings as remarks
from contextlib import redirect_stdout
from dataclasses import dataclass
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from deadwatch import DeadWatch
from examples.recipes.frame import Recipe, Run, digits

PENALTY = 0.3


@dataclass(frozen=True)
class Arm:
    """One way to train."""

    rate: float = 0.03
    grows: bool = False
    policy: str | None = None


class SparseAutoencoder(pl.LightningModule):
    """256 latents of pictures (N, 64), less the mean picture."""

    def __init__(self, arm: Arm, steps: int) -> None:
        super().__init__()
        self.arm, self.steps = arm, steps
        self.encoder, self.act, self.decoder = nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 64)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        # The penalty reads the latents outside of this: in here, deadwatch would see one more
        # reader that it does not understand, and refuse to draw them afresh.
        latents = self.act(self.encoder(x))
        return self.decoder(latents), latents

    def loss(self, x: Tensor, penalty: float = PENALTY) -> Tensor:
        out, latents = self(x)
        sizes = latents * self.decoder.weight.norm(dim=0)
        loss: Tensor = (out - x).square().sum(1).mean() + penalty * sizes.sum(1).mean()
        return loss

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        share = min(1.0, 2 * self.global_step / self.steps) if self.arm.grows else 1.0
        return self.loss(batch[0], PENALTY * share)

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.Adam(self.parameters(), lr=self.arm.rate)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, self.steps)
        return [optimizer], [{"scheduler": schedule, "interval": "step"}]


def train(arm: Arm, seed: int, quick: bool) -> Run:
    for name in ("pytorch_lightning", "lightning.pytorch"):
        logging.getLogger(name).setLevel(logging.WARNING)
    torch.manual_seed(seed)
    x, held_out, _, _ = digits()
    x, held_out = x - x.mean(0), held_out - x.mean(0)
    order = torch.Generator().manual_seed(seed)
    batches = DataLoader(TensorDataset(x), batch_size=64, shuffle=True, generator=order)
    epochs = 20 if quick else 60
    model = SparseAutoencoder(arm, epochs * len(batches))
    watch = DeadWatch(policy=arm.policy, advice=True)
    trainer = pl.Trainer(
        max_epochs=epochs,
        callbacks=[watch],
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    # What deadwatch says at each epoch is left out here: there are many runs.
    with remarks.catch_warnings(), redirect_stdout(io.StringIO()):
        remarks.filterwarnings("ignore", module="pytorch_lightning")
        trainer.fit(model, batches)
    with torch.no_grad():
        loss = model.loss(held_out) / held_out.square().sum(1).mean()
    assert watch.report is not None
    return Run.of(100 * float(loss), watch.report)


RECIPE = Recipe(
    name="A sparse autoencoder",
    score="loss, % of variance, lower is better",
    train=train,
    arms={
        "Adam at 0.03": Arm(),
        'policy="revive"': Arm(policy="revive"),
        "the penalty grows over half of the run": Arm(grows=True),
        "Adam at 0.003": Arm(rate=0.003),
    },
)

if __name__ == "__main__":
    RECIPE.main()
