"""What advice tests share: advice on a model and a batch, by rule."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer

import deadwatch
from deadwatch import Finding, Watch, WindowReport, advise, scan


def advised(model: nn.Module, x: Tensor | None = None, **arguments: Any) -> list[Finding]:
    """Advice on a model, scanned with a batch if there is one."""
    report = None if x is None else scan(model, [x])
    return advise(model, report=report, **arguments)


def by(rule: str, findings: list[Finding]) -> list[Finding]:
    """The findings of one rule."""
    return [finding for finding in findings if finding.id == rule]


def deep(layers: int, width: int, inputs: int = 6) -> nn.Sequential:
    """A chain of ReLU layers."""
    sizes = [inputs, *[width] * layers]
    hidden = [part for a, b in pairwise(sizes) for part in (nn.Linear(a, b), nn.ReLU())]
    return nn.Sequential(*hidden, nn.Linear(width, 3))


def tdnn(first: Callable[[int], nn.Module], then: Callable[[int], nn.Module]) -> nn.Sequential:
    """Time-delay layers (x-vectors): what follows each convolution, in which order."""
    layers: list[nn.Module] = []
    for inputs, outputs in ((8, 16), (16, 16)):
        layers += [nn.Conv1d(inputs, outputs, 3), first(outputs), then(outputs)]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(16, 4))


class Scorer(nn.Module):
    """Attention pooling: a score for each token, softmax over tokens, their weighted sum."""

    def __init__(self, last: nn.Module, units: int = 1) -> None:
        super().__init__()
        self.values = nn.Linear(8, 16)
        self.scores = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, units), last)

    def forward(self, x: Tensor) -> Tensor:
        weights = torch.softmax(self.scores(x) / 2, dim=1)
        pooled: Tensor = (weights * self.values(x)).sum(1)
        return pooled


def signals() -> Tensor:
    return torch.randn(40, 8, 30, generator=torch.Generator().manual_seed(0))


def tokens() -> Tensor:
    return torch.randn(40, 12, 8, generator=torch.Generator().manual_seed(0))


def rows(count: int = 500, features: int = 6) -> Tensor:
    return torch.randn(count, features, generator=torch.Generator().manual_seed(0))


def run_code(finding: Finding, model: nn.Module, **scope: Any) -> None:
    """Run a finding's code as one would who has pasted it."""
    names = {name: getattr(deadwatch, name) for name in deadwatch.__all__}
    exec(finding.code, {**names, "deadwatch": deadwatch, "torch": torch, "model": model, **scope})


def later(report: WindowReport) -> WindowReport:
    """The same as a window in a training that is under way."""
    return replace(report, window=replace(report.window, index=1))


def trained(
    model: nn.Module,
    optimizer: Optimizer,
    *,
    windows: int = 3,
    steps: int = 30,
    data: Callable[[Tensor], Tensor] = lambda x: x,
    penalty: Callable[[int], Tensor] | None = None,
    after: Callable[[int], None] = lambda step: None,
    **arguments: Any,
) -> list[WindowReport]:
    """A training on a teacher's classes, with advice.

    Args:
        model: It takes 12 features, and gives 3 logits.
        optimizer: What trains it.
        windows: How many.
        steps: Of each.
        data: What becomes of a batch of standard normal data.
        penalty: Added to the loss of a step.
        after: Called after each step.
        arguments: For `Watch`.
    """
    source = torch.Generator().manual_seed(1)
    teacher = torch.randn(12, 3, generator=source)
    reports = []
    with Watch(model, optimizer=optimizer, advice=True, **arguments) as watch:
        for step in range(windows * steps):
            x = data(torch.randn(64, 12, generator=source))
            loss = F.cross_entropy(model(x), (x @ teacher).argmax(1))
            loss = loss + penalty(step) if penalty is not None else loss
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            watch.step(loss)
            after(step)
            if step % steps == steps - 1:
                reports.append(watch.close_window())
    return reports


def values(model: nn.Module) -> dict[str, Tensor]:
    """A copy of a model's state dict."""
    return {name: one.detach().clone() for name, one in model.state_dict().items()}


def changed(model: nn.Module, before: dict[str, Tensor]) -> set[str]:
    """The entries of a state dict that are others now, to the bit."""
    now = model.state_dict()
    assert now.keys() == before.keys()
    return {name for name, value in before.items() if not torch.equal(now[name], value)}
