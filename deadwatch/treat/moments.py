"""What becomes of the moments that an optimizer keeps for treated rows.

Where the gradients of a dead unit were like those of its live neighbours, its first moments stay.
Where they were far larger, as in a death by one bad update, the row starts afresh: its first
moments are zeroed, for they point nowhere, and its second moments, under which it would hardly
learn for thousands of steps, take the median of the live rows.

Second moments never stay below that median. They decay while a unit is dead; with next to nothing
left and an old step count, Adam's first steps would be several times the learning rate, and
RMSprop's ten times. Resetting the step count, which the whole tensor shares, would slow the live
rows instead; so only a tensor without any starts as a new parameter does, step count included.

Nothing here writes: each rule returns the treated rows' new moments by name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

FIRST_MOMENTS = frozenset({"momentum_buffer", "exp_avg", "grad_avg"})
# Adadelta's average of squared steps is among these, for it has to fit its squared gradients.
SECOND_MOMENTS = frozenset(
    {"exp_avg_sq", "max_exp_avg_sq", "exp_inf", "square_avg", "acc_delta", "sum"}
)
SHARED_AT_BIRTH = {"step": 0.0, "mu_product": 1.0}
"""What an optimizer keeps once for a whole tensor, and how it begins."""

BLOWN_UP = 10.0
"""Mean squared gradient, as a multiple of the live rows' median, above which a row restarts."""

_SQUARED_GRADIENT = ("exp_avg_sq", "square_avg", "sum")
_GRADIENT = ("exp_inf", "momentum_buffer")


@dataclass(frozen=True, eq=False)
class Rows:
    """Slices of one moment along ``axis``: the ``treated`` ones, and those of ``live`` units."""

    treated: Tensor
    live: Tensor
    axis: int

    def typical(self) -> Tensor:
        """The median of the live slices, element by element, once for each treated slice."""
        return self.live.median(dim=self.axis, keepdim=True).values.expand_as(self.treated)


Moments = Mapping[str, Rows]


def afresh(moments: Moments) -> dict[str, Tensor]:
    """No first moments, and second moments typical of the live rows."""
    return {
        key: torch.zeros_like(rows.treated) if key in FIRST_MOMENTS else rows.typical()
        for key, rows in moments.items()
    }


def by_state(moments: Moments) -> dict[str, Tensor]:
    """Blown-up rows start afresh; second moments of the others rise to those of the live rows."""
    new = afresh(moments)
    restarts = blown_up(moments)
    for key, rows in moments.items():
        kept = rows.treated if key in FIRST_MOMENTS else torch.maximum(rows.treated, new[key])
        new[key] = torch.where(restarts, new[key], kept)
    return new


def keep(moments: Moments) -> dict[str, Tensor]:
    """All moments as they are."""
    return {}


RULES: dict[str, Callable[[Moments], dict[str, Tensor]]] = {
    "by_state": by_state,
    "restart": afresh,
    "keep": keep,
}


def blown_up(moments: Moments) -> Tensor:
    """Which treated rows saw gradients far above those of the live ones.

    Returns:
        One truth value for each treated row, of a shape that broadcasts against the rows.
    """
    key = next((key for key in (*_SQUARED_GRADIENT, *_GRADIENT) if key in moments), None)
    if key is None:
        return torch.tensor(False)
    rows = moments[key]
    treated, live = rows.treated.float(), rows.live.float()
    if key in _GRADIENT:
        treated, live = treated.square(), live.square()
    others = [dim for dim in range(treated.ndim) if dim != rows.axis]
    if others:
        treated, live = treated.mean(others, keepdim=True), live.mean(others, keepdim=True)
    # Asked this way round, NaN counts as blown up.
    return ~(treated <= BLOWN_UP * live.median())


def unguided(moments: Moments) -> dict[str, Tensor]:
    """Some rows of a tensor without a live one: their second moments are all there is to go by."""
    return {k: torch.zeros_like(rows.treated) for k, rows in moments.items() if k in FIRST_MOMENTS}


def at_birth(moments: Moments, initial_sum: float) -> dict[str, Tensor]:
    """As for a new parameter; Adagrad's ``sum`` begins at a value of the user's choice."""
    return {
        key: torch.full_like(rows.treated, initial_sum if key == "sum" else 0.0)
        for key, rows in moments.items()
    }
