"""Rows with every activation of torch, as module and as function, and plain convolutions."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.nets import SharedReLU, Tokens, conv, images, mlp, vectors
from tests.setting import Setting

MODULES: dict[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "relu-inplace": partial(nn.ReLU, inplace=True),
    "relu6": nn.ReLU6,
    "relu6-inplace": partial(nn.ReLU6, inplace=True),
    "hardtanh": nn.Hardtanh,
    "hardtanh-uneven": partial(nn.Hardtanh, -2.0, 0.5),
    "hardsigmoid": nn.Hardsigmoid,
    "hardswish": nn.Hardswish,
    "hardswish-inplace": partial(nn.Hardswish, inplace=True),
    "threshold": partial(nn.Threshold, 0.3, 0.1),
    "hardshrink": nn.Hardshrink,
    "softshrink": nn.Softshrink,
    "leaky": nn.LeakyReLU,
    "leaky-flat": partial(nn.LeakyReLU, 1e-4),
    "prelu": nn.PReLU,
    "rrelu": nn.RReLU,
    "celu": partial(nn.CELU, 2.0),
    "elu": partial(nn.ELU, 0.5, inplace=True),
    "selu": nn.SELU,
    "gelu": nn.GELU,
    "gelu-tanh": partial(nn.GELU, "tanh"),
    "silu": partial(nn.SiLU, inplace=True),
    "mish": nn.Mish,
    "softplus": partial(nn.Softplus, 2.0, 5.0),
    "sigmoid": nn.Sigmoid,
    "tanh": nn.Tanh,
    "logsigmoid": nn.LogSigmoid,
    "softsign": nn.Softsign,
    "tanhshrink": nn.Tanhshrink,
}

Function = Callable[[Tensor], Tensor]

FUNCTIONS: dict[str, tuple[str, Function]] = {
    "F.relu": ("relu", F.relu),
    "F.relu-inplace": ("relu", partial(F.relu, inplace=True)),
    "F.relu_": ("relu", F.relu_),
    "torch.relu": ("relu", torch.relu),
    "x.relu": ("relu", lambda x: x.relu()),
    "x.relu_": ("relu", lambda x: x.relu_()),
    "x.clamp-min": ("clamp", lambda x: x.clamp(min=0)),
    "torch.clamp": ("clamp", lambda x: torch.clamp(x, 0.0)),
    "x.clamp_-min": ("clamp", lambda x: x.clamp_(min=0, max=None)),
    "x.clamp_min": ("clamp", lambda x: x.clamp_min(0)),
    "torch.clamp_min": ("clamp", lambda x: torch.clamp_min(x, 0.0)),
    "F.relu6": ("relu6", F.relu6),
    "F.hardtanh": ("hardtanh", partial(F.hardtanh, min_val=-2.0, max_val=0.5)),
    "F.hardtanh_": ("hardtanh", lambda x: F.hardtanh_(x, -2.0, 0.5)),
    "F.hardswish": ("hardswish", F.hardswish),
    "F.hardsigmoid": ("hardsigmoid", F.hardsigmoid),
    "F.leaky_relu": ("leaky_relu", partial(F.leaky_relu, negative_slope=0.2)),
    "F.leaky_relu-flat": ("leaky_relu", lambda x: F.leaky_relu(x, 1e-4)),
    "F.elu": ("elu", partial(F.elu, alpha=0.5)),
    "F.elu_": ("elu", F.elu_),
    "F.selu": ("selu", F.selu),
    "torch.selu": ("selu", torch.selu),
    "F.celu": ("celu", partial(F.celu, alpha=2.0)),
    "F.gelu": ("gelu", F.gelu),
    "F.gelu-tanh": ("gelu", partial(F.gelu, approximate="tanh")),
    "F.silu": ("silu", F.silu),
    "F.mish": ("mish", F.mish),
    "F.softplus": ("softplus", partial(F.softplus, beta=2, threshold=5)),
    "F.sigmoid": ("sigmoid", F.sigmoid),
    "torch.sigmoid": ("sigmoid", torch.sigmoid),
    "x.sigmoid_": ("sigmoid", lambda x: x.sigmoid_()),
    "F.tanh": ("tanh", F.tanh),
    "torch.tanh": ("tanh", torch.tanh),
    "x.tanh": ("tanh", lambda x: x.tanh()),
    "F.logsigmoid": ("logsigmoid", F.logsigmoid),
    "F.softsign": ("softsign", F.softsign),
    "F.hardshrink": ("hardshrink", partial(F.hardshrink, lambd=0.3)),
    "F.softshrink": ("softshrink", F.softshrink),
    "F.tanhshrink": ("tanhshrink", F.tanhshrink),
    "F.threshold": ("threshold", lambda x: F.threshold(x, 0.3, 0.1)),
    "F.rrelu": ("rrelu", partial(F.rrelu, training=True)),
    "torch.prelu": ("prelu", lambda x: torch.prelu(x, torch.tensor([0.25]))),
}


class Calls(nn.Module):
    """Dense layers with an activation function between them."""

    def __init__(self, function: Function) -> None:
        super().__init__()
        self.first, self.second, self.last = nn.Linear(12, 16), nn.Linear(16, 16), nn.Linear(16, 5)
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        h = self.function(self.second(self.function(self.first(x))))
        out: Tensor = self.last(h)
        return out


class OwnPReLU(nn.Module):
    """Hands its own parameter to a function, and squashes a parameter, which is no activation."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.slope = nn.Linear(12, 16), nn.Parameter(torch.full((16,), 0.25))
        self.scale = nn.Parameter(torch.zeros(16))

    def forward(self, x: Tensor) -> Tensor:
        h = F.prelu(self.linear(x), self.slope)
        return h * F.softplus(self.scale) * torch.sigmoid(self.scale)


