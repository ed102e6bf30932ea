"""deadwatch: finds dead neurons while a network trains, shows them, and brings them back.

Importing this package imports neither torch nor Lightning; each name loads what it needs when it
is first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from deadwatch.advising import advise
    from deadwatch.errors import CannotTreat, ConfigError, DeadwatchError, DeadwatchWarning
    from deadwatch.fusing import fuse
    from deadwatch.judge.rules import Rules
    from deadwatch.lightning import DeadWatch
    from deadwatch.records import (
        Finding,
        Gate,
        Outcome,
        Refusal,
        Site,
        SiteReport,
        State,
        Treatment,
        WindowReport,
        Wire,
    )
    from deadwatch.restoring import load_from_checkpoint, restore
    from deadwatch.scanning import scan
    from deadwatch.show.console import ConsoleView, outcomes_table
    from deadwatch.show.tensorboard import TensorBoardView
    from deadwatch.treat.case import Case
    from deadwatch.treat.course import Course
    from deadwatch.treat.policy import Policy
    from deadwatch.treat.remedies import (
        BiasWarming,
        NoBiasDecay,
        PositiveBias,
        Recycle,
        Restandardize,
        Revive,
        Swap,
        ThermalKick,
    )
    from deadwatch.treat.remedies.base import Plan, Remedy
    from deadwatch.treat.remedies.preventive import Preventive
    from deadwatch.watch import Watch

__version__ = "0.1.0"

_HOMES = {
    "deadwatch.advising": ("advise",),
    "deadwatch.errors": ("CannotTreat", "ConfigError", "DeadwatchError", "DeadwatchWarning"),
    "deadwatch.fusing": ("fuse",),
    "deadwatch.judge.rules": ("Rules",),
    "deadwatch.lightning": ("DeadWatch",),
    "deadwatch.records": (
        *("Finding", "Gate", "Outcome", "Refusal", "Site", "SiteReport", "State", "Treatment"),
        *("WindowReport", "Wire"),
    ),
    "deadwatch.restoring": ("load_from_checkpoint", "restore"),
    "deadwatch.scanning": ("scan",),
    "deadwatch.show.console": ("ConsoleView", "outcomes_table"),
    "deadwatch.show.tensorboard": ("TensorBoardView",),
    "deadwatch.treat.case": ("Case",),
    "deadwatch.treat.policy": ("Policy",),
    "deadwatch.treat.course": ("Course",),
    "deadwatch.treat.remedies": (
        *("BiasWarming", "NoBiasDecay", "PositiveBias", "Recycle", "Restandardize", "Revive"),
        *("Swap", "ThermalKick"),
    ),
    "deadwatch.treat.remedies.preventive": ("Preventive",),
    "deadwatch.treat.remedies.base": ("Plan", "Remedy"),
    "deadwatch.watch": ("Watch",),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [
    "BiasWarming",
    "CannotTreat",
    "Case",
    "ConfigError",
    "ConsoleView",
    "Course",
    "DeadWatch",
    "DeadwatchError",
    "DeadwatchWarning",
    "Finding",
    "Gate",
    "NoBiasDecay",
    "Outcome",
    "Plan",
    "Policy",
    "PositiveBias",
    "Preventive",
    "Recycle",
    "Refusal",
    "Remedy",
    "Restandardize",
    "Revive",
    "Rules",
    "Site",
    "SiteReport",
    "State",
    "Swap",
    "TensorBoardView",
    "ThermalKick",
    "Treatment",
    "Watch",
    "WindowReport",
    "Wire",
    "advise",
    "fuse",
    "load_from_checkpoint",
    "outcomes_table",
    "restore",
    "scan",
]


def __getattr__(name: str) -> Any:
    home = _HOME_OF.get(name)
    if home is None:
        raise AttributeError(f"module 'deadwatch' has no attribute {name!r}")
    return getattr(import_module(home), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
