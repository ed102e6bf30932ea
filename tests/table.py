"""The settings table: every architecture on which watch and oracle are compared."""

from __future__ import annotations

from tests import table_basic, table_flow, table_images, table_loops, table_tokens
from tests.setting import Setting

SETTINGS: list[Setting] = [
    *table_basic.ROWS,
    *table_images.ROWS,
    *table_tokens.ROWS,
    *table_flow.ROWS,
    *table_loops.ROWS,
]
BY_NAME = {setting.name: setting for setting in SETTINGS}
