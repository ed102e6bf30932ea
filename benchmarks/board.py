"""TensorBoard with the tab or without it, whatever is installed here.

python -m benchmarks.board with|without --logdir runs
"""

from __future__ import annotations

import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager


def main(plugin: str, *flags: str) -> int:
    """Run TensorBoard's own program, with its own plugins, those that are installed, and the tab.

    Args:
        plugin: ``"with"``, or ``"without"`` for what a viewer has who never installed deadwatch.
        flags: TensorBoard's.
    """
    from tensorboard import default, main_lib, program

    from deadwatch.show.plugin import Loader

    main_lib.global_init()
    loaders = [loader for loader in default.get_plugins() if loader is not Loader]
    board = program.TensorBoard(plugins=[*loaders, Loader] if plugin == "with" else loaders)
    board.configure(argv=["tensorboard", *flags])
    return int(board.main() or 0)


@contextmanager
def tensorboard(*flags: str, plugin: bool = True) -> Iterator[str]:
    """A running TensorBoard, and its address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "benchmarks.board", "with" if plugin else "without", *flags]
    command += ["--reload_interval", "1", "--host", "127.0.0.1", "--port", str(port)]
    quiet = subprocess.DEVNULL
    process = subprocess.Popen(command, stdout=quiet, stderr=quiet)
    try:
        yield f"http://127.0.0.1:{port}/"
    finally:
        process.terminate()
        process.wait(30)


def wait_for(url: str, text: bytes, seconds: float = 60) -> bytes:
    """What an address answers once it holds a text: TensorBoard reads its runs in background."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            with urllib.request.urlopen(url, timeout=10) as answer:
                body: bytes = answer.read()
                if text in body:
                    return body
        except OSError:
            time.sleep(0.2)  # not listening yet
        time.sleep(0.3)
    raise TimeoutError(f"{url} never showed {text!r}")


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
