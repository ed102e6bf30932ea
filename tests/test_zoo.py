"""Advice does not cry wolf: it warns of nothing in healthy, well-known architectures."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import nn

from deadwatch import Finding, advise, scan
from deadwatch.errors import ConfigError, NoSiteWarning
from tests.agreement import one_thread
from tests.table import SETTINGS
from tests.zoo import ZOO, Entry, run


def found_in(entry: Entry, seed: int = 0) -> list[Finding]:
    model = entry.model(seed)
    bare = pytest.warns(NoSiteWarning, match="no activation that can be watched")
    with nullcontext() if entry.sites else bare:
        report = scan(model, entry.batches(1, seed), forward=run)
    assert bool(report) == entry.sites
    return advise(model, report=report, optimizer=entry.optimizer(model.parameters(), entry.lr))


@pytest.mark.parametrize("name", ZOO)
def test_nothing_is_warned_of_in_a_fresh_healthy_architecture(name: str) -> None:
    with one_thread():
        found = found_in(ZOO[name])
    assert not [str(finding) for finding in found if finding.at_least("warning")]


def test_the_zoo_holds_more_than_thirty_with_activations_and_sources() -> None:
    assert sum(entry.sites for entry in ZOO.values()) >= 60
    assert all(entry.source for entry in ZOO.values())


@pytest.mark.parametrize("name", ["LeNet-5", "GPT-2", "ReLU MLP"])
def test_an_entry_is_the_same_each_time_and_another_with_another_seed(name: str) -> None:
    entry = ZOO[name]
    one, same, other = (next(entry.model(seed).parameters()) for seed in (0, 0, 1))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    assert torch.equal(entry.batches()[0].inputs[0], entry.batches()[0].inputs[0])


def test_the_zoo_would_show_a_false_alarm() -> None:
    """The same network with biases of −3 is warned of: the tests above can fail."""
    entry = ZOO["ReLU MLP"]

    def sick() -> torch.nn.Module:
        model = entry.build()
        torch.nn.init.constant_(model[0].bias, -3.0)
        return model

    made = Entry(entry.source, sick, entry.batch)
    assert [finding for finding in found_in(made) if finding.at_least("warning")]


# A ReLU stands before the softmax of this one: it was made to have one.
TRULY_SO = {"leaves-that-are-none": ["DW102"]}


@pytest.mark.filterwarnings("ignore")  # of torch, on what is unusual
def test_networks_by_which_no_threshold_was_set_raise_no_alarm() -> None:
    """The settings by which counting is tested, as they are built; many are not even usual."""
    found: dict[str, list[str]] = {}
    looked_at = 0
    for setting in SETTINGS:
        torch.manual_seed(0)
        batch = setting.batch()
        model = setting.build()
        try:
            report = scan(model, [batch], forward=_called)
        except (RuntimeError, ConfigError, TypeError, KeyError):
            continue  # those that only their own training step can run
        looked_at += 1
        warned = [one.id for one in advise(model, report=report) if one.at_least("warning")]
        found |= {setting.name: warned} if warned else {}
    assert looked_at >= 170
    assert found == TRULY_SO


def _called(model: nn.Module, batch: Any) -> object:
    return model(*batch) if isinstance(batch, tuple) else model(batch)
