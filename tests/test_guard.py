"""A treatment after which the loss leaves its band is taken back, to the bit."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import nn

from deadwatch import (
    BiasWarming,
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
)
from deadwatch.treat.guard import LOOK, LossBand
from tests.clinic import DEAD, Patient, changed

REMEDIES = [
    BiasWarming(quiet=False),
    BiasWarming(quiet=True),
    BiasWarming(schedule="closed-loop", hold=0),
    ThermalKick(),
    ThermalKick(quiet=False),
    Recycle(),
    Swap(),
    Swap("prelu"),
    Swap("elu", only="all", quiet=False),
]


def watched(patient: Patient, *remedies: Remedy, **policy: Any) -> Watch:
    """A watch that has seen a steady loss for a while."""
    watch = patient.watch(*remedies, **policy).attach()
    for step in range(20):
        patient.model(patient.x)
        watch.step(1.0 + 0.01 * (step % 3))
    return watch


def ruin(watch: Watch) -> None:
    """A loss that rises after the treatment, not with it."""
    for loss in (1.0, *[9.0] * LOOK):
        watch.step(loss)


@pytest.mark.parametrize("optimizer", [torch.optim.Adam, torch.optim.SGD], ids=lambda o: o.__name__)
@pytest.mark.parametrize("kind", ["mlp", "norm"])
@pytest.mark.parametrize("remedy", REMEDIES, ids=str)
def test_an_undone_treatment_leaves_every_bit_as_it_was(
    remedy: Remedy, kind: str, optimizer: Any
) -> None:
    build = {torch.optim.SGD: {"momentum": 0.9}}.get(optimizer, {})
    patient = Patient.of(kind, optimizer=lambda p: optimizer(p, lr=1e-2, **build))
    structure = str(patient.model)
    parameters = list(patient.model.parameters())
    watch = watched(patient, remedy)
    before = patient.tensors()  # after the running statistics of the forwards
    report = watch.close_window()
    assert len(report.treatments) == 1, report.refusals
    ruin(watch)
    after = patient.tensors()
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        assert torch.equal(tensor, after[name]), name
    assert str(patient.model) == structure
    assert all(a is b for a, b in zip(patient.model.parameters(), parameters, strict=True))
    owned = [p for group in patient.optimizer.param_groups for p in group["params"]]
    assert all(a is b for a, b in zip(owned, parameters, strict=True))
    watch.detach()  # no γ is held any more: nothing is warned of


def test_an_extended_swap_is_narrowed_again() -> None:
    patient = Patient.of()
    watch = watched(patient, Swap(), when=0.0, cooldown=0)
    watch.close_window()
    for _ in range(2 * LOOK):  # the first has passed its trial
        patient.model(patient.x)
        watch.step(1.0)
    watch.close_window()
    with torch.no_grad():
        patient.model[0].bias[7] = -99
    patient.model(patient.x)
    before = patient.tensors()
    assert watch.close_window().treatments[0].units.tolist() == [7]
    ruin(watch)
    assert not changed(before, patient.tensors())
    assert patient.model[1].units().nonzero().ravel().tolist() == DEAD
    watch.detach()


def test_what_live_units_learned_since_stays() -> None:
    """The average of the treated units went into a reader's bias: only that is taken out."""
    patient = Patient.of(act=nn.Sigmoid, depth=60.0)
    policy = Policy(Recycle(), when=0.0, measure="saturated")
    watch = Watch(
        patient.model,
        optimizer=patient.optimizer,
        policy=policy,
        rules=Rules(min_samples=1),
        include="1",
    ).attach()
    with torch.no_grad():
        patient.model[0].bias[DEAD] += 120  # saturated above: it contributes its outgoing weight
    for _ in range(20):
        patient.model(patient.x)
        watch.step(1.0)
    before = patient.tensors()["2.bias"]
    watch.close_window()
    treated = patient.tensors()["2.bias"]
    assert (treated != before).any()
    with torch.no_grad():
        patient.model[2].bias[4] += 0.5
    ruin(watch)
    after = patient.tensors()["2.bias"]
    still = [unit for unit in range(16) if unit != 4]
    assert torch.equal(after[still], before[still])
    torch.testing.assert_close(after[4], before[4] + 0.5)
    watch.detach()


