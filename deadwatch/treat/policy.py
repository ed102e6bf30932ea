"""When to treat, and with what."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from deadwatch.errors import ConfigError
from deadwatch.records import Bools, SiteReport, State, WindowReport
from deadwatch.treat.remedies.base import Remedy, require_number
from deadwatch.treat.remedies.preventive import Preventive
from deadwatch.treat.remedies.recycle import Recycle
from deadwatch.treat.remedies.revive import Revive

DORMANT = 0.025
"""ReDo's τ: a unit is dormant at this share of the layer's mean output or below."""


@dataclass(frozen=True)
class Policy:
    """Treats the dead units of every site that reaches a threshold.

    To decide by a rule of your own which units are called for, derive from it and override `due`.

    Attributes:
        then: One remedy, or a ladder: a unit's first death is met with the first remedy, each
            further death with the next, and the last is repeated. A remedy that does not apply
            is passed over.
        when: Ratio, from 0 to 1, at which a site is treated; None for where the dead units do
            harm (`SiteReport.harmful`). Sites below it are left alone, and the report says so.
        measure: What is counted and treated: ``"dead"`` units; ``"saturated"`` ones, whose gate
            was never open either; or ``"dormant"`` ones, whose mean output is at most 2.5% of the
            layer's (ReDo, Sokar et al. 2023). Rare units are none of these.
        scope: Whether the ratio is that of the ``"site"``, or of the ``"model"`` over all sites.
        patience: Windows in a row for which the ratio must hold.
        cooldown: Windows to leave a site alone after a treatment.
        warmup: Training steps before the first treatment.
        until: Training step after which nothing is treated; as a float, the share of the run, of
            which Lightning knows the length, and `Watch` if it is told ``total_steps``.
        budget: Share of a site's units that is treated at once at the most; those dead the longest
            come first. At least one is treated.
        per_unit: Treatments that a unit gets at the most; None for no limit.
        control: Share of each site's units that is never treated, so that units which come back by
            themselves are not credited to a remedy. Drawn once a run, followed in the ledger.
        guard: Whether a treatment is undone, and its remedy put on hold, if the training loss
            leaves its band. `Watch.step` has to be given the loss; Lightning's is taken.
        prevent: What is applied once, after the first training step: preventives, or remedies, to
            all units of every site.

    Raises:
        ConfigError: A value is out of its range, or ``then`` holds no remedy.
    """

    then: Remedy | Sequence[Remedy]
    when: float | None = None
    measure: Literal["dead", "saturated", "dormant"] = "dead"
    scope: Literal["site", "model"] = "site"
    patience: int = 1
    cooldown: int = 1
    warmup: int = 0
    until: float | None = None
    budget: float = 1.0
    per_unit: int | None = None
    control: float = 0.0
    guard: bool = True
    prevent: Sequence[Preventive | Remedy] | Preventive | Remedy = ()

    def __post_init__(self) -> None:
        self._check_trigger()
        require_number("patience", self.patience, 1, "windows in a row", whole=True)
        require_number("cooldown", self.cooldown, 0, "windows without treatment", whole=True)
        require_number("warmup", self.warmup, 0, "training steps", whole=True)
        if self.per_unit is not None:
            require_number("per_unit", self.per_unit, 1, "treatments, or None", whole=True)
        self._check_until()
        _require_share("budget", self.budget, 0 < _float(self.budget) <= 1)
        _require_share("control", self.control, 0 <= _float(self.control) < 1)
        if not isinstance(self.guard, bool):
            raise ConfigError(f"guard is {self.guard!r}; expected True or False")
        _require_all("then", self.then, Remedy, "a remedy such as Recycle()", some=True)
        preventives = (Preventive, Remedy)
        _require_all("prevent", self.prevent, preventives, "a preventive such as PositiveBias()")

    def _check_trigger(self) -> None:
        if self.when is not None and not 0 <= _float(self.when) <= 1:
            raise ConfigError(
                f"when is {self.when!r}; expected a dead ratio between 0 and 1, such as 0.1 "
                "to treat a layer once a tenth of its units are dead, or None for where they do "
                "harm"
            )
        if self.measure not in ("dead", "saturated", "dormant"):
            raise ConfigError(
                f"measure is {self.measure!r}; expected 'dead', 'saturated' or 'dormant'"
            )
        if self.scope not in ("site", "model"):
            raise ConfigError(f"scope is {self.scope!r}; expected 'site' or 'model'")
        if self.when is None and (self.measure != "dead" or self.scope != "site"):
            raise ConfigError(
                "when is None, and where units do harm is known of the dead units of a site only; "
                f"give a ratio for measure={self.measure!r}, scope={self.scope!r}"
            )

    def _check_until(self) -> None:
        if self.until is None or (type(self.until) is int and self.until >= 0):
            return
        if type(self.until) is not float or not 0 < self.until <= 1:
            raise ConfigError(
                f"until is {self.until!r}; expected a training step, or a share of the run between "
                "0.0 and 1.0"
            )

    @property
    def ladder(self) -> tuple[Remedy, ...]:
        """The remedies in order of escalation."""
        return (self.then,) if isinstance(self.then, Remedy) else tuple(self.then)

    def due(self, site: SiteReport, window: WindowReport) -> Bools:
        """Which units of a site are called for treatment by a window's verdict (C,).

        `patience`, `cooldown` and all limits are applied to the answer.
        """
        ill = self._ill(site)
        if self.when is None:
            return ill & site.harmful
        reports = [site] if self.scope == "site" else list(window.sites.values())
        judged = sum(report.judged for report in reports)
        count = sum(int(self._ill(report).sum()) for report in reports)
        reached = judged > 0 and count >= self.when * judged
        due: Bools = ill & reached
        return due

    def _ill(self, site: SiteReport) -> Bools:
        if self.measure == "dead":
            return site.dead
        never_open: Bools = (site.state == State.DEAD) | (site.state == State.SATURATED)
        if self.measure == "saturated":
            return never_open
        still: Bools = np.nan_to_num(site.dormancy, nan=np.inf) <= DORMANT
        dormant: Bools = still & (never_open | (site.state == State.ALIVE))
        return dormant

    def spared(self, site: SiteReport) -> str:
        """Why the dead units of a site are left alone; empty if there is nothing to tell."""
        if self.when is not None or site.harmful or not site.dead.any():
            return ""
        return (
            f"{site.site.name}: {int(site.dead.sum())} of {site.judged} units are dead and left "
            f"alone; measurement finds no harm in that"
        )

    def ended(self, step: int, total: int | None) -> bool:
        """Whether nothing is treated any more at a step of ``total`` (None if unknown)."""
        if self.until is None or isinstance(self.until, int):
            return self.until is not None and step > self.until
        return total is not None and step > self.until * total


def _float(value: object) -> float:
    """A number as it is; NaN, which lies in no range, for anything else."""
    return float(value) if type(value) in (int, float) else float("nan")  # type: ignore[arg-type]


def _require_share(name: str, value: object, fits: bool) -> None:
    if not fits:
        raise ConfigError(f"{name} is {value!r}; expected a share of a site's units, such as 0.25")


def _require_all(
    name: str,
    given: object,
    kind: type | tuple[type, ...],
    example: str,
    *,
    some: bool = False,
) -> None:
    several = given if isinstance(given, (list, tuple)) else [given]
    if (some and not several) or not all(isinstance(one, kind) for one in several):
        raise ConfigError(
            f"{name} is {given!r}; expected {example} (with its parentheses), or several in a list"
        )


PRESETS: dict[str, Policy | None] = {
    "watch": None,
    # Only layers that are badly hit, and only when it lasts.
    "gentle": Policy(Recycle(), when=0.3, patience=2, cooldown=2, until=0.95),
    # Wherever dead units do harm, by how deep each lies; what dies again is recycled.
    "revive": Policy((Revive(), Recycle()), until=0.95),
}
"""Policies by name; every remedy in them is quiet where its readers are known."""


def resolve(policy: Policy | str | None) -> Policy | None:
    """A policy from what the user gave.

    Raises:
        ConfigError: It is neither a policy nor the name of one.
    """
    if policy is None or isinstance(policy, Policy):
        return policy
    if isinstance(policy, str) and policy in PRESETS:
        return PRESETS[policy]
    names = ", ".join(repr(name) for name in PRESETS)
    hint = f"; wrap the remedy: Policy({policy!r})" if isinstance(policy, Remedy) else ""
    raise ConfigError(
        f"policy is {policy!r}; expected one of {names}, a deadwatch.Policy, or None to only "
        f"watch{hint}"
    )
