"""When a policy treats, with which remedy, and what the ledger says of it."""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from deadwatch import (
    BiasWarming,
    CannotTreat,
    Case,
    ConfigError,
    Plan,
    Policy,
    Recycle,
    Remedy,
    Rules,
    Swap,
    ThermalKick,
    Watch,
    WindowReport,
)
from deadwatch.errors import MissingStepWarning, TreatmentFailedWarning, UnseenSiteWarning
from deadwatch.treat.policy import PRESETS
from deadwatch.treat.surgery import Edit
from tests.clinic import DEAD, Patient, changed


@dataclass(frozen=True)
class Idle(Remedy):
    """Claims to treat and does nothing."""

    label: str = "Idle"
    seen: list[list[int]] = field(default_factory=list)

    @property
    def name(self) -> str:
        return self.label

    def plan(self, case: Case) -> Plan:
        self.seen.append(case.units.tolist())
        return Plan(self.name, case.units)


@dataclass(frozen=True)
class Never(Remedy):
    """Applies to nothing."""

    def plan(self, case: Case) -> Plan:
        raise CannotTreat("out of principle")


def windows(patient: Patient, watch: Watch, count: int) -> list[WindowReport]:
    reports = []
    with watch:
        for _ in range(count):
            patient.model(patient.x)
            watch.step()
            reports.append(watch.close_window())
    return reports


def treated(reports: list[WindowReport]) -> list[str]:
    return [",".join(t.remedy for t in report.treatments) for report in reports]


def test_nothing_is_treated_below_the_threshold() -> None:
    patient = Patient.of()  # 3 of 16 dead
    assert treated(windows(patient, patient.watch(Idle(), when=0.2), 2)) == ["", ""]
    assert treated(windows(patient, patient.watch(Idle(), when=3 / 16), 1)) == ["Idle"]


def test_nothing_is_treated_where_nothing_is_dead() -> None:
    patient = Patient.of(dead=[])
    assert treated(windows(patient, patient.watch(Idle(), when=0.0), 2)) == ["", ""]


def test_patience_waits_for_windows_in_a_row() -> None:
    patient = Patient.of()
    watch = patient.watch(Idle(), patience=3, cooldown=0)
    assert treated(windows(patient, watch, 4)) == ["", "", "Idle", "Idle"]


def test_cooldown_leaves_a_site_alone() -> None:
    patient = Patient.of()
    watch = patient.watch(Idle(), cooldown=2)
    assert treated(windows(patient, watch, 5)) == ["Idle", "", "", "Idle", ""]


def test_a_ladder_escalates_on_the_units_that_stay_dead() -> None:
    patient = Patient.of()
    first, second = Idle("first"), Idle("second")
    reports = windows(patient, patient.watch(first, second, cooldown=0), 4)
    assert treated(reports) == ["first", "second", "second", "second"]


def test_a_unit_climbs_the_ladder_by_itself() -> None:
    patient = Patient.of()
    first, second = Idle("first"), Idle("second")
    watch = patient.watch(first, second, cooldown=0)
    with watch:
        for dies in (None, 5):
            if dies is not None:
                with torch.no_grad():
                    patient.model[0].bias[dies] = -99
            patient.model(patient.x)
            watch.close_window()
    assert first.seen == [DEAD, [5]]
    assert second.seen == [DEAD]


def test_a_refusal_is_told_and_the_next_remedy_tried_at_once() -> None:
    patient = Patient.of()
    (report,) = windows(patient, patient.watch(Never(), Idle()), 1)
    assert treated([report]) == ["Idle"]
    (refusal,) = report.refusals
    assert (refusal.remedy, refusal.site, refusal.reason) == ("Never", "1", "out of principle")
    assert refusal.units.tolist() == DEAD


def test_units_a_remedy_leaves_out_go_to_the_next() -> None:
    patient = Patient.of(depth=30.0)
    with torch.no_grad():
        highest = patient.model[0](patient.x)[:, DEAD[0]].max()
        patient.model[0].bias[DEAD[0]] -= highest + 0.1
    report, watch = patient.treated(BiasWarming(deepest=20, hold=0, anneal=1), Recycle())
    watch.step()  # ends the warming
    watch.detach()
    deep, shallow = DEAD[1:], DEAD[:1]
    assert [(t.remedy, t.units.tolist()) for t in report.treatments] == [
        ("BiasWarming", shallow),
        ("Recycle", deep),
    ]
    assert "lie deeper than 20 standard deviations" in report.refusals[0].reason


def test_evidence_from_before_a_treatment_is_dropped() -> None:
    patient = Patient.of()
    watch = Watch(
        patient.model,
        optimizer=patient.optimizer,
        policy=Policy(Idle(), cooldown=0),
        rules=Rules(min_samples=30),
        include="1",
    )
    reports = windows(patient, watch, 4)  # 20 samples each
    assert treated(reports) == ["", "Idle", "", "Idle"]
    ages = [int(report["1"].age[DEAD[0]]) for report in reports]
    assert ages == [20, 40, 20, 40]  # and a report stays as it was when it was made


