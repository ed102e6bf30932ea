"""TensorBoard with the tab, also where deadwatch is not installed but only lies on the path.

python -m benchmarks.board --logdir runs
"""

from __future__ import annotations

import sys

from tensorboard import default, program

from deadwatch.show.plugin import Loader


def main() -> int:
    """Run TensorBoard, with its own plugins, those that are installed, and the tab."""
    plugins = [plugin for plugin in default.get_plugins() if plugin is not Loader]
    board = program.TensorBoard(plugins=[*plugins, Loader])
    board.configure(argv=["tensorboard", *sys.argv[1:]])
    return int(board.main() or 0)


if __name__ == "__main__":
    sys.exit(main())
