"""Helpers to treat a small trained network and to see exactly what a treatment changed."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from deadwatch import Policy, Remedy, Rules, Watch, WindowReport
from tests.nets import conv, images, mlp, vectors

DEAD = [0, 1, 2]  # units of the first activation that every `Patient` has killed


@dataclass
class Patient:
    """A network, its optimizer, and data on which three units are dead."""

    model: nn.Sequential
    optimizer: Optimizer
    x: Tensor
    site: str

    @classmethod
    def of(
        cls,
        kind: str = "mlp",
        optimizer: Callable[[Any], Optimizer] = lambda p: torch.optim.Adam(p, lr=1e-2),
        dtype: torch.dtype = torch.float32,
        act: Callable[[], nn.Module] = nn.ReLU,
        dead: list[int] = DEAD,
        depth: float = 30.0,
    ) -> Patient:
        torch.manual_seed(0)
        model = {"mlp": lambda: mlp(act), "conv": lambda: conv(2), "norm": lambda: conv(2, True)}[
            kind
        ]()
        model = model.to(dtype)
        x = (vectors() if kind == "mlp" else images(2, 40)).to(dtype)
        patient = cls(model, optimizer(model.parameters()), x, "2" if kind == "norm" else "1")
        patient.train(3)  # so that there is optimizer state
        killed = model[1] if kind == "norm" else model[0]
        with torch.no_grad():
            killed.bias[dead] -= depth
        patient.train(1)
        return patient

    def train(self, steps: int, watch: Watch | None = None) -> None:
        for _ in range(steps):
            self.optimizer.zero_grad()
            self.model(self.x).float().square().mean().backward()
            self.optimizer.step()
            if watch is not None:
                watch.step()

    def watch(self, *remedies: Remedy, **policy: Any) -> Watch:
        return Watch(
            self.model,
            optimizer=self.optimizer,
            policy=Policy(remedies, **policy),
            rules=Rules(min_samples=1),
            include=self.site,
        )

    def treated(self, *remedies: Remedy, **policy: Any) -> tuple[WindowReport, Watch]:
        """Look at the data once and treat; the parameters change by the treatment alone."""
        watch = self.watch(*remedies, **policy).attach()
        self.model(self.x)
        report = watch.close_window()
        return report, watch

    def tensors(self) -> dict[str, Tensor]:
        """All parameters, buffers and per-element optimizer state, copied."""
        found = {name: value.clone() for name, value in self.model.state_dict().items()}
        for name, parameter in self.model.named_parameters():
            for key, value in self.optimizer.state.get(parameter, {}).items():
                if isinstance(value, Tensor):
                    found[f"{name}:{key}"] = value.clone()
        return copy.deepcopy(found)


def changed(before: dict[str, Tensor], after: dict[str, Tensor]) -> dict[str, np.ndarray[Any, Any]]:
    """Which elements changed, by tensor; tensors without a change are left out."""
    assert before.keys() <= after.keys()
    differs = {name: (after[name] != before[name]).numpy() for name in before}
    return {name: mask for name, mask in differs.items() if mask.any()}


def rows(mask: np.ndarray[Any, Any], axis: int = 0) -> list[int]:
    """Slices along an axis in which anything changed."""
    others = tuple(d for d in range(mask.ndim) if d != axis)
    return list(np.flatnonzero(mask.any(axis=others)))


def refused(model: nn.Module, x: Tensor, remedy: Remedy, site: str = "1") -> str:
    """The reason for which a remedy does not treat a site; asserts that nothing changed."""
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    watch = Watch(
        model,
        optimizer=optimizer,
        policy=Policy(remedy, when=0.0),
        rules=Rules(min_samples=1),
        include=site.removesuffix("-2"),
    )
    with watch:
        model(x)
        before = copy.deepcopy(model.state_dict())
        report = watch.close_window()
    after = model.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert not report.treatments
    (refusal,) = [refusal for refusal in report.refusals if refusal.site == site]
    return refusal.reason


def dead_chain(*middle: nn.Module, last: nn.Module | None = None) -> nn.Sequential:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 6), *middle, nn.ReLU(), last or nn.Linear(6, 3))
    with torch.no_grad():
        model[len(middle)].bias[0] = -99
    return model


X = torch.randn(50, 6, generator=torch.Generator().manual_seed(1))
