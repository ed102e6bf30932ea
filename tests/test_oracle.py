"""The oracle itself, against truths worked out by hand."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from tests.oracle import FLAT, KINDS, MODULES, Oracle, backward, derivative, open_gate, uncounted

Z = torch.tensor([[-2.0, 3.0], [-1.0, 0.0]])


class Applies(nn.Module):
    """Applies a function to its input, in a child of the root."""

    def __init__(self, function: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Any:
        return self.function(x)


class Parent(nn.Module):
    def __init__(self, function: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.block = Applies(function)

    def forward(self, x: Tensor) -> Any:
        return self.block(x)


def heard(model: nn.Module, *batches: Tensor, own: Any = None) -> dict[str, int]:
    with Oracle(model, {"*": -1}, own) as oracle:
        for batch in batches or (Z.clone(),):
            model(batch)
    return {name: kept.calls for name, kept in oracle.kept.items()}


@pytest.mark.parametrize("model", [nn.ReLU(), nn.ReLU(inplace=True), Applies(F.relu)], ids=str)
def test_every_activation_is_kept_as_it_was(model: nn.Module) -> None:
    with Oracle(model, {"relu": -1}) as oracle:
        model(Z.clone())
        model(2 * Z)
    kept = oracle.kept["relu"]
    np.testing.assert_array_equal(kept.z, [[-2, 3], [-1, 0], [-4, 6], [-2, 0]])
    np.testing.assert_array_equal(kept.h, [[0, 3], [0, 0], [0, 6], [0, 0]])
    np.testing.assert_array_equal(kept.open, [[0, 1], [0, 0], [0, 1], [0, 0]])
    assert (kept.dim, kept.flat, kept.calls) == (-1, True, 2)


def test_units_are_moved_last() -> None:
    z = torch.arange(-12.0, 12.0).reshape(2, 3, 4)
    model = nn.Sequential(nn.Tanh())
    with Oracle(model, {"0": 1}) as oracle:
        model(z)
        model(z[0])  # without a batch axis
    kept = oracle.kept["0"]
    assert kept.z.shape == (12, 3)
    np.testing.assert_array_equal(kept.z[:4], z[0].T.numpy())
    np.testing.assert_array_equal(kept.z[8:], z[0].T.numpy())
    np.testing.assert_array_equal(kept.open.sum(0), [4, 1, 4 + 4])  # |z| < 4.147


SPELLINGS: dict[str, list[Callable[[Tensor], Tensor]]] = {
    "relu": [F.relu, torch.relu, F.relu_, lambda x: x.relu(), lambda x: F.relu(x, inplace=True)],
    "clamp": [
        *(lambda x: x.clamp(min=0), lambda x: x.clamp(0), lambda x: torch.clamp(x, 0.0)),
        *(lambda x: x.clamp_min(0), lambda x: x.clamp_(min=0, max=None), lambda x: x.clamp_min_(0)),
    ],
    "tanh": [F.tanh, torch.tanh, lambda x: x.tanh(), lambda x: x.tanh_()],
    "sigmoid": [F.sigmoid, torch.sigmoid, lambda x: x.sigmoid()],
    "threshold": [lambda x: F.threshold(x, 0.1, 0.0), lambda x: torch.threshold(x, 0.1, 0.0)],
    "logsigmoid": [F.logsigmoid],
    "rrelu": [lambda x: F.rrelu(x, training=True), torch.rrelu],
    "prelu": [lambda x: F.prelu(x, torch.tensor([0.25]))],
    "glu": [F.glu, lambda x: F.glu(x, dim=-1), lambda x: F.glu(x, 1)],
    **{kind: [getattr(F, kind)] for kind in ("relu6", "hardtanh", "hardswish", "hardsigmoid")},
    **{kind: [getattr(F, kind)] for kind in ("leaky_relu", "elu", "selu", "celu", "gelu", "silu")},
    **{kind: [getattr(F, kind)] for kind in ("mish", "softplus", "softsign", "hardshrink")},
    **{kind: [getattr(F, kind)] for kind in ("softshrink", "tanhshrink")},
}


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_all_spellings_share_the_name_of_their_kind(kind: str) -> None:
    for function in SPELLINGS[kind]:
        assert heard(Applies(function)) == {kind: 1}
        assert heard(Parent(function)) == {f"block-{kind}": 1}


@pytest.mark.parametrize(
    "function",
    [
        lambda x: x.clamp(0, 6),
        lambda x: x.clamp(max=0),
        lambda x: x.clamp(min=1),
        lambda x: x.clamp_min(0.5),
        lambda x: x.long().clamp(min=0),
        lambda x: nn.Parameter(x).sigmoid(),
        lambda x: x.softmax(-1),
        lambda x: x * (x > 0),
    ],
)
def test_what_is_no_activation_is_not_heard(function: Callable[[Tensor], Tensor]) -> None:
    assert heard(Parent(function)) == {}


def test_calls_are_numbered_within_the_outermost_call() -> None:
    model = Parent(lambda x: F.relu(F.relu(x).tanh()))
    assert heard(model, Z, Z) == {"block-relu": 2, "block-tanh": 2, "block-relu-2": 2}
    act = nn.ReLU()
    twice = nn.Sequential(act, nn.Sequential(act))
    assert heard(twice, Z, Z) == {"0": 2, "0-2": 2}


def test_a_name_that_a_module_has_is_not_given_to_a_function() -> None:
    model = Parent(F.relu)
    model.add_module("block-relu", nn.Linear(2, 2))
    assert heard(model) == {"block--relu": 1}
    model = Applies(F.relu)
    model.relu = nn.ReLU()
    assert heard(model) == {"--relu": 1}


def test_parts_called_by_the_loop_are_outermost_and_lend_their_path() -> None:
    act = nn.ReLU()
    model = nn.ModuleDict({"left": nn.Sequential(act), "right": nn.Sequential(act)})
    with Oracle(model, {"*": -1}) as oracle:
        model["right"](model["left"](Z))
    assert set(oracle.kept) == {"left.0", "right.0"}


def test_outside_of_the_model_nothing_is_heard() -> None:
    with Oracle(nn.Sequential(nn.ReLU()), {}) as oracle:
        F.relu(Z)
        nn.Sequential(nn.ReLU())(Z)
    assert oracle.kept == {}


def test_functions_inside_an_activation_are_part_of_it() -> None:
    swish = Applies(lambda x: x * torch.sigmoid(x))
    model = nn.Sequential(nn.ReLU6(), swish)
    assert heard(model, own={"1": False}) == {"0": 1, "1": 1}
    assert heard(model) == {"0": 1, "1-sigmoid": 1}


def test_what_is_declared_uncounted_does_not_count() -> None:
    model = Parent(F.relu)
    with Oracle(model, {"*": -1}) as oracle:
        model(Z)
        with uncounted(), uncounted():
            model(Z)
        with uncounted():
            model(Z)
        assert oracle.kept["block-relu"].calls == 1


@pytest.mark.parametrize("reentrant", [True, False])
def test_a_checkpoint_is_heard_once_and_not_disturbed(reentrant: bool) -> None:
    block = nn.Sequential(nn.Linear(2, 2), nn.GELU(), nn.Linear(2, 2))
    model = Applies(lambda x: checkpoint(block, x, use_reentrant=reentrant))
    model.block = block
    x = Z.clone().requires_grad_()
    block(x).sum().backward()
    assert x.grad is not None
    expected, x.grad = x.grad, None
    with Oracle(model, {"block.1": -1}) as oracle:
        backward(model(x).sum())
    assert oracle.kept["block.1"].calls == 1
    assert torch.equal(x.grad, expected)


def test_nothing_of_it_is_left() -> None:
    model = Parent(F.relu)
    heard(model)
    with Oracle(model, {"*": -1}) as oracle:
        pass
    model(Z)
    assert oracle.kept == {}
    assert torch._C._len_torch_function_stack() == 0


def test_derivatives_are_those_of_the_function_with_its_parameters() -> None:
    z = torch.tensor([-3.0, 0.5])
    assert derivative(nn.LeakyReLU(0.3, inplace=True), z).tolist() == pytest.approx([0.3, 1])
    assert derivative(torch.exp, z.double()).tolist() == [math.exp(-3), math.exp(0.5)]
    assert derivative(torch.sin, z.bfloat16()).dtype == torch.bfloat16
    assert torch.equal(z, torch.tensor([-3.0, 0.5]))


@pytest.mark.parametrize(
    ("function", "closed", "open_"),
    [
        (F.relu, [-1.0, 0.0], [1e-3, 5.0]),
        (F.relu6, [-1.0, 0.0, 6.0, 7.0], [0.01, 5.99]),
        (torch.sigmoid, [-6.95, 6.95], [-6.85, 0.0, 6.85]),
        (F.gelu, [-5.0], [-2.0, -0.7518, 0.0, 5.0]),
        (F.hardswish, [-3.1], [-1.5, 0.0, 9.0]),
        (F.tanhshrink, [-0.03, 0.0, 0.01, 0.03], [-0.04, 0.04]),
        (F.hardshrink, [-0.5, 0.0, 0.49], [-0.51, 0.51]),
    ],
)
def test_gates(
    function: Callable[[Tensor], Tensor], closed: list[float], open_: list[float]
) -> None:
    assert not open_gate(function, torch.tensor(closed)).any()
    assert open_gate(function, torch.tensor(open_)).all()


def test_a_glu_is_gated_by_its_second_half() -> None:
    model = nn.Sequential(nn.GLU(1))
    z = torch.tensor([[1.0, 2.0, -8.0, 3.0]])
    with Oracle(model, {"0": 1}) as oracle:
        model(z)
    kept = oracle.kept["0"]
    np.testing.assert_array_equal(kept.z, [[-8, 3]])
    np.testing.assert_array_equal(kept.open, [[False, True]])
    np.testing.assert_allclose(kept.h, [[1 / (1 + math.exp(8)), 2 / (1 + math.exp(-3))]], 1e-6)


def test_a_site_without_an_axis_is_an_error() -> None:
    model = Parent(F.relu)
    oracle = Oracle(model, {"relu": -1})
    with pytest.raises(KeyError, match="no unit axis for 'block-relu'"), oracle:
        model(Z)


def test_the_lists_name_every_activation_once() -> None:
    assert set(MODULES.values()) | {"clamp"} == KINDS
    assert set(FLAT) <= KINDS
    assert set(SPELLINGS) == KINDS
