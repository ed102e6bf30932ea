"""Gates of known activations agree with autograd, and none of torch's activations is forgotten."""

from __future__ import annotations

import inspect
import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from deadwatch.observe.gates import EXACT, SMOOTH, gate_of, measure
from deadwatch.observe.measure import EPSILON
from deadwatch.records import Gate
from tests.oracle import derivative

NOT_SITES = {
    "MultiheadAttention",  # not element-wise: attention weights are no site
    "Softmax",
    "Softmax2d",
    "Softmin",
    "LogSoftmax",
}

ACTIVATIONS = [
    nn.CELU(),
    nn.CELU(2.0),
    nn.ELU(),
    nn.ELU(0.5),
    nn.GELU(),
    nn.GELU("tanh"),
    nn.Hardshrink(),
    nn.Hardshrink(2.0),
    nn.Hardsigmoid(),
    nn.Hardswish(),
    nn.Hardtanh(),
    nn.Hardtanh(-2.0, 0.5),
    nn.LeakyReLU(),
    nn.LeakyReLU(1e-5),
    nn.LeakyReLU(0.0),
    nn.LogSigmoid(),
    nn.Mish(),
    nn.PReLU(),
    nn.ReLU(),
    nn.ReLU6(),
    nn.RReLU(),
    nn.CELU(30.0),
    nn.Softplus(0.05),
    nn.SELU(),
    nn.SiLU(),
    nn.Sigmoid(),
    nn.Softplus(),
    nn.Softplus(2.0, 5.0),
    nn.Softshrink(),
    nn.Softshrink(1.5),
    nn.Softsign(),
    nn.Tanh(),
    nn.Tanhshrink(),
    nn.Threshold(0.3, 0.1),
]


def expected_open(gate: Gate, z: Tensor) -> Tensor:
    if gate.inside:
        return (z > gate.low) & (z < gate.high)
    return (z < gate.low) | (z > gate.high)


def grid_for(gate: Gate) -> Tensor:
    points = [torch.linspace(-400, 400, 8001)]
    for end in (gate.low, gate.high):
        if math.isfinite(end):
            points.append(end + torch.tensor([-1e-2, -1e-4, 1e-4, 1e-2]))
            if gate.flat:  # at a kink the derivative is exactly zero
                points.append(torch.tensor([end]))
    return torch.cat(points)


@pytest.mark.parametrize("module", ACTIVATIONS, ids=str)
def test_gate_is_where_autograd_finds_a_slope(module: nn.Module) -> None:
    gate = gate_of(module)
    assert gate is not None
    z = grid_for(gate)
    slope = derivative(module, z).abs()
    open_ = slope > EPSILON
    wrong = z[open_ != expected_open(gate, z)]
    # A smooth activation may have an isolated zero of its slope: GELU, SiLU and Mish do near -1.
    pinhole = isinstance(module, (nn.GELU, nn.SiLU, nn.Mish)) & (wrong > -3) & (wrong < -0.5)
    kink = isinstance(module, nn.Hardswish) & ((wrong + 1.5).abs() < 0.01)
    kink |= isinstance(module, nn.Hardswish) & (wrong == -3)
    assert wrong[~(pinhole | kink)].tolist() == []
    if not bool(expected_open(gate, z).all()):
        closed = slope[~expected_open(gate, z) & (z != gate.low)]
        assert bool((closed == 0).all()) == gate.flat


@pytest.mark.parametrize(
    ("module", "low", "high"),
    [
        (nn.Sigmoid(), -6.9, 6.9),  # σ' = σ(1-σ) > 1e-3
        (nn.Tanh(), -4.147, 4.147),  # 1 - tanh² > 1e-3
        (nn.ELU(), math.log(1e-3), math.inf),  # e^z > 1e-3
        (nn.ELU(0.5), math.log(2e-3), math.inf),
        (nn.Softplus(), math.log(1e-3 / (1 - 1e-3)), math.inf),
        (nn.LogSigmoid(), -math.inf, -math.log(1e-3 / (1 - 1e-3))),
        (nn.Softsign(), 1 - 1e3**0.5, 1e3**0.5 - 1),  # 1/(1+|z|)² > 1e-3
    ],
    ids=str,
)
def test_measured_gates_match_their_closed_form(module: nn.Module, low: float, high: float) -> None:
    gate = measure(module)
    assert (gate.low, gate.high) == pytest.approx((low, high), abs=2e-2 if low == -6.9 else 1e-3)
    assert gate.inside
    assert not gate.flat


def test_every_activation_module_of_torch_is_a_site_or_named_as_none() -> None:
    known = set(EXACT) | set(SMOOTH)
    for name, kind in inspect.getmembers(nn.modules.activation, inspect.isclass):
        if issubclass(kind, nn.Module) and kind.__module__ == nn.modules.activation.__name__:
            recognised = any(issubclass(kind, row) for row in known)
            assert recognised != (name in NOT_SITES), name


def test_subclasses_are_recognised_and_layers_are_not() -> None:
    class Mine(nn.ReLU):
        pass

    assert gate_of(Mine()) == Gate(0.0, math.inf)
    assert gate_of(nn.Linear(2, 2)) is None
    assert gate_of(nn.Softmax(-1)) is None


def test_a_random_slope_lets_gradient_through() -> None:
    gate = gate_of(nn.RReLU(0.0, 0.5))
    assert gate is not None
    assert gate.always_open


def test_glu_is_gated_by_the_half_that_multiplies() -> None:
    gate = gate_of(nn.GLU())
    assert gate is not None
    b = torch.linspace(-20, 20, 4001)
    a = torch.randn(4001, requires_grad=True)
    (slope,) = torch.autograd.grad(nn.GLU()(torch.stack([a, b], -1)).sum(), a)
    np.testing.assert_array_equal((slope > EPSILON).numpy(), (b > gate.low).numpy())
