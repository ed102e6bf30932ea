"""Trains a small network in one process, or as one rank of several, on the same samples.

The loss of a rank is its share of the mean over all samples, times the number of ranks: averaged
over the ranks, as DDP does, gradients are those of one process, however uneven the shares. All is
in double precision, so that another order of summation does not show.
"""

from __future__ import annotations

import hashlib
import os
import pickle
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from deadwatch import Policy, Rules, Watch
from deadwatch.plain import to_plain
from tests.ranks import run_ranks

Results = dict[str, dict[str, Any]]
Runs = Mapping[str, Callable[["Place"], dict[str, Any]]]


@dataclass(frozen=True)
class Place:
    """Which rank this is, of how many; the only one of one by default."""

    rank: int = 0
    ranks: int = 1

    def shares(self, batch: Tensor, apart: int) -> list[Tensor]:
        """What this rank calls the model with: its samples of a batch, as many as others or not.

        The only rank of one calls it ``apart`` times, with what so many ranks would have.
        """
        if self.ranks > 1:
            return [batch[self.rank :: self.ranks]]
        return [batch[part::apart] for part in range(apart)]


GRAPHS: list[Any] = []
"""What has been compiled in this process."""


def compiled(network: Any) -> Any:
    """Compiled, into graphs that run as they are, which is quick."""

    def keep(graph: Any, inputs: Any) -> Any:
        GRAPHS.append(graph)
        return graph.forward

    return torch.compile(network, backend=keep)


@dataclass
class Run:
    """One training run.

    Attributes:
        build: Makes the network, equal on all ranks.
        policy: What treats it; None to only watch.
        ddp: Arguments of DDP.
        wrap: What is done to the network before it is put in DDP.
        over: What is done to the wrapper.
        inner: Whether the watch is given the network, and not what is around it.
        apart: With the samples of how many ranks one process calls the model, one after another.
        loss: Of outputs and targets, summed over the samples.
        losses: The losses that the watch is told, by step; None for those of the training.
        accumulate: Batches to a step, all but the last of them under ``no_sync``.
        anew: Whether the watch is detached after each window, and attached for the next.
        windows: Windows of a pass over all batches each.
        batches: What it is trained on in each window.
    """

    build: Callable[[], nn.Module]
    policy: Policy | None = None
    ddp: dict[str, Any] = field(default_factory=dict)
    wrap: Callable[[nn.Module], nn.Module] = lambda network: network
    over: Callable[[Any], Any] = lambda wrapper: wrapper
    inner: bool = False
    apart: int = 1
    loss: Callable[[Tensor, Tensor], Tensor] = lambda out, target: (out - target).square().sum()
    losses: Callable[[int], float] | None = None
    accumulate: int = 1
    anew: bool = False
    windows: int = 2
    batches: Callable[[int], list[Tensor]] = lambda window: batches()

    def __call__(self, place: Place) -> dict[str, Any]:
        torch.manual_seed(100 + place.rank)  # every rank has a stream of its own
        network = self.build().double()
        model: Any = self.wrap(network)
        if place.ranks > 1:
            model = self.over(DistributedDataParallel(model, **self.ddp))
        optimizer = torch.optim.Adam(network.parameters(), lr=1e-2, weight_decay=1e-2)
        watched = network if self.inner else model
        rules = Rules(min_samples=1)
        watch = Watch(
            watched, optimizer=optimizer, policy=self.policy, rules=rules, stats_every_n_steps=1
        )
        compiled = len(GRAPHS)
        result: dict[str, Any] = {"reports": [], "hashes": [], "collectives": []}
        with warnings.catch_warnings(record=True) as caught, watch:
            warnings.simplefilter("always")
            for window in range(self.windows):
                for step in self._steps(window):
                    loss = self._pass(step, model, place)
                    nn.utils.clip_grad_norm_(network.parameters(), 1.0)
                    optimizer.step()
                    optimizer.zero_grad()
                    watch.step(loss if self.losses is None else self.losses(watch.steps))
                    result["hashes"].append(hashed(network, optimizer))
                with counted_collectives() as collectives:
                    result["reports"].append(watch.close_window())
                result["collectives"].append(collectives)
                if self.anew:
                    watch.detach()
                    watch.attach()
                result["hashes"].append(hashed(network, optimizer))
        result["graphs"] = len(GRAPHS) - compiled
        result["told"] = [str(w.message) for w in caught if issubclass(w.category, UserWarning)]
        result["ledger"] = repr(to_plain(watch.ledger.state_dict()))
        result["hooks"] = sum(bool(p._post_accumulate_grad_hooks) for p in network.parameters())
        result["weights"] = {k: v.clone() for k, v in network.state_dict().items()}
        return result

    def _steps(self, window: int) -> Iterator[list[Tensor]]:
        made = self.batches(window)
        for start in range(0, len(made), self.accumulate):
            yield made[start : start + self.accumulate]

    def _pass(self, step: list[Tensor], model: Any, at: Place) -> Tensor:
        """Leave the gradients of one step in the parameters; returns the last loss."""
        loss = torch.zeros(())
        for number, batch in enumerate(step):
            last = number == len(step) - 1
            with nullcontext() if last or at.ranks == 1 else model.no_sync():
                for x in at.shares(batch, self.apart):
                    loss = self.loss(model(x), x[:, :3]) * at.ranks / (len(batch) * len(step))
                    loss.backward()
        return loss


