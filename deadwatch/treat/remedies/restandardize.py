"""Re-standardising: a dead unit's own weights, rescaled and shifted into its gate."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import chain

import numpy as np
import torch
from torch import Tensor

from deadwatch.errors import CannotTreat
from deadwatch.records import Bools, Floats
from deadwatch.treat.case import Case
from deadwatch.treat.remedies.base import Plan, Remedy, require_quiet

# Deeper than this many standard deviations, float32 does not tell a spread from rounding.
_DEEPEST = 1e5


@dataclass(frozen=True)
class Restandardize(Remedy):
    """Rescales and shifts dead units so that their pre-activations have mean 0 and std 1.

    The direction that a unit has learnt stays; its size and offset are set from the window's mean
    and standard deviation, as batch normalisation and weight normalisation's data-dependent start
    (Salimans & Kingma 2016) would. Where a norm stands last before the activation, its scale and
    shift for these units are set, which holds for every norm, also one that mixes units; else the
    rows of all layers whose outputs add up. Where 0 lies outside the gate, as for
    ``Threshold(2.0)``, the mean is the end of the gate that is nearest to 0 instead.

    The figures are met to rounding, unless dropout or a padding by zeros stands before the
    activation, on which a bias does not act evenly; then they are met roughly.

    Units whose pre-activation does not vary, say because a layer before them is dead, have nothing
    to be rescaled and are left out.

    Attributes:
        quiet: True to insist that the function does not change at the treatment; None where all
            readers are known and some unit of the layer lives (behind a wholly dead layer there
            is nothing to preserve, and a next layer that is dead as well would never see it);
            False to leave the readers alone.

    Raises:
        ConfigError: ``quiet`` is not True, False or None.
    """

    quiet: bool | None = None

    def __post_init__(self) -> None:
        require_quiet(self.quiet)

    def plan(self, case: Case) -> Plan:
        """Plan new rows for every unit whose pre-activation varies."""
        varies = _varies(case)
        still = (
            "their pre-activations do not vary (a dead layer or constant input before them), or by "
            f"less than 1/{_DEEPEST:g} of their mean"
        )
        if not varies.any():
            raise CannotTreat(still)
        case = replace(case, units=case.units[varies])
        rows = _standard_rows(case)
        quiet = self.quiet if len(case.live) or self.quiet is not None else False
        edits, restarts, quiet = case.silence(quiet)
        return Plan(
            self.name,
            case.units,
            edits=(*edits, *chain.from_iterable(case.edits(*each) for each in rows.items())),
            restarts=(*restarts, *chain.from_iterable(map(case.restarts, rows))),
            quiet=quiet,
            note=f"{', '.join(rows)} set for mean {_target(case):g} and standard deviation 1",
            left_out="" if varies.all() else still,
        )


def _varies(case: Case) -> Bools:
    mean, std = case.report.mean[case.units], case.report.std[case.units]
    varies: Bools = (std > np.abs(mean) / _DEEPEST) & np.isfinite(std)
    return varies


def _target(case: Case) -> float:
    """The point of the gate that is nearest to 0."""
    gate = case.report.site.gate
    return min(max(0.0, gate.low), gate.high) if gate.inside else 0.0


def _standard_rows(case: Case) -> dict[str, Tensor]:
    """New rows by parameter name: every summand over std, and one shift that sets the mean."""
    shift = case.shift()
    scaled = _scaled(case)
    case.require_trainable(shift, *scaled)
    mean, std = case.report.mean[case.units], case.report.std[case.units]
    rows = {name: _times(case, name, 1 / std) for name in scaled}
    rows[shift] += torch.as_tensor(_target(case) - mean / std)
    return rows


def _scaled(case: Case) -> list[str]:
    """The parameters to which the pre-activation is proportional."""
    names: list[str] = []
    for end in case.ends():
        if end.weight is None:
            raise CannotTreat(f"{end if end.kind == 'skip' else end.module} cannot be rescaled")
        names += end.names
    return names


def _times(case: Case, name: str, factors: Floats) -> Tensor:
    """The units' rows, times one factor a unit, in double precision."""
    rows, axis = case.rows(name).cpu().double(), case.places(name, case.units)[0].axis
    each = np.repeat(factors, rows.shape[axis] // len(factors))
    return rows * torch.as_tensor(each).view([-1 if d == axis else 1 for d in range(rows.ndim)])
