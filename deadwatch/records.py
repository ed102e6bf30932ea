"""The frozen records that the stages hand to each other.

Plain, picklable, and free of torch: they hold names, numbers and NumPy arrays, never modules.
Arrays named "(C,)" have one entry per unit of the site.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]


class State(IntEnum):
    """What the evidence of a window says about a unit."""

    UNSEEN = 0  # the site did not run
    UNCERTAIN = 1  # gate never open, but on too few samples (or some were NaN)
    DEAD = 2  # gate never open, and the closed side has exactly zero derivative
    SATURATED = 3  # gate never open, but the closed side still has a tiny derivative
    RARE = 4  # gate open on very few samples: alive, worth watching
    ALIVE = 5


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
        producers: What produces the units, in the order of the data; empty if unknown.
        consumers: All that read the units; empty if unknown.
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
    ndim: int = 0


@dataclass(frozen=True)
class Window:
    """The stretch of training a report speaks of; both steps are included."""

    index: int
    first_step: int
    last_step: int


@dataclass(frozen=True, eq=False)
class SiteSnapshot:
    """What was measured at one site over one window.

    Attributes:
        site: The site.
        samples: Elements per unit on which liveness was judged (every counted forward).
        data: Per-unit statistics by name, each (C,); see `deadwatch.observe.stats.STATISTICS`.
            Empty if the site has never run.
        age: Samples since each unit's gate was last open, at window granularity (C,).
        flat: Whether each unit's closed side has exactly zero derivative (C,).
    """

    site: Site
    samples: int
    data: Mapping[str, npt.NDArray[Any]]
    age: Ints
    flat: Bools

    @property
    def units(self) -> int:
        """Number of units, 0 if the site has never run."""
        return len(self.age)

    @property
    def opened(self) -> Bools:
        """Which gates are known to have been open in the window (C,)."""
        # Where a NaN hid a batch from the exact check, the sampled count may still have seen it.
        known: Bools = self.data["opened"] | (self.data["open"] > 0)
        return known


@dataclass(frozen=True, eq=False)
class Snapshot:
    """What was measured at all sites over one window, in the order of the data."""

    window: Window
    sites: tuple[SiteSnapshot, ...]


@dataclass(frozen=True, eq=False)
class Change:
    """What a treatment wrote into one tensor: slices ``index`` along ``axis``.

    Attributes:
        tensor: Name of the parameter or buffer.
        axis: Axis along which the slices lie.
        index: The slices.
        before: Their values before.
        after: Their values after.
        rows: Only within these indices of axis 0; None for all of them.
        state: What the optimizer keeps for the parameter, such as ``"exp_avg"``, if it was that
            which was written; empty for the tensor itself.
        shared: Whether live units use the slices as well: taking the change back takes out what
            it added, and leaves what was learned since.
    """

    tensor: str
    axis: int
    index: Ints
    before: npt.NDArray[Any]
    after: npt.NDArray[Any]
    rows: range | None = None
    state: str = ""
    shared: bool = False


@dataclass(frozen=True, eq=False)
class Treatment:
    """What one remedy did to one site.

    Attributes:
        remedy: The remedy's name.
        site: The site's name.
        units: Treated units.
        window: Index of the window whose verdict led to it.
        step: Step count of the watch when it was applied.
        quiet: True if the outgoing columns were zeroed, so that the function did not change.
        changes: Every tensor slice that was written, with values before and after.
        note: Anything worth telling, such as the bias that was added or a module replaced.
        swapped: Path of the module that was replaced; empty for none.
        swapped_before: Units that were swapped there before; None where a module was replaced by
            another one than a swap.
    """

    remedy: str
    site: str
    units: Ints
    window: int
    step: int
    quiet: bool
    changes: tuple[Change, ...] = field(repr=False, default=())
    note: str = ""
    swapped: str = ""
    swapped_before: tuple[int, ...] | None = ()


@dataclass(frozen=True, eq=False)
class Refusal:
    """A remedy that could not be applied, and why."""

    remedy: str
    site: str
    units: Ints
    window: int
    reason: str


@dataclass(frozen=True)
class Outcome:
    """What came of one remedy over a run so far.

    A unit that was treated several times counts each time. `revived`, `relapsed` and
    `still_dead` leave out units that no later window has judged yet.

    Attributes:
        remedy: The remedy's name; that of the control group for units left untreated.
        treatments: How often it was applied.
        units: Units treated.
        revived: Units alive when last judged, before any later treatment.
        relapsed: Units that came back and died again.
        still_dead: Units that never came back.
        undone: Treatments that the guard took back.
        written: Elements of parameters that were written: what it cost the network.
    """

    remedy: str
    treatments: int
    units: int
    revived: int
    relapsed: int
    still_dead: int
    undone: int
    written: int


@dataclass(frozen=True, eq=False)
class SiteReport:
    """One site over one window, as NumPy arrays with one entry per unit.

    Where nothing was measured the floats are NaN, never 0. Moments, fractions and extremes come
    from the sampled forwards (`stats_every_n_steps`) and leave out NaN and infinite elements;
    `state`, `dead` and `samples` come from every counted forward.

    Attributes:
        site: The site.
        samples: Elements per unit on which liveness was judged.
        state: `State` of each unit.
        age: Samples since each unit's gate was last open.
        open_fraction: Share of elements on which the gate was open.
        mean: Mean of the pre-activation.
        std: Standard deviation (population) of the pre-activation.
        min: Least pre-activation.
        max: Greatest pre-activation.
        mean_abs: Mean |f(z)| of the activation's output.
        mean_out: Mean f(z) of the activation's output.
        nonfinite: Number of NaN or infinite pre-activations.
        dormancy: ReDo score: ``mean_abs`` over its mean across the layer (Sokar et al. 2023).
        sparsity: Share of closed gates over all elements of the site; not a measure of death.
        harmful: Whether so many of its units are dead that measurement has found harm; see
            `deadwatch.Rules`.
    """

    site: Site
    samples: int
    state: Ints
    age: Ints
    open_fraction: Floats
    mean: Floats
    std: Floats
    min: Floats
    max: Floats
    mean_abs: Floats
    mean_out: Floats
    nonfinite: Floats
    dormancy: Floats
    sparsity: float
    harmful: bool = False

    @property
    def units(self) -> int:
        """Number of units, 0 if the site has never run."""
        return len(self.state)

    @property
    def dead(self) -> Bools:
        """Which units are dead (C,)."""
        dead: Bools = self.state == State.DEAD
        return dead

    @property
    def judged(self) -> int:
        """Units with enough evidence for a state."""
        return int((self.state >= State.DEAD).sum())

    @property
    def dead_ratio(self) -> float:
        """Dead units over judged units; NaN if none was judged."""
        return int(self.dead.sum()) / self.judged if self.judged else math.nan


@dataclass(frozen=True, eq=False)
class WindowReport(Mapping[str, SiteReport]):
    """All sites over one window: a mapping of site name to `SiteReport`.

    Attributes:
        window: Index, first and last step.
        sites: Reports in the order of the data.
        treatments: What was applied at the end of the window.
        refusals: Remedies that could not be applied, and why.
        notes: What else there is to tell: dead units that were left alone, treatments undone.
        outcomes: What came of each remedy so far.
    """

    window: Window
    sites: Mapping[str, SiteReport]
    treatments: tuple[Treatment, ...] = ()
    refusals: tuple[Refusal, ...] = ()
    notes: tuple[str, ...] = ()
    outcomes: tuple[Outcome, ...] = ()

    def __getitem__(self, name: str) -> SiteReport:
        try:
            return self.sites[name]
        except KeyError:
            known = ", ".join(self.sites) or "none"
            raise KeyError(f"no site {name!r} in this window; the sites are: {known}") from None

    def __iter__(self) -> Iterator[str]:
        return iter(self.sites)

    def __len__(self) -> int:
        return len(self.sites)

    @property
    def dead(self) -> int:
        """Dead units of all sites."""
        return sum(int(site.dead.sum()) for site in self.sites.values())

    @property
    def judged(self) -> int:
        """Units of all sites with enough evidence for a state."""
        return sum(site.judged for site in self.sites.values())

    @property
    def dead_ratio(self) -> float:
        """Dead units over judged units, summed over sites; NaN if none was judged."""
        return self.dead / self.judged if self.judged else math.nan
