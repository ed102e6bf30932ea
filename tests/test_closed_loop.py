"""γ leaves only as fast as its unit stays open by itself."""

from __future__ import annotations

import math
import re

import numpy as np
import pytest
import torch
from torch import nn

from deadwatch import BiasWarming, Policy, Rules, State, Watch, WindowReport
from deadwatch.treat.remedies.warming import KEEP_OPEN, PATIENCE

UNITS = [0, 1]
CLOSED_LOOP = BiasWarming(schedule="closed-loop", hold=0, anneal=8, quiet=False)


class Ward:
    """Two dead units of eight, standard normal inputs, and a bias that the test moves."""

    def __init__(self, remedy: BiasWarming = CLOSED_LOOP, depth: float = 6.0) -> None:
        torch.manual_seed(0)
        self.model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        with torch.no_grad():
            self.model[0].weight.copy_(torch.eye(4).repeat(2, 1))
            self.model[0].bias.zero_()
            self.model[0].bias[UNITS] = -depth
        self.x = torch.randn(4000, 4)
        optimizer = torch.optim.SGD(self.model.parameters(), lr=0.1)
        policy = Policy(remedy, cooldown=0, when=0.0)
        self.watch = Watch(
            self.model, optimizer=optimizer, policy=policy, rules=Rules(min_samples=1)
        ).attach()
        self.start = self.biases()
        self.window(1)

    def biases(self) -> torch.Tensor:
        return self.model[0].bias[UNITS].detach().clone()

    @property
    def gamma(self) -> torch.Tensor:
        return self.biases() - self.start

    def window(self, steps: int = 2) -> WindowReport:
        for _ in range(steps):
            self.model(self.x)
            self.watch.step()
        return self.watch.close_window()


def test_gamma_stays_while_the_unit_needs_it() -> None:
    ward = Ward()
    gamma = ward.gamma
    assert (gamma > 5).all()
    report = ward.window()
    # Opened on a quarter of the samples, it may sink until 5% are left.
    room = torch.distributions.Normal(0.0, 1.0).icdf(torch.tensor([0.75, 0.95])).diff()
    torch.testing.assert_close(gamma - ward.gamma, room.expand(2), atol=0.08, rtol=0)
    report = ward.window()
    np.testing.assert_allclose(report["1"].open_fraction[UNITS], KEEP_OPEN, atol=0.01)
    ward.watch.detach()  # the rest stays, and the ledger says so
    (entry,) = ward.watch.ledger
    assert re.fullmatch(r"γ up to \d\.?\d* is still in 2 units", entry.told)


def test_gamma_leaves_at_most_at_the_pace_of_anneal() -> None:
    ward = Ward()
    gamma = ward.gamma
    ward.start = ward.start + 20.0
    with torch.no_grad():
        ward.model[0].bias[UNITS] += 20.0  # the units have learned to stand by themselves
    left = []
    for _ in range(5):
        ward.window(2)
        left.append(float((ward.gamma / gamma).mean()))
    assert left == pytest.approx([0.75, 0.5, 0.25, 0.0, 0.0], abs=1e-5)
    torch.testing.assert_close(ward.biases(), ward.start, atol=1e-5, rtol=0)
    ward.watch.detach()  # nothing is held, so nothing is warned of


def test_a_bias_that_nothing_moved_returns_to_its_bits() -> None:
    ward = Ward()
    before = ward.start.clone()
    with torch.no_grad():
        ward.model[0].weight[UNITS] *= 20  # open without γ
    for _ in range(5):
        ward.window(2)
    assert torch.equal(ward.biases(), before)
    ward.watch.detach()


def test_a_unit_that_cannot_do_without_keeps_its_gamma_and_that_is_told() -> None:
    ward = Ward()
    notes: list[str] = []
    for _ in range(PATIENCE + 3):
        notes += ward.window().notes
    assert (ward.gamma > 4).all()
    (note,) = notes
    assert note.startswith("1: γ up to ")
    assert note.endswith(" stays in 2 units")
    (entry,) = ward.watch.ledger
    assert entry.told == note.removeprefix("1: ")
    assert entry.revived == 2  # judged once the course had ended
    ward.watch.detach()


def test_each_unit_goes_at_its_own_pace() -> None:
    ward = Ward()
    with torch.no_grad():
        ward.model[0].bias[0] += 20.0
        ward.start[0] += 20.0
    for _ in range(4):
        ward.window(2)
    assert ward.gamma[0].abs() < 1e-5
    assert ward.gamma[1] > 4
    for _ in range(PATIENCE):
        ward.window(2)
    ward.watch.detach()


def test_nothing_is_taken_out_while_it_is_held() -> None:
    ward = Ward(BiasWarming(schedule="closed-loop", hold=6, anneal=1, quiet=False))
    gamma = ward.gamma
    for _ in range(3):
        ward.window(2)
        assert torch.equal(ward.gamma, gamma)
    ward.window(2)
    assert (ward.gamma < gamma).all()
    for _ in range(PATIENCE + 3):
        ward.window(2)
    ward.watch.detach()


def test_warmed_units_do_not_count_as_revived_while_gamma_is_in() -> None:
    ward = Ward()
    report = ward.window(2)
    assert (report["1"].state[UNITS] == State.ALIVE).all()
    (entry,) = ward.watch.ledger
    assert entry.revived == 0
    assert not entry.judged.any()
    for _ in range(PATIENCE + 3):
        ward.window(2)
    ward.watch.detach()


def test_a_cosine_is_slow_at_both_ends() -> None:
    ward = Ward(BiasWarming(schedule="cosine", hold=0, anneal=10, quiet=False))
    gamma = ward.gamma
    left = []
    for _ in range(10):
        ward.watch.step()
        left.append(float((ward.gamma / gamma).mean()))
    expected = [(1 + math.cos(math.pi * step / 10)) / 2 for step in range(1, 11)]
    assert left == pytest.approx(expected, abs=1e-5)
    ward.watch.detach()
