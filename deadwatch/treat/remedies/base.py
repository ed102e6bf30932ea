"""What all remedies share: plan first, then apply.

A remedy's `plan` reads a `Case` and returns a frozen `Plan`, or raises `CannotTreat` with the
reason; only the clinic applies plans. So a refusal changes nothing.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from deadwatch.errors import ConfigError, DeadwatchError
from deadwatch.records import Ints, SiteReport, State, Wire
from deadwatch.treat.course import Course
from deadwatch.treat.optim import OptimizerState, Restart
from deadwatch.treat.places import Place, places
from deadwatch.treat.surgery import Edit, Surgery, narrowed

NORMS = ("batch_norm", "layer_norm", "group_norm")


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
        self._require_producers()
        producers = self.report.site.producers
        if any(wire.branch for wire in producers):
            summands = ", ".join(map(str, producers))
            raise CannotTreat(f"several layers add up to its pre-activation: {summands}")
        return producers[0]

    def layers(self) -> tuple[Wire, ...]:
        """The linear layers and convolutions that make the units: one for each summand.

        A skip among the summands is the output of another site, and has no layer.

        Raises:
            CannotTreat: They are unknown, or there are none.
        """
        self._require_producers()
        layers = tuple(w for w in self.report.site.producers if w.kind not in (*NORMS, "skip"))
        if not layers:
            raise CannotTreat(f"no layer makes it; it is the sum of {self._told_skips()}")
        return layers

    def norms(self) -> tuple[Wire, ...]:
        """The norms between the layers and the activation."""
        return tuple(wire for wire in self.report.site.producers if wire.kind in NORMS)

    def skips(self) -> tuple[Wire, ...]:
        """The summands that are the outputs of other sites."""
        return tuple(wire for wire in self.report.site.producers if wire.kind == "skip")

    def ends(self) -> tuple[Wire, ...]:
        """What comes last before the activation: of each summand, if nothing follows their sum.

        Raises:
            CannotTreat: The producers are unknown.
        """
        self._require_producers()
        last = {wire.branch: wire for wire in self.report.site.producers}
        return (last[0],) if 0 in last else tuple(last.values())

    def shift(self) -> str:
        """The bias, or norm's shift, that moves the pre-activations of the units and no others.

        What is added to it adds to the pre-activation as it is: no norm stands behind it.

        Raises:
            CannotTreat: There is none, or it may not be treated.
        """
        ends = self.ends()
        biases = [wire.bias for wire in ends if wire.bias is not None]
        if not biases:
            told = " and ".join(str(w) if w.kind == "skip" else w.module or w.kind for w in ends)
            raise CannotTreat(f"no bias to shift in {told}")
        refusals = [self._untreatable(bias) for bias in biases]
        if all(refusals):
            raise CannotTreat(refusals[0])
        return biases[refusals.index("")]

    def require_trainable(self, *names: str | None) -> None:
        """Refuse parameters that are frozen, tied, or that no given optimizer updates.

        Raises:
            CannotTreat: A parameter may not be treated.
        """
        for name in filter(None, names):
            reason = self._untreatable(name)
            if reason:
                raise CannotTreat(reason)

    def _untreatable(self, name: str) -> str:
        parameter = self.surgery.tensor(name)
        if not parameter.requires_grad:
            return f"{name} is frozen"
        twins = self.surgery.twins(name)
        if twins:
            return f"{name} is tied to {' and '.join(twins)}"
        if self.optimizers.owner(parameter) is None:
            return f"no optimizer given to deadwatch updates {name}"
        return ""

    def _require_producers(self) -> None:
        site = self.report.site
        if not site.producers:
            raise CannotTreat(f"its producers are unknown: {site.producers_note}")

    def _told_skips(self) -> str:
        return " and ".join(map(str, self.skips()))

    def places(self, name: str, units: Ints) -> tuple[Place, ...]:
        """Where units lie in a producer's parameter or buffer."""
        producers, path = self.report.site.producers, name.rpartition(".")[0]
        wires = [w for w in producers if name in w.names] or [
            w for w in producers if w.module == path
        ]
        if not wires:
            return (Place(0, units),)
        return places(wires[0], name, units, self.surgery.tensor(name).shape)

    def slices(self, name: str, units: Ints) -> tuple[int, Ints]:
        """The axis of a producer's tensor along which units lie, and where.

        Raises:
            CannotTreat: They lie in several places, as in a transposed convolution in groups.
        """
        found = self.places(name, units)
        if found[0].rows is not None:
            raise CannotTreat(f"the units lie in several groups of {name}")
        return found[0].axis, found[0].index

    def rows(self, name: str, units: Ints | None = None, *, of: Tensor | None = None) -> Tensor:
        """A copy of the treated units' rows of a producer's parameter or buffer.

        Args:
            name: Name of the parameter or buffer.
            units: Other units, ascending.
            of: A tensor of the same shape to take the rows from instead.
        """
        found = self.places(name, self.units if units is None else units)
        whole = self.surgery.tensor(name).detach() if of is None else of
        parts = [
            narrowed(whole, each.rows).index_select(
                each.axis, torch.as_tensor(each.index, device=whole.device)
            )
            for each in found
        ]
        return torch.cat(parts, found[0].axis)

    def edits(self, name: str, rows: Tensor) -> tuple[Edit, ...]:
        """What gives the treated units new rows, as `rows` has them, in every place they lie."""
        found = self.places(name, self.units)
        parts = rows.split([len(each.index) for each in found], found[0].axis)
        return tuple(
            Edit(name, each.axis, each.index, part, each.rows)
            for each, part in zip(found, parts, strict=True)
        )

    def restarts(self, name: str) -> tuple[Restart, ...]:
        """A fresh start for the optimizer's state of the treated units' rows."""
        return _restarts(name, self.places(name, self.units), self.places(name, self.live))

    def edit(self, name: str, rows: Tensor) -> Edit:
        """`edits`, of a tensor in which the units lie in one place, such as a bias."""
        return Edit(name, *self.slices(name, self.units), rows)

    def restart(self, name: str) -> Restart:
        """`restarts`, of a tensor in which the units lie in one place, such as a bias."""
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
        readers = self.report.site.consumers
        self.require_trainable(*(wire.weight for wire in readers))
        edits = [*_fold(self)]
        restarts: list[Restart] = []
        for wire in readers:
            assert wire.weight is not None
            shape = self.surgery.tensor(wire.weight).shape
            outgoing = places(wire, wire.weight, self.units, shape)
            for each in outgoing:
                old = self.surgery.rows(wire.weight, each.index, each.axis, each.rows)
                zeros = torch.zeros_like(old)
                edits.append(Edit(wire.weight, each.axis, each.index, zeros, each.rows))
            live = places(wire, wire.weight, self.live, shape)
            restarts += _restarts(wire.weight, outgoing, live)
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
        return ""


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


