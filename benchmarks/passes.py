"""What the passes over one activation cost, in multiples of reading it once.

python -m benchmarks.passes [--threads 1] [--compiled] [--device cpu]
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable
from statistics import median
from typing import Any

import torch
from torch import Tensor

from deadwatch.observe import host, kernels, stats, views
from deadwatch.records import Gate

RELU = Gate(0.0, math.inf)
SHAPES = [
    *((128, 512), (8, 64, 1024), (32, 64, 32, 32), (32, 64, 16, 16)),
    *((32, 128, 8, 8), (32, 256, 4, 4), (32, 512, 2, 2), (32, 64, 56, 56)),
]
"""Those of the networks that `overhead.py` times, and one that leaves the cache."""


def naive(z: Tensor, h: Tensor) -> None:
    """What people write."""
    others = [d for d in range(z.ndim) if d != _dim(z) % z.ndim]
    (h == 0).float().mean(others)
    z.mean(others), z.std(others), z.amin(others), z.amax(others), h.abs().mean(others)


def liveness(z: Tensor, h: Tensor, data: stats.Accumulator) -> None:
    """What is done on every step until every gate has been open."""
    stats.update_(data, kernels.liveness(z, _dim(z), RELU))


def on_the_host(z: Tensor, h: Tensor, data: stats.Accumulator) -> None:
    """All statistics, looking at what is found."""
    for batch in (host.moments(z, _dim(z), RELU), host.outputs(h, _dim(h), signed=False)):
        assert batch is not None
        stats.update_(data, batch)


def without_looking(z: Tensor, h: Tensor, data: stats.Accumulator) -> None:
    """All statistics, as on a device that nobody may wait for."""
    liveness(z, h, data)
    for passes in (kernels.moments(z, _dim(z), RELU), kernels.outputs(h, _dim(h))):
        for batch in passes:
            stats.update_(data, batch)


def in_one_pass(z: Tensor, h: Tensor, data: stats.Accumulator) -> None:
    """All statistics, as a compiler gets them."""
    pivot = kernels.pivot_of(z, 1, data)
    batch = kernels.fused(z, 1, RELU, None, pivot) | kernels.fused_outputs(h, 1)
    stats.update_(data, batch)


def _dim(z: Tensor) -> int:
    return 1 if z.ndim == 4 else -1


def seconds(call: Callable[[], object], device: str) -> float:
    """Median seconds of a call, of some that take 30 ms together."""
    call()
    once = _timed(call, 2, device)
    return median(_timed(call, max(1, int(0.005 / once)), device) for _ in range(7))


def _timed(call: Callable[[], object], count: int, device: str) -> float:
    start = time.perf_counter()
    for _ in range(count):
        call()
    if device != "cpu":
        torch.accelerator.synchronize()
    return (time.perf_counter() - start) / count


def row(shape: tuple[int, ...], device: str, *, compiled: bool) -> str:
    """One line of the table."""
    z = torch.randn(shape, device=device)
    h, data = z.relu(), stats.new(shape[_dim(z)], z.device)
    calls: list[Callable[[], object]] = [
        *(lambda: z.sum(), lambda: naive(z, h), lambda: liveness(z, h, data)),
        *((lambda: on_the_host(z, h, data),) if device == "cpu" else ()),
        lambda: without_looking(z, h, data),
    ]
    if compiled:
        torch.compiler.reset()
        run = torch.compile(in_one_pass, dynamic=False)
        flat: tuple[Any, Any] = (views.canonical(z, _dim(z)), views.canonical(h, _dim(h)))
        calls.append(lambda: run(*flat, data))
    read, *others = (seconds(call, device) for call in calls)
    cells = " | ".join(f"{other / read:.1f}×" for other in others)
    return f"| {shape} | {1e6 * read:.0f} µs | {cells} |"


def main(arguments: list[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--compiled", action="store_true", help="also as one compiled pass")
    parser.add_argument("--shapes", type=int, default=len(SHAPES), help="only the first so many")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    titles = ["naive", "liveness", "all, on the host", "all, without looking", "all, compiled"]
    titles = [title for title in titles if "host" not in title or options.device == "cpu"]
    titles = titles if options.compiled else titles[:-1]
    print(f"| activation | read once | {' | '.join(titles)} |")
    print("|---|--:|" + "--:|" * len(titles))
    for shape in SHAPES[: options.shapes]:
        print(row(shape, options.device, compiled=options.compiled))


if __name__ == "__main__":
    main()
