"""What layers are given, and the rows of their weights, against plain formulas."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from deadwatch import Watch, WindowReport, scan
from deadwatch.observe.inputs import centre_of
from deadwatch.observe.rows import COLUMNS
from deadwatch.records import Gauges, LayerInput, Rows
from tests import nets


def gauges_of(report: WindowReport) -> Gauges:
    assert type(report.gauges) is Gauges
    return report.gauges


def by_scan(model: nn.Module, *batches: Any) -> Gauges:
    return gauges_of(scan(model, batches))


def by_watch(model: nn.Module, *batches: Any) -> Gauges:
    with Watch(model, advice=True) as watch:
        for x in batches:
            model(x)
            watch.step()
        return gauges_of(watch.close_window())


LOOKS = [by_scan, by_watch]
Look = Callable[..., Gauges]

# ── inputs ──────────────────────────────────────────────────────────────────────────────────


def plain_centre(x: Tensor, axis: int) -> float:
    flat = x.detach().double().movedim(axis, -1).reshape(-1, x.shape[axis]).numpy()
    spread = np.linalg.norm(flat.std(0))
    return float(np.linalg.norm(flat.mean(0)) / spread) if spread else math.inf


def assert_inputs(found: Gauges, expected: dict[str, tuple[Tensor, int, bool]]) -> None:
    assert found.inputs.keys() == expected.keys()
    for name, (x, axis, raw) in expected.items():
        one, features = found.inputs[name], x.shape[axis]
        assert (one.features, one.samples, one.raw) == (features, x.numel() // features, raw), name
        assert one.centre == pytest.approx(plain_centre(x, axis), rel=1e-4), name


@pytest.mark.parametrize("look", LOOKS)
def test_inputs_of_linear_layers_and_convolutions_are_those_of_plain_formulas(look: Look) -> None:
    torch.manual_seed(0)
    mlp = nets.mlp()
    x = torch.randn(20, 12) * 3 + 100
    h = mlp[:2](x)
    expected = {"0.weight": (x, 1, True), "2.weight": (h, 1, False)}
    assert_inputs(look(mlp, x), expected | {"4.weight": (mlp[:4](x), 1, False)})
    for n in (1, 2, 3):
        conv, x = nets.conv(n), nets.images(n) + 2
        expected = {"0.weight": (x, 1, True), "4.weight": (conv[:4](x), 1, False)}
        assert_inputs(look(conv, x), expected | {"6.weight": (conv[:6](x), 1, False)})
    tokens, x = nets.Tokens(), torch.randn(2, 5, 8)
    hidden = tokens.act(tokens.up(tokens.norm(x)))
    expected = {"up.weight": (tokens.norm(x), -1, False), "down.weight": (hidden, -1, False)}
    assert_inputs(look(tokens, x), expected)


def test_of_several_forwards_the_latest_that_is_followed_stays() -> None:
    torch.manual_seed(0)
    model = nets.mlp()
    with Watch(model, advice=True) as watch:
        found, batches = [], [torch.randn(20, 12) + 10 * window for window in range(4)]
        for x in batches:
            model(x)
            model(x * 0)  # not followed any more
            watch.step()
            found.append(gauges_of(watch.close_window()).inputs["0.weight"].centre)
    followed = [0, 1, 2, 2]  # forwards are followed in windows 1, 2, 4 …
    assert found == pytest.approx([plain_centre(batches[at], 1) for at in followed], rel=1e-4)


class Sources(nn.Module):
    """Layers that are given all sorts of things."""

    def __init__(self) -> None:
        super().__init__()
        names = ("scaled", "shifted", "noisy", "again", "embedded", "normed", "weighed", "strange")
        self.layers = nn.ModuleDict({name: nn.Linear(4, 4) for name in (*names, "detached")})
        self.table = nn.Embedding(7, 4)
        self.norm = nn.BatchNorm1d(4, affine=False)
        self.scale = nn.Parameter(torch.ones(4))
        self.register_buffer("mean", torch.ones(4))

    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        x = batch["x"]
        given = {
            "scaled": (x / 255).flatten(1).float(),
            "shifted": x - self.mean,
            "noisy": x + torch.randn_like(x),
            "again": torch.cat([x, x])[:3],
            "embedded": self.table(batch["tokens"]),
            "normed": self.norm(x),
            "weighed": x * self.scale,
            "strange": torch.from_numpy(x.numpy() * 2),  # which no function mode sees
        }
        h = sum(F.relu(self.layers[name](one)).mean() for name, one in given.items())
        out: Tensor = self.layers["detached"]((h * x).detach().relu())
        return out


@pytest.mark.parametrize("look", LOOKS)
def test_raw_is_what_comes_from_no_layer(look: Look) -> None:
    torch.manual_seed(0)
    batch = {"x": torch.randn(9, 4), "tokens": torch.randint(7, (9,))}
    model = Sources()
    found = look(model, (batch,) if look is by_scan else batch)
    raw = {name.split(".")[1] for name, one in found.inputs.items() if one.raw}
    assert len(found.inputs) == len(model.layers)
    assert raw == {"scaled", "shifted", "noisy", "again"}


def test_what_a_layer_of_another_forward_made_is_not_raw() -> None:
    first, second = nets.mlp(), nn.Sequential(nn.Linear(5, 3), nn.ReLU())
    with Watch(second, advice=True) as watch:
        second(first(nets.vectors()))
        watch.step()
        assert not gauges_of(watch.close_window()).inputs["0.weight"].raw


def test_where_nothing_varies_the_centre_is_infinite() -> None:
    for x in (torch.full((50, 3), 0.1), torch.zeros(8, 3), torch.randn(1, 3), torch.randn(3)):
        assert float(centre_of(x, -1)) == math.inf
        assert float(centre_of(x.half(), -1)) == math.inf
    assert float(centre_of(torch.randn(50, 3) * 1e-3 + 100, -1)) < 1e6
    assert math.isnan(float(centre_of(torch.tensor([[math.nan], [1.0]]), -1)))


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_inputs_that_are_no_numbers_are_left_out(value: float) -> None:
    x = torch.randn(20, 12)
    x[3, 4] = value
    assert "0.weight" not in by_scan(nets.mlp(), x).inputs


def test_complex_and_empty_inputs_are_left_out() -> None:
    class Spectral(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.mix = nn.Linear(4, 4, dtype=torch.complex64)
            self.act, self.last = nn.ReLU(), nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.last(self.act(self.mix(x.to(torch.complex64)).real)[:0])
            return out

    assert not by_scan(Spectral(), torch.randn(6, 4)).inputs


def test_names_are_those_without_what_compiling_adds() -> None:
    model = nets.mlp()
    inner = nn.Sequential(torch.compile(model, backend="eager"), nn.ReLU())
    found = by_watch(inner, nets.vectors())
    assert "0.0.weight" in found.inputs
    inputs = found.inputs["0.0.weight"]
    assert isinstance(inputs, LayerInput)
    assert inputs.features == 12


# ── rows ────────────────────────────────────────────────────────────────────────────────────


def assert_rows(found: Rows, rows: Tensor, bias: Tensor | None, normed: bool = False) -> None:
    """Rows are (C, F); the sketch keeps distances, on the average."""
    flat = rows.detach().double().flatten(1).numpy()
    none = np.full(len(flat), np.nan)
    np.testing.assert_allclose(found.bias, none if bias is None else bias.detach().numpy(), 1e-6)
    np.testing.assert_allclose(found.size, np.linalg.norm(flat, axis=1), 1e-5)
    assert found.normed is normed
    assert found.sketch.shape[0] == len(flat)
    assert found.bias.dtype == found.size.dtype == found.sketch.dtype == np.float64


def distances(rows: Any) -> Any:
    flat = torch.as_tensor(rows).detach().double().flatten(1)
    return torch.pdist(flat).square()


def test_rows_of_a_linear_layer_and_its_sketch() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(40, 60), nn.ReLU(), nn.Linear(60, 2, bias=False), nn.ReLU())
    with torch.no_grad():
        model[0].weight[1] = model[0].weight[0]
    found = by_scan(model, torch.randn(3, 40)).rows
    assert_rows(found["1"], model[0].weight, model[0].bias)
    assert_rows(found["3"], model[2].weight, None)
    sketch = found["1"].sketch
    assert sketch.shape == (60, COLUMNS)
    np.testing.assert_array_equal(sketch[0], sketch[1])
    ratios = distances(sketch)[1:] / distances(model[0].weight)[1:]
    # Of J columns the relative deviation of a squared distance is √(2 / J), 0.35 for 16.
    assert float(ratios.mean()) == pytest.approx(1, abs=0.15)
    assert float(ratios.std()) == pytest.approx(math.sqrt(2 / COLUMNS), abs=0.12)
    assert float(ratios.min()) > 0.1


def test_rows_of_convolutions_of_every_layout() -> None:
    torch.manual_seed(0)
    layers = [
        nn.Conv2d(4, 8, 3),
        nn.Conv2d(4, 8, 3, groups=2, bias=False),
        nn.Conv2d(4, 4, 3, groups=4).to(memory_format=torch.channels_last),
        nn.ConvTranspose2d(4, 8, 3),
        nn.ConvTranspose2d(4, 8, 3, groups=2),
    ]
    for layer in layers:
        model = nn.Sequential(layer, nn.ReLU())
        x = torch.randn(2, 4, 6, 6)
        found = by_scan(model, x).rows["1"]
        weight: Any = layer.weight
        if isinstance(layer, nn.ConvTranspose2d):
            each = layer.in_channels // layer.groups
            groups = [weight[g * each : (g + 1) * each] for g in range(layer.groups)]
            weight = torch.stack([g[:, i] for g in groups for i in range(8 // layer.groups)])
        assert_rows(found, weight, layer.bias)
        assert float((distances(found.sketch) / distances(weight)).mean()) == pytest.approx(
            1, abs=0.3
        )


def test_rows_behind_norms() -> None:
    torch.manual_seed(0)
    norms = [nn.BatchNorm1d(6), nn.BatchNorm1d(6, affine=False), nn.LayerNorm(6)]
    for norm in norms:
        for parameter in norm.parameters():
            nn.init.normal_(parameter)
        linear = nn.Linear(5, 6)
        found = by_watch(nn.Sequential(linear, norm, nn.ReLU()), torch.randn(9, 5)).rows["2"]
        batch = isinstance(norm, nn.BatchNorm1d)
        gamma = torch.ones(6) if norm.weight is None else norm.weight
        assert_rows(found, gamma[:, None], norm.bias, normed=batch)
        if batch:
            np.testing.assert_allclose(found.sketch, gamma.detach().numpy()[:, None])
        else:
            rows = gamma[:, None] * F.normalize(linear.weight, dim=1)
            assert float((distances(found.sketch) / distances(rows)).mean()) == pytest.approx(
                1, abs=0.3
            )


class Halves(nn.Module):
    """Each half of a layer's units has an activation of its own; then two layers are summed."""

    def __init__(self) -> None:
        super().__init__()
        self.both, self.one, self.other = nn.Linear(5, 8), nn.Linear(4, 3), nn.Linear(4, 3)
        self.act, self.gate, self.sum = nn.ReLU(), nn.Sigmoid(), nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.both(x).chunk(2, -1)
        h = self.act(a) * self.gate(b)
        out: Tensor = self.sum(self.one(h) + self.other(h))
        return out


