"""A compiled model has the sites of the eager one, the same counts, and computes the same."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

from deadwatch import DeadwatchWarning
from tests.agreement import (
    Observed,
    assert_same_counts,
    assert_same_moments,
    observe,
    one_thread,
    train,
    truth,
)
from tests.setting import Setting
from tests.table import BY_NAME, SETTINGS

COMPILABLE = [setting for setting in SETTINGS if setting.compilable]
INDUCTOR = [BY_NAME[name] for name in ("mlp-relu", "F.relu", "shared", "gpt")]


@pytest.fixture(autouse=True)
def nothing_compiled_before() -> Iterator[None]:
    gc.collect()  # watches that other tests have left attached
    torch._dynamo.reset()
    with one_thread():
        yield
    torch._dynamo.reset()


def compiled(setting: Setting, backend: str) -> Observed:
    model = setting.model()
    return observe(setting, model, torch.compile(model, backend=backend))


def assert_as_in_eager(observed: Observed, setting: Setting, tolerance: float) -> None:
    kept = truth(setting.name)
    assert observed.seen == set(kept)
    assert observed.unseen == set(setting.unseen)
    assert observed.guesses() == []
    assert observed.other_warnings(DeadwatchWarning) == []
    for name, site in kept.items():
        assert_same_counts(observed.report[name], site)
        assert_same_moments(observed.report[name], site, tolerance)
        close: Any = {"rtol": tolerance, "atol": tolerance}
        np.testing.assert_allclose(observed.report[name].min, site.z.min(0), **close)
        np.testing.assert_allclose(observed.report[name].max, site.z.max(0), **close)


@pytest.mark.parametrize("setting", COMPILABLE, ids=lambda setting: setting.name)
def test_a_compiled_model_has_the_sites_and_counts_of_the_eager_one(setting: Setting) -> None:
    observed = compiled(setting, "eager")
    assert_as_in_eager(observed, setting, setting.tolerance)
    for one, two in zip(observed.tensors, train(setting, setting.model()), strict=True):
        assert torch.equal(one, two)


@pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")  # torch's own
@pytest.mark.parametrize("setting", INDUCTOR, ids=lambda setting: setting.name)
def test_so_does_one_that_inductor_compiled(setting: Setting) -> None:
    assert setting.compilable
    observed = compiled(setting, "inductor")
    assert_as_in_eager(observed, setting, 1e-4)
    for one, two in zip(observed.tensors, train(setting, setting.model()), strict=True):
        assert (one - two).abs().max() <= 1e-3 * two.abs().max() + 1e-6


def test_the_compiled_settings_are_many() -> None:
    assert len(COMPILABLE) >= 20
