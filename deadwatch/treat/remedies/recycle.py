"""Recycling: dead units start again (ReDo, Sokar et al. 2023, algorithm 1)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from deadwatch.records import Wire
from deadwatch.treat.optim import Restart
from deadwatch.treat.remedies.base import (
    Case,
    Plan,
    Remedy,
    fresh_like,
    require_separable,
)
from deadwatch.treat.surgery import Edit


@dataclass(frozen=True)
class Recycle(Remedy):
    """Re-initialises what feeds dead units and zeroes what reads them.

    Incoming rows are drawn as the module itself would draw them; a norm's row returns to its
    start. Outgoing columns are always zeroed, and what the unit contributed on average is folded
    into the bias of its readers, so the function does not change at that moment.
    """

    def plan(self, case: Case) -> Plan:
        """Plan fresh incoming rows and zero outgoing columns."""
        producer = case.producer()
        require_separable(case)
        case.require_trainable(*producer.names)
        edits, restarts, _ = case.silence(quiet=True)
        fresh = fresh_like(case.surgery.module(producer.module), case.seed)
        rows: list[tuple[Edit, Restart | None]] = [
            _row(case, name, fresh[name.rpartition(".")[2]]) for name in producer.names
        ]
        for norm in case.norms():
            rows += _fresh_norm(case, norm)
        return Plan(
            self.name,
            case.units,
            edits=(*edits, *(edit for edit, _ in rows)),
            restarts=(*restarts, *(restart for _, restart in rows if restart is not None)),
            quiet=True,
            note=f"rows of {producer.module} drawn afresh",
        )


def _row(case: Case, name: str, values: Tensor) -> tuple[Edit, Restart]:
    axis, index = case.slices(name, case.units)
    fresh = values.index_select(axis, torch.as_tensor(index))
    return case.edit(name, fresh), case.restart(name)


def _fresh_norm(case: Case, norm: Wire) -> list[tuple[Edit, Restart | None]]:
    """A norm's rows as at its start: scale 1, shift 0, and running statistics to match."""
    case.require_trainable(*norm.names)
    rows: list[tuple[Edit, Restart | None]] = []
    starts = {norm.weight: 1.0, norm.bias: 0.0}
    for name, start in starts.items():
        if name is not None:
            rows.append(_row(case, name, torch.full_like(case.surgery.tensor(name), start).cpu()))
    module = case.surgery.module(norm.module) if norm.module else None
    for leaf, start in (("running_mean", 0.0), ("running_var", 1.0)):
        running = getattr(module, leaf, None)
        if isinstance(running, Tensor):
            value = torch.full_like(running, start)[: len(case.units)]
            rows.append((case.edit(f"{norm.module}.{leaf}", value), None))
    return rows
