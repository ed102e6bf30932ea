"""Records → one line of text a window, when something died or was treated."""

from __future__ import annotations

from collections import Counter

from deadwatch.records import WindowReport


class ConsoleView:
    """Tells what changed since the last window; silent when nothing did."""

    def __init__(self) -> None:
        self._dead = 0

    def verdict(self, report: WindowReport, when: str) -> str | None:
        """A line if the number of dead units changed, else None."""
        dead, self._dead = self._dead, report.dead
        if report.dead == dead:
            return None
        line = (
            f"deadwatch {when}: {report.dead_ratio:.1%} dead ({report.dead}/{report.judged} units, "
            f"{report.dead - dead:+d})"
        )
        worst = max(report.values(), key=lambda site: int(site.dead.sum()))
        if report.dead:
            line += f", most in {worst.site.name} ({int(worst.dead.sum())}/{worst.judged})"
        return line

    def treated(self, report: WindowReport, when: str) -> str | None:
        """A line if units were treated or every remedy refused, else None."""
        done: Counter[str] = Counter()
        for treatment in report.treatments:
            done[f"{treatment.remedy} on {treatment.site}"] += len(treatment.units)
        if done:
            return f"deadwatch {when}: treated " + ", ".join(
                f"{units} units ({what})" for what, units in done.items()
            )
        if report.refusals:
            last = report.refusals[-1]
            return f"deadwatch {when}: {last.remedy} refused on {last.site}: {last.reason}"
        return None
