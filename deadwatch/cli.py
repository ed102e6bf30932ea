"""The command ``deadwatch``: a report of runs that are over, a look at a model before it trains.

Exit codes: 0 if all went well; 1 if ``scan --fail-above`` found more dead units than allowed, or
``scan --fail-on`` a finding that is at least so severe and neither ignored nor known; 2 if
something is wrong with what was asked, which one sentence on stderr says.
"""

from __future__ import annotations

import json
import sys
import traceback
from argparse import ArgumentParser, ArgumentTypeError, Namespace
from collections.abc import Iterator, Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING

from deadwatch.errors import DeadwatchError
from deadwatch.records import SEVERITIES
from deadwatch.show import findings
from deadwatch.show.bundle import bundle, left_out
from deadwatch.show.events import Found, runs
from deadwatch.show.page import page
from deadwatch.show.sarif import Place, sarif
from deadwatch.show.summary import summary
from deadwatch.show.tables import NOTHING_RUN, plain, sites_table, text_of
from deadwatch.show.texts import printable, tell

if TYPE_CHECKING:
    from deadwatch.checking import Checked


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    given = _parser().parse_args(arguments)
    try:
        code: int = given.run_command(given)
    except (DeadwatchError, OSError) as error:  # or a file that cannot be read or written
        if given.traceback and error.__cause__ is not None:
            traceback.print_exception(error.__cause__)
        print(f"deadwatch: {printable(str(error))}", file=sys.stderr)
        return 2
    return code


def _parser() -> ArgumentParser:
    parser = ArgumentParser("deadwatch", description="Dead neurons of PyTorch networks.")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    _add_report(commands.add_parser("report", help="one HTML file from TensorBoard's event files"))
    _add_scan(commands.add_parser("scan", help="look at a model before it trains"))
    return parser


def _add_report(parser: ArgumentParser) -> None:
    about = "Write one HTML file with all that deadwatch recorded below a directory of runs."
    parser.description = about
    parser.add_argument("logdir", type=Path, help="what TensorBoard's --logdir would get")
    parser.add_argument("-o", "--output", type=Path, help="the file to write (report.html)")
    parser.add_argument("--json", action="store_true", help="a summary for programs instead")
    parser.add_argument("--run", action="append", metavar="NAME", help="only this run; repeatable")
    parser.set_defaults(run_command=_report, traceback=False)


def _add_scan(parser: ArgumentParser) -> None:
    parser.description = (
        "Run a few batches through a model, say which of its units are dead, and what lets units "
        "die in it."
    )
    parser.epilog = _CODES
    parser.add_argument("model", metavar="package.module:factory", help=_FACTORY)
    parser.add_argument("--batches", metavar="package.module:batches|N", help=_DATA)
    parser.add_argument("--optimizer", metavar="package.module:function", help=_OPTIMIZER)
    parser.add_argument("--json", action="store_true", help="figures and findings for programs")
    parser.add_argument("--sarif", type=Path, metavar="FILE", help="write the findings as SARIF")
    parser.add_argument("--explain", action="store_true", help="why each finding matters")
    parser.add_argument("--fail-above", type=_share, metavar="RATIO", help=_FAIL)
    parser.add_argument("--fail-on", choices=SEVERITIES, help=_FAIL_ON)
    parser.add_argument("--ignore", action="append", default=[], metavar="ID[@SITE]", help=_IGNORE)
    parser.add_argument("--baseline", type=Path, metavar="FILE", help=_KNOWN)
    parser.add_argument("--write-baseline", type=Path, metavar="FILE", help="make such a file")
    parser.add_argument("--traceback", action="store_true", help="where an error came from")
    parser.set_defaults(run_command=_scan)


_FACTORY = (
    "a function without arguments that returns a model, (model, batches) or (model, batches, "
    "optimizer)"
)
_DATA = (
    "batches, or a function that returns them; or how many of the factory's own to take (8). With "
    "none at all, nothing is run"
)
_OPTIMIZER = "a function of the model that returns the optimizer, or several, to advise on as well"
_FAIL = "exit with 1 if more than this share of a layer's units is dead"
_FAIL_ON = "exit with 1 if a finding is left that is at least so severe"
_IGNORE = "leave out findings: an id, or id@site, with * for anything; repeatable"
_KNOWN = "leave out the findings that this file knows, unless they have become more severe"
_CODES = (
    "Exit codes: 0 if all went well; 1 if --fail-above or --fail-on found something; 2 if what was "
    "asked makes no sense, or the code that makes the model failed."
)
_ELSEWHERE = "the model is not made by a file below the working directory"


def _share(text: str) -> float:
    try:
        share = float(text)
    except ValueError:
        share = -1.0
    if not 0 <= share <= 1:
        raise ArgumentTypeError(f"{text!r} is no share; expected a number from 0 to 1")
    return share


# ── report ──────────────────────────────────────────────────────────────────────────────