def _restarts(
    name: str, treated: tuple[Place, ...], live: tuple[Place, ...]
) -> tuple[Restart, ...]:
    """Restarts whose live slices lie within the same rows as the treated ones."""
    beside = {place.rows: place.index for place in live}
    none = np.empty(0, np.int64)
    return tuple(
        Restart(name, each.axis, each.index, beside.get(each.rows, none), each.rows)
        for each in treated
    )


def _fold(case: Case) -> Iterator[Edit]:
    """Move the units' mean contribution into the readers' biases."""
    mean = case.report.mean_out[case.units]
    low, high = case.report.min[case.units], case.report.max[case.units]
    gate = case.report.site.gate
    if gate.inside and ((low <= gate.low) & (high >= gate.high)).any():
        raise CannotTreat("quiet treatment is not possible: its output flips between two values")
    if not mean.any():
        return
    shares: dict[str, Tensor] = {}
    for wire in case.report.site.consumers:
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
    """What the units contribute on average to each output of a reader: what it makes of them."""
    assert wire.weight is not None
    weight = case.surgery.tensor(wire.weight).detach()
    weight = weight.to(torch.promote_types(weight.dtype, torch.float32))
    inputs = np.zeros(weight.shape[wire.axis] * wire.groups)
    inside = [unit for unit in case.units if unit in wire.units]
    inputs[wire.slices(case.units)] = np.repeat(case.report.mean_out[inside], wire.block)
    means = torch.as_tensor(inputs).to(weight).view(wire.groups, -1)
    matrix = weight.flatten(2).sum(2) if weight.ndim > 2 else weight
    matrix = matrix if wire.axis else matrix.t()
    return torch.einsum("goi,gi->go", matrix.unflatten(0, (wire.groups, -1)), means).flatten()


def require_separable(case: Case) -> None:
    """Refuse where a norm mixes the units, so that a new row would change the live ones.

    Raises:
        CannotTreat: A layer norm or group norm stands between producer and activation.
    """
    for norm in case.norms():
        if norm.kind in ("layer_norm", "group_norm"):
            layers = " and ".join(layer.module for layer in case.layers())
            raise CannotTreat(
                f"a {norm.kind} between {layers} and the activation mixes the "
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
