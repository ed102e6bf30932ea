"""Re-standardising: mean 0 and standard deviation 1 to the digit, and nothing else moves."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from deadwatch import ConfigError, Policy, Remedy, Restandardize, Rules, State, Watch, WindowReport

X = torch.randn(2000, 6, generator=torch.Generator().manual_seed(1))


def watch(model: nn.Module, remedy: Remedy | None = None, **policy: Any) -> Watch:
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    options = {"when": 0.0, "guard": False} | policy
    return Watch(
        model,
        optimizer=optimizer,
        policy=None if remedy is None else Policy(remedy, **options),
        rules=Rules(min_samples=1),
        stats_every_n_steps=1,
    )


def seen(model: nn.Module, x: Tensor, remedy: Remedy | None = None) -> WindowReport:
    """What one look at the data shows, with a remedy for whatever is dead."""
    with watch(model, remedy) as watching:
        model(x)
        return watching.close_window()


def chain(*middle: nn.Module, act: nn.Module | None = None) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 6), *middle, act or nn.ReLU(), nn.Linear(6, 3))


class Rows(nn.Module):
    """Tokens of images: channels last for linear layers, first for convolutions."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.norm, self.act = nn.Conv1d(6, 6, 1), norm, nn.ReLU()
        self.read = nn.Conv1d(6, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.read(self.act(self.norm(self.conv(x.view(-1, 6, 20)))))
        return out


MODELS: dict[str, tuple[Callable[[], nn.Module], str, str]] = {
    "linear": (chain, "0", "1"),
    "conv": (lambda: Rows(nn.Identity()), "conv", "act"),
    "batch-norm": (lambda: chain(nn.BatchNorm1d(6)), "1", "2"),
    "layer-norm": (lambda: chain(nn.LayerNorm(6)), "1", "2"),
    "group-norm": (lambda: Rows(nn.GroupNorm(2, 6)), "norm", "act"),
}


# At a depth of 1000, float32 tells values apart by 6e-5; that is as exact as it can be.
DEPTHS = [(torch.float32, 4.0, 1e-5), (torch.float32, 1e3, 1e-4), (torch.float64, 1e3, 1e-5)]


@pytest.mark.parametrize(("dtype", "depth", "tolerance"), DEPTHS)
@pytest.mark.parametrize("kind", MODELS)
def test_the_same_data_give_mean_zero_and_unit_std(
    kind: str, dtype: torch.dtype, depth: float, tolerance: float
) -> None:
    build, shift, site = MODELS[kind]
    model, x = build().to(dtype), X.to(dtype)[: 600 if kind in ("conv", "group-norm") else None]
    spread = seen(model, x)[site].std
    with torch.no_grad():
        bias = model.get_parameter(f"{shift}.bias")
        bias[[1, 4]] -= torch.as_tensor(depth * spread[[1, 4]]).to(bias) + 1
    before = {name: value.clone() for name, value in model.named_parameters()}
    live = [0, 2, 3, 5]
    (treatment,) = seen(model, x, Restandardize()).treatments
    assert (treatment.units.tolist(), treatment.quiet) == ([1, 4], True)
    after = seen(model, x)[site]
    np.testing.assert_allclose(after.mean[[1, 4]], 0, atol=tolerance)
    np.testing.assert_allclose(after.std[[1, 4]], 1, atol=tolerance)
    for name, value in model.named_parameters():
        if name.startswith(shift):
            assert torch.equal(value[live], before[name][live]), name
        elif name.endswith("weight") and value.shape[0] == 3:
            assert torch.equal(value[:, live], before[name][:, live])
            assert not value[:, [1, 4]].any()
        else:
            assert torch.equal(value, before[name]), name


def test_the_direction_that_a_unit_has_learnt_stays() -> None:
    model = chain()
    with torch.no_grad():
        model[0].bias[2] = -50
    old = model[0].weight[2].detach().clone()
    seen(model, X, Restandardize())
    cosine = torch.cosine_similarity(model[0].weight[2].detach(), old, dim=0)
    assert float(cosine) == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize(
    ("act", "depth", "mean"),
    [
        (nn.Threshold(2.0, 0.5), -30, 2.0),  # 0 is outside the gate: its nearest end is taken
        (nn.Threshold(-2.0, 0.5), -30, 0.0),
        (nn.ReLU6(), 60, 0.0),  # dead at the top, and brought down
        (nn.Hardtanh(-7.0, -5.0), 30, -5.0),
    ],
)
def test_the_mean_is_the_point_of_the_gate_nearest_to_zero(
    act: nn.Module, depth: float, mean: float
) -> None:
    model = chain(act=act)
    with torch.no_grad():
        model[0].bias[2] = depth
    report = seen(model, X, Restandardize(quiet=False))
    assert 2 in report.treatments[0].units
    after = seen(model, X)["1"]
    assert after.mean[2] == pytest.approx(mean, abs=1e-4)
    assert after.std[2] == pytest.approx(1, abs=1e-4)
    assert after.state[2] >= State.RARE


def test_units_whose_input_is_constant_are_left_out() -> None:
    model = chain()
    with torch.no_grad():
        model[0].bias[[2, 3]] = -50
        model[0].weight[3] = 0
    report = seen(model, X, Restandardize())
    (treatment,), (refusal,) = report.treatments, report.refusals
    assert (treatment.units.tolist(), refusal.units.tolist()) == ([2], [3])
    assert "their pre-activations do not vary" in refusal.reason


def test_a_layer_behind_a_dead_one_has_nothing_to_be_rescaled() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        *(nn.Linear(6, 6), nn.ReLU()), *(nn.Linear(6, 6), nn.ReLU()), nn.Linear(6, 2)
    )
    with torch.no_grad():
        model[0].bias.fill_(-50)
        model[2].bias.fill_(-50)
    report = seen(model, X, Restandardize())
    assert [treatment.site for treatment in report.treatments] == ["1"]
    assert [refusal.site for refusal in report.refusals] == ["3"]
    assert "a dead layer or constant input" in report.refusals[0].reason


def test_a_wholly_dead_layer_passes_on_what_it_gives_unless_quiet_is_insisted_on() -> None:
    for quiet, columns in ((None, True), (True, False)):
        model = chain()
        with torch.no_grad():
            model[0].bias.fill_(-50)
        (treatment,) = seen(model, X, Restandardize(quiet=quiet)).treatments
        assert treatment.quiet is bool(quiet)
        assert bool(model[2].weight.any()) is columns


def test_it_says_what_was_set() -> None:
    model = chain()
    with torch.no_grad():
        model[0].bias[2] = -50
    (treatment,) = seen(model, X, Restandardize()).treatments
    assert treatment.note == "0.weight, 0.bias set for mean 0 and standard deviation 1"


def test_statistics_come_from_training_where_a_norm_evaluates_otherwise() -> None:
    model = chain(nn.BatchNorm1d(6))
    with torch.no_grad():
        model[1].bias[2] = -50
        model[1].running_var.fill_(100)
    with watch(model, Restandardize()) as watching:
        model(X)
        model.eval()
        model(X)
        model.train()
        assert watching.close_window().treatments
    after = seen(model, X)["2"]
    assert after.mean[2] == pytest.approx(0, abs=1e-5)
    assert after.std[2] == pytest.approx(1, abs=1e-5)


def test_quiet_must_be_one_of_three() -> None:
    with pytest.raises(ConfigError, match="quiet is 'yes'; expected True"):
        Restandardize(quiet=cast(bool, "yes"))
