"""When to treat, and with what."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from deadwatch.errors import ConfigError
from deadwatch.treat.remedies import BiasWarming, Recycle
from deadwatch.treat.remedies.base import Remedy, require_number


@dataclass(frozen=True)
class Policy:
    """Treats the dead units of every site whose dead ratio reaches a threshold.

    Attributes:
        then: One remedy, or a ladder: a unit's first death is met with the first remedy, each
            further death with the next, and the last is repeated. A remedy that does not apply
            is passed over.
        when: Dead ratio of a site, from 0 to 1, at which it is treated.
        patience: Windows in a row for which the ratio must hold.
        cooldown: Windows to leave a site alone after a treatment.

    Raises:
        ConfigError: A value is out of its range, or ``then`` holds no remedy.
    """

    then: Remedy | Sequence[Remedy]
    when: float = 0.1
    patience: int = 1
    cooldown: int = 1

    def __post_init__(self) -> None:
        if isinstance(self.when, bool) or not isinstance(self.when, (int, float)):
            raise ConfigError(f"when is {self.when!r}; expected a dead ratio between 0 and 1")
        if not 0 <= self.when <= 1:
            raise ConfigError(
                f"when is {self.when!r}; expected a dead ratio between 0 and 1, such as 0.1 "
                "to treat a layer once a tenth of its units are dead"
            )
        require_number("patience", self.patience, 1, "windows in a row", whole=True)
        require_number("cooldown", self.cooldown, 0, "windows without treatment", whole=True)
        given = self.then if isinstance(self.then, (list, tuple)) else [self.then]
        if not given or not all(isinstance(remedy, Remedy) for remedy in given):
            raise ConfigError(
                f"then is {self.then!r}; expected a remedy such as Recycle() (with its "
                "parentheses), or several in a list"
            )

    @property
    def ladder(self) -> tuple[Remedy, ...]:
        """The remedies in order of escalation."""
        return (self.then,) if isinstance(self.then, Remedy) else tuple(self.then)


PRESETS: dict[str, Policy | None] = {
    "watch": None,
    # Only layers that are badly hit, and only when it lasts.
    "gentle": Policy(Recycle(), when=0.3, patience=2, cooldown=2),
    # Shallow deaths are warmed and deep ones recycled; what dies again is recycled.
    "ladder": Policy((BiasWarming(hold=0, anneal=100, deepest=0.5, quiet=True), Recycle())),
}
"""Policies by name; every remedy in them is quiet."""


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
