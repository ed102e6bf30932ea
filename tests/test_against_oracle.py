"""Every per-unit result equals an oracle that keeps every activation."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from deadwatch import Rules, State, Watch
from tests.nets import SETTINGS, Setting
from tests.oracle import oracle

STEPS = 4


@pytest.mark.parametrize("setting", SETTINGS, ids=lambda setting: setting.name)
def test_every_statistic_of_every_unit(setting: Setting) -> None:
    torch.manual_seed(0)
    model = setting.build().to(setting.dtype)
    _kill_some(model)
    if setting.channels_last:
        model = model.to(memory_format=torch.channels_last)
    watch = Watch(model, stats_every_n_steps=1, rules=Rules(min_samples=1))
    with oracle(model, setting.dims) as kept, watch:
        for _ in range(STEPS):
            x = setting.batch().to(setting.dtype)
            if setting.channels_last:
                x = x.to(memory_format=torch.channels_last)
            model(x).float().sum().backward()
            watch.step()
        report = watch.close_window()
    assert set(report) == set(kept)
    for name, truth in kept.items():
        site, z, h, opened = report[name], truth.z, truth.h, truth.open
        assert site.samples == len(z)
        assert site.units == z.shape[1]
        assert site.site.unit_dim == truth.dim
        np.testing.assert_array_equal(site.open_fraction * len(z), opened.sum(0))
        closed = State.DEAD if site.site.gate.flat else State.SATURATED
        np.testing.assert_array_equal(site.state == closed, ~opened.any(0))
        np.testing.assert_array_equal(site.min, z.min(0))
        np.testing.assert_array_equal(site.max, z.max(0))
        close = {"rtol": setting.tolerance, "atol": setting.tolerance}
        np.testing.assert_allclose(site.mean, z.mean(0), **close)
        np.testing.assert_allclose(site.std, z.std(0), **close)
        np.testing.assert_allclose(site.mean_abs, np.abs(h).mean(0), **close)
        np.testing.assert_allclose(site.mean_out, h.mean(0), **close)
        np.testing.assert_allclose(site.sparsity, 1 - opened.mean(), rtol=1e-12)
        score = np.abs(h).mean(0) / np.abs(h).mean()
        np.testing.assert_allclose(site.dormancy, score, **close)
        assert not site.nonfinite.any()


def _kill_some(model: torch.nn.Module) -> None:
    """Push the first units of every layer far down, so that there is something to find."""
    with torch.no_grad():
        for module in model.modules():
            bias = getattr(module, "bias", None)
            if isinstance(bias, torch.nn.Parameter):
                bias[: max(1, len(bias) // 4)] -= 40


def test_settings_do_kill_units() -> None:
    """The comparison above would prove little if no unit were ever dead, or all were."""
    torch.manual_seed(0)
    setting = next(s for s in SETTINGS if s.name == "conv2d-norm-inplace")
    model = setting.build()
    _kill_some(model)
    watch = Watch(model, rules=Rules(min_samples=1))
    with watch:
        model(setting.batch())
        report = watch.close_window()
    assert list(report) == ["2", "6"]
    assert all(0 < site.dead.sum() < site.units for site in report.values())


def test_sampling_changes_neither_death_nor_samples() -> None:
    torch.manual_seed(0)
    model = SETTINGS[0].build()
    batches = [SETTINGS[0].batch() for _ in range(7)]
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
    model = SETTINGS[0].build()
    batches = [SETTINGS[0].batch() for _ in range(7)]
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
