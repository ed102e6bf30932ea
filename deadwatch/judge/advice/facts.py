"""What rules are told: plain facts about a model, and what was measured of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from deadwatch.records import Gauges, Parameter, Site, SiteReport, WindowReport


@dataclass(frozen=True, eq=False)
class Facts:
    """All that is known.

    Attributes:
        sites: The sites in the order of the data, as measured or as a Sequential shows them.
        parameters: The model's parameters by name.
        report: What was measured; None if nothing was.
        rows: What makes the units of each site, by name of the site; see `Rows`.
    """

    sites: tuple[Site, ...]
    parameters: Mapping[str, Parameter] = field(default_factory=dict)
    report: WindowReport | None = None

    @property
    def gauges(self) -> Gauges:
        """What the gauges measured."""
        found = self.report.gauges if self.report is not None else None
        return found or Gauges()

    def seen(self, site: Site) -> SiteReport | None:
        """What was measured of a site; None if nothing was."""
        report = self.report
        found = report.sites.get(site.name) if report is not None else None
        return found if found is not None and found.samples else None
