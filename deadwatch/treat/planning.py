"""Has remedies plan for the units of a site, and checks what they plan."""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Mapping

import numpy as np
from torch import nn

from deadwatch.errors import CannotTreat, DeadwatchError
from deadwatch.records import Ints, SiteReport, WindowReport
from deadwatch.treat.case import Case
from deadwatch.treat.remedies.base import Plan, Remedy
from deadwatch.treat.theatre import Theatre


class Planning:
    """What plans are made from, beside a site's report.

    Args:
        model: The model.
        theatre: Where plans will be carried out.
        seed: Seed of all random draws, equal on all ranks.

    Attributes:
        window: Index of the window whose verdict is being followed.
        calls: How many sites the module at each path has.
        no_swaps: Why no module may be replaced; empty if modules may be.
    """

    def __init__(self, model: nn.Module, theatre: Theatre, seed: int) -> None:
        self.seed = seed
        self.window = 0
        self.calls: Mapping[str, int] = {}
        self.no_swaps = ""
        self._model = model
        self._theatre = theatre

    def begin(self, verdict: WindowReport) -> None:
        """Plan by this verdict from now on."""
        self.window = verdict.window.index
        modules = dict(self._model.named_modules(remove_duplicate=False))
        # A module may have been taken out of the model since.
        paths = [site.site.module for site in verdict.sites.values()]
        calls = Counter(id(modules.get(path)) for path in paths)
        self.calls = {path: calls[id(modules.get(path))] for path in paths}

    def plan(self, remedy: Remedy, report: SiteReport, units: Ints) -> Plan:
        """What a remedy would do to units of a site.

        Raises:
            CannotTreat: It does not apply.
            DeadwatchError: What it returns is no plan for these units.
        """
        plan = remedy.plan(self._case(remedy, report, units))
        if not isinstance(plan, Plan):
            raise DeadwatchError(
                f"{remedy.name}.plan returned {plan!r}; expected a Plan (no return?)"
            )
        if not np.isin(plan.units, units).all():
            raise DeadwatchError(f"{remedy.name}.plan treats other units than those of its case")
        if plan.swap is not None and self.no_swaps:
            raise CannotTreat(self.no_swaps)
        return plan

    def _case(self, remedy: Remedy, report: SiteReport, units: Ints) -> Case:
        site, theatre = report.site, self._theatre
        seed = zlib.crc32(f"{self.seed}/{self.window}/{site.name}/{remedy.name}".encode())
        calls = self.calls[site.module]
        return Case(report, units, calls, theatre.surgery, theatre.optimizers, seed)
