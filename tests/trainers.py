"""Features of Lightning's Trainer, each as a fit: the module, its data, the Trainer's arguments."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from pytorch_lightning import callbacks
from pytorch_lightning.callbacks import (
    BackboneFinetuning,
    BatchSizeFinder,
    GradientAccumulationScheduler,
    LearningRateFinder,
    StochasticWeightAveraging,
)
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset

from tests.fitting import BATCH, Module, loader

EPOCHS = 3


class Counted(Module):
    """Counts by itself, where it calls the network, the samples that its first site sees."""

    lr = 1e-3

    def __init__(self, optimizer: Any = None) -> None:
        super().__init__(optimizer=optimizer)
        self.seen = 0

    def on_train_start(self) -> None:
        self.seen = 0  # what finders run comes before

    def loss(self, batch: list[Tensor]) -> Tensor:
        self.seen += len(batch[0])
        loss = nn.functional.cross_entropy(self.net(batch[0]), batch[1])
        self.losses.append(float(loss.detach()))
        return loss

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return self.loss(batch)


class ByHand(Counted):
    """Two optimizers, stepped by hand; the first runs the network twice a batch."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        for index, optimizer in enumerate(self.optimizers()):
            for _ in range(2 - index):
                loss = self.loss(batch)
            optimizer.zero_grad()
            self.manual_backward(loss)
            optimizer.step()

    def configure_optimizers(self) -> Any:
        first, last = list(self.net[:2].parameters()), list(self.net[2:].parameters())
        return [torch.optim.Adam(first, lr=1e-3), torch.optim.SGD(last, lr=1e-3, momentum=0.9)]


class Skipping(Counted):
    """Some of its steps have no loss."""

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        loss = self.loss(batch)
        return None if batch_idx == 1 else {"loss": loss, "more": batch_idx}


class Cancelling(Counted):
    """Cuts each epoch short."""

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> int | None:
        return -1 if batch_idx == 2 else None

    def on_train_epoch_end(self) -> None:
        self.net(torch.zeros(5, 12))  # in training mode, and no training batch


class Fetching(Counted):
    """Takes its batches by itself."""

    def training_step(self, dataloader_iter: Iterator[Any]) -> Tensor:  # type: ignore[override]
        return self.loss(next(dataloader_iter)[0])


class Paired(Counted):
    """Two batches of two loaders at once."""

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return self.loss(batch["one"]) + self.loss(batch["two"])


class Normed(Counted):
    """With a batch norm, so that weight averaging makes its extra pass."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(
            *(nn.Linear(12, 16), nn.ReLU()), nn.Linear(16, 16), nn.BatchNorm1d(16), nn.Linear(16, 3)
        )
        with torch.no_grad():
            self.net[0].bias[:6] = -40

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        if self.trainer.fit_loop._skip_backward:  # the extra pass
            return nn.functional.cross_entropy(self.net(batch[0]), batch[1])
        return self.loss(batch)


class Sized(Counted):
    """Makes its own loader, with a batch size that a finder may change."""

    batch_size = 4

    def train_dataloader(self) -> Any:
        return DataLoader(loader().dataset, batch_size=self.batch_size)

    def val_dataloader(self) -> Any:
        return loader()


class Tuned(Counted):
    """What a finetuning callback asks for."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = self.net[0]

    def configure_optimizers(self) -> Any:
        trained = (parameter for parameter in self.parameters() if parameter.requires_grad)
        return torch.optim.Adam(trained, lr=1e-3)


class Stream(IterableDataset[Any]):
    """Batches without a known end, ``count`` of them, or without any end."""

    def __init__(self, count: int | None) -> None:
        self.count = count

    def __iter__(self) -> Iterator[Any]:
        generator = torch.Generator().manual_seed(3)
        made = 0
        while self.count is None or made < self.count:
            x = torch.randn(BATCH, 12, generator=generator)
            yield x, x[:, :3].argmax(1)
            made += 1


def stream(count: int | None) -> Callable[[], Any]:
    return lambda: DataLoader(Stream(count), batch_size=None)


def closure(parameters: Any) -> Any:
    return torch.optim.LBFGS(list(parameters), lr=0.1, max_iter=3)


@dataclass(frozen=True)
class Feature:
    """A fit.

    Attributes:
        arguments: Of the Trainer.
        batches: Training batches of the whole fit.
        module: Makes the module.
        callbacks: Makes the other callbacks.
        data: Makes the training data.
        window: Of the DeadWatch.
        treats: Whether a policy that recycles finds something to do, and time for it.
    """

    arguments: dict[str, Any] = field(default_factory=dict)
    batches: int = 4 * EPOCHS
    module: Callable[[], Any] = Counted
    callbacks: Callable[[], list[Any]] = list
    data: Callable[[], Any] | None = None
    window: Any = "epoch"
    treats: bool = True


