"""Recycling: dead units start again (ReDo, Sokar et al. 2023, algorithm 1)."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import chain

import torch
from torch import Tensor

from deadwatch.records import Wire
from deadwatch.treat.case import Case
from deadwatch.treat.remedies.base import Plan, Remedy
from deadwatch.treat.remedies.fresh import fresh_like


@dataclass(frozen=True)
class Recycle(Remedy):
    """Re-initialises what feeds dead units and zeroes what reads them.

    Incoming rows are drawn as the module itself would draw them; a norm's row returns to its
    start. Outgoing columns are always zeroed, and what the unit contributed on average is folded
    into the bias of its readers, so the function does not change at that moment. Where something
    else reads the units as well (a penalty on activations that the forward keeps, the output of
    the model), that sees them come back at once; where no layer is known to read them, it refuses.
    """

    def plan(self, case: Case) -> Plan:
        """Plan fresh incoming rows and zero outgoing columns."""
        layers = case.layers()
        case.require_separable()
        edits, restarts, quiet = case.silence(quiet=None)
        if not edits:
            case.silence(quiet=True)  # says why
        rows = [draw for nth, layer in enumerate(layers) for draw in _fresh(case, layer, nth)]
        rows += [start for norm in case.norms() for start in _starts(case, norm)]
        names = [name for wire in (*layers, *case.norms()) for name in wire.names]
        told = " and ".join(layer.module for layer in layers)
        stays = "".join(f"; {skip} adds to them as before" for skip in case.skips())
        return Plan(
            self.name,
            case.units,
            edits=(*edits, *chain.from_iterable(case.edits(*each) for each in rows)),
            restarts=(*restarts, *chain.from_iterable(map(case.restarts, names))),
            quiet=quiet,
            note=f"rows of {told} drawn afresh" + stays,
        )


Rows = tuple[str, Tensor]


def _fresh(case: Case, layer: Wire, nth: int) -> list[Rows]:
    """The rows of a layer as the module would draw them; each summand draws its own."""
    case.require_trainable(*layer.names)
    fresh = fresh_like(case.surgery.module(layer.module), case.seed + nth)
    return [(name, case.rows(name, of=fresh[name.rpartition(".")[2]])) for name in layer.names]


def _starts(case: Case, norm: Wire) -> list[Rows]:
    """A norm's rows as at its start: scale 1, shift 0, and running statistics to match."""
    case.require_trainable(*norm.names)
    module = case.surgery.module(norm.module) if norm.module else None
    starts = {norm.weight: 1.0, norm.bias: 0.0}
    for leaf, start in (("running_mean", 0.0), ("running_var", 1.0)):
        if isinstance(getattr(module, leaf, None), Tensor):
            starts[f"{norm.module}.{leaf}"] = start
    names = [(name, start) for name, start in starts.items() if name is not None]
    return [(name, torch.full_like(case.rows(name), start)) for name, start in names]