@contextmanager
def counted_collectives() -> Iterator[list[str]]:
    """The names of the collectives that are called within."""
    names = ["all_reduce", "all_gather_object", "broadcast", "broadcast_object_list"]
    called: list[str] = []
    originals = {name: getattr(dist, name) for name in names}

    def counting(name: str) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            called.append(name)
            return originals[name](*args, **kwargs)

        return call

    for name in names:
        setattr(dist, name, counting(name))
    yield called
    for name, original in originals.items():
        setattr(dist, name, original)


def hashed(network: nn.Module, optimizer: torch.optim.Optimizer) -> str:
    """A fingerprint of all weights and of the optimizer's state."""
    digest = hashlib.sha256()
    for parameter in network.parameters():
        state = optimizer.state.get(parameter, {})
        for value in (parameter.detach(), *(state[key] for key in sorted(state))):
            digest.update(value.contiguous().numpy().tobytes())
    return digest.hexdigest()


def batches() -> list[Tensor]:
    """The last one is smaller, and no number of ranks divides it."""
    generator = torch.Generator().manual_seed(4)
    made = [torch.randn(n, 6, generator=generator).double() for n in (16, 16, 16, 7)]
    for batch in made:
        batch[:, 5] = batch[:, 5].clamp(max=0.9)
    made[3][1, 5] = 1.5  # on the second rank, the only sample that opens a certain unit
    return made


def perform(
    tables: Mapping[int, Runs],
    rank: int,
    ranks: int,
    folder: str,
) -> None:
    """Be one rank of all runs for so many, one after the other; does not return."""
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=ranks
    )
    results = {name: run(Place(rank, ranks)) for name, run in tables[ranks].items()}
    Path(folder, f"rank{rank}.pkl").write_bytes(pickle.dumps(results))
    dist.barrier()
    sys.stdout.flush()
    os._exit(0)  # gloo's own threads now and then abort an orderly exit


def on_ranks(table: str, folder: Path, ranks: int) -> list[Results]:
    """The results of all runs of a table, ``module:NAME``, on each rank."""
    module, name = table.split(":")
    script = (
        f"import sys; from {module} import {name}; from tests.parallel import perform; "
        f"perform({name}, int(sys.argv[1]), int(sys.argv[2]), sys.argv[3])"
    )
    run_ranks(script, folder, ranks)
    return [pickle.loads((folder / f"rank{rank}.pkl").read_bytes()) for rank in range(ranks)]
