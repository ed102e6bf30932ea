"""A report in a notebook: a table in HTML by itself, a figure on request.

Names are escaped. Colours are given inline and have enough contrast on light and on dark pages;
text has the page's own colour.
"""

from __future__ import annotations

import html
import math
from typing import Any

from deadwatch.errors import DeadwatchError
from deadwatch.records import Finding, SiteReport, State, WindowReport
from deadwatch.show.archive import average
from deadwatch.show.findings import NOTHING, counted, grouped, reason_of
from deadwatch.show.texts import printable

COLOURS = {
    State.DEAD: "#d55e00",
    State.SATURATED: "#e69f00",
    State.RARE: "#56b4e9",
    State.ALIVE: "#0072b2",
    State.UNCERTAIN: "#a0a0a0",
    State.UNSEEN: "#d0d0d0",
}
"""From left to right in a bar; told apart without red and green, and by lightness."""

MOST = 60
"""Sites that a table or a figure shows, those with most dead units, and lines below; it says so."""

_LINE = "border-bottom:1px solid rgba(128,128,128,.35)"
_CELL = f"padding:2px 10px;text-align:right;{_LINE}"
_NAME = f"padding:2px 10px;text-align:left;font-family:monospace;{_LINE}"
_HEADER = ("units", "dead", "", "open", "mean", "std", "sparsity")


def html_of(report: WindowReport) -> str:
    """What a notebook shows of a report."""
    sites = _worst(report)
    head = "".join(f'<th style="{_CELL}">{name}</th>' for name in _HEADER)
    rows = "".join(_row(site) for site in sites)
    return (
        '<div style="font-size:90%"><div style="margin:4px 0">'
        f"{_escaped(_title(report, len(sites)))}</div>{_legend(sites)}"
        '<table style="border-collapse:collapse;margin:4px 0">'
        f'<thead><tr><th style="{_NAME}">site</th>{head}</tr></thead><tbody>{rows}</tbody></table>'
        f"{_told(report)}{_advice(report)}</div>"
    )


def _worst(report: WindowReport) -> list[SiteReport]:
    sites = list(report.values())
    if len(sites) <= MOST:
        return sites
    return sorted(sites, key=lambda site: -int(site.dead.sum()))[:MOST]


def _title(report: WindowReport, shown: int) -> str:
    window = report.window
    ratio = f"{report.dead_ratio:.1%} dead" if report.judged else "no unit could be judged"
    text = (
        f"deadwatch, window {window.index}, steps {window.first_step:,} to {window.last_step:,}: "
        f"{ratio} ({report.dead:,} of {report.judged:,} judged units)"
    )
    if shown < len(report):
        text += f"; {shown} of {len(report):,} sites, those with most dead units"
    return text


def _legend(sites: list[SiteReport]) -> str:
    there = [state for state in COLOURS if any((site.state == state).any() for site in sites)]
    return "".join(
        f'<span style="display:inline-block;width:10px;height:10px;background:{COLOURS[state]}">'
        f'</span>&nbsp;<span style="margin-right:10px">{state.name.lower()}</span>'
        for state in there
    )


def _row(site: SiteReport) -> str:
    dead = f"{int(site.dead.sum()):,} ({site.dead_ratio:.1%})" if site.judged else "–"
    shares = [average(site.open_fraction), average(site.mean), average(site.std), site.sparsity]
    forms = (".1%", ".3g", ".3g", ".1%")
    figures = [
        format(value, form) if math.isfinite(value) else "–"
        for value, form in zip(shares, forms, strict=True)
    ]
    cells = (f"{site.units:,}", dead, _bar(site), *figures)
    rest = "".join(f'<td style="{_CELL}">{cell}</td>' for cell in cells)
    return f'<tr><td style="{_NAME}">{_escaped(site.site.name)}</td>{rest}</tr>'


