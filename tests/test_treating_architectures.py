"""Every quiet remedy on every site of every architecture: nothing but the treated units moves."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch

from deadwatch import BiasWarming, Recycle, Remedy, Restandardize, ThermalKick
from tests.agreement import one_thread
from tests.setting import Setting
from tests.surgeon import DEPTH, Outcome, Theatre, outcomes
from tests.table import SETTINGS
from tests.wired import WIRED

QUIET: list[Remedy] = [
    *(Recycle(), ThermalKick(quiet=True), Restandardize(quiet=True), BiasWarming(quiet=True))
]
# A training step of LBFGS calls the model several times, and changes it.
TABLE = {setting.name: setting for setting in SETTINGS if setting.name != "lbfgs"}

# Where a remedy does not apply, and why; all others do.
MIXED = "mixes the units"
READ = "it is read by act2"
REFUSED = {
    ("group-norm", "2"): {"Recycle": MIXED, "ThermalKick": MIXED},
    ("layer-norm", "2"): {"Recycle": MIXED, "ThermalKick": MIXED},
    ("layer-norm-no-bias", "2"): {
        "Recycle": MIXED,
        "ThermalKick": MIXED,
        **dict.fromkeys(("Restandardize", "BiasWarming"), "no bias to shift in 1"),
    },
    ("two-norms", "3"): {"Recycle": MIXED, "ThermalKick": MIXED},
    ("sum-normed", "act"): {"Recycle": MIXED, "ThermalKick": MIXED},
    ("sum-then-layer-norm", "act"): {"Recycle": MIXED, "ThermalKick": MIXED},
    ("product", "1"): {"Recycle": "Product has no reset_parameters"},
    ("no-bias", "1"): dict.fromkeys(("Restandardize", "BiasWarming"), "no bias to shift in 0"),
    ("sum-no-bias", "act"): dict.fromkeys(
        ("Restandardize", "BiasWarming"), "no bias to shift in up1 and up2"
    ),
    ("skip", "act1"): dict.fromkeys(
        ("Recycle", "ThermalKick", "Restandardize", "BiasWarming"), READ
    ),
    ("skip-then-batch-norm", "act1"): dict.fromkeys(
        ("Recycle", "ThermalKick", "Restandardize", "BiasWarming"), READ
    ),
    ("skip", "act2"): {"Restandardize": "<skip from act1> cannot be rescaled"},
}


@pytest.fixture(autouse=True)
def _small_tensors() -> Iterator[None]:
    with one_thread():
        yield


@pytest.mark.parametrize("name", TABLE)
def test_a_quiet_remedy_moves_nothing_else_or_says_why_it_cannot(name: str) -> None:
    for outcome in outcomes(TABLE[name], QUIET):
        _assert_harmless(outcome, TABLE[name])


@pytest.mark.parametrize("setting", WIRED, ids=lambda s: s.name)
def test_every_wiring_is_treated_or_refused_for_a_known_reason(setting: Setting) -> None:
    found = list(outcomes(setting, QUIET))
    assert found or setting.name == "batch-norm-plain"  # in which no unit can be killed
    for outcome in found:
        reason = REFUSED.get((setting.name, outcome.site), {}).get(outcome.remedy.name, "")
        assert bool(reason) == bool(outcome.refusal), outcome.refusal
        assert reason in outcome.refusal
        _assert_harmless(outcome, setting)


def _assert_harmless(outcome: Outcome, setting: Setting) -> None:
    told = f"{outcome.site} {outcome.remedy}"
    if outcome.plan is None or outcome.treated is None:
        assert outcome.refusal, told
        return
    site = outcome.treated.site
    if not site.consumers and isinstance(outcome.remedy, Recycle):
        assert site.known_consumers, told  # what is kept or returned may change
        return
    assert outcome.plan.quiet, told
    # What a unit contributed is folded by its mean; these tails are not quite constant.
    tailed = "softsign" in setting.name or "-flat" in setting.name
    tolerance = 1e-3 if tailed else 1e-5
    assert outcome.moved <= tolerance, told
    assert outcome.strayed <= tolerance, told
    folded = {wire.bias for wire in site.consumers}
    known = {name for wire in (*site.producers, *site.consumers) for name in wire.names}
    assert set(outcome.written) <= known, told
    if setting in WIRED:  # whose layers make and read all units of a site, and no others
        share = len(outcome.plan.units) / outcome.treated.units
        assert max(outcome.written[name] for name in set(outcome.written) - folded) <= share
    if isinstance(outcome.remedy, Restandardize) and _exact(setting):
        _assert_standard(outcome, told)


def _exact(setting: Setting) -> bool:
    """Whether pre-activations are precise enough for the statistics of a unit far down."""
    return setting.dtype == torch.float32 and "autocast" not in setting.name


def _assert_standard(outcome: Outcome, told: str) -> None:
    assert outcome.plan is not None
    assert outcome.treated is not None
    units, gate = outcome.plan.units, outcome.treated.site.gate
    mean = float(np.clip(0, gate.low, gate.high)) if gate.inside else 0.0
    np.testing.assert_allclose(outcome.treated.mean[units], mean, atol=1e-3, err_msg=told)
    np.testing.assert_allclose(outcome.treated.std[units], 1, rtol=1e-3, err_msg=told)


def test_the_comparison_can_fail() -> None:
    """A kick that leaves the readers alone is seen in what the model returns."""
    setting = next(setting for setting in WIRED if setting.name == "sum")
    (loud,) = outcomes(setting, [ThermalKick(scale=300, quiet=False)])
    assert loud.moved > 1e-2


@pytest.mark.parametrize("setting", WIRED, ids=lambda s: s.name)
def test_a_shift_moves_the_pre_activations_of_its_units_and_no_others(setting: Setting) -> None:
    with Theatre(setting) as theatre:
        start = theatre.state()
        for name in theatre.reports:
            theatre.load(start)
            theatre.look()
            before = theatre.reports[name]
            units = theatre.kill(before)
            theatre.look()
            after = theatre.reports[name]
            if "no-bias" in setting.name or "plain" in setting.name:
                continue
            others = np.delete(np.arange(before.units), units)
            np.testing.assert_allclose(after.mean[units], before.mean[units] - DEPTH, rtol=1e-5)
            np.testing.assert_allclose(after.std[units], before.std[units], rtol=1e-4)
            np.testing.assert_array_equal(after.mean[others], before.mean[others])
