"""What becomes of the moments that an optimizer keeps for treated rows.

First moments start at zero. Second moments stay as they are, within bounds that the live rows give:

- Not above the median of the live rows. After a death by one bad update they may be blown up, and
  the row would hardly learn for thousands of steps.
- Not below what the live rows' gradients have been of late, as told by their first moments. Second
  moments decay while a unit is dead; with next to nothing left and an old step count, Adam's first
  steps would be several times the learning rate. Resetting the step count, which the whole tensor
  shares, would slow the live rows instead.

The live rows' median itself would be too high where all of them have been through a bad update
that the dead ones did not see, being dead. It serves where no first moments tell of late, as in
Adagrad. A tensor without a live row starts as a new parameter does, step count included.

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
_ROOTS = frozenset({"exp_inf"})  # of the scale of gradients, not of their squares
LATELY = 4.0
"""Squared gradients over squared first moments, in which noise cancels: by measurement, the least
at which the first updates of a row that was long dead are not above those of the live ones."""

SHARED_AT_BIRTH = {"step": 0.0, "mu_product": 1.0}
"""What an optimizer keeps once for a whole tensor, and how it begins."""


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
    """No first moments, and second moments within bounds that the live rows give."""
    new = afresh(moments)
    if "exp_avg" not in moments:
        return new
    lately = _lately(moments["exp_avg"])
    for key in moments.keys() & SECOND_MOMENTS:
        raised = torch.maximum(moments[key].treated, lately.sqrt() if key in _ROOTS else lately)
        # Asked this way round, NaN gives way to the live rows' median.
        new[key] = torch.where(raised < new[key], raised, new[key])
    return new


def _lately(first: Rows) -> Tensor:
    """What the live rows' squared gradients have been of late, from their first moments."""
    return LATELY * first.live.square().mean(dim=first.axis, keepdim=True)


def keep(moments: Moments) -> dict[str, Tensor]:
    """All moments as they are."""
    return {}


RULES: dict[str, Callable[[Moments], dict[str, Tensor]]] = {
    "by_state": by_state,
    "restart": afresh,
    "keep": keep,
}


def unguided(moments: Moments) -> dict[str, Tensor]:
    """Some rows of a tensor without a live one: their second moments are all there is to go by."""
    return {k: torch.zeros_like(rows.treated) for k, rows in moments.items() if k in FIRST_MOMENTS}


def at_birth(moments: Moments, initial_sum: float) -> dict[str, Tensor]:
    """As for a new parameter; Adagrad's ``sum`` begins at a value of the user's choice."""
    return {
        key: torch.full_like(rows.treated, initial_sum if key == "sum" else 0.0)
        for key, rows in moments.items()
    }
