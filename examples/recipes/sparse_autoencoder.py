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

import logging
import warnings as remarks
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from deadwatch import DeadWatch, advise
from examples.recipes.frame import Recipe, Run, digits, warnings

PENALTY = 0.3


class SparseAutoencoder(pl.LightningModule):
    """256 latents of pictures (N, 64), less the mean picture."""

    def __init__(self, rate: float, steps: int, slow: bool) -> None:
        super().__init__()
        self.rate, self.steps, self.slow = rate, steps, slow
        self.encoder, self.act, self.decoder = nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 64)

    def loss(self, x: Tensor, penalty: float) -> Tensor:
        latents = self.act(self.encoder(x))
        wrong = (self.decoder(latents) - x).square().sum(1).mean()
        sizes: Tensor = (latents * self.decoder.weight.norm(dim=0)).sum(1).mean()
        return wrong + penalty * sizes

    def forward(self, x: Tensor) -> Tensor:
        share = min(1.0, 2 * self.global_step / self.steps) if self.slow else 1.0
        return self.loss(x, PENALTY * share)

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        loss: Tensor = self(batch[0])
        return loss

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.Adam(self.parameters(), lr=self.rate)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, self.steps)
        return [optimizer], [{"scheduler": schedule, "interval": "step"}]


class Advice(pl.Callback):
    """Asks for advice after each epoch."""

    def __init__(self, watch: DeadWatch) -> None:
        self.watch, self.found = watch, set[str]()

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        optimizers, report = trainer.optimizers, self.watch.report
        self.found |= warnings(advise(pl_module, report=report, optimizer=optimizers))


def train(arm: str, seed: int, quick: bool) -> Run:
    logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)
    torch.manual_seed(seed)
    x, held_out, _, _ = digits()
    x, held_out = x - x.mean(0), held_out - x.mean(0)
    order = torch.Generator().manual_seed(seed)
    batches = DataLoader(TensorDataset(x), batch_size=64, shuffle=True, generator=order)
    epochs = 20 if quick else 60
    rate = 0.003 if "rate" in arm or "0.003" in arm else 0.03
    model = SparseAutoencoder(rate, epochs * len(batches), slow="grows" in arm)
    watch = DeadWatch(policy="revive" if "revive" in arm else None)
    advice = Advice(watch)
    trainer = pl.Trainer(
        max_epochs=epochs,
        callbacks=[watch, advice],
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    with remarks.catch_warnings():
        remarks.filterwarnings("ignore", module="pytorch_lightning")
        trainer.fit(model, batches)
    with torch.no_grad():
        loss = model.loss(held_out, PENALTY) / held_out.square().sum(1).mean()
    assert watch.report is not None
    return Run(100 * float(loss), watch.report.dead_ratio, tuple(sorted(advice.found)))


RECIPE = Recipe(
    name="A sparse autoencoder",
    score="loss, % of variance, lower is better",
    train=train,
    arms=(
        "Adam at 0.03",
        'policy="revive"',
        "the penalty grows over half of the run",
        "Adam at 0.003",
    ),
)

if __name__ == "__main__":
    RECIPE.main()
