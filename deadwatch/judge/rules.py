"""What the evidence of a window says about each unit.

A unit's gate is open for a sample when the activation passes gradient there. The states:

- *unseen*: the site did not run.
- *uncertain*: the gate was never open, but on fewer than ``min_samples`` elements, or NaN hid some.
- *dead*: never open, and the closed side has exactly zero derivative: the unit cannot learn.
- *saturated*: never open, but the closed side still has a tiny derivative.
- *rare*: open on fewer than ``rare_below`` of the elements. Alive.
- *alive*: otherwise.

Not claimed: that a dead unit does harm, or that an alive one does good. Sparsity (closed gates
over all elements) and dormancy (low output relative to the layer) are measured beside it, never
mixed in.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from deadwatch.errors import ConfigError
from deadwatch.records import (
    Floats,
    Ints,
    SiteReport,
    SiteSnapshot,
    Snapshot,
    State,
    WindowReport,
)


@dataclass(frozen=True)
class Rules:
    """Thresholds of the verdict.

    Attributes:
        min_samples: Elements without one open gate before a unit may be called dead. With the
            default of 300, a unit called dead is open on fewer than 1% of the data with 95%
            confidence (the rule of three), if elements are independent. Evidence of successive
            windows adds up.
        rare_below: A unit whose gate is open on a smaller share of the elements is rare.
        harmful_ratio: Dead ratio of a site from which it is called harmful.
        harmful_ratio_narrow: The same where fewer than ``enough_live`` units live: what does harm
            is how few are left, more than how many died.
        enough_live: Live units that are enough.

    Raises:
        ConfigError: A threshold is out of its range.
    """

    min_samples: int = 300
    rare_below: float = 0.01
    harmful_ratio: float = 0.3
    harmful_ratio_narrow: float = 0.1
    enough_live: int = 64

    def __post_init__(self) -> None:
        if type(self.min_samples) is not int or self.min_samples < 1:
            raise ConfigError(
                f"min_samples is {self.min_samples!r}; expected an integer of 1 or more "
                "(elements without an open gate before a unit may be called dead)"
            )
        for name, example in _SHARES.items():
            share = getattr(self, name)
            if type(share) not in (int, float) or not 0 <= share <= 1:
                raise ConfigError(
                    f"{name} is {share!r}; expected a share between 0 and 1, such as {example}"
                )
        if type(self.enough_live) is not int or self.enough_live < 0:
            raise ConfigError(
                f"enough_live is {self.enough_live!r}; expected a number of units, 0 or more"
            )


_SHARES = {
    "rare_below": "0.01 for one element in a hundred",
    "harmful_ratio": "0.3",
    "harmful_ratio_narrow": "0.1",
}


def judge(snapshot: Snapshot, rules: Rules) -> WindowReport:
    """Judge every unit of every site."""
    sites = {site.site.name: _report(site, rules) for site in snapshot.sites}
    notes = tuple(filter(None, (_unproven(report, rules) for report in sites.values())))
    return WindowReport(snapshot.window, sites, notes=notes)


def _unproven(report: SiteReport, rules: Rules) -> str:
    """What is not known of units that were never open; empty if there are none."""
    unproven = report.state == State.UNCERTAIN
    few = unproven & (report.age < rules.min_samples)
    if not few.any():
        return ""
    return (
        f"{report.site.name}: {int(few.sum())} of {report.units} units were never open, on "
        f"{int(report.age[few].max())} elements so far; they are judged from {rules.min_samples} on"
    )


def _report(snap: SiteSnapshot, rules: Rules) -> SiteReport:
    units = snap.units
    if not snap.data:
        missing: dict[str, Any] = {name: np.full(units, np.nan) for name in _PER_UNIT}
        state = np.full(units, State.UNSEEN, np.int64)
        return SiteReport(snap.site, 0, state, snap.age, sparsity=np.nan, **missing)
    data = snap.data
    count, finite, out_count = data["count"], data["finite"], data["count"] - data["out_bad"]
    open_fraction = _divide(data["open"], count)
    mean_abs = _divide(data["out_abs"], out_count)
    state = _states(snap, open_fraction, rules)
    return SiteReport(
        site=snap.site,
        samples=snap.samples,
        state=state,
        age=snap.age,
        open_fraction=open_fraction,
        mean=_where(finite, data["mean"]),
        std=np.sqrt(_divide(data["m2"], finite)),
        min=_where(finite, data["min"]),
        max=_where(finite, data["max"]),
        mean_abs=mean_abs,
        mean_out=_divide(data["out_sum"], out_count),
        nonfinite=_where(count, count - finite),
        dormancy=_dormancy(mean_abs),
        sparsity=float(1 - data["open"].sum() / count.sum()) if count.sum() else np.nan,
        harmful=_harmful(state, rules),
    )


_PER_UNIT = (
    *("open_fraction", "mean", "std", "min", "max"),
    *("mean_abs", "mean_out", "nonfinite", "dormancy"),
)


def _states(snap: SiteSnapshot, open_fraction: Floats, rules: Rules) -> Ints:
    if not snap.samples:
        return np.full(snap.units, State.UNSEEN, np.int64)
    data = snap.data
    opened = snap.opened
    unproven = ~opened & (data["suspect"] | (snap.age < rules.min_samples))
    rare = opened & (data["count"] >= rules.min_samples) & (open_fraction < rules.rare_below)
    return np.select(
        [unproven, rare, opened, snap.flat],
        [State.UNCERTAIN, State.RARE, State.ALIVE, State.DEAD],
        State.SATURATED,
    ).astype(np.int64)


def _harmful(state: Ints, rules: Rules) -> bool:
    dead, live = int((state == State.DEAD).sum()), int((state >= State.SATURATED).sum())
    narrow = live < rules.enough_live
    ratio = dead / (dead + live) if dead else 0.0
    return dead > 0 and ratio >= (rules.harmful_ratio_narrow if narrow else rules.harmful_ratio)


def _dormancy(mean_abs: Floats) -> Floats:
    """ReDo's score s_i = E|h_i| / mean_k E|h_k| (Sokar et al. 2023); 0 in a silent layer."""
    if np.isnan(mean_abs).all():
        return mean_abs
    layer = np.nanmean(mean_abs)
    return mean_abs / layer if layer > 0 else np.zeros_like(mean_abs)


def _divide(total: Floats, count: Ints) -> Floats:
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def _where(count: Ints, value: Floats) -> Floats:
    return np.where(count > 0, value, np.nan).astype(np.float64)
