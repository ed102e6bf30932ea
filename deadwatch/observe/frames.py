"""Frames: which call into the model is in progress, and whether what it calls counts.

A *frame* is one outermost call into the model, or into any part of it when a training loop calls
parts directly. It counts if the part called is in training mode and gradients are on. Within a
counted frame a call counts unless it

- is made under ``no_grad`` (a teacher, an exponential average, a sampling pass). Reentrant
  checkpointing and reversible blocks switch gradients off themselves, as autograd functions do,
  and differentiate later: what they call does count, all of it;
- recomputes for activation checkpointing, inside a backward pass;
- is made under a transform of `torch.func`, or while the model is traced or exported.

A wrapper such as DDP is sent to some methods of a model by Lightning, its training step above all.
Such a call is no frame: what the training step calls of the model are frames, as without a wrapper.

Frames belong to threads: two threads that run the model at once have one each.
"""

from __future__ import annotations

import sys
import threading
from collections import Counter
from dataclasses import dataclass, field
from types import FrameType, FunctionType
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import Function, FunctionCtx

from deadwatch.observe.hooks import is_recomputing, is_running
from deadwatch.observe.strategies import PIPELINES, is_inferring


@dataclass(frozen=True)
class Counting:
    """Which forwards count.

    Attributes:
        no_grad: Also those under ``no_grad``.
        evaluation: Also those of a model in evaluation mode.
    """

    no_grad: bool = False
    evaluation: bool = False

    def frame(self, module: nn.Module) -> bool:
        """Whether a frame that begins with ``module`` counts."""
        training = self.evaluation or module.training
        return training and self.call() and not (PIPELINES in sys.modules and is_inferring())

    def call(self) -> bool:
        """Whether a call counts, if its frame does."""
        if is_recomputing() or _is_transformed():
            return False
        return self.no_grad or torch.is_grad_enabled() or _is_in_autograd_function()


@dataclass(eq=False)
class Frame:
    """The outermost call in progress.

    Attributes:
        python: The Python call that runs it.
        counted: Whether it counts.
        error: The exception that was being handled when it began.
        modules: The modules being called, innermost last.
        calls: How often each activation has been called in it.
        inside: The activation module being called: what it calls is its own affair.
        site: The site being called, if it counts.
        quiet: The module during whose call nobody may listen.
        follows: Whether it needs to know which of its modules is being called.
        depth: How often its module is being called within itself, if it does not follow.
    """

    python: FrameType
    counted: bool
    error: BaseException | None
    modules: list[nn.Module] = field(default_factory=list)
    calls: Counter[str] = field(default_factory=Counter)
    inside: Any = None
    site: Any = None
    quiet: nn.Module | None = None
    follows: bool = True
    depth: int = 0

    @property
    def module(self) -> nn.Module:
        """The module whose call this is."""
        return self.modules[0]

    def enter_unfollowed(self, module: nn.Module) -> None:
        """A module is called that nobody needs to know of, unless it is the frame's own again."""
        if module is self.modules[0]:
            self.depth += 1

    def is_within(self, module: nn.Module) -> bool:
        """Whether the call of a module that ended was one that nobody needed to know of."""
        if self.follows:
            return False
        if module is not self.modules[0]:
            return True
        self.depth -= 1
        return self.depth >= 0

    def leave(self, module: nn.Module) -> bool:
        """A module's call ended; returns whether the frame has ended with it."""
        if module in self.modules:
            while self.modules.pop() is not module:
                pass  # those in between were cut short
        return not self.modules


class CurrentFrame(threading.local):
    """This thread's frame, None between frames.

    Attributes:
        frame: The frame in progress; `running` forgets one that an interrupt has cut short.
        loose: How often each activation was called outside of any module.
    """

    frame: Frame | None = None

    def __init__(self) -> None:
        self.loose: Counter[str] = Counter()

    def running(self) -> Frame | None:
        """The frame in progress, for certain."""
        if self.frame is not None and not is_running(self.frame.python):
            self.frame = None
        return self.frame


def is_redirected(module: nn.Module) -> bool:
    """Whether a module's own ``forward`` stands for another method, such as a training step.

    Lightning puts that into the place of ``forward`` while the wrapper around a model runs it.
    """
    forward = vars(module).get("forward")
    return (
        isinstance(forward, FunctionType)
        and forward.__name__ == "wrapped_forward"
        and forward.__module__.startswith(("lightning", "pytorch_lightning"))
    )


def _is_transformed() -> bool:
    transforms: Any = torch._C._functorch
    return (
        transforms.peek_interpreter_stack() is not None or torch._C._get_tracing_state() is not None
    )


def _is_in_autograd_function() -> bool:
    """Whether an autograd function runs that will be differentiated: it switched gradients off."""
    forward = sys._getframe(1)
    while (caller := forward.f_back) is not None:
        if caller.f_code is _APPLY and _is_differentiated(forward, caller):
            return True
        forward = caller
    return False


_APPLY = Function.apply.__func__.__code__  # type: ignore[attr-defined]


def _is_differentiated(forward: FrameType, apply: FrameType) -> bool:
    """Whether gradients were on where an autograd function was called, and something needs them."""
    names = forward.f_code.co_varnames
    first = forward.f_locals.get(names[0]) if names else None
    if isinstance(first, tuple) and first:  # a decorator's *args
        first = first[0]
    if isinstance(first, FunctionCtx):
        return bool(first.next_functions)  # type: ignore[attr-defined]
    # One that sets its context up later is not given it.
    arguments = apply.f_locals["args"]
    return any(isinstance(value, Tensor) and value.requires_grad for value in arguments)
