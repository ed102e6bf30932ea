"""Each remedy's promises: what it touches, what it leaves bit-equal, what the function does."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from deadwatch import BiasWarming, Policy, Recycle, Remedy, Rules, State, Swap, ThermalKick, Watch
from tests.clinic import DEAD, Patient, changed, rows
from tests.nets import SharedReLU, images

QUIET: dict[str, Callable[[], Remedy]] = {
    "warming": lambda: BiasWarming(quiet=True),
    "kick": lambda: ThermalKick(quiet=True),
    "recycle": Recycle,
    "leak": lambda: Swap(quiet=True),
}
KINDS = ["mlp", "conv", "norm"]


def columns(kind: str) -> list[int]:
    """Columns of the next layer that the dead units feed."""
    block = 1 if kind == "mlp" else 4
    return [unit * block + k for unit in DEAD for k in range(block)]


READER = {"mlp": "2.weight", "conv": "4.weight", "norm": "5.weight"}


@pytest.mark.parametrize("remedy", QUIET.values(), ids=QUIET)
@pytest.mark.parametrize("kind", KINDS)
def test_quiet_treatment_leaves_the_function_unchanged(
    kind: str, remedy: Callable[[], Remedy]
) -> None:
    patient = Patient.of(kind)
    before = patient.model(patient.x)
    report, _ = patient.treated(remedy())
    (treatment,) = report.treatments
    assert treatment.quiet
    assert treatment.units.tolist() == DEAD
    torch.testing.assert_close(patient.model(patient.x), before)
    assert torch.count_nonzero(patient.tensors()[READER[kind]][:, columns(kind)]) == 0


@pytest.mark.parametrize("remedy", QUIET.values(), ids=QUIET)
@pytest.mark.parametrize("kind", KINDS)
def test_only_treated_rows_and_columns_change(kind: str, remedy: Callable[[], Remedy]) -> None:
    patient = Patient.of(kind)
    before = patient.tensors()
    patient.treated(remedy())
    after = patient.tensors()
    for name, mask in changed(before, after).items():
        if name.split(":")[0] == READER[kind]:
            assert set(rows(mask, 1)) <= set(columns(kind)), name
        elif not name.endswith("num_batches_tracked"):
            assert set(rows(mask)) <= _allowed(kind, name), name


def _allowed(kind: str, name: str) -> set[int]:
    # The forward that the window looked at updates all running statistics.
    return set(range(7)) if "running" in name else set(DEAD)


@pytest.mark.parametrize("remedy", QUIET.values(), ids=QUIET)
@pytest.mark.parametrize("kind", KINDS)
def test_a_treatment_reports_exactly_what_it_changed(
    kind: str, remedy: Callable[[], Remedy]
) -> None:
    patient = Patient.of(kind)
    patient.model(patient.x)  # settle what a forward itself changes
    watch = patient.watch(remedy()).attach()
    patient.model(patient.x)
    before = patient.tensors()
    (treatment,) = watch.close_window().treatments
    after = patient.tensors()
    written = {change.tensor for change in treatment.changes}
    assert {name for name in changed(before, after) if ":" not in name} <= written
    for change in treatment.changes:
        for values, truth in ((change.before, before), (change.after, after)):
            part = truth[change.tensor].index_select(change.axis, torch.as_tensor(change.index))
            np.testing.assert_array_equal(values, part.numpy())


@pytest.mark.parametrize(
    "remedy", [BiasWarming(), Recycle(), Swap(), ThermalKick(scale=20.0)], ids=lambda r: r.name
)
def test_treated_units_come_back_to_life(remedy: Remedy) -> None:
    patient = Patient.of("mlp", depth=3.0)
    report, watch = patient.treated(remedy)
    assert report["1"].state[DEAD].tolist() == [State.DEAD] * 3
    patient.train(5, watch)
    assert (watch.close_window()["1"].state[DEAD] >= State.RARE).all()


def test_textbook_forms_leave_the_readers_alone() -> None:
    for remedy in (BiasWarming(quiet=False), ThermalKick(quiet=False), Swap(quiet=False)):
        patient = Patient.of()
        before = patient.tensors()
        report, _ = patient.treated(remedy)
        assert not report.treatments[0].quiet
        assert "2.weight" not in changed(before, patient.tensors())


def test_quiet_is_the_default_where_the_readers_are_known() -> None:
    for remedy in (BiasWarming(), ThermalKick(), Swap(), Recycle()):
        report, _ = Patient.of().treated(remedy)
        assert report.treatments[0].quiet


def test_remedies_leave_the_random_stream_alone() -> None:
    for remedy in (ThermalKick(), Recycle(), Swap("prelu"), BiasWarming()):
        patient = Patient.of()
        torch.manual_seed(7)
        expected = torch.rand(4)
        torch.manual_seed(7)
        patient.treated(remedy)
        assert torch.equal(torch.rand(4), expected)


# ── recycling ───────────────────────────────────────────────────────────────────────────────


def test_recycled_rows_are_drawn_as_the_module_itself_would() -> None:
    patient = Patient.of()
    patient.treated(Recycle())
    weight, bias = patient.model[0].weight[DEAD], patient.model[0].bias[DEAD]
    bound = 1 / math.sqrt(12)  # of nn.Linear: kaiming uniform with a = √5
    assert weight.abs().max() <= bound
    assert bias.abs().max() <= bound
    assert weight.std() > bound / 4
    assert len(torch.unique(weight)) == weight.numel()


def test_recycling_restarts_the_norm_row() -> None:
    patient = Patient.of("norm")
    patient.treated(Recycle())
    state = patient.tensors()
    starts = {"1.weight": 1.0, "1.bias": 0.0, "1.running_mean": 0.0, "1.running_var": 1.0}
    for name, start in starts.items():
        assert state[name][DEAD].tolist() == [start] * 3, name


def test_what_a_unit_contributed_on_average_is_folded_into_its_readers() -> None:
    """Hardtanh units stuck at the top put out a constant 1: zeroing their columns must not show."""
    patient = Patient.of(act=nn.Hardtanh, depth=-30.0)
    before = patient.model(patient.x)
    report, _ = patient.treated(Recycle())
    assert report["1"].mean_out[DEAD].tolist() == [1.0] * 3
    assert report.treatments[0].quiet
    torch.testing.assert_close(patient.model(patient.x), before, rtol=1e-4, atol=1e-4)


def test_a_contribution_that_cannot_be_folded_is_refused() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 4), nn.Hardtanh(), nn.Linear(4, 2, bias=False))
    with torch.no_grad():
        model[0].bias[0] = 50
    refusal = refused(model, torch.randn(50, 4), Recycle())
    assert "its mean output 2 cannot absorb" in refusal


# ── kicks ───────────────────────────────────────────────────────────────────────────────────


def test_a_kick_is_measured_by_the_live_units() -> None:
    patient = Patient.of()
    live = [unit for unit in range(16) if unit not in DEAD]
    spread = float(patient.tensors()["0.weight"][live].std(correction=0))
    report, _ = patient.treated(ThermalKick(scale=2.0, quiet=False))
    (change,) = [c for c in report.treatments[0].changes if c.tensor == "0.weight"]
    kick = change.after - change.before
    assert kick.std() == pytest.approx(2 * spread, rel=0.5)
    assert abs(kick.mean()) < spread


def test_a_kick_of_a_wholly_dead_layer_is_measured_by_its_initialisation() -> None:
    patient = Patient.of(dead=list(range(16)))
    report, _ = patient.treated(ThermalKick(quiet=False))
    (change,) = [c for c in report.treatments[0].changes if c.tensor == "0.weight"]
    uniform = (1 / math.sqrt(12)) / math.sqrt(3)
    assert (change.after - change.before).std() == pytest.approx(uniform, rel=0.3)


def test_the_same_kick_on_every_rank_and_another_in_every_window() -> None:
    kicks = []
    for _ in range(2):
        torch.manual_seed(3)
        patient = Patient.of()
        report, watch = patient.treated(ThermalKick(scale=1e-3, quiet=False), cooldown=0)
        patient.model(patient.x)
        again = watch.close_window()
        kicks.append([r.treatments[0].changes[0] for r in (report, again)])
    np.testing.assert_array_equal(kicks[0][0].after, kicks[1][0].after)
    steps = [change.after - change.before for change in kicks[0]]
    assert not np.allclose(steps[0], steps[1])


# ── swaps ───────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("to", ["leaky_relu", "prelu", "elu", "gelu", "silu"])
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
    live = [unit for unit in range(16) if unit not in DEAD]
    assert old.grad is not None
    assert new.grad is not None
    assert torch.equal(got[:, live], expected[:, live])
    assert torch.equal(new.grad[:, live], old.grad[:, live])
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
    live = [unit for unit in range(16) if unit not in DEAD]
    np.testing.assert_allclose(site.open_fraction[live], (z[:, live] > 0).double().mean(0))


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


def test_a_swap_cannot_be_loaded_into_another_architecture_by_accident() -> None:
    patient = Patient.of()
    plain = copy.deepcopy(patient.model)
    patient.treated(Swap())
    with pytest.raises(
        RuntimeError, match=r"Unexpected key\(s\) in state_dict: \"1.deadwatch_mask"
    ):
        plain.load_state_dict(patient.model.state_dict())
    with pytest.raises(RuntimeError, match=r"Missing key\(s\) in state_dict: \"1.deadwatch_mask"):
        patient.model.load_state_dict(plain.state_dict())


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


# ── refusals ────────────────────────────────────────────────────────────────────────────────


def refused(model: nn.Module, x: Tensor, remedy: Remedy, site: str = "1") -> str:
    """The reason for which a remedy does not treat a site; asserts that nothing changed."""
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    watch = Watch(
        model,
        optimizer=optimizer,
        policy=Policy(remedy, when=0.0),
        rules=Rules(min_samples=1),
        include=site.removesuffix("-2"),
    )
    with watch:
        model(x)
        before = copy.deepcopy(model.state_dict())
        report = watch.close_window()
    after = model.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert not report.treatments
    (refusal,) = [refusal for refusal in report.refusals if refusal.site == site]
    return refusal.reason


def dead_chain(*middle: nn.Module, last: nn.Module | None = None) -> nn.Sequential:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 6), *middle, nn.ReLU(), last or nn.Linear(6, 3))
    with torch.no_grad():
        model[len(middle)].bias[0] = -99
    return model


X = torch.randn(50, 6, generator=torch.Generator().manual_seed(1))


def test_frozen_parameters_are_refused() -> None:
    model = dead_chain()
    model[0].requires_grad_(False)
    for remedy in (Recycle(), BiasWarming(quiet=False), ThermalKick(quiet=False)):
        assert "is frozen" in refused(model, X, remedy)


def test_parameters_of_another_optimizer_are_refused() -> None:
    model = dead_chain()
    optimizer = torch.optim.SGD(model[2].parameters(), lr=0.1)
    rules = Rules(min_samples=1)
    with Watch(model, optimizer=optimizer, policy=Policy(Recycle()), rules=rules) as watch:
        model(X)
        (refusal,) = watch.close_window().refusals
    assert refusal.reason == "no optimizer given to deadwatch updates 0.weight"


@pytest.mark.parametrize("remedy", [Recycle(), ThermalKick()], ids=lambda r: r.name)
def test_a_norm_that_mixes_units_is_refused(remedy: Remedy) -> None:
    reason = refused(dead_chain(nn.LayerNorm(6)), X, remedy, site="2")
    assert "a layer_norm between 0 and the activation mixes the units" in reason


def test_a_layer_norm_takes_the_warming_in_its_shift() -> None:
    model = dead_chain(nn.LayerNorm(6))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    policy, rules = Policy(BiasWarming()), Rules(min_samples=1)
    with Watch(model, optimizer=optimizer, policy=policy, rules=rules) as watch:
        before = model(X)
        (treatment,) = watch.close_window().treatments
        torch.testing.assert_close(model(X), before)
        assert {change.tensor for change in treatment.changes} == {"1.bias", "3.weight"}
        assert watch.peek()["2"].dead.sum() == 0
        with pytest.warns(UserWarning, match="watching ended while 1 units were being warmed"):
            watch.detach()


def test_no_bias_is_refused_for_warming() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 6, bias=False), nn.ReLU(), nn.Linear(6, 3))
    with torch.no_grad():
        model[0].weight[0] = -1
    assert refused(model, X.abs(), BiasWarming()) == "0 has no bias to shift"


def test_residual_adds_are_refused() -> None:
    torch.manual_seed(0)
    model = SharedReLU()
    with torch.no_grad():
        model.bn2.bias[0] = -99
    reason = refused(model, images(2), Recycle(), site="relu-2")
    assert "add stands between its producers and the activation" in reason


def test_a_shared_activation_is_not_swapped() -> None:
    torch.manual_seed(0)
    model = SharedReLU()
    with torch.no_grad():
        model.bn1.bias[0] = -99
    assert "relu is called 2 times in a forward" in refused(model, images(2), Swap(), site="relu")


def test_a_function_is_not_swapped_together_with_the_module_that_calls_it() -> None:
    class Pooled(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.relu(x)[:, ::2]

    model = nn.Sequential(nn.Linear(4, 8), Pooled(), nn.Linear(4, 3))
    with torch.no_grad():
        cast(nn.Linear, model[0]).bias[:2] = -30
    assert "1-relu calls ReLU as a function" in refused(model, torch.randn(50, 4), Swap(), "1-relu")
    assert isinstance(model[1], Pooled)


def test_insisting_on_quiet_without_known_readers_is_refused() -> None:
    model = dead_chain(last=nn.Softmax(-1))
    for remedy in (BiasWarming(quiet=True), ThermalKick(quiet=True), Swap(quiet=True), Recycle()):
        reason = refused(model, X, remedy)
        assert "not all layers that read it are known: it is read by softmax" in reason


def test_not_insisting_takes_the_textbook_form() -> None:
    model = dead_chain(last=nn.Softmax(-1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    policy, rules = Policy(ThermalKick()), Rules(min_samples=1)
    with Watch(model, optimizer=optimizer, policy=policy, rules=rules) as watch:
        model(X)
        (treatment,) = watch.close_window().treatments
    assert not treatment.quiet


def test_a_wholly_dead_layer_is_not_warmed_quietly() -> None:
    model = dead_chain()
    with torch.no_grad():
        model[0].bias.fill_(-99)
    assert "nothing would pass on" in refused(model, X, BiasWarming(quiet=True))


def test_units_above_their_gate_are_not_warmed() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 6), nn.ReLU6(), nn.Linear(6, 3))
    with torch.no_grad():
        model[0].bias[0] = 99
    assert "they lie above their gate" in refused(model, X, BiasWarming())


@pytest.mark.parametrize("act", [nn.ReLU6, nn.Hardshrink, nn.Hardtanh])
def test_only_activations_that_close_downwards_are_swapped(act: Callable[[], nn.Module]) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 6), act(), nn.Linear(6, 3))
    with torch.no_grad():
        model[0].weight[0], model[0].bias[0] = 0, (0 if act is nn.Hardshrink else -99)
    assert "does not close towards low inputs alone" in refused(model, X, Swap())


def test_an_output_that_flips_between_two_values_is_not_folded() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 6), nn.Hardtanh(), nn.Linear(6, 3))
    with torch.no_grad():
        model[0].weight[0] *= 1e6  # always beyond one end or the other: no gradient passes
    assert "its output flips between two values" in refused(model, X, Recycle())


def test_padding_by_zeros_keeps_a_constant_from_being_folded() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv1d(2, 3, 1), nn.Hardtanh(), nn.AvgPool1d(3, 1, 1), nn.Conv1d(3, 2, 1)
    )
    with torch.no_grad():
        model[0].bias[0] = 99
    assert "cannot absorb" in refused(model, torch.randn(8, 2, 9), Recycle())


def test_a_layer_that_owns_more_than_its_parameters_is_not_recycled() -> None:
    class Wide(nn.Linear):
        def __init__(self) -> None:
            super().__init__(6, 6)
            self.inner = nn.Linear(2, 2)

        def reset_parameters(self) -> None:
            super().reset_parameters()
            if hasattr(self, "inner"):
                self.inner.reset_parameters()

    torch.manual_seed(0)
    model = nn.Sequential(Wide(), nn.ReLU(), nn.Linear(6, 3))
    with torch.no_grad():
        model[0].bias[0] = -99
    assert "holds more than its own parameters" in refused(model, X, Recycle())


def test_a_norm_without_parameters_is_restarted_too() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(6, 6), nn.BatchNorm1d(6, affine=False), nn.ReLU(), nn.Linear(6, 3)
    )
    norm: Any = model[1].eval()
    norm.running_mean[:3] = 30
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    policy, rules = Policy(Recycle()), Rules(min_samples=1)
    with Watch(model, optimizer=optimizer, policy=policy, rules=rules) as watch:
        model(X)
        assert len(watch.close_window().treatments) == 1
        assert norm.running_mean[:3].tolist() == [0, 0, 0]
        model(X)
        assert watch.peek()["2"].dead.sum() == 0


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


def test_deep_units_are_left_to_another_remedy() -> None:
    reason = refused(dead_chain(), X, BiasWarming(deepest=1.0))
    assert "deeper than 1 standard deviations of live units" in reason


def test_every_remedy_says_its_arguments() -> None:
    assert repr(BiasWarming(gamma=0.1)).startswith("BiasWarming(gamma=0.1, hold=50, anneal=200")
    assert repr(Swap("elu")) == "Swap(to='elu', only='dead', slope=None, quiet=None)"


# ── wires that are more than whole rows and columns ─────────────────────────────────────────


def judged(model: nn.Module, x: Tensor, remedy: Remedy) -> Any:
    """The report of one window, with a remedy for whatever is dead."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    policy, rules = Policy(remedy, when=0.0), Rules(min_samples=1)
    with Watch(model, optimizer=optimizer, policy=policy, rules=rules) as watch:
        model(x)
        return watch.close_window()


