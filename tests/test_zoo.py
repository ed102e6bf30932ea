"""Advice does not cry wolf: it warns of nothing in healthy, well-known architectures."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch

from deadwatch import Finding, advise, scan
from deadwatch.errors import NoSiteWarning
from tests.agreement import one_thread
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
