"""What watching costs as a model grows: by the number of sites, and with a million units.

A site takes the same time whether there are a hundred or two thousand: what is added to a step is
given in microseconds a site, and should be the same in every row. Bare and watched steps of one
network run interleaved, round by round, and medians of their differences are taken.

    python -m benchmarks.scale [--rounds 5] [--threads 1] [--out benchmarks/scale.json]
"""

from __future__ import annotations

import argparse
import gc
import json
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from benchmarks.networks import machine, train
from deadwatch import Watch

SITES = (125, 250, 500, 1000, 2000)
CYCLE = 10
"""Steps of a measured window: one takes all statistics, the others judge death alone."""


def dense(sites: int, width: int = 16) -> nn.Module:
    """A chain of dense layers with ReLU, so small that hardly anything but calls takes time."""
    return nn.Sequential(
        *(part for _ in range(sites) for part in (nn.Linear(width, width), nn.ReLU()))
    )


def normed(sites: int, units: int) -> nn.Module:
    """A chain of batch norms with ReLU: many units without many weights."""
    return nn.Sequential(
        *(part for _ in range(sites) for part in (nn.BatchNorm1d(units), nn.ReLU()))
    )


def seconds(call: Callable[[], Any]) -> float:
    """How long a call takes; garbage that others left is not its own."""
    gc.collect()
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


class Run:
    """One network, its bare and its watched steps.

    Args:
        model: The network.
        x: Its batch.
    """

    def __init__(self, model: nn.Module, x: Tensor) -> None:
        self.model, self.x = model, x
        self.optimizer = torch.optim.SGD(model.parameters(), lr=1e-4)
        self.cycle()

    def cycle(self, watch: Watch | None = None) -> None:
        """As many plain training steps as a measured window has."""
        for _ in range(CYCLE):
            train(self.model, self.optimizer, self.x, 1)
            if watch is not None:
                watch.step()

    def round(self) -> dict[str, float]:
        """The seconds of everything, once; those of a step and of a forward are those added."""
        forward, bare = seconds(lambda: self.model(self.x)), seconds(self.cycle)
        found: dict[str, float] = {"bare step": bare / CYCLE}
        start = time.perf_counter()
        watch = Watch(self.model)
        found["construct"] = time.perf_counter() - start
        found["attach"] = seconds(watch.attach)
        found["first forward"] = seconds(lambda: self.model(self.x)) - forward
        watch.step()
        watch.close_window()
        found["step"] = (seconds(lambda: self.cycle(watch)) - bare) / CYCLE
        found["close_window"] = seconds(watch.close_window)
        found["state_dict"] = seconds(watch.state_dict)
        watch.detach()
        found["step, all statistics"] = self._window(stats_every_n_steps=1)[0] - bare / CYCLE
        _, found["close_window, revive"] = self._window(optimizer=self.optimizer, policy="revive")
        return found

    def _window(self, **arguments: Any) -> tuple[float, float]:
        """Seconds a step, and those of closing the window, of another watch."""
        with Watch(self.model, **arguments) as watch:
            self.model(self.x)  # which is traced
            watch.step()
            watch.close_window()
            step = seconds(lambda: self.cycle(watch)) / CYCLE
            return step, seconds(watch.close_window)


def measure(model: nn.Module, x: Tensor, rounds: int, bar: Any) -> dict[str, float]:
    """Median seconds over rounds; the one before them warms up."""
    run = Run(model, x)
    found = []
    for _ in range(rounds + 1):
        found.append(run.round())
        bar.update()
    return {name: median(each[name] for each in found[1:]) for name in found[0]}


def print_curve(results: dict[int, dict[str, float]]) -> None:
    """The table by number of sites."""
    print("| sites | attach | first forward | step | step, all statistics | close_window |")
    print("|--:|--:|--:|--:|--:|--:|")
    for sites, found in results.items():
        once = [f"{1000 * found[name]:.0f} ms" for name in ("attach", "first forward")]
        steps = [found[name] / sites * 1e6 for name in ("step", "step, all statistics")]
        each = [f"{step:.0f} µs a site" for step in steps]
        row = (str(sites), *once, *each, f"{1000 * found['close_window']:.0f} ms")
        print(f"| {' | '.join(row)} |")


def print_large(found: dict[str, float]) -> None:
    """The table of the network with many units."""
    print("| what | time |\n|---|--:|")
    for name, time_taken in found.items():
        added = "added to a " if name.startswith("step") else ""
        print(f"| {added}{name} | {1000 * time_taken:.0f} ms |")


def main(arguments: list[str] | None = None) -> None:
    """Measure everything and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--sites", type=int, nargs="+", default=SITES)
    parser.add_argument("--large", type=int, nargs=2, default=(1000, 1000), help="sites and units")
    parser.add_argument("--out", type=Path, help="write the seconds to this file as JSON")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    on = machine(options.threads)
    sites, units = options.large
    with tqdm(total=(len(options.sites) + 1) * (options.rounds + 1), unit="round") as bar:
        curve = {
            n: measure(dense(n), torch.randn(32, 16), options.rounds, bar) for n in options.sites
        }
        large = measure(normed(sites, units), torch.randn(4, units), options.rounds, bar)
    print(f"\nAdded by watching, {on}, median of {options.rounds} rounds\n")
    print_curve(curve)
    print(f"\n{sites} sites of {units} units each\n")
    print_large(large)
    if options.out is not None:
        results = {"machine": on, "curve": curve, "large": [sites, units, large]}
        options.out.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
