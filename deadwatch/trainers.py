"""What the Lightning callback has to know of a Trainer, its strategy and its other callbacks."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch.optim.swa_utils import AveragedModel

from deadwatch.errors import ConfigError
from deadwatch.restoring import follow

_UNTREATABLE = {
    "FSDPStrategy": "keeps parameters as flat shards, in which units have no rows",
    "DeepSpeedStrategy": "trains copies of the parameters, which overwrite what is treated",
}
"""By the names of their classes: both packages have one, and they may not be installed."""


def check_strategy(strategy: Any, policy: object) -> None:
    """Check that units can be treated under a Trainer's strategy.

    Raises:
        ConfigError: They cannot; the message says what to do.
    """
    for kind in _kinds(strategy):
        if kind in _UNTREATABLE:
            raise ConfigError(
                f"policy {policy!r} treats units, and {kind} {_UNTREATABLE[kind]}: train with "
                "strategy='ddp' or with ModelParallelStrategy and torch's fully_shard, or pass "
                "policy='watch' to only watch"
            )


def _kinds(thing: object) -> list[str]:
    return [kind.__name__ for kind in type(thing).__mro__]


def total_batches(trainer: Any) -> int | None:
    """Training batches of the whole fit, None if it has no end.

    Lightning's own estimate is of optimizer steps, and an epoch's last step may be of few batches.
    """
    batches, each = trainer.num_training_batches, trainer.accumulate_grad_batches
    limits = [] if trainer.max_epochs in (None, -1) else [trainer.max_epochs * batches]
    if trainer.max_steps != -1:
        if not trainer.lightning_module.automatic_optimization:
            each = 1 / len(trainer.optimizers)  # if all of them step once a batch
        per_epoch = math.ceil(batches / each) if batches < math.inf else math.inf
        epochs, rest = divmod(trainer.max_steps, per_epoch)
        limits.append((epochs * batches if epochs else 0) + rest * each)
    total = min(limits, default=math.inf)
    return int(total) if 0 < total < math.inf else None


def averaged_copies(trainer: Any) -> list[Any]:
    """The copies of the module whose weights other callbacks average."""
    copies = [getattr(callback, "_average_model", None) for callback in trainer.callbacks]
    found = [copy.module if isinstance(copy, AveragedModel) else copy for copy in copies]
    return [copy for copy in found if copy is not None]


def follow_swaps(trainer: Any, pl_module: Any) -> None:
    """Bring the copies to the module's architecture."""
    for copy in averaged_copies(trainer):
        follow(copy, pl_module)


def why_no_swaps(trainer: Any, pl_module: Any) -> str | None:
    """Why no module may be replaced during a fit, None if they may."""
    for copy in averaged_copies(trainer):
        if type(copy) is not type(pl_module):
            return f"the averaged copy is a {type(copy).__name__}, which cannot be followed"
    if "_MultiProcessingLauncher" in _kinds(trainer.strategy.launcher):
        return (
            "processes that Lightning spawns or forks hand their weights back to a model that "
            "knows of no swap; train with strategy='ddp'"
        )
    if "ModelParallelStrategy" in _kinds(trainer.strategy):
        return (
            "ModelParallelStrategy saves and loads no entry of a checkpoint that the model was not "
            "built with; choose another remedy, or train with strategy='ddp'"
        )
    return None


def averages(trainer: Any) -> bool:
    """Whether stochastic weight averaging has begun: what changes now would be averaged in."""
    starts = [getattr(callback, "swa_start", None) for callback in trainer.callbacks]
    return any(start is not None and trainer.current_epoch >= start for start in starts)


def loss_of(outputs: Any) -> Any:
    """The loss of a training step, None where its output says nothing of it."""
    loss = outputs.get("loss") if isinstance(outputs, Mapping) else outputs
    return loss if torch.is_tensor(loss) and loss.numel() == 1 else None
