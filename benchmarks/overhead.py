"""What watching costs, as a share of a training step, beside what people use today.

All variants of one network run interleaved in one process, round by round, and their medians are
compared: ratios hold on a noisy machine where seconds do not. Peers run in environments of their
own (`benchmarks/peers`), each against the bare loop there.

    python -m benchmarks.overhead [--rounds 9] [--steps 20] [--threads 1] [--out FILE.json]
    python -m benchmarks.overhead --parts compiled --out FILE.json  # leaves the other parts there
    python -m benchmarks.overhead --show benchmarks/overhead.json
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from benchmarks.networks import NETWORKS, Network, machine, train
from benchmarks.peers.environments import measure as measure_peers
from benchmarks.peers.table import PEERS
from deadwatch import Watch

Attach = Callable[[nn.Module], AbstractContextManager[Any]]
Times = dict[str, list[float]]

WARM = 2
"""Untimed steps after each attaching: the first forward is traced."""

COMPILED_WARM = 14
"""Untimed steps of compiled variants, in which all graphs are compiled."""


@contextmanager
def with_dead_units(model: nn.Module) -> Iterator[Watch]:
    """Watch, while the first unit of every activation is dead: no site is ever done with."""
    # In these networks the wide layers and the batch norms are what feeds the activations.
    biases: list[Any] = [
        module.bias
        for module in model.modules()
        if isinstance(module, nn.BatchNorm2d) or getattr(module, "out_features", 0) > 256
    ]
    kept = [bias.detach().clone() for bias in biases]
    with torch.no_grad():
        for bias in biases:
            bias[0] = -100.0
    with Watch(model) as watch:
        yield watch
    with torch.no_grad():
        for bias, old in zip(biases, kept, strict=True):
            bias.copy_(old)


@contextmanager
def handwritten(model: nn.Module) -> Iterator[None]:
    """The hook that everybody writes: zeros, mean and std of every activation, read at once."""
    history: list[tuple[float, float, float]] = []

    def hook(module: nn.Module, args: Any, output: Tensor) -> None:
        zeros = (output == 0).float().mean().item()
        history.append((zeros, output.mean().item(), output.std().item()))

    kinds = (nn.ReLU, nn.GELU)
    handles = [m.register_forward_hook(hook) for m in model.modules() if isinstance(m, kinds)]
    yield
    for handle in handles:
        handle.remove()


EVERY_STEP = "deadwatch, every step"
EAGER: dict[str, Attach] = {
    "bare": lambda model: nullcontext(),
    "deadwatch": Watch,
    "deadwatch, dead units": with_dead_units,
    EVERY_STEP: partial(Watch, stats_every_n_steps=1),
    "deadwatch, advice": partial(Watch, advice=True),
    "deadwatch, advice and gradients": partial(Watch, advice=True, gradients=True),
    "hand-written hook": handwritten,
}
PARTS = ["eager", "compiled", "peers"]
COMPILED = {name: EAGER[name] for name in ("bare", "deadwatch", EVERY_STEP)}


class Training:
    """A network of its own, trained with or without something that watches it."""

    def __init__(self, network: Network, *, compiled: bool = False) -> None:
        torch.manual_seed(0)
        self.model = network.build()
        self.x = torch.randn(network.batch)
        self._call: Any = torch.compile(self.model) if compiled else self.model
        self._optimizer = torch.optim.SGD(self.model.parameters(), lr=1e-4)

    def steps(self, watch: Any, count: int) -> None:
        """Plain training steps, reported to a watch."""
        for _ in range(count):
            train(self._call, self._optimizer, self.x, 1)
            if isinstance(watch, Watch):
                watch.step()

    def timed(self, watch: Any, count: int) -> float:
        """Seconds a step, with the window that is closed after them."""
        start = time.perf_counter()
        self.steps(watch, count)
        if isinstance(watch, Watch):
            watch.close_window()
        return (time.perf_counter() - start) / count


def in_turn(names: list[str], index: int) -> list[str]:
    """The order of round ``index``: each is first in turn, for it finds another's caches."""
    return names[index % len(names) :] + names[: index % len(names)]


def measure_eager(network: Network, rounds: int, steps: int, bar: Any) -> Times:
    """Seconds a step of every round; each attaches afresh, which is not timed.

    The networks go round as well: where one lies in memory makes a difference of some percent.
    """
    trainings = [Training(network) for _ in EAGER]
    times: Times = {name: [] for name in EAGER}
    for index in range(rounds + 1):
        for training, name in zip(trainings, in_turn(list(EAGER), index), strict=True):
            with EAGER[name](training.model) as watch:
                training.steps(watch, WARM)
                seconds = training.timed(watch, steps * network.steps)
            times[name] += [seconds] if index else []  # the round before the first warms up
        bar.update()
    if not all(p.isfinite().all() for training in trainings for p in training.model.parameters()):
        raise RuntimeError(f"the training of {network.name} diverged: its times tell nothing")
    return times