def test_treating_can_wait() -> None:
    patient = Patient.of()
    before = patient.tensors()
    with patient.watch(Recycle()) as watch:
        patient.model(patient.x)
        verdict = watch.close_window(treat=False)
        assert not verdict.treatments
        assert torch.equal(patient.tensors()["0.weight"], before["0.weight"])
        report = watch.treat(verdict)
        assert len(report.treatments) == 1
        assert watch.treat(verdict).treatments == ()  # once is enough


def test_the_ledger_follows_every_treated_unit() -> None:
    patient = Patient.of(depth=3.0)
    with patient.watch(Recycle(), cooldown=9) as watch:
        patient.model(patient.x)
        watch.close_window()
        (entry,) = watch.ledger
        assert (entry.revived, entry.relapsed, entry.still_dead) == (0, 0, 0)
        with torch.no_grad():
            patient.model[0].bias[DEAD[0]] = -99
        patient.model(patient.x)
        watch.close_window()
        (entry,) = watch.ledger
        assert (entry.revived, entry.relapsed, entry.still_dead) == (2, 0, 1)
        with torch.no_grad():
            patient.model[0].bias[DEAD[1]] = -99
        patient.model(patient.x)
        watch.close_window()
        (entry,) = watch.ledger
    assert (entry.revived, entry.relapsed, entry.still_dead) == (1, 1, 1)
    assert entry.treatment.changes == ()


def test_presets_are_quiet() -> None:
    """Whatever a preset does, the function is the same right after."""
    for name in ("gentle", "revive"):
        policy = PRESETS[name]
        assert policy is not None
        patient = Patient.of(dead=list(range(8)))
        watch = Watch(
            patient.model, optimizer=patient.optimizer, policy=name, rules=Rules(min_samples=1)
        )
        done = []
        with watch:
            for _ in range(policy.patience):
                before = patient.model(patient.x)
                done = list(watch.close_window().treatments)
                torch.testing.assert_close(patient.model(patient.x), before)
        assert done
        assert all(treatment.quiet for treatment in done)
    assert PRESETS["watch"] is None


def test_watch_preset_treats_nothing() -> None:
    patient = Patient.of(dead=list(range(8)))
    before = patient.tensors()
    with Watch(patient.model, policy="watch", rules=Rules(min_samples=1)) as watch:
        patient.model(patient.x)
        report = watch.close_window()
    assert report["1"].dead.sum() == 8
    assert not report.treatments
    assert torch.equal(patient.tensors()["0.weight"], before["0.weight"])


def test_a_remedy_of_your_own_in_a_few_lines() -> None:
    @dataclass(frozen=True)
    class ZeroIncoming(Remedy):
        def plan(self, case: Case) -> Plan:
            weight = case.producer().weight
            assert weight is not None
            edits, restarts, quiet = case.silence(None)
            edits = (*edits, case.edit(weight, torch.zeros_like(case.rows(weight))))
            return Plan(self.name, case.units, edits, restarts, quiet=quiet)

    patient = Patient.of()
    report, _ = patient.treated(ZeroIncoming())
    assert report.treatments[0].remedy == "ZeroIncoming"
    assert not patient.tensors()["0.weight"][DEAD].any()


