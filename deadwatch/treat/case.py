"""What a remedy may know about the units it is asked to treat."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from deadwatch.errors import CannotTreat
from deadwatch.records import Ints, SiteReport, State, Wire
from deadwatch.records.sites import NORMS
from deadwatch.treat import shards
from deadwatch.treat.optim import OptimizerState, Restart
from deadwatch.treat.places import Place, places, restarts
from deadwatch.treat.silence import silence
from deadwatch.treat.surgery import Edit, Surgery

_MIXING = ("layer_norm", "group_norm")


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

    def trained(self, wire: Wire) -> bool:
        """Whether a layer's weight may be treated."""
        return wire.weight is not None and not self._untreatable(wire.weight)

    def _untreatable(self, name: str) -> str:
        parameter = self.surgery.tensor(name)
        if not parameter.requires_grad:
            return f"{name} is frozen"
        if shards.foreign(parameter):
            return f"{name} is spread over ranks as {shards.foreign(parameter)}"
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
        whole = shards.whole(self.surgery.tensor(name) if of is None else of)
        parts = [shards.slices(whole, each.axis, each.index, each.rows) for each in found]
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
        return restarts(name, self.places(name, self.units), self.places(name, self.live))

    def renewals(self) -> tuple[Restart, ...]:
        """A fresh start for the optimizer's state of all rows that make the treated units.

        For a remedy that leaves them as they are: they are about to learn again, and the state of
        a long dead unit would have their first steps leap.
        """
        names = [name for wire in self.report.site.producers for name in wire.names]
        trained = [name for name in names if not self._untreatable(name)]
        return tuple(restart for name in trained for restart in self.restarts(name))

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
            quiet: True to insist, False for nothing, None for where all readers are known. Where
                others read units as well whose output is zero, None still zeroes the columns of
                the layers that are known, and the treatment does not count as quiet.

        Returns:
            The edits, the optimizer restarts, and whether the treatment is quiet.

        Raises:
            CannotTreat: ``quiet`` is True and the readers are unknown or hold other values, too; or
                a contribution other than zero cannot be folded.
        """
        return silence(self, quiet)

    def require_separable(self) -> None:
        """Refuse where a norm mixes the units, so that a new row would change the live ones.

        Raises:
            CannotTreat: A layer norm or group norm stands between producer and activation.
        """
        for norm in self.norms():
            if norm.kind in _MIXING:
                layers = " and ".join(layer.module for layer in self.layers())
                raise CannotTreat(
                    f"a {norm.kind} between {layers} and the activation mixes the "
                    "units: new weights for the dead ones would change the live ones"
                )
