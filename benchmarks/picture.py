"""The picture in the README: TensorBoard over the runs of the demo, as headless Chromium sees it.

    python examples/digits.py && python benchmarks/picture.py

Needs Debian's `chromium` and ImageMagick's `convert`.
"""

from __future__ import annotations

import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

RUNS = Path("runs/digits")
PICTURE = Path("docs/tensorboard.png")


@contextmanager
def tensorboard(runs: dict[str, Path]) -> Iterator[str]:
    """A TensorBoard that shows the given runs, and its address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    spec = ",".join(f"{name}:{path}" for name, path in runs.items())
    command = [sys.executable, "-m", "tensorboard.main", "--logdir_spec", spec]
    command += ["--host", "127.0.0.1", "--port", str(port)]
    quiet = subprocess.DEVNULL
    process = subprocess.Popen(command, stdout=quiet, stderr=quiet)
    try:
        yield f"http://127.0.0.1:{port}/"
    finally:
        process.terminate()
        process.wait(30)


def wait_for(url: str, text: bytes) -> None:
    """Wait until an address answers with a text: TensorBoard reads its runs in the background."""
    for _ in range(120):
        try:
            with urllib.request.urlopen(url, timeout=10) as answer:
                if text in answer.read():
                    return
        except OSError:
            time.sleep(0.2)  # not listening yet
        time.sleep(0.3)
    raise TimeoutError(f"{url} never showed {text!r}")


def main() -> None:
    """Take the picture."""
    runs = {name: RUNS / name / "seed0" for name in ("watched", "ladder")}
    PICTURE.parent.mkdir(exist_ok=True)
    with tensorboard(runs) as url, tempfile.TemporaryDirectory() as folder:
        wait_for(f"{url}data/plugin/custom_scalars/layout", b"dead ratio")
        raw = Path(folder) / "raw.png"
        command = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]
        command += ["--no-first-run", "--disable-background-networking", "--disable-sync"]
        command += ["--disable-component-update", f"--user-data-dir={folder}/profile"]
        command += ["--window-size=1300,780", "--virtual-time-budget=20000", f"--screenshot={raw}"]
        subprocess.run([*command, f"{url}#custom_scalars"], check=True, capture_output=True)
        subprocess.run(["convert", str(raw), "-colors", "128", str(PICTURE)], check=True)
    size = PICTURE.stat().st_size
    print(f"{PICTURE}: {size / 1000:.0f} kB")
    assert size < 300_000


if __name__ == "__main__":
    main()
