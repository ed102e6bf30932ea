"""Swap: another activation function takes over, for the dead units alone or for all.

Annealed, it goes back to the original by and by: a leak that has done its work closes again.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from deadwatch.activations import KINDS, SHARE, SLOPES, Replacement, SwappedActivation, kind_of
from deadwatch.errors import CannotTreat, ConfigError, DeadwatchError
from deadwatch.plain import from_plain, to_plain
from deadwatch.records import Ints
from deadwatch.treat.case import Case
from deadwatch.treat.course import Course
from deadwatch.treat.optim import KNOWN
from deadwatch.treat.remedies.base import Plan, Remedy, require_number, require_quiet
from deadwatch.treat.shards import is_sharded
from deadwatch.treat.surgery import Edit, Surgery


@dataclass(frozen=True)
class Swap(Remedy):
    """Replaces the activation by one that passes gradient where the old one does not.

    Attributes:
        to: ``"leaky_relu"``, ``"prelu"`` (slope learned, one per unit), ``"elu"``, ``"gelu"`` or
            ``"silu"``.
        only: ``"dead"`` swaps the dead units and leaves the live ones bit-equal; ``"all"`` swaps
            the layer.
        slope: Slope on the closed side (initial slope of a PReLU); only for those two. 0.01 and
            0.25 by default.
        anneal: Training steps over which the units return linearly to the original function, and
            after which the original module is back in its place; None to stay swapped.
        quiet: As for `BiasWarming`; with ``only="all"`` the function changes in any case.

    Raises:
        ConfigError: An argument is not one of these.
    """

    to: str = "leaky_relu"
    only: Literal["dead", "all"] = "dead"
    slope: float | None = None
    anneal: int | None = None
    quiet: bool | None = None

    def __post_init__(self) -> None:
        require_quiet(self.quiet)
        if not isinstance(self.to, str) or self.to not in KINDS:
            known = ", ".join(repr(name) for name in KINDS)
            raise ConfigError(f"to is {self.to!r}; expected one of {known}")
        if self.only not in ("dead", "all"):
            raise ConfigError(f"only is {self.only!r}; expected 'dead' or 'all'")
        if self.slope is not None and self.to not in SLOPES:
            raise ConfigError(
                f"slope is {self.slope!r}, but {self.to!r} has none; "
                "leave it out, or swap to 'leaky_relu' or 'prelu'"
            )
        if self.slope is not None:
            require_number("slope", self.slope, 1e-3, "below it, the gate stays closed")
        if self.anneal is not None:
            require_number("anneal", self.anneal, 1, "training steps, or None", whole=True)
        if self.anneal is not None and self.to == "prelu":
            raise ConfigError(
                f"anneal is {self.anneal!r}, but a PReLU learns its slopes, and what they have "
                "learned would be lost; expected None, or another activation such as 'leaky_relu'"
            )
        if self.only == "all" and self.quiet:
            raise ConfigError(
                "quiet is True, but only='all' changes live units too; use only='dead'"
            )

    def plan(self, case: Case) -> Plan:
        """Plan the module that takes the activation's place, and its way back."""
        site = case.report.site
        if site.functional:
            raise CannotTreat(
                f"{site.name} calls {site.activation} as a function, and there is no module to "
                "replace; call it as a module, or choose another remedy"
            )
        if case.calls > 1:
            raise CannotTreat(
                f"{site.module} is called {case.calls} times in a forward; a swap at this call "
                "would change the others"
            )
        if not site.module:
            raise CannotTreat("the activation is the model itself and cannot be replaced in it")
        if site.activation == "GLU":
            raise CannotTreat("a GLU halves its input; nothing element-wise can take its place")
        if not site.gate.inside or site.gate.high != math.inf or site.gate.low == -math.inf:
            raise CannotTreat(f"{site.activation} does not close towards low inputs alone")
        old = case.surgery.module(site.module)
        if not isinstance(old, SwappedActivation) and any(True for _ in old.parameters()):
            raise CannotTreat(f"{site.module} has parameters of its own that a swap would lose")
        if kind_of(old) is not type(old):
            raise CannotTreat(
                f"{site.module} was given to fully_shard itself, which would miss it; shard the "
                "module that holds it instead"
            )
        if self.to == "prelu":
            self._require_room_for_slopes(case)
        edits, restarts, quiet = case.silence(False if self.only == "all" else self.quiet)
        way_back = None if self.anneal is None else Returning(site.module, case.units, self.anneal)
        return Plan(
            self.name,
            case.units,
            edits,
            (*restarts, *case.renewals()),
            swap=(site.module, self._module(case, old)),
            course=way_back,
            quiet=quiet,
            note=f"{site.activation} → {self.to} on {self._extent(case)}",
        )

    def resume(self, state: dict[str, Any], surgery: Surgery) -> Returning:
        """The way back of an annealed swap, continued where a checkpoint was written.

        Raises:
            DeadwatchError: The swap itself has not been restored before.
        """
        course = Returning(**state | {"units": from_plain(Ints, state["units"])})
        module = surgery.module(course.path)
        if not isinstance(module, SwappedActivation) or module.deadwatch_share is None:
            raise DeadwatchError(
                f"a swap at {course.path} was being annealed when this was saved, and the model "
                "has none there; load the model's own state with deadwatch.restore(model, "
                "state_dict) first"
            )
        return course

    def _require_room_for_slopes(self, case: Case) -> None:
        """The optimizer of the producer takes the slopes; some cannot take a parameter."""
        weight = case.producer().weight
        case.require_trainable(weight)
        assert weight is not None
        if is_sharded(case.surgery.tensor(weight)):
            raise CannotTreat(
                f"the slopes of a PReLU would be new parameters beside {weight}, which is sharded, "
                "and fully_shard would not know of them; swap to 'leaky_relu', or have PReLU in "
                "the model before it is sharded"
            )
        owner = case.optimizers.owner(case.surgery.tensor(weight))
        if not isinstance(owner, KNOWN):
            raise CannotTreat(f"{type(owner).__name__} cannot take a new parameter in mid-training")

    def _extent(self, case: Case) -> str:
        return "all units" if self.only == "all" else f"{len(case.units)} units"

    def _module(self, case: Case, old: nn.Module) -> nn.Module:
        beside = _beside(case)
        units = np.arange(case.report.units)
        chosen = np.isin(units, case.units) if self.only == "dead" else units >= 0
        mask = torch.as_tensor(chosen, device=beside.device)
        settings = self._settings(case)
        if isinstance(old, SwappedActivation):
            self._require_same(old, settings)
            return old.extended(mask)
        new = SwappedActivation(old, settings, mask, annealed=self.anneal is not None)
        new.replacement.to(beside.dtype)
        return new

    def _settings(self, case: Case) -> Replacement:
        site = case.report.site
        assert site.unit_dim is not None
        slope = SLOPES.get(self.to, 0.0) if self.slope is None else float(self.slope)
        return Replacement(self.to, site.unit_dim, site.ndim, slope)

    def _require_same(self, old: SwappedActivation, new: Replacement) -> None:
        """A swapped module has one function and one way back for all its units."""
        was = old.settings
        if old.deadwatch_share is not None:
            raise CannotTreat(f"it is on its way back from {was.to} to what it was")
        if (was.to, was.slope) != (new.to, new.slope):
            slope = f" with slope {was.slope:g}" if was.slope else ""
            raise CannotTreat(f"it was swapped to {was.to}{slope} before")
        if self.anneal is not None:
            raise CannotTreat(f"it was swapped to {was.to} for good before")


