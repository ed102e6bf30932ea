"""Where activations are, and what makes and reads their units."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from deadwatch.records.arrays import Ints


@dataclass(frozen=True)
class Gate:
    """Where an activation passes gradient: the z with |f'(z)| > epsilon.

    Attributes:
        low: Lower end of the interval.
        high: Upper end of the interval.
        inside: True if the gate is open for ``low < z < high``; False if it is open outside
            ``low <= z <= high`` (the shrinking activations).
        flat: True if the derivative on the closed side is exactly zero, so that a unit whose
            gate never opens cannot learn at all.
    """

    low: float
    high: float
    inside: bool = True
    flat: bool = True

    @property
    def always_open(self) -> bool:
        """Whether no input closes the gate."""
        return self.inside and self.low == -math.inf and self.high == math.inf


LAYERS = ("linear", "conv", "conv_transpose")
"""Kinds of wires that are layers with weights."""

NORMS = ("batch_norm", "layer_norm", "group_norm")
"""Kinds of wires that are norms."""


@dataclass(frozen=True, repr=False)
class Wire:
    """One operation that produces a site's units, or reads them.

    Along ``axis`` of the weight, unit ``c`` is the ``block`` indices from ``offset + c * block``;
    see `slices`. In a producer, index ``offset + c`` of the bias is unit ``c``'s as well.

    Attributes:
        kind: ``"linear"``, ``"conv"``, ``"conv_transpose"``, ``"batch_norm"``, ``"layer_norm"``,
            ``"group_norm"``; or ``"skip"`` for a summand of the pre-activation that is the output
            of another site, and has no parameters.
        module: Path of the module that owns the weight; for a skip, the name of that site.
        weight: Parameter name of the weight, or None where there is none.
        bias: Parameter name of the bias, or None where there is none.
        axis: Axis of the weight along which the units lie. Producers mostly have rows (0) and
            readers columns (1); transposed convolutions and ``x @ W`` the other way round.
        units: The units it makes or reads; fewer than the site has if a slice took some of them.
        offset: Where unit 0 begins; negative if a slice left the first units behind.
        block: Indices per unit (more than 1 after a flatten).
        groups: In how many groups of rows axis 1 is laid out, in a grouped convolution: index ``i``
            is slice ``i % n`` of group ``i // n``, where ``n`` is the length of axis 1.
        padded: True if zeros are padded around what is read, so that a constant contribution
            is not a constant at the border.
        shared: True if what is read holds other values besides the units: a skip connection added
            to them, or a concatenation along another axis.
        through: What changes the units' values before they are read, such as ``"batch_norm"``;
            empty if a reader sees the site's own output.
        branch: Where several layers add up to the pre-activation, the number of the summand, from
            1; 0 for what all share.
        shape: Shape of the weight; empty where there is none.
    """

    kind: str
    module: str
    weight: str | None
    bias: str | None
    axis: int = 0
    units: range = range(0)
    offset: int = 0
    block: int = 1
    groups: int = 1
    padded: bool = False
    shared: bool = False
    through: str = ""
    branch: int = 0
    shape: tuple[int, ...] = ()

    @property
    def per_unit(self) -> int:
        """Elements of the weight that belong to one unit; 0 where there is none."""
        if not self.shape:
            return 0
        return self.block * math.prod(self.shape) // max(1, self.shape[self.axis] * self.groups)

    @property
    def names(self) -> tuple[str, ...]:
        """The parameters there are, weight first."""
        return tuple(name for name in (self.weight, self.bias) if name is not None)

    def slices(self, units: Ints) -> Ints:
        """The indices along ``axis`` that belong to ``units``, so far as they are in it."""
        inside = units[(units >= self.units.start) & (units < self.units.stop)]
        found: Ints = (self.offset + inside[:, None] * self.block + np.arange(self.block)).ravel()
        return found

    def __repr__(self) -> str:
        if self.kind == "skip":
            return f"<skip from {self.module}>"
        ends = (self.offset + end * self.block for end in (self.units.start, self.units.stop))
        span = ":, " * self.axis + ":".join(map(str, ends))
        told = {
            f" + {self.bias}": self.bias,
            f" in {self.groups} groups": self.groups > 1,
            f" behind a {self.through}": self.through,
            " shared": self.shared,
        }
        return (
            f"<{self.kind} {self.weight or self.module}[{span}]{''.join(filter(told.get, told))}>"
        )


@dataclass(frozen=True)
class Site:
    """One place in a forward pass where an activation function is called.

    Attributes:
        name: Path of the activation module (``block.relu``), or for a function that of the module
            in whose forward it is called and its name (``block-relu``); with ``-2``, ``-3`` …
            for later calls within one forward.
        module: Path of the activation module, or of the module that calls the function.
        call: Which call within one forward this is, from 1.
        activation: Name of the activation, such as ``"ReLU"``.
        gate: Where the activation passes gradient.
        unit_dim: Axis of the pre-activation that holds the units; None until it has run.
        ndim: Number of axes of the pre-activation at its first call; 0 until it has run.
        path: Functions applied between the layer that makes its units and the activation, such as
            ``"batch_norm"`` or ``"dropout"``; views are left out.
        trails: What happens to its output: functions applied to it in turn, up to a layer, or to
            what is not followed, such as ``"softmax"``; ``"return"`` where it leaves the forward.
        producers: What produces the units, in the order of the data; empty if unknown.
        consumers: All that read the units; empty if unknown.
        known_consumers: Those within the forward, where all of these are known; others may read
            the units after it, from where they are kept or returned.
        producers_note: Why the producers are unknown; empty if they are known.
        consumers_note: Why the consumers are unknown; empty if they are known.
        functional: Whether it is a function, not a module, that is called there.
    """

    name: str
    module: str
    call: int
    activation: str
    gate: Gate
    unit_dim: int | None = None
    producers: tuple[Wire, ...] = ()
    consumers: tuple[Wire, ...] = ()
    producers_note: str = "not traced yet"
    consumers_note: str = "not traced yet"
    functional: bool = False
    known_consumers: tuple[Wire, ...] = ()
    ndim: int = 0
    path: tuple[str, ...] = ()
    trails: tuple[tuple[str, ...], ...] = ()
