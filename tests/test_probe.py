"""A model's own activation classes are found by what they do, and nothing else is."""

from __future__ import annotations

import copy
import math
import random
import threading
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from deadwatch.activations import Replacement, SwappedActivation, UnitPReLU
from deadwatch.observe.functions import Clamp
from deadwatch.observe.gates import gate_of, is_learned
from deadwatch.observe.measure import EPSILON, TINY
from deadwatch.observe.sites import Selection
from deadwatch.records import Gate

INF = math.inf
OPEN = Gate(-INF, INF)


class Own(nn.Module):
    """An activation of the model's own, given by its formula."""

    def __init__(self, function: Any, **attributes: Any) -> None:
        super().__init__()
        self.function = function
        for name, value in attributes.items():
            setattr(self, name, value)

    def forward(self, x: Tensor) -> Any:
        return self.function(self, x)


def closed_beyond(low: float, high: float) -> Gate:
    """The gate of a clamp, which passes gradient at its very ends."""
    ends = np.nextafter(np.float32([low, high]), np.float32([-INF, INF]))
    return Gate(float(ends[0]), float(ends[1]))


def learned(value: float, *shape: int) -> nn.Parameter:
    return nn.Parameter(torch.full(shape, value))


class Changed(nn.ReLU):
    def forward(self, input: Tensor) -> Tensor:
        return torch.where(input > 1, input, 0.0)


class Renamed(nn.Hardtanh):
    def __init__(self) -> None:
        super().__init__(0.0, 20.0)


