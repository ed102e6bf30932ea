"""Where activation functions are called, and what the call sites there are named.

A *place* is an activation module, or one function in the forward of a module that is none. Each
call of a place within one frame is a site of its own: ``block.relu``, ``block.relu-2``; for
functions ``block-gelu``, ``block-gelu-2``.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from torch import Tensor, nn

from deadwatch.activations import readable
from deadwatch.observe.accumulate import SiteState
from deadwatch.observe.gates import gate_of, is_learned
from deadwatch.observe.sites import Candidate
from deadwatch.records import Site, SiteSnapshot


@dataclass(eq=False)
class Place:
    """One place, and the sites seen there so far.

    Attributes:
        candidate: The activation; for a function, the module it amounts to, and the path of the
            module in whose forward it is called.
        base: Name of its first call.
        functional: Whether it is a function.
        wanted: Whether it is to be watched.
        failed: Whether observing it was given up.
        waiting: Sites that a checkpoint knew and that have not run since.
        several: Whether it was known, when the frame began, to have several sites.
        calls: How often it has been called in this frame, if so and if code is compiled.
    """

    candidate: Candidate
    base: str
    functional: bool = False
    wanted: bool = True
    failed: bool = False
    states: list[SiteState] = field(default_factory=list)
    waiting: list[SiteState] = field(default_factory=list)
    several: bool = False
    calls: int = 0

    @classmethod
    def of_module(cls, candidate: Candidate, wanted: bool) -> Place:
        """The place of an activation module."""
        base = readable(candidate.path) or candidate.activation.lower()
        return cls(candidate, base, wanted=wanted)

    @classmethod
    def of_function(cls, base: str, path: str, module: nn.Module, wanted: bool) -> Place:
        """The place of a function called in the module at ``path``, that acts like ``module``."""
        gate = gate_of(module)
        assert gate is not None
        candidate = Candidate(module, type(module).__name__, gate, (path,))
        return cls(candidate, base, functional=True, wanted=wanted)

    @property
    def active(self) -> bool:
        """Whether its calls are to be observed."""
        return self.wanted and not self.failed

    def base_within(self, path: str) -> str:
        """Name of its first call in a frame of the module at ``path``."""
        paths = self.candidate.paths
        return self.base if len(paths) == 1 else within([readable(own) for own in paths], path)

    def site(self, name: str, base: str, call: int) -> Site:
        """The record of one of its sites."""
        named = (path for path in self.candidate.paths if readable(path) == base)
        path = next(named, self.candidate.path)
        candidate = self.candidate
        return Site(
            name, path, call, candidate.activation, candidate.gate, functional=self.functional
        )

    def number(self, calls: Counter[str], base: str, *, in_graph: bool) -> int:
        """Which call of it within a frame, whose calls so far these are, this is."""
        if in_graph and self.several:
            self.calls += 1  # compiled graphs count on from here
            return self.calls
        calls[base] += 1
        return calls[base]

    def start(self, site: Site, module: nn.Module, z: Tensor, dim: int) -> SiteState:
        """Begin a site of it, that is judged by the gate of ``module``."""
        candidate = self._candidate(module) if self.functional else self.candidate
        state = SiteState.start(self.base, site, candidate, z, dim)
        self.states.append(state)
        return state

    def take_up(self, state: SiteState, module: nn.Module, z: Tensor) -> None:
        """Go on with a site of it that was read from a checkpoint."""
        state.take_up(self._candidate(module) if self.functional else self.candidate, z)
        self.states.append(state)
        self.waiting = [other for other in self.waiting if other is not state]

    def follow(self, state: SiteState, module: nn.Module) -> None:
        """A function may be called with other parameters than before."""
        if state.module is not module:
            state.adopt(self._candidate(module))

    def relearn(self) -> None:
        """An activation that learns its shape may have changed it."""
        module = self.candidate.module
        if is_learned(module):
            self.adopt(self._candidate(module))

    def _candidate(self, module: nn.Module) -> Candidate:
        """The activation with the gate of ``module``; the last known where it is a line now."""
        return replace(self.candidate, module=module, gate=gate_of(module) or self.candidate.gate)

    def adopt(self, candidate: Candidate) -> None:
        """The activation there is another one from now on."""
        self.candidate = candidate
        for state in (*self.states, *self.waiting):
            state.adopt(candidate)

    def unseen(self) -> SiteSnapshot:
        """What is known of a place that has never run: nothing."""
        site = self.site(self.base, self.base, 1)
        return SiteSnapshot(site, 0, {}, np.zeros(0, np.int64), np.zeros(0, np.bool_))


def within(paths: Sequence[str], path: str) -> str:
    """Of the paths at which a module stands in several parts of the model, the one in this part."""
    return next((own for own in paths if own.startswith(f"{path}.")), paths[0])


def call_name(base: str, call: int, taken: Collection[str]) -> str:
    """The name of the ``call``-th call of a place; a module may be called "relu-2" as well."""
    if call == 1:
        return base
    name = f"{base}-{call}"
    return name if name not in taken else f"{base}--{call}"


def source_of(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """The input of an activation module's call."""
    source = args[0] if args else next(iter(kwargs.values()), None)
    if not isinstance(source, Tensor):
        raise TypeError(f"expected a tensor as input, found {type(source).__name__}")
    return source
