"""Swap: another activation function takes over, for the dead units alone or for all."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from deadwatch.activations import SwappedActivation, UnitPReLU
from deadwatch.errors import ConfigError
from deadwatch.treat.optim import KNOWN
from deadwatch.treat.remedies.base import (
    CannotTreat,
    Case,
    Plan,
    Remedy,
    require_number,
    require_quiet,
)

_BUILD: dict[str, Callable[[int, int, float | None], nn.Module]] = {
    "leaky_relu": lambda units, dim, slope: nn.LeakyReLU(0.01 if slope is None else slope),
    "prelu": lambda units, dim, slope: UnitPReLU(units, dim, 0.25 if slope is None else slope),
    "elu": lambda units, dim, slope: nn.ELU(),
    "gelu": lambda units, dim, slope: nn.GELU(),
    "silu": lambda units, dim, slope: nn.SiLU(),
}


@dataclass(frozen=True)
class Swap(Remedy):
    """Replaces the activation by one that passes gradient where the old one does not.

    Attributes:
        to: ``"leaky_relu"``, ``"prelu"`` (slope learned, one per unit), ``"elu"``, ``"gelu"`` or
            ``"silu"``.
        only: ``"dead"`` swaps the dead units and leaves the live ones bit-equal; ``"all"`` swaps
            the layer.
        slope: Slope on the closed side (initial slope of a PReLU); only for those two.
        quiet: As for `BiasWarming`; with ``only="all"`` the function changes in any case.

    Raises:
        ConfigError: An argument is not one of these.
    """

    to: str = "leaky_relu"
    only: Literal["dead", "all"] = "dead"
    slope: float | None = None
    quiet: bool | None = None

    def __post_init__(self) -> None:
        require_quiet(self.quiet)
        if not isinstance(self.to, str) or self.to not in _BUILD:
            known = ", ".join(repr(name) for name in _BUILD)
            raise ConfigError(f"to is {self.to!r}; expected one of {known}")
        if self.only not in ("dead", "all"):
            raise ConfigError(f"only is {self.only!r}; expected 'dead' or 'all'")
        if self.slope is not None and self.to not in ("leaky_relu", "prelu"):
            raise ConfigError(
                f"slope is {self.slope!r}, but {self.to!r} has none; "
                "leave it out, or swap to 'leaky_relu' or 'prelu'"
            )
        if self.slope is not None:
            require_number("slope", self.slope, 1e-3, "below it, the gate stays closed")
        if self.only == "all" and self.quiet:
            raise ConfigError(
                "quiet is True, but only='all' changes live units too; use only='dead'"
            )

    def plan(self, case: Case) -> Plan:
        """Plan the module that takes the activation's place."""
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
        assert site.unit_dim is not None
        old = case.surgery.module(site.module)
        if not isinstance(old, SwappedActivation) and any(True for _ in old.parameters()):
            raise CannotTreat(f"{site.module} has parameters of its own that a swap would lose")
        if self.to == "prelu":
            self._require_room_for_slopes(case)
        edits, restarts, quiet = case.silence(False if self.only == "all" else self.quiet)
        return Plan(
            self.name,
            case.units,
            edits,
            restarts,
            swap=(site.module, self._module(case, old, site.unit_dim)),
            quiet=quiet,
            note=f"{site.activation} → {self.to} on {self._extent(case)}",
        )

    def _require_room_for_slopes(self, case: Case) -> None:
        """The optimizer of the producer takes the slopes; some cannot take a parameter."""
        weight = case.producer().weight
        case.require_trainable(weight)
        assert weight is not None
        owner = case.optimizers.owner(case.surgery.tensor(weight))
        if not isinstance(owner, KNOWN):
            raise CannotTreat(f"{type(owner).__name__} cannot take a new parameter in mid-training")

    def _extent(self, case: Case) -> str:
        return "all units" if self.only == "all" else f"{len(case.units)} units"

    def _module(self, case: Case, old: nn.Module, dim: int) -> nn.Module:
        units = case.report.units
        beside = _beside(case)
        mask = torch.zeros(units, dtype=torch.bool, device=beside.device)
        mask[torch.as_tensor(case.units, device=mask.device)] = True
        if self.only == "all":
            mask.fill_(True)
        new = _BUILD[self.to](units, dim, self.slope).to(beside.device, beside.dtype)
        if isinstance(old, SwappedActivation):
            if type(new) is not type(old.replacement):
                raise CannotTreat(f"it was swapped to {type(old.replacement).__name__} before")
            return old.extended(mask)
        return SwappedActivation(old, new, mask, dim)


def _beside(case: Case) -> Tensor:
    """A parameter whose device and dtype the new module takes."""
    site = case.report.site
    for wire in (*site.producers, *site.consumers):
        if wire.weight is not None:
            return case.surgery.tensor(wire.weight)
    raise CannotTreat(f"no layer beside it is known: {site.producers_note}")
