"""Fixes of findings on parameters: what they change and leave alone, and what is refused."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch._C._distributed_c10d import HashStore
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.optim import SGD, AdamW

from deadwatch import Finding, advise
from deadwatch.errors import CannotTreat
from deadwatch.plain import from_plain, to_plain
from tests.advised import (
    Scorer,
    advised,
    by,
    changed,
    deep,
    rows,
    run_code,
    signals,
    tdnn,
    tokens,
    trained,
    values,
)
from tests.nets import mlp


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


# ── biases and weights ──────────────────────────────────────────────────────────────────


def low_biases() -> nn.Sequential:
    model = mlp()
    with torch.no_grad():
        model.get_parameter("2.bias").fill_(-9)
    return model


def test_biases_that_begin_low_are_set_to_zero_and_nothing_else_is() -> None:
    model = low_biases()
    (finding,) = by("DW201", advised(model, rows(features=12)))
    before, parameter = values(model), model.get_parameter("2.bias")
    assert finding.fixable
    assert finding.fix() == "2.bias set to zero"
    assert changed(model, before) == {"2.bias"}
    assert model.get_parameter("2.bias") is parameter
    assert parameter.requires_grad
    assert parameter.grad is None
    assert not parameter.any()
    assert not by("DW201", advised(model, rows(features=12)))


def test_weights_that_do_not_fit_are_drawn_anew_and_nothing_else_is() -> None:
    model = deep(8, 128, inputs=128)
    x = rows(features=128)
    (finding,) = by("DW202", advised(model, x))
    assert finding.where == tuple(f"{2 * i}.weight" for i in range(8))
    before = values(model)
    assert "8 weights drawn anew" in finding.fix()
    assert changed(model, before) == set(finding.where)
    for name in finding.where:
        weight = model.get_parameter(name)
        assert float(weight.detach().std()) == pytest.approx((2 / 128) ** 0.5, rel=0.03)
        assert abs(float(weight.detach().mean())) < 0.01
        assert weight.requires_grad
        assert weight.grad_fn is None
    assert not by("DW202", advised(model, x))


def test_weights_before_selu_are_drawn_with_its_variance() -> None:
    model = nn.Sequential(nn.Linear(128, 128), nn.SELU(), nn.Linear(128, 3))
    (finding,) = by("DW202", advised(model, rows(features=128)))
    finding.fix()
    assert float(model[0].weight.detach().std()) == pytest.approx(128**-0.5, rel=0.03)


# ── what cannot be fixed ────────────────────────────────────────────────────────────────


def unfixable() -> list[Finding]:
    """Findings of rules of every hundred that no fix can be applied for."""
    born = mlp()
    with torch.no_grad():
        born.get_parameter("0.bias")[:12] = -100
    return [
        *advised(tdnn(lambda _: nn.ReLU(), nn.BatchNorm1d), signals()),
        *advised(Scorer(nn.ReLU()), tokens()),
        *advised(born, rows(features=12) + 4),
        *trained(born, SGD(born.parameters(), 0.02), windows=1)[0].findings,
    ]


def test_a_finding_without_a_fix_says_what_to_do_instead() -> None:
    found = [one for one in unfixable() if not one.fixable]
    assert {"DW101", "DW102", "DW203", "DW401", "DW501", "DW601"} <= {one.id for one in found}
    for finding in found:
        way = "paste this instead" if finding.code else "it needs none"
        with pytest.raises(CannotTreat, match=f"{finding.id} cannot be fixed from here.*{way}"):
            finding.fix()


def test_a_finding_that_was_sent_or_saved_has_no_model_to_fix() -> None:
    model = low_biases()
    (finding,) = by("DW201", advised(model, rows(features=12)))
    before = values(model)
    sent = [
        pickle.loads(pickle.dumps(finding)),
        copy.deepcopy(finding),
        from_plain(Finding, to_plain(finding)),
    ]
    for one in sent:
        assert one == finding
        assert not one.fixable
        with pytest.raises(CannotTreat, match=r"or was saved, and has no model\): paste this"):
            one.fix()
    assert not changed(model, before)


def test_a_parameter_that_is_gone_is_missed() -> None:
    model = low_biases()
    (finding,) = by("DW201", advised(model, rows(features=12)))
    model[2] = nn.Linear(16, 16, bias=False)
    with pytest.raises(CannotTreat, match=r"DW201: 2\.bias is no longer a parameter of the model"):
        finding.fix()


def test_a_parameter_that_was_replaced_is_fixed_under_its_name() -> None:
    model = low_biases()
    (finding,) = by("DW201", advised(model, rows(features=12)))
    old, model[2].bias = model[2].bias, nn.Parameter(torch.ones(16))
    finding.fix()
    assert not model[2].bias.any()
    assert bool((old == -9).all())


def test_parts_that_are_compiled_are_fixed_by_their_own_names() -> None:
    model = low_biases()
    model[2] = torch.compile(model[2], backend="eager")
    assert "2._orig_mod.bias" in dict(model.named_parameters())
    optimizer = AdamW(model.parameters(), weight_decay=0.1)
    (finding,) = by("DW301", advise(model, optimizer=optimizer))
    assert "2.bias" in finding.where
    finding.fix()
    assert not by("DW301", advise(model, optimizer=optimizer))
    (low,) = by("DW201", advised(model, rows(features=12)))
    assert low.where == ("2.bias",)
    run_code(low, model)
    assert not model.get_parameter("2._orig_mod.bias").any()
    with torch.no_grad():
        model.get_parameter("2._orig_mod.bias").fill_(-9)
    low.fix()
    assert not model.get_parameter("2._orig_mod.bias").any()


def test_advice_on_a_model_with_compiled_parts_is_that_on_the_model() -> None:
    model, x = deep(8, 32, inputs=12), rows(features=12) + 4
    with torch.no_grad():
        model.get_parameter("4.bias")[:9] = -99
    before = {str(finding) for finding in advised(model, x)}
    assert any(one.startswith("DW202") for one in before)
    model[4] = torch.compile(model[4], backend="eager")
    assert {str(finding) for finding in advised(model, x)} == before
    (gain,) = by("DW202", advised(model, x))
    gain.fix()
    assert not by("DW202", advised(model, x))


def test_sharded_parameters_are_not_drawn_anew() -> None:
    model = low_biases()
    (finding,) = by("DW201", advised(model, rows(features=12)))
    dist.init_process_group("gloo", rank=0, world_size=1, store=HashStore())
    try:
        fully_shard(model, mesh=init_device_mesh("cpu", (1,)))
        with pytest.raises(CannotTreat, match=r"2\.bias is sharded; initialise it before sharding"):
            finding.fix()
    finally:
        dist.destroy_process_group()
