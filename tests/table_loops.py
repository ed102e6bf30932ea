"""Rows of odd training loops: checkpoints, accumulation, teachers, parts called in turn."""

from __future__ import annotations

import copy
import warnings
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint, checkpoint_sequential

from tests.nets import conv, images, mlp, vectors
from tests.oracle import backward, uncounted
from tests.setting import Setting, loss_of, once
from tests.table_flow import Block, TwoParents

Batch = tuple[Tensor, ...]


class Checkpointed(nn.Module):
    """Blocks that are computed again in the backward pass.

    Args:
        reentrant: The kind of checkpoint.
        nested: Whether a checkpoint runs within another.
        drop: Share of units dropped in each block.

    Its CELU has a slope that no other row has, so that a gate first seen within a checkpoint is
    first measured there.
    """

    def __init__(self, reentrant: bool, nested: bool = False, drop: float = 0.0) -> None:
        super().__init__()
        self.stem, self.drop = nn.Linear(12, 12), nn.Dropout(drop)
        self.one, self.two, self.act = Block(), Block(), nn.SiLU()
        self.reentrant, self.nested = reentrant, nested
        self.alpha = 1.5 + reentrant + nested / 2 + drop / 10

    def save(self, function: Any, x: Tensor) -> Any:
        with warnings.catch_warnings():  # a nested one runs without gradients at first
            warnings.filterwarnings("ignore", message="None of the inputs have requires_grad")
            return checkpoint(function, x, use_reentrant=self.reentrant)

    def inner(self, x: Tensor) -> Any:
        return self.act(self.drop(self.two(F.celu(x, self.alpha)) + F.relu(x)))

    def outer(self, x: Tensor) -> Any:
        x = self.drop(self.one(x))
        return self.act(self.save(self.inner, x) if self.nested else self.inner(x))

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.save(self.outer, self.stem(x)))


class InSegments(nn.Module):
    def __init__(self, reentrant: bool) -> None:
        super().__init__()
        self.stem, self.reentrant = nn.Linear(12, 12), reentrant
        self.layers = nn.Sequential(Block(), nn.ReLU(True), Block(), nn.ELU(), Block())

    def forward(self, x: Tensor) -> Any:
        out = checkpoint_sequential(self.layers, 2, self.stem(x), use_reentrant=self.reentrant)
        return F.relu(out)


class Forces(nn.Module):
    """A backward within the forward, that computes the body again."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(Block(), nn.Linear(12, 12), nn.Tanh())

    def forward(self, x: Tensor) -> Tensor:
        x = x.clone().requires_grad_()
        energy: Any = checkpoint(self.body, x, use_reentrant=False)
        with uncounted():
            (force,) = torch.autograd.grad(energy.sum(), x, create_graph=True)
        return torch.sigmoid(force)


class OwnTeacher(nn.Module):
    """Holds a teacher that runs without gradients, before the student and in its frame."""

    def __init__(self) -> None:
        super().__init__()
        self.teacher, self.student = Block(), Block()

    def forward(self, x: Tensor) -> Any:
        with torch.no_grad(), uncounted():
            target = self.teacher(x)
        return self.student(x) - target


class OwnTarget(nn.Module):
    """The same net runs without gradients first: those calls are not numbered."""

    def __init__(self) -> None:
        super().__init__()
        self.net = Block()

    def forward(self, x: Tensor) -> Any:
        with torch.no_grad(), uncounted():
            target = self.net(x + 1)
        return self.net(x) - target


class FrozenBackbone(nn.Module):
    """A part in evaluation mode within a net that trains: it counts."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone, self.head = conv(1, True), nn.Sequential(nn.Linear(4, 6), nn.ReLU())

    def forward(self, x: Tensor) -> Any:
        self.backbone.eval()
        return F.relu(self.head(self.backbone(x)))


class Parts(nn.Module):
    """Never called as a whole."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.decoder = Block(12, 5), nn.Sequential(nn.Linear(5, 9), nn.Tanh())


def parts(model: Any, batch: Batch, step: int) -> Tensor:
    """The loop calls the parts itself, and applies a function that is nobody's."""
    out: Tensor = model.decoder(F.relu(model.encoder(*batch)))
    backward(loss_of(out))
    return out


def two_parts(model: Any, batch: Batch, step: int) -> Tensor:
    out: Tensor = model.left(*batch) - model.right(*batch)
    backward(loss_of(out))
    return out


def bare_forward(model: Any, batch: Batch, step: int) -> Tensor:
    """The root is not called, so its children are outermost."""
    out: Tensor = model.forward(*batch)
    backward(loss_of(out))
    return out


def accumulate(model: Any, batch: Batch, step: int) -> Tensor:
    outs = [once(model, (part,), step) for part in batch[0].chunk(3)]
    return torch.cat(outs)


