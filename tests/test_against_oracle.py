"""Every call, every unit and every statistic equal an oracle that keeps every activation."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import nn

from deadwatch import Rules, Watch
from tests.agreement import (
    assert_same_counts,
    assert_same_moments,
    observe,
    one_thread,
    train,
    truth,
)
from tests.nets import mlp, vectors
from tests.setting import Setting
from tests.table import BY_NAME, SETTINGS


@pytest.fixture(autouse=True, scope="module")
def threads() -> Iterator[None]:
    with one_thread():
        yield


@pytest.mark.parametrize("setting", SETTINGS, ids=lambda setting: setting.name)
def test_watching_sees_everything_and_changes_nothing(setting: Setting) -> None:
    kept = truth(setting.name)
    model = setting.model()
    before = traces(model)
    observed = observe(setting, model)
    assert observed.seen == set(kept)
    assert observed.unseen == set(setting.unseen)
    guesses = observed.guesses()
    assert all(any(guess.startswith(f"{s}: ") for s in setting.ambiguous) for guess in guesses)
    assert len(guesses) == len(setting.ambiguous)
    assert observed.other_warnings() == []
    for name, site in kept.items():
        assert_same_counts(observed.report[name], site)
        np.testing.assert_array_equal(observed.report[name].min, site.z.min(0))
        np.testing.assert_array_equal(observed.report[name].max, site.z.max(0))
        assert_same_moments(observed.report[name], site, setting.tolerance)
    assert traces(model) == before
    for one, two in zip(observed.tensors, train(setting, setting.model()), strict=True):
        assert torch.equal(one, two)


def traces(model: nn.Module) -> list[object]:
    """Whatever a watch could leave behind: hooks, attributes, function modes."""
    hooks = [
        (len(m._forward_hooks), len(m._forward_pre_hooks), sorted(vars(m))) for m in model.modules()
    ]
    return [*hooks, torch._C._len_torch_function_stack()]


@pytest.mark.parametrize("setting", SETTINGS, ids=lambda setting: setting.name)
def test_the_oracle_disturbs_nothing_and_hears_something(setting: Setting) -> None:
    """The comparison would prove little without sites, or on units that are never shut."""
    kept = truth(setting.name)
    assert kept
    assert all(np.isfinite(site.z).all() and np.isfinite(site.h).all() for site in kept.values())
    assert all(site.open.any() for site in kept.values())


def test_most_settings_hold_both_dead_units_and_live_ones() -> None:
    mixed = [
        setting.name
        for setting in SETTINGS
        if any(
            0 < site.open.any(0).sum() < site.z.shape[1] for site in truth(setting.name).values()
        )
    ]
    assert len(mixed) > 0.8 * len(SETTINGS)


def test_the_table_is_large_and_its_names_are_unique() -> None:
    assert len(BY_NAME) == len(SETTINGS) >= 100


def test_sampling_changes_neither_death_nor_samples() -> None:
    torch.manual_seed(0)
    model = mlp()
    batches = [vectors() for _ in range(7)]
    reports = []
    for every in (1, 3, 100):
        watch = Watch(model, stats_every_n_steps=every, rules=Rules(min_samples=1))
        with watch:
            for batch in batches:
                model(batch)
                watch.step()
            reports.append(watch.close_window())
    for report in reports[1:]:
        for name, site in report.items():
            assert site.samples == reports[0][name].samples
            np.testing.assert_array_equal(site.dead, reports[0][name].dead)


def test_sampled_moments_are_those_of_the_sampled_steps() -> None:
    torch.manual_seed(0)
    model = mlp()
    batches = [vectors() for _ in range(7)]
    watch = Watch(model, stats_every_n_steps=3)
    with watch:
        for batch in batches:
            model(batch)
            watch.step()
        report = watch.close_window()
    with torch.no_grad():
        z = torch.cat([model[0](batches[i]) for i in (0, 3, 6)]).double().numpy()
    np.testing.assert_allclose(report["1"].mean, z.mean(0), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(report["1"].std, z.std(0), rtol=1e-5)
