"""What a policy does before there is anything to treat."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from torch import nn

from deadwatch.errors import CannotTreat
from deadwatch.records import SiteReport, WindowReport
from deadwatch.treat import shards
from deadwatch.treat.planning import Planning
from deadwatch.treat.remedies.positive_bias import PositiveBias
from deadwatch.treat.remedies.preventive import Preventive
from deadwatch.treat.theatre import Theatre


class Prevention:
    """Applies preventives once, to the optimizers or to all units of every site.

    Args:
        given: The preventives, or the only one.
        model: The model.
        theatre: Where plans are carried out.
        planning: How they are made.
    """

    def __init__(
        self,
        given: Sequence[Preventive | PositiveBias] | Preventive | PositiveBias,
        model: nn.Module,
        theatre: Theatre,
        planning: Planning,
    ) -> None:
        self._given = (given,) if isinstance(given, (Preventive, PositiveBias)) else tuple(given)
        self._model = model
        self._theatre = theatre
        self._planning = planning
        self.done = not self._given

    def resume(self) -> None:
        """Put back what lasts only as long as deadwatch is attached."""
        if not self._given:
            return
        shards.resharded(self._model.modules())  # optimizers know sharded parameters alone
        for one in self._given if self.done else ():
            if isinstance(one, Preventive):
                one.resume(self._model, self._theatre.optimizers)

    def apply(self, verdict: WindowReport, step: int) -> list[str]:
        """Apply all, after the forwards that ``verdict`` is of; returns what there is to tell."""
        self.done = True
        shards.resharded(self._model.modules())
        notes = []
        for one in self._given:
            if isinstance(one, Preventive):
                notes.append(f"{one.name}: {self._once(one)}")
            else:
                reports = verdict.sites.values()
                notes += [self._on_site(one, report, step) for report in reports]
        return notes

    def _once(self, one: Preventive) -> str:
        try:
            return one.apply(self._model, self._theatre.optimizers)
        except CannotTreat as reason:
            return f"refused: {reason}"

    def _on_site(self, remedy: PositiveBias, report: SiteReport, step: int) -> str:
        try:
            plan = self._planning.plan(remedy, report, np.arange(report.units))
        except CannotTreat as reason:
            return f"{remedy.name} refused on {report.site.name}: {reason}"
        self._theatre.apply(plan, report, self._planning.window, step)
        return f"{remedy.name} on {report.site.name}: {plan.note}"