def _report(given: Namespace) -> int:
    found = _chosen(runs(given.logdir), given.run)
    if given.json:
        _write_summary(found, given.output)
        return 0
    path: Path = given.output or Path("report.html")
    bundled = bundle({name: one.run for name, one in found.items()})
    notes = tuple(_remarks(found))
    text = page(bundled, f"deadwatch: {given.logdir.resolve().name}", notes)
    path.write_text(text, "utf-8")
    windows = sum(len(one.run.windows) for one in found.values())
    size = len(text) / 1e6
    tell(f"{path}: {_counted(len(found), 'run')}, {_counted(windows, 'window')}, {size:.1f} MB")
    for line in (*notes, *left_out(bundled)):
        tell(printable(line))
    return 0


def _counted(count: int, thing: str) -> str:
    return f"{count:,} {thing}{'' if count == 1 else 's'}"


def _write_summary(found: dict[str, Found], path: Path | None) -> None:
    text = json.dumps(summary(found), indent=2, allow_nan=False)
    if path is None:
        print(text)
    else:
        path.write_text(f"{text}\n", "utf-8")


def _chosen(found: dict[str, Found], names: Sequence[str] | None) -> dict[str, Found]:
    for name in names or ():
        if name not in found:
            known = ", ".join(map(repr, found))
            raise DeadwatchError(f"there is no run {name!r}; runs with records are: {known}")
    return {name: one for name, one in found.items() if not names or name in names}


def _remarks(found: dict[str, Found]) -> list[str]:
    told = []
    for name, one in found.items():
        if one.cut:
            files = ", ".join(one.cut)
            told.append(f"Run {name}: read as far as these files are whole: {files}.")
        if one.run.damaged:
            told.append(f"Run {name}: {one.run.damaged:,} damaged records are left out.")
    return told


# ── scan ────────────────────────────────────────────────────────────────────────────────


def _scan(given: Namespace) -> int:
    from deadwatch.checking import Asked, check, remember  # imports torch

    asked = Asked(given.model, given.batches, given.optimizer, given.ignore, given.baseline)
    with redirect_stdout(sys.stderr):  # what the user's code prints is no part of the answer
        checked = check(asked)
    if checked.report is None and given.fail_above is not None:
        raise DeadwatchError(
            "--fail-above needs units that were judged, and no batches were run; let the factory "
            "return (model, batches), or give --batches"
        )
    if given.write_baseline is not None:
        remember(given.write_baseline, checked.kept)
    if given.sarif is not None:
        _write_sarif(checked, given.sarif)
    _print_checked(checked, given)
    return 1 if _fails(checked, given) else 0


def _fails(checked: Checked, given: Namespace) -> bool:
    above, on = given.fail_above, given.fail_on
    sites = () if above is None or checked.report is None else checked.report.values()
    left = checked.findings if given.write_baseline is None else []  # what is written is known now
    dead = any(site.dead_ratio > above for site in sites)
    return dead or (on is not None and any(finding.at_least(on) for finding in left))


def _print_checked(checked: Checked, given: Namespace) -> None:
    if given.json:
        about = {"ignored": checked.ignored, "known": checked.known, "gone": checked.gone}
        found = plain(checked.report) | {"findings": findings.plain(checked.findings)} | about
        print(json.dumps(found, indent=2, allow_nan=False))
        return
    notes: Sequence[str] = (NOTHING_RUN,)
    if checked.report is not None:
        tell(text_of(sites_table(checked.report, "Before training")))
        notes = checked.report.notes
    for note in notes:
        tell(printable(note))
    tell("")
    aside = bool(checked.ignored or checked.known) and not checked.findings
    told = findings.told(checked.findings, explain=given.explain)
    tell("Advice: nothing new." if aside else told)
    for line in _set_aside(checked, given):
        tell(printable(line))


def _set_aside(checked: Checked, given: Namespace) -> Iterator[str]:
    """What is not among the findings though it was found, and what no longer is."""
    if checked.ignored:
        yield f"{_counted(checked.ignored, 'finding')} ignored."
    if checked.known:
        yield f"{_counted(checked.known, 'finding')} left out as known: {given.baseline}."
    for entry in checked.gone:
        out = "" if given.write_baseline is not None else "; --write-baseline takes it out"
        yield f"Known and not found any more: {entry}{out}."
    if given.write_baseline is not None:
        yield f"{given.write_baseline}: {_counted(len(checked.kept), 'finding')} known from now on."


def _write_sarif(checked: Checked, path: Path) -> None:
    from deadwatch import __version__

    place = _place(checked.source)
    log = sarif(checked.findings, checked.rules, place, __version__)
    path.write_text(f"{json.dumps(log, indent=2, allow_nan=False)}\n", "utf-8")
    if place is None:
        print(
            f"deadwatch: {printable(str(path))} names no source file: {_ELSEWHERE}", file=sys.stderr
        )


def _place(source: tuple[Path, int] | None) -> Place | None:
    here = Path.cwd().resolve()
    if source is None or not source[0].resolve().is_relative_to(here):
        return None
    return Place(source[0].resolve().relative_to(here).as_posix(), source[1])


if __name__ == "__main__":
    sys.exit(main())