BARE: dict[str, Any] = {"barebones": True, "logger": None, "log_every_n_steps": None}
BARE |= dict.fromkeys(("enable_progress_bar", "enable_model_summary", "enable_checkpointing"))

FEATURES: dict[str, Feature] = {
    "plain": Feature(),
    "accumulation": Feature({"accumulate_grad_batches": 3}),
    "accumulation that changes": Feature(
        callbacks=lambda: [GradientAccumulationScheduler({0: 1, 1: 2})]
    ),
    "clipping": Feature({"gradient_clip_val": 0.1}),
    "two optimizers by hand": Feature(module=ByHand),
    "LBFGS": Feature(module=lambda: Counted(closure)),
    "16-mixed": Feature({"precision": "16-mixed"}),
    "bf16-mixed": Feature({"precision": "bf16-mixed"}),
    "bf16-true": Feature({"precision": "bf16-true"}),
    "64-true": Feature({"precision": "64-true"}),
    "validation within the epoch": Feature({"val_check_interval": 0.5}),
    "validation every third batch": Feature(
        {"val_check_interval": 3, "check_val_every_n_epoch": None}
    ),
    "validation every second epoch": Feature({"check_val_every_n_epoch": 2}),
    "overfitting two batches": Feature({"overfit_batches": 2}, batches=2 * EPOCHS),
    "limited batches": Feature({"limit_train_batches": 0.75}, batches=3 * EPOCHS),
    "fast dev run": Feature({"fast_dev_run": 2}, batches=2, treats=False),
    "steps that end within an epoch": Feature({"max_steps": 6, "max_epochs": -1}, batches=6),
    "steps of accumulated batches": Feature(
        {"max_steps": 3, "max_epochs": -1, "accumulate_grad_batches": 3}, batches=7
    ),
    "no time": Feature({"max_time": {"seconds": 0}}, batches=0, treats=False),
    "no steps": Feature({"max_steps": 0}, batches=0, treats=False),
    "loaders made anew": Feature({"reload_dataloaders_every_n_epochs": 1}),
    "anomaly detection": Feature({"detect_anomaly": True}),
    "a profiler": Feature({"profiler": "simple"}),
    "barebones": Feature(BARE),
    "a dataset without a length": Feature(data=stream(4)),
    "a dataset without an end": Feature(
        {"max_steps": 8, "max_epochs": -1, "limit_val_batches": 0},
        batches=8,
        data=stream(None),
        window=3,
    ),
    "validation within an endless epoch": Feature(
        {"max_steps": 8, "max_epochs": -1, "val_check_interval": 2},
        batches=8,
        data=stream(None),
        window=3,
    ),
    "a window longer than an epoch": Feature(window=5),
    "steps without a loss": Feature(module=Skipping),
    "epochs cut short": Feature(module=Cancelling, batches=2 * EPOCHS),
    "batches taken by the step": Feature(module=Fetching),
    "batches taken by the step, in windows": Feature(module=Fetching, window=3),
    "two loaders": Feature(
        module=Paired,
        data=lambda: {"one": loader(), "two": loader()},
    ),
    "stochastic weight averaging": Feature(
        callbacks=lambda: [StochasticWeightAveraging(1e-2, swa_epoch_start=3)]
    ),
    "stochastic weight averaging with batch norm": Feature(
        module=Normed, callbacks=lambda: [StochasticWeightAveraging(1e-2, swa_epoch_start=3)]
    ),
    "learning-rate finder": Feature(
        callbacks=lambda: [LearningRateFinder(num_training_steps=5, early_stop_threshold=None)]
    ),
    "batch-size finder": Feature(
        module=Sized,
        callbacks=lambda: [BatchSizeFinder(max_trials=2, init_val=8)],
        data=lambda: None,
    ),
    "finetuning": Feature(
        module=Tuned,
        callbacks=lambda: [BackboneFinetuning(unfreeze_backbone_at_epoch=1, verbose=False)],
    ),
}

if hasattr(callbacks, "EMAWeightAveraging"):  # not in the oldest versions
    FEATURES |= {
        "weight averaging": Feature(callbacks=lambda: [callbacks.WeightAveraging()]),
        "exponential averaging": Feature(
            callbacks=lambda: [callbacks.EMAWeightAveraging(decay=0.9)]
        ),
    }