def test_rows_of_slices_are_their_own_and_summands_are_left_out() -> None:
    model = Halves()
    found = by_scan(model, torch.randn(6, 5)).rows
    assert found.keys() == {"act", "gate"}
    assert_rows(found["act"], model.both.weight[:4], model.both.bias[:4])
    assert_rows(found["gate"], model.both.weight[4:], model.both.bias[4:])


def test_sketches_are_the_same_in_every_run_and_draw_nothing() -> None:
    model, x = nets.mlp(), nets.vectors()
    sketches = []
    for seed in range(2):
        torch.manual_seed(seed)
        before = torch.random.get_rng_state()
        sketches.append(by_watch(model, x).rows["1"].sketch)
        assert torch.equal(torch.random.get_rng_state(), before)
    np.testing.assert_array_equal(*sketches)


def test_rows_under_autocast_and_in_half_precision_are_those_of_the_weights() -> None:
    model = nets.mlp()
    with torch.autocast("cpu", torch.bfloat16):
        found = by_watch(model, nets.vectors()).rows
    np.testing.assert_array_equal(
        found["1"].sketch, by_scan(model, nets.vectors()).rows["1"].sketch
    )
    half = nets.mlp().bfloat16()
    rows = by_scan(half, nets.vectors().bfloat16()).rows["1"]
    assert_rows(rows, half[0].weight, half[0].bias.float())
