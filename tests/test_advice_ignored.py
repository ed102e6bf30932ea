"""Findings that one does not want to hear of are left out, and wrong arguments are refused."""

from __future__ import annotations

from typing import Any

import pytest
from torch import nn
from torch.optim import AdamW

from deadwatch import Finding, Watch, advise, scan
from deadwatch.errors import ConfigError
from tests.advised import by, rows, signals, tdnn
from tests.nets import mlp


def several() -> tuple[nn.Module, dict[str, Any]]:
    model = tdnn(lambda _: nn.ReLU(), nn.BatchNorm1d)
    optimizer = AdamW(model.parameters(), weight_decay=0.1)
    return model, {"optimizer": optimizer, "report": scan(model, [signals() + 9])}


def places(findings: list[Finding]) -> list[tuple[str, tuple[str, ...]]]:
    return [(finding.id, finding.where) for finding in findings]


@pytest.mark.parametrize(
    ("pattern", "left_out"),
    [
        ("DW101", {("DW101", ("1",)), ("DW101", ("4",))}),
        ("DW1*", {("DW101", ("1",)), ("DW101", ("4",))}),
        ("DW101@4", {("DW101", ("4",))}),
        ("DW*@[34]", {("DW101", ("4",))}),
        ("DW4*@0.*", {("DW401", ("0.weight",))}),
        ("DW301@*.bias", set()),
        ("DW301@0.bias", set()),
        ("DW203@nowhere.*", set()),
    ],
)
def test_what_a_pattern_matches_is_left_out_and_nothing_else(
    pattern: str, left_out: set[tuple[str, tuple[str, ...]]]
) -> None:
    model, given = several()
    everything = places(advise(model, **given))
    assert {"DW101", "DW301", "DW401"} <= {name for name, _ in everything}
    left = places(advise(model, **given, ignore=[pattern]))
    assert [one for one in everything if one not in left_out] == left
    assert left_out <= set(everything)


def test_a_finding_at_several_places_is_left_out_if_all_of_them_are() -> None:
    model, given = several()
    (finding,) = by("DW301", advise(model, **given))
    each = [f"DW301@{name}" for name in finding.where]
    assert by("DW301", advise(model, **given, ignore=each[:-1]))
    assert not by("DW301", advise(model, **given, ignore=each))
    assert not by("DW301", advise(model, **given, ignore=["DW301@*.bias", "DW3*@*.weight"]))


@pytest.mark.parametrize("pattern", ["DW999", "dw101", "", "@0.weight", "DW9*@head.*"])
def test_a_pattern_of_no_rule_is_refused_with_all_rules(pattern: str) -> None:
    with pytest.raises(ConfigError, match=r"matches no rule; the rules: DW101, .*DW602"):
        advise(mlp(), ignore=["DW101", pattern])
    with pytest.raises(ConfigError, match="matches no rule"):
        Watch(mlp(), advice=True, ignore=[pattern])


@pytest.mark.parametrize("ignore", ["DW101", [101], [None]])
def test_what_is_no_list_of_patterns_is_refused(ignore: Any) -> None:
    with pytest.raises(ConfigError, match="expected a list of ids of findings, such as"):
        advise(mlp(), ignore=ignore)


def test_wrong_arguments_are_refused_by_name_with_the_way_out() -> None:
    model = mlp()
    with pytest.raises(ConfigError, match=r"model is 'dict'; expected a torch\.nn\.Module"):
        advise(dict(model.state_dict()))
    with pytest.raises(ConfigError, match=r"report is 'dict'; expected the WindowReport that scan"):
        advise(model, report=dict(scan(model, [rows(features=12)])))
    with pytest.raises(ConfigError, match="optimizer"):
        advise(model, optimizer="adam")
    with pytest.raises(ConfigError, match="optimizer"):
        advise(model, optimizer=[model.parameters()])
