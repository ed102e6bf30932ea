"""Rows of odd control flow, odd places to keep an activation, and a model's own activations."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.nets import images, mlp, vectors
from tests.setting import Setting


class Block(nn.Module):
    """A dense layer with one activation as module and one as function."""

    def __init__(self, wide: int = 12, out: int = 12) -> None:
        super().__init__()
        self.up, self.act, self.down = nn.Linear(wide, 16), nn.ReLU(), nn.Linear(16, out)

    def forward(self, x: Tensor) -> Tensor:
        return F.gelu(self.down(self.act(self.up(x))))


class Experts(nn.Module):
    """A mixture of experts: who runs, and on how many rows, depends on the data."""

    def __init__(self) -> None:
        super().__init__()
        self.router = nn.Linear(12, 3, bias=False)
        self.experts = nn.ModuleList(Block() for _ in range(3))

    def forward(self, x: Tensor) -> Any:
        weight, chosen = self.router(x).softmax(-1).max(-1)
        out = torch.zeros_like(x)
        for n, expert in enumerate(self.experts):
            rows = (chosen == n).nonzero().flatten()
            if len(rows):
                out = out.index_add(0, rows, expert(x[rows]))
        return out * weight[:, None]


class Recursive(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear, self.act = nn.Linear(12, 12), nn.ReLU()

    def forward(self, x: Tensor, depth: int = 2) -> Tensor:
        h: Tensor = self.act(self.linear(x)) + F.silu(x)
        return self(h, depth - 1) if depth else h


class EarlyExit(nn.Module):
    """Leaves after a block if the data say so: on the first batch, and not on the others."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks, self.runs = nn.ModuleList(Block() for _ in range(3)), 0

    def forward(self, x: Tensor) -> Tensor:
        for n, block in enumerate(self.blocks):
            x = block(x)
            if n == 0 and bool(x.detach().double().mean() > 0.34):
                return x
        return torch.tanh(x)


class Kept(nn.Module):
    """Functions kept as attributes, modules in containers, and one that is not registered."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(12, 16), nn.Linear(16, 16)
        self.act, self.hidden = F.relu, [nn.SiLU()]
        self.acts = nn.ModuleDict({"gelu": nn.GELU(), "tanh": nn.Tanh()})
        self.more = nn.ModuleList([nn.ELU(), nn.Softplus()])

    def forward(self, x: Tensor) -> Any:
        x = self.act(self.first(x))
        x = self.acts["gelu"](self.second(x)) + self.hidden[0](self.second(x))
        return self.more[1](self.second(self.acts["tanh"](self.more[0](self.second(x)))))


class ThroughForward(nn.Module):
    """Calls .forward itself: of a block its functions are those of the module around."""

    def __init__(self) -> None:
        super().__init__()
        self.block, self.act, self.linear = Block(), nn.Tanh(), nn.Linear(12, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.act.forward(self.linear(self.block.forward(x)))


class TwoParents(nn.Module):
    """The same activation, and the same block, in two places."""

    def __init__(self) -> None:
        super().__init__()
        act, block = nn.ReLU(), Block()
        self.left = nn.Sequential(nn.Linear(12, 12), act, block)
        self.right = nn.Sequential(nn.Linear(12, 12), act, block)

    def forward(self, x: Tensor) -> Any:
        return self.left(x) + self.right(x)


class ActorCritic(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(12, 16), nn.Tanh(), nn.Linear(16, 16), nn.Tanh())
        self.actor, self.critic = nn.Linear(16, 3), nn.Sequential(nn.Linear(16, 8), nn.Tanh())
        self.spread = nn.Parameter(torch.zeros(3))

    def forward(self, x: Tensor) -> Tensor:
        h = self.trunk(x)
        policy = torch.tanh(self.actor(h)) * F.softplus(self.spread)
        return torch.cat([policy, self.critic(h)], -1)


class BetaSwish(nn.Module):
    """Swish with a slope that is learned."""

    def __init__(self) -> None:
        super().__init__()
        self.beta = nn.Parameter(torch.tensor(1.5))

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(self.beta * x)


class SquaredReLU(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x).square()


class HSwish(nn.Module):
    """Hard swish as in the mobile nets: out of relu6, in place or not."""

    def __init__(self, inplace: bool = False) -> None:
        super().__init__()
        self.inplace = inplace

    def forward(self, x: Tensor) -> Tensor:
        return x * (F.relu6(x + 3, inplace=self.inplace) / 6)


class Wrapped(nn.Module):
    """Nothing but a function, as a class: named after the module, not after the function."""

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x, inplace=True)


class Raw(nn.Module):
    """Not one call that torch knows as an activation."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.where(x > 0, x, 0.2 * (x.exp() - 1))


class Sine(nn.Module):
    """Periodic (SIREN): the gate has no closed side, only pinholes."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.sin(x)


class AddReLU(nn.Module):
    """A leaf of two inputs: the function is the site, not the module."""

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return F.relu(x + y)


class Normalise(nn.Module):
    """A leaf, not linear, but it mixes units: no activation."""

    def forward(self, x: Tensor) -> Tensor:
        return x / (1 + x.square().mean(-1, keepdim=True)).sqrt()


class Shift(nn.Module):
    """A leaf and element-wise, but affine: no activation."""

    def forward(self, x: Tensor) -> Tensor:
        return 2 * x - 0.5


class Noise(nn.Module):
    """A leaf that is random: no activation."""

    def forward(self, x: Tensor) -> Tensor:
        return x * (1 + 0.1 * torch.randn_like(x))


class Fused(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.add = nn.Linear(12, 9), nn.Linear(12, 9), AddReLU()

    def forward(self, x: Tensor) -> Any:
        return self.add(self.one(x), self.two(x))


def own(kind: Any) -> Setting:
    flat = kind in (SquaredReLU, HSwish, Wrapped)
    return Setting(
        f"own-{kind.__name__}",
        partial(mlp, kind),
        vectors,
        {"*": -1},
        own={"1": flat, "3": flat},
        compilable=kind is SquaredReLU,
    )


def own_on_images() -> nn.Module:
    return nn.Sequential(
        *(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), HSwish(True)),
        *(nn.Flatten(), nn.Linear(24, 8), BetaSwish()),
    )


def no_activations() -> nn.Module:
    """Leaves that are none, around one that is."""
    return nn.Sequential(
        *(nn.Linear(12, 16), Shift(), Normalise(), nn.Identity(), Noise(), nn.Dropout(0.1)),
        *(nn.ReLU(), nn.Softmax(-1), nn.LogSoftmax(-1), nn.LayerNorm(16)),
    )


LAST = {"*": -1}
CHANNELS = {"2": 1, "*": -1}
OWN = {"2": True, "5": False}

ROWS = [
    Setting("experts", Experts, lambda: torch.randn(60, 12), LAST),
    Setting("recursion", Recursive, vectors, LAST),
    Setting("early-exit", EarlyExit, vectors, LAST),
    Setting("kept-anywhere", Kept, vectors, LAST, compilable=True),
    Setting("through-forward", ThroughForward, vectors, LAST),
    Setting("two-parents", TwoParents, vectors, LAST),
    Setting("actor-critic", ActorCritic, vectors, LAST, compilable=True),
    *(own(kind) for kind in (BetaSwish, SquaredReLU, HSwish, Wrapped, Raw, Sine)),
    Setting("own-images", own_on_images, partial(images, 2), CHANNELS, own=OWN),
    Setting("leaf-of-two-inputs", Fused, vectors, LAST, compilable=True),
    Setting("leaves-that-are-none", no_activations, vectors, {"6": -1}),
]
