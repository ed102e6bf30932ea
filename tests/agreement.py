"""Trains a setting's model with an oracle, a watch or nothing on it, and compares the two."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from deadwatch import Rules, State, Watch
from deadwatch.errors import AmbiguousUnitDimWarning, UnseenSiteWarning
from deadwatch.records import SiteReport, WindowReport
from tests.oracle import Kept, Oracle
from tests.setting import Setting

STEPS = 3


@contextmanager
def one_thread() -> Iterator[None]:
    """On tensors this small threads only wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def train(setting: Setting, model: nn.Module, call: Any = None, watch: Any = None) -> list[Tensor]:
    """A few steps of SGD: every output and gradient, and the weights at the end.

    Args:
        setting: What to train.
        model: Its model.
        call: What to call instead of the model: the compiled model.
        watch: Told of every step.
    """
    torch.manual_seed(1)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4)
    seen = []
    called = model if call is None else call
    for step in range(STEPS):
        optimizer.zero_grad()
        seen.append(setting.run(called, setting.next_batch(), step).detach().clone())
        seen += [p.grad.clone() for p in model.parameters() if p.grad is not None]
        optimizer.step()
        if watch is not None:
            watch.step()
    return seen + [p.detach().clone() for p in model.parameters()]


@dataclass(frozen=True)
class Observed:
    """What a watch found, what it warned of, and what training came to."""

    report: WindowReport
    warned: list[warnings.WarningMessage]
    tensors: list[Tensor]

    @property
    def seen(self) -> set[str]:
        return {name for name, site in self.report.items() if site.samples}

    @property
    def unseen(self) -> set[str]:
        return set(self.report) - self.seen

    def guesses(self) -> list[str]:
        return [str(w.message) for w in self.warned if w.category is AmbiguousUnitDimWarning]

    def other_warnings(self, of: type[Warning] = Warning) -> list[str]:
        expected = (AmbiguousUnitDimWarning, UnseenSiteWarning)
        others = [w for w in self.warned if not issubclass(w.category, expected)]
        return [str(w.message) for w in others if issubclass(w.category, of)]


def observe(setting: Setting, model: nn.Module, call: Any = None) -> Observed:
    watch = Watch(model, stats_every_n_steps=1, rules=Rules(min_samples=1))
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        with watch:
            tensors = train(setting, model, call, watch)
            report = watch.close_window()
    return Observed(report, warned, tensors)


@cache
def truth(setting_name: str) -> dict[str, Kept]:
    """What the oracle hears in a run of its own."""
    from tests.table import BY_NAME

    setting = BY_NAME[setting_name]
    model = setting.model()
    with Oracle(model, setting.dims, setting.own) as oracle:
        train(setting, model)
    return oracle.kept


def assert_same_counts(site: SiteReport, kept: Kept) -> None:
    """Samples, units, axis, gates and deaths, exactly."""
    opened = kept.open
    assert (site.samples, site.units) == kept.z.shape
    assert site.site.unit_dim == kept.dim
    np.testing.assert_array_equal(site.open_fraction, opened.sum(0) / len(opened))
    closed = State.DEAD if kept.flat else State.SATURATED
    np.testing.assert_array_equal(site.state == closed, ~opened.any(0))
    np.testing.assert_array_equal(site.dead, ~opened.any(0) & kept.flat)
    np.testing.assert_allclose(site.sparsity, 1 - opened.mean(), rtol=1e-12, atol=1e-15)


def assert_same_moments(site: SiteReport, kept: Kept, tolerance: float) -> None:
    """Statistics of pre-activation and output, to within ``tolerance`` of their scale."""
    z, h = kept.z, kept.h
    for got, expected, scale in (
        (site.mean, z.mean(0), np.abs(z).max()),
        (site.std, z.std(0), np.abs(z).max()),
        (site.mean_abs, np.abs(h).mean(0), np.abs(h).max()),
        (site.mean_out, h.mean(0), np.abs(h).max()),
        (site.dormancy, np.abs(h).mean(0) / np.abs(h).mean(), 1.0),
    ):
        np.testing.assert_allclose(got, expected, rtol=tolerance, atol=tolerance * min(1, scale))
    assert not site.nonfinite.any()
