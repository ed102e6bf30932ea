"""Thermal kick: a random perturbation of the weights and biases that feed dead units."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import chain

import torch

from deadwatch.records import Wire
from deadwatch.treat.case import Case
from deadwatch.treat.remedies.base import Plan, Remedy, require_number, require_quiet
from deadwatch.treat.remedies.fresh import fresh_like, private_random
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
        layers = case.layers()
        case.require_separable()
        edits, restarts, quiet = case.silence(self.quiet)
        spreads = {name: _spread(case, wire, name) for wire in layers for name in wire.names}
        for norm in case.norms():
            if norm.bias is not None:
                spreads[norm.bias] = _norm_spread(case, norm)
        case.require_trainable(*spreads)
        with private_random(case.seed) as generator:
            kicks = [_kick(case, name, self.scale * s, generator) for name, s in spreads.items()]
        rows = [case.restarts(name) for name in spreads]
        sizes = ", ".join(f"{name} ±{self.scale * s:.3g}" for name, s in spreads.items())
        return Plan(
            self.name,
            case.units,
            edits=(*edits, *chain.from_iterable(kicks)),
            restarts=(*restarts, *chain.from_iterable(rows)),
            quiet=quiet,
            note=sizes,
        )


def _spread(case: Case, layer: Wire, name: str) -> float:
    """How far the live units' values of a layer's parameter lie apart, or its fresh ones."""
    live = case.rows(name, case.live)
    spread = float(live.float().std(correction=0)) if live.numel() else 0.0
    if spread > 0:
        return spread
    fresh = fresh_like(case.surgery.module(layer.module), case.seed)
    return float(fresh[name.rpartition(".")[2]].float().std(correction=0))


def _norm_spread(case: Case, norm: Wire) -> float:
    """The live units' pre-activation spread after a norm: the size of the norm's scale."""
    if norm.weight is None or not len(case.live):
        return 1.0
    return float(case.rows(norm.weight, case.live).float().abs().mean())


def _kick(case: Case, name: str, size: float, generator: torch.Generator) -> tuple[Edit, ...]:
    old = case.rows(name)
    noise = torch.randn(old.shape, generator=generator) * size
    return case.edits(name, old.float() + noise.to(old.device))