class Halves(nn.Module):
    """Two activations on slices of one layer, read at an offset of one concatenation."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.up, self.low, self.high = nn.Linear(6, 8), nn.ReLU(), nn.Hardtanh()
        self.down = nn.Linear(14, 3)
        with torch.no_grad():
            self.up.bias[5] = 99  # stuck at 1, which must be folded

    def forward(self, x: Tensor) -> Tensor:
        low, high = self.up(x).chunk(2, -1)
        low, high = self.low(low), self.high(high)
        out: Tensor = self.down(torch.cat([x, high, low[:, :0], high], -1))
        return out


def test_slices_of_rows_and_offsets_of_columns_are_treated_where_they_lie() -> None:
    model = Halves()
    before = model(X)
    (treatment,) = judged(model, X, Recycle()).treatments
    torch.testing.assert_close(model(X), before)
    assert (treatment.site, treatment.units.tolist(), treatment.quiet) == ("high", [1], True)
    written = [(c.tensor, c.axis, c.index.tolist()) for c in treatment.changes]
    assert written == [
        ("down.bias", 0, [0, 1, 2]),
        ("down.weight", 1, [7]),
        ("down.weight", 1, [11]),
        ("up.weight", 0, [5]),
        ("up.bias", 0, [5]),
    ]


@pytest.mark.parametrize("remedy", [Recycle(), ThermalKick()], ids=lambda r: r.name)
def test_a_depthwise_reader_is_silenced_by_its_rows(remedy: Remedy) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Hardtanh(), nn.Conv2d(4, 8, 2, groups=4))
    with torch.no_grad():
        model[0].bias[2] = 99
    x = torch.randn(5, 3, 4, 4)
    before = model(x)
    (treatment,) = judged(model, x, remedy).treatments
    torch.testing.assert_close(model(x), before)
    silenced = [c.index.tolist() for c in treatment.changes if c.tensor == "2.weight"]
    assert silenced == [[4, 5]]
    assert not model[2].weight[4:6].any()


def test_a_transposed_convolution_is_recycled_by_its_columns() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.ConvTranspose1d(3, 4, 2), nn.ReLU(), nn.ConvTranspose1d(4, 2, 2))
    with torch.no_grad():
        model[0].bias[1] = -99
    x, old = torch.randn(5, 3, 4), model[0].weight.clone()
    before = model(x)
    (treatment,) = judged(model, x, Recycle()).treatments
    torch.testing.assert_close(model(x), before)
    assert treatment.units.tolist() == [1]
    changed = (model[0].weight != old).any(0).any(-1)
    assert changed.tolist() == [False, True, False, False]
    assert not model[2].weight[1].any()


def normed_reader() -> nn.Module:
    return nn.Sequential(nn.Conv1d(3, 4, 1), nn.ReLU(), nn.BatchNorm1d(4), nn.Conv1d(4, 2, 1))


class Summed(nn.Module):
    """The output of activation 1 is read in a sum with that of another."""

    def __init__(self) -> None:
        super().__init__()
        layers = nn.Conv1d(3, 4, 1), nn.ReLU(), nn.Conv1d(4, 2, 1), nn.Conv1d(3, 4, 1), nn.ReLU()
        for index, layer in enumerate(layers):
            self.add_module(str(index), layer)

    def forward(self, x: Tensor) -> Any:
        make, act, read, other, skip = self.children()
        return read(act(make(x)) + skip(other(x)))


REFUSED = [
    ("normed-reader", normed_reader, Recycle(), "a batch_norm stands between it and 3"),
    ("summed-after", Summed, Recycle(), "2 reads it together with other values"),
]


@pytest.mark.parametrize(
    ("build", "remedy", "reason"), [row[1:] for row in REFUSED], ids=[row[0] for row in REFUSED]
)
def test_wires_that_cannot_be_treated_are_refused(
    build: Callable[[], nn.Module], remedy: Remedy, reason: str
) -> None:
    torch.manual_seed(0)
    model = build()
    model.get_parameter("0.bias").data[0] = -99
    inputs = model.get_submodule("0").in_channels
    before = copy.deepcopy(model.state_dict())
    report = judged(model, torch.randn(8, inputs, 5), remedy)
    assert reason in next(r.reason for r in report.refusals if r.site == "1")
    assert all(torch.equal(value, before[name]) for name, value in model.named_parameters())


def test_a_shared_reader_is_treated_loudly_unless_quiet_is_insisted_on() -> None:
    torch.manual_seed(0)
    model = normed_reader()
    model.get_parameter("0.bias").data[0] = -99
    (treatment,) = judged(model, torch.randn(8, 3, 5), ThermalKick()).treatments
    assert not treatment.quiet