class InPlace(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.clamp_(min=0)


class Cubed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        cubed: Tensor = x.clamp(-1, 1) ** 3
        return cubed

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        (x,) = ctx.saved_tensors
        return grad * (x.abs() < 1)


class StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clamp(0, 1)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad


def shift(m: Any, x: Tensor) -> Tensor:
    return torch.where(x > 0, x, m.slope.view(1, -1, 1, 1) * x)


KNOWN = [  # own formulas, and the module of torch that they amount to
    (Own(lambda m, x: torch.where(x > 0, x, 0.0)), nn.ReLU()),
    (Own(lambda m, x: x * (x > 0)), nn.ReLU()),
    (Own(lambda m, x: x.clamp(min=0)), Clamp()),
    (InPlace(), Clamp()),
    (Own(lambda m, x: torch.relu(x) ** 2), nn.ReLU()),
    (Own(lambda m, x: F.relu(x.float())), nn.ReLU()),  # whatever it is given
    (Own(lambda m, x: x.clamp(1, 6)), nn.Hardtanh(1, 6)),
    (Own(lambda m, x: x.clip(m.low, m.high), low=-2.0, high=0.5), nn.Hardtanh(-2.0, 0.5)),
    (Own(lambda m, x: torch.clamp(x / 6 + 0.5, 0, 1)), nn.Hardsigmoid()),
    (Own(lambda m, x: F.relu6(x + 3) / 6), nn.Hardsigmoid()),
    (Own(lambda m, x: x * F.relu6(x + 3) / 6), nn.Hardswish()),
    (Own(lambda m, x: torch.where(x.abs() > 0.5, x, 0.0)), nn.Hardshrink()),
    (Own(lambda m, x: x.sign() * (x.abs() - 2).relu()), nn.Softshrink(2.0)),
    (Own(lambda m, x: torch.where(x > 0.3, x, 0.1)), nn.Threshold(0.3, 0.1)),
    (Own(lambda m, x: torch.maximum(x, 0.1 * x)), nn.LeakyReLU(0.1)),
    (Own(lambda m, x: torch.maximum(x, 1e-5 * x)), nn.LeakyReLU(1e-5)),
    (Own(lambda m, x: 1 / (1 + torch.exp(-x))), nn.Sigmoid()),
    (Own(lambda m, x: 2 * torch.sigmoid(2 * x) - 1), nn.Tanh()),
    (Own(lambda m, x: x / (1 + x.abs())), nn.Softsign()),
    (Own(lambda m, x: x - x.tanh()), nn.Tanhshrink()),
    (Own(lambda m, x: torch.where(x > 0, x, torch.expm1(x.clamp(max=0)))), nn.ELU()),
    (Own(lambda m, x: x * torch.sigmoid(x)), nn.SiLU()),
    (Own(lambda m, x: x * m.gate(x), gate=torch.sigmoid), nn.SiLU()),
    (Own(lambda m, x: x * F.softplus(x).tanh()), nn.Mish()),
    (Own(lambda m, x: x / 2 * (1 + torch.erf(x / math.sqrt(2)))), nn.GELU()),
    (
        Own(lambda m, x: x / 2 * (1 + torch.tanh((x + 0.044715 * x**3) * math.sqrt(2 / math.pi)))),
        nn.GELU("tanh"),
    ),
    (Renamed(), nn.Hardtanh(0.0, 20.0)),
]


@pytest.mark.parametrize(("own", "same"), KNOWN, ids=lambda m: type(m).__name__)
def test_own_formulas_have_the_gates_of_the_modules_they_amount_to(
    own: nn.Module, same: nn.Module
) -> None:
    gate, expected = gate_of(own), gate_of(same)
    assert gate is not None
    assert expected is not None
    ends = (gate.low, gate.high)
    assert ends == pytest.approx((expected.low, expected.high), rel=1e-6, abs=0)
    assert (gate.inside, gate.flat) == (expected.inside, expected.flat)


@pytest.mark.parametrize("low", [0.0, -2.0, 0.3])
def test_a_clamp_is_open_at_its_very_ends(low: float) -> None:
    own = Own(lambda m, x: x.clamp(low, 6.0))
    gate = gate_of(own)
    assert gate == closed_beyond(low, 6.0)
    ends = torch.tensor([low, 6.0], requires_grad=True)
    own(ends).sum().backward()
    assert ends.grad is not None
    assert ends.grad.all()


OTHERS = [
    (Changed(), Gate(1.0, INF)),
    (Own(lambda m, x: x.exp()), Gate(math.log(EPSILON), 709.78, flat=False)),  # then infinite
    (Own(lambda m, x: x + torch.sin(x) ** 2), OPEN),  # snake: its slope has isolated zeros
    (Own(lambda m, x: x**2), Gate(0.0, 0.0, inside=False)),
    (Own(lambda m, x: x.abs()), Gate(0.0, 0.0, inside=False)),
    (Own(lambda m, x: x * torch.sigmoid(1.702 * x)), Gate(-5.279, INF, flat=False)),
    (Own(lambda m, x: F.gelu(x).clamp(-0.1, 10)), Gate(-3.8104, 10.0, flat=False)),
    (Own(lambda m, x: x.relu().sqrt()), Gate(0.0, INF)),
    (Own(lambda m, x: (x * (x > 0)).sqrt()), Gate(0.0, INF, flat=False)),  # 0 · ∞ on the left
    (Own(lambda m, x: Cubed.apply(x)), Gate(-1.0, 1.0)),
    (Own(lambda m, x: StraightThrough.apply(x)), OPEN),
    (Own(lambda m, x: x * torch.sigmoid(m.beta * x), beta=learned(1.0)), nn.SiLU()),
    (Own(lambda m, x: x * torch.sigmoid(m.beta * x), beta=torch.tensor(1.0)), nn.SiLU()),
    (Own(lambda m, x: torch.max(x, m.beta * x), beta=learned(0.25, 1)), OPEN),
    # Its slope is zero on the left, but learns there.
    (Own(lambda m, x: torch.where(x > 0, x, m.slope * x), slope=learned(0.0)), "never flat"),
    (Own(lambda m, x: torch.max(x, m.floor), floor=learned(0.0, 6)), "never flat"),
    (Own(lambda m, x: m.scale * x.relu(), scale=learned(2.0)), nn.ReLU()),
    (Own(lambda m, x: torch.where(x > 0, x, m.slope * x), slope=learned(0.2, 6, 1, 1)), OPEN),
    (Own(lambda m, x: torch.where(x > 0, x, m.slope * x), slope=learned(0.2, 1, 6)), OPEN),
    (Own(lambda m, x: torch.where(x > 0, x, m.slope * x), slope=learned(0.2, 6, 1)), OPEN),
    (Own(shift, slope=learned(0.25, 6)), OPEN),
    # A gate that is open by one channel's formula is open.
    (Own(lambda m, x: (x - m.at).relu(), at=torch.tensor([1.0, -2.0, 3.0])), Gate(-2.0, INF)),
]


@pytest.mark.parametrize(("module", "expected"), OTHERS)
def test_activations_that_torch_does_not_have(module: nn.Module, expected: Any) -> None:
    gate = gate_of(module)
    assert gate is not None
    if expected == "never flat":
        expected = Gate(0.0, INF, flat=False)
    elif isinstance(expected, nn.Module):
        expected = gate_of(expected)
    assert (gate.low, gate.high) == pytest.approx((expected.low, expected.high), rel=2e-3)
    assert (gate.inside, gate.flat) == (expected.inside, expected.flat)


def scripted(x: Tensor) -> Tensor:
    return x * torch.sigmoid(x)


def test_a_scripted_function_inside() -> None:
    with warnings.catch_warnings(action="ignore"):
        function = torch.jit.script(scripted)
    assert gate_of(Own(lambda m, x: function(x))) == gate_of(nn.SiLU())


class TwoInputs(nn.Module):
    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return x.relu() * y


def norm(m: Any, x: Tensor) -> Any:
    return x * x.square().mean(-1, keepdim=True).add(1e-6).rsqrt() * m.weight


NOTHING = {
    "identity": Own(lambda m, x: x),
    "scale": Own(lambda m, x: m.weight * x, weight=learned(0.1, 6)),
    "scale in float32": Own(lambda m, x: (0.1 * x.float() + 3).to(x.dtype)),
    "frozen batch norm": Own(
        lambda m, x: x * m.weight.view(1, -1, 1, 1) + m.bias.view(1, -1, 1, 1),
        weight=torch.ones(6),
        bias=torch.ones(6),
    ),
    "rms norm": Own(norm, weight=learned(1.0, 6)),
    "rms norm without weight": Own(norm, weight=1.0),
    "response norm": Own(lambda m, x: x / (1 + x.norm(dim=(2, 3), keepdim=True))),
    "softmax": Own(lambda m, x: x.softmax(-1)),
    "softmax of channels": Own(lambda m, x: x.softmax(1)),
    "softmax of images": Own(lambda m, x: x.flatten(2).softmax(2).view_as(x)),
    "gumbel": Own(lambda m, x: F.gumbel_softmax(x, dim=-1)),
    "dropout": Own(lambda m, x: F.dropout(x, 0.5, m.training)),
    "always dropout": Own(lambda m, x: F.dropout(x.relu(), 0.5)),
    "python dice": Own(lambda m, x: x.relu() * random.random()),
    "numpy dice": Own(lambda m, x: x.relu() * np.random.rand()),
    "position": Own(lambda m, x: x + torch.arange(x.shape[1])[None, :, None].sin()),
    "by place": Own(lambda m, x: torch.sin(x * torch.arange(len(x)).to(x).view(-1, 1))),
    "round": Own(lambda m, x: x.round()),
    "sign": Own(lambda m, x: x.sign()),
    "step": Own(lambda m, x: (x > 0).to(x.dtype)),
    "loss": Own(lambda m, x: x.relu().mean()),
    "pool": Own(lambda m, x: F.max_pool2d(x, 2)),
    "pool, same size": Own(lambda m, x: F.max_pool2d(x, 3, 1, 1)),
    "flatten": Own(lambda m, x: x.flatten(1)),
    "shuffle": Own(lambda m, x: x.roll(1, 1)),
    "cumulative": Own(lambda m, x: x.relu().cumsum(-1)),
    "by the largest": Own(lambda m, x: x.relu() / x.max()),
    "gated": Own(lambda m, x: torch.mul(*x.chunk(2, -1))),
    "squeeze and excite": Own(lambda m, x: x * x.mean((2, 3), keepdim=True).sigmoid()),
    "raises": Own(lambda m, x: 1 / 0),
    "returns a tuple": Own(lambda m, x: (x.relu(), x)),
    "returns half": Own(lambda m, x: x.relu().half()),
    "two inputs": TwoInputs(),
    "cannot be copied": Own(lambda m, x: x.relu(), lock=iter([threading.Lock()])),
    "constant": Own(lambda m, x: 0 * x.relu()),
    "not a number": Own(lambda m, x: x.relu() * math.nan),
    "meta": Own(
        lambda m, x: x.relu() * m.weight, weight=nn.Parameter(torch.ones(3, device="meta"))
    ),
    "matrix": Own(lambda m, x: (x * m.weight).relu(), weight=learned(1.0, 2, 2)),
    "has children": nn.Sequential(nn.ReLU()),
}


@pytest.mark.parametrize("name", NOTHING)
def test_everything_else_is_no_activation(name: str) -> None:
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    assert gate_of(NOTHING[name]) is None
    assert torch.equal(before[0], torch.get_rng_state())
    assert before[1:] == (random.getstate(), np.random.get_state()[1].tolist())


class Counting(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.calls = 0
        self.seen: list[Tensor] = []
        self.register_buffer("steps", torch.zeros(()))
        self.slope = learned(0.1)

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.steps += 1
        self.seen.append(x)
        warnings.warn("called", stacklevel=1)
        return torch.where(x > 0, x, self.slope * x)


def test_the_module_is_left_alone() -> None:
    module = Counting()
    module.register_forward_hook(lambda *_: pytest.fail("a hook ran"))
    module.register_forward_pre_hook(lambda *_: pytest.fail("a hook ran"))
    everywhere = nn.modules.module.register_module_forward_hook(lambda *_: pytest.fail("ran"))
    state, own = copy.deepcopy(module.state_dict()), dict(vars(module))
    versions = [p._version for p in module.parameters()]
    try:
        with torch.inference_mode():
            assert gate_of(module) == OPEN
    finally:
        everywhere.remove()
    assert vars(module) == own
    assert (module.calls, module.seen, module.training) == (0, [], True)
    assert module.slope.grad is None
    assert [p._version for p in module.parameters()] == versions
    torch.testing.assert_close(module.state_dict(), state, rtol=0, atol=0)


def test_a_hook_does_not_drag_its_owner_into_the_copy() -> None:
    class Owner:
        def __deepcopy__(self, memo: Any) -> Any:
            raise AssertionError("copied")

        def hook(self, *_: Any) -> None: ...

    module = InPlace()
    module.register_forward_hook(Owner().hook)
    assert gate_of(module) == Gate(-TINY, INF)


def test_surroundings_are_kept_out() -> None:
    class Nothing(TorchFunctionMode):
        def __torch_function__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            raise AssertionError(f"{func} was seen")

    module = Own(lambda m, x: x.clamp(-1, 1) @ torch.eye(1) if x.ndim == 0 else x.clamp(-1, 1))
    module.unhashable = []  # so that it is measured again
    for surrounding in (
        torch.no_grad(),
        torch.autocast("cpu", torch.bfloat16),
        torch.device("meta"),
        Nothing(),
    ):
        with surrounding:
            assert gate_of(module) == closed_beyond(-1.0, 1.0)


def test_an_interrupt_passes() -> None:
    def interrupt(m: Any, x: Tensor) -> Tensor:
        raise KeyboardInterrupt("stop")

    with pytest.raises(KeyboardInterrupt, match="stop"):
        gate_of(Own(interrupt))


def test_one_class_with_different_functions_is_not_mixed_up() -> None:
    class Holder(nn.Module):
        def __init__(self, act: Any, low: Any = None) -> None:
            super().__init__()
            self.act, self.low = act, low

        def forward(self, x: Tensor) -> Any:
            return self.act(x) if self.low is None else self.act(x).clamp(*self.low)

    assert gate_of(Holder(F.relu)) == Gate(0.0, INF)
    assert gate_of(Holder(F.gelu)) == gate_of(nn.GELU())
    assert gate_of(Holder(F.silu)) == gate_of(nn.SiLU())
    for end in (1.0, 2.0):
        assert gate_of(Holder(lambda x, end=end: x.clamp(-end, end))) == closed_beyond(-end, end)
        assert gate_of(Holder(F.relu, [-1.0, end])) == Gate(0.0, closed_beyond(0.0, end).high)
        own = gate_of(Holder(lambda x: x.clamp(-end, end)))  # noqa: B023
        assert own == closed_beyond(-end, end)


def test_a_learned_gate_is_measured_anew() -> None:
    module = Own(lambda m, x: (x - m.at).relu(), at=learned(1.0))
    assert gate_of(module) == Gate(1.0, INF)
    assert is_learned(module)
    with torch.no_grad():
        module.at.fill_(-2.0)
    assert gate_of(module) == Gate(-2.0, INF)
    for fixed in (nn.PReLU(), UnitPReLU(3, 1), nn.ReLU(), InPlace()):
        assert not is_learned(fixed)


def test_extreme_parameters_make_a_line_that_is_always_open() -> None:
    assert gate_of(nn.CELU(1e9)) == OPEN


def test_many_channels_are_few_points() -> None:
    slope = torch.full((5000,), 0.5)
    module = Own(lambda m, x: torch.where(x > 2, x, m.slope.clamp(max=0) * x), slope=slope)
    assert gate_of(module) == Gate(2.0, INF)


def test_swapped_modules_keep_their_rows() -> None:
    leak = Replacement("leaky_relu", unit_dim=1, slope=0.1)
    swap = SwappedActivation(Changed(), leak, torch.ones(3, dtype=torch.bool))
    assert gate_of(swap) == Gate(1.0, INF)
    assert gate_of(UnitPReLU(3, 1)) == OPEN


def test_own_activations_of_a_model_are_found() -> None:
    model = nn.Sequential(nn.Linear(3, 3), InPlace(), NOTHING["rms norm"], Changed(), nn.Flatten())
    assert [c.activation for c in Selection().candidates(model)] == ["InPlace", "Changed"]


@pytest.mark.parametrize("kind", [nn.LayerNorm, nn.BatchNorm1d, nn.RMSNorm])
def test_norms_by_another_name_are_not_tried_out(
    kind: type[nn.Module], monkeypatch: pytest.MonkeyPatch
) -> None:
    def forward(self: Any, x: Tensor) -> Any:
        return kind.forward(self, x.float())

    monkeypatch.setattr("deadwatch.observe.probe.try_out", None)
    assert gate_of(type("Own", (kind,), {"forward": forward, "__module__": "own"})(8)) is None
