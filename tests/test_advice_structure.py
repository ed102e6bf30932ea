"""Rules on structure: each finds what it is for, and leaves alone what is in order."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from deadwatch import Finding, advise, scan
from tests import architectures, table_tokens
from tests.advised import Scorer, advised, by, deep, rows, signals, tdnn, tokens
from tests.nets import mlp

# ── what happens to units before and behind an activation ───────────────────────────────


def trails(model: nn.Module, x: Tensor) -> dict[str, tuple[tuple[str, ...], ...]]:
    return {name: found.site.trails for name, found in scan(model, [x]).items()}


def test_a_site_knows_what_is_applied_before_and_behind_it() -> None:
    model = nn.Sequential(
        *(nn.Conv1d(8, 16, 3), nn.Dropout(0.1), nn.BatchNorm1d(16), nn.ReLU(), nn.MaxPool1d(2)),
        *(nn.Conv1d(16, 4, 3), nn.ReLU()),
    )
    report = scan(model, [signals()])
    assert report["3"].site.path == ("dropout", "batch_norm")
    assert report["3"].site.trails == (("max_pool1d", "conv"),)
    assert report["6"].site.trails == (("return",),)


def test_dropout_that_drops_nothing_is_not_in_the_way() -> None:
    model = nn.Sequential(nn.Linear(6, 8), nn.Dropout(0.0), nn.ReLU(), nn.Linear(8, 2))
    assert scan(model, [rows()])["2"].site.path == ()


def test_all_ways_of_a_skip_connection_are_told() -> None:
    found = trails(architectures.basic_block(), architectures.images())
    assert found["act2"] == (("conv",), ("add", "act3"))
    assert found["act3"] == (("adaptive_avg_pool2d", "linear"),)


def test_a_long_list_of_readers_ends() -> None:
    class Wide(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Linear(6, 4)
            self.heads = nn.ModuleList(nn.Linear(4, 2) for _ in range(3))

        def forward(self, x: Tensor) -> Tensor:
            h = torch.relu(self.first(x))
            out: Tensor = (
                torch.stack([(h * k).cos() for k in range(2, 50)]).sum() + self.heads[0](h).sum()
            )
            return out

    assert 1 < len(trails(Wide(), rows())["relu"]) <= 32


# ── DW101 ───────────────────────────────────────────────────────────────────────────────


def test_an_activation_before_the_norm_is_found() -> None:
    model = tdnn(lambda _: nn.ReLU(), nn.BatchNorm1d)
    assert [f.where for f in by("DW101", advised(model, signals()))] == [("1",), ("4",)]


def test_a_norm_before_the_activation_is_in_order() -> None:
    model = tdnn(nn.BatchNorm1d, lambda _: nn.ReLU())
    assert not by("DW101", advised(model, signals()))
    assert not by("DW101", advised(architectures.basic_block(), architectures.images()))


@pytest.mark.parametrize("norm_first", [False, True])
def test_a_norm_behind_a_residual_sum_is_in_order(norm_first: bool) -> None:
    model = architectures.transformer(norm_first, True)
    assert not by("DW101", advised(model, architectures.tokens()))


def test_an_activation_before_the_norm_is_a_warning_where_its_dead_units_do_harm() -> None:
    model = tdnn(lambda _: nn.ReLU(), nn.BatchNorm1d)
    assert {f.severity for f in by("DW101", advised(model, signals()))} == {"info"}
    with torch.no_grad():
        model.get_parameter("3.bias").sub_(100)
    severities = {f.where[0]: f.severity for f in by("DW101", advised(model, signals()))}
    assert severities == {"1": "info", "4": "warning"}


# ── DW102 ───────────────────────────────────────────────────────────────────────────────


def test_a_relu_right_before_softmax_is_found() -> None:
    (found,) = by("DW102", advised(Scorer(nn.ReLU()), tokens()))
    assert (found.severity, found.where) == ("warning", ("scores.3",))


def test_a_tanh_right_before_softmax_is_only_told() -> None:
    (found,) = by("DW102", advised(Scorer(nn.Tanh()), tokens()))
    assert found.severity == "info"
    assert "bounds the logits" in found.reason


def test_scores_without_an_activation_are_in_order() -> None:
    assert not by("DW102", advised(Scorer(nn.Identity()), tokens()))
    assert not by("DW102", advised(table_tokens.GPT(), table_tokens.gpt_batch()))


def test_a_head_that_ends_in_a_relu_is_found() -> None:
    model = nn.Sequential(nn.Linear(6, 32), nn.ReLU(), nn.Linear(32, 8), nn.ReLU())
    (found,) = by("DW102", advised(model, rows()))
    assert (found.where, found.severity) == (("3",), "info")
    with torch.no_grad():
        model.get_parameter("2.bias")[0] = -100
    report = scan(model, [rows()])
    (found,) = by("DW102", advise(model, report=report))
    assert found.severity == "info"  # before training it may yet open
    assert "1 of its units is dead: always 0" in found.message
    later = replace(report, window=replace(report.window, index=3))
    (found,) = by("DW102", advise(model, report=later))
    assert found.severity == "warning"
    with torch.no_grad():
        model.get_parameter("2.bias")[1] = -100
    (found,) = by("DW102", advised(model, rows()))
    assert found.severity == "warning"  # two of eight


def test_code_for_a_function_at_the_end_names_where_it_is_called() -> None:
    class Head(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.last = nn.Linear(6, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(x).relu()  # type: ignore[no-any-return]

    (found,) = by("DW102", advised(Head(), rows()))
    assert found.code == "# in the forward of the model: softplus, or no activation"


def test_a_head_that_ends_in_a_layer_is_in_order() -> None:
    assert not by("DW102", advised(mlp(), rows(features=12)))


def test_latents_that_are_returned_beside_the_output_are_in_order() -> None:
    class Sparse(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder, self.decoder = nn.Linear(6, 32), nn.Linear(32, 6)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            h = torch.relu(self.encoder(x))
            return self.decoder(h), h

    assert not by("DW102", advised(Sparse(), rows()))


# ── DW103 ───────────────────────────────────────────────────────────────────────────────


def test_a_bias_before_a_norm_is_found() -> None:
    model = tdnn(nn.BatchNorm1d, lambda _: nn.ReLU())
    assert [f.where for f in by("DW103", advised(model, signals()))] == [("0.bias",), ("3.bias",)]


def test_a_layer_without_a_bias_before_a_norm_is_in_order() -> None:
    model = nn.Sequential(
        *(nn.Conv1d(8, 16, 3, bias=False), nn.BatchNorm1d(16), nn.ReLU(), nn.Conv1d(16, 4, 1)),
    )
    assert not by("DW103", advised(model, signals()))
    before_layer_norm = nn.Sequential(nn.Linear(6, 8), nn.LayerNorm(8), nn.ReLU())
    assert not by("DW103", advised(before_layer_norm, rows()))


# ── DW104 ───────────────────────────────────────────────────────────────────────────────


def test_a_deep_narrow_chain_is_likely_born_dead() -> None:
    (found,) = by("DW104", advised(deep(30, 3), rows()))
    assert found.numbers["probability"] == pytest.approx(1 - (1 - 2**-3) ** 30)
    assert found.numbers["layers"] == 30
    assert found.severity != "info"


@pytest.mark.parametrize(
    ("layers", "width", "severity"),
    [(2, 8, None), (3, 8, "info"), (3, 5, "info"), (4, 5, "warning")],
    ids=["0.8%", "1.2%", "9%", "12%"],
)
def test_a_chain_is_told_from_one_percent_on_and_warned_of_from_ten(
    layers: int, width: int, severity: str | None
) -> None:
    found = by("DW104", advised(deep(layers, width)))
    assert [finding.severity for finding in found] == ([severity] if severity else [])


def test_the_bound_on_born_dead_networks_holds() -> None:
    """How often a layer of random networks is closed for one-dimensional data (Lu et al. 2019)."""
    closed = 0
    x = torch.randn(200, 1, generator=torch.Generator().manual_seed(1))
    torch.manual_seed(0)
    for _ in range(300):
        h = x
        for inputs in (1, 2, 2, 2, 2):
            h = torch.relu(h @ torch.randn(inputs, 2))
        closed += bool((h == 0).all())
    model = deep(5, 2, inputs=1)
    (found,) = by("DW104", advised(model, x))
    bound = found.numbers["probability"]
    assert bound == pytest.approx(1 - (1 - 2**-2) ** 5)
    assert closed / 300 <= bound + 3 * math.sqrt(bound * (1 - bound) / 300)
    assert closed / 300 >= 0.6 * bound  # and it is not far off, for data of one dimension


def test_a_layer_that_is_closed_for_all_data_is_an_error() -> None:
    model = deep(4, 4)
    with torch.no_grad():
        model.get_parameter("4.bias").fill_(-100)
    (found,) = by("DW104", advised(model, rows()))
    assert found.severity == "error"
    assert "5 is closed for all data" in found.message


@pytest.mark.parametrize(
    "model",
    [
        deep(4, 64),
        nn.Sequential(*[p for _ in range(9) for p in (nn.Linear(6, 6), nn.LeakyReLU())]),
        nn.Sequential(
            *[p for _ in range(9) for p in (nn.Linear(6, 6), nn.BatchNorm1d(6), nn.ReLU())]
        ),
    ],
    ids=["wide", "leaky", "normed"],
)
def test_wide_leaky_and_normed_chains_are_in_order(model: nn.Module) -> None:
    assert not by("DW104", advised(model, rows()))


def test_a_skip_around_a_narrow_layer_keeps_it_alive() -> None:
    class Residual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList(nn.Linear(4, 4) for _ in range(20))

        def forward(self, x: Tensor) -> Tensor:
            for layer in self.layers:
                x = x + torch.relu(layer(x))
            return x

    assert not by("DW104", advised(Residual(), rows(features=4)))


# ── DW105, DW106 ────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("between", [nn.Dropout(0.2), nn.AvgPool1d(2)], ids=["dropout", "pool"])
def test_what_hides_units_from_their_activation_is_found(between: nn.Module) -> None:
    model = nn.Sequential(nn.Conv1d(8, 16, 3), between, nn.ReLU(), nn.Conv1d(16, 4, 1))
    assert [f.where for f in by("DW105", advised(model, signals()))] == [("2",)]


@pytest.mark.parametrize("behind", [nn.Dropout(0.2), nn.AvgPool1d(2), nn.MaxPool1d(2)])
def test_dropout_and_pooling_behind_the_activation_are_in_order(behind: nn.Module) -> None:
    model = nn.Sequential(nn.Conv1d(8, 16, 3), nn.ReLU(), behind, nn.Conv1d(16, 4, 1))
    assert not by("DW105", advised(model, signals()))


def test_dropout_before_a_batch_norm_is_found() -> None:
    model = nn.Sequential(
        *(nn.Linear(6, 8), nn.Dropout(0.2), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.2)),
        *(nn.BatchNorm1d(8), nn.Linear(8, 2)),
    )
    assert [f.where for f in by("DW106", advised(model, rows()))] == [("3",)]


def test_dropout_behind_the_last_norm_is_in_order() -> None:
    model = nn.Sequential(
        *(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.2), nn.Linear(8, 2)),
    )
    assert not by("DW106", advised(model, rows()))


# ── without running anything ────────────────────────────────────────────────────────────


def ids(findings: list[Finding]) -> list[tuple[str, tuple[str, ...]]]:
    return sorted((f.id, f.where) for f in findings if f.id.startswith("DW1"))


SEQUENCES: dict[str, Callable[[], nn.Sequential]] = {
    "deep": lambda: deep(14, 6),
    "act before norm": lambda: tdnn(lambda _: nn.ReLU(), nn.BatchNorm1d),
    "norm before act": lambda: tdnn(nn.BatchNorm1d, lambda _: nn.ReLU()),
    "dropout between": lambda: tdnn(lambda _: nn.Dropout(0.2), lambda _: nn.ReLU()),
    "nested": lambda: nn.Sequential(tdnn(lambda _: nn.ReLU(), nn.BatchNorm1d), nn.ReLU()),
    "softmax": lambda: nn.Sequential(
        *tdnn(lambda _: nn.ReLU(), lambda _: nn.Dropout()), nn.ReLU(), nn.Softmax(-1)
    ),
}


@pytest.mark.parametrize("name", SEQUENCES)
def test_a_sequence_shows_without_running_what_it_shows_when_it_runs(name: str) -> None:
    model = SEQUENCES[name]()
    x = rows() if name == "deep" else signals()
    assert ids(advised(model)) == ids(advised(model, x))
    assert ids(advised(model))


def test_a_scan_holds_the_advice_if_it_is_asked_for() -> None:
    model = deep(14, 6)
    report = scan(model, [rows()], advice=True)
    assert report.advised
    assert ids(list(report.findings)) == ids(advised(model, rows()))
    plain = scan(model, [rows()])
    assert not plain.advised
    assert not plain.findings


def test_what_is_no_sequence_is_not_guessed_at() -> None:
    assert not [f for f in advised(Scorer(nn.ReLU())) if f.id == "DW102"]
    lazy = nn.Sequential(nn.LazyLinear(4), nn.ReLU(), nn.LazyBatchNorm1d())
    assert not by("DW104", advised(lazy))
