"""Advice on a model: why units die here, and how to keep them alive."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from torch import nn
from torch.optim import Optimizer

from deadwatch.errors import ConfigError
from deadwatch.judge.advice import Facts, check_ignore, findings, without_ignored
from deadwatch.observe.parameters import parameters_of
from deadwatch.observe.sequences import sequences
from deadwatch.observe.sites import unwrapped
from deadwatch.records import Finding, WindowReport
from deadwatch.settings import optimizers_of
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
        report: What was measured of it: by `scan`, or the last one of a `Watch`. Without one, only
            what its parameters and the order within its ``nn.Sequential`` parts show is known.
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
    if report is None:
        sites = sequences(model)
    else:
        sites = tuple(one.site for one in report.values())
    fresh = report is None or report.window.index == 0
    facts = Facts(sites, parameters_of(model, hypers(optimizers)), report, fresh)
    return without_ignored(findings(facts), ignore)
