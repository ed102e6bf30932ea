"""What the ranks of `test_sharding.py` run: models cut over processes, and the same ones whole."""

from __future__ import annotations

import os
import pickle
import sys
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from deadwatch import Rules, Watch, WindowReport

Run = tuple[WindowReport, list[Tensor]]


class Net(nn.Module):
    """Dead units in both halves of two layers, and in one that follows a row-parallel one."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.a, self.b = nn.Linear(5, width), nn.Linear(width, 6)
            self.norm = nn.LayerNorm(6)
            self.c, self.d = nn.Linear(6, width), nn.Linear(width, 3)
        self.first, self.second, self.last = nn.ReLU(), nn.GELU(), nn.ReLU()
        with torch.no_grad():
            self.a.bias[[0, 1, 5]] = -40
            self.c.bias[[2, width - 1]] = -40
            self.d.bias[1] = -40

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(self.second(self.b(self.first(self.a(x)))))
        h = F.relu(self.c(h))
        return self.last(self.d(h))  # type: ignore[no-any-return]


class Odd(nn.Module):
    """Two layers, and more or less between the first of them and its activation."""

    def __init__(self, case: str) -> None:
        super().__init__()
        self.middle, self.act, out, _ = ODD[case]
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.a, self.b = nn.Linear(5, 8), nn.Linear(out, 3)
        with torch.no_grad():
            self.a.bias[[0, 1, 5]] = -40

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.middle(self, x))  # type: ignore[no-any-return]


def _checkpointed(m: Odd, x: Tensor, *, reentrant: bool) -> Tensor:
    found: Tensor = checkpoint(
        lambda y: m.act(m.a(y)), x.requires_grad_(reentrant), use_reentrant=reentrant
    )
    return found


ODD: dict[str, tuple[Callable[[Odd, Tensor], Tensor], nn.Module, int, bool]] = {
    "scaled": (lambda m, x: m.act(m.a(x) * 2 + 1), nn.ReLU(), 8, True),
    "in place": (lambda m, x: m.act(m.a(x)), nn.ReLU(inplace=True), 8, False),
    "checkpoint": (partial(_checkpointed, reentrant=False), nn.ReLU(), 8, True),
    "heads": (lambda m, x: m.act(_heads(m.a(x))).flatten(1), nn.ReLU(), 8, True),
    "softmax": (lambda m, x: m.act(m.a(x).softmax(-1)), nn.ReLU(), 8, True),
    "GLU": (lambda m, x: m.act(m.a(x)), nn.GLU(), 4, True),
    "GLU of a DTensor": (lambda m, x: m.act(m.a(x)), nn.GLU(), 4, False),
    "no graph": (partial(_checkpointed, reentrant=True), nn.ReLU(), 8, True),
}
"""What stands between two layers, the activation, how many features it returns, and whether it is
given plain local tensors."""

REFUSED = {"heads", "softmax", "GLU", "GLU of a DTensor", "no graph"}


def _heads(z: Tensor) -> Tensor:
    return z.view(len(z), 2, -1)


def run(
    model: nn.Module, shape: tuple[int, ...], ranks: int = 1, rank: int = 0, *, watched: bool = True
) -> Run:
    """Train two windows on every ``ranks``-th sample; returns also all outputs and gradients."""
    watch = Watch(model, rules=Rules(min_samples=1), stats_every_n_steps=1)
    generator = torch.Generator().manual_seed(3)
    found: list[Tensor] = []
    if watched:
        watch.attach()
    for _ in range(2):
        for _ in range(3):
            model.zero_grad()
            out = model(torch.randn(shape, generator=generator)[rank::ranks])
            out.sum().backward()
            watch.step()
            found += [out, *(p.grad for p in model.parameters() if p.grad is not None)]
        report = watch.close_window() if watched else watch.peek()
    watch.detach()
    return report, [_plain(tensor) for tensor in found]


def _plain(tensor: Any) -> Tensor:
    tensor = tensor.to_local() if hasattr(tensor, "to_local") else tensor
    return tensor.detach().clone()  # type: ignore[no-any-return]


def caught(function: Callable[[], Any]) -> tuple[Any, list[str]]:
    """What a function returns, and what it warns of."""
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        result = function()
    return result, [str(warning.message) for warning in found]


def refusal(model: nn.Module, change: Callable[[], Any] = lambda: None) -> str:
    """What is said to a policy that treats, if ``change`` happens before the watch is attached."""
    watch = Watch(model, optimizer=torch.optim.SGD(model.parameters(), 0.1), policy="revive")
    change()
    watch.attach()
    return ""


def told(function: Callable[[], Any]) -> str:
    """The error of a function."""
    try:
        function()
    except ValueError as error:
        return f"{type(error).__name__}: {error}"
    return "no error"


# ── on two ranks ────────────────────────────────────────────────────────────────────────────


def plans(*, local: bool) -> dict[str, Any]:
    """The tensor parallelism of a `Net`."""
    from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel

    return {
        "a": ColwiseParallel(use_local_output=local),
        "b": RowwiseParallel(),
        "c": ColwiseParallel(use_local_output=local),
        "d": RowwiseParallel(use_local_output=local),
    }


def sequence() -> dict[str, Any]:
    """The same, with the norm and the last activation cut along the tokens."""
    from torch.distributed.tensor import Shard
    from torch.distributed.tensor.parallel import (
        ColwiseParallel,
        RowwiseParallel,
        SequenceParallel,
    )

    return {
        "a": ColwiseParallel(),
        "b": RowwiseParallel(output_layouts=Shard(1), use_local_output=False),
        "norm": SequenceParallel(),
        "c": ColwiseParallel(input_layouts=Shard(1)),
        "d": RowwiseParallel(output_layouts=Shard(1)),
    }


def tensor_parallel(rank: int) -> dict[str, Any]:
    """Reports of models under tensor parallelism."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor.parallel import parallelize_module

    mesh = init_device_mesh("cpu", (2,))
    found: dict[str, Any] = {}
    cases: dict[str, tuple[dict[str, Any], tuple[int, ...], int]] = {
        "local": (plans(local=True), (16, 5), 8),
        "DTensor": (plans(local=False), (4, 6, 5), 8),
        "uneven": (plans(local=False), (16, 5), 7),
        "sequence": (sequence(), (4, 6, 5), 8),
    }
    for name, (plan, shape, width) in cases.items():
        watched = caught(lambda: run(parallelize_module(Net(width), mesh, plan), shape))  # noqa: B023
        bare = run(parallelize_module(Net(width), mesh, plan), shape, watched=False)
        found[name] = watched[0][0], watched[1], _same(watched[0], bare)
    for name, (*_, local) in ODD.items():
        plan = {"a": plans(local=local)["a"], "b": plans(local=True)["b"]}
        watched = caught(lambda: run(parallelize_module(Odd(name), mesh, plan), (16, 5)))  # noqa: B023
        bare = run(parallelize_module(Odd(name), mesh, plan), (16, 5), watched=False)
        found[name] = watched[0][0], watched[1], _same(watched[0], bare)
    model = parallelize_module(Net(), mesh, plans(local=False))
    compiled: Any = torch.compile(model, backend="aot_eager")
    found["compiled"] = caught(lambda: run(compiled, (16, 5))[0])
    late = Net()
    found["refused"] = told(lambda: refusal(parallelize_module(Net(), mesh, plans(local=True))))
    found["refused late"] = told(
        lambda: refusal(late, lambda: parallelize_module(late, mesh, plans(local=True)))
    )
    found["resumed"] = resumed(lambda: parallelize_module(Net(), mesh, plans(local=True)))
    return found


