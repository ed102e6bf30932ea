"""Advice on a model: why units die here, and how to keep them alive."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import nn
from torch.nn.parameter import is_lazy
from torch.optim import Optimizer

from deadwatch.activations import readable
from deadwatch.errors import AdviceFailedWarning, ConfigError
from deadwatch.judge.advice import (
    Facts,
    check_ignore,
    findings,
    most_severe_first,
    without_ignored,
)
from deadwatch.judge.history import History
from deadwatch.observe.parameters import parameters_of
from deadwatch.observe.sequences import sequences
from deadwatch.observe.sites import unwrapped
from deadwatch.plain import from_plain, to_plain
from deadwatch.records import Finding, Site, WindowReport, Wire
from deadwatch.settings import optimizers_of
from deadwatch.treat.mending import mendable
from deadwatch.treat.optim import hypers


def advise(
    model: nn.Module,
    *,
    report: WindowReport | None = None,
    optimizer: Optimizer | Iterable[Optimizer] | None = None,
    ignore: Sequence[str] = (),
) -> list[Finding]:
    """Say what lets units die in a model, what dead ones cost, and what to do about it.

    Args:
        model: The model, as it is or wrapped in DDP or by `torch.compile`; never changed.
        report: What was measured of it: by `scan`, or by ``Watch(…, advice=True)``, whose windows
            know how units died. Without one, only what its parameters and the order within its
            ``nn.Sequential`` parts show is known.
        optimizer: The optimizer or optimizers that train it.
        ignore: Patterns of findings to leave out: ids (``"DW203"``), or ids at sites or parameters
            (``"DW1*@head.*"``).

    Returns:
        The findings, the most severe first. `Finding.fix` applies a fix where that can be done.

    Raises:
        ConfigError: An argument is wrong.

    Example:
        >>> for finding in advise(model, report=scan(model, [x]), optimizer=optimizer):
        ...     print(finding)
    """
    if not isinstance(model, nn.Module):
        raise ConfigError(f"model is {type(model).__name__!r}; expected a torch.nn.Module")
    if report is not None and not isinstance(report, WindowReport):
        raise ConfigError(
            f"report is {type(report).__name__!r}; expected the WindowReport that scan(model, …) "
            "or watch.close_window() returned"
        )
    ignore = check_ignore(ignore)
    model, optimizers = unwrapped(model), optimizers_of(optimizer)
    _check_fits(model, report)
    return _findings(model, report, optimizers, ignore, trained=_is_trained(report))


def _check_fits(model: nn.Module, report: WindowReport | None) -> None:
    """Refuse a report of another model: what it says of weights would be told of these."""
    shapes = {readable(n): tuple(p.shape) for n, p in model.named_parameters() if not is_lazy(p)}
    sites = () if report is None else tuple(one.site for one in report.values())
    for wire in (wire for site in sites for wire in (*site.producers, *site.consumers)):
        name = readable(wire.weight or "")
        shape = shapes.get(name)
        if wire.weight is None or (shape and len(shape) != len(wire.shape)):  # or as it is sharded
            continue
        if shape is None or (0 not in shape and shape != wire.shape):
            has = "has no such weight" if shape is None else f"has one of shape {shape}"
            raise ConfigError(
                f"the report knows a weight {name!r} of shape {wire.shape}, and the model {has}; "
                "expected a report of this model as it is now: scan it again"
            )


def _findings(
    model: nn.Module,
    report: WindowReport | None,
    optimizers: tuple[Optimizer, ...],
    ignore: Sequence[str],
    *,
    trained: bool,
) -> list[Finding]:
    report = _readably(report) if report is not None else None
    measured = () if report is None else tuple(one.site for one in report.values())
    sites = tuple(map(_named, sequences(model))) if report is None else measured
    fresh = report is None or report.window.index == 0
    facts = Facts(sites, parameters_of(model, hypers(optimizers)), report, fresh, trained)
    found = without_ignored(findings(facts), ignore)
    fixers = [(one, mendable(one, model, optimizers)) for one in found]
    return [one if fixer is None else one.fixed_by(fixer) for one, fixer in fixers]


def _is_trained(report: WindowReport | None) -> bool:
    """Whether a report is of a training; what `scan` has measured has gauges, and none of steps."""
    if report is None:
        return False
    gauges = report.gauges
    stepped = gauges is None or bool(gauges.updates or gauges.gradients or gauges.rates)
    return stepped or report.window.index > 0


def _readably(report: WindowReport) -> WindowReport:
    """A report whose wires have names without what `torch.compile` adds, as all else has them."""
    sites = {name: replace(one, site=_named(one.site)) for name, one in report.sites.items()}
    return replace(report, sites=sites)


def _named(site: Site) -> Site:
    if not any("_orig_mod" in name for w in (*site.producers, *site.consumers) for name in w.names):
        return site
    return replace(
        site,
        producers=tuple(map(_wire, site.producers)),
        consumers=tuple(map(_wire, site.consumers)),
        known_consumers=tuple(map(_wire, site.known_consumers)),
    )


def _wire(wire: Wire) -> Wire:
    weight, bias = (name and readable(name) for name in (wire.weight, wire.bias))
    return replace(wire, weight=weight, bias=bias)


class Adviser:
    """Adds to each window of a run how its dead units died, and what advice there is.

    Args:
        model: The model, unwrapped.
        optimizers: The optimizers that train it.
        ignore: Patterns of findings to leave out, checked.
        enabled: Whether there is to be any advice.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizers: tuple[Optimizer, ...],
        ignore: Sequence[str],
        *,
        enabled: bool,
    ) -> None:
        self._model = model
        self._optimizers = optimizers
        self._ignore = tuple(ignore)
        self._history = History()
        self._first: tuple[Finding, ...] = ()
        self.enabled = enabled

    def begin(self, report: WindowReport) -> None:
        """Take in what makes the units in the first step, and how that was initialised."""
        try:
            if report.gauges is not None:
                self._history.begin(report.gauges.rows)
            found = self._found(report, trained=False)
            # As it was found, and not to be mended any more: by now it is being trained.
            self._first = tuple(replace(one) for one in found if one.id in ("DW201", "DW202"))
        except Exception as error:  # never break training
            self._give_up(error)

    def interrupt(self) -> None:
        """Take in that treatments have changed weights."""
        self._history.interrupt()

    def advise(self, report: WindowReport) -> WindowReport:
        """The report of a window, with deaths and findings; as it was if finding them fails."""
        if not self.enabled:
            return report
        try:
            told = replace(report, deaths=self._history.follow(report))
            found = most_severe_first((*self._begun(report), *self._found(told, trained=True)))
            return replace(told, findings=tuple(found), advised=True)
        except Exception as error:  # as above
            self._give_up(error)
            return report

    def _begun(self, report: WindowReport) -> tuple[Finding, ...]:
        """How weights were initialised; low biases matter no more where too few units are dead."""
        hurt = {w.bias for s in report.values() if s.harmful for w in s.site.producers}
        over = [one.id == "DW201" and not hurt.intersection(one.where) for one in self._first]
        found = zip(self._first, over, strict=True)
        return tuple(replace(one, severity="info") if past else one for one, past in found)

    def _found(self, report: WindowReport, *, trained: bool) -> list[Finding]:
        of_run = self._model, report, self._optimizers, self._ignore
        return _findings(*of_run, trained=trained)

    def _give_up(self, error: Exception) -> None:
        self.enabled = False
        warnings.warn(
            f"advice failed and is given up; watching goes on. {type(error).__name__}: {error}",
            AdviceFailedWarning,
            stacklevel=4,
        )

    def state_dict(self) -> dict[str, Any] | None:
        """Plain values to go on from; None if there is no advice."""
        if not self.enabled:
            return None
        return {"history": self._history.state_dict(), "first": to_plain(self._first)}

    def load_state_dict(self, state: Mapping[str, Any] | None) -> None:
        """Go on from a `state_dict`."""
        if state is not None:
            self._history.load_state_dict(state["history"])
            self._first = from_plain(tuple[Finding, ...], state["first"])
