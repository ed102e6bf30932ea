"""The server's side of the TensorBoard tab: answers with the documents that the front end draws.

Importing this loads neither torch nor Lightning, and whatever goes wrong here costs one answer.
"""

from __future__ import annotations

import logging
import re
from collections import OrderedDict
from collections.abc import Callable
from importlib.resources import files
from threading import Lock
from typing import Any

from tensorboard import plugin_util
from tensorboard.backend.http_util import Respond
from tensorboard.data.provider import RunTagFilter
from tensorboard.plugins.base_plugin import FrontendMetadata, TBContext, TBPlugin
from werkzeug.wrappers import Request

from deadwatch.errors import DeadwatchError
from deadwatch.show import documents
from deadwatch.show.archive import COUNTS, EVENTS, PLUGIN
from deadwatch.show.run import Record, Run

logger = logging.getLogger(__name__)

Application = Callable[[dict[str, Any], Any], Any]

ALL = 1_000_000
"""Records of one tag that are asked for: as many as there are."""

KEPT = 8
"""Runs that are kept read; the picture is drawn again and again while a run goes on."""

LONGEST, NAMED = 200, 20
"""Characters of a wrong argument, and names of runs, that an answer repeats at most."""

_NUMBER = re.compile(r"[0-9]{1,10}")


class BadRequest(DeadwatchError):
    """A request for something there is not, or that makes no sense."""


class Unreadable(DeadwatchError):
    """TensorBoard did not hand over what it was asked for."""


class Plugin(TBPlugin):  # type: ignore[misc]  # TensorBoard has no types
    """Answers the tab from the event files that TensorBoard has read.

    Args:
        context: What TensorBoard gives a plugin.
    """

    plugin_name = PLUGIN

    def __init__(self, context: TBContext) -> None:
        self._provider = context.data_provider
        self._runs: OrderedDict[tuple[str, str], tuple[Any, Run]] = OrderedDict()
        self._lock = Lock()

    def is_active(self) -> bool:
        """Never by itself: TensorBoard looks for the plugin's data, and that is enough."""
        return False

    def frontend_metadata(self) -> FrontendMetadata:
        """Where the front end is, and what the tab is called."""
        return FrontendMetadata(es_module_path="/index.js", tab_name="Dead neurons")

    def get_plugin_apps(self) -> dict[str, Application]:
        """The routes, under the plugin's own."""
        answers = {"overview": self._overview, "table": self._table, "findings": self._findings}
        answers |= {"units": self._units, "unit": self._unit, "runs": self._names}
        return {"/index.js": script} | {f"/{n}": _answering(a) for n, a in answers.items()}

    # ── answers ─────────────────────────────────────────────────────────────────────────

    def _names(self, request: Request) -> Any:
        stamps = self._stamps(request)
        return {"runs": sorted(stamps), "stamps": stamps}

    def _overview(self, request: Request) -> Any:
        return documents.overview(self._run(request), _number(request, "cells", documents.CELLS, 1))

    def _table(self, request: Request) -> Any:
        return documents.table(self._run(request))

    def _findings(self, request: Request) -> Any:
        return documents.findings(self._run(request))

    def _units(self, request: Request) -> Any:
        run = self._run(request)
        count = run.sites[run.row[_site(request, run)]]["units"]
        first = _number(request, "first", 0, 0, max(0, count - 1))
        last = _number(request, "last", count, min(first + 1, count), count)
        rows = _number(request, "rows", documents.ROWS, 1)
        columns = _number(request, "columns", documents.COLUMNS, 1)
        return documents.units(run, _site(request, run), first, last, rows, columns)

    def _unit(self, request: Request) -> Any:
        run = self._run(request)
        site = _site(request, run)
        count = run.sites[run.row[site]]["units"]
        if not count:
            raise BadRequest(f"site {site!r} has no units: it never ran")
        if "unit" not in request.args:
            raise BadRequest(f"unit is missing; expected a number from 0 to {count - 1}")
        return documents.unit(run, site, _number(request, "unit", 0, 0, count - 1))

    # ── runs ────────────────────────────────────────────────────────────────────────────

    def _run(self, request: Request) -> Run:
        stamps, name = self._stamps(request), request.args.get("run")
        if name not in stamps:
            known = ", ".join(map(repr, sorted(stamps)[:NAMED])) or "none"
            more = f" and {len(stamps) - NAMED} more" if len(stamps) > NAMED else ""
            raise BadRequest(
                f"run is {_quoted(name)}; runs with records of deadwatch's are: {known}{more}"
            )
        key = plugin_util.experiment_id(request.environ), name
        with self._lock:
            stamp, run = self._runs.pop(key, (None, None))
            if run is None or stamp != stamps[name]:
                run = Run(self._reader(request, name))
            self._runs[key] = stamps[name], run
            if len(self._runs) > KEPT:
                self._runs.popitem(last=False)
        return run

    def _stamps(self, request: Request) -> dict[str, Any]:
        """The runs there are, each with what changes when something is added to it."""
        found = self._provider.list_tensors(
            plugin_util.context(request.environ),
            experiment_id=plugin_util.experiment_id(request.environ),
            plugin_name=PLUGIN,
            run_tag_filter=RunTagFilter(tags=[COUNTS, EVENTS]),
        )
        return {
            run: [(tag, series.max_step, series.max_wall_time) for tag, series in tags.items()]
            for run, tags in found.items()
            if COUNTS in tags
        }

    def _reader(self, request: Request, run: str) -> Callable[[str], list[Record]]:
        context = plugin_util.context(request.environ)
        experiment = plugin_util.experiment_id(request.environ)

        def read(tag: str) -> list[Record]:
            wanted = RunTagFilter(runs=[run], tags=[tag])
            about = {"experiment_id": experiment, "plugin_name": PLUGIN, "downsample": ALL}
            try:
                found = self._provider.read_tensors(context, run_tag_filter=wanted, **about)
            except Exception as error:  # each provider has errors of its own
                raise Unreadable(
                    f"TensorBoard could not read all of {tag}. Its fast loader hands over at most "
                    "256 MiB at once: start it with --load_fast=false."
                ) from error
            data = found.get(run, {}).get(tag, ())
            return [Record.of(datum.wall_time, datum.numpy) for datum in data]

        return read


