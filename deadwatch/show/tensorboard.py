"""Records → TensorBoard: curves, one chart for all sites, and treatments as text.

Tags, with one curve per site under each:

- ``deadwatch/dead_ratio``: of the model; ``deadwatch/dead_ratio_of/<site>``: of a site.
- ``deadwatch/mean/<site>``, ``deadwatch/std/<site>``: pre-activation, averaged over units.
- ``deadwatch/open_fraction/<site>``: share of open gates.
- ``deadwatch/treatments``: what was treated, refused and undone, as text.
- ``deadwatch/findings``: what advice there is that was not there before, as text.
- ``deadwatch/outcomes``: what came of each remedy so far, as a table.
- ``deadwatch/layers``: sites × windows, coloured by dead ratio, as a picture; light grey is what
  was not judged. ``deadwatch/layers_rows``: which row is which site.
- ``deadwatch/record/…``: all of it for deadwatch's own tab, see `deadwatch.show.archive`.

What was not measured has no point: missing is never zero.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Protocol

from deadwatch.errors import ConfigError
from deadwatch.records import Finding, Outcome, SiteReport, WindowReport
from deadwatch.show.archive import PLUGIN, VERSION, Archivist, average, tag
from deadwatch.show.console import outcome_rows
from deadwatch.show.findings import key_of, numbers_of, reason_of
from deadwatch.show.markdown import code, literal, markdown
from deadwatch.show.picture import History
from deadwatch.show.texts import encodable, printable

MODEL_TAG = "deadwatch/dead_ratio"
TREATMENTS_TAG = "deadwatch/treatments"
FINDINGS_TAG = "deadwatch/findings"
OUTCOMES_TAG = "deadwatch/outcomes"
PICTURE_TAG, ROWS_TAG = "deadwatch/layers", "deadwatch/layers_rows"

LAYOUT = {
    "deadwatch": {
        "dead ratio": ["Multiline", ["deadwatch/dead_ratio(_of/.*)?$"]],
        "open fraction": ["Multiline", ["deadwatch/open_fraction/.*"]],
        "pre-activation mean": ["Multiline", ["deadwatch/mean/.*"]],
        "pre-activation std": ["Multiline", ["deadwatch/std/.*"]],
    }
}
"""Custom-scalar charts: every site on one chart for each measure."""


class Writer(Protocol):
    """The part of ``torch.utils.tensorboard.SummaryWriter`` that is used."""

    def add_scalar(self, tag: str, scalar_value: float, global_step: int) -> None:
        """Write one point of a curve."""

    def add_text(self, tag: str, text_string: str, global_step: int) -> None:
        """Write one text."""

    def add_image(self, tag: str, img_tensor: Any, global_step: int, *, dataformats: str) -> None:
        """Write one picture."""

    def add_custom_scalars(self, layout: object) -> None:
        """Write the layout of the custom-scalar charts."""


class TensorBoardView:
    """Writes each report to a TensorBoard run.

    Args:
        writer: A ``torch.utils.tensorboard.SummaryWriter``; make one for the whole run.

    Raises:
        ConfigError: ``writer`` is something else.
    """

    def __init__(self, writer: Writer) -> None:
        if not hasattr(writer, "add_custom_scalars"):
            raise ConfigError(
                f"writer is {writer!r}; expected a torch.utils.tensorboard.SummaryWriter, such as "
                "SummaryWriter('runs')"
            )
        self._writer = writer
        self._laid_out = False
        self._outcomes: tuple[Outcome, ...] = ()
        self._told: set[tuple[str, ...]] = set()
        self._archivist = Archivist()
        self._history = History()
        self._named = 0

    def __call__(self, report: WindowReport, step: int | None = None) -> None:
        """Write a report at ``step``, by default the window's last step."""
        step = report.window.last_step if step is None else step
        for name, value in scalars(report).items():
            self._writer.add_scalar(name, value, step)
        self.window(report, step)

    def window(self, report: WindowReport, step: int) -> None:
        """Write all of a report that is not a curve."""
        self._keep(self._archivist.records(report), step)
        self._texts(report, step)
        self._history.add(report)
        if self._history.due and hasattr(self._writer, "add_image"):
            picture = self._history.picture()
            self._writer.add_image(PICTURE_TAG, picture, step, dataformats="HWC")
        if len(self._history.names) > self._named:
            self._named = len(self._history.names)
            self._writer.add_text(ROWS_TAG, encodable(rows_text(self._history.names)), step)

    def events(self, report: WindowReport, step: int) -> None:
        """Write only what was done and told after a window that was written before."""
        self._keep(self._archivist.events(report), step)
        self._texts(report, step)

    def _keep(self, records: Iterable[tuple[str, bytes]], step: int) -> None:
        get = getattr(self._writer, "_get_file_writer", None)
        writer: Any = get() if get is not None else None
        if not hasattr(writer, "add_summary"):  # the tab needs event files, as torch's writer makes
            return
        for name, data in records:
            writer.add_summary(_summary(name, data), step)

    def _texts(self, report: WindowReport, step: int) -> None:
        if not self._laid_out:
            self._writer.add_custom_scalars(LAYOUT)
            self._laid_out = True
        text = treatments_text(report)
        if text:
            self._writer.add_text(TREATMENTS_TAG, encodable(text), step)
        new = [finding for finding in report.findings if key_of(finding) not in self._told]
        if new:
            self._told |= {key_of(finding) for finding in new}
            self._writer.add_text(FINDINGS_TAG, encodable(findings_text(new)), step)
        if report.outcomes != self._outcomes:
            self._outcomes = report.outcomes
            self._writer.add_text(OUTCOMES_TAG, encodable(outcomes_text(report)), step)


