"""What watching adds to a training step, counted and not timed: the numbers in `cost.json`.

A network is trained twice, watched and bare, and the operations of one step are subtracted. Eight
kinds of steps, and the end of a window. A step on an accelerator is counted on the meta device:
the operations are those of any device that is not the host, and whoever looks at a value raises.

    python -m tests.cost            # print the table
    python -m tests.cost --write    # accept it as the new one
"""

from __future__ import annotations

import gc
import json
import platform
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks import networks
from deadwatch import Watch
from tests.agreement import one_thread
from tests.dispatches import Operation, Tally, counted

FILE = Path(__file__).with_name("cost.json")

BEFORE = 5
"""Steps before calls and then operations are counted: neither is a step 1, 2, 4, 8 … of the window,
on which more is looked at, nor a tenth."""


@dataclass(frozen=True)
class Cost:
    """What watching adds to one step, or what closing a window takes.

    Attributes:
        launches: Operations that read or write data.
        others: Views and allocations.
        read: Bytes read.
        written: Bytes written.
        largest: Bytes of the largest temporary.
        looks: Operations for which the host has to know a value.
        calls: Calls of Python functions, whoever makes them; None where they are not counted.
        operations: How many of each name.
    """

    launches: int
    others: int
    read: int
    written: int
    largest: int
    looks: int
    calls: int | None
    operations: dict[str, int]

    @classmethod
    def of(cls, added: Counter[Operation], calls: int | None = None) -> Cost:
        launches = sum(n for operation, n in added.items() if operation.is_launch)
        names: Counter[str] = Counter()
        for operation, n in added.items():
            names[operation.name] += n
        return cls(
            launches=launches,
            others=added.total() - launches,
            read=sum(operation.read * n for operation, n in added.items()),
            written=sum(operation.written * n for operation, n in added.items()),
            largest=max((operation.temporary for operation in added), default=0),
            looks=sum(operation.looks * n for operation, n in added.items()),
            calls=calls,
            operations=dict(sorted(names.items())),
        )


@dataclass(frozen=True)
class Kind:
    """A kind of step.

    Attributes:
        every: Interval of the statistics.
        gates: Those that open: as the network was built; all, on pre-activations of mean 1 and a
            small deviation; or all but the first of each layer.
        device: Where the model is.
        advised: Whether the gauges of advice and of gradients are on.
    """

    every: int = 10
    gates: Literal["as built", "all", "all but one"] = "as built"
    device: str = "cpu"
    advised: bool = False


KINDS = {
    "idle": Kind(gates="all"),
    "liveness": Kind(gates="all but one"),
    "full": Kind(every=1),
    "full, mean far from 0": Kind(every=1, gates="all"),
    "liveness, device": Kind(device="meta"),
    "full, device": Kind(every=1, device="meta"),
    "idle, advised": Kind(gates="all", advised=True),
    "full, advised, device": Kind(every=1, device="meta", advised=True),
}


