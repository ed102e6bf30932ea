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

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

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
    sites: dict[str, SiteReport] = {}
    for group in _groups(snapshot.sites):
        reports = _reports(group, rules) if _has_units(group[0]) else map(_unseen, group)
        sites |= {report.site.name: report for report in reports}
    notes = tuple(filter(None, (_unproven(report, rules) for report in sites.values())))
    return WindowReport(snapshot.window, sites, notes=notes, gauges=snapshot.gauges)


_TOGETHER = 1 << 14
"""Units that are judged at once: as many as the arrays in between stay in a core's own cache, and
so few that who keeps one site's figures keeps little else."""


def _groups(sites: Iterable[SiteSnapshot]) -> Iterator[list[SiteSnapshot]]:
    """Sites in a row that are judged together, in their order; those without units apart."""
    group: list[SiteSnapshot] = []
    room = _TOGETHER
    for site in sites:
        room -= site.units
        if group and (room < 0 or _has_units(group[0]) != _has_units(site)):
            yield group
            group, room = [], _TOGETHER - site.units
        group.append(site)
    if group:
        yield group


def _has_units(site: SiteSnapshot) -> bool:
    return bool(site.data) and site.units > 0


def _unproven(report: SiteReport, rules: Rules) -> str:
    """What is not known of units that were never open; empty if there are none."""
    few = (report.state == State.UNCERTAIN) & (report.age < rules.min_samples)
    if not few.any():
        return ""
    return (
        f"{report.site.name}: {int(few.sum())} of {report.units} units were never open, on "
        f"{int(report.age[few].max())} elements so far; they are judged from {rules.min_samples} on"
    )


def _unseen(snap: SiteSnapshot) -> SiteReport:
    missing: dict[str, Any] = {name: np.full(snap.units, np.nan) for name in _PER_UNIT}
    state = np.full(snap.units, State.UNSEEN, np.int64)
    return SiteReport(snap.site, 0, state, snap.age, sparsity=np.nan, **missing)


def _reports(group: Sequence[SiteSnapshot], rules: Rules) -> Iterator[SiteReport]:
    """Judge sites whose units lie end to end, in one pass over all of them."""
    units = np.array([snap.units for snap in group])
    ends = np.cumsum(units)
    data = {name: _joined([snap.data[name] for snap in group]) for name in group[0].data}
    figures = _figures(data, units, ends - units)
    state = _states(group, units, data, figures["open_fraction"], rules)
    per_site = partial(np.add.reduceat, indices=ends - units)
    opened, looked = per_site(data["open"]).tolist(), per_site(data["count"]).tolist()
    dead = per_site(state == State.DEAD, dtype=np.int64).tolist()
    live = per_site(state >= State.SATURATED, dtype=np.int64).tolist()
    for index, (snap, end) in enumerate(zip(group, ends.tolist(), strict=True)):
        own = slice(end - snap.units, end)
        yield SiteReport(
            site=snap.site,
            samples=snap.samples,
            state=state[own],
            age=snap.age,
            sparsity=1 - opened[index] / looked[index] if looked[index] else np.nan,
            harmful=_harmful(dead[index], live[index], rules),
            **{name: values[own] for name, values in figures.items()},
        )


def _joined(arrays: list[npt.NDArray[Any]]) -> npt.NDArray[Any]:
    return arrays[0] if len(arrays) == 1 else np.concatenate(arrays)


_PER_UNIT = (
    *("open_fraction", "mean", "std", "min", "max"),
    *("mean_abs", "mean_out", "nonfinite", "dormancy"),
)


def _figures(data: Mapping[str, npt.NDArray[Any]], units: Ints, starts: Ints) -> dict[str, Floats]:
    """The figures of every unit, by name, of sites with ``units`` units from ``starts`` on."""
    count, finite, out_count = data["count"], data["finite"], data["count"] - data["out_bad"]
    mean_abs = _divide(data["out_abs"], out_count)
    return {
        "open_fraction": _divide(data["open"], count),
        "mean": _where(finite, data["mean"]),
        "std": np.sqrt(_divide(data["m2"], finite)),
        "min": _where(finite, data["min"]),
        "max": _where(finite, data["max"]),
        "mean_abs": mean_abs,
        "mean_out": _divide(data["out_sum"], out_count),
        "nonfinite": _where(count, count - finite),
        "dormancy": _dormancy(mean_abs, units, starts),
    }


def _states(
    group: Sequence[SiteSnapshot],
    units: Ints,
    data: Mapping[str, npt.NDArray[Any]],
    open_fraction: Floats,
    rules: Rules,
) -> Ints:
    opened = _joined([snap.opened for snap in group])
    age, flat = _joined([snap.age for snap in group]), _joined([snap.flat for snap in group])
    unproven = ~opened & (data["suspect"] | (age < rules.min_samples))
    rare = opened & (data["count"] >= rules.min_samples) & (open_fraction < rules.rare_below)
    state = np.where(flat, State.DEAD, State.SATURATED)
    state[opened] = State.ALIVE
    state[rare] = State.RARE
    state[unproven] = State.UNCERTAIN
    state[np.repeat([not snap.samples for snap in group], units)] = State.UNSEEN
    return state.astype(np.int64, copy=False)


def _harmful(dead: int, live: int, rules: Rules) -> bool:
    narrow = live < rules.enough_live
    ratio = dead / (dead + live) if dead else 0.0
    return dead > 0 and ratio >= (rules.harmful_ratio_narrow if narrow else rules.harmful_ratio)


def _dormancy(mean_abs: Floats, units: Ints, starts: Ints) -> Floats:
    """ReDo's score s_i = E|h_i| / mean_k E|h_k| (Sokar et al. 2023); 0 in a silent layer."""
    known = ~np.isnan(mean_abs)
    sizes, spans = np.where(known, mean_abs, 0), zip(starts, units, strict=True)
    # Not by `reduceat`, which rounds otherwise: a site's figures do not depend on its neighbours.
    total = np.array([sizes[start : start + n].sum() for start, n in spans])
    layer = np.repeat(_divide(total, np.add.reduceat(known, starts, dtype=np.int64)), units)
    with np.errstate(invalid="ignore"):  # the sums of values that explode are infinite
        return np.divide(mean_abs, layer, out=np.zeros_like(mean_abs), where=layer != 0)


def _divide(total: Floats, count: Ints) -> Floats:
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def _where(count: Ints, value: Floats) -> Floats:
    return np.where(count > 0, value, np.nan).astype(np.float64, copy=False)
