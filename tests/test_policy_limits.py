"""Whom a policy treats: evidence, worth, limits, and a control group."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from deadwatch import (
    BiasWarming,
    ConfigError,
    DeadwatchError,
    NoBiasDecay,
    Policy,
    PositiveBias,
    Recycle,
    Remedy,
    Revive,
    Rules,
    SiteReport,
    State,
    Swap,
    Watch,
    WindowReport,
)
from deadwatch.records import Bools
from deadwatch.treat.ledger import CONTROL
from deadwatch.treat.policy import DORMANT
from tests.clinic import DEAD, Patient, changed
from tests.test_policy import Idle, treated, windows

# ── worth it ────────────────────────────────────────────────────────────────────────────────


class Wide:
    """A layer of the given width with some dead units, and its verdict under the defaults."""

    def __init__(self, width: int, dead: int, **policy: Any) -> None:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(8, width), nn.ReLU(), nn.Linear(width, 2))
        with torch.no_grad():
            model[0].bias[:dead] = -99
        self.before = model[0].weight.detach().clone()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        policy = Policy(Recycle(), **policy)
        with Watch(model, optimizer=optimizer, policy=policy) as watch:
            model(torch.randn(400, 8))
            self.report = watch.close_window()
        self.after = model[0].weight.detach()


@pytest.mark.parametrize(
    ("width", "dead", "harmful"),
    [
        (16, 1, False),
        (16, 2, True),
        (70, 6, False),  # 64 are left
        (71, 8, True),
        (256, 64, False),
        (256, 77, True),
        (256, 0, False),
    ],
)
def test_by_default_only_harmful_deaths_are_treated(width: int, dead: int, harmful: bool) -> None:
    wide = Wide(width, dead)
    assert wide.report["1"].harmful is harmful
    assert bool(wide.report.treatments) is harmful
    assert torch.equal(wide.before, wide.after) is not harmful


def test_what_is_left_alone_is_said_in_the_report() -> None:
    (note,) = Wide(256, 20).report.notes
    assert note == "1: 20 of 256 units are dead and left alone; measurement finds no harm in that"
    assert not Wide(256, 0).report.notes
    assert not Wide(256, 20, when=0.05).report.notes


# ── evidence ────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("measure", ["dead", "saturated", "dormant"])
def test_rare_units_are_never_treated(measure: Any) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(1, 8), nn.ReLU(), nn.Linear(8, 2))
    with torch.no_grad():
        model[0].weight.fill_(1.0)
        model[0].bias.copy_(torch.tensor([-0.995, *[0.0] * 7]))
    idle = Idle()
    policy = Policy(idle, when=0.0, measure=measure)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with Watch(model, optimizer=optimizer, policy=policy) as watch:
        model(torch.linspace(0, 1, 1000)[:, None])
        report = watch.close_window()
    assert report["1"].state[0] == State.RARE
    assert report["1"].dormancy[0] <= DORMANT
    assert not idle.seen


def test_units_without_enough_samples_are_not_treated() -> None:
    patient = Patient.of()  # 20 samples
    watch = Watch(
        patient.model, optimizer=patient.optimizer, policy=Policy(Idle(), when=0.0), include="1"
    )
    assert treated(windows(patient, watch, 14)) == [""] * 14
    assert treated(windows(patient, watch, 2)) == ["Idle", ""]  # 300 elements are in


# ── what is measured ────────────────────────────────────────────────────────────────────────


def test_saturated_units_are_treated_where_that_is_asked_for() -> None:
    patient = Patient.of(act=nn.Sigmoid, depth=60.0)
    idle = Idle()
    assert treated(windows(patient, patient.watch(idle, when=0.1), 1)) == [""]
    watch = patient.watch(idle, when=0.1, measure="saturated")
    assert treated(windows(patient, watch, 1)) == ["Idle"]
    assert idle.seen == [DEAD]


def test_dormant_units_are_treated_where_that_is_asked_for() -> None:
    patient = Patient.of(dead=[])
    with torch.no_grad():
        patient.model[0].weight[5] *= 1e-3
        patient.model[0].bias[5] = 1e-4
    idle = Idle()
    assert treated(windows(patient, patient.watch(idle, when=0.01), 1)) == [""]
    watch = patient.watch(idle, when=0.01, measure="dormant")
    assert treated(windows(patient, watch, 1)) == ["Idle"]
    assert idle.seen == [[5]]


def test_the_ratio_may_be_that_of_the_model() -> None:
    def seen(**policy: Any) -> list[list[int]]:
        patient = Patient.of()
        with torch.no_grad():
            patient.model[2].bias[:8] = -99
        idle = Idle()
        watch = Watch(
            patient.model,
            optimizer=patient.optimizer,
            policy=Policy(idle, **policy),
            rules=Rules(min_samples=1),
        )
        windows(patient, watch, 1)
        return idle.seen

    # 3 of 16 and 8 of 16: 11 of 32 in the model
    assert seen(when=0.3) == [list(range(8))]
    assert seen(when=0.3, scope="model") == [DEAD, list(range(8))]
    assert seen(when=0.4, scope="model") == []


# ── limits ──────────────────────────────────────────────────────────────────────────────────


def test_a_budget_bounds_how_many_are_treated_at_once() -> None:
    patient = Patient.of(dead=list(range(8)))
    idle = Idle()
    with patient.watch(idle, budget=0.2, cooldown=0, per_unit=1) as watch:
        for _ in range(4):
            patient.model(patient.x)
            watch.step()
            watch.close_window()
    assert [len(units) for units in idle.seen] == [3, 3, 2]
    assert sorted(unit for units in idle.seen for unit in units) == list(range(8))


def test_of_more_units_than_the_budget_the_longest_dead_come_first() -> None:
    patient = Patient.of(dead=[9])
    idle = Idle()
    with patient.watch(idle, budget=0.01, when=0.1, cooldown=0) as watch:
        patient.model(patient.x)
        watch.close_window()
        with torch.no_grad():
            patient.model[0].bias[[2, 3]] = -99
        patient.model(patient.x)
        watch.close_window()
    assert idle.seen == [[9]]


def test_a_unit_is_treated_no_more_often_than_it_may() -> None:
    patient = Patient.of()
    watch = patient.watch(Idle(), per_unit=2, cooldown=0)
    assert treated(windows(patient, watch, 4)) == ["Idle", "Idle", "", ""]


def test_warmup_and_until_bound_the_steps() -> None:
    def steps(total: int | None = None, **policy: Any) -> list[int]:
        patient = Patient.of()
        watch = Watch(
            patient.model,
            optimizer=patient.optimizer,
            policy=Policy(Idle(), when=0.0, cooldown=0, **policy),
            rules=Rules(min_samples=1),
            include="1",
            total_steps=total,
        )
        reports = windows(patient, watch, 6)
        return [index for index, report in enumerate(reports, 1) if report.treatments]

    assert steps(warmup=3) == [3, 4, 5, 6]
    assert steps(until=2) == [1, 2]
    assert steps(total=6, until=0.5) == [1, 2, 3]
    assert steps(until=0) == []


def test_a_share_of_an_unknown_run_is_refused() -> None:
    patient = Patient.of()
    with pytest.raises(ConfigError, match=r"until is 0.5, a share of the run.*total_steps=\.\.\."):
        patient.watch(Recycle(), until=0.5)


# ── control group ───────────────────────────────────────────────────────────────────────────


def test_a_control_group_is_followed_and_never_touched() -> None:
    patient = Patient.of(dead=list(range(12)))
    before = patient.tensors()["0.weight"]
    torch.manual_seed(3)
    with patient.watch(Recycle(), control=0.4, cooldown=0) as watch:
        for _ in range(3):
            patient.model(patient.x)
            watch.step()
            watch.close_window()
        after = patient.tensors()["0.weight"]
        entries = list(watch.ledger)
        outcomes = {outcome.remedy: outcome for outcome in watch.ledger.outcomes}
    control = [entry for entry in entries if entry.treatment.remedy == CONTROL]
    assert len(control) == 1
    untouched = control[0].treatment.units
    assert 1 < len(untouched) < 11
    assert torch.equal(after[untouched], before[untouched])
    dead = set(range(12)) - set(untouched.tolist())
    assert not (after[list(dead)] == before[list(dead)]).any()
    assert outcomes[CONTROL].still_dead == len(untouched)
    assert outcomes[CONTROL].written == 0
    assert outcomes["Recycle"].revived == len(dead)
    assert outcomes["Recycle"].written > 0


def test_a_unit_that_comes_back_by_itself_is_credited_to_the_control_group() -> None:
    patient = Patient.of(dead=list(range(12)))
    torch.manual_seed(3)
    with patient.watch(Idle(), control=0.4) as watch:
        patient.model(patient.x)
        watch.close_window()
        with torch.no_grad():
            patient.model[0].bias[:12] = 1.0
        patient.model(patient.x)
        watch.close_window()
        outcomes = {outcome.remedy: outcome for outcome in watch.ledger.outcomes}
    assert outcomes[CONTROL].revived == outcomes[CONTROL].units > 0
    assert outcomes["Idle"].revived == outcomes["Idle"].units > 0


def test_a_later_treatment_is_not_credited_to_the_first() -> None:
    patient = Patient.of()
    with patient.watch(Idle("first"), Recycle(), cooldown=0) as watch:
        for _ in range(3):
            patient.model(patient.x)
            watch.step()
            watch.close_window()
        first, second = watch.ledger.outcomes
    assert (first.revived, first.still_dead) == (0, 3)
    assert (second.revived, second.still_dead) == (3, 0)


# ── prevention ──────────────────────────────────────────────────────────────────────────────


def test_a_positive_bias_is_added_once_to_every_unit() -> None:
    patient = Patient.of(dead=[])
    before = patient.tensors()
    watch = Watch(
        patient.model,
        optimizer=patient.optimizer,
        policy=Policy(Recycle(), prevent=[PositiveBias(0.1)]),
    )
    with watch:
        for _ in range(3):
            patient.model(patient.x)
            watch.step()
        report = watch.close_window()
    after = patient.tensors()
    for name in ("0.bias", "2.bias"):
        torch.testing.assert_close(after[name], before[name] + 0.1)
    for name in ("0.weight", "2.weight", "4.weight", "4.bias"):
        assert torch.equal(after[name], before[name])
    assert report.notes == ("PositiveBias on 1: 0.1 on 0.bias", "PositiveBias on 3: 0.1 on 2.bias")


def test_a_preventive_that_does_not_apply_says_why() -> None:
    patient = Patient.of(act=nn.Tanh, dead=[])
    policy = Policy(Recycle(), prevent=PositiveBias())
    with Watch(patient.model, optimizer=patient.optimizer, policy=policy) as watch:
        patient.model(patient.x)
        watch.step()
        report = watch.close_window()
    assert report.notes[0] == "PositiveBias refused on 1: Tanh does not close towards low inputs"


@pytest.mark.parametrize(
    "remedy", [BiasWarming(gamma=1.0, quiet=False), Swap(anneal=9, quiet=False)], ids=str
)
def test_a_remedy_that_ends_by_itself_is_no_preventive(remedy: Remedy) -> None:
    """What it gives for a while would stay for good."""
    patient = Patient.of(dead=[])
    before = patient.tensors()
    with patient.watch(Recycle(), prevent=remedy) as watch:
        patient.model(patient.x)
        watch.step()
        report = watch.close_window()
    assert report.notes[0].startswith(f"{remedy.name} refused on 1: it takes time")
    assert not changed(before, patient.tensors())


def test_no_bias_decay_lasts_while_the_watch_is_attached() -> None:
    def bias_after(prevent: bool) -> torch.Tensor:
        patient = Patient.of(dead=[], optimizer=lambda p: torch.optim.SGD(p, 0.1, weight_decay=0.5))
        preventives = [NoBiasDecay()] if prevent else []
        policy = Policy(Recycle(), prevent=preventives)
        with Watch(patient.model, optimizer=patient.optimizer, policy=policy) as watch:
            patient.model(patient.x)
            watch.step()
            before = patient.tensors()
            for parameter in patient.model.parameters():
                parameter.grad = torch.zeros_like(parameter)
            patient.optimizer.step()
            told = watch.close_window().notes
        assert len(told) == prevent
        assert not patient.optimizer._optimizer_step_pre_hooks
        after = patient.tensors()
        assert not torch.equal(after["0.weight"], before["0.weight"])
        return after["0.bias"] / before["0.bias"]

    torch.testing.assert_close(bias_after(True), torch.ones(16))
    torch.testing.assert_close(bias_after(False), torch.full((16,), 0.95))


# ── a policy of one's own ───────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class OldOnes(Policy):
    """Treats what has been dead for long, however few they are."""

    samples: int = 50

    def due(self, site: SiteReport, window: WindowReport) -> Bools:
        long: Bools = site.age >= self.samples
        return site.dead & long


def test_a_policy_of_your_own_decides_which_units() -> None:
    patient = Patient.of()
    idle = Idle()
    watch = Watch(
        patient.model,
        optimizer=patient.optimizer,
        policy=OldOnes(idle, cooldown=0),
        rules=Rules(min_samples=1),
        include="1",
    )
    assert treated(windows(patient, watch, 4)) == ["", "", "Idle", ""]
    assert idle.seen == [DEAD]


@pytest.mark.parametrize("answer", [[0, 1, 2], [True] * 3, None])
def test_a_policy_that_names_no_units_is_told(answer: Any) -> None:
    """Indices would be read as booleans, and other units be treated."""

    class Indices(Policy):
        def due(self, site: SiteReport, window: WindowReport) -> Any:
            return answer

    patient = Patient.of()
    watch = Watch(patient.model, optimizer=patient.optimizer, policy=Indices(Idle()), include="1")
    with watch:
        patient.model(patient.x)
        with pytest.raises(DeadwatchError, match="one boolean for each of the 16 units of 1"):
            watch.close_window()


# ── revive ──────────────────────────────────────────────────────────────────────────────────


def test_revive_warms_the_shallow_and_recycles_the_deep() -> None:
    patient = Patient.of(depth=30.0)
    with torch.no_grad():
        z = patient.model[0](patient.x)
        patient.model[0].bias[DEAD[0]] -= z[:, DEAD[0]].max() + 0.05
        before = patient.model(patient.x)
    report, watch = patient.treated(Revive(shallow=2.0))
    assert {t.remedy: t.units.tolist() for t in report.treatments} == {
        "BiasWarming": [DEAD[0]],
        "Recycle": DEAD[1:],
    }
    assert all(treatment.quiet for treatment in report.treatments)
    assert not report.refusals
    torch.testing.assert_close(patient.model(patient.x), before)
    patient.model(patient.x)
    assert (watch.peek()["1"].state[DEAD] >= State.RARE).all()
    watch.detach()


def test_revive_tells_why_nothing_took_a_unit() -> None:
    patient = Patient.of()
    patient.model[0].weight.requires_grad_(False)
    patient.model[0].bias.requires_grad_(False)
    report, watch = patient.treated(Revive())
    watch.detach()
    assert not report.treatments
    assert {refusal.remedy for refusal in report.refusals} == {
        *("BiasWarming", "Recycle", "Restandardize")
    }
    assert all("frozen" in refusal.reason for refusal in report.refusals)
    assert all(refusal.units.tolist() == DEAD for refusal in report.refusals)


def test_controls_are_the_same_units_all_along() -> None:
    """And on every rank: they depend on the seed and the site alone."""
    patient = Patient.of(dead=list(range(12)))
    torch.manual_seed(3)
    idle = Idle()
    with patient.watch(idle, control=0.4, cooldown=0) as watch:
        for _ in range(3):
            patient.model(patient.x)
            watch.close_window()
    assert idle.seen[0] == idle.seen[1] == idle.seen[2]
    assert np.isin(idle.seen[0], range(12)).all()


BAD: list[tuple[dict[str, Any], str]] = [
    ({"when": True}, "when is True; expected a dead ratio between 0 and 1"),
    ({"when": 0.1, "measure": "asleep"}, "measure is 'asleep'; expected 'dead', 'saturated' or"),
    ({"when": 0.1, "scope": "layer"}, "scope is 'layer'; expected 'site' or 'model'"),
    ({"measure": "dormant"}, "when is None, and where units do harm is known of the dead"),
    ({"scope": "model"}, "give a ratio for measure='dead', scope='model'"),
    ({"warmup": -1}, "warmup is -1; expected a whole number of 0 or more .training steps."),
    ({"until": 1.5}, "until is 1.5; expected a training step, or a share of the run"),
    ({"until": -3}, "until is -3; expected a training step"),
    ({"until": "end"}, "until is 'end'; expected a training step"),
    ({"budget": 0}, "budget is 0; expected a share of a site's units, such as 0.25"),
    ({"budget": float("nan")}, "budget is nan; expected a share"),
    ({"control": 1.0}, "control is 1.0; expected a share of a site's units"),
    ({"per_unit": 0}, "per_unit is 0; expected a whole number of 1 or more .treatments, or None."),
    ({"guard": None}, "guard is None; expected True or False"),
    ({"prevent": "bias"}, r"prevent is 'bias'; expected a preventive such as PositiveBias\(\)"),
]


@pytest.mark.parametrize(("arguments", "message"), BAD, ids=[str(bad[0]) for bad in BAD])
def test_bad_limits_raise_at_construction(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Policy(Recycle(), **arguments)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Revive(shallow=0), "shallow is 0; expected a number of 1e-06 or more"),
        (lambda: Revive(anneal=0.5), "anneal is 0.5; expected a whole number of 1 or more"),
        (lambda: PositiveBias(-0.1), "value is -0.1; expected a number of 1e-12 or more"),
        (lambda: Rules(enough_live=-1), "enough_live is -1; expected a number of units"),
        (lambda: Rules(harmful_ratio=2), "harmful_ratio is 2; expected a share between 0 and 1"),
        (lambda: BiasWarming(schedule="step"), "schedule is 'step'; expected 'linear', 'cosine'"),
        (lambda: Watch(nn.ReLU(), total_steps=0), "total_steps is 0; expected the training steps"),
    ],
)
def test_bad_arguments_raise_at_construction(build: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build()
