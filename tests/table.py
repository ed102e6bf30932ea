"""The settings table: every architecture on which watch and oracle are compared."""

from __future__ import annotations

from tests import table_basic
from tests.setting import Setting

SETTINGS: list[Setting] = [*table_basic.ROWS]
BY_NAME = {setting.name: setting for setting in SETTINGS}
