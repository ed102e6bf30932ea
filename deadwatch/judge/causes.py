"""Which cause the evidence speaks for, unit by unit.

A unit's pre-activation fell from where it was as usual (mean m, bias b) to where it is closed (m',
b'). The evidence is weighed in this order:

- it was never open: *birth*;
- in the window in which it fell silent, one step moved its layer, or one before it, by more than
  `LEAP` times what the others did, and it was last seen open at about that step; or all steps moved
  them by more than `RUSH`: *update*;
- its bias fell by at least half of what its mean fell: *bias*;
- neither its row nor a layer before it moved much, by too little to explain its fall, or it hardly
  varies any more: *data*;
- its row, or a layer before it, moved by `SWAY` and more: *weights*.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import get_args

import numpy as np

from deadwatch.records import Bools, Cause, Floats, Gauges, Ints, Rows, Site, Update

CAUSES: tuple[Cause, ...] = get_args(Cause)

LEAP = 5.0
"""Times the mean update by which the largest stands out."""

RUSH = 0.1
"""Share of itself by which a weight may be moved in one step; ten such steps replace it."""

SWAY = 0.1
"""Share of itself by which a row may move in a window without that being what closed it."""

_FALL = 0.25
"""Standard deviations by which a mean pre-activation has to fall to have closed a gate."""

_CALM = 0.25
"""Share of its former standard deviation below which a pre-activation hardly varies any more."""

_BEFORE, _AFTER = 64, 16
"""Steps before and after an update within which the units that it killed were seen open last: some
are seen rarely, and what an update has thrown off course goes on falling for a while."""


class Moved:
    """How far the rows of all sites moved within the window that has ended, or the one before.

    A unit that is silent in a window fell silent in the one before, or just as this one began.

    Args:
        rows: The rows at the ends of these windows and of the one before them, the last one last;
            fewer where fewer are known.
    """

    def __init__(self, rows: Sequence[Mapping[str, Rows]]) -> None:
        self._moved: dict[str, Floats] = {}
        for earlier, later in pairwise(rows if len(rows) > 2 else ()):
            for name in earlier.keys() & later.keys():
                if later[name].sketch.shape == earlier[name].sketch.shape:
                    found = _distance(earlier[name], later[name])
                    self._moved[name] = np.maximum(self._moved.get(name, found), found)

    def of(self, site: str, units: int) -> Floats:
        """By how much each row of a site moved, relative to it (C,); NaN if that is not known."""
        found = self._moved.get(site)
        return np.full(units, np.nan) if found is None or len(found) != units else found

    def upstream(self, site: str, order: Sequence[str]) -> float:
        """By how much the rows of a site before ``site`` moved: the RMS where that is most."""
        return max((self._means[name] for name in order[: order.index(site)]), default=0.0)

    @cached_property
    def _means(self) -> Mapping[str, float]:
        """The RMS of the rows of each site; 0 where that is not known."""
        means = {k: math.sqrt(float(np.square(v).mean())) for k, v in self._moved.items()}
        return defaultdict(float, means)


def _distance(earlier: Rows, later: Rows) -> Floats:
    """How far rows are apart, biases included, relative to them (C,)."""
    sunk = np.nan_to_num(later.bias - earlier.bias, posinf=np.inf, neginf=-np.inf)
    apart = np.sqrt(np.square(later.sketch - earlier.sketch).sum(1) + np.square(sunk))
    found: Floats = apart / np.maximum(earlier.size, np.finfo(np.float32).tiny)
    return found


@dataclass(frozen=True, eq=False)
class Fall:
    """What is known of K units of a site that have fallen silent.

    Attributes:
        born: Whether they were never open (K,).
        first: The last step in which each was seen open (K,).
        last: The first step of the window in which it was dead (K,).
        before: Mean, std, open fraction and bias as usual (K, 4).
        after: The same when dead (K, 4).
        moved: By how much their rows moved (K,).
        upstream: By how much the rows of sites before it moved.
    """

    born: Bools
    first: Ints
    last: Ints
    before: Floats
    after: Floats
    moved: Floats
    upstream: float


def causes_of(fall: Fall, update: Update | None) -> Ints:
    """The cause of each unit's death, as its number in `CAUSES` (K,).

    Args:
        fall: What is known of the units.
        update: The updates of a weight that stood out in the window in which they fell silent.
    """
    drop = fall.before[:, 0] - fall.after[:, 0]
    sunk = fall.before[:, 3] - fall.after[:, 3]
    known = drop > _FALL * fall.before[:, 1]  # not where it is NaN
    # What a movement can do to a pre-activation grows with how far that is from zero.
    reach = (np.nan_to_num(fall.moved) + fall.upstream) * np.hypot(*fall.before[:, :2].T)
    changed = known & (reach < 0.5 * drop) | (fall.after[:, 1] < _CALM * fall.before[:, 1])
    still = ~(np.nan_to_num(fall.moved, nan=np.inf) >= SWAY) & (fall.upstream < SWAY)
    with np.errstate(invalid="ignore"):
        by_bias = known & (sunk >= 0.5 * drop)
    swayed = (fall.moved >= SWAY) | (fall.upstream >= SWAY)
    chosen = np.select(
        [fall.born, _by_update(fall, update), by_bias, changed & still, swayed],
        [CAUSES.index(cause) for cause in ("birth", "update", "bias", "data", "weights")],
        CAUSES.index("unknown"),
    )
    return chosen.astype(np.int64)


def _by_update(fall: Fall, update: Update | None) -> Bools:
    if update is None:
        return np.zeros(len(fall.born), np.bool_)
    if update.mean >= RUSH:
        return np.ones(len(fall.born), np.bool_)
    since = fall.first - update.peak_step
    result: Bools = (since >= -_BEFORE) & (since <= _AFTER) & (update.peak_step <= fall.last)
    return result


def culprit(site: Site, layers: Sequence[Site], gauges: Gauges) -> tuple[str, Update] | None:
    """The weight at a site, or before it, of which a step, or every step, moved far too much."""
    names = [one.name for one in layers]
    reach = layers[: names.index(site.name) + 1] if site.name in names else ()
    weights = [wire.weight for one in reversed(reach) for wire in one.producers if wire.weight]
    updates = [(name, gauges.updates[name]) for name in weights if name in gauges.updates]
    leaps = [(name, one) for name, one in updates if is_leap(one) or one.mean >= RUSH]
    return max(leaps, key=lambda found: found[1].peak) if leaps else None


def is_leap(update: Update) -> bool:
    """Whether one step stands out among those of a window."""
    if update.steps < 2:
        return False
    others = (update.mean * update.steps - update.peak) / (update.steps - 1)
    return update.peak >= RUSH and update.peak >= LEAP * others
