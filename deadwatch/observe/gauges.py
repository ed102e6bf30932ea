"""The gauges behind the advice: what is measured beside the activations themselves, if asked for.

`Taps` tells them of steps and windows. What they find stays on the device until a window is read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import nn

from deadwatch.observe.accumulate import SiteState
from deadwatch.observe.inputs import Inputs
from deadwatch.observe.openings import Openings
from deadwatch.observe.readings import Readings
from deadwatch.observe.updates import Updates


class Gauging:
    """All gauges that are on.

    Args:
        layers: Whether to look at layers: their inputs, and the rows of their weights.
        training: Whether to follow training: updates, openings, learning rates.
        rates: The learning rates of all groups now.

    Attributes:
        layers: Whether layers are looked at.
        inputs: What layers are given; None if that is not looked at.
    """

    def __init__(
        self,
        *,
        layers: bool = False,
        training: bool = False,
        rates: Callable[[], Sequence[float]] = list,
    ) -> None:
        self.layers = layers
        self.inputs = Inputs() if layers else None
        self._updates = Updates() if training else None
        self._openings = Openings() if training else None
        self._read_rates = rates
        self._rates: tuple[list[float], list[float]] | None = None

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
            layers=self.layers,
            moved=self._updates.fetch() if self._updates is not None else {},
        )
