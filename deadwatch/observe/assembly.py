"""A site of several processes as one: each process's part at its place among all units.

Legend: C units of the site in all processes.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from deadwatch.errors import SiteDisabledWarning
from deadwatch.observe import stats
from deadwatch.records import SiteSnapshot


def assembled(parts: Sequence[SiteSnapshot]) -> SiteSnapshot | None:
    """The whole site, without data, of what each process knows of it; None if it is not one."""
    ran = [part for part in parts if part.units]
    whole = ran[0] if ran else parts[0]
    reason = _conflict(parts, ran)
    if reason:
        warnings.warn(
            f"{whole.site.name} is not merged over the processes, and nothing is known of it: "
            f"{reason}",
            SiteDisabledWarning,
            stacklevel=6,
        )
        return None
    total = whole.share.total
    if total is None:
        return whole
    age, flat = np.zeros(total, np.int64), np.zeros(total, np.bool_)
    for part in ran:
        age[_place(part)], flat[_place(part)] = part.age, part.flat
    return replace(whole, age=age, flat=flat)


def _conflict(parts: Sequence[SiteSnapshot], ran: Sequence[SiteSnapshot]) -> str:
    stages = {part.share.stages for part in parts if part.share.stages}
    if len(stages) > 1:
        told = " and ".join(str(*numbers) for numbers in sorted(stages))
        return (
            f"pipeline stages {told} each have an activation of this name. Let the layers of each "
            "stage keep the names that they have in the whole model"
        )
    if len({(part.share.total, part.share.total or part.units) for part in ran}) > 1:
        sizes = ", ".join(str(part.units) for part in ran)
        return f"it has different units in each ({sizes} of them), and which is not known"
    return ""


def placed(own: SiteSnapshot, whole: SiteSnapshot) -> dict[str, npt.NDArray[Any]]:
    """What a process measured at its units, and nothing at all others, with its samples."""
    if not whole.units:
        return {}
    samples = np.array([own.samples])
    if whole.share.total is None and own.share.counts:
        return {**(own.data or stats.blank(whole.units)), "samples": samples}
    data, here = stats.blank(whole.units), _place(own)
    for name, values in own.data.items():
        # Flags and extremes count once, however many have seen the same.
        if own.share.counts or stats.STATISTICS[name].merge in ("max", "min"):
            data[name][here] = values
    samples = samples * own.share.counts
    if whole.share.total is not None:
        one, samples = samples, np.zeros(whole.units, np.int64)
        samples[here] = one if own.data else 0
    return {**data, "samples": samples}


def _place(part: SiteSnapshot) -> slice:
    return slice(part.share.first, part.share.first + part.units)
