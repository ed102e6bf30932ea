"""On a CUDA device: the same results, and no waiting for the device inside a step."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from deadwatch import Recycle, Remedy, Restandardize, Rules, ThermalKick, Watch
from tests.clinic import DEAD, Patient
from tests.nets import conv, images, mlp, vectors
from tests.ranks import run_ranks

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


@pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype:UserWarning")
@pytest.mark.parametrize("half", [False, True], ids=["float32", "autocast"])
@pytest.mark.parametrize("advice", [False, True], ids=["watched", "advised"])
def test_a_step_never_waits_for_the_device(half: bool, advice: bool) -> None:
    model = conv(2, norm=True, inplace=True).cuda()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    x = images(2).cuda()

    def loss() -> Tensor:
        with torch.autocast("cuda", torch.bfloat16, enabled=half):
            out: Tensor = model(x)
        return out.float().square().mean()

    with Watch(model, stats_every_n_steps=2, advice=advice, gradients=advice) as watch:
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


def on_devices(device: str) -> str:
    """A script: each rank treats its part of the samples, on a device of its own."""
    backend = "nccl" if device == "cuda" else "gloo"
    return f"""
import os, pickle, sys
import torch
import torch.distributed as dist
from deadwatch import Policy, Recycle, Rules, Watch
from tests.nets import mlp, vectors

rank, world, folder = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
device = "cuda:%d" % rank if "{device}" == "cuda" else "cpu"
if "{device}" == "cuda":
    torch.cuda.set_device(rank)
dist.init_process_group("{backend}", init_method="file://%s/store" % folder, rank=rank,
                        world_size=world)
torch.manual_seed(0)
model = mlp()
with torch.no_grad():
    model[0].bias[:3] = -40
model = model.to(device)
model = torch.nn.parallel.DistributedDataParallel(model)
optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
policy = Policy((Recycle(),), when=0.0, cooldown=0)
with Watch(model, optimizer=optimizer, policy=policy, rules=Rules(min_samples=1)) as watch:
    for step in range(4):
        model(vectors().to(device)[rank::world]).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        watch.step()
    report = watch.close_window()
weights = [parameter.detach().cpu() for parameter in model.parameters()]
with open("%s/rank%d.pkl" % (folder, rank), "wb") as file:
    pickle.dump((report["1"].samples, report["1"].dead, weights), file)
dist.barrier()
sys.stdout.flush()
os._exit(0)  # gloo's own threads now and then abort an orderly exit
"""


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
def test_two_devices_agree_over_nccl(tmp_path: Path) -> None:
    run_ranks(on_devices("cuda"), tmp_path)
    first, second = (pickle.loads((tmp_path / f"rank{n}.pkl").read_bytes()) for n in range(2))
    assert first[0] == second[0] == 4 * len(vectors())
    assert first[1][:3].all()
    np.testing.assert_array_equal(first[1], second[1])
    for one, other in zip(first[2], second[2], strict=True):
        assert torch.equal(one, other)
