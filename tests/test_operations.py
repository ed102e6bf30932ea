"""What each torch function does to units, one row a function, proved by zeroed columns."""

from __future__ import annotations

import random
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from deadwatch import Watch
from deadwatch.records import Site
from tests.proof import prove_producers, prove_readers


@dataclass(frozen=True)
class Step:
    """What happens between an activation with 4 units and the layer that reads it.

    ``read`` is the end of how the reader's wire is printed, or why the readers are unknown.
    """

    name: str
    run: Callable[[Tensor], Tensor]
    read: str
    reader: Callable[[], nn.Module] = lambda: nn.Linear(4, 3)
    make: Callable[[], nn.Module] = lambda: nn.Linear(6, 4)
    batch: tuple[int, ...] = (5, 3, 6)


class Between(nn.Module):
    def __init__(self, step: Step) -> None:
        super().__init__()
        self.make, self.act, self.reader = step.make(), nn.ReLU(), step.reader()
        self.run = step.run

    def forward(self, x: Tensor) -> Any:
        return self.reader(self.run(self.act(self.make(x))))


def image(
    name: str, run: Callable[[Tensor], Tensor], read: str, reader: Callable[[], nn.Module]
) -> Step:
    """A step on (5, 4, 6, 6)."""
    return Step(name, run, read, reader, lambda: nn.Conv2d(3, 4, 1), (5, 3, 6, 6))


def linear(inputs: int) -> Callable[[], nn.Module]:
    return lambda: nn.Linear(inputs, 3)


def conv(inputs: int) -> Callable[[], nn.Module]:
    return lambda: nn.Conv2d(inputs, 3, 1)


WIDE, WHOLE = (linear(8)), "[:, 0:4] + reader.bias>"

STEPS = [
    # On (5, 3, 4): batch, tokens, units.
    Step("squeeze", lambda h: h.unsqueeze(1).squeeze(), WHOLE),
    Step("getitem-none", lambda h: h[:, None, ..., :], WHOLE),
    Step("getitem-token", lambda h: h[:, 0], WHOLE),
    Step("getitem-units", lambda h: h[..., 1:3], "[:, 0:2] + reader.bias>", linear(2)),
    Step("getitem-step", lambda h: h[..., ::2], "takes some of its units", linear(2)),
    Step("getitem-unit", lambda h: h[..., :1], "picks a single unit", linear(1)),
    Step("getitem-tensors", lambda h: h[torch.arange(5), torch.tensor([0, 2, 1, 1, 0])], WHOLE),
    Step("getitem-mask", lambda h: h[torch.tensor([True, False, True, True, False])], WHOLE),
    Step("getitem-of-units", lambda h: h[..., [0, 1, 1, 0]], "read by __getitem__"),
    Step("select", lambda h: h.select(1, 2), WHOLE),
    Step("narrow", lambda h: h.narrow(-1, 1, 3), "[:, 0:3] + reader.bias>", linear(3)),
    Step("unbind", lambda h: h.unbind(1)[1], WHOLE),
    Step("split", lambda h: h.split([1, 3], -1)[1], "picks a single", linear(3)),
    Step("transposed-twice", lambda h: h.mT.swapaxes(0, 1).movedim(0, -1), WHOLE),
    Step("transposed-once", lambda h: h.mT, "not on the axis", linear(3)),
    Step("expand", lambda h: h[:, :1].expand(-1, 7, -1), WHOLE),
    Step("repeat", lambda h: h.repeat(1, 2, 1), WHOLE),
    Step("repeated-units", lambda h: h.repeat(1, 1, 2), "read by repeat", linear(8)),
    Step("merged-tokens", lambda h: h.reshape(15, 4), WHOLE),
    Step("flattened-tokens", lambda h: h.flatten(1), "read by flatten", linear(12)),
    Step("heads", lambda h: h.view(5, 3, 2, 2).flatten(2), "spreads its units"),
    Step("halved", lambda h: h / 2, "[:, 0:4] + reader.bias behind a div>"),
    Step("plus-one", lambda h: h + 1, "read by add"),
    Step("plus-nothing", lambda h: sum([h]), WHOLE),
    Step("squared", lambda h: h * h, "read by mul"),
    Step("masked", lambda h: h.masked_fill(h > 1, 0), "read by gt"),
    Step(
        "twice", lambda h: torch.cat([h, h], -1), "reader.weight[:, 4:8] + reader.bias>", linear(8)
    ),
    Step("beside", lambda h: torch.cat([h * h, h], -1), "read by mul", linear(8)),
    Step(
        "after",
        lambda h: torch.cat([torch.ones(5, 3, 4), h], -1),
        "[:, 4:8] + reader.bias>",
        linear(8),
    ),
    Step("more-tokens", lambda h: torch.cat([h, torch.ones(5, 2, 4)], 1), "reader.bias shared>"),
    Step("stacked", lambda h: torch.stack([h, torch.ones(5, 3, 4)]), "reader.bias shared>"),
    Step("stacked-last", lambda h: torch.stack([h, h], -1), "not on the axis", linear(2)),
    Step("doubled", lambda h: h + h, "reader.bias shared>"),
    Step("summed", lambda h: h.sum(1), "reader.bias behind a sum>"),
    Step("greatest", lambda h: h.amax(1), WHOLE),
    Step("alpha-dropout", lambda h: F.alpha_dropout(h, 0.5, False), "behind a alpha_dropout>"),
    Step("padded-units", lambda h: F.pad(h, (1, 3)), "[:, 1:5] + reader.bias>", linear(8)),
    Step("windows", lambda h: h.unfold(1, 2, 1).mT, WHOLE),
    # On (5, 4, 6, 6): batch, units, height, width.
    image("channels-last", lambda h: h.permute(0, 2, 3, 1), WHOLE, linear(4)),
    image("interpolate", lambda h: F.interpolate(h, scale_factor=2), WHOLE, conv(4)),
    image("padded", lambda h: F.pad(h, (1, 1)), WHOLE, conv(4)),
    image("shortcut", lambda h: F.pad(h, (0, 0, 0, 0, 2, 2)), "[:, 2:6] + reader.bias>", conv(8)),
    image(
        "patches", lambda h: F.unfold(h, 2), "[:, 0:16] + reader.bias>", lambda: nn.Conv1d(16, 3, 1)
    ),
    image("unshuffled", lambda h: F.pixel_unshuffle(h, 2), "[:, 0:16] + reader.bias>", conv(16)),
    image("shuffled", lambda h: F.pixel_shuffle(h, 2), "read by pixel_shuffle", conv(1)),
    image("channel-shuffle", lambda h: F.channel_shuffle(h, 2), "read by channel_shuffle", conv(4)),
    image("cut-flat", lambda h: h.flatten(1)[:, 36:], "[:, 0:108] + reader.bias>", linear(108)),
    image("cut-through", lambda h: h.flatten(1)[:, 9:], "cuts through", linear(135)),
    image("depthwise", lambda h: h, "in 4 groups>", lambda: nn.Conv2d(4, 8, 3, groups=4)),
    image("two-groups", lambda h: h, "in 2 groups>", lambda: nn.Conv2d(4, 6, 3, groups=2)),
    image(
        "transposed",
        lambda h: h,
        "reader.weight[0:4] + reader.bias>",
        lambda: nn.ConvTranspose2d(4, 6, 2, groups=2),
    ),
]


