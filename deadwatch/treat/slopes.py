"""Keeps the slopes that a swap to PReLU adds alike on all ranks of a data-parallel run.

DDP reduces the gradients of the parameters that a model had when it was wrapped, and of no others;
with gradients of its own each rank would soon have slopes of its own, and then another model.

So at the end of every backward pass that reaches the model, on a rank's own branch or not, the
gradients of all slopes are averaged over all ranks in one collective. It is after every pass, also
one under ``no_sync``: a gradient that adds up over several passes comes out the same, and is there
before anything clips it. Slopes that DDP does reduce stay as they are: a mean of equals.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Variable
from torch.utils.hooks import RemovableHandle

from deadwatch.treat.shards import is_sharded

Average = Callable[[Sequence[Tensor]], list[Tensor | None]]
"""The gradients of parameters, averaged over all ranks; None of those that have none anywhere."""


class SharedSlopes:
    """Averages the gradients of some parameters over all ranks.

    Args:
        model: The model that holds them.
        average: How they are averaged, by one collective; None where there is only one rank.
    """

    def __init__(self, model: nn.Module, average: Average | None) -> None:
        self._model = model
        self._average = average
        self._slopes: list[Tensor] = []
        self._handles: list[RemovableHandle] = []
        self._passes: set[int] = set()  # backward passes at whose end it is to be done
        self._lock = threading.Lock()

    def told(self, module: nn.Module) -> str:
        """What the record of a treatment that puts ``module`` in should say; mostly nothing."""
        own = {id(parameter) for parameter in module.parameters()}
        return _TOLD if any(id(slope) in own for slope in self._slopes) else ""

    def add(self, slopes: Iterable[Tensor]) -> None:
        """Average the gradients of these parameters from now on as well."""
        if self._average is None:
            return
        known = {id(slope) for slope in self._slopes}
        # Of sharded ones, which were there before, fully_shard reduces the gradients.
        new = (slope for slope in slopes if not is_sharded(slope))
        self._slopes += [slope for slope in new if id(slope) not in known]
        self._watch()

    def discard(self, slope: Tensor) -> None:
        """Average the gradient of a parameter no more, as on all ranks."""
        self._slopes = [other for other in self._slopes if other is not slope]
        self._watch()

    def release(self) -> None:
        """Take every hook off the parameters."""
        self._slopes.clear()
        self._watch()

    def _watch(self) -> None:
        """Let every parameter tell of a pass: a slope may lie on a branch of one rank alone."""
        for handle in self._handles:
            handle.remove()
        reached = [p for p in self._model.parameters() if p.requires_grad] if self._slopes else []
        self._handles = [p.register_post_accumulate_grad_hook(self._after) for p in reached]

    def _after(self, parameter: Tensor) -> None:
        """A gradient has come in: average at the end of this backward pass, but once."""
        current = torch._C._current_graph_task_id()
        with self._lock:
            if current in self._passes or current == -1:
                return
            self._passes.add(current)
        engine: Any = Variable._execution_engine
        engine.queue_callback(lambda: self._finish(current))

    @torch.no_grad()
    def _finish(self, current: int) -> None:
        self._passes.discard(current)
        if self._average is None or not self._slopes:
            return
        for slope, gradient in zip(self._slopes, self._average(self._slopes), strict=True):
            slope.grad = gradient


_TOLD = (
    "; deadwatch averages the gradients of the slopes over all ranks: to train on without it, wrap "
    "the model in DDP anew"
)
