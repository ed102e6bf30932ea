"""The command ``deadwatch``: a report of runs that are over, a look at a model before it trains.

Exit codes: 0 if all went well; 1 if ``scan --fail-above`` found more dead units than allowed; 2 if
something is wrong with what was asked, which one sentence on stderr says.
"""

from __future__ import annotations

import json
import sys
import traceback
from argparse import ArgumentParser, ArgumentTypeError, Namespace
from collections.abc import Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING

from deadwatch.errors import DeadwatchError
from deadwatch.show.bundle import bundle, left_out
from deadwatch.show.events import Found, runs
from deadwatch.show.page import page
from deadwatch.show.summary import summary
from deadwatch.show.texts import printable, tell

if TYPE_CHECKING:
    from deadwatch.records import WindowReport


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
    about = "Run a few batches through a model and say which of its units are dead."
    parser.description = about
    parser.add_argument("model", metavar="package.module:factory", help=_FACTORY)
    parser.add_argument("--batches", required=True, metavar="package.module:batches|N", help=_DATA)
    parser.add_argument("--json", action="store_true", help="figures for programs")
    parser.add_argument("--fail-above", type=_share, metavar="RATIO", help=_FAIL)
    parser.add_argument("--traceback", action="store_true", help="where an error came from")
    parser.set_defaults(run_command=_scan)


_FACTORY = "a function without arguments that returns a model, or a model and its batches"
_DATA = "batches, or a function that returns them; or how many of the factory's own to take"
_FAIL = "exit with 1 if more than this share of a layer's units is dead"


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
    from deadwatch.factories import (
        FactoryError,
        load,
    )  # imports what it is asked to, torch among it
    from deadwatch.scanning import scan
    from deadwatch.show.tables import plain, sites_table, text_of

    try:
        with redirect_stdout(sys.stderr):  # what the user's code prints is no part of the answer
            report = scan(*load(given.model, given.batches))
    except DeadwatchError:
        raise
    except (Exception, SystemExit) as error:  # of the user's model or data
        raise FactoryError(
            f"running the batches raised {type(error).__name__}: {error}; a batch is given to the "
            "model as deadwatch.scan does it: a mapping as keyword arguments, of a tuple the first"
        ) from error
    if given.json:
        print(json.dumps(plain(report), indent=2, allow_nan=False))
    else:
        tell(text_of(sites_table(report, "Before training")))
        for note in report.notes:
            tell(printable(note))
    return 1 if _fails(report, given.fail_above) else 0


def _fails(report: WindowReport, above: float | None) -> bool:
    return above is not None and any(site.dead_ratio > above for site in report.values())


if __name__ == "__main__":
    sys.exit(main())
