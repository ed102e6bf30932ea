"""What a warming adds is held exactly, and taken out by a schedule or as its units allow."""

from __future__ import annotations

import math
from statistics import NormalDist
from typing import Any

import numpy as np
import torch
from torch import Tensor

from deadwatch.errors import DeadwatchError
from deadwatch.plain import from_plain, to_plain
from deadwatch.records import Ints, SiteReport, State
from deadwatch.treat.course import Course
from deadwatch.treat.surgery import Edit, Surgery

KEEP_OPEN = 0.05
"""Share of the samples on which a unit has to stay open while its γ is taken out."""

PATIENCE = 3
"""Windows without room for less γ after which a closed loop gives up."""


class Held:
    """A γ in some rows of a bias: what is taken out in the end is what was put in.

    Args:
        bias: Name of the bias.
        rows: The rows (K,).
        own: Their values before (K,).
        warm: Their values with γ (K,).
        whole: The bias itself.
    """

    def __init__(self, bias: str, rows: Ints, own: Tensor, warm: Tensor, whole: Tensor) -> None:
        self.bias, self.rows = bias, rows
        self._whole = whole
        self._own, self._last = own, warm
        self._unmoved = torch.ones(len(rows), dtype=torch.bool, device=own.device)
        self.added = exact(warm) - exact(own)
        self.owed = self.added.clone()

    def lower(self, surgery: Surgery, owed: Tensor, *, alone: bool = False) -> None:
        """Take γ out until ``owed`` is left of it (K,).

        Args:
            surgery: Access to the bias.
            owed: What is to be left.
            alone: Of a bias that is spread over ranks, look only at the rows that are here. Those
                elsewhere are taken as unmoved, which costs no more than a rounding in ``owed``.

        Raises:
            DeadwatchError: Another parameter has taken the place of the bias.
        """
        if surgery.tensor(self.bias) is not self._whole:
            raise DeadwatchError(f"another parameter is called {self.bias} now, and has no γ")
        now = (
            surgery.present(self.bias, self.rows, self._last)
            if alone
            else surgery.rows(self.bias, self.rows)
        )
        self._unmoved &= now == self._last
        lower = (exact(now) - (self.owed - owed)).to(now.dtype)
        # A bias that nothing else has moved returns to its very bits.
        lower = torch.where(self._unmoved & (owed == 0), self._own, lower)
        surgery.put(Edit(self.bias, 0, self.rows, lower))
        # Rounding may take out a little more or less: owe the difference, exactly.
        left = self.owed - (exact(now) - exact(lower))
        self.owed = torch.where(self._unmoved & (owed == 0), torch.zeros_like(left), left)
        self._last = lower

    def follow(self, surgery: Surgery, owed: Tensor) -> None:
        """Take over a bias of which others have taken γ out, until ``owed`` was left (K,)."""
        self._unmoved.fill_(False)
        self.owed, self._last = owed, surgery.present(self.bias, self.rows, self._last)

    def state_dict(self) -> dict[str, Any]:
        """Plain values to go on from."""
        tensors = {name: getattr(self, name).cpu() for name in _TENSORS}
        return {"bias": self.bias, "rows": to_plain(self.rows), **tensors}

    @classmethod
    def resume(cls, state: dict[str, Any], surgery: Surgery) -> Held:
        """Go on from a `state_dict`."""
        whole = surgery.tensor(state["bias"])
        tensors = {name: state[name].to(whole.device) for name in _TENSORS}
        rows = from_plain(Ints, state["rows"])
        held = cls(state["bias"], rows, tensors["_own"], tensors["_last"], whole)
        vars(held).update(tensors)
        return held


_TENSORS = ("_own", "_last", "_unmoved", "added", "owed")


class Warming(Course):
    """γ is held for a while, then taken out by a fixed schedule.

    Args:
        units: The units that are warmed (K,).
        held: Their γ.
        hold: Steps at full γ.
        anneal: Steps over which it goes.
        cosine: Whether it goes by half a cosine, slowly at both ends, or linearly.
    """

    def __init__(self, units: Ints, held: Held, hold: int, anneal: int, cosine: bool) -> None:
        self.units = units
        self._held = held
        self._hold, self._anneal, self._cosine = hold, anneal, cosine
        self._steps = 0

    @property
    def held(self) -> float:
        """Largest γ that is still in a bias."""
        return float(self._held.owed.abs().max())

    def step(self, surgery: Surgery) -> bool:
        """Advance one step; take out what the schedule no longer allows."""
        self._steps += 1
        left = self._left()
        if left < 1:
            # Every step, so that no other rank may be waited for.
            self._held.lower(surgery, self._held.added * left, alone=True)
        return left == 0

    def follow(self, steps: int, surgery: Surgery) -> bool:
        """Advance as others have, by whom γ has been taken out already."""
        self._steps += steps
        left = self._left()
        self._held.follow(surgery, self._held.added * left)
        return left == 0

    def _left(self) -> float:
        """The share of γ that the schedule still allows."""
        gone = min(1.0, max(0, self._steps - self._hold) / self._anneal)
        if gone == 1:
            return 0.0
        return (1 + math.cos(math.pi * gone)) / 2 if self._cosine else 1 - gone

    def state_dict(self) -> dict[str, Any]:
        """Where the schedule stands."""
        return {"steps": self._steps, "units": to_plain(self.units), **self._held.state_dict()}

    def resume(self, state: dict[str, Any]) -> Warming:
        """Go on from a `state_dict`."""
        self._steps = state["steps"]
        return self


