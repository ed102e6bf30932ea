"""Thermal kick: a random perturbation of the weights and biases that feed dead units."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from deadwatch.records import Wire
from deadwatch.treat.remedies.base import (
    Case,
    Plan,
    Remedy,
    fresh_like,
    private_random,
    require_number,
    require_quiet,
    require_separable,
)
from deadwatch.treat.surgery import Edit


@dataclass(frozen=True)
class ThermalKick(Remedy):
    """Adds normal noise to the incoming weights and biases of dead units.

    The noise is ``scale`` times the standard deviation of the same parameter over the live units,
    or over the module's own initialisation where no unit lives or the live ones do not differ.
    With a norm in between, its shift is kicked too, by ``scale`` times the mean size of its scale.

    Attributes:
        scale: Size of the kick in live standard deviations; below 0.3 nothing happens.
        quiet: As for `BiasWarming`; for None, where all readers are known.

    Raises:
        ConfigError: ``scale`` is negative or not a number.
    """

    scale: float = 1.0
    quiet: bool | None = None

    def __post_init__(self) -> None:
        require_quiet(self.quiet)
        require_number("scale", self.scale, 0, "standard deviations of the live units' parameters")

    def plan(self, case: Case) -> Plan:
        """Plan a kick for every unit of the case."""
        producer = case.producer()
        require_separable(case)
        edits, restarts, quiet = case.silence(self.quiet)
        spreads = {name: self._spread(case, name) for name in producer.names}
        for norm in case.norms():
            if norm.bias is not None:
                spreads[norm.bias] = _norm_spread(case, norm)
        case.require_trainable(*spreads)
        with private_random(case.seed) as generator:
            kicks = [_kick(case, name, self.scale * s, generator) for name, s in spreads.items()]
        rows = [case.restart(name) for name in spreads]
        sizes = ", ".join(f"{name} ±{self.scale * s:.3g}" for name, s in spreads.items())
        return Plan(
            self.name,
            case.units,
            edits=(*edits, *kicks),
            restarts=(*restarts, *rows),
            quiet=quiet,
            note=sizes,
        )

    def _spread(self, case: Case, name: str) -> float:
        axis, index = case.slices(name, case.live)
        live = case.surgery.rows(name, index, axis)
        spread = float(live.float().std(correction=0)) if live.numel() else 0.0
        if spread > 0:
            return spread
        fresh = fresh_like(case.surgery.module(case.producer().module), case.seed)
        return float(fresh[name.rpartition(".")[2]].float().std(correction=0))


def _norm_spread(case: Case, norm: Wire) -> float:
    """The live units' pre-activation spread after a norm: the size of the norm's scale."""
    if norm.weight is None or not len(case.live):
        return 1.0
    return float(case.surgery.rows(norm.weight, norm.slices(case.live)).float().abs().mean())


def _kick(case: Case, name: str, size: float, generator: torch.Generator) -> Edit:
    old = case.rows(name)
    noise = torch.randn(old.shape, generator=generator) * size
    return case.edit(name, old.float() + noise.to(old.device))
