"""On a CUDA device: the same results, and no waiting for the device inside a step."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from deadwatch import Recycle, Remedy, Restandardize, Rules, ThermalKick, Watch
from tests.clinic import DEAD, Patient
from tests.nets import conv, images, mlp, vectors

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


@pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype:UserWarning")
@pytest.mark.parametrize("half", [False, True], ids=["float32", "autocast"])
def test_a_step_never_waits_for_the_device(half: bool) -> None:
    model = conv(2, norm=True, inplace=True).cuda()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    x = images(2).cuda()

    def loss() -> Tensor:
        with torch.autocast("cuda", torch.bfloat16, enabled=half):
            out: Tensor = model(x)
        return out.float().square().mean()

    with Watch(model, stats_every_n_steps=2) as watch:
        loss().backward()  # traced: may look around
        watch.step()
        torch.cuda.set_sync_debug_mode("error")
        try:
            for _ in range(4):
                loss().backward()
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
                watch.step()
        finally:
            torch.cuda.set_sync_debug_mode("default")
        assert watch.close_window()["2"].samples == 5 * len(x) * 16


@pytest.mark.usefixtures("nothing_stays_behind")
def test_a_step_copies_nothing_to_the_host_and_a_window_once() -> None:
    model = conv(2, norm=True).cuda()
    x = images(2).cuda()
    with Watch(model, stats_every_n_steps=1) as watch:

        def step() -> None:
            model(x).square().mean().backward()
            watch.step()

        step()
        copies_to_the_host(step)  # a profiler's first events may be missing
        assert copies_to_the_host(lambda: x.cpu()) == 1
        assert copies_to_the_host(step) == 0
        assert copies_to_the_host(watch.close_window) == 1


def copies_to_the_host(run: Callable[[], Any]) -> int:
    torch.cuda.synchronize()
    both = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=both, acc_events=True) as profiler:
        run()
        torch.cuda.synchronize()
    return sum(event.name.startswith("Memcpy DtoH") for event in profiler.events())


@pytest.mark.usefixtures("nothing_stays_behind")
def test_cuda_graphs_count_as_an_uncompiled_run() -> None:
    torch._dynamo.reset()
    torch.manual_seed(0)
    model = mlp().cuda()
    with torch.no_grad():
        model[0].bias[3] = -100.0
    batches = [vectors().cuda() for _ in range(12)]  # each graph is warmed, recorded and replayed
    reports = []
    for call in (model, torch.compile(model, mode="reduce-overhead")):
        with Watch(model, stats_every_n_steps=2, rules=Rules(min_samples=1)) as watch:
            for batch in batches:
                torch.compiler.cudagraph_mark_step_begin()
                call(batch).square().mean().backward()
                model.zero_grad(set_to_none=True)
                watch.step()
            reports.append(watch.close_window())
    torch._dynamo.reset()
    plain, graphs = reports
    assert set(plain) == set(graphs) == {"1", "3"}
    for name, site in plain.items():
        assert graphs[name].samples == site.samples == 12 * 20
        np.testing.assert_array_equal(graphs[name].state, site.state)
        for moment in ("open_fraction", "mean", "std", "min", "max", "mean_abs"):
            one, two = getattr(graphs[name], moment), getattr(site, moment)
            np.testing.assert_allclose(one, two, rtol=1e-2, atol=1e-2, err_msg=moment)
    assert graphs["1"].dead[3]


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