class ClosedLoop(Course):
    """γ is taken out only as fast as its unit stays open without it.

    At every window's end, each unit's γ falls by what its pre-activations leave room for: so much
    that it stays open on `KEEP_OPEN` of the samples, at most by the share of ``anneal`` steps that
    the window was long. A unit that leaves no room for `PATIENCE` windows keeps what it still
    needs as its own bias, and that is told; so do all when training ends.

    Args:
        units: The units that are warmed (K,).
        held: Their γ.
        hold: Steps at full γ.
        anneal: Steps over which it goes at the fastest.
    """

    def __init__(self, units: Ints, held: Held, hold: int, anneal: int) -> None:
        self.units = units
        self._all = units
        self._held = held
        self._hold, self._anneal = hold, anneal
        self._steps = self._reviewed = 0
        self._stalled = np.zeros(len(units), np.int64)
        self._stuck = ""

    @property
    def told(self) -> str:
        """Which units could not do without γ, and how many still have some of it."""
        going = np.isin(self._all, self.units)
        left = self._held.owed.abs().cpu().numpy()[going].max(initial=0.0)
        still = f"γ up to {left:.3g} is still in {len(self.units)} units" if going.any() else ""
        return "; ".join(filter(None, (self._stuck, still)))

    def step(self, surgery: Surgery) -> bool:
        """Count a step; γ changes only between windows."""
        self._steps += 1
        return False

    def review(self, report: SiteReport, surgery: Surgery) -> bool:
        """Take out what the window's statistics leave room for."""
        since, self._reviewed = self._steps - self._reviewed, self._steps
        if self._steps <= self._hold:
            return False
        added, owed = (t.cpu().double().numpy() for t in (self._held.added, self._held.owed))
        room = np.clip(np.nan_to_num(_room(report, self._all)), 0, None)
        # Less than a hundredth is not worth a window.
        room[(report.state[self._all] < State.RARE) | (room < 0.01 * added)] = 0
        going = (owed > 0) & np.isin(self._all, self.units)
        self._stalled = np.where(going & (room == 0), self._stalled + 1, 0)
        less = np.minimum(room, added * since / self._anneal)
        left = np.where(owed - less > 0.01 * added, owed - less, 0)
        left = np.where(going & ((left > 0) | (room >= owed)), left, owed)
        if (left < owed).any():
            self._held.lower(surgery, torch.as_tensor(left).to(self._held.owed))
        self._end(np.where(going, left, 0))
        return not len(self.units)

    def _end(self, left: np.ndarray[Any, Any]) -> None:
        """Let go of the units that need no γ any more, or cannot do without."""
        stuck = (left > 0) & (self._stalled >= PATIENCE)
        if stuck.any():
            more = f"γ up to {left[stuck].max():.3g} stays in {int(stuck.sum())} units"
            self._stuck = "; ".join(filter(None, (self._stuck, more)))
        self.units = self._all[(left > 0) & ~stuck]

    def state_dict(self) -> dict[str, Any]:
        """Where the loop stands."""
        return {
            "steps": self._steps,
            "reviewed": self._reviewed,
            "stalled": to_plain(self._stalled),
            "left": to_plain(self.units),
            "units": to_plain(self._all),
            "stuck": self._stuck,
            **self._held.state_dict(),
        }

    def resume(self, state: dict[str, Any]) -> ClosedLoop:
        """Go on from a `state_dict`."""
        self._steps, self._reviewed = state["steps"], state["reviewed"]
        self._stalled = from_plain(Ints, state["stalled"])
        self.units = from_plain(Ints, state["left"])
        self._stuck = state["stuck"]
        return self


def _room(report: SiteReport, units: Ints) -> np.ndarray[Any, Any]:
    """How far each unit's pre-activations could sink and leave it open often enough (K,)."""
    gate = report.site.gate
    entry = gate.low if gate.inside else gate.high
    mean, std, top = report.mean[units], report.std[units], report.max[units]
    quantile = mean + std * NormalDist().inv_cdf(1 - KEEP_OPEN)
    room: np.ndarray[Any, Any] = np.minimum(quantile, top - 0.1 * std) - entry
    return room


def exact(tensor: Tensor) -> Tensor:
    """In a dtype in which sums of biases of this dtype are exact, where the device has it."""
    return tensor.float() if tensor.device.type == "mps" else tensor.double()
