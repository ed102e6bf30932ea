"""Weight decay taken off biases and norms, in a new optimizer or in one that exists."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from deadwatch.errors import CannotTreat, ConfigError
from deadwatch.treat.optim import OptimizerState
from deadwatch.treat.remedies.no_bias_decay import NoBiasDecay


class Mixed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(7, 4)
        self.up = nn.Linear(4, 4)
        self.slope = nn.PReLU()
        self.norm = nn.LayerNorm((3, 4))  # its scale has two axes
        self.channels = nn.BatchNorm1d(3)
        self.attention = nn.MultiheadAttention(4, 2)
        self.wide_bias = nn.Parameter(torch.zeros(1, 4))
        self.head = nn.Linear(4, 7)
        self.head.weight = self.embed.weight
        self.up.weight.requires_grad_(False)


DECAYED = ["embed.weight", "up.weight", "attention.in_proj_weight", "attention.out_proj.weight"]


def test_biases_norms_and_slopes_are_spared_and_the_rest_is_not() -> None:
    model = Mixed()
    names = {id(p): name for name, p in model.named_parameters()}
    spared = [names[id(p)] for p in NoBiasDecay().parameters(model)]
    assert sorted([*spared, *DECAYED]) == sorted(names.values())


def test_groups_hold_every_parameter_once_with_its_name() -> None:
    model = Mixed()
    optimizer = torch.optim.AdamW(NoBiasDecay().groups(model, weight_decay=0.3), lr=1e-3)
    decays, spared = optimizer.param_groups
    assert (decays["weight_decay"], spared["weight_decay"]) == (0.3, 0.0)
    assert decays["param_names"] == DECAYED
    held = [id(p) for group in (decays, spared) for p in group["params"]]
    assert sorted(held) == sorted(id(p) for p in model.parameters())
    names = [name for group in (decays, spared) for name in group["param_names"]]
    found = dict(model.named_parameters())
    assert [id(found[name]) for name in names] == held


def test_a_frozen_parameter_keeps_its_place() -> None:
    model = nn.Linear(2, 2)
    thawed = [[n for n, _ in group["params"]] for group in NoBiasDecay().groups(model)]
    model.requires_grad_(False)
    frozen = [[n for n, _ in group["params"]] for group in NoBiasDecay().groups(model)]
    assert frozen == thawed == [["weight"], ["bias"]]


def test_an_empty_group_is_left_out() -> None:
    (group,) = NoBiasDecay().groups(nn.Linear(2, 2, bias=False), weight_decay=0)
    assert group["weight_decay"] == 0


@pytest.mark.parametrize("decay", [-0.1, "0.1", True, float("nan")])
def test_a_bad_decay_is_refused(decay: float) -> None:
    with pytest.raises(ConfigError, match=r"weight_decay is .*; expected a number of 0 or more"):
        NoBiasDecay().groups(nn.Linear(2, 2), weight_decay=decay)


def test_a_lazy_parameter_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"0\.weight has no shape yet.*run one forward first"):
        NoBiasDecay().parameters(nn.Sequential(nn.LazyLinear(2)))


def test_a_live_optimizer_keeps_its_groups_and_its_biases() -> None:
    model = Mixed()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.5)
    note = NoBiasDecay().apply(model, OptimizerState([optimizer]))
    assert (
        note
        == f"no weight decay on {len(NoBiasDecay().parameters(model))} biases, norms and slopes"
    )
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter) if parameter.requires_grad else None
    optimizer.step()
    moved = [n for n, p in model.named_parameters() if not torch.equal(p, before[n])]
    assert moved == [name for name in DECAYED if name != "up.weight"]
    assert len(optimizer.param_groups) == 1


def test_a_model_with_nothing_to_spare_is_refused() -> None:
    model = nn.Linear(2, 2, bias=False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(CannotTreat, match="the model has no biases, norms or slopes"):
        NoBiasDecay().apply(model, OptimizerState([optimizer]))


def test_decay_revives_a_unit_that_a_negative_bias_has_closed() -> None:
    """Why it is a choice: it cuts both ways."""
    closed = []
    for spared in (False, True):
        layer = nn.Linear(2, 1)
        nn.init.constant_(layer.weight, 1.0)
        nn.init.constant_(layer.bias, -3.0)
        optimizer = torch.optim.SGD(layer.parameters(), lr=0.1, weight_decay=0.5)
        if spared:
            NoBiasDecay().apply(layer, OptimizerState([optimizer]))
        for _ in range(50):
            optimizer.zero_grad()
            torch.relu(layer(torch.tensor([[0.5, 0.5]]))).sum().backward()
            optimizer.step()
        closed.append(layer.bias.item() <= -3.0)
    assert closed == [False, True]
