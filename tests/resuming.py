"""Runs that are interrupted and resumed, and what they left, compared bit for bit."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim import Optimizer

from deadwatch import Policy, Rules, Watch, WindowReport, restore
from deadwatch.plain import from_plain, to_plain

STEPS, WINDOW = 14, 4
EVENTS = [
    event
    for step in range(1, STEPS + 1)
    for event in (("train",) if step % WINDOW else ("train", "judge", "treat"))
]
"""What happens in a run, one after another; it can be interrupted after each."""


def through_a_file(value: Any) -> Any:
    """What is left of a value that was saved and read back, as suspiciously as torch can."""
    buffer = io.BytesIO()
    torch.save(value, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=True)


@dataclass
class Setup:
    """A model, its optimizer and a policy, made anew for every process of a run."""

    model: Callable[[], nn.Module]
    policy: Callable[[], Policy | None] = lambda: None
    optimizer: Callable[[Any], Optimizer] = lambda p: torch.optim.Adam(p, lr=1e-2)
    batch: tuple[int, ...] = (8, 12)
    salt: int = 0
    loss: Callable[[int, Tensor], Tensor] = lambda step, loss: loss
    watch: dict[str, Any] = field(default_factory=dict)


class Run:
    """One process of a plain training loop; the data of a step depend on its number alone."""

    def __init__(self, setup: Setup, state: Any = None) -> None:
        torch.manual_seed(0 if state is None else 12345)  # a seed that nothing may depend on
        self.setup = setup
        self.model = setup.model()
        if state is not None:
            restore(self.model, state["model"])
        self.optimizer = setup.optimizer(self.model.parameters())
        arguments: dict[str, Any] = {"rules": Rules(min_samples=1), "stats_every_n_steps": 3}
        self.watch = Watch(
            self.model,
            optimizer=self.optimizer,
            policy=setup.policy(),
            **(arguments | setup.watch),
        )
        self.done = 0
        self.step = 0
        self.verdict: WindowReport | None = None
        self.reports: list[WindowReport] = []
        if state is not None:
            self.watch.load_state_dict(state["watch"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.done, self.step = state["done"], state["step"]
            self.verdict = from_plain(WindowReport | None, state["verdict"])
            self.reports = from_plain(list[WindowReport], state["reports"])
        self.watch.attach()

    def state(self) -> dict[str, Any]:
        state = {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "watch": self.watch.state_dict(),
            "done": self.done,
            "step": self.step,
            "verdict": to_plain(self.verdict),
            "reports": to_plain(self.reports),
        }
        return through_a_file(state)  # type: ignore[no-any-return]

    def go_on(self, until: int = len(EVENTS)) -> None:
        while self.done < until:
            getattr(self, EVENTS[self.done])()
            self.done += 1

    def train(self) -> None:
        generator = torch.Generator().manual_seed(100 * self.step + self.setup.salt)
        x = torch.randn(*self.setup.batch, generator=generator)
        self.optimizer.zero_grad()
        loss = self.model(x).float().square().mean()
        loss.backward()
        if dist.is_initialized():
            for parameter in self.model.parameters():
                dist.all_reduce(parameter.grad)
        self.optimizer.step()
        self.watch.step(self.setup.loss(self.step, loss.detach()))
        self.step += 1

    def judge(self) -> None:
        self.verdict = self.watch.close_window(treat=False)

    def treat(self) -> None:
        assert self.verdict is not None
        self.reports.append(self.watch.treat(self.verdict))
        self.verdict = None

    def result(self) -> dict[str, Any]:
        """All that an interruption must not change."""
        return {
            "model": dict(self.model.state_dict()),
            "optimizer": self.optimizer.state_dict(),
            "reports": self.reports,
            "peek": self.watch.peek(),
            "ledger": list(self.watch.ledger),
            "steps": self.watch.steps,
        }


def differs_when_interrupted(setup: Setup, after: list[int] | None = None) -> dict[int, list[str]]:
    """Interrupt a run after each of its events, resume it, and compare its end.

    Returns:
        Where the ends differ, by event; empty if none does.
    """
    whole = Run(setup)
    whole.go_on()
    saving = Run(setup)
    states = []
    for done in range(len(EVENTS) + 1):
        saving.go_on(done)
        states.append(saving.state())
    found = {-1: differences(whole.result(), saving.result())}  # saving itself changes nothing
    for done in range(len(EVENTS) + 1) if after is None else after:
        resumed = Run(setup, states[done])
        resumed.go_on()
        found[done] = differences(whole.result(), resumed.result())
    return {done: where[:3] for done, where in found.items() if where}


def same(one: Any, other: Any) -> bool:
    """Whether two values, records or containers hold the same, bit for bit; NaN equals NaN."""
    return not list(differences(one, other))


def differences(one: Any, other: Any, path: str = "") -> list[str]:
    """Where two values differ, for the message of a failing test."""
    if type(one) is not type(other):
        return [f"{path}: {type(one).__name__} and {type(other).__name__}"]
    if isinstance(one, Tensor):
        one, other = (t.detach().cpu().contiguous() for t in (one, other))
        equal = one.shape == other.shape and one.dtype == other.dtype
        raw = (t.reshape(-1).view(torch.uint8) for t in (one, other))
        return [] if equal and torch.equal(*raw) else [f"{path}: {one} and {other}"]
    if isinstance(one, np.ndarray):
        equal = (one.shape, one.dtype, one.tobytes()) == (other.shape, other.dtype, other.tobytes())
        return [] if equal else [f"{path}: {one} and {other}"]
    if is_dataclass(one) and not isinstance(one, type):
        parts = [(f.name, getattr(one, f.name), getattr(other, f.name)) for f in fields(one)]
        return [d for name, a, b in parts for d in differences(a, b, f"{path}.{name}")]
    if isinstance(one, Mapping):
        if list(one) != list(other):
            return [f"{path}: keys {list(one)} and {list(other)}"]
        return [d for key in one for d in differences(one[key], other[key], f"{path}[{key}]")]
    if isinstance(one, (list, tuple)):
        if len(one) != len(other):
            return [f"{path}: {len(one)} and {len(other)} items"]
        pairs = enumerate(zip(one, other, strict=True))
        return [d for i, (a, b) in pairs for d in differences(a, b, f"{path}[{i}]")]
    if isinstance(one, float) and one != one:
        return [] if other != other else [f"{path}: {one} and {other}"]
    return [] if one == other else [f"{path}: {one!r} and {other!r}"]