def _summary(name: str, data: bytes) -> Any:
    """A record as TensorBoard's own summary of a tensor, addressed to the plugin."""
    from tensorboard.compat.proto.summary_pb2 import DATA_CLASS_TENSOR, Summary, SummaryMetadata
    from tensorboard.util.tensor_util import make_tensor_proto

    plugin = SummaryMetadata.PluginData(plugin_name=PLUGIN, content=str(VERSION).encode())
    metadata = SummaryMetadata(plugin_data=plugin, data_class=DATA_CLASS_TENSOR)
    tensor = make_tensor_proto(data)
    return Summary(value=[Summary.Value(tag=name, tensor=tensor, metadata=metadata)])


def scalars(report: WindowReport) -> dict[str, float]:
    """All curves' points of a report by tag; what was not measured is left out."""
    points = {MODEL_TAG: report.dead_ratio}
    for name, site in report.items():
        points |= {f"deadwatch/{kind}/{tag(name)}": value for kind, value in _measures(site)}
    return {name: value for name, value in points.items() if math.isfinite(value)}


def _measures(site: SiteReport) -> Iterator[tuple[str, float]]:
    # Not "dead_ratio/…": a store of files cannot hold a file and a directory of one name.
    yield "dead_ratio_of", site.dead_ratio
    yield "open_fraction", average(site.open_fraction)
    yield "mean", average(site.mean)
    yield "std", average(site.std)


def treatments_text(report: WindowReport) -> str:
    """What was done and what could not be, as a Markdown list; empty if nothing was."""
    lines = [
        f"- **{literal(t.remedy)}** on {len(t.units)} units of {code(t.site)} "
        f"({'quiet' if t.quiet else 'not quiet'}): {literal(t.note)}. "
        f"Units {_listed(t.units.tolist())}"
        for t in report.treatments
    ]
    lines += [
        f"- {literal(r.remedy)} refused on {len(r.units)} units of {code(r.site)}: "
        f"{literal(r.reason)}"
        for r in report.refusals
    ]
    lines += [f"- {literal(note)}" for note in report.notes]
    return "\n".join(lines)


def findings_text(findings: Sequence[Finding], most: int = 50) -> str:
    """Findings as Markdown, the first of them in full."""
    texts = [_finding_text(finding) for finding in findings[:most]]
    if len(findings) > most:
        texts.append(f"and {len(findings) - most} more")
    return "\n\n".join(texts)


def _finding_text(finding: Finding) -> str:
    parts = [f"**{literal(finding.id)} {finding.severity}: {literal(finding.title)}**"]
    parts.append(literal(f"{finding.message.removesuffix('.')}."))
    if finding.numbers:
        parts.append(f"Measured: {literal(numbers_of(finding))}.")
    if reason_of(finding):
        parts.append(literal(reason_of(finding)))
    # An indented block holds whatever is in it; a fenced one ends at the next fence.
    lines = [f"    {printable(line)}" for line in finding.code.splitlines()]
    return "\n\n".join([*parts, "\n".join(lines)] if lines else parts)


def outcomes_text(report: WindowReport) -> str:
    """What came of each remedy, as a Markdown table."""
    header, *rows = outcome_rows(report.outcomes)
    return markdown(header, [[literal(cell) for cell in row] for row in rows])


def rows_text(names: list[str]) -> str:
    """Which site each row of the picture is, as Markdown."""
    return "Rows from above: " + ", ".join(map(code, names))


def _listed(units: list[int], most: int = 32) -> str:
    shown = ", ".join(map(str, units[:most]))
    return f"{shown} and {len(units) - most} more" if len(units) > most else shown
