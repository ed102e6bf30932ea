"""What the user is told about single sites while the model runs."""

from __future__ import annotations

import warnings

from torch import Tensor

from deadwatch.errors import AmbiguousUnitDimWarning, ResumeWarning, SiteDisabledWarning
from deadwatch.observe.accumulate import SiteState
from deadwatch.observe.places import Place
from deadwatch.records import Site


def tell_guess(site: Site, base: str, z: Tensor) -> None:
    """Say that the axis of the units was guessed."""
    warnings.warn(
        f"{site.name}: which axis of {tuple(z.shape)} holds the units is not known; axis "
        f"{site.unit_dim} is assumed. Settle it with unit_dim={{{base!r}: axis}}.",
        AmbiguousUnitDimWarning,
        stacklevel=3,
    )


def tell_another(state: SiteState, z: Tensor) -> None:
    """Say that a checkpoint knows a site as another than it is."""
    warnings.warn(
        f"{state.site.name} had {state.units} units on axis {state.dim} in the checkpoint and now "
        f"has a pre-activation of shape {tuple(z.shape)}: what was measured before is left out",
        ResumeWarning,
        stacklevel=3,
    )


def tell_failure(place: Place | None, error: Exception) -> None:
    """Say that a place is no longer observed."""
    warnings.warn(
        f"observing {place.base if place else 'a function'!r} failed and is switched off; "
        f"training goes on. {type(error).__name__}: {str(error).partition(chr(10))[0]}",
        SiteDisabledWarning,
        stacklevel=3,
    )
