"""Each remedy's promises: what it touches, what it leaves bit-equal, what the function does."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from deadwatch import BiasWarming, Policy, Recycle, Remedy, Rules, State, Swap, ThermalKick, Watch
from tests.clinic import DEAD, Patient, X, changed, dead_chain, refused, rows
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
    told = {":".join(filter(None, (c.tensor, c.state))): c for c in treatment.changes}
    assert set(changed(before, after)) <= set(told)
    for name, change in told.items():
        for values, truth in ((change.before, before), (change.after, after)):
            part = truth[name].index_select(change.axis, torch.as_tensor(change.index))
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
    (change,) = [c for c in report.treatments[0].changes if (c.tensor, c.state) == ("0.weight", "")]
    kick = change.after - change.before
    assert kick.std() == pytest.approx(2 * spread, rel=0.5)
    assert abs(kick.mean()) < spread


def test_a_kick_of_a_wholly_dead_layer_is_measured_by_its_initialisation() -> None:
    patient = Patient.of(dead=list(range(16)))
    report, _ = patient.treated(ThermalKick(quiet=False))
    (change,) = [c for c in report.treatments[0].changes if (c.tensor, c.state) == ("0.weight", "")]
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


# ── refusals ────────────────────────────────────────────────────────────────────────────────


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
    assert refused(model, X.abs(), BiasWarming()) == "no bias to shift in 0"


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


def test_deep_units_are_left_to_another_remedy() -> None:
    reason = refused(dead_chain(), X, BiasWarming(deepest=1.0))
    assert "deeper than 1 standard deviations of live units" in reason


def test_every_remedy_says_its_arguments() -> None:
    assert repr(BiasWarming(gamma=0.1)).startswith("BiasWarming(gamma=0.1, hold=50, anneal=200")
    assert repr(Swap("elu")) == "Swap(to='elu', only='dead', slope=None, anneal=None, quiet=None)"


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