def _same(one: Run, other: Run) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one[1], other[1], strict=True))


def resumed(build: Callable[[], nn.Module]) -> tuple[WindowReport, WindowReport]:
    """Reports of a run, and of one that is interrupted in its second window."""
    reports = []
    for interrupted in (False, True):
        model = build()
        watch = Watch(model, rules=Rules(min_samples=1), stats_every_n_steps=1).attach()
        generator = torch.Generator().manual_seed(5)
        for step in range(6):
            model(torch.randn(8, 5, generator=generator)).sum().backward()
            watch.step()
            if step == 2:
                watch.close_window()
            if step == 4 and interrupted:
                state = watch.state_dict()
                watch.detach()
                watch = Watch(model, rules=Rules(min_samples=1), stats_every_n_steps=1)
                watch.load_state_dict(state)
                watch.attach()
        reports.append(watch.close_window())
        watch.detach()
    return reports[0], reports[1]


def fsdp1(rank: int) -> dict[str, Any]:
    """Reports of models under FSDP1, and what treating them is told."""
    from torch.distributed.fsdp import FullyShardedDataParallel

    found: dict[str, Any] = {}
    for original in (False, True):

        def wrapped(model: nn.Module, original: bool = original) -> nn.Module:
            cpu = torch.device("cpu")
            return FullyShardedDataParallel(model, device_id=cpu, use_orig_params=original)

        found[f"FSDP1 {original}"] = caught(lambda: run(wrapped(Net()), (16, 5), 2, rank)[0])
        found[f"refused {original}"] = told(lambda: refusal(wrapped(Net())))
        inner = Net()
        found[f"refused late {original}"] = told(lambda: refusal(inner, lambda: wrapped(inner)))  # noqa: B023
    return found