BAD: list[tuple[Any, str]] = [
    (lambda: Policy(Recycle(), when=1.5), "when is 1.5; expected a dead ratio between 0 and 1"),
    (lambda: Policy(Recycle(), when=-0.1), "when is -0.1; expected a dead ratio"),
    (lambda: Policy(Recycle(), patience=0), "patience is 0; expected a whole number of 1 or more"),
    (
        lambda: Policy(Recycle(), cooldown=-1),
        "cooldown is -1; expected a whole number of 0 or more",
    ),
    (lambda: Policy(Recycle), "then is <class .*; expected a remedy such as"),
    (lambda: Policy(None), "then is None; expected a remedy"),
    (lambda: Policy(r for r in [Recycle()]), "then is <generator"),
    (lambda: Policy(Recycle(), when="a"), "when is 'a'; expected a dead ratio"),
    (lambda: Policy(Recycle(), patience=1.5), "patience is 1.5; expected a whole"),
    (lambda: Policy([]), r"then is \[\]; expected a remedy such as Recycle\(\)"),
    (lambda: Policy(["recycle"]), "then is .'recycle'.; expected a remedy"),
    (lambda: BiasWarming(gamma=-1), 'gamma is -1; expected a number of 1e-12 or more .or "auto"'),
    (lambda: BiasWarming(gamma="big"), "gamma is 'big'; expected a number"),
    (lambda: BiasWarming(hold=-1), "hold is -1; expected a whole number of 0 or more"),
    (lambda: BiasWarming(anneal=0), "anneal is 0; expected a whole number of 1 or more"),
    (lambda: BiasWarming(open_share=1), "open_share is 1; expected a share above 0 and below 1"),
    (lambda: BiasWarming(deepest=0), "deepest is 0; expected a number above 0"),
    (lambda: ThermalKick(scale=float("nan")), "scale is nan; expected a number of 0 or more"),
    (lambda: BiasWarming(gamma=0), "gamma is 0; expected a number"),
    (lambda: Swap(slope=0.0), "slope is 0.0; expected a number of 0.001 or more"),
    (lambda: Rules(min_samples=True), "min_samples is True"),
    (lambda: BiasWarming(quiet="yes"), "quiet is 'yes'; expected True"),
    (lambda: BiasWarming(deepest=None), "deepest is None"),
    (lambda: Swap(["elu"]), r"to is \['elu'\]; expected one of"),
    (lambda: Swap(slope=float("nan")), "slope is nan; expected a number"),
    (lambda: Rules(min_samples="a"), "min_samples is 'a'"),
    (lambda: Rules(rare_below=None), "rare_below is None"),
    (lambda: Swap("relu"), "to is 'relu'; expected one of 'leaky_relu', 'prelu', 'elu'"),
    (lambda: Swap("elu", slope=0.1), "slope is 0.1, but 'elu' has none"),
    (lambda: Swap(only="some"), "only is 'some'; expected 'dead' or 'all'"),
    (lambda: Swap(only="all", quiet=True), "quiet is True, but only='all' changes live units"),
]