def joint_backward(model: Any, batch: Batch, step: int) -> Tensor:
    """Several forwards before a single backward."""
    outs: list[Tensor] = [model(part) for part in batch[0].chunk(2)]
    backward(loss_of(torch.cat(outs)))
    return torch.cat(outs)


def lbfgs(model: Any, batch: Batch, step: int) -> Tensor:
    """Each evaluation of the closure is a forward that counts."""
    optimizer = torch.optim.LBFGS(model.parameters(), lr=1e-3, max_iter=3)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = loss_of(model(*batch))
        backward(loss)
        return loss

    optimizer.step(closure)
    return evaluate(model, batch)


def evaluate(model: Any, batch: Batch) -> Tensor:
    with torch.no_grad(), uncounted():
        out: Tensor = model(*batch)
    return out


def evaluations(model: Any, batch: Batch, step: int) -> Tensor:
    """Forwards that must not count, around one that does."""
    teaching = evaluate(model, (batch[0] + 3,))
    model.eval()
    with uncounted():
        model(batch[0] - 3)  # with gradients on
    with torch.inference_mode(), uncounted():
        model(batch[0] * 2)
    model.train()
    out: Tensor = model(*batch)
    backward(loss_of(out - teaching))
    return evaluate(model, batch)


def twins(model: Any, batch: Batch, step: int) -> Tensor:
    """Copies of the model, in training mode and with gradients: somebody else's activations."""
    average = copy.deepcopy(model)
    teaching = average(*batch)
    out = once(model, batch, step)
    backward(loss_of(average(out.detach()[:, :1].expand_as(batch[0])) + teaching))
    return out


def frozen(model: Any, batch: Batch, step: int) -> Tensor:
    """Parameters that do not learn: their activations count all the same."""
    model.requires_grad_(False)
    model.last.requires_grad_()
    return once(model, batch, step)


def in_autocast(model: Any, batch: Batch, step: int) -> Tensor:
    with torch.autocast("cpu", torch.bfloat16):
        out: Tensor = model(*batch)
    backward(loss_of(out))
    return out


def alternating(model: Any, batch: Batch, step: int) -> Tensor:
    """Now with a batch axis, now without: the axis is counted from the end."""
    outs = [once(model, (x,), step).flatten() for x in (batch[0], batch[0][0])]
    return torch.cat(outs)


def growing(model: Any, batch: Batch, step: int) -> Tensor:
    """No two batches are of one size."""
    return once(model, (batch[0][: 5 + 4 * step],), step)


class Head(nn.Module):
    """A body that may be frozen, and a last layer."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.last = Block(), nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Any:
        return F.softsign(self.last(self.body(x)))


def image_layers() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 5, 3, padding=1), nn.ReLU(), nn.Conv2d(5, 4, 1), nn.GELU())


LAST = {"*": -1}
BODY = {"backbone.2": 1, "*": -1}

_CHECKPOINTS = [
    Setting(
        f"checkpoint-{'reentrant' if reentrant else 'free'}{name}",
        partial(build, reentrant),
        vectors,
        LAST,
    )
    for reentrant in (True, False)
    for name, build in (
        ("", Checkpointed),
        ("-nested", partial(Checkpointed, nested=True)),
        ("-dropout", partial(Checkpointed, nested=True, drop=0.3)),
        ("-segments", InSegments),
    )
]

ROWS = [
    *_CHECKPOINTS,
    Setting("checkpoint-backward-in-forward", Forces, vectors, LAST),
    Setting("teacher-inside", OwnTeacher, vectors, LAST, unseen=("teacher.act",)),
    Setting("target-inside", OwnTarget, vectors, LAST),
    Setting("frozen-backbone", FrozenBackbone, partial(images, 1), BODY),
    Setting("parts", Parts, vectors, LAST, parts),
    Setting("two-parts", TwoParents, vectors, LAST, two_parts),
    Setting("bare-forward", Head, vectors, LAST, bare_forward),
    Setting("accumulation", Head, vectors, LAST, accumulate),
    Setting("joint-backward", Head, vectors, LAST, joint_backward),
    Setting("lbfgs", Head, vectors, LAST, lbfgs),
    Setting("evaluations", Head, vectors, LAST, evaluations),
    Setting("twins", Block, vectors, LAST, twins),
    Setting("frozen-layers", Head, vectors, LAST, frozen),
    Setting("growing", Head, vectors, LAST, growing),
    Setting("unbatched-vector", mlp, lambda: torch.randn(12), LAST),
    Setting("sometimes-unbatched", image_layers, partial(images, 2), {"*": 1}, alternating),
    Setting("autocast-mlp", Head, vectors, LAST, in_autocast),
    Setting("autocast-images", image_layers, partial(images, 2), {"*": 1}, in_autocast),
    Setting("autocast-checkpoint", partial(InSegments, False), vectors, LAST, in_autocast),
]
