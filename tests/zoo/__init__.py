"""Healthy, well-known architectures with their own initialisation, on data as they expect them.

Advice has nothing to warn of in any of them: `tests/test_zoo.py` and ``benchmarks.false_alarms``
hold its rules to that.
"""

from __future__ import annotations

from tests.zoo import (
    control_and_tables,
    language,
    plain_convnets,
    residual_convnets,
    sets_and_fields,
    signals,
    small_convnets,
    vision_tokens,
)
from tests.zoo.entry import Batch, Entry, run

__all__ = ["ZOO", "Batch", "Entry", "run"]

HOMES = (
    *(plain_convnets, residual_convnets, small_convnets, vision_tokens),
    *(language, signals, sets_and_fields, control_and_tables),
)

ZOO: dict[str, Entry] = {name: entry for home in HOMES for name, entry in home.ENTRIES.items()}
"""All of them by name."""

assert len(ZOO) == sum(len(home.ENTRIES) for home in HOMES), "two of them have the same name"
