"""Times one peer against the bare loop, in the environment in which the peer is installed.

Imports torch, the networks and the table alone: deadwatch is not installed there.
"""

from __future__ import annotations

import time
from contextlib import AbstractContextManager, nullcontext
from importlib.metadata import version
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.networks import NETWORKS, Network
from benchmarks.peers.table import Calls, Peer

NEVER = 10**9
WARM = 2  # Untimed steps after each attaching: the first is where an interval of any length logs.


def steps_of(
    model: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor, steps: int, calls: Calls
) -> float:
    """Seconds a step. `networks.train` with the peer's calls, which the bare loop makes as well."""
    start = time.perf_counter()
    for _ in range(steps):
        calls.before()
        loss = model(x).square().mean()
        loss.backward()
        optimizer.step()
        calls.after(loss)
        optimizer.zero_grad()
    return (time.perf_counter() - start) / steps


class Variant:
    """A network of its own, trained with or without the peer."""

    def __init__(self, network: Network, peer: Peer, interval: int | None) -> None:
        self._model = network.build()
        self._optimizer = torch.optim.SGD(self._model.parameters(), lr=1e-4)
        self._peer, self._interval = peer, interval

    def round(self, x: Tensor, steps: int) -> float:
        """Seconds a step of one round; the peer is attached afresh, outside the timed part."""
        model, optimizer = self._model, self._optimizer
        attached: AbstractContextManager[Calls] = nullcontext(Calls())
        if self._interval is not None:
            attached = self._peer.attach(model, optimizer, self._interval)
        with attached as calls:
            steps_of(model, optimizer, x, WARM, calls)
            return steps_of(model, optimizer, x, steps, calls)


def compare(peer: Peer, network: Network, rounds: int, steps: int) -> dict[str, float]:
    """Median seconds a step of one network: ``bare``, and ``peer`` with its default interval.

    A peer that logs every thousandth step would log in none or few of the timed ones, by chance.
    So steps without a log (``quiet``) and with one (``logged``) are timed, and mixed as they come.
    """
    torch.manual_seed(0)
    x = torch.randn(network.batch)
    intervals = {"bare": None, "logged": 1} | ({"quiet": NEVER} if peer.interval > 1 else {})
    variants = {name: Variant(network, peer, every) for name, every in intervals.items()}
    times: dict[str, list[float]] = {name: [] for name in variants}
    for index in range(rounds + 1):
        names = list(variants)
        first = index % len(names)  # whoever comes first finds the caches of another
        for name in names[first:] + names[:first]:
            seconds = variants[name].round(x, steps * network.steps)
            if index:  # the round before the first warms up
                times[name].append(seconds)
    medians = {name: median(values) for name, values in times.items()}
    quiet = medians.get("quiet", medians["logged"])
    return medians | {"peer": quiet + (medians["logged"] - quiet) / peer.interval}


def report(peer: Peer, rounds: int, steps: int, networks: str = "") -> dict[str, Any]:
    """What the runner prints: seconds of the networks whose name holds a text, and what failed."""
    seconds: dict[str, dict[str, float]] = {}
    failed: dict[str, str] = {}
    for network in NETWORKS:
        if networks not in network.name:
            continue
        try:
            seconds[network.name] = compare(peer, network, rounds, steps)
        except Exception as error:  # a peer that cannot watch a network is a result
            failed[network.name] = f"{type(error).__name__}: {error}".splitlines()[0]
    versions = {"torch": torch.__version__, "version": version(peer.distribution)}
    return {**versions, "seconds": seconds, "failed": failed}