def test_the_remedy_rests_there_and_the_ledger_says_so() -> None:
    patient = Patient.of()
    watch = watched(patient, Recycle(), cooldown=0)
    watch.close_window()
    done: list[int] = [1]
    notes: list[str] = []
    for _ in range(8):
        with torch.no_grad():
            patient.model[0].bias[DEAD] = -99
        for step in range(LOOK + 4):
            patient.model(patient.x)
            harmed = step and not list(watch.ledger)[-1].undone
            watch.step(9.0 if harmed else 1.0 + 0.01 * (step % 3))
        report = watch.close_window()
        done.append(len(report.treatments))
        notes += report.notes
    assert done == [1, 0, 0, 0, 0, 1, 0, 0, 0]
    assert notes[0] == (
        "Recycle on 1 was undone: the loss rose from 1.01 to 9; it rests there for 4 windows"
    )
    assert next(iter(watch.ledger)).undone
    assert watch.ledger.outcomes[0].undone == 2
    watch.detach()


def test_a_steady_loss_leaves_the_treatment() -> None:
    patient = Patient.of()
    watch = watched(patient, Recycle())
    watch.close_window()
    treated = patient.tensors()
    for step in range(3 * LOOK):
        watch.step(1.0 + 0.01 * (step % 4))
    assert not changed(treated, patient.tensors())
    assert not watch.ledger.outcomes[0].undone
    watch.detach()


def test_without_a_guard_nothing_is_undone() -> None:
    patient = Patient.of()
    watch = watched(patient, Recycle(), guard=False)
    watch.close_window()
    treated = patient.tensors()["0.weight"]
    for _ in range(40):
        watch.step(math.inf)
    assert torch.equal(patient.tensors()["0.weight"], treated)
    watch.detach()


def test_a_loud_treatment_without_a_loss_is_said_to_be_unguarded() -> None:
    patient = Patient.of()
    report, watch = patient.treated(ThermalKick(quiet=False))
    assert any("not guarded" in note for note in report.notes)
    quiet, other = Patient.of().treated(ThermalKick(quiet=True))
    assert not quiet.notes
    watch.detach()
    other.detach()


@dataclass(frozen=True)
class Blowing(Remedy):
    """Ruins the readers of the dead units and says that it did not."""

    def plan(self, case: Case) -> Plan:
        wire = case.producer()
        assert wire.weight is not None
        rows = 50 * case.rows(wire.weight).abs() + 50
        return Plan(self.name, case.units, (*case.edits(wire.weight, rows),))


def test_real_training_is_rescued_from_a_ruinous_remedy() -> None:
    def final(guard: bool) -> float:
        torch.manual_seed(0)
        patient = Patient.of(optimizer=lambda p: torch.optim.SGD(p, lr=5e-3))
        watch = patient.watch(Blowing(), guard=guard)
        with watch:
            for _ in range(60):
                patient.optimizer.zero_grad()
                loss = patient.model(patient.x).square().mean()
                loss.backward()
                patient.optimizer.step()
                watch.step(loss)
                if watch.steps == 30:
                    watch.close_window()
            watch.close_window(treat=False)
        return float(loss.detach())

    ruined, rescued = final(False), final(True)
    assert not ruined < 1
    assert rescued < 0.1


# ── the band by itself ──────────────────────────────────────────────────────────────────────


def band(before: list[float], after: list[float], quiet: bool = False) -> tuple[int, str]:
    """After how many losses the band was broken, and how; 0 if it was not."""
    kept = LossBand()
    for loss in before:
        kept.note(torch.tensor(loss))
    kept.open(quiet=quiet)
    for index, loss in enumerate(after, start=1):
        kept.note(loss)
        if kept.due and kept.broken():
            return index, kept.broken()
    return 0, ""


