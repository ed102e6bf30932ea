"""What is kept for one call site between two reads; `transfer.py` reads it."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, get_type_hints

import numpy as np
import torch
from torch import Tensor, nn

from deadwatch.observe import host, kernels, stats
from deadwatch.observe.gates import swapped_units
from deadwatch.observe.knowledge import Knowledge, Shapes
from deadwatch.observe.sites import Candidate
from deadwatch.plain import from_plain, to_plain
from deadwatch.records import Bools, Gate, Ints, Share, Site, SiteSnapshot


@dataclass(eq=False)
class SiteState:
    """The accumulators of one call site, on the device of its activations.

    Attributes:
        base: Name of the place it belongs to.
        site: The site as known so far.
        module: The activation by whose gate it is judged.
        units: Number of units C.
        dim: Axis of the pre-activation that holds them; from the end, unless the user gave it.
        data: The statistics of this window.
        age: Samples since each gate was last open, at the window's start (C,).
        flat: Whether each unit's closed side has exactly zero derivative (C,).
        gate: Where the activation passes gradient.
        low: Lower ends of the gate per unit (C,), where a swap made them differ.
        samples: Elements per unit seen in this window.
        seen: The same of compiled graphs, which count on the device (1,).
        sampled: The step whose moments were last taken, -1 for none in this window.
        last: The step in which it last ran uncompiled.
        hidden: Whether what is known comes only from forwards that were kept uncompiled.
        lost: Whether observing it was given up.
        waiting: Whether it was read from a checkpoint and has not run since.
        settled: Whether every gate is known to have been open in this window.
        checks: How often liveness was looked for in this window.
        signed: Whether outputs may be negative.
        finite: Finite elements of every unit whose moments were taken, if that is one number.
        share: Which part of the site lies in this process.
        distributed: Whether its inputs are DTensors.
    """

    base: str
    site: Site
    module: nn.Module
    units: int
    dim: int
    data: stats.Accumulator
    age: Ints
    flat: Bools
    gate: Gate
    seen: Tensor
    low: Tensor | None = None
    samples: int = 0
    sampled: int = -1
    last: int = -1
    hidden: bool = False
    lost: bool = False
    waiting: bool = False
    settled: bool = False
    checks: int = 0
    signed: bool = True
    finite: int | None = None
    share: Share = field(default_factory=Share)
    distributed: bool = False

    @classmethod
    def start(cls, base: str, site: Site, candidate: Candidate, z: Tensor, dim: int) -> SiteState:
        """Begin a site at its first call, with pre-activation ``z``."""
        if not -z.ndim <= dim < z.ndim:
            raise ValueError(
                f"unit_dim says axis {dim}, and the pre-activation has shape {tuple(z.shape)}; "
                f"expected one of its axes, {-z.ndim} to {z.ndim - 1}"
            )
        units = z.shape[dim]
        with torch.inference_mode(False):
            data = stats.new(units, z.device, wide=z.dtype == torch.float64)
            seen = torch.zeros(1, dtype=torch.int64, device=z.device)
        age, flat = np.zeros(units, np.int64), np.zeros(units, np.bool_)
        shown = dim if dim == -1 else dim % z.ndim
        site = replace(site, unit_dim=shown, ndim=z.ndim)
        module, gate = candidate.module, candidate.gate
        state = cls(base, site, module, units, dim, data, age, flat, gate, seen, finite=0)
        state.adopt(candidate)
        return state

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps of it, in plain values."""
        return {name: to_plain(getattr(self, name)) for name in _SAVED}

    @classmethod
    def load(cls, saved: Mapping[str, Any]) -> SiteState:
        """What `state_dict` has returned; its activation is not known until it runs."""
        hints = get_type_hints(cls)
        values = {name: from_plain(hints[name], saved[name]) for name in _SAVED}
        gate = values["site"].gate
        return cls(**values, module=nn.Identity(), gate=gate, waiting=True)

    @classmethod
    def of(cls, snap: SiteSnapshot, own: SiteState | None) -> SiteState:
        """What a snapshot holds; the rest is this process's ``own``, if it has the site."""
        host = torch.device("cpu")
        like = stats.new(snap.units, host, wide=True) if own is None else own.data
        data = {
            name: torch.from_numpy(snap.data[name][: len(one)]).to("cpu", one.dtype)
            for name, one in like.items()
        }
        seen = torch.zeros(1, dtype=torch.int64)
        kept: dict[str, Any] = {"age": snap.age, "flat": snap.flat, "samples": snap.samples}
        kept |= {"data": data, "seen": seen, "finite": None}
        if own is not None:
            return replace(own, **kept)
        site = snap.site
        assert site.unit_dim is not None
        dim = site.unit_dim - site.ndim if site.unit_dim >= 0 else site.unit_dim
        return cls(snap.base, site, nn.Identity(), snap.units, dim, gate=site.gate, **kept)

    def take_up(self, candidate: Candidate, z: Tensor) -> None:
        """Go on with the activation that it has been found to be."""
        self.waiting = False
        self.follow(z)
        self.adopt(candidate)

    def fits(self, z: Tensor) -> bool:
        """Whether a pre-activation has the units of this site, where this site has them."""
        return -z.ndim <= self.dim < z.ndim and z.shape[self.dim] == self.units

    def adopt(self, candidate: Candidate) -> None:
        """Judge by the gates of ``candidate`` from now on."""
        self.module, self.gate = candidate.module, candidate.gate
        self.signed = host.is_signed(candidate.module)
        self.site = replace(self.site, activation=candidate.activation, gate=candidate.gate)
        self.low, self.flat = None, np.full(self.units, candidate.gate.flat)
        swapped = swapped_units(candidate.module)
        if swapped is not None:
            self.low, self.flat = swapped[0], swapped[1].cpu().numpy()

    def is_idle(self, source: Tensor, step: int, every: int) -> bool:
        """Whether nothing can be learned of an input, but that there was one."""
        return (
            self.settled
            and type(source) is Tensor
            and source.is_floating_point()
            and not source.is_meta
            and source.ndim == self.site.ndim
            and source.shape[self.dim] == self.units
            and self.sampled >= 0
            and 0 < step - self.sampled < every
        )

    def pass_by(self, source: Tensor, step: int) -> None:
        """Take in an input of which nothing can be learned."""
        self.last = step
        self.samples += source.numel() // self.units

    def observe(self, z: Tensor, step: int, every: int) -> None:
        """Take in one pre-activation.

        Moments are taken on the first step of the window on which the site runs, and again
        whenever ``every`` steps have gone by; on all forwards of such a step.

        Raises:
            ValueError: It does not have the units that this site had before.
        """
        if z.shape[self.dim] != self.units:
            raise ValueError(
                f"the site had {self.units} units on axis {self.dim} and now has a "
                f"pre-activation of shape {tuple(z.shape)}; if the units lie on another axis, "
                f"say so with unit_dim={{{self.site.module!r}: axis}}"
            )
        if not z.numel():
            return
        self.last = step
        self.samples += z.numel() // self.units
        if self.sampled < 0 or step - self.sampled >= every:
            self.sampled = step
        if self.sampled == step:
            self.follow(z)
            self._take_moments(z)
        elif not self.settled:
            self.follow(z)
            self._check_liveness(z)

    def _take_moments(self, z: Tensor) -> None:
        batch = host.moments(z, self.dim, self.gate, self.low) if z.is_cpu else None
        if batch is not None:
            stats.update_(self.data, batch, self.finite)
            if self.finite is not None:
                self.finite += z.numel() // self.units
            return
        self.finite = None
        self._check_liveness(z)
        for part in kernels.moments(z, self.dim, self.gate, self.low):
            stats.update_(self.data, part)

    def _check_liveness(self, z: Tensor) -> None:
        stats.update_(self.data, kernels.liveness(z, self.dim, self.gate, self.low))
        self.checks += 1
        # At checks 1, 2, 4, 8 …: nothing can be learned of gates that have all been open.
        if z.is_cpu and self.checks & (self.checks - 1) == 0:
            self.settled = host.is_settled(self.data)

    def observe_output(self, h: Tensor, step: int) -> None:
        """Take in the output that belongs to the pre-activation just seen."""
        if not h.numel() or self.sampled != step:
            return
        h = h.reshape(1) if h.ndim == 0 else h
        batch = host.outputs(h, self.dim, signed=self.signed) if h.is_cpu else None
        for part in kernels.outputs(h, self.dim) if batch is None else (batch,):
            stats.update_(self.data, part)

    def dim_of(self, tensor: Tensor) -> int:
        """The unit axis of an input or output, counted from the end."""
        return self.dim if self.dim < 0 else self.dim - tensor.ndim

    def resolve(self, knowledge: Knowledge, shapes: Shapes) -> None:
        """Take over what is known of this site's wiring."""
        found = knowledge.wiring(self.site.name, shapes)
        self.site = replace(self.site, **vars(found))

    def merge(self, other: SiteState) -> None:
        """Add what another process measured of this site in the same window."""
        data: stats.Batch = {
            name: part.to(self.data[name].dtype) for name, part in other.data.items()
        }
        stats.update_(self.data, data)
        self.seen.add_(other.seen)
        self.samples += other.samples
        self.age = np.maximum(self.age, other.age)
        self.sampled = max(self.sampled, other.sampled)
        self.last = max(self.last, other.last)
        self.hidden = self.hidden and other.hidden
        known = self.finite is not None and other.finite is not None
        self.finite = (self.finite or 0) + (other.finite or 0) if known else None

    def restart(self, age: Ints) -> None:
        """Begin a window."""
        restart([self], {self.site.name: age})

    def follow(self, z: Tensor) -> None:
        """Keep the accumulators on the device of a pre-activation, and as wide as it is."""
        if self.data["opened"].device != z.device:
            self.data = {name: tensor.to(z.device) for name, tensor in self.data.items()}
            self.low = None if self.low is None else self.low.to(z.device)
            self.seen = self.seen.to(z.device)
        if z.dtype == torch.float64 and self.data["min"].dtype != torch.float64:
            self.data |= {name: self.data[name].double() for name in ("min", "max")}


_SAVED = (
    *("base", "site", "units", "dim", "data", "age", "flat"),
    *("seen", "samples", "sampled", "last", "hidden", "finite", "share"),
)
"""What of a site's state is not told by its module."""


def restart(states: Collection[SiteState], ages: Mapping[str, Ints]) -> None:
    """Begin a window for many sites; ``ages`` are those of the one that ended, by site name."""
    stats.reset_([state.data for state in states])
    if states:  # of nothing this would be an error
        torch._foreach_zero_([state.seen for state in states])
    for state in states:
        state.samples, state.sampled = 0, -1
        state.settled, state.checks, state.finite = False, 0, 0
        age = ages[state.site.name]  # of all units, of which this process may have a part
        first = state.share.first if state.share.total is not None else 0
        age = age[first : first + state.units].copy()  # a report holds the other
        # Ranks that have found different numbers of units know no age.
        state.age = age if len(age) == state.units else np.zeros(state.units, np.int64)