@pytest.mark.parametrize(("build", "message"), BAD, ids=[message[:24] for _, message in BAD])
def test_bad_arguments_raise_at_construction(build: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build()


MODEL = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
OTHER = torch.optim.SGD(nn.Linear(2, 2).parameters(), lr=0.1)
OWN = torch.optim.SGD(MODEL.parameters(), lr=0.1)

BAD_WATCHES: list[tuple[dict[str, Any], str]] = [
    ({"policy": "heroic", "optimizer": OWN}, "policy is 'heroic'; expected one of 'watch', 'gen"),
    ({"policy": 3}, "policy is 3; expected one of"),
    ({"policy": Recycle()}, r"wrap the remedy: Policy\(Recycle\(\)\)"),
    ({"policy": "revive"}, "policy 'revive' treats units.*pass optimizer="),
    ({"optimizer": OTHER}, "the SGD given as optimizer updates no parameter of the model"),
    ({"optimizer": "adam"}, "optimizer is or holds a 'str'; expected a torch.optim.Optimizer"),
    ({"include": "nett.*"}, r"include pattern 'nett\.\*' matches no activation.*'1'"),
    ({"exclude": ["2"]}, "exclude pattern '2' matches no activation"),
    ({"unit_dim": {"head": 1}}, "unit_dim pattern 'head' matches no activation"),
    ({"optimizer": 5}, "optimizer is or holds a 'int'"),
    ({"optimizer": torch.optim.Adam}, "optimizer is or holds a 'type'"),
    ({"rules": {}}, r"rules is \{\}; expected deadwatch.Rules"),
    ({"include": 5}, "include is 5; expected a pattern of activation paths"),
    ({"unit_dim": 1}, "unit_dim is 1; expected axes by pattern"),
    ({"unit_dim": {"1": "b"}}, "unit_dim is .*expected axes by pattern"),
    ({"stats_every_n_steps": True}, "stats_every_n_steps is True"),
    ({"stats_every_n_steps": 0}, "stats_every_n_steps is 0; expected an integer of 1"),
]


@pytest.mark.parametrize(
    ("arguments", "message"), BAD_WATCHES, ids=[str(list(case[0])) for case in BAD_WATCHES]
)
def test_a_bad_watch_raises_at_construction(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Watch(MODEL, **arguments)


def test_what_is_no_model_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"model is 'list'; expected a torch\.nn\.Module"):
        Watch([1])


def test_a_remedy_that_fails_is_given_up_loudly_and_writes_nothing() -> None:
    class Forgetful(Remedy):
        def plan(self, case: Case) -> Plan:
            return None

    class Misshapen(Remedy):
        def plan(self, case: Case) -> Plan:
            edits = (case.edit("0.bias", torch.zeros(3)), case.edit("0.weight", torch.zeros(3, 5)))
            return Plan(self.name, case.units, edits)

    class Beyond(Remedy):
        def plan(self, case: Case) -> Plan:
            edits = (
                case.edit("0.bias", torch.zeros(3)),
                Edit("2.bias", 0, case.units + 99, torch.zeros(3)),
            )
            return Plan(self.name, case.units, edits)

    class Greedy(Remedy):
        def plan(self, case: Case) -> Plan:
            return Plan(self.name, np.arange(16))

    class Buggy(Remedy):
        def plan(self, case: Case) -> Plan:
            raise KeyError("weight")

    for remedy, message in (
        (Forgetful(), r"Forgetful\.plan returned None; expected a Plan"),
        (Misshapen(), r"an edit of 0.weight has values of shape \(3, 5\); 3 slices .* \(3, 12\)"),
        (Beyond(), r"IndexError"),
        (Greedy(), r"Greedy\.plan treats other units than those of its case"),
        (Buggy(), r"KeyError: 'weight'"),
    ):
        patient = Patient.of()
        before = patient.tensors()
        with pytest.warns(TreatmentFailedWarning, match=rf"{remedy.name} on 1 failed .*{message}"):
            report, _ = patient.treated(remedy)
        assert re.search(message, report.refusals[0].reason)
        assert not report.treatments
        assert not changed(before, patient.tensors())


def test_where_a_remedy_fails_the_next_is_tried() -> None:
    class Buggy(Remedy):
        def plan(self, case: Case) -> Plan:
            raise KeyError("weight")

    with pytest.warns(TreatmentFailedWarning, match="Buggy on 1 failed"):
        report, _ = Patient.of().treated(Buggy(), Recycle())
    assert treated([report]) == ["Recycle"]


GONE: dict[str, Callable[[nn.Sequential], object]] = {
    "no bias any more": lambda model: setattr(model, "0", nn.Linear(12, 16, bias=False)),
    "another layer": lambda model: setattr(model, "0", nn.Linear(12, 16)),
    "another activation": lambda model: setattr(model, "1", nn.Identity()),
    "no such place": lambda model: model.__delitem__(slice(None)),
}


@pytest.mark.filterwarnings("ignore:not seen in window")
@pytest.mark.parametrize(
    ("remedy", "gone"),
    [
        (BiasWarming(hold=0, anneal=20), "no bias any more"),
        (BiasWarming(hold=0, anneal=20), "another layer"),
        (BiasWarming(hold=0, anneal=20), "no such place"),
        (BiasWarming(schedule="closed-loop", hold=0, anneal=20, quiet=False), "another layer"),
        (Swap(anneal=20), "another activation"),
        (Swap(anneal=20), "no such place"),
    ],
    ids=str,
)
def test_what_was_under_way_in_a_layer_that_is_gone_is_given_up_loudly(
    remedy: Remedy, gone: str
) -> None:
    patient = Patient.of(depth=3.0)
    report, watch = patient.treated(remedy)
    assert treated([report]) == [remedy.name]
    GONE[gone](patient.model)
    before = copy.deepcopy(patient.model.state_dict())
    with pytest.warns(TreatmentFailedWarning, match="in progress failed and is given up"):
        windows(patient, watch, 4)  # says nothing of a course when it ends
    (entry,) = watch.ledger
    assert "it failed: " in entry.told
    assert all(torch.equal(patient.model.state_dict()[n], value) for n, value in before.items())


@pytest.mark.filterwarnings("ignore:observing '1' failed")
def test_what_cannot_be_undone_any_more_is_told() -> None:
    patient = Patient.of()
    watch = patient.watch(ThermalKick(quiet=False)).attach()
    for _ in range(20):
        patient.model(patient.x)
        watch.step(1.0)
    watch.close_window()
    patient.model[0], patient.model[2] = nn.Linear(12, 2), nn.Linear(2, 16)
    with pytest.warns(TreatmentFailedWarning, match="undoing ThermalKick on 1 failed"):
        watch.step(math.nan)
    patient.model(patient.x)
    with pytest.warns(UnseenSiteWarning, match="not seen in window 1: 1"):
        report = watch.close_window()
    assert "undoing ThermalKick on 1: it failed: " in report.notes[0]
    assert not any(entry.undone for entry in watch.ledger)
    watch.detach()


def test_units_left_out_without_a_reason_are_told_all_the_same() -> None:
    class Partial(Remedy):
        def plan(self, case: Case) -> Plan:
            return Plan(self.name, case.units[:1])

    report, _ = Patient.of().treated(Partial())
    assert report.refusals[0].reason == "the remedy left them out and gave no reason"


def test_a_window_that_is_never_closed_is_noticed() -> None:
    patient = Patient.of()
    watch = patient.watch(Recycle())
    with pytest.warns(MissingStepWarning, match=r"close_window\(\) was never called"), watch:
        patient.train(2, watch)


def test_treatments_are_plain_records() -> None:
    import pickle

    patient = Patient.of()
    report, _ = patient.treated(Recycle())
    again = pickle.loads(pickle.dumps(report))
    np.testing.assert_array_equal(again["1"].dead, report["1"].dead)
    assert again.treatments[0].note == report.treatments[0].note
