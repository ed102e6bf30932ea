"""A small LightningModule and a Trainer that leaves the screen alone."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.loggers import TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

SAMPLES, BATCH = 64, 16


def adam(parameters: Any) -> torch.optim.Optimizer:
    """The optimizer of a module that is given none."""
    return torch.optim.Adam(parameters, lr=1e-3)


class Module(pl.LightningModule):
    """An MLP whose first hidden layer is dead for 6 of 16 units."""

    def __init__(self, dead: int = 6, optimizer: Any = None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(
            *(nn.Linear(12, 16), nn.ReLU()), *(nn.Linear(16, 16), nn.ReLU()), nn.Linear(16, 3)
        )
        with torch.no_grad():
            self.net[0].bias[:dead] = -40
        self.make = optimizer or adam
        self.losses: list[float] = []

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        loss = nn.functional.cross_entropy(self.net(batch[0]), batch[1])
        self.losses.append(float(loss.detach()))
        return loss

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        self.log("val", nn.functional.cross_entropy(self.net(batch[0]), batch[1]))

    def configure_optimizers(self) -> Any:
        return self.make(self.parameters())


def loader() -> DataLoader[Any]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(SAMPLES, 12, generator=generator)
    return DataLoader(TensorDataset(x, x[:, :3].argmax(1)), batch_size=BATCH)


def fit(
    callbacks: list[Any],
    tmp_path: Path,
    module: pl.LightningModule | None = None,
    package: Any = pl,
    ckpt_path: Path | None = None,
    data: Callable[[], Any] | None = None,
    **arguments: Any,
) -> tuple[Any, Any]:
    """Fit with the given callbacks; returns the trainer and the module.

    Trains on ``data``, by default the loader below, which validation uses in any case.
    """
    defaults: dict[str, Any] = {
        "max_epochs": 3,
        "accelerator": "cpu",
        "logger": TensorBoardLogger(tmp_path, name="", version="run"),
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "enable_checkpointing": any("Checkpoint" in type(c).__name__ for c in callbacks),
        "log_every_n_steps": 1,
    }
    trainer = package.Trainer(callbacks=callbacks, **(defaults | arguments))
    module = Module() if module is None else module
    with lightning_remarks():
        trainer.fit(module, (data or loader)(), loader(), ckpt_path=ckpt_path)
    return trainer, module


@contextmanager
def lightning_remarks() -> Iterator[None]:
    """Lightning's own remarks, on worker counts and such, are not under test."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="(pytorch_lightning|lightning)")
        yield


def events(tmp_path: Path) -> EventAccumulator:
    accumulator = EventAccumulator(str(tmp_path / "run"))
    accumulator.Reload()
    return accumulator


def curve(accumulator: EventAccumulator, tag: str) -> list[tuple[int, float]]:
    return [(event.step, event.value) for event in accumulator.Scalars(tag)]


def hooks_on(module: nn.Module) -> int:
    return sum(len(part._forward_hooks) + len(part._forward_pre_hooks) for part in module.modules())