class NotSites(nn.Module):
    """Calls that look like activations, beside a single one that is."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.linear = nn.Embedding(7, 12), nn.Linear(12, 16)

    def forward(self, ids: Tensor) -> Tensor:
        h = F.relu(self.linear(self.embed((ids - 1).clamp(min=0).relu())))
        weights = F.softmax(h.clamp(0, 6), -1) + F.log_softmax(h.clamp(max=3), -1)
        return weights + h.clamp(min=1) + h.clamp_min(0.5) + h.exp().log1p()


BOTH = {"1": -1, "3": -1}

_MLPS = [
    Setting(f"mlp-{name}", partial(mlp, act), vectors, BOTH, compilable=name in ("relu", "gelu"))
    for name, act in MODULES.items()
]

_FUNCTIONS = [
    Setting(
        name,
        partial(Calls, f),
        vectors,
        {kind: -1, f"{kind}-2": -1},
        # The compiler hides functions of torch (not of tensors) that work in place.
        compilable=kind == "relu" and name != "F.relu_",
    )
    for name, (kind, f) in FUNCTIONS.items()
]

_CONV = [
    Setting(
        f"conv{n}d{'-norm' if norm else ''}{'-inplace' if inplace else ''}",
        partial(conv, n, norm, inplace),
        partial(images, n),
        {"2" if norm else "1": 1, "6" if norm else "5": -1},
        compilable=n == 2,
    )
    for n in (1, 2, 3)
    for norm in (False, True)
    for inplace in (False, True)
]

_NORMED = {"2": 1, "6": -1}

_DTYPES = [
    Setting("mlp-bfloat16", mlp, vectors, BOTH, dtype=torch.bfloat16),
    Setting("mlp-float64", mlp, vectors, BOTH, dtype=torch.float64, tolerance=1e-12),
    Setting("F.relu-bfloat16", partial(Calls, F.relu), vectors, {"*": -1}, dtype=torch.bfloat16),
    Setting("F.gelu-float64", partial(Calls, F.gelu), vectors, {"*": -1}, dtype=torch.float64),
    Setting(
        "conv2d-bfloat16", partial(conv, 2, True), partial(images, 2), _NORMED, dtype=torch.bfloat16
    ),
    Setting(
        "conv2d-channels-last",
        partial(conv, 2, True),
        partial(images, 2),
        _NORMED,
        channels_last=True,
    ),
]

ROWS = [
    *_MLPS,
    *_FUNCTIONS,
    *_CONV,
    *_DTYPES,
    Setting("prelu-own-parameter", OwnPReLU, vectors, {"prelu": -1}),
    Setting("not-sites", NotSites, lambda: torch.randint(0, 7, (20,)), {"relu": -1}),
    Setting("tokens", Tokens, lambda: torch.randn(4, 5, 8), {"act": -1}, compilable=True),
    Setting("shared", SharedReLU, partial(images, 2), {"relu*": 1}, compilable=True),
]
