"""The peers and how each is put on a model: as its own documentation does, in a plain loop.

Peers are imported inside the functions, because each is installed in its own environment alone.
The stand-ins for a learner or a trainer's state hold what the callback asks for and do nothing:
a callback's own work is timed, the training loop of its framework is not charged to it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from types import SimpleNamespace

import torch
from torch import Tensor, nn


def nothing(*_: object) -> None:
    """What a peer that needs no call does in the loop."""


@dataclass(frozen=True)
class Calls:
    """What the peer's user calls on every step, around what the bare loop does.

    Attributes:
        before: called before the forward.
        after: called with the loss, between the optimizer's step and ``zero_grad``.
    """

    before: Callable[[], None] = nothing
    after: Callable[[Tensor], None] = nothing


Attach = Callable[[nn.Module, torch.optim.Optimizer, int], AbstractContextManager[Calls]]


@dataclass(frozen=True)
class Peer:
    """A tool that is timed beside deadwatch.

    Attributes:
        name: what the command and the tables call it.
        distribution: whose version is reported.
        requirements: what pip installs.
        computes: what it computes, in a line.
        attach: puts it on a model; its last argument is the number of steps between two logs.
        interval: the number of steps between two logs that it has by default.
    """

    name: str
    distribution: str
    requirements: tuple[str, ...]
    computes: str
    attach: Attach
    interval: int = 1


@contextmanager
def fastai(model: nn.Module, _: torch.optim.Optimizer, interval: int) -> Iterator[Calls]:
    """`ActivationStats()` as a Learner would call it; it records every step."""
    from fastai.callback.hook import ActivationStats

    callback = ActivationStats()
    callback.learn = SimpleNamespace(model=model, training=True, train_iter=0)
    callback.before_fit()
    yield Calls(callback.before_batch, lambda loss: callback.after_batch())
    callback.after_fit()


@contextmanager
def wandb(model: nn.Module, _: torch.optim.Optimizer, interval: int) -> Iterator[Calls]:
    """`run.watch(model)` in an offline run, with its default ``log="gradients"``."""
    import wandb

    settings = wandb.Settings(silent=True, console="off")
    with wandb.init(mode="offline", settings=settings) as run:
        run.watch(model, log_freq=interval)
        # Histograms wait for the user's next `log`. Where none is due, that call is the user's own.
        yield Calls(after=(lambda loss: run.log({})) if interval == 1 else nothing)
        run.unwatch(model)


@contextmanager
def composer(model: nn.Module, _: torch.optim.Optimizer, interval: int) -> Iterator[Calls]:
    """`ActivationMonitor()` as a Trainer's engine would call it, with a logger that keeps nothing.

    Its hooks come off after the optimizer's step, not after the forward: none fires in between.
    """
    from composer.callbacks import ActivationMonitor
    from composer.loggers import Logger

    batch = SimpleNamespace(value=0)
    timestamp = SimpleNamespace(batch=batch, get=lambda unit: batch)
    state = SimpleNamespace(model=model, timestamp=timestamp)
    callback, logger = ActivationMonitor(f"{interval}ba"), Logger(state, [])

    def after(_: Tensor) -> None:
        callback.after_forward(state, logger)
        batch.value += 1

    yield Calls(lambda: callback.before_forward(state, logger), after)


@contextmanager
def torchmortem(model: nn.Module, optimizer: torch.optim.Optimizer, _: int) -> Iterator[Calls]:
    """`Autopsy(model, optimizer)`, "balanced" by default; its analysis at the end is not timed."""
    from torchmortem import Autopsy

    with Autopsy(model, optimizer=optimizer) as autopsy:
        yield Calls(after=lambda loss: autopsy.step(loss=loss.item()))


@contextmanager
def torch_audit(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int) -> Iterator[Calls]:
    """`autopatch(model, optimizer)`, which patches both, without a reporter."""
    from torch_audit import autopatch

    auditor = autopatch(model, optimizer=optimizer, every_n_steps=steps)
    yield Calls()
    auditor.unpatch()


MOMENTS = "mean, std and share at most 0.05 of the output of every module with parameters"
GRADIENTS = "a histogram of the gradient of every parameter; it sees no activations"
MONITOR = "norm, mean, kurtosis and max of every module's inputs and outputs, sample by sample"
AUTOPSY = "means, shares of zeros and ranks of activations, norms of gradients and weights"
AUDIT = "the share of zeros of every activation module; checks of data, gradients and wiring"

PEERS = [
    Peer("fastai", "fastai", ("fastai==2.8.12",), MOMENTS, fastai),
    Peer("wandb", "wandb", ("wandb==0.31.0",), GRADIENTS, wandb, interval=1000),
    Peer("composer", "mosaicml", ("mosaicml==0.32.1",), MONITOR, composer, interval=25),
    Peer("torchmortem", "torchmortem", ("torchmortem==0.1.1",), AUTOPSY, torchmortem),
    Peer("torch-audit", "torch-audit", ("torch-audit==0.3.0",), AUDIT, torch_audit, interval=1000),
]


def named(name: str) -> Peer:
    """The peer of that name.

    Raises:
        ValueError: If there is none.
    """
    for peer in PEERS:
        if peer.name == name:
            return peer
    raise ValueError(f"no peer is called {name!r}; there are: {', '.join(p.name for p in PEERS)}")
