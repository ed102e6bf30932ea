"""``python -m deadwatch`` is the command ``deadwatch``."""

from __future__ import annotations

import sys

from deadwatch.cli import main

if __name__ == "__main__":
    sys.exit(main())
