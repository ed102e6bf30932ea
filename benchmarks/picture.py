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
def tensorboard(*where: str, module: str = "tensorboard.main") -> Iterator[str]:
    """A TensorBoard over ``--logdir DIR`` or ``--logdir_spec SPEC``, and its address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", module, *where, "--reload_interval", "1"]
    command += ["--host", "127.0.0.1", "--port", str(port)]
    quiet = subprocess.DEVNULL
    process = subprocess.Popen(command, stdout=quiet, stderr=quiet)
    try:
        yield f"http://127.0.0.1:{port}/"
    finally:
        process.terminate()
        process.wait(30)


def wait_for(url: str, text: bytes) -> bytes:
    """What an address answers once it holds a text: TensorBoard reads its runs in background."""
    for _ in range(120):
        try:
            with urllib.request.urlopen(url, timeout=10) as answer:
                body: bytes = answer.read()
                if text in body:
                    return body
        except OSError:
            time.sleep(0.2)  # not listening yet
        time.sleep(0.3)
    raise TimeoutError(f"{url} never showed {text!r}")


def main() -> None:
    """Take the picture."""
    spec = ",".join(f"{name}:{RUNS / name / 'seed0'}" for name in ("watched", "revive"))
    PICTURE.parent.mkdir(exist_ok=True)
    with tensorboard("--logdir_spec", spec) as url, tempfile.TemporaryDirectory() as folder:
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