def traced(step: Step) -> tuple[nn.Module, Tensor, Site]:
    torch.manual_seed(0)
    model, x = Between(step), torch.randn(step.batch)
    with Watch(model) as watch:
        model(x)
        return model.eval(), x, watch.peek()["act"].site


@pytest.mark.parametrize("step", STEPS, ids=lambda step: step.name)
def test_readers(step: Step) -> None:
    model, x, site = traced(step)
    assert step.read in (site.consumers_note or str(site.consumers[-1]))
    if site.consumers:
        prove_readers(model, x, site)


@dataclass(frozen=True)
class Before:
    """What happens between a layer with 4 units and the activation.

    ``made`` is how the producers are printed, or why they are unknown; ``dim`` is the unit axis.
    """

    name: str
    run: Callable[[Tensor], Any]
    made: str
    dim: int = -1
    make: Callable[[], nn.Module] = lambda: nn.Linear(6, 4)
    batch: tuple[int, ...] = (5, 3, 6)


class Fed(nn.Module):
    def __init__(self, before: Before) -> None:
        super().__init__()
        self.make, self.act, self.run = before.make(), nn.ReLU(), before.run

    def forward(self, x: Tensor) -> Any:
        return self.act(self.run(self.make(x)))


def pixels(name: str, run: Callable[[Tensor], Any], made: str, dim: int = 1) -> Before:
    """A row on (5, 4, 6, 6)."""
    return Before(name, run, made, dim, lambda: nn.Conv2d(3, 4, 1), (5, 3, 6, 6))


MADE = "<{} make.weight[{}] + make.bias>"
ROWS, KERNELS = MADE.format("linear", "0:4"), MADE.format("conv", "0:4")

