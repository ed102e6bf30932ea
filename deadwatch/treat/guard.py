"""Watches the training loss after treatments, and says when it has left its band.

The losses of the last steps lie in one buffer on their own device; they are looked at 1, 2, 4, 8,
16 and 32 steps after a treatment, then every 32 steps while a remedy is in progress. Only then is
the device waited for.

The band: the loss may exceed the largest of the steps before the treatment by as much as that
exceeded their median, and twice their median in any case. It has left when at least half of the
losses since lie above that, of the last 32 at the most.

A loud treatment is judged from the fourth loss on, or at once if the loss leaps eight times as far.
A quiet one leaves the function as it is, and what is new earns its way: a jump in the very first
loss after it is the data's doing (another task) and widens the band, and it is judged only after 32
steps, for units that come back into a network that has come to a standstill make it restless
first. Whatever the treatment, a loss that is no longer finite is out at once.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from deadwatch.errors import ConfigError

LOOK = 32
"""Losses that are looked at, at the most; as many again are kept from before a treatment."""

_LEAST = 8  # losses before a treatment that make a band; half of it after one
_LEAST_WIDTH = 0.5  # of the loss, however steady it was
_LEAP = 8  # widths of the band by which fewer losses have to leave it


class LossBand:
    """The band that the loss should keep after a treatment."""

    def __init__(self) -> None:
        self._losses: Tensor | None = None
        self._count = 0
        self._treated: int | None = None
        self._quiet = True
        self._typical, self._top = math.nan, math.inf

    @property
    def known(self) -> bool:
        """Whether enough losses came in for a band."""
        return self._count >= _LEAST

    @property
    def since(self) -> int:
        """Steps since the treatment that is being watched; 0 for none."""
        return self._count - self._treated if self._treated is not None else 0

    @property
    def due(self) -> bool:
        """Whether it is time for a look."""
        since = self.since
        return since > 0 and (since & (since - 1) == 0 or since % LOOK == 0)

    def note(self, loss: Tensor | float) -> None:
        """Take in the loss of one step.

        Raises:
            ConfigError: It is not one number.
        """
        value = _number(loss)
        if self._losses is None:
            device = value.device if isinstance(value, Tensor) else None
            self._losses = torch.zeros(2 * LOOK, device=device)
        if isinstance(value, Tensor):
            self._losses = self._losses.to(value.device)
        self._losses[self._count % len(self._losses)] = value
        self._count += 1

    def open(self, *, quiet: bool) -> None:
        """A treatment was applied: watch what comes of it."""
        self._treated, self._quiet = self._count, quiet
        self._typical, self._top = math.nan, math.inf

    def close(self) -> None:
        """Nothing is being watched any more."""
        self._treated = None

    def forgive(self) -> None:
        """The treatment was undone: what the loss was since does not widen the next band."""
        assert self._losses is not None
        for past in range(1, min(self.since, len(self._losses)) + 1):
            self._losses[(self._count - past) % len(self._losses)] = self._typical
        self.close()

    def broken(self) -> str:
        """How the loss has left its band; empty if it has not. Waits for the device."""
        assert self._losses is not None
        kept = min(self._count, len(self._losses))
        losses = np.roll(self._losses.cpu().numpy(), -self._count)[len(self._losses) - kept :]
        after = losses[-min(self.since, LOOK) :]
        if self.since == 1 and kept > _LEAST:
            self._set(losses[:-1], after[0])
        if math.isnan(self._typical):
            return ""
        if not np.isfinite(after).all():
            return "the loss is no longer finite"
        level, top = float(np.sort(after)[(len(after) - 1) // 2]), self._top
        if self._quiet and len(after) < LOOK:
            return ""
        if len(after) < _LEAST // 2:  # too few to tell, but for a leap
            level, top = float(after.min()), self._typical + _LEAP * (top - self._typical)
        if level <= top:
            return ""
        return f"the loss rose from {self._typical:.3g} to {level:.3g}"

    def _set(self, before: npt.NDArray[Any], first: float) -> None:
        before = before[np.isfinite(before)]  # single batches may overflow
        if not len(before):
            return
        self._typical = float(np.median(before))
        top = float(np.max(before))
        if self._quiet and first > top:
            top = first
        self._top = 2 * max(top, self._typical + _LEAST_WIDTH * abs(self._typical)) - self._typical

    def state_dict(self) -> dict[str, Any]:
        """Plain values to go on from."""
        losses = None if self._losses is None else self._losses.cpu()
        return {"losses": losses, **{name: getattr(self, f"_{name}") for name in _NUMBERS}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a `state_dict`."""
        for name in ("losses", *_NUMBERS):
            setattr(self, f"_{name}", state[name])


_NUMBERS = ("count", "treated", "quiet", "typical", "top")


def _number(loss: object) -> Tensor | float:
    if isinstance(loss, Tensor) and loss.numel() == 1 and not loss.is_complex():
        return loss.detach().reshape(())
    if isinstance(loss, (int, float)) and not isinstance(loss, bool):
        return float(loss)
    what = f"a tensor of shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else repr(loss)
    raise ConfigError(f"loss is {what}; expected the training loss of the step, one number")
