"""What all remedies share: plan first, then apply.

A remedy's `plan` reads a `Case` and returns a frozen `Plan`, or raises `CannotTreat` with the
reason; only the clinic applies plans. So a refusal changes nothing.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from deadwatch.errors import ConfigError, DeadwatchError
from deadwatch.records import Ints, SiteReport, State, Wire
from deadwatch.treat.course import Course
from deadwatch.treat.optim import OptimizerState, Restart
from deadwatch.treat.surgery import Edit, Surgery

_DEPTHWISE = "depthwise conv"


class CannotTreat(Exception):
    """A remedy does not apply to a case; the message says why."""


@dataclass(frozen=True, eq=False)
class Case:
    """Everything a remedy may know about the units it is asked to treat.

    Attributes:
        report: The site's verdict and statistics.
        units: Units to treat, ascending (K,).
        calls: How many sites the activation module has (1 unless it is called several times).
        surgery: Access to the model's tensors; a plan only reads.
        optimizers: The optimizers' state; a plan only reads.
        seed: Seed of the case's random draws, equal on all ranks.
    """

    report: SiteReport
    units: Ints
    calls: int
    surgery: Surgery
    optimizers: OptimizerState
    seed: int

    @property
    def live(self) -> Ints:
        """Units of the site that are alive or rare."""
        return np.flatnonzero(self.report.state >= State.RARE)

    def producer(self) -> Wire:
        """The linear layer or convolution that makes the units.

        Raises:
            CannotTreat: It is unknown, or one of several.
        """
        site = self.report.site
        if not site.producers:
            raise CannotTreat(f"its producers are unknown: {site.producers_note}")
        if any(wire.branch for wire in site.producers):
            summands = ", ".join(map(str, site.producers))
            raise CannotTreat(f"several layers add up to its pre-activation: {summands}")
        return site.producers[0]

    def norms(self) -> tuple[Wire, ...]:
        """The norms between the producer and the activation."""
        return self.report.site.producers[1:]

    def require_trainable(self, *names: str | None) -> None:
        """Refuse parameters that are frozen or that no given optimizer updates.

        Raises:
            CannotTreat: A parameter may not be treated.
        """
        for name in filter(None, names):
            parameter = self.surgery.tensor(name)
            if not parameter.requires_grad:
                raise CannotTreat(f"{name} is frozen")
            if self.optimizers.owner(parameter) is None:
                raise CannotTreat(f"no optimizer given to deadwatch updates {name}")

    def slices(self, name: str, units: Ints) -> tuple[int, Ints]:
        """The axis of a producer's tensor along which the units lie, and where.

        Raises:
            CannotTreat: A single slice does not hold a unit, and nothing else.
        """
        producers, path = self.report.site.producers, name.rpartition(".")[0]
        wires = [w for w in producers if name in w.names] or [
            w for w in producers if w.module == path
        ]
        if not wires:
            return 0, units
        axis = wires[0].axis if name == wires[0].weight else 0
        if axis == 1 and wires[0].groups > 1:
            raise CannotTreat(f"{path} is a transposed convolution in groups: {wires[0]}")
        return axis, wires[0].slices(units)

    def rows(self, name: str) -> Tensor:
        """A copy of the treated units' rows of a producer's parameter or buffer."""
        axis, index = self.slices(name, self.units)
        return self.surgery.rows(name, index, axis)

    def edit(self, name: str, rows: Tensor) -> Edit:
        """An edit that gives the treated units new rows of a producer's parameter or buffer."""
        return Edit(name, *self.slices(name, self.units), rows)

    def restart(self, name: str) -> Restart:
        """A fresh start for the optimizer's state of the treated units' rows."""
        axis, index = self.slices(name, self.units)
        return Restart(name, axis, index, self.slices(name, self.live)[1])

    def silence(self, quiet: bool | None) -> tuple[tuple[Edit, ...], tuple[Restart, ...], bool]:
        """Zero the outgoing columns of the treated units: treating them then changes nothing yet.

        What the units contributed on average is folded into the bias of the layers that read them.

        Args:
            quiet: True to insist, False for nothing, None for where all readers are known.

        Returns:
            The edits, the optimizer restarts, and whether the treatment is quiet.

        Raises:
            CannotTreat: ``quiet`` is True and the readers are unknown or hold other values, too; or
                a contribution other than zero cannot be folded.
        """
        loud = self._loud()
        if quiet is False or (quiet is None and loud):
            return (), (), False
        if loud:
            raise CannotTreat(loud)
        outgoing = [self._outgoing(wire) for wire in self.report.site.consumers]
        self.require_trainable(*(wire.weight for wire in outgoing))
        edits = [*_fold(self, outgoing)]
        restarts: list[Restart] = []
        for wire in outgoing:
            assert wire.weight is not None
            columns = wire.slices(self.units)
            old = self.surgery.rows(wire.weight, columns, wire.axis)
            edits.append(Edit(wire.weight, wire.axis, columns, torch.zeros_like(old)))
            restarts.append(Restart(wire.weight, wire.axis, columns, wire.slices(self.live)))
        return tuple(edits), tuple(restarts), True

    def _loud(self) -> str:
        """Why zeroed columns would not keep the function as it is; empty if they would."""
        site = self.report.site
        if not site.consumers:
            return f"not all layers that read it are known: {site.consumers_note}"
        for wire in site.consumers:
            if wire.shared:
                return f"{wire.module} reads it together with other values"
            if wire.through:
                return f"a {wire.through} stands between it and {wire.module}"
            if wire.groups > 1 and not self._depthwise(wire):
                return f"{wire.module} is a convolution in {wire.groups} groups"
        return ""

    def _depthwise(self, wire: Wire) -> bool:
        assert wire.weight is not None
        return wire.groups > 1 and self.surgery.tensor(wire.weight).shape[1] == 1

    def _outgoing(self, wire: Wire) -> Wire:
        """A reader whose slices hold its units and nothing else: of a depthwise one, the rows."""
        if not self._depthwise(wire):
            return wire
        assert wire.weight is not None
        each = self.surgery.tensor(wire.weight).shape[0] // wire.groups
        offset, block = wire.offset * each, wire.block * each
        return replace(wire, kind=_DEPTHWISE, axis=0, groups=1, offset=offset, block=block)


