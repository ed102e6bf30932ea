"""Swaps: which units they reach, how they are judged, counted and compiled, and their way back."""

from __future__ import annotations

import copy
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from deadwatch import ConfigError, Policy, Rules, State, Swap, Watch, restore
from deadwatch.activations import KINDS, Replacement, SwappedActivation
from deadwatch.observe.gates import swapped_units
from tests.clinic import DEAD, Patient, X, dead_chain, refused
from tests.nets import mlp
from tests.resuming import Setup, differs_when_interrupted, through_a_file

LIVE = [unit for unit in range(16) if unit not in DEAD]
ANNEALED = [kind for kind in KINDS if kind != "prelu"]


@pytest.mark.parametrize("to", KINDS)
@pytest.mark.parametrize("inplace", [False, True])
def test_swapping_the_dead_leaves_live_units_bit_equal(to: str, inplace: bool) -> None:
    patient = Patient.of(act=lambda: nn.ReLU(inplace))
    z = torch.randn(20, 16) * 2
    grad = torch.randn_like(z)
    old = z.clone().requires_grad_()
    expected = patient.model[1](old * 1)
    expected.backward(grad)
    patient.treated(Swap(to, quiet=False))
    new = z.clone().requires_grad_()
    got = patient.model[1](new)
    got.backward(grad)
    assert old.grad is not None
    assert new.grad is not None
    assert torch.equal(got[:, LIVE], expected[:, LIVE])
    assert torch.equal(new.grad[:, LIVE], old.grad[:, LIVE])
    assert not torch.equal(got[:, DEAD], expected[:, DEAD])


def test_swapping_all_uses_the_new_function_everywhere() -> None:
    patient = Patient.of()
    z = torch.randn(9, 16)
    report, watch = patient.treated(Swap("elu", only="all"))
    assert torch.equal(patient.model[1](z), nn.functional.elu(z))
    assert not report.treatments[0].quiet
    patient.model(patient.x)
    assert watch.close_window()["1"].site.activation == "ELU"


def test_a_swapped_site_is_judged_by_its_new_gates() -> None:
    patient = Patient.of()
    _, watch = patient.treated(Swap("leaky_relu"))
    patient.model(patient.x)
    site = watch.close_window()["1"]
    assert site.site.activation == "ReLU/LeakyReLU"
    assert (site.state[DEAD] == State.ALIVE).all()
    assert (site.open_fraction[DEAD] == 1).all()
    with torch.no_grad():
        z = patient.model[0](patient.x)
    np.testing.assert_allclose(site.open_fraction[LIVE], (z[:, LIVE] > 0).double().mean(0))


def test_a_second_swap_extends_the_first() -> None:
    patient = Patient.of()
    _, watch = patient.treated(Swap(), cooldown=0, when=0.0)
    with torch.no_grad():
        patient.model[0].bias[5] = -99
    patient.model(patient.x)
    (treatment,) = watch.close_window().treatments
    assert treatment.units.tolist() == [5]
    swapped = patient.model[1]
    assert swapped.deadwatch_mask.nonzero().flatten().tolist() == [*DEAD, 5]
    patient.model(patient.x)
    assert watch.close_window()["1"].dead.sum() == 0
    watch.detach()
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in patient.model.modules())


@pytest.mark.parametrize("to", ["leaky_relu", "prelu", "gelu"])
def test_a_swap_keeps_its_wiring_when_it_is_traced_again(to: str) -> None:
    patient = Patient.of()
    _, watch = patient.treated(Swap(to), cooldown=99)
    for _ in range(4):  # windows 1, 2 and 4 are traced
        patient.model(patient.x)
        site = watch.close_window()["1"].site
        assert site.producers[0].weight == "0.weight"
        assert site.consumers[0].weight == "2.weight"
    watch.detach()


def test_a_swapped_activation_is_still_counted_by_forwards_not_by_steps() -> None:
    """The module that opens the frame must be found again, though its only activation is new."""
    torch.manual_seed(0)
    model = dead_chain()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    policy, rules = Policy(Swap(), cooldown=99), Rules(min_samples=1)
    with Watch(model, optimizer=optimizer, policy=policy, rules=rules) as watch:
        for _ in range(2):  # the second window is the first with the swap
            for _ in range(2):
                model(X)
                model(X)
                watch.step()
            report = watch.close_window()
    assert {name: site.samples for name, site in report.items()} == {"1": 4 * len(X)}