BEFORE = [
    # On (5, 3, 4): batch, tokens, units.
    Before("unbatched", lambda z: z[0], ROWS),
    Before("time-first", lambda z: z.transpose(0, 1), ROWS),
    Before("channels-first", lambda z: z.transpose(1, 2), ROWS, 1),
    Before("as-image", lambda z: z.permute(0, 2, 1).unsqueeze(-1), ROWS, 1),
    Before("second-half", lambda z: z.chunk(2, -1)[1], MADE.format("linear", "2:4")),
    Before("some-rows", lambda z: z[..., 1:4], MADE.format("linear", "1:4")),
    Before("some-tokens", lambda z: z[:, 1:], ROWS),
    Before("all-tokens-in-turn", lambda z: z.split(1, 1)[0], "read by split and split and split"),
    Before("every-second", lambda z: z[..., ::2], "takes some of its units"),
    Before("alpha", lambda z: F.alpha_dropout(z, 0.5), "alpha_dropout stands between"),
    Before("scaled", lambda z: 0.5 * z, "mul stands between"),
    Before("added-to-itself", lambda z: z + z, "add stands between"),
    Before("twice-the-other", lambda z: torch.add(z, z, alpha=2), "add stands between"),
    Before("in-place", lambda z: z.mul_(2), "mul_ stands between"),
    Before("into-a-view", lambda z: z.view(15, 4).mul_(2), "mul_ stands between"),
    Before("sorted", lambda z: z.sort(1)[0], "sort stands between"),
    Before("normalised", lambda z: F.normalize(z, dim=-1), "normalize stands between"),
    Before("bytes", lambda z: z[0].view(torch.uint8).view(torch.float32), "no known operation"),
    Before("rms-norm", lambda z: F.rms_norm(z, (4,)), "rms_norm stands between"),
    Before("heads", lambda z: z.view(5, 3, 2, 2), "a reshape spreads its units"),
    Before(
        "merged-heads", lambda z: z.view(5, 3, 2, 2).transpose(1, 2).mT.flatten(1, 2), "spreads", 1
    ),
    # On (5, 4, 6, 6): batch, units, height, width.
    pixels("max-pool", lambda z: F.max_pool2d(z, 2), KERNELS),
    pixels("channels-last", lambda z: z.permute(0, 2, 3, 1), KERNELS, -1),
    pixels("windows", lambda z: z.movedim(1, -1).view(5, 2, 3, 2, 3, 4), KERNELS, -1),
    pixels("pixels-as-tokens", lambda z: z.flatten(2).mT, KERNELS, -1),
    pixels("flattened", lambda z: z.flatten(1), "lie side by side", -1),
    pixels("padded-units", lambda z: F.pad(z, (0, 0, 0, 0, 1, 1)), "pad stands between"),
    pixels("concatenated", lambda z: torch.cat([z, z], 1), "cat stands between"),
    pixels("shuffled", lambda z: F.channel_shuffle(z, 2), "channel_shuffle stands between"),
    pixels("layer-scale", lambda z: z * torch.ones(4, 1, 1), "mul stands between"),
    pixels("greatest", lambda z: z.amax((2, 3)), KERNELS, -1),
]


@pytest.mark.parametrize("before", BEFORE, ids=lambda before: before.name)
def test_producers(before: Before) -> None:
    torch.manual_seed(0)
    model, x = Fed(before), torch.randn(before.batch)
    with Watch(model) as watch:
        model(x)
        site = watch.peek()["act"].site
    assert before.made in (site.producers_note or str(site.producers))
    assert site.unit_dim == before.dim
    if site.producers:
        prove_producers(model.eval(), x, site, {"act": site})


# ── any order ───────────────────────────────────────────────────────────────────────────────

Move = Callable[[Tensor, random.Random], Tensor]

MOVES: list[Move] = [
    lambda h, r: h.transpose(r.randrange(h.ndim), r.randrange(h.ndim)),
    lambda h, r: h.flatten(i := r.randrange(h.ndim), min(i + 1, h.ndim - 1)),
    lambda h, r: h.unflatten(-1, (2, -1)) if h.shape[-1] % 2 == 0 else h.mT,
    lambda h, r: h.chunk(2, r.randrange(h.ndim))[0],
    lambda h, r: h[(slice(None),) * r.randrange(h.ndim) + (slice(1, None),)],
    lambda h, r: torch.cat([h, h], r.randrange(h.ndim)),
    lambda h, r: torch.cat([torch.ones_like(h), h], r.randrange(h.ndim)),
    lambda h, r: h.unsqueeze(r.randrange(h.ndim + 1)),
    lambda h, r: F.pad(h, (0, r.randrange(2), r.randrange(2), 1)) if h.ndim > 1 else h,
    lambda h, r: h.amax(r.randrange(h.ndim)) if h.ndim > 2 else h,
    lambda h, r: h + h if r.random() < 0.5 else h * 0.5,
]


def stirred(h: Tensor, seed: int) -> Tensor:
    """A few moves by chance."""
    r = random.Random(seed)
    for _ in range(r.randrange(1, 5)):
        moved = r.choice(MOVES)(h, r)
        h = moved if moved.numel() else h
    return h


def test_moves_in_any_order_are_followed_or_unknown() -> None:
    known = 0
    for seed in range(200):
        width = stirred(torch.ones(4, 4, 6), seed).shape[-1]
        step = Step("", lambda h, s=seed: stirred(h, s), "", linear(width), lambda: nn.Linear(6, 6))  # type: ignore[misc]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model, x, site = traced(replace(step, batch=(4, 4, 6)))
        if site.consumers:
            known += 1
            prove_readers(model, x, site)
    assert known > 60, known
