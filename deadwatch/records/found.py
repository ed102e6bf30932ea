"""What advice says: findings, each with its evidence, its reason and a fix."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from deadwatch.errors import CannotTreat

Severity = Literal["info", "warning", "error"]

SEVERITIES: tuple[Severity, ...] = ("info", "warning", "error")
"""From what is worth knowing to what certainly costs something."""


@dataclass(frozen=True)
class Finding:
    """One thing that lets units die, or that dead units cost, and what to do about it.

    Attributes:
        id: Stable id of the rule that found it, such as ``"DW101"``; see ``docs/rules.md``.
        severity: ``"info"``, ``"warning"`` or ``"error"``.
        where: The sites or parameters concerned.
        title: What the rule is about, in a few words.
        message: What was found, in a sentence with its numbers.
        numbers: The numbers of the evidence, by name.
        reason: Why it matters.
        source: Where that is known from: a paper, or a measurement of this project's.
        code: The fix, as code to paste; empty if there is none.
    """

    id: str
    severity: Severity
    where: tuple[str, ...]
    title: str
    message: str
    numbers: Mapping[str, float] = field(default_factory=dict)
    reason: str = ""
    source: str = ""
    code: str = ""

    def __str__(self) -> str:
        return f"{self.id} {self.severity}: {self.message}"

    @property
    def fixable(self) -> bool:
        """Whether `fix` can apply the fix."""
        return self._fixer is not None

    def fix(self) -> str:
        """Apply the fix to the model or optimizer that the advice was about.

        Returns:
            What was done, in a few words.

        Raises:
            CannotTreat: There is nothing that could be applied; the message says what to do.
        """
        if self._fixer is None:
            way = f"paste this instead:\n{self.code}" if self.code else "it needs none"
            raise CannotTreat(
                f"{self.id} cannot be fixed from here (its rule takes an edit of your code, or the "
                f"finding is of a run that goes on, or was saved, and has no model): {way}"
            )
        return self._fixer()

    def fixed_by(self, fixer: Callable[[], str]) -> Finding:
        """The same finding, with a way to apply its fix; no copy or pickle takes that along."""
        other = Finding(**{name: getattr(self, name) for name in self.__dataclass_fields__})
        other.__dict__["_fix"] = fixer
        return other

    @property
    def _fixer(self) -> Callable[[], str] | None:
        found: Callable[[], str] | None = self.__dict__.get("_fix")
        return found

    def __getstate__(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.__dataclass_fields__}

    def at_least(self, severity: Severity) -> bool:
        """Whether it is as severe as that."""
        return SEVERITIES.index(self.severity) >= SEVERITIES.index(severity)