def script(environ: dict[str, Any], start_response: Any) -> Any:
    """The front end: one ES module."""
    try:
        text, code = files("deadwatch.show").joinpath("web/index.js").read_text("utf-8"), 200
    except (OSError, ValueError) as error:  # an installation that lacks it, or a damaged one
        logger.exception("deadwatch: the front end cannot be read")
        text, code = f"// deadwatch is not installed as a whole: {error!r}", 500
    found = Respond(Request(environ), text, "application/javascript", code=code)
    return found(environ, start_response)


def _answering(answer: Callable[[Request], Any]) -> Application:
    """A route that answers in JSON, and a request that makes no sense with a sentence."""

    def respond(environ: dict[str, Any], start_response: Any) -> Any:
        request = Request(environ)
        try:
            content, code = answer(request), 200
        except BadRequest as error:
            content, code = {"error": str(error)}, 400
        except Unreadable as error:
            logger.warning("%s", error, exc_info=True)
            content, code = {"error": str(error)}, 500
        except Exception as error:  # whatever it is, it costs this answer alone
            logger.exception("deadwatch: %s could not be answered", request.path)
            told = f"deadwatch could not read this run: {type(error).__name__}: {error}"
            content, code = {"error": told}, 500
        found = Respond(request, content, "application/json", code=code)
        return found(environ, start_response)

    return respond


def _site(request: Request, run: Run) -> str:
    name = request.args.get("site")
    if name is None or name not in run.row:
        raise BadRequest(f"site is {_quoted(name)}, and this run has none of that name")
    return name


def _number(request: Request, name: str, default: int, least: int, most: int = 1 << 31) -> int:
    given = request.args.get(name)
    if given is None:
        return default
    if not _NUMBER.fullmatch(given) or not least <= int(given) <= most:
        raise BadRequest(
            f"{name} is {_quoted(given)}; expected a whole number from {least} to {most}"
        )
    return int(given)


def _quoted(given: str | None) -> str:
    """What was asked for, in a sentence of which it does not take more than its share."""
    return repr(given if given is None or len(given) <= LONGEST else f"{given[:LONGEST]}…")
