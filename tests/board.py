"""A real TensorBoard with deadwatch's plugin, or as a viewer has it who never installed it.

python -m tests.board with|without --logdir …
"""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager


def main(plugin: str, *flags: str) -> None:
    """Run TensorBoard's own program; what is installed here does not matter."""
    from tensorboard import default, main_lib
    from tensorboard.program import TensorBoard

    from deadwatch.show.plugin import Loader

    main_lib.global_init()
    loaders = [one for one in default.get_plugins() if one is not Loader]
    board = TensorBoard(plugins=[*loaders, Loader] if plugin == "with" else loaders)
    board.configure(["tensorboard", *flags])
    sys.exit(board.main())


@contextmanager
def board(*flags: str, plugin: bool = True) -> Iterator[str]:
    """Start it; gives its address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "tests.board", "with" if plugin else "without", *flags]
    command += ["--reload_interval", "1", "--host", "127.0.0.1", "--port", str(port)]
    quiet = subprocess.DEVNULL
    process = subprocess.Popen(command, stdout=quiet, stderr=quiet)
    try:
        yield f"http://127.0.0.1:{port}/"
    finally:
        process.terminate()
        process.wait(30)


if __name__ == "__main__":
    main(*sys.argv[1:])
