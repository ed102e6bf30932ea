"""Records → one line of text a window, when something changed; a table at the end."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence

from deadwatch.errors import ConfigError
from deadwatch.records import Finding, Outcome, WindowReport
from deadwatch.show.findings import grouped, key_of
from deadwatch.show.markdown import markdown
from deadwatch.show.texts import printable, tell

MOST = 5
"""Sites that a line names as treated, and other things that it tells, at most."""


class ConsoleView:
    """Prints one line for each report that has news; silent when nothing changed.

    Call it with the report of each window, as a `TensorBoardView`.

    Args:
        write: Takes a line; prints it by default, ``tqdm.write`` beside a progress bar.

    Example:
        >>> view = ConsoleView()
        >>> view(watch.close_window())
        deadwatch window 0, step 99: 12.5% dead (8/64 units, +8), most in 1 (8/64)
    """

    def __init__(self, write: Callable[[str], object] = tell) -> None:
        if not callable(write):
            raise ConfigError(f"write is {write!r}; expected a function of a text, such as print")
        self._write = write
        self._dead = 0
        self._treated = ""
        self._said: set[str] = set()
        self._advised: set[tuple[str, ...]] = set()

    def __call__(self, report: WindowReport) -> None:
        """Print what is new in a window, and what was done at its end."""
        line = self.line(report, f"window {report.window.index}, step {report.window.last_step}")
        self.treated(report, "treated after it")
        done, self._treated = self._treated, ""
        if line is None and done:
            line = f"deadwatch window {report.window.index}, step {report.window.last_step}"
        if line is not None:
            first, *advice = line.split("\n")
            self._write("\n".join([first + printable(done), *advice]))

    def treated(self, report: WindowReport, when: str = "treated before it") -> None:
        """Remember what was treated or refused, for the line of the window that follows."""
        done: Counter[str] = Counter()
        for treatment in report.treatments:
            done[f"{treatment.remedy} on {treatment.site}"] += len(treatment.units)
        if done:
            parts = [f"{units} units ({what})" for what, units in done.most_common(MOST)]
            if len(done) > MOST:
                rest = done.total() - sum(units for _, units in done.most_common(MOST))
                parts.append(f"{rest} units elsewhere")
            self._treated = f"; {when}: {', '.join(parts)}"
        self._treated += self._new(
            f"{refusal.remedy} refused on {refusal.site}: {refusal.reason}"
            for refusal in report.refusals
        )

    def line(self, report: WindowReport, when: str) -> str | None:
        """A line if the number of dead units changed or there is something to tell, else None.

        Advice that is new has lines of its own below it.
        """
        change = report.dead - self._dead
        told, advice = self._treated + self._new(report.notes), self._found(report)
        self._dead, self._treated = report.dead, ""
        if not change and not told and not advice:
            return None
        ratio = f"{report.dead_ratio:.1%} dead" if report.judged else "no unit could be judged"
        line = f"deadwatch {when}: {ratio} ({report.dead}/{report.judged} units, {change:+d})"
        if report.dead:
            worst = max(report.values(), key=lambda site: int(site.dead.sum()))
            line += f", most in {worst.site.name} ({int(worst.dead.sum())}/{worst.judged})"
        return "\n".join(map(printable, [line + told, *advice]))

    def _found(self, report: WindowReport) -> list[str]:
        """Lines on findings of harm that were not told before in this run, one for each rule."""
        new = [
            finding
            for finding in report.findings
            if finding.at_least("warning") and key_of(finding) not in self._advised
        ]
        self._advised |= {key_of(finding) for finding in new}
        return [_told(group) for group in grouped(new)]

    def _new(self, texts: Iterable[str]) -> str:
        """Those texts that were not said before, whatever their figures."""
        new: dict[str, str] = {}
        for text in texts:
            new.setdefault(re.sub(r"\d+", "#", text), text)
        fresh = [text for key, text in new.items() if key not in self._said]
        self._said |= new.keys()
        told = "".join(f"; {text}" for text in fresh[:MOST])
        return told + (f"; and {len(fresh) - MOST} more" if len(fresh) > MOST else "")


def _told(group: Sequence[Finding]) -> str:
    more = f" (and {len(group) - 1} more)" if len(group) > 1 else ""
    return f"  advice: {group[0]}{more}"


COLUMNS = ("units", "revived", "relapsed", "still_dead", "open", "undone", "written")


def outcomes_table(outcomes: Sequence[Outcome]) -> str:
    """What came of each remedy as a Markdown table, which reads well as plain text, too."""
    header, *rows = outcome_rows(outcomes)
    return markdown(header, [[printable(cell) for cell in row] for row in rows])


def outcome_rows(outcomes: Sequence[Outcome]) -> list[list[str]]:
    """What came of each remedy, row by row, the header first."""
    rows = [["remedy", *(name.replace("_", " ") for name in COLUMNS)]]
    return rows + [[o.remedy, *(f"{getattr(o, name):,}" for name in COLUMNS)] for o in outcomes]