def test_hooks_of_the_user_stay_on_a_swapped_activation() -> None:
    patient = Patient.of()
    shapes = []
    handle = patient.model[1].register_forward_hook(lambda m, a, h: shapes.append(h.shape))
    _, watch = patient.treated(Swap())
    watch.detach()
    shapes.clear()
    patient.model(patient.x)
    assert shapes == [(20, 16)]
    handle.remove()
    patient.model(patient.x)
    assert len(shapes) == 1


def test_prelu_slopes_join_the_optimizer_where_parameters_has_them() -> None:
    patient = Patient.of(optimizer=lambda p: torch.optim.Adam(p, lr=1e-2, weight_decay=0.1))
    patient.treated(Swap("prelu", quiet=False))
    (group,) = patient.optimizer.param_groups
    assert [id(p) for p in group["params"]] == [id(p) for p in patient.model.parameters()]
    slope = patient.model[1].replacement.weight
    patient.train(2)
    assert not torch.equal(slope[DEAD], torch.full((3,), 0.25))
    fresh = copy.deepcopy(patient.model)
    resumed = torch.optim.Adam(fresh.parameters(), lr=1e-2, weight_decay=0.1)
    resumed.load_state_dict(patient.optimizer.state_dict())
    for mine, theirs in zip(patient.model.parameters(), fresh.parameters(), strict=True):
        state = patient.optimizer.state[mine]
        assert torch.equal(state["exp_avg"], resumed.state[theirs]["exp_avg"])


def test_a_function_is_not_swapped_together_with_the_module_that_calls_it() -> None:
    class Pooled(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.relu(x)[:, ::2]

    model = nn.Sequential(nn.Linear(4, 8), Pooled(), nn.Linear(4, 3))
    with torch.no_grad():
        cast(nn.Linear, model[0]).bias[:2] = -30
    assert "1-relu calls ReLU as a function" in refused(model, torch.randn(50, 4), Swap(), "1-relu")
    assert isinstance(model[1], Pooled)


def test_an_activation_with_parameters_of_its_own_is_not_swapped() -> None:
    class Shifted(nn.ReLU):
        def __init__(self) -> None:
            super().__init__()
            self.shift = nn.Parameter(torch.zeros(()))

    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 6), Shifted(), nn.Linear(6, 3))
    with torch.no_grad():
        model[0].bias[0] = -99
    assert "has parameters of its own" in refused(model, X, Swap())


def test_slopes_need_an_optimizer_that_can_take_them() -> None:
    patient = Patient.of(optimizer=lambda p: torch.optim.Rprop(p, lr=1e-3))
    report, _ = patient.treated(Swap("prelu"))
    assert report.refusals[0].reason == "Rprop cannot take a new parameter in mid-training"


def test_slopes_keep_the_names_in_the_optimizer_right() -> None:
    patient = Patient.of()
    patient.optimizer = torch.optim.AdamW(patient.model.named_parameters(), lr=1e-3)
    patient.train(1)
    patient.treated(Swap("prelu"))
    (group,) = patient.optimizer.param_groups
    assert group["param_names"] == [name for name, _ in patient.model.named_parameters()]


def test_slopes_follow_the_dtype_of_autocast() -> None:
    patient = Patient.of()
    patient.treated(Swap("prelu"))
    with torch.autocast("cpu", torch.bfloat16):
        assert patient.model[:2](patient.x).dtype == torch.bfloat16


def test_a_swapped_model_can_be_scripted() -> None:
    patient = Patient.of()
    _, watch = patient.treated(Swap("prelu"))
    watch.detach()
    with pytest.warns(DeprecationWarning, match="deprecated"):
        scripted = torch.jit.script(patient.model)
    assert torch.equal(scripted(patient.x), patient.model(patient.x))


# ── arguments ───────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("anneal", [0, -1, 2.5, True, "20"])
def test_anneal_is_a_number_of_steps(anneal: Any) -> None:
    with pytest.raises(ConfigError, match=r"anneal is .*; expected a whole number of 1 or more"):
        Swap(anneal=anneal)


def test_a_prelu_is_not_annealed() -> None:
    with pytest.raises(ConfigError, match="anneal is 9, but a PReLU learns its slopes"):
        Swap("prelu", anneal=9)


# ── the way back ────────────────────────────────────────────────────────────────────────────


def annealed(to: str = "leaky_relu", steps: int = 4, **patient: Any) -> tuple[Patient, Watch]:
    one = Patient.of(**patient)
    _, watch = one.treated(Swap(to, anneal=steps, quiet=False), cooldown=99)
    return one, watch


