"""Records → one line of text a window, when something changed; a table at the end."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

from deadwatch.records import Outcome, WindowReport


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
            self._treated += self._once(text)

    def line(self, report: WindowReport, when: str) -> str | None:
        """A line if the number of dead units changed or there is something to tell, else None."""
        change = report.dead - self._dead
        told = self._treated + "".join(map(self._once, report.notes))
        self._dead, self._treated = report.dead, ""
        if not change and not told:
            return None
        line = (
            f"deadwatch {when}: {report.dead_ratio:.1%} dead "
            f"({report.dead}/{report.judged} units, {change:+d})"
        )
        if report.dead:
            worst = max(report.values(), key=lambda site: int(site.dead.sum()))
            line += f", most in {worst.site.name} ({int(worst.dead.sum())}/{worst.judged})"
        return line + told

    def _once(self, text: str) -> str:
        """A text the first time it is said, whatever its figures."""
        key = re.sub(r"\d+", "#", text)
        if key in self._said:
            return ""
        self._said.add(key)
        return f"; {text}"


COLUMNS = ("units", "revived", "relapsed", "still_dead", "open", "undone", "written")


def outcomes_table(outcomes: Sequence[Outcome]) -> str:
    """What came of each remedy as a Markdown table, which reads well as plain text, too."""
    rows = [["remedy", *(name.replace("_", " ") for name in COLUMNS)]]
    rows += [[o.remedy, *(f"{getattr(o, name):,}" for name in COLUMNS)] for o in outcomes]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    rows.insert(1, ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])])
    lines = []
    for row in rows:
        cells = [row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)