@dataclass(frozen=True, eq=False)
class Plan:
    """What a remedy would do: everything needed to apply it, and nothing applied yet."""

    remedy: str
    units: Ints
    edits: tuple[Edit, ...] = ()
    restarts: tuple[Restart, ...] = ()
    swap: tuple[str, nn.Module] | None = None
    course: Course | None = None
    quiet: bool = False
    note: str = ""
    left_out: str = ""


class Remedy(ABC):
    """One way to bring dead units back.

    To write your own, derive from it and implement `plan`.
    """

    @property
    def name(self) -> str:
        """What logs and reports call it."""
        return type(self).__name__

    @property
    def parts(self) -> tuple[Remedy, ...]:
        """What it consists of: each is tried on the units that those before left out."""
        return (self,)

    @abstractmethod
    def plan(self, case: Case) -> Plan:
        """Say what would be done to the case.

        Raises:
            CannotTreat: The remedy does not apply.
        """

    def resume(self, state: dict[str, Any], surgery: Surgery) -> Course:
        """Go on with a course of this remedy from its `Course.state_dict`.

        Raises:
            DeadwatchError: The remedy has courses and does not say how they go on.
        """
        raise DeadwatchError(
            f"a checkpoint holds a course of {self.name}, which cannot go on; give {self.name} a "
            "resume(state, surgery)"
        )


def _fold(case: Case, outgoing: list[Wire]) -> Iterator[Edit]:
    """Move the units' mean contribution into the readers' biases."""
    mean = case.report.mean_out[case.units]
    low, high = case.report.min[case.units], case.report.max[case.units]
    gate = case.report.site.gate
    if gate.inside and ((low <= gate.low) & (high >= gate.high)).any():
        raise CannotTreat("quiet treatment is not possible: its output flips between two values")
    if not mean.any():
        return
    shares: dict[str, Tensor] = {}
    for wire in outgoing:
        if np.isnan(mean).any() or wire.bias is None or wire.padded:
            reason = "was not measured" if np.isnan(mean).any() else f"{wire.module} cannot absorb"
            raise CannotTreat(f"quiet treatment is not possible: its mean output {reason}")
        case.require_trainable(wire.bias)
        # A layer may read the units at several places of one concatenation.
        share = _share(case, wire)
        shares[wire.bias] = shares.get(wire.bias, torch.zeros_like(share)) + share
    for bias, share in shares.items():
        rows = np.arange(len(share))
        yield Edit(bias, 0, rows, case.surgery.rows(bias, rows) + share, shared=True)


