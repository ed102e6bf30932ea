"""On a CUDA device: the same results, and no waiting for the device inside a step."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

from deadwatch import Recycle, Remedy, Restandardize, Rules, ThermalKick, Watch
from tests.clinic import DEAD, Patient
from tests.nets import conv, images

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


def test_a_step_never_waits_for_the_device() -> None:
    model = conv(2, norm=True, inplace=True).cuda()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    x = images(2).cuda()
    with Watch(model, stats_every_n_steps=2) as watch:
        model(x).square().mean().backward()  # traced: may look around
        watch.step()
        torch.cuda.set_sync_debug_mode("error")
        try:
            for _ in range(4):
                model(x).square().mean().backward()
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
                watch.step()
        finally:
            torch.cuda.set_sync_debug_mode("default")
        assert watch.close_window()["2"].samples == 5 * len(x) * 16


def test_the_device_agrees_with_the_host() -> None:
    torch.manual_seed(0)
    host = conv(2, norm=True)
    device = copy.deepcopy(host).cuda()
    x = images(2)
    reports = []
    for model, batch in ((host, x), (device, x.cuda())):
        with Watch(model, rules=Rules(min_samples=1)) as watch:
            model(batch)
            reports.append(watch.close_window())
    for name, site in reports[0].items():
        np.testing.assert_array_equal(site.state, reports[1][name].state)
        np.testing.assert_allclose(site.mean, reports[1][name].mean, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(site.std, reports[1][name].std, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("remedy", [Recycle(), Restandardize(), ThermalKick()], ids=str)
def test_new_rows_on_the_device(remedy: Remedy) -> None:
    patient = Patient.of("conv")
    patient.model.cuda()
    patient.x = patient.x.cuda()
    patient.optimizer = torch.optim.Adam(patient.model.parameters(), lr=1e-3, fused=True)
    patient.train(2)
    before = patient.model(patient.x)
    report, _ = patient.treated(remedy)
    assert report.treatments[0].units.tolist() == DEAD
    torch.testing.assert_close(patient.model(patient.x), before)
