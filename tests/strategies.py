"""Fits of a Trainer in one process, or on two ranks under a strategy of Lightning's.

``python -m tests.strategies FOLDER ddp`` starts its second rank itself, as users' scripts do, and
runs all fits of the table, one after the other; with ``ddp_spawn`` one of them, in processes that
Lightning spawns. Every rank leaves its results in the folder. All is in double precision, so that
another order of summation does not show.
"""

from __future__ import annotations

import atexit
import hashlib
import logging
import os
import pickle
import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
import torch.distributed as dist
from pytorch_lightning.callbacks import EarlyStopping, ModelCheckpoint
from pytorch_lightning.loggers.logger import Logger
from pytorch_lightning.strategies import ModelParallelStrategy
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.nn import functional
from torch.utils.data import DataLoader

from deadwatch import DeadWatch, Policy, Recycle, Rules, Swap, WindowReport
from deadwatch.show.tensorboard import MODEL_TAG
from tests.fitting import hooks_on, lightning_remarks
from tests.trainers import Counted, Stream

RANKS = 2


class Shares(Stream):
    """Of each batch this rank's samples."""

    def __iter__(self) -> Iterator[Any]:
        rank, ranks = (dist.get_rank(), RANKS) if dist.is_initialized() else (0, 1)
        for x, y in super().__iter__():
            yield x[rank::ranks], y[rank::ranks]


class Hinge(Counted):
    """Its loss calls a function that a model might call too, and its step the network twice."""

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        self.seen += 2 * len(batch[0])
        outputs = self.net(batch[0]) + self.net(-batch[0])
        loss = functional.relu(1 - outputs).mean()
        self.losses.append(float(loss.detach()))
        return loss


class Sharding(Counted):
    """Its layers are sharded by `fully_shard`."""

    def configure_model(self) -> None:
        for layer in self.net:
            if isinstance(layer, nn.Linear) and self.device_mesh is not None:
                fully_shard(layer, mesh=self.device_mesh["data_parallel"])


class Kept(Logger):
    """Keeps what is logged."""

    name = "kept"
    version = 0

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[tuple[int | None, dict[str, float]]] = []

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        self.rows.append((step, dict(metrics)))

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        return None


class Reports(pl.Callback):
    """Gives each rank a random stream of its own, and keeps every report of a `DeadWatch`."""

    def __init__(self, watcher: DeadWatch) -> None:
        self.watcher = watcher
        self.seen: list[WindowReport] = []
        self.hooks = 0

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        torch.manual_seed(7 + trainer.global_rank)
        self.hooks = hooks_on(pl_module)  # of `fully_shard`

    def _look(self, *_: Any, **__: Any) -> None:
        report = self.watcher.report
        if report is not None and not any(report is seen for seen in self.seen):
            self.seen.append(report)

    on_train_batch_end = on_train_epoch_end = on_train_end = _look


class Leaving(pl.Callback):
    """Leaves what a rank has in a file: spawned processes hand nothing of it back."""

    def __init__(self, folder: Path, watcher: DeadWatch, reports: Reports, logger: Kept) -> None:
        self.folder, self.kept = folder, (watcher, reports, logger)

    def on_fit_end(self, trainer: Any, pl_module: Any) -> None:
        made = pickle.dumps(results(trainer, pl_module, *self.kept))
        (self.folder / f"spawned{dist.get_rank()}.pkl").write_bytes(made)
        atexit.register(os._exit, 0)  # as below


