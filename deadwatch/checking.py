"""What ``deadwatch scan`` finds out: a model is made, looked at and judged, with nothing shown."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from deadwatch.advising import advise
from deadwatch.errors import DeadwatchError
from deadwatch.factories import FactoryError, Made, load
from deadwatch.judge.advice import Rule, check_ignore, without_ignored
from deadwatch.judge.advice.baseline import Baseline, read_baseline, write_baseline
from deadwatch.judge.advice.rule import all_rules
from deadwatch.records import Finding, WindowReport
from deadwatch.scanning import scan


@dataclass(frozen=True)
class Asked:
    """What a command line asks for.

    Attributes:
        model: ``package.module:factory``.
        batches: ``package.module:batches``, a number, or None; see `deadwatch.factories.load`.
        optimizer: ``package.module:function``, or None.
        ignore: Patterns of findings to leave out.
        baseline: A file of known findings, or None.
    """

    model: str
    batches: str | None = None
    optimizer: str | None = None
    ignore: Sequence[str] = ()
    baseline: Path | None = None


@dataclass(frozen=True, eq=False)
class Checked:
    """What there is to say of a model.

    Attributes:
        report: What was measured; None if no batches were run.
        findings: What is left of the advice.
        kept: What was not ignored, known or not: what a baseline written now would hold.
        ignored: How many findings were ignored.
        gone: What the baseline holds and was not found any more, in words.
        rules: All rules.
        source: The file and the line where the model is made, if known.
    """

    report: WindowReport | None
    findings: list[Finding]
    kept: list[Finding]
    ignored: int
    gone: list[str]
    rules: list[Rule]
    source: tuple[Path, int] | None

    @property
    def known(self) -> int:
        """How many findings were left out since the baseline has them."""
        return len(self.kept) - len(self.findings)


def check(asked: Asked) -> Checked:
    """Make a model, look at it and advise.

    Raises:
        ConfigError: Something is wrong with what was asked.
        FactoryError: The user's own code raised an error.
    """
    ignore = check_ignore(asked.ignore)
    baseline = Baseline({}) if asked.baseline is None else read_baseline(asked.baseline)
    made = load(asked.model, asked.batches, asked.optimizer)
    report = _scanned(made)
    found = advise(made.model, report=report, optimizer=made.optimizer)
    kept = without_ignored(found, ignore)
    left, gone = baseline.new(kept), baseline.gone(found)
    ignored = len(found) - len(kept)
    return Checked(report, left, kept, ignored, gone, all_rules(), made.source)


def _scanned(made: Made) -> WindowReport | None:
    if made.batches is None:
        return None
    try:
        return scan(made.model, made.batches)
    except DeadwatchError:
        raise
    except (Exception, SystemExit) as error:  # of the user's model or data
        raise FactoryError(
            f"running the batches raised {type(error).__name__}: {error}; a batch is given to the "
            "model as deadwatch.scan does it: a mapping as keyword arguments, of a tuple the first"
        ) from error


def remember(path: Path, findings: Sequence[Finding]) -> None:
    """Write these findings as a baseline."""
    write_baseline(path, Baseline.of(findings))