class Returning(Course):
    """The way back of one annealed swap: how far the units are from their original function.

    Args:
        path: Where the swapped module stands.
        units: Units that are swapped by it (K,).
        anneal: Training steps of the whole way.
        steps: Training steps that lie behind.
    """

    def __init__(self, path: str, units: Ints, anneal: int, steps: int = 0) -> None:
        self.path = path
        self.units = units
        self._anneal = anneal
        self._steps = steps

    @property
    def held(self) -> float:
        """Share of the replacement that is left in the units."""
        return 1 - self._steps / self._anneal

    def step(self, surgery: Surgery) -> bool:
        """Go one step; at the end, the original module is put back."""
        self._steps += 1
        if self._steps < self._anneal:
            value = torch.tensor([self.held])
            surgery.put(Edit(f"{self.path}.{SHARE}", 0, np.zeros(1, np.int64), value))
            return False
        module = surgery.module(self.path)
        assert isinstance(module, SwappedActivation)
        surgery.replace(self.path, module.restored())
        return True

    def state_dict(self) -> dict[str, Any]:
        """What `Swap.resume` needs to continue."""
        units = to_plain(self.units)
        return {"path": self.path, "units": units, "anneal": self._anneal, "steps": self._steps}


def _beside(case: Case) -> Tensor:
    """A parameter whose device and dtype the new module takes."""
    site = case.report.site
    for wire in (*site.producers, *site.consumers):
        if wire.weight is not None:
            return case.surgery.tensor(wire.weight)
    raise CannotTreat(f"no layer beside it is known: {site.producers_note}")