@dataclass(frozen=True)
class Run:
    """A fit.

    Attributes:
        policy: Of the callback.
        watched: Whether there is one.
        window: Of the callback.
        module: Makes the module.
        arguments: Of the Trainer.
        batches: Training batches of an epoch, None for no end.
        strategy: Makes the strategy on ranks.
        kept: Whether other callbacks act on the dead ratio, and keep a checkpoint of each epoch.
        resumed: Whether it goes on from the first of these.
        refuses_swaps: Whether the ladder on ranks has a swap first, which has to be refused.
    """

    policy: Policy | None = None
    watched: bool = True
    window: Any = "epoch"
    module: Callable[[], Any] = Counted
    arguments: dict[str, Any] = field(default_factory=dict)
    batches: int | None = 4
    strategy: Callable[[], Any] = lambda: "ddp"
    kept: bool = False
    resumed: bool = False
    refuses_swaps: bool = False

    def __call__(self, folder: Path, ranks: int = 1, spawned: bool = False) -> dict[str, Any]:
        policy = self.policy
        if self.refuses_swaps and ranks > 1:
            policy = Policy([Swap(), Recycle()], cooldown=99)
        watcher = DeadWatch(
            policy, rules=Rules(min_samples=1), stats_every_n_steps=1, window=self.window
        )
        reports, logger = Reports(watcher), Kept()
        callbacks: list[Any] = [watcher, reports] if self.watched else [reports]
        if spawned:
            callbacks.append(Leaving(folder, watcher, reports, logger))
        if self.kept:
            kept = ModelCheckpoint(folder / "kept", monitor=MODEL_TAG, save_top_k=-1)
            callbacks += [kept, EarlyStopping(MODEL_TAG, patience=1)]
        start = next((folder / "kept").glob("epoch=0-*")) if self.resumed else None
        defaults: dict[str, Any] = {"max_epochs": 4, "precision": "64-true"}
        trainer = pl.Trainer(
            callbacks=callbacks,
            accelerator="cpu",
            devices=ranks,
            strategy="ddp_spawn" if spawned else self.strategy() if ranks > 1 else "auto",
            logger=logger,
            default_root_dir=folder,
            enable_progress_bar=False,
            enable_model_summary=False,
            enable_checkpointing=self.kept,
            log_every_n_steps=1,
            **(defaults | self.arguments),
        )
        module = self.module()
        # Samplers of Lightning's own would shuffle, on several ranks only.
        with lightning_remarks():
            made = DataLoader(Shares(self.batches), batch_size=None)
            trainer.fit(module, made, ckpt_path=start)
        return results(trainer, module, watcher, reports, logger)


def results(
    trainer: Any, module: Any, watcher: DeadWatch, reports: Reports, logger: Kept
) -> dict[str, Any]:
    """All that is compared."""
    ledger = watcher.watch.ledger if watcher.watch is not None else ()
    treatments = [entry.treatment for entry in ledger]
    weights = {
        name: value.full_tensor() if hasattr(value, "full_tensor") else value.clone()
        for name, value in module.state_dict().items()
    }
    return {
        "weights": weights,
        "hash": hashlib.sha256(pickle.dumps([w.numpy() for w in weights.values()])).hexdigest(),
        "losses": module.losses,
        "seen": module.seen,
        "reports": reports.seen,
        "ledger": [(t.remedy, t.site, t.units.tolist(), t.step) for t in treatments],
        "metrics": {name: float(value) for name, value in trainer.callback_metrics.items()},
        "logged": logger.rows,
        "epochs": trainer.current_epoch,
        "left": hooks_on(module) - reports.hooks + torch._C._len_torch_function_stack(),
    }


def sharded(policy: Policy | None, **more: Any) -> Run:
    """A fit of a sharded model; there is no double precision for it."""
    return Run(
        policy,
        **more,
        module=Sharding,
        arguments={"precision": "32-true"},
        strategy=lambda: ModelParallelStrategy(data_parallel_size=RANKS, tensor_parallel_size=1),
    )


RECYCLE = Policy(Recycle(), cooldown=99)
ENDLESS: dict[str, Any] = {"max_steps": 8, "max_epochs": -1}

RUNS: dict[str, Run] = {
    "unwatched": Run(watched=False),
    "watched": Run(),
    "recycled": Run(RECYCLE, kept=True),
    "in single precision": Run(RECYCLE, kept=True, arguments={"precision": "32-true"}),
    "learned slopes": Run(Policy(Swap("prelu"), cooldown=99)),
    "without an end": Run(
        RECYCLE,
        window=3,
        arguments=ENDLESS,
        batches=None,
    ),
    "a loss with a function": Run(module=Hinge),
    "sharded": sharded(None),
    "sharded and recycled": sharded(RECYCLE, kept=True, refuses_swaps=True),
}

RESUMED = ("in single precision", "sharded and recycled")
"""Into a module in double precision Lightning loads weights that it has rounded before."""


def main(folder: Path) -> None:
    """Be one rank of all fits; does not return."""
    made = {name: run(folder / name, RANKS) for name, run in RUNS.items()}
    for name in RESUMED:
        again = replace(RUNS[name], resumed=True)
        made[f"{name}, resumed"] = again(folder / name, RANKS)
    (folder / f"rank{dist.get_rank()}.pkl").write_bytes(pickle.dumps(made))
    dist.barrier()
    sys.stdout.flush()
    os._exit(0)  # gloo's own threads now and then abort an orderly exit


def spawn(folder: Path) -> None:
    """Run one fit in spawned processes, and leave what comes back."""
    made = replace(RUNS["recycled"], refuses_swaps=True)(folder, RANKS, spawned=True)
    (folder / "main.pkl").write_bytes(pickle.dumps(made))


if __name__ == "__main__":
    warnings.simplefilter("error")
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    {"ddp": main, "ddp_spawn": spawn}[sys.argv[2]](Path(sys.argv[1]))
