"""The gauges behind the advice: what is measured beside the activations themselves, if asked for.

`Taps` tells them of steps and windows. What they find stays on the device until a window is read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from deadwatch.observe.accumulate import SiteState
from deadwatch.observe.gradients import Gradients
from deadwatch.observe.inputs import Inputs
from deadwatch.observe.openings import Openings
from deadwatch.observe.progress import Progress, Rates
from deadwatch.observe.readings import Readings
from deadwatch.observe.updates import Moved, Updates
from deadwatch.plain import from_plain, to_plain


class Gauging:
    """All gauges that are on.

    Args:
        layers: Whether to look at layers: their inputs, and the rows of their weights.
        gradients: Whether to measure gradients at pre-activations.
        training: Whether to follow training: updates, openings, learning rates.
        rates: The learning rates of all groups now.

    Attributes:
        layers: Whether layers are looked at.
        inputs: What layers are given; None if that is not looked at.
        gradients: The gradients at pre-activations; None if they are not measured.
    """

    def __init__(
        self,
        *,
        layers: bool = False,
        gradients: bool = False,
        training: bool = False,
        rates: Callable[[], Sequence[float]] = list,
    ) -> None:
        self.layers = layers
        self.inputs = Inputs() if layers else None
        self.gradients = Gradients() if gradients else None
        self._updates = Updates() if training else None
        self._openings = Openings() if training else None
        self._read_rates = rates
        self._rates: Rates | None = None

    # ── attaching ───────────────────────────────────────────────────────────────────────

    def attach(self, model: nn.Module) -> None:
        """Begin to follow a model, as it is now."""
        if self._updates is not None:
            self._updates.survey(model)

    def detach(self) -> None:
        """Keep nothing of the model."""
        if self._updates is not None:
            self._updates.release()

    def retake(self) -> None:
        """The weights were changed by something else than a training step."""
        if self._updates is not None:
            self._updates.retake()

    # ── while training ──────────────────────────────────────────────────────────────────

    @torch.inference_mode(False)
    def step(
        self, step: int, model: nn.Module, states: Iterable[SiteState], *, in_graph: bool
    ) -> None:
        """A training step is done.

        Args:
            step: Its number.
            model: The model.
            states: What is kept of each site.
            in_graph: Whether compiled graphs took statistics in it.
        """
        if self.gradients is not None:
            self.gradients.fold()
        if self._updates is None or self._openings is None:
            return
        self._updates.step(step, model)
        states = list(states)
        if in_graph or any(state.sampled == step for state in states):
            self._openings.step(states, step)
        now = list(self._read_rates())
        self._rates = now if self._rates is None else self._rates[0], now

    @torch.inference_mode(False)
    def restart(self, model: nn.Module) -> None:
        """Begin a window."""
        self._rates = None
        if self.gradients is not None:
            self.gradients.restart()
        if self._updates is not None and self._openings is not None:
            self._updates.restart()
            self._updates.follow(model)
            self._openings.restart()

    # ── reading ─────────────────────────────────────────────────────────────────────────

    def read(self) -> Readings:
        """What was measured in this window so far. Waits for the device."""
        first, last = self._rates or ([], [])
        same = len(first) == len(last)
        return Readings(
            inputs=self.inputs.fetch() if self.inputs is not None else {},
            last_open=self._openings.fetch() if self._openings is not None else {},
            rates=tuple(zip(first, last, strict=True)) if same else (),
            squares=self.gradients.fetch() if self.gradients is not None else {},
            layers=self.layers,
            moved=self._updates.fetch() if self._updates is not None else {},
        )

    # ── checkpoints ─────────────────────────────────────────────────────────────────────

    def state_dict(self) -> dict[str, Any]:
        """Where the gauges stand, in plain values. Waits for the device."""
        read = self.read()
        openings = self._openings.state_dict() if self._openings is not None else {}
        found: dict[str, Any] = to_plain(
            Progress(read.moved, read.squares, read.inputs, openings, self._rates)
        )
        return found

    def load(self, saved: Mapping[str, Any], *, empty: bool = False) -> None:
        """Go on from there; ``empty`` if another process has what adds up over processes."""
        progress: Progress = from_plain(Progress, saved)
        self._rates = progress.rates
        if self.inputs is not None:
            self.inputs.load(progress.inputs)
        if self.gradients is not None and not empty:
            self.gradients.load(progress.squares)
        if self._updates is not None and self._openings is not None:
            self._updates.load({name: Moved(*one) for name, one in progress.moved.items()})
            self._openings.load(progress.openings, empty=empty)