class Functions(nn.Module):
    """Its activations are functions: for these a function mode is on during every forward."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.last = (nn.Linear(64, 64) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.last(F.relu(self.second(F.relu(self.first(x)))))
        return result


def four_chunks() -> nn.Module:
    """One site, whose activations of 2²⁰ elements are worked through in four chunks."""
    return nn.Sequential(nn.Linear(16, 256), nn.ReLU(), nn.Linear(256, 1))


NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "MLP": (networks.mlp, (128, 512)),
    "transformer": (networks.transformer, (2, 64, 256)),
    "ResNet": (networks.resnet, (4, 3, 64, 64)),
    "functions": (Functions, (32, 64)),
    "four chunks": (four_chunks, (4096, 16)),
}


class Training:
    """A network in training, watched or not."""

    def __init__(self, network: str, kind: Kind, watch: bool) -> None:
        build, batch = NETWORKS[network]
        torch.manual_seed(0)
        with torch.device(kind.device):
            self._model, self._x = build(), torch.randn(batch)
        _set_gates(self._model, kind.gates)
        self._optimizer = torch.optim.SGD(self._model.parameters(), lr=1e-6)
        gauges = {"advice": kind.advised, "gradients": kind.advised}
        every = kind.every
        self.watch = Watch(self._model, stats_every_n_steps=every, **gauges) if watch else None
        if self.watch is not None and kind.device == "meta":
            self.watch._adviser.enabled = False  # after the first step it reads what there is

    def step(self) -> None:
        networks.train(self._model, self._optimizer, self._x, 1)
        if self.watch is not None:
            self.watch.step()

    @contextmanager
    def attached(self) -> Iterator[None]:
        # Also on the meta device, where deadwatch takes models for mere descriptions.
        with one_thread(), patch("deadwatch.observe.calls.is_real", lambda tensor: True):
            if self.watch is not None:
                self.watch.attach()
            for _ in range(BEFORE):
                self.step()
            yield
            if self.watch is not None:
                self.watch.detach()


def _set_gates(model: nn.Module, gates: str) -> None:
    layers = (m for m in model.modules() if isinstance(m, nn.Linear | nn.Conv2d | nn.BatchNorm2d))
    with torch.no_grad():
        for layer in layers:
            if gates == "all":
                layer.weight.mul_(0.1)
            if gates == "all" and layer.bias is not None:
                layer.bias.fill_(1.0)
            if gates == "all but one" and layer.bias is not None:
                layer.bias[0] = -100.0


def a_step(network: str, kind: Kind, watch: bool = True) -> tuple[Counter[Operation], int]:
    """The operations of one step, and the calls of Python functions in another."""
    training = Training(network, kind, watch)
    with training.attached():
        calls = calls_of(training.step)
        with counted() as tally:
            training.step()
    return Counter(tally.operations), calls


@cache
def a_bare_step(network: str, device: str) -> tuple[Counter[Operation], int]:
    """The same of a network that is not watched."""
    return a_step(network, Kind(device=device), watch=False)


def calls_of(run: Callable[[], None]) -> int:
    """How many calls of Python functions it makes."""
    calls = 0

    def note(frame: Any, event: str, argument: Any) -> None:
        nonlocal calls
        calls += event == "call"

    collects, before = gc.isenabled(), sys.getprofile()
    gc.disable()
    sys.setprofile(note)
    try:
        run()
    finally:
        sys.setprofile(before)
        if collects:
            gc.enable()
    return calls


def cost_of_a_step(network: str, kind: Kind) -> Cost:
    """What watching adds to one step; it may leave nothing out that is done without it."""
    watched, calls = a_step(network, kind)
    bare, calls_of_bare = a_bare_step(network, kind.device)
    assert not bare - watched, f"a watched {network} leaves out {bare - watched}"
    # The meta device computes shapes in Python.
    return Cost.of(watched - bare, calls - calls_of_bare if kind.device == "cpu" else None)


def closed_window(network: str) -> Tally:
    """What closing a window dispatches."""
    training = Training(network, KINDS["idle"], True)
    assert training.watch is not None
    with training.attached(), counted() as tally:
        training.watch.close_window()
    return tally


# ── the table ───────────────────────────────────────────────────────────────────────────────

Table = dict[str, Cost]

VERSIONS = {
    "torch": torch.__version__.partition("+")[0],
    "python": ".".join(platform.python_version_tuple()[:2]),
}
"""Counts are exact for a version of torch, calls also for one of Python."""


def measured() -> Table:
    table = {}
    for network in NETWORKS:
        for name, kind in KINDS.items():
            table[f"{network}: {name}"] = cost_of_a_step(network, kind)
        closing = Counter(closed_window(network).operations)
        table[f"{network}: end of a window"] = Cost.of(closing)
    return table


def dumped(table: Table) -> str:
    """The versions and a line for each row."""
    rows = ",\n".join(f"{json.dumps(row)}: {json.dumps(asdict(c))}" for row, c in table.items())
    return f'{{"versions": {json.dumps(VERSIONS)},\n"costs": {{\n{rows}\n}}}}\n'


def loaded(text: str) -> tuple[dict[str, str], Table]:
    saved = json.loads(text)
    return saved["versions"], {row: Cost(**cost) for row, cost in saved["costs"].items()}


def compared(committed: Table, now: Table, *, calls: bool = True) -> str:
    """What got dearer or cheaper, and what to do about it; empty if nothing did.

    Args:
        committed: The numbers of `cost.json`.
        now: The numbers measured.
        calls: Whether calls of Python functions are compared too.
    """
    lines: list[str] = []
    for row in committed | now:
        if row in committed and row in now:
            lines += _compared_row(row, committed[row], now[row], calls)
        else:
            lines.append(f"{row}: {'not measured any more' if row in committed else 'new'}")
    if not lines:
        return ""
    advice = "If that is meant, accept it and say why in the commit: python -m tests.cost --write"
    return "\n".join(["what watching costs is not what tests/cost.json says:", *lines, advice])


def _compared_row(row: str, old: Cost, new: Cost, calls: bool) -> list[str]:
    names = ["launches", "others", "read", "written", "largest", "looks", *["calls"] * calls]
    lines = [_change(name, getattr(old, name) or 0, getattr(new, name) or 0) for name in names]
    lines += [
        _change(f"· {name}", old.operations.get(name, 0), new.operations.get(name, 0))
        for name in sorted(old.operations | new.operations)
    ]
    return [f"{row}: {line}" for line in lines if line]


def _change(what: str, old: int, new: int) -> str:
    if old == new:
        return ""
    share = f", {new / old - 1:+.1%}" if old else ""
    return (
        f"{'dearer' if new > old else 'cheaper'}: {what} {old:,} → {new:,} ({new - old:+,}{share})"
    )


if __name__ == "__main__":
    text = dumped(measured())
    if sys.argv[1:] == ["--write"]:
        FILE.write_text(text)
    else:
        print(text, end="")
