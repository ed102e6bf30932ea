"""Every spelling of a functional activation is one hit, with the module that does the same."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from deadwatch.observe.functions import FUNCTIONS, HOMES, ROWS, FunctionalCall
from deadwatch.observe.gates import gate_of

NAMES = {getattr(home, "__name__", "?"): home for home in HOMES}


class Listener(TorchFunctionMode):
    """Looks up everything that is called, and keeps a copy of what an in-place call overwrites."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[FunctionalCall] = []
        self.inputs: list[Tensor] = []

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        row = FUNCTIONS.get(func)
        call = row(args, kwargs or {}) if row else None
        if call is not None:
            self.calls.append(call)
            self.inputs.append(call.source.clone())
        return func(*args, **(kwargs or {}))


def listen(function: Callable[..., Tensor], *args: Any, **kwargs: Any) -> FunctionalCall:
    """The one activation call a function makes, which its module reproduces."""
    listener = Listener()
    with listener:
        y = function(*args, **kwargs)
    (call,) = listener.calls
    torch.testing.assert_close(call.module(listener.inputs[0]), y)
    assert gate_of(call.module) is not None
    return call


def data() -> Tensor:
    return 4 * torch.randn(6, 8)


# What a function needs besides its input; and other parameters it may have.
NEEDS: dict[str, tuple[Any, ...]] = {
    "threshold": (0.3, -1.0),
    "prelu": (torch.tensor([0.25]),),
    "clamp": (0,),
    "clip": (0.0,),
    "clamp_min": (0,),
}
OTHER: dict[str, dict[str, Any]] = {
    "celu": {"alpha": 2.0},
    "elu": {"alpha": 2.0},
    "gelu": {"approximate": "tanh"},
    "glu": {"dim": 0},
    "hardshrink": {"lambd": 2.0},
    "hardtanh": {"min_val": -2.0, "max_val": 0.5},
    "leaky_relu": {"negative_slope": 0.3},
    "rrelu": {"lower": 0.5, "upper": 0.5},
    "softplus": {"beta": 2.0, "threshold": 5.0},
    "softshrink": {"lambd": 2.0},
}
KEYWORD_ONLY = {"gelu"}

SPELLINGS = [
    pytest.param(getattr(home, name + end), name, id=f"{place}.{name}{end}")
    for name in ROWS
    for end in ("", "_")
    for place, home in NAMES.items()
    if hasattr(home, name + end)
]


@pytest.mark.parametrize(("function", "name"), SPELLINGS)
def test_every_spelling_is_one_hit(function: Callable[..., Tensor], name: str) -> None:
    call = listen(function, data(), *NEEDS.get(name, ()))
    assert call.kind == ROWS[name].kind
    if name in OTHER:
        listen(function, data(), **OTHER[name])
        if name not in KEYWORD_ONLY:
            listen(function, data(), *OTHER[name].values())


@pytest.mark.parametrize("name", [n for n in ROWS if hasattr(F, n)])
def test_in_place_and_named_input(name: str) -> None:
    function = getattr(F, name)
    needs = NEEDS.get(name, ())
    if "inplace" in getattr(function, "__code__", listen.__code__).co_varnames:
        listen(function, data(), *needs, inplace=True)
    if not needs:
        assert listen(function, input=data()).kind == ROWS[name].kind


@pytest.mark.parametrize(
    ("function", "args"),
    [
        (torch.sigmoid, ()),
        (torch.tanh, ()),
        (torch.clamp, (0,)),
        (torch.clamp_min, (0,)),
        (torch.special.expit, ()),
        (torch._C._nn.gelu, ()),
        (torch._C._nn.silu, ()),
    ],
)
def test_out_variants(function: Callable[..., Tensor], args: tuple[Any, ...]) -> None:
    listen(function, data(), *args, out=torch.empty(6, 8))


