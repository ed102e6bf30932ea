"""Bias warming: a temporary positive γ on the biases of dead units, later annealed to zero."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from statistics import NormalDist
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from deadwatch.errors import CannotTreat, ConfigError, DeadwatchError
from deadwatch.plain import from_plain
from deadwatch.records import Floats, Ints
from deadwatch.treat.case import Case
from deadwatch.treat.course import Course
from deadwatch.treat.remedies.base import Plan, Remedy, require_number, require_quiet
from deadwatch.treat.remedies.warming import ClosedLoop, Held, Warming, exact
from deadwatch.treat.surgery import Surgery


@dataclass(frozen=True)
class BiasWarming(Remedy):
    """Lifts dead units into their gate for a while.

    γ is added to the bias (to the norm's β when a norm stands between), held for ``hold`` steps
    while the unit learns, then annealed to zero over ``anneal`` steps or more. What was really
    added is tracked to the last bit, so that what is removed is what was added.

    Attributes:
        gamma: ``"auto"`` for a γ per unit from its own pre-activation statistics, such that
            ``open_share`` of the samples open the gate; or one number for all.
        hold: Training steps at full γ.
        anneal: Training steps over which γ returns to zero; at the least, in a closed loop.
        schedule: ``"linear"``, ``"cosine"``, or ``"closed-loop"``: at the end of each window γ
            falls by no more than leaves the unit open by itself on 5% of the samples. Where that
            allows nothing for three windows, or training ends, the rest stays in the bias; the
            ledger says so.
        open_share: Share of samples that ``"auto"`` lets through, taking z as normal.
        deepest: Units that need a larger γ than this many standard deviations of the live units'
            pre-activations are left to another remedy; infinity for none. Measurement has deep
            deaths recover better by recycling.
        quiet: True to insist that the function does not change at the treatment; None where all
            readers are known and some unit of the layer lives; False for the textbook form.

    Raises:
        ConfigError: An argument is out of its range.
    """

    gamma: float | Literal["auto"] = "auto"
    hold: int = 50
    anneal: int = 200
    schedule: Literal["linear", "cosine", "closed-loop"] = "linear"
    open_share: float = 0.25
    deepest: float = math.inf
    quiet: bool | None = None

    def __post_init__(self) -> None:
        if self.gamma != "auto":
            require_number("gamma", self.gamma, 1e-12, 'or "auto" for one per unit')
        require_quiet(self.quiet)
        require_number("hold", self.hold, 0, "training steps at full strength", whole=True)
        require_number("anneal", self.anneal, 1, "training steps until it is gone", whole=True)
        if self.schedule not in ("linear", "cosine", "closed-loop"):
            raise ConfigError(
                f"schedule is {self.schedule!r}; expected 'linear', 'cosine' or 'closed-loop'"
            )
        if not isinstance(self.deepest, (int, float)) or not self.deepest > 0:
            raise ConfigError(
                f"deepest is {self.deepest!r}; expected a number above 0 (standard deviations of "
                "the live units), or infinity for no limit"
            )
        if not isinstance(self.open_share, float) or not 0 < self.open_share < 1:
            raise ConfigError(
                f"open_share is {self.open_share!r}; expected a share above 0 and below 1, "
                "such as 0.25 to open the gate on a quarter of the samples"
            )

    def plan(self, case: Case) -> Plan:
        """Plan γ for every unit that lies below its gate."""
        bias = self._bias(case)
        case.require_trainable(bias)
        gammas = self._gammas(case)
        below, shallow = gammas > 0, gammas <= self._limit(case)
        reasons = {
            "they lie above their gate, where a positive bias cannot help": below,
            f"they lie deeper than {self.deepest:g} standard deviations of live units": shallow,
        }
        left_out = " or ".join(why for why, fits in reasons.items() if not fits.all())
        fits = below & shallow
        if not fits.any():
            raise CannotTreat(left_out)
        units, gammas = case.units[fits], gammas[fits]
        case = replace(case, units=units)
        edits, restarts, quiet = case.silence(self._quiet(case))
        own = case.rows(bias)
        warm = _add(own, gammas)
        rows, whole = case.slices(bias, units)[1], case.surgery.tensor(bias)
        course = self._course(units, Held(bias, rows, own, warm, whole))
        return Plan(
            self.name,
            units,
            edits=(*edits, case.edit(bias, warm)),
            restarts=(*restarts, *case.renewals()),
            course=course,
            quiet=quiet,
            note=f"γ {gammas.min():.3g} to {gammas.max():.3g} on {bias}",
            left_out=left_out,
        )

    def _course(self, units: Ints, held: Held) -> Warming | ClosedLoop:
        if self.schedule == "closed-loop":
            return ClosedLoop(units, held, self.hold, self.anneal)
        return Warming(units, held, self.hold, self.anneal, self.schedule == "cosine")

    def resume(self, state: dict[str, Any], surgery: Surgery) -> Course:
        """Go on with a warming that a checkpoint interrupted.

        Raises:
            DeadwatchError: It went by another kind of schedule.
        """
        if ("stalled" in state) != (self.schedule == "closed-loop"):
            raise DeadwatchError(
                f"the state holds a {self.name} in progress whose γ is taken out "
                f"{'as its units allow' if 'stalled' in state else 'by a fixed schedule'}, and "
                f"schedule is {self.schedule!r} here; resume with the schedule it was saved with"
            )
        units = from_plain(Ints, state["units"])
        return self._course(units, Held.resume(state, surgery)).resume(state)

    def _bias(self, case: Case) -> str:
        return case.shift()

    def _quiet(self, case: Case) -> bool | None:
        if len(case.live) or self.quiet is False:
            return self.quiet
        if self.quiet:
            raise CannotTreat("the whole layer is dead: warmed quietly, nothing would pass on")
        return False

    def _limit(self, case: Case) -> float:
        spreads = case.report.std[case.live]
        spreads = spreads[np.isfinite(spreads)]
        if self.deepest == math.inf:
            return math.inf
        return self.deepest * float(np.median(spreads)) if len(spreads) else 0.0

    def _gammas(self, case: Case) -> Floats:
        report, units = case.report, case.units
        gate = report.site.gate
        entry = gate.low if gate.inside else gate.high
        mean, std = report.mean[units], report.std[units]
        if not np.isfinite(mean + std).all():
            raise CannotTreat("the mean and spread of its pre-activations are not known")
        if self.gamma != "auto":
            return np.where(mean < entry, float(self.gamma), 0.0)
        # A unit with a constant input has no spread; a hundredth of its depth stands in.
        spread = np.maximum(std, 1e-2 * (np.abs(mean) + 1e-2))
        quantile = mean + spread * NormalDist().inv_cdf(1 - self.open_share)
        top = report.max[units] - 0.1 * spread
        return np.where(mean < entry, entry - np.minimum(quantile, top), 0.0)


def _add(own: Tensor, gammas: Floats) -> Tensor:
    added = torch.as_tensor(gammas, device=own.device).to(exact(own).dtype)
    return (exact(own) + added).to(own.dtype)
