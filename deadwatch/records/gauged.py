"""What the optional gauges measure, beside the activations themselves."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from deadwatch.records.arrays import Floats, Ints


@dataclass(frozen=True)
class Parameter:
    """One parameter of a model, as rules see it.

    Attributes:
        shape: Its shape; of a sharded one that of the whole.
        kind: ``"weight"``, ``"bias"`` or ``"norm"`` (scale or shift of a norm).
        layer: Class of the module that owns it.
        rms: Root mean square of its elements; NaN where they are not all in this process.
        trainable: Whether it gets gradients.
        optimizer: Class of the optimizer that updates it; empty if none that is known does.
        lr: Learning rate of its group; NaN if there is none.
        decay: Weight decay of its group; 0 if there is none.
    """

    shape: tuple[int, ...]
    kind: Literal["weight", "bias", "norm"]
    layer: str
    rms: float
    trainable: bool = True
    optimizer: str = ""
    lr: float = float("nan")
    decay: float = 0.0


@dataclass(frozen=True)
class Update:
    """How far the steps of a window moved one weight, relative to it: rms(ΔW) / rms(W).

    Of a weight below 0.3 / √fan_in it is relative to that.

    Attributes:
        mean: Mean over the steps that moved it.
        peak: The largest.
        peak_step: The training step it was in.
        steps: Steps that moved it.
    """

    mean: float
    peak: float
    peak_step: int
    steps: int


@dataclass(frozen=True)
class LayerInput:
    """What one layer was given in a forward that was looked at.

    Attributes:
        centre: ‖mean‖ / ‖std‖ over its features; infinite where nothing varies.
        features: Number of features.
        samples: Values of each feature.
        raw: Whether it comes from outside of the model, and not from another layer.
    """

    centre: float
    features: int
    samples: int
    raw: bool


@dataclass(frozen=True, eq=False)
class Rows:
    """What makes the units of one site, at the end of a window.

    The pre-activation of unit i is w_i · x + b_i, or γ_i x̂ + β_i behind a norm.

    Attributes:
        bias: b, or β of the norm that stands last (C,); NaN where there is none.
        size: ‖w_i‖, or |γ_i| (C,).
        sketch: w_i in a few random directions (C, J), or γ_i alone: how far two of them are apart
            is about how far the rows are (Johnson & Lindenstrauss 1984). Behind a layer or group
            norm it is of γ_i w_i / ‖w_i‖.
        normed: Whether a norm that standardises each unit stands last.
    """

    bias: Floats
    size: Floats
    sketch: Floats
    normed: bool = False


@dataclass(frozen=True, eq=False)
class Gauges:
    """What the gauges measured in one window; empty where they were off or could not look.

    Attributes:
        updates: By name of a weight.
        inputs: By name of the weight that reads it.
        gradients: Root mean square of the loss's gradient at the pre-activation, by site.
        rows: By site.
        last_open: By site, the last step in which each unit's gate was seen open (C,), -1 if in
            none: as far as statistics are taken, on every n-th step.
        rates: The lowest and the highest learning rate of each group of parameters.
    """

    updates: Mapping[str, Update] = field(default_factory=dict)
    inputs: Mapping[str, LayerInput] = field(default_factory=dict)
    gradients: Mapping[str, float] = field(default_factory=dict)
    rows: Mapping[str, Rows] = field(default_factory=dict)
    last_open: Mapping[str, Ints] = field(default_factory=dict)
    rates: tuple[tuple[float, float], ...] = ()


Cause = Literal["birth", "update", "bias", "data", "weights", "unknown"]


@dataclass(frozen=True, eq=False)
class Death:
    """How units of one site died that are dead now.

    Attributes:
        site: The site.
        units: The units, ascending (K,).
        cause: ``"birth"``: never open in this run. ``"update"``: at once, in a window in which an
            update of their layer far exceeded the others. ``"bias"``: their bias fell. ``"data"``:
            their pre-activations fell, and what makes them hardly moved. ``"weights"``: their
            weights moved, and no single update stands out. ``"unknown"``: not enough was measured.
        window: The last window in which they were open; -1 if in none that is known of.
        steps: The first and last step between which they fell silent.
        before: Averages over the units when they were last open as usual: ``mean``, ``std``,
            ``open_fraction``, ``bias``; what was not measured is missing.
        after: The same of the first window in which they were dead; and ``moved``, by how
            much their rows and biases moved in that window or the one before, relative to the rows.
        rate: The largest learning rate in the window in which they fell silent; NaN if not known.
        weight: Name of the weight whose updates speak for ``"update"``; empty for another cause.
        update: What its updates were in that window.
    """

    site: str
    units: Ints
    cause: Cause
    window: int
    steps: tuple[int, int]
    before: Mapping[str, float]
    after: Mapping[str, float]
    rate: float = float("nan")
    weight: str = ""
    update: Update | None = None