CALM = [1.0, 1.1, 0.9, 1.0] * 4


def test_a_rise_is_seen_at_the_next_look() -> None:
    assert band(CALM, [2.5] * 40) == (4, "the loss rose from 1 to 2.5")
    assert band(CALM, [1.0] * 9 + [2.5] * 200)[0] == 32


def test_a_steady_loss_may_double() -> None:
    assert band([1.0] * 20, [1.99] * 40) == (0, "")
    assert band([1.0] * 20, [2.01] * 40)[0] == 4


def test_a_restless_loss_may_leave_its_range_by_half_of_it() -> None:
    assert band([1.0, 2.0, 5.0] * 10, [7.9] * 40) == (0, "")
    assert band([1.0, 2.0, 5.0] * 10, [8.1] * 40)[0] == 4


def test_a_leap_is_not_waited_for() -> None:
    assert band(CALM, [9.5] * 40)[0] == 1
    assert band(CALM, [1.0, 9.5] * 40, quiet=True) == (0, "")


def test_a_quiet_treatment_has_time_to_earn_its_way() -> None:
    assert band(CALM, [1.0] + [30.0] * 14 + [1.5] * 40, quiet=True) == (0, "")
    assert band(CALM, [1.0] + [30.0] * 40, quiet=True)[0] == 32


def test_single_spikes_are_nothing() -> None:
    assert band(CALM, [1.0, 9.0, 1.0, 9.0, 1.0, 1.0] * 20) == (0, "")


def test_a_loss_that_is_not_finite_is_out_at_once() -> None:
    assert band(CALM, [math.nan]) == (1, "the loss is no longer finite")
    assert band(CALM, [1.0, math.inf]) == (2, "the loss is no longer finite")


def test_what_went_wrong_before_is_not_held_against_a_treatment() -> None:
    assert band([math.nan] * 20, [math.nan] * 40) == (0, "")
    assert band([1.0, 5.0] * 10, [5.0] * 40) == (0, "")


def test_a_batch_that_overflowed_before_does_not_end_the_guard() -> None:
    for spoilt in (math.nan, math.inf):
        assert band([*CALM, spoilt, *CALM], [2.5] * 40) == (4, "the loss rose from 1 to 2.5")


def test_new_data_are_not_held_against_a_quiet_treatment() -> None:
    """A quiet treatment leaves the function: the first loss after it is the data's doing."""
    assert band(CALM, [3.0] * 80, quiet=True) == (0, "")
    assert band(CALM, [3.0] * 80)[0] == 4


def test_too_few_losses_make_no_band() -> None:
    assert band([1.0] * 5, [99.0] * 40) == (0, "")


def test_old_losses_leave_the_buffer() -> None:
    assert band([50.0] * 80 + [1.0] * 64, [2.5] * 40)[0] == 4


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        ("1", r"loss is '1'; expected the training loss of the step, one number"),
        (torch.zeros(2), r"loss is a tensor of shape \(2,\)"),
        (True, r"loss is True"),
    ],
)
def test_a_loss_that_is_no_number_is_refused(loss: Any, message: str) -> None:
    patient = Patient.of()
    with patient.watch(Recycle()) as watch:
        with pytest.raises(ConfigError, match=message):
            watch.step(loss)
        patient.model(patient.x)
        watch.close_window()


@pytest.mark.parametrize("remedy", [Swap("prelu"), BiasWarming(hold=0, anneal=3)], ids=str)
def test_a_window_may_be_closed_in_inference_mode(remedy: Remedy) -> None:
    """Say at the end of a validation: what is made there takes part in training later."""
    patient = Patient.of(depth=3.0)
    with patient.watch(remedy) as watch:
        with torch.inference_mode():
            watch.step(1.0)
        patient.train(1, watch)
        with torch.inference_mode():
            report = watch.close_window()
        assert report.treatments
        for _ in range(4):
            patient.train(1)
            watch.step(1.0)