class Stage(nn.Module):
    """One layer of a model of two, under the name that it has there, or without."""

    def __init__(self, rank: int, *, named: bool) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(rank)
            layer = nn.Sequential(nn.Linear(5, 5), nn.ReLU())
        with torch.no_grad():
            layer[0].bias[rank] = -40
        self.name = f"layer{rank}" if named else "layer"
        self.add_module(self.name, layer)

    def forward(self, x: Tensor) -> Tensor:
        return self.get_submodule(self.name)(x)  # type: ignore[no-any-return]


def pipeline(rank: int) -> dict[str, Any]:
    """Reports of the stages of a pipeline."""
    from torch.distributed.pipelining import PipelineStage, ScheduleGPipe

    found: dict[str, Any] = {}
    for named in (True, False):
        model = Stage(rank, named=named)
        stages: list[Any] = []
        found[f"refused late {named}"] = told(
            lambda: refusal(
                model,  # noqa: B023
                lambda: stages.append(PipelineStage(model, rank, 2, torch.device("cpu"))),  # noqa: B023
            )
        )
        found[f"refused {named}"] = told(lambda: refusal(model))  # noqa: B023
        schedule = ScheduleGPipe(stages[0], 2, loss_fn=lambda out, _: out.sum())
        found[f"pipeline {named}"] = caught(lambda: _pipelined(model, schedule, rank))  # noqa: B023
    return found


def _pipelined(model: nn.Module, schedule: Any, rank: int) -> WindowReport:
    watch = Watch(model, rules=Rules(min_samples=1), stats_every_n_steps=1)
    generator = torch.Generator().manual_seed(3)
    with watch:
        for _ in range(2):
            x = torch.randn(8, 5, generator=generator)
            schedule.step(x) if rank == 0 else schedule.step(target=x)
            watch.step()
        return watch.close_window()


def other_units(rank: int) -> dict[str, Any]:
    """Processes whose models are not the same, and nothing says why."""
    model = nn.Sequential(nn.Linear(5, 3 + rank), nn.ReLU())
    return {"other units": caught(lambda: run(model, (8, 5))[0])}


# ── on four ranks ───────────────────────────────────────────────────────────────────────────


def two_axes(rank: int) -> dict[str, Any]:
    """Reports under `fully_shard` along one axis of a mesh and tensor parallelism along another."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor.parallel import parallelize_module

    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("data", "tensor"))

    def build(*, parallel: bool) -> nn.Module:
        model: Any = Net()
        if parallel:
            parallelize_module(model, mesh["tensor"], plans(local=True))
        for part in (model.a, model.c, model):
            fully_shard(part, mesh=mesh["data"])
        return model  # type: ignore[no-any-return]

    alone, both = build(parallel=False), build(parallel=True)
    from deadwatch.observe.strategies import only_watchable

    found: dict[str, Any] = {"fully_shard": only_watchable(alone, ())}
    with torch.no_grad():
        alone(torch.randn(2, 5))  # the root stays whole
    found["fully_shard after a forward"] = only_watchable(alone, ())
    found["refused"] = told(lambda: refusal(both))
    data = mesh["data"].get_local_rank()
    found["two axes"] = caught(lambda: run(both, (16, 5), 2, data)[0])
    return found


def main() -> None:
    """Run the named parts on this rank, and write down what they return."""
    rank, world, folder = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=world
    )
    parts = (two_axes,) if world == 4 else (tensor_parallel, fsdp1, pipeline, other_units)
    found = {part.__name__: part(rank) for part in parts}
    with open(f"{folder}/rank{rank}.pkl", "wb") as file:
        pickle.dump(found, file)
    dist.barrier()
    sys.stdout.flush()
    os._exit(0)  # gloo's own threads now and then abort an orderly exit
