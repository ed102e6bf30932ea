"""What the user is told about single sites while the model runs."""

from __future__ import annotations

import warnings
from collections.abc import Mapping

from torch import Tensor

from deadwatch.errors import (
    AmbiguousUnitDimWarning,
    LostProcessesWarning,
    ResumeWarning,
    SiteDisabledWarning,
    UnseenSiteWarning,
)
from deadwatch.observe.accumulate import SiteState
from deadwatch.observe.places import Place
from deadwatch.records import Site, Window, WindowReport

FAILED = "observing them failed, on this process or another, and was given up"
"""Why nothing is known of sites that some process does not observe any more."""


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


def tell_alone(window: Window, ranks: int) -> None:
    """Say that a window holds only what this process measured."""
    warnings.warn(
        f"window {window.index} is of this process alone: the process group, of {ranks} processes, "
        "is not there any more. Close the window, and leave `with watch:`, before "
        "destroy_process_group(); call close_window(treat=False) after it.",
        LostProcessesWarning,
        stacklevel=3,
    )


def tell_unseen(report: WindowReport, missing: Mapping[str, str], *, attached: bool = True) -> None:
    """Warn of activations of which nothing is known.

    Args:
        report: The window.
        missing: By name, why nothing is known of sites that may have run.
        attached: Whether the watch is.
    """
    unseen: dict[str, list[str]] = {}
    other = _NOT_RUN if attached else _NOT_ATTACHED
    for name, site in report.sites.items():
        if site.unseen:
            unseen.setdefault(missing.get(name, other), []).append(name)
    for why, names in unseen.items():
        warnings.warn(
            f"not seen in window {report.window.index}: {', '.join(names)}. Nothing is known of "
            f"these activations: {why}.",
            UnseenSiteWarning,
            stacklevel=3,
        )


_NOT_RUN = (
    "they did not run in a counted forward, or torch.compile hid them. Only forwards in training "
    "mode with gradients on count, while the watch is attached"
)

_NOT_ATTACHED = "the watch is not attached; train inside of `with watch:`, or call attach()"
