"""Every error and warning deadwatch raises, each with a name that can be caught or filtered."""

from __future__ import annotations

import warnings


class DeadwatchError(Exception):
    """Base of all errors raised by deadwatch."""


class CannotTreat(DeadwatchError):
    """A remedy does not apply to a case; the message says why."""


class ConfigError(DeadwatchError, ValueError):
    """An argument is wrong; the message names the value, what was expected and the way out."""


class DeadwatchWarning(UserWarning):
    """Base of all warnings issued by deadwatch."""


class NoSiteWarning(DeadwatchWarning):
    """The model holds no activation that can be watched."""


class UnseenSiteWarning(DeadwatchWarning):
    """A watched activation did not run in a window, so nothing is known about it."""


class SiteDisabledWarning(DeadwatchWarning):
    """Observing a site failed; the site is no longer observed and training goes on."""


class AmbiguousUnitDimWarning(DeadwatchWarning):
    """Which axis of an activation holds its units could not be told and was assumed."""


class UnknownWiringWarning(DeadwatchWarning):
    """Which layers produce and read a site's units could not be followed."""


class OptimizerStateWarning(DeadwatchWarning):
    """Parameters were treated, but the optimizer's state for them was left as it was."""


class TreatmentFailedWarning(DeadwatchWarning):
    """A remedy raised an error; it is given up there and training goes on."""


class AdviceFailedWarning(DeadwatchWarning):
    """Finding advice raised an error; no more is given and watching goes on."""


class MissingStepWarning(DeadwatchWarning):
    """A scheduled remedy is in progress but `Watch.step()` is not being called."""


class MixedModelsWarning(DeadwatchWarning):
    """What processes measure is merged though they may train different models."""


class LostProcessesWarning(DeadwatchWarning):
    """The other processes of a run are gone, and with them what they measured."""


class UnfusedSwapWarning(DeadwatchWarning):
    """A swapped activation has no equivalent in ``torch.nn`` and stays as it is."""


class UnfinishedCourseWarning(DeadwatchWarning):
    """Watching ended while a scheduled remedy still held parameters away from their own value."""


class ResumeWarning(DeadwatchWarning):
    """Part of a saved state does not fit what it was loaded into, and was left out."""


class PictureWarning(DeadwatchWarning):
    """A logger did not take a picture; it gets no more of them, and its curves go on."""


def warn_failed(what: str, error: Exception) -> str:
    """Warn that something of a treatment failed; returns what happened."""
    happened = f"{type(error).__name__}: {error}"
    warnings.warn(
        f"{what} failed and is given up; training goes on. {happened}",
        TreatmentFailedWarning,
        stacklevel=3,
    )
    return f"it failed: {happened}"