MODULES = [
    *(nn.CELU(2.0), nn.ELU(0.5), nn.GELU(), nn.GELU("tanh"), nn.GLU(0), nn.Hardshrink(2.0)),
    *(nn.Hardsigmoid(), nn.Hardswish(), nn.Hardtanh(-2, 1), nn.LeakyReLU(0.2), nn.LogSigmoid()),
    *(nn.Mish(), nn.PReLU(), nn.ReLU(), nn.ReLU6(), nn.SELU(), nn.SiLU(), nn.Sigmoid()),
    *(nn.Softplus(2.0, 5.0), nn.Softshrink(2.0), nn.Softsign(), nn.Tanh(), nn.Tanhshrink()),
    *(nn.Threshold(0.1, 0.2), nn.RReLU(0.1, 0.4).eval(), nn.ReLU(True), nn.ReLU6(True)),
]


@pytest.mark.parametrize("module", MODULES, ids=str)
def test_modules_call_one_function_with_the_same_gate(module: nn.Module) -> None:
    assert gate_of(listen(module, data()).module) == gate_of(module)


def test_modules_are_shared_between_calls_with_the_same_parameters() -> None:
    first, second = listen(F.leaky_relu, data(), 0.2), listen(F.leaky_relu, data(), 0.2)
    assert first.module is second.module
    assert listen(F.leaky_relu, data(), 0.3).module is not first.module
    assert listen(F.leaky_relu, data(), np.float32(0.5)).module.negative_slope == 0.5


@pytest.mark.parametrize(
    "function",
    [
        lambda x: x.clamp(0, 6),
        lambda x: x.clamp(max=0),
        lambda x: x.clamp(min=0.1),
        lambda x: x.clamp(min=None, max=1.0),
        lambda x: torch.clamp(x, torch.zeros(())),
        lambda x: torch.clamp(x, torch.zeros(8), torch.ones(8)),
        lambda x: torch.clamp_min(x, torch.zeros(8)),
        lambda x: x.clamp_min(1),
        lambda x: F.leaky_relu(x, torch.tensor(0.2)),
        lambda x: F.hardtanh(x, 1.0, 1.0),
        lambda x: torch._C._nn.elu(x, 1.0, 2.0, 1.0),
        lambda x: torch.relu(x.long()),
        lambda x: torch.sigmoid(x.long()),
        lambda x: torch.sigmoid(nn.Parameter(x)),
        lambda x: F.relu(input=nn.Parameter(x)),
        lambda x: torch.tanh(x.to(torch.complex64)),
        *(torch.exp, torch.abs, torch.square, torch.sin, F.dropout, F.normalize),
        lambda x: F.softmax(x, -1),
        lambda x: F.log_softmax(x, -1),
        lambda x: F.gumbel_softmax(x, dim=-1),
        lambda x: F.layer_norm(x, (8,)),
        lambda x: torch.maximum(x, torch.zeros(8)),
    ],
)
def test_other_calls_are_no_activations(function: Callable[[Tensor], Tensor]) -> None:
    with Listener() as listener:
        function(data())
    assert listener.calls == []


def test_another_mode_in_between_does_not_double_a_call() -> None:
    class Other(TorchFunctionMode):
        def __torch_function__(
            self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
        ) -> Any:
            return func(*args, **(kwargs or {}))

    with Other():
        listen(F.relu, data())
    with Listener() as listener, Other():
        F.relu(data())
    assert [call.kind for call in listener.calls] == ["relu"]


def test_a_clamp_is_alive_where_its_input_is_zero() -> None:
    """Clamp passes gradient there, unlike ReLU; so do layers that begin at zero."""
    gate = gate_of(listen(torch.clamp, data(), 0).module)
    assert gate is not None
    assert gate.low < 0.0
    assert np.nextafter(np.float32(0), np.float32(-1)) == gate.low


@pytest.mark.parametrize("view", [lambda p: p.view(2, 4), lambda p: p[3:], lambda p: p])
def test_a_gate_on_a_weight_is_no_activation(view: Callable[[Tensor], Tensor]) -> None:
    listener = Listener()
    with listener:
        torch.sigmoid(view(nn.Parameter(torch.randn(8))))
    assert not listener.calls
