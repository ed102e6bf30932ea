"""Revive: shallow deaths are warmed, deep ones start again."""

from __future__ import annotations

from dataclasses import dataclass

from deadwatch.errors import CannotTreat
from deadwatch.treat.case import Case
from deadwatch.treat.remedies.base import Plan, Remedy, require_number
from deadwatch.treat.remedies.bias_warming import BiasWarming
from deadwatch.treat.remedies.recycle import Recycle
from deadwatch.treat.remedies.restandardize import Restandardize


@dataclass(frozen=True)
class Revive(Remedy):
    """Chooses for each unit by how deep it lies below its gate; quiet where its readers are known.

    A unit that a γ of at most ``shallow`` standard deviations of the live units' pre-activations
    opens is warmed in a closed loop and keeps what it has learned. A deeper one is recycled, or
    re-standardised where a norm or a tied layer forbids new rows. Sites are treated in the order
    of the data, so that behind a wholly dead layer, where nothing is to be measured, units are
    recycled as well.

    Attributes:
        shallow: Depth up to which units are warmed, in live standard deviations.
        anneal: Training steps over which γ returns to zero at the fastest.

    Raises:
        ConfigError: A value is out of its range.
    """

    shallow: float = 0.5
    anneal: int = 100

    def __post_init__(self) -> None:
        require_number("shallow", self.shallow, 1e-6, "live standard deviations")
        require_number("anneal", self.anneal, 1, "training steps", whole=True)

    @property
    def parts(self) -> tuple[Remedy, ...]:
        """A quiet warming in closed loop, and what takes the deeper deaths."""
        warming = BiasWarming(
            hold=0,
            anneal=self.anneal,
            schedule="closed-loop",
            deepest=self.shallow,
            quiet=True,
        )
        return (warming, Recycle(), Restandardize(quiet=True))

    def plan(self, case: Case) -> Plan:
        """Not planned as a whole: each part plans for the units that are left."""
        raise CannotTreat("it is applied part by part")