def measure_compiled(network: Network, rounds: int, steps: int, bar: Any) -> Times:
    """The same of compiled networks; each in a process of its own, and attached once.

    Graphs belong to the code of a class, and do not look for hooks: two networks of one class in a
    process would run the graph of the first.
    """
    context = get_context("spawn")
    with ExitStack() as stack:
        ends = {}
        for name in COMPILED:
            ends[name], end = context.Pipe()
            asked = (network.name, name, torch.get_num_threads(), end)
            process = context.Process(target=serve, args=asked, daemon=True)
            process.start()
            stack.callback(process.terminate)
            ends[name].recv()  # one after another, for compiling takes all cores
        times: Times = {name: [] for name in COMPILED}
        for index in range(rounds + 1):
            for name in in_turn(list(COMPILED), index):
                ends[name].send(steps * network.steps)
                times[name] += [ends[name].recv()][: bool(index)]
            bar.update()
    return times


def serve(network: str, variant: str, threads: int, end: Any) -> None:
    """Train one compiled variant, as many steps at a time as are asked for at the pipe's end."""
    torch.set_num_threads(threads)
    training = Training(next(n for n in NETWORKS if n.name == network), compiled=True)
    with COMPILED[variant](training.model) as watch:
        training.steps(watch, COMPILED_WARM)
        end.send("ready")
        while True:
            end.send(training.timed(watch, end.recv()))


def tables(results: dict[str, Any]) -> list[str]:
    """The lines of all tables, as the READMEs quote them."""
    titles = {"eager": "model", "compiled": "model, compiled"}
    lines: list[str] = []
    for part, title in titles.items():
        lines += _table(results[part], title) if part in results else []
    return [*lines, *_peer_table(results["peers"])] if "peers" in results else lines


def _table(measured: dict[str, dict[str, float]], title: str) -> list[str]:
    names = [name for name in next(iter(measured.values()), {}) if name != "bare"]
    lines = [f"| {title} | bare step | {' | '.join(names)} |", "|---|--:|" + "--:|" * len(names)]
    for network, seconds in measured.items():
        bare = seconds["bare"]
        added = " | ".join(_added(seconds[name], bare) for name in names)
        lines.append(f"| {network} | {1000 * bare:.1f} ms | {added} |")
    return ["", *lines]


def _peer_table(peers: dict[str, Any]) -> list[str]:
    computes = {peer.name: peer.computes for peer in PEERS}
    names = [network.name for network in NETWORKS]
    lines = [f"| peer | {' | '.join(names)} | what it computes |"]
    lines.append("|---|" + "--:|" * len(names) + "---|")
    for peer, result in peers.items():
        seconds = result.get("seconds", {})
        cells = [
            _added(seconds[name]["peer"], seconds[name]["bare"]) if name in seconds else "–"
            for name in names
        ]
        title = f"{peer} {result['version']}" if "version" in result else f"{peer}: not installed"
        lines.append(f"| {title} | {' | '.join(cells)} | {computes[peer]} |")
    return ["", *lines]


def _added(seconds: float, bare: float) -> str:
    return f"{100 * (seconds / bare - 1):+.1f}%"


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """All parts that were asked for, and on what."""
    networks = [network for network in NETWORKS if options.networks in network.name]
    large = [network for network in networks if network.steps == 1]
    given = options.rounds, options.steps
    results: dict[str, Any] = {"machine": machine(options.threads), "rounds": options.rounds}
    ways = {"eager": (measure_eager, networks), "compiled": (measure_compiled, large)}
    for part in ways.keys() & options.parts:
        way, timed = ways[part]
        with tqdm(total=len(timed) * (options.rounds + 1), unit="round", desc=part) as bar:
            results[part] = {n.name: _medians(way(n, *given, bar)) for n in timed}
    if "peers" in options.parts:
        results["peers"] = measure_peers(options.peers, *given, options.threads, options.networks)
    return results


def _medians(times: Times) -> dict[str, float]:
    return {name: median(seconds) for name, seconds in times.items()}


def main(arguments: list[str] | None = None) -> None:
    """Measure everything, or read what was measured, and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    names = [peer.name for peer in PEERS]
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--networks", default="", help="a part of the names of those to time")
    parser.add_argument("--parts", nargs="*", default=PARTS, choices=PARTS)
    parser.add_argument("--peers", nargs="*", default=names, help=", ".join(names))
    parser.add_argument("--out", type=Path, help="write the seconds to this JSON file, by part")
    parser.add_argument("--show", type=Path, help="measure nothing, print what this file holds")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    results = json.loads(options.show.read_text()) if options.show else measure(options)
    if options.out is not None:
        kept = json.loads(options.out.read_text()) if options.out.exists() else {}
        results = kept | results
        options.out.write_text(json.dumps(results, indent=1) + "\n")
    print(f"\nAdded to a training step, {results['machine']}, {results['rounds']} rounds\n")
    print("\n".join(tables(results)))


if __name__ == "__main__":
    main()
