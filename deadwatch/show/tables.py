"""Records → tables for a terminal: drawn by rich where that is installed, else as Markdown.

Names are data: rich takes them as text and not as its markup, and nothing in them acts on a
terminal.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from deadwatch.records import SiteReport, State, WindowReport
from deadwatch.show.archive import average
from deadwatch.show.console import outcome_rows
from deadwatch.show.findings import told
from deadwatch.show.markdown import markdown
from deadwatch.show.texts import printable

MOST = 20
"""Rows of the table at the end of a fit."""

NOTHING_RUN = (
    "No batches were run: judged is only what the parameters and the order of layers in "
    "nn.Sequential show. Give --batches, or let the factory return (model, batches), to have units "
    "judged too."
)

_FIGURES = ("open_fraction", "mean", "std")


@dataclass(frozen=True)
class Table:
    """Texts in rows; the first column is of names, the others of figures."""

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]


def sites_table(report: WindowReport, title: str, most: int | None = None) -> Table:
    """One row for each site: its units by state, and its averages.

    Args:
        report: The report.
        title: What the table is called.
        most: Rows at most; those with most dead units then, and the title says so.
    """
    sites = list(report.values())
    if most is not None and len(sites) > most:
        sites = sorted(sites, key=lambda site: -int(site.dead.sum()))[:most]
        title += f" ({most} of {len(report)} sites, those with most dead units)"
    header = ("site", "activation", "units", "dead", "saturated", "rare", "alive", "not judged")
    return Table(title, (*header, "open", "mean", "std"), [_row(site) for site in sites])


def _row(site: SiteReport) -> list[str]:
    states = (State.DEAD, State.SATURATED, State.RARE, State.ALIVE)
    counts = [int((site.state == state).sum()) for state in states]
    units = [site.units, *counts, site.units - site.judged]
    share, mean, std = (average(getattr(site, name)) for name in _FIGURES)
    figures = [_figure(share, ".1%"), _figure(mean, ".3g"), _figure(std, ".3g")]
    return [site.site.name, site.site.activation, *(f"{n:,}" for n in units), *figures]


def _figure(value: float, form: str) -> str:
    return format(value, form) if math.isfinite(value) else "–"


def end_of_run(report: WindowReport) -> str:
    """What a fit leaves on the terminal: its last window, what came of remedies, and advice."""
    title = f"deadwatch, last window: {_ratio(report)}"
    text = text_of(sites_table(report, title, MOST))
    if report.outcomes:
        header, *rows = outcome_rows(report.outcomes)
        text += "\n" + text_of(Table("deadwatch, what came of each remedy:", header, rows))
    if report.advised:
        text += "\n" + told(report.findings)
    return text


def _ratio(report: WindowReport) -> str:
    if not report.judged:
        return "no unit could be judged"
    return f"{report.dead_ratio:.1%} dead ({report.dead:,}/{report.judged:,} units)"


def text_of(table: Table) -> str:
    """A table as text, with the colours that the terminal has if rich is installed."""
    if find_spec("rich") is not None:
        return _rich(table)
    rows = [[printable(cell) for cell in row] for row in table.rows]
    return f"{printable(table.title)}\n{markdown(table.header, rows)}"


def _rich(table: Table) -> str:
    console = import_module("rich.console").Console(width=None if sys.stdout.isatty() else 120)
    text = import_module("rich.text").Text
    drawn: Any = import_module("rich.table").Table(
        title=text(printable(table.title)), title_justify="left"
    )
    for column, name in enumerate(table.header):
        drawn.add_column(text(name), justify="right" if column else "left", overflow="fold")
    for row in table.rows:
        drawn.add_row(*(text(printable(cell)) for cell in row))
    with console.capture() as captured:
        console.print(drawn)
    found: str = captured.get()
    return "\n".join(line.rstrip() for line in found.splitlines())


def plain(report: WindowReport | None) -> dict[str, Any]:
    """A report for programs, part of what ``deadwatch scan --json`` prints.

    ``{"format": "deadwatch-scan", "version": 1, "dead", "judged", "dead_ratio", "sites", "notes"}``
    with one entry a site: ``site``, ``activation``, ``units``, ``samples``, ``dead``, ``judged``,
    ``dead_ratio``, ``states`` (units by state), ``dead_units`` (their numbers), ``open_fraction``,
    ``mean``, ``std``, ``sparsity``. What was not measured is null; ``sites`` is if nothing was run.

    ``findings`` come beside it, as `deadwatch.show.findings.plain` describes them, and what is not
    among them: ``ignored`` and ``known`` (how many), ``gone`` (of the baseline, in words).
    """
    about = {"format": "deadwatch-scan", "version": 1}
    if report is None:
        return (
            about
            | dict.fromkeys(("dead", "judged", "dead_ratio", "sites"))
            | {"notes": [NOTHING_RUN]}
        )
    sites = [_site(site) for site in report.values()]
    return about | _dead(report) | {"sites": sites, "notes": list(report.notes)}


def _dead(report: WindowReport | SiteReport) -> dict[str, Any]:
    dead = report.dead if isinstance(report, WindowReport) else int(report.dead.sum())
    return {"dead": dead, "judged": report.judged, "dead_ratio": _number(report.dead_ratio)}


def _site(site: SiteReport) -> dict[str, Any]:
    return {
        "site": site.site.name,
        "activation": site.site.activation,
        "units": site.units,
        "samples": site.samples,
        **_dead(site),
        "states": {state.name.lower(): int((site.state == state).sum()) for state in State},
        "dead_units": site.dead.nonzero()[0].tolist(),
        **{name: _number(average(getattr(site, name))) for name in _FIGURES},
        "sparsity": _number(site.sparsity),
    }


def _number(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None