def _bar(site: SiteReport) -> str:
    """How the units of a site are split among the states."""
    if not site.units:
        return "did not run"
    parts = "".join(
        f'<span style="display:inline-block;height:10px;background:{colour};'
        f'width:{120 * count / site.units:.2f}px" title="{count} {state.name.lower()}"></span>'
        for state, colour in COLOURS.items()
        if (count := int((site.state == state).sum()))
    )
    return f'<span style="white-space:nowrap;font-size:0">{parts}</span>'


def _told(report: WindowReport) -> str:
    lines = [
        f"{treatment.remedy} on {len(treatment.units)} units of {treatment.site}: {treatment.note}"
        for treatment in report.treatments
    ]
    lines += [
        f"{refusal.remedy} refused on {len(refusal.units)} units of {refusal.site}: "
        f"{refusal.reason}"
        for refusal in report.refusals
    ]
    lines += report.notes
    if len(lines) > MOST:
        lines[MOST:] = [f"and {len(lines) - MOST:,} more treatments, refusals and notes"]
    return "".join(f'<div style="opacity:.8">{_escaped(line)}</div>' for line in lines)


def _advice(report: WindowReport) -> str:
    """What advice there is, the most severe first; the reason is a click away."""
    if not report.advised:
        return ""
    if not report.findings:
        return f'<div style="margin:6px 0">{_escaped(NOTHING)}</div>'
    findings = [finding for group in grouped(report.findings) for finding in group]
    shown = "".join(_finding(finding) for finding in findings[:MOST])
    more = f"<div>and {len(findings) - MOST:,} more</div>" if len(findings) > MOST else ""
    title = _escaped(f"Advice: {counted(findings)}.")
    return f'<div style="margin:6px 0"><b>{title}</b>{shown}{more}</div>'


def _finding(finding: Finding) -> str:
    code = "\n".join(map(_escaped, finding.code.splitlines()))
    fix = f'<pre style="margin:2px 0 2px 24px;text-align:left">{code}</pre>' if code else ""
    why = f"<div>{_escaped(reason_of(finding))}</div>" if reason_of(finding) else ""
    return (
        f'<details style="text-align:left"><summary>{_escaped(str(finding))}</summary>'
        f"{why}</details>{fix}"
    )


def _escaped(text: str) -> str:
    return html.escape(printable(text))


def plot(report: WindowReport) -> Any:
    """How the units of each site are split among the states, as a matplotlib figure.

    Raises:
        DeadwatchError: matplotlib is not installed.
    """
    try:
        from matplotlib import pyplot
    except ImportError as error:
        raise DeadwatchError(
            "plot() needs matplotlib, which is not installed: pip install 'deadwatch[notebook]'"
        ) from error
    sites = _worst(report)
    figure = pyplot.figure(figsize=(8, 1.2 + 0.28 * max(1, len(sites))), layout="constrained")
    # The notebook shows what a cell returns, and once more what is still open.
    pyplot.close(figure)
    _draw(figure.add_subplot(), sites)
    figure.suptitle(printable(_title(report, len(sites))), fontsize=10, parse_math=False)
    return figure


def _draw(axes: Any, sites: list[SiteReport]) -> None:
    names = [printable(site.site.name) for site in sites]
    left = [0.0] * len(sites)
    for state, colour in COLOURS.items():
        widths = [float((site.state == state).mean()) if site.units else 0.0 for site in sites]
        if any(widths):
            axes.barh(range(len(sites)), widths, left=left, color=colour, label=state.name.lower())
        left = [a + b for a, b in zip(left, widths, strict=True)]
    axes.set_yticks(range(len(sites)), names, parse_math=False, fontfamily="monospace")
    axes.set(xlim=(0, 1), ylim=(len(sites) - 0.4, -0.6), xlabel="share of units")
    axes.spines[["top", "right"]].set_visible(False)
    if axes.get_legend_handles_labels()[1]:
        axes.legend(loc="upper left", bbox_to_anchor=(1, 1), frameon=False)
