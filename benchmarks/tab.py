"""What the tab costs on a big run: how long until its picture is there, and the bytes it takes.

Two runs are written as event files, straight from made-up reports: many layers, and one wide layer.
Each is opened in headless Chromium from a TensorBoard that has read it but not yet answered for it.

    python -m benchmarks.tab [--sites 2000] [--windows 1000] [--wide 16384] [--folder DIR]

Needs Debian's `chromium` and `chromium-driver`.
"""

from __future__ import annotations

import argparse
import math
import tempfile
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.summary.writer.event_file_writer import EventFileWriter

from benchmarks.board import tensorboard, wait_for
from deadwatch.records import Gate, Site, SiteReport, State, Treatment, Window, WindowReport
from deadwatch.show.archive import Archivist
from deadwatch.show.tensorboard import _summary
from tests.browser import Browser, browser, driver

UNITS = 64
STEPS = 100


class Story:
    """Made-up units: some are dead from a window of their own on, and some of those come back.

    Args:
        name: The site's name.
        units: How many units it has.
        random: Where chance comes from.
    """

    def __init__(self, name: str, units: int, random: np.random.Generator) -> None:
        self.site = Site(name, name, 1, "ReLU", Gate(0.0, math.inf), 1)
        self.dies = random.exponential(2000, units)
        self.back = self.dies + random.exponential(300, units)
        self.mean = random.normal(0, 1, units)
        self.random = random

    def report(self, window: int) -> SiteReport:
        """The site in one window."""
        units = len(self.dies)
        dead = (self.dies <= window) & (window < self.back)
        state = np.where(dead, State.DEAD, State.ALIVE).astype(np.int64)
        drift = self.mean + 0.01 * self.random.normal(0, 1, units) - 4 * dead
        zero = np.zeros(units)
        opened = np.where(dead, 0.0, 1 / (1 + np.exp(-drift)))
        spread = np.abs(drift) + 1
        return SiteReport(
            self.site, 12800, state, np.zeros(units, np.int64), opened, drift, spread,
            drift - 3 * spread, drift + 3 * spread, spread, spread, zero, spread,
            sparsity=float(1 - opened.mean()),
        )  # fmt: skip

    def treatments(self, window: int) -> Iterator[Treatment]:
        """What was done to the units that are alive again in the next window."""
        units = np.flatnonzero((self.back > window) & (self.back <= window + 1))
        if len(units) and window % 10 == 0:
            name = self.site.name
            yield Treatment("Recycle", name, units, window, window * STEPS, quiet=True)


def write(folder: Path, sites: dict[str, int], windows: int) -> None:
    """Write a run of made-up windows, as the library would."""
    random = np.random.default_rng(0)
    stories = [Story(name, units, random) for name, units in sites.items()]
    archivist, writer = Archivist(), EventFileWriter(str(folder))
    for window in range(windows):
        found = {story.site.name: story.report(window) for story in stories}
        done = tuple(t for story in stories for t in story.treatments(window))
        steps = Window(window, window * STEPS, window * STEPS + STEPS - 1)
        for name, data in archivist.records(WindowReport(steps, found, done)):
            value = _summary(name, data)
            writer.add_event(Event(wall_time=time.time(), step=steps.last_step, summary=value))
    writer.close()


def fetched(url: str, route: str, **query: str | int) -> str:
    """How long an answer takes, and how large it is on the wire."""
    address = f"{url}data/plugin/deadwatch/{route}?{urllib.parse.urlencode(query)}"
    request = urllib.request.Request(address, headers={"Accept-Encoding": "gzip"})
    start = time.perf_counter()
    with urllib.request.urlopen(request, timeout=300) as answer:
        size = len(answer.read())
    return f"{time.perf_counter() - start:.2f} s, {size / 1e3:.0f} kB"


def first_picture(page: Browser, url: str) -> str:
    """From opening the frame until its first picture was painted."""
    page.open(f"{url}data/plugin_entry.html?name=deadwatch")
    script = "return performance.getEntriesByName('deadwatch:picture')[0]?.startTime"
    return f"{page.wait(script, seconds=120) / 1e3:.2f} s"


def units_picture(page: Browser, site: str) -> str:
    """From opening a layer until its units are painted."""
    script = """
        const start = performance.now();
        await deadwatch.app.open(arguments[0]);
        await new Promise((done) => requestAnimationFrame(() => setTimeout(done)));
        return performance.now() - start"""
    return f"{page.run(script, site) / 1e3:.2f} s"


def drawing(page: Browser) -> str:
    """Drawing everything anew: what a change of the window's size costs."""
    script = (
        "const start = performance.now(); deadwatch.app.draw(); return performance.now() - start"
    )
    return f"{min(float(page.run(script)) for _ in range(5)):.0f} ms"


def measured(folder: Path, site: str, fast: bool) -> dict[str, str]:
    """Everything that is told of one run, which must be alone in its folder."""
    where = ("--logdir", str(folder), "--load_fast", str(fast).lower())
    with tensorboard(*where) as url, driver() as address:
        _until_read(url)
        with browser(address) as page:
            page.open("about:blank")
            found = {"first picture": first_picture(page, url)}
            found["first picture, asked for again"] = first_picture(page, url)
            page.run("return deadwatch.started")
            found["drawing it"] = drawing(page)
            found["units of a layer"] = units_picture(page, site)
            found["drawing them"] = drawing(page)
        for route in ("overview", "table"):
            found[f"`{route}`"] = fetched(url, route, run="run")
        found["`units`"] = fetched(url, "units", run="run", site=site)
        found["`unit`"] = fetched(url, "unit", run="run", site=site, unit=0)
    return found


def _until_read(url: str) -> None:
    """Wait until TensorBoard has read everything: its newest step stays what it was."""
    address = f"{url}data/plugin/deadwatch/runs"
    wait_for(address, b'"run"', seconds=300)
    before, told = b"", b" "
    while before != told:
        before = told
        time.sleep(3)
        with urllib.request.urlopen(address, timeout=60) as answer:
            told = answer.read()


def markdown(found: dict[str, dict[str, str]]) -> str:
    """What was found of each run, side by side."""
    names = list(found)
    lines = [f"| | {' | '.join(names)} |", f"|---|{'--:|' * len(names)}"]
    lines += [
        f"| {what} | {' | '.join(found[name][what] for name in names)} |"
        for what in found[names[0]]
    ]
    return "\n".join(lines)


def main() -> None:
    """Write the runs that are not there yet, measure, and print what was found."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sites", type=int, default=2000)
    parser.add_argument("--windows", type=int, default=1000)
    parser.add_argument("--wide", type=int, default=16384)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--load_fast", choices=["true", "false"], default="true")
    args = parser.parse_args()
    cases = {
        f"{args.sites} layers of {UNITS} units": {
            f"blocks.{i // 4}.{i % 4}.act": UNITS for i in range(args.sites)
        },
        f"a layer of {args.wide} units": {"wide.act": args.wide, "head.act": UNITS},
    }
    with tempfile.TemporaryDirectory() as spare:
        folder, found = args.folder or Path(spare), {}
        for name, sites in cases.items():
            if not (folder / name / "run").exists():
                write(folder / name / "run", sites, args.windows)
            size = sum(file.stat().st_size for file in (folder / name / "run").iterdir())
            fast = args.load_fast == "true"
            told = measured(folder / name, next(iter(sites)), fast)
            found[name] = {"event files": f"{size / 1e6:.0f} MB", **told}
    print(markdown(found))


if __name__ == "__main__":
    main()