@pytest.mark.parametrize("to", ANNEALED)
def test_an_annealed_swap_goes_back_linearly(to: str) -> None:
    patient, watch = annealed(to)
    z = torch.randn(9, 16) * 3
    new = Replacement(to, 1, slope=0.01).build(16)(z)
    for step in range(4):
        share = 1 - step / 4
        got = patient.model[1](z)
        expected = share * new + (1 - share) * z.relu()
        torch.testing.assert_close(got[:, DEAD], expected[:, DEAD])
        assert torch.equal(got[:, LIVE], z.relu()[:, LIVE])
        watch.step()
    assert torch.equal(patient.model[1](z), z.relu())
    watch.detach()


def test_at_first_an_annealed_swap_is_the_replacement_to_the_bit() -> None:
    patient, watch = annealed("gelu")
    z = torch.randn(9, 16)
    assert torch.equal(patient.model[1](z)[:, DEAD], nn.functional.gelu(z)[:, DEAD])
    with pytest.warns(UserWarning, match="watching ended while 3 units"):
        watch.detach()


@pytest.mark.parametrize("to", ANNEALED)
def test_live_units_stay_bit_equal_all_the_way(to: str) -> None:
    patient, watch = annealed(to)
    z, grad = torch.randn(20, 16) * 3, torch.randn(20, 16)
    old = z.clone().requires_grad_()
    old.relu().backward(grad)
    for _ in range(5):
        new = z.clone().requires_grad_()
        patient.model[1](new).backward(grad)
        assert torch.equal(new.grad[:, LIVE], old.grad[:, LIVE])
        watch.step()
    watch.detach()


@pytest.mark.parametrize("inplace", [False, True])
def test_at_the_end_the_original_module_is_back(inplace: bool) -> None:
    patient, watch = annealed(act=lambda: nn.ReLU(inplace))
    keys = Patient.of().model.state_dict().keys()
    patient.train(4, watch)
    assert type(cast(Any, patient.model[1])) is nn.ReLU
    assert cast(Any, patient.model[1]).inplace is inplace
    assert patient.model.state_dict().keys() == keys
    watch.detach()  # without a warning: nothing is under way


def test_a_unit_back_at_its_function_is_judged_by_it() -> None:
    patient, watch = annealed(steps=5)
    patient.model(patient.x)
    watch.step()
    report = watch.close_window()["1"]
    assert (report.state[DEAD] == State.ALIVE).all()
    for _ in range(4):
        watch.step()
    patient.model(patient.x)
    patient.model(patient.x)
    watch.close_window()
    patient.model(patient.x)
    report = watch.close_window()["1"]
    assert (report.state[DEAD] == State.DEAD).all()
    assert report.site.activation == "ReLU"
    assert report.site.producers[0].weight == "0.weight"
    watch.detach()
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in patient.model.modules())


def test_hooks_of_the_user_come_back_with_the_original() -> None:
    patient = Patient.of()
    seen: list[str] = []
    early = patient.model[1].register_forward_hook(lambda *_: seen.append("early"))
    _, watch = patient.treated(Swap(anneal=2), cooldown=99)
    late = patient.model[1].register_forward_hook(lambda *_: seen.append("late"))
    for _ in range(2):
        watch.step()
    watch.detach()
    assert type(patient.model[1]) is nn.ReLU
    seen.clear()
    patient.model(patient.x)
    assert seen == ["early", "late"]
    early.remove()
    late.remove()
    patient.model(patient.x)
    assert len(seen) == 2


def test_what_is_on_its_way_back_is_not_swapped_again() -> None:
    patient = Patient.of()
    _, watch = patient.treated(Swap(anneal=9), cooldown=0, when=0.0)
    with torch.no_grad():
        patient.model[0].bias[5] = -99
    patient.model(patient.x)
    watch.step()
    (refusal,) = watch.close_window().refusals
    assert refusal.units.tolist() == [5]
    assert refusal.reason == "it is on its way back from leaky_relu to what it was"
    with pytest.warns(UserWarning, match="watching ended while 3 units"):
        watch.detach()


@pytest.mark.parametrize(
    ("first", "second", "reason"),
    [
        (Swap(slope=0.1), Swap(slope=0.2), "swapped to leaky_relu with slope 0.1 before"),
        (Swap("elu"), Swap("gelu"), "swapped to elu before"),
        (Swap(), Swap(anneal=5), "swapped to leaky_relu for good before"),
    ],
)
def test_one_layer_takes_one_kind_of_swap(first: Swap, second: Swap, reason: str) -> None:
    patient = Patient.of()
    _, watch = patient.treated(first)
    watch.detach()
    with torch.no_grad():
        patient.model[0].bias[5] = -99
    report, watch = patient.treated(second, when=0.0)
    assert reason in report.refusals[0].reason
    watch.detach()