def _share(case: Case, wire: Wire) -> Tensor:
    """What the units contribute on average to each output of a reader."""
    assert wire.weight is not None
    columns = wire.slices(case.units)
    weight = case.surgery.rows(wire.weight, columns, wire.axis)
    inside = [unit for unit in case.units if unit in wire.units]
    mean = np.repeat(case.report.mean_out[inside], wire.block)
    shape = [-1 if axis == wire.axis else 1 for axis in range(weight.ndim)]
    share = weight * torch.as_tensor(mean, device=weight.device).to(weight).view(shape)
    if wire.kind != _DEPTHWISE:
        return share.movedim(1 - wire.axis, 0).flatten(1).sum(1)
    outputs = torch.zeros(len(case.surgery.tensor(wire.weight))).to(share)
    return outputs.index_add(
        0, torch.as_tensor(columns, device=share.device), share.flatten(1).sum(1)
    )


def require_separable(case: Case) -> None:
    """Refuse where a norm mixes the units, so that a new row would change the live ones.

    Raises:
        CannotTreat: A layer norm or group norm stands between producer and activation.
    """
    for norm in case.norms():
        if norm.kind in ("layer_norm", "group_norm"):
            raise CannotTreat(
                f"a {norm.kind} between {case.producer().module} and the activation mixes the "
                "units: new weights for the dead ones would change the live ones"
            )


def require_number(name: str, value: object, low: float, hint: str, *, whole: bool = False) -> None:
    """Check an argument at construction.

    Raises:
        ConfigError: It is below ``low``, or not a (whole) finite number.
    """
    kind = int if whole else (int, float)
    fits = isinstance(value, kind) and not isinstance(value, bool)
    if not fits or not low <= value < float("inf"):  # type: ignore[operator]
        what = "a whole number" if whole else "a number"
        raise ConfigError(f"{name} is {value!r}; expected {what} of {low} or more ({hint})")


def require_quiet(value: object) -> None:
    """Check the ``quiet`` argument that several remedies share.

    Raises:
        ConfigError: It is not True, False or None.
    """
    if value is not None and not isinstance(value, bool):
        raise ConfigError(
            f"quiet is {value!r}; expected True (insist), False (textbook form) or None (quiet "
            "where all readers are known)"
        )


@contextmanager
def private_random(seed: int) -> Iterator[torch.Generator]:
    """Draw on the CPU from ``seed`` without touching the user's random stream.

    Modules initialised inside follow the seed as well.
    """
    with torch.random.fork_rng(devices=[]):
        yield torch.default_generator.manual_seed(seed)


def fresh_like(module: nn.Module, seed: int) -> dict[str, Tensor]:
    """Parameters as the module's own ``reset_parameters`` would draw them, on the CPU.

    Raises:
        CannotTreat: The module has no ``reset_parameters``, or one that may reach further than
            its own parameters.
    """
    if module._modules or module._buffers:
        raise CannotTreat(
            f"{type(module).__name__} holds more than its own parameters, which its "
            "reset_parameters may reach"
        )
    clone = copy.copy(module)
    clone._parameters = {
        name: None if p is None else nn.Parameter(torch.empty(p.shape, dtype=p.dtype))
        for name, p in module._parameters.items()
    }
    reset = getattr(clone, "reset_parameters", None)
    if reset is None:
        raise CannotTreat(f"{type(module).__name__} has no reset_parameters to start afresh with")
    with private_random(seed), torch.no_grad():
        reset()
    return {name: p.detach() for name, p in clone._parameters.items() if p is not None}
