"""The README's pictures: the tab and the report over runs of the demo, as Chromium shows them.

    python -m benchmarks.screenshots [--runs runs/digits] [--out docs]

Trains the demo if its runs are not there. Needs Debian's `chromium` and `chromium-driver`.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from benchmarks.board import tensorboard, wait_for
from deadwatch.cli import main as deadwatch
from examples import digits
from tests.browser import Browser, browser, driver

SHOWN = ["watched/seed0", "revive/seed0"]
SITE, UNIT = "net.3", 20
WIDE = 1360
MOST = 300_000
"""Bytes of a picture, at most."""

HEIGHT = "return Math.ceil(document.querySelector(arguments[0]).getBoundingClientRect().bottom)"


def save(page: Browser, path: Path, tall: int) -> None:
    """Take a picture of the window's upper part."""
    page.screenshot(path, tall)
    size = path.stat().st_size
    print(f"{path}: {size / 1000:.0f} kB")
    if size > MOST:
        raise SystemExit(f"{path} is larger than {MOST / 1000:.0f} kB")


def layers(page: Browser) -> None:
    """Both runs side by side, once their table is there."""
    page.wait("return window.deadwatch?.layers.rows().length")
    page.run("return deadwatch.app.choose(arguments[0])", SHOWN)
    page.wait("return document.querySelectorAll('tbody tr').length === 4")


def units(page: Browser) -> None:
    """The units of a layer, one of them pinned."""
    page.run("return deadwatch.app.open(arguments[0])", SITE)
    page.run("return deadwatch.app.pick({row: arguments[0]})", UNIT)
    page.wait("return deadwatch.pins()[0]?.docs.length === 2")


def advice(page: Browser) -> None:
    """What is advised of the run that was only watched."""
    page.run("return deadwatch.app.choose(arguments[0])", SHOWN[:1])
    page.run("return deadwatch.app.turnTo(true)")
    page.wait("return deadwatch.findings().length")


def tab(address: str, runs: Path, out: Path) -> None:
    """The tab in a running TensorBoard."""
    with tensorboard("--logdir", str(runs)) as url:
        wait_for(f"{url}data/plugin/deadwatch/runs", SHOWN[0].encode())
        with browser(address, size=(WIDE, 1100)) as page:
            page.open(f"{url}#deadwatch")
            page.enter("iframe[src*='deadwatch']")
            layers(page)
            save(page, out / "layers.png", 700)
            units(page)
            save(page, out / "units.png", 955)


def report(address: str, runs: Path, out: Path) -> None:
    """The report, opened from disk, and the advice in it."""
    path = runs.resolve() / "report.html"
    deadwatch(["report", str(runs), "-o", str(path)])
    with browser(address, size=(WIDE, 900)) as page:
        page.open(path.as_uri())
        layers(page)
        save(page, out / "report.png", 680)
        advice(page)
        save(page, out / "advice.png", 820)


def main() -> None:
    """Train if need be, and take the pictures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=Path, default=Path("runs/digits"))
    parser.add_argument("--out", type=Path, default=Path("docs"))
    args = parser.parse_args()
    if not list(args.runs.rglob("events.out.*")):
        digits.main(["--out", str(args.runs)])
    args.out.mkdir(exist_ok=True)
    with driver() as address:
        tab(address, args.runs, args.out)
        report(address, args.runs, args.out)


if __name__ == "__main__":
    main()
