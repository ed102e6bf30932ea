"""What closing a window sends between processes: the real `reduce`, in a world that only counts.

One process stands for all of them: each collective is counted, with the bytes that it is given, and
answers as if every rank had said the same (or, where told so, as if ranks had met other sites).
Seconds follow from a ring: an all-reduce of S bytes over N ranks sends 2 (N − 1) / N · S from each
of them, in 2 (N − 1) messages one after another.

    python -m benchmarks.windows [--sites 1000] [--units 4096] [--bandwidth 10] [--latency 10]
"""

from __future__ import annotations

import argparse
import pickle
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from deadwatch.observe import stats
from deadwatch.observe.reduce import reduce
from deadwatch.observe.roll import Roll
from deadwatch.records import Gate, Site, SiteSnapshot, Snapshot, Window, Wire

RANKS = (8, 64, 512, 4096)


@dataclass
class World:
    """A group of processes of which there is one, and that counts.

    Attributes:
        ranks: How many there are said to be.
        alike: Whether all have the same news of their sites.
        reduced: Bytes of each all-reduce.
        gathered: Bytes that each rank gives to each gathering, and those of each broadcast.
    """

    ranks: int
    alike: bool = True
    reduced: list[int] = field(default_factory=list)
    gathered: list[int] = field(default_factory=list)
    broadcast: list[int] = field(default_factory=list)

    def all_reduce(self, buffer: Tensor, operation: Any) -> None:
        """All ranks have the same; or another digest, which is the first number of all."""
        if not self.alike and not self.reduced:
            buffer[0] += 1
        self.reduced.append(buffer.numel() * buffer.element_size())

    def all_gather_object(self, found: list[Any], value: Any) -> None:
        """All ranks give the same."""
        self.gathered.append(len(pickle.dumps(value)))
        found[:] = [value] * self.ranks

    def broadcast_object_list(self, box: list[Any], src: int) -> None:
        """All have what the first has to say; where ranks differ, it has not met the news."""
        self.broadcast.append(len(pickle.dumps(box[0])))
        box[0] = box[0] if self.alike else []

    @contextmanager
    def entered(self) -> Iterator[World]:
        """All that is exchanged within is counted."""
        names = ("all_reduce", "all_gather_object", "broadcast_object_list")
        standing = {name: getattr(self, name) for name in names}
        standing |= {"is_initialized": lambda: True, "get_world_size": lambda: self.ranks}
        standing |= {"get_rank": lambda: 0, "get_backend": lambda: "gloo"}
        with patch.multiple(dist, **standing):
            yield self

    @property
    def collectives(self) -> int:
        """How many there were."""
        return len(self.reduced) + len(self.gathered) + len(self.broadcast)

    @property
    def sent(self) -> float:
        """Bytes that each rank sends: rings, and a chain for the broadcast."""
        return 2 * (self.ranks - 1) / self.ranks * sum(self.reduced) + self.news

    @property
    def news(self) -> int:
        """Bytes of these that say which sites there are."""
        return (self.ranks - 1) * sum(self.gathered) + sum(self.broadcast)

    def seconds(self, bandwidth: float, latency: float) -> float:
        """How long it takes, by bytes a second and seconds a message."""
        hops = 2 * len(self.reduced) + len(self.gathered) + len(self.broadcast)
        return self.sent / bandwidth + hops * (self.ranks - 1) * latency


def relu_between(index: int, units: int) -> SiteSnapshot:
    """A ReLU between two dense layers, which has run."""
    wire = Wire("linear", "", "weight", "bias", units=range(units))
    before, after = (
        replace(wire, module=f"blocks.{at}.dense", weight=f"blocks.{at}.dense.weight", axis=axis)
        for at, axis in ((index, 0), (index + 1, 1))
    )
    name = f"blocks.{index}.relu"
    known = Site(name, name, 1, "ReLU", Gate(0.0, np.inf), -1, (before,), (after,), "", "", ndim=2)
    age, flat = np.zeros(units, np.int64), np.ones(units, np.bool_)
    return SiteSnapshot(known, 32, stats.blank(units), age, flat)


def close(snapshot: Snapshot, roll: Roll, world: World) -> World:
    """Close a window in a world."""
    with world.entered():
        reduce(snapshot, roll)
    return world


def table(snapshot: Snapshot, bandwidth: float, latency: float, step: float, window: int) -> None:
    """What windows send, by number of ranks."""
    columns = ("ranks", "collectives", "a rank sends", "time", "of a step", "one met another site")
    print(f"| {' | '.join(columns)} |")
    print("|--:|--:|--:|--:|--:|--:|")
    roll = Roll()
    late = relu_between(len(snapshot.sites), snapshot.sites[0].units)
    for ranks in RANKS:
        close(snapshot, roll, World(ranks))
        usual = close(snapshot, roll, World(ranks))
        met = replace(
            snapshot, sites=(*snapshot.sites, replace(late, site=_named(late.site, ranks)))
        )
        other = close(met, roll, World(ranks, alike=False))
        took = usual.seconds(bandwidth, latency)
        more = f"+{other.collectives - usual.collectives}, +{other.news / 1e6:.2f} MB"
        row = (ranks, usual.collectives, f"{usual.sent / 1e6:.0f} MB", f"{took * 1e3:.0f} ms")
        share = took / (step * window)
        print(f"| {' | '.join(map(str, row))} | {share:.3%} | {more} |")


def _named(known: Site, number: int) -> Site:
    return replace(known, name=f"late.{number}.relu")


def main(arguments: list[str] | None = None) -> None:
    """Count everything and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sites", type=int, default=1000)
    parser.add_argument("--units", type=int, default=4096)
    parser.add_argument("--bandwidth", type=float, default=10, help="GB/s that a rank sends")
    parser.add_argument("--latency", type=float, default=10, help="µs of a message")
    parser.add_argument("--step", type=float, default=0.5, help="seconds of a training step")
    parser.add_argument("--window", type=int, default=500, help="steps of a window")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    sites = tuple(relu_between(index, options.units) for index in range(options.sites))
    snapshot = Snapshot(Window(0, 0, 9), sites, 10)
    start = time.perf_counter()
    first = close(snapshot, Roll(), World(RANKS[0]))
    units = options.sites * options.units
    print(
        f"{options.sites} sites of {options.units} units: {sum(first.reduced) / 1e6:.0f} MB, "
        f"{sum(first.reduced) / units:.2f} bytes a unit; on the host "
        f"{time.perf_counter() - start:.1f} s\n"
    )
    bandwidth, latency = options.bandwidth * 1e9, options.latency * 1e-6
    table(snapshot, bandwidth, latency, options.step, options.window)
    lists = len(pickle.dumps([(site.site, site.units, site.age, site.flat) for site in sites]))
    entries = len(pickle.dumps([(site.site, site.units) for site in sites]))
    print(
        f"\nNot sent: the list of all sites is {entries / 1e6:.2f} MB, with ages "
        f"{lists / 1e6:.0f} MB; from each of {RANKS[-1]} ranks {RANKS[-1] * lists / 1e9:.0f} GB"
    )


if __name__ == "__main__":
    main()
