"""Positive bias: units begin, or begin again, on the open side of their gate."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from deadwatch.errors import CannotTreat
from deadwatch.treat.case import Case
from deadwatch.treat.remedies.base import Plan, Remedy, require_number


@dataclass(frozen=True)
class PositiveBias(Remedy):
    """Adds a small positive number to the biases for good (to the norm's β behind a norm).

    Meant as a preventive, for all units at the start of training, ``Policy(…,
    prevent=[PositiveBias(0.1)])``; Goodfellow et al. (2016, section 8.4) suggest 0.1 for ReLU.

    Attributes:
        value: What is added.

    Raises:
        ConfigError: ``value`` is not a positive number.
    """

    value: float = 0.1

    def __post_init__(self) -> None:
        require_number("value", self.value, 1e-12, "what is added to the biases, such as 0.1")

    def plan(self, case: Case) -> Plan:
        """Plan the shift of every unit of the case."""
        gate = case.report.site.gate
        one_sided = gate.high == math.inf or gate.flat  # tanh closes on both sides alike
        if not (gate.inside and gate.low > -math.inf and one_sided):
            raise CannotTreat(f"{case.report.site.activation} does not close towards low inputs")
        bias = case.shift()
        case.require_trainable(bias)
        edit = case.edit(bias, case.rows(bias) + torch.tensor(self.value))
        return Plan(self.name, case.units, (edit,), note=f"{self.value:g} on {bias}")