@pytest.mark.parametrize(
    ("share", "low"), [(1.0, -np.inf), (0.2, -np.inf), (0.05, 0.0), (0.0, 0.0)]
)
def test_the_gate_of_a_leak_closes_with_its_share(share: float, low: float) -> None:
    """At slope 0.01, the derivative falls to 10⁻³ at a share of a tenth."""
    mask = torch.tensor([True, False])
    module = SwappedActivation(nn.ReLU(), Replacement("leaky_relu", 1, slope=0.01), mask)
    annealing = SwappedActivation(nn.ReLU(), module.settings, mask, annealed=True)
    annealing.deadwatch_share.fill_(share)
    found, flat = cast(Any, swapped_units(annealing))
    assert found.tolist() == [low, 0.0]
    assert flat.tolist() == [False, True]


def test_the_gate_of_a_smooth_share_is_that_of_its_derivative() -> None:
    mask = torch.ones(1, dtype=torch.bool)
    module = SwappedActivation(nn.ReLU(), Replacement("elu", 1), mask, annealed=True)
    for share in (1.0, 0.1, 0.01):
        module.deadwatch_share.fill_(share)
        found, _ = cast(Any, swapped_units(module))
        assert float(found) == pytest.approx(np.log(1e-3 / share), abs=1e-3)


def test_a_swap_without_an_anneal_has_no_share_to_pay_for() -> None:
    module = SwappedActivation(nn.ReLU(), Replacement("elu", 1), torch.ones(3))
    assert module.deadwatch_share is None
    assert "deadwatch_share" not in module.state_dict()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_a_share_follows_the_dtype_of_the_model(dtype: torch.dtype) -> None:
    patient, watch = annealed(dtype=dtype)
    patient.train(2, watch)
    assert patient.model[:2](patient.x).dtype == dtype
    patient.train(2, watch)
    assert type(patient.model[1]) is nn.ReLU
    watch.detach()


# ── interrupted runs ────────────────────────────────────────────────────────────────────────


def killed() -> nn.Module:
    model = mlp()
    with torch.no_grad():
        model[0].bias[:3] -= 30
    return model


SWAPS = {
    "leak": Swap(slope=0.1),
    "slopes": Swap("prelu"),
    "slopes for all": Swap("prelu", only="all"),
    "annealed over windows": Swap("elu", anneal=6),
    "annealed within one": Swap(slope=0.3, anneal=2),
}


@pytest.mark.parametrize("name", SWAPS)
def test_a_run_with_a_swap_is_bitwise_resumed_after_every_step(name: str) -> None:
    setup = Setup(killed, lambda: Policy(SWAPS[name], cooldown=1, when=0.0))
    assert differs_when_interrupted(setup) == {}


@pytest.mark.parametrize(
    ("swap", "earlier"),
    [
        (Swap("prelu", quiet=False), False),
        (Swap("prelu", quiet=False), True),
        (Swap("elu", only="all"), False),
    ],
    ids=str,
)
def test_a_resumed_guard_takes_back_a_swap_from_before(swap: Swap, earlier: bool) -> None:
    def watching(one: Patient) -> Watch:
        return one.watch(swap, when=0.0, cooldown=0).attach()

    def calm(one: Patient, watch: Watch) -> None:
        for _ in range(60):
            one.train(1)
            watch.step(1.0)

    patient = Patient.of()
    watch = watching(patient)
    calm(patient, watch)
    if earlier:
        watch.close_window()
        calm(patient, watch)
        with torch.no_grad():
            patient.model[0].bias[5] = -99
        watch.close_window(treat=False)
        patient.model(patient.x)
        watch.step(1.0)
    order = len(list(patient.model.parameters())) + (not earlier and swap.to == "prelu")
    assert watch.close_window().treatments
    saved = [patient.model.state_dict(), patient.optimizer.state_dict(), watch.state_dict()]
    state = through_a_file(saved)
    other = Patient.of()
    restore(other.model, state[0])
    other.optimizer = torch.optim.Adam(other.model.parameters(), lr=1e-2)
    other.optimizer.load_state_dict(state[1])
    assert len(other.optimizer.param_groups[0]["params"]) == order
    resumed = other.watch(swap, when=0.0, cooldown=0)
    resumed.load_state_dict(state[2])
    resumed.attach()
    for _ in range(60):
        other.model(other.x)
        resumed.step(1e6)
    assert any("was undone" in note for note in resumed.close_window(treat=False).notes)
    if earlier:
        assert other.model[1].units().nonzero().flatten().tolist() == DEAD
    else:
        assert type(cast(Any, other.model[1])) is nn.ReLU
    held = other.optimizer.param_groups[0]["params"]
    assert [id(p) for p in held] == [id(p) for p in other.model.parameters()]
    resumed.detach()
