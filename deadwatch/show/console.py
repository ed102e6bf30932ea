"""Records → one line of text a window, when something died or was treated."""

from __future__ import annotations

from collections import Counter

from deadwatch.records import WindowReport


class ConsoleView:
    """Tells what changed since the last window; silent when nothing did."""

    def __init__(self) -> None:
        self._dead = 0
        self._treated = ""
        self._said: set[str] = set()

    def treated(self, report: WindowReport) -> None:
        """Remember what was treated or refused, for the line of the window that follows."""
        done: Counter[str] = Counter()
        for treatment in report.treatments:
            done[f"{treatment.remedy} on {treatment.site}"] += len(treatment.units)
        if done:
            parts = (f"{units} units ({what})" for what, units in done.items())
            self._treated = f"; treated before it: {', '.join(parts)}"
        for refusal in report.refusals:
            text = f"{refusal.remedy} refused on {refusal.site}: {refusal.reason}"
            if text not in self._said:  # once is enough
                self._said.add(text)
                self._treated += f"; {text}"

    def line(self, report: WindowReport, when: str) -> str | None:
        """A line if the number of dead units changed or something was treated, else None."""
        change = report.dead - self._dead
        treated, self._dead, self._treated = self._treated, report.dead, ""
        if not change and not treated:
            return None
        line = (
            f"deadwatch {when}: {report.dead_ratio:.1%} dead "
            f"({report.dead}/{report.judged} units, {change:+d})"
        )
        if report.dead:
            worst = max(report.values(), key=lambda site: int(site.dead.sum()))
            line += f", most in {worst.site.name} ({int(worst.dead.sum())}/{worst.judged})"
        return line + treated
