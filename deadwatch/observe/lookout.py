"""Compiled code is kept from running while sites are looked for, and watched as compiled after."""

from __future__ import annotations

import os
import sys
from types import CodeType, FrameType
from typing import Any, ClassVar
from weakref import WeakSet

import torch
from torch import nn

from deadwatch.observe.accumulate import SiteState
from deadwatch.observe.hooks import Hook
from deadwatch.observe.ingraph import InGraph


class Lookout:
    """Decides when the forward runs uncompiled.

    Args:
        graph: What is known of compiled graphs.
    """

    def __init__(self, graph: InGraph) -> None:
        self._graph = graph
        self._eager = Eager()
        self._met: set[nn.Module] = set()  # parts that have run since it began
        self._looked = -1  # the last step in which everything ran uncompiled

    def begin(self) -> None:
        """Let the next forward of every part run uncompiled, so that its sites are found."""
        self._graph.missed = False
        self._met.clear()
        self._eager.begin()

    def end(self, last: int = -1) -> None:
        """End that; ``last`` is the last step in which it was so."""
        if self._eager.end():
            self._looked = last

    def meet(self, module: nn.Module, step: int) -> None:
        """A counted frame of ``module`` begins."""
        if module in self._met:  # a loop that reports no steps has begun another one
            self.end(step)
        self._met.add(module)
        self._graph.traced = self._graph.traced or self._eager.is_replacing()

    def step(self, done: int) -> None:
        """Step ``done`` is over."""
        if self._graph.missed:
            self.begin()
        elif self._met:
            self.end(done)

    def is_hidden(self, state: SiteState, steps: int) -> bool:
        """Whether a site has not been seen since, though other steps have been taken."""
        return self._graph.traced and state.last <= self._looked < steps - 1


_ENTRANCE = os.path.join("torch", "_dynamo", "eval_frame.py")


class Eager:
    """Makes compiled code run uncompiled for a while, so that its hooks can find its sites.

    Where several do so at once, the last to end lets it run compiled.
    """

    _begun: ClassVar[WeakSet[Eager]] = WeakSet()
    _stance: ClassVar[Any] = None

    def begin(self) -> None:
        """Run nothing compiled until `end`."""
        if "torch._dynamo" not in sys.modules:  # nothing is compiled
            return
        if not Eager._begun:
            Eager._stance = torch.compiler.set_stance("force_eager")
        Eager._begun.add(self)

    def __enter__(self) -> Eager:
        self.begin()
        return self

    def __exit__(self, *exception: object) -> None:
        self.end()

    def is_replacing(self) -> bool:
        """Whether what is being called would run compiled, were it not for this."""
        frame: FrameType | None = sys._getframe(1) if self in Eager._begun else None
        for _ in range(16):
            if frame is None:
                return False
            if frame.f_code.co_filename.endswith(_ENTRANCE):
                return frame.f_code.co_qualname.startswith("_TorchDynamoContext.")
            frame = frame.f_back
        return False

    def end(self) -> bool:
        """Run compiled code as it is; returns whether it was kept from that."""
        if self not in Eager._begun:
            return False
        Eager._begun.remove(self)
        self._release()
        return True

    def __del__(self) -> None:
        self._release()  # a watch may be forgotten before it has seen anything

    def _release(self) -> None:
        if Eager._stance is not None and not Eager._begun:
            Eager._stance.__exit__(None, None, None)
            Eager._stance = None


def forget_graphs(listens: Any) -> None:
    """Drop what was compiled so far: it would run on without the hooks put there since.

    Args:
        listens: The function that the function mode consists of.
    """
    if "torch._dynamo" in sys.modules:
        torch.compiler.reset()
        _run_as_it_is(Hook.__call__.__code__)
        _run_as_it_is(listens.__code__)


def _run_as_it_is(code: CodeType) -> None:
    """Have the compiler leave a function alone, and all it calls, unless it is called in a graph.

    The hooks of the outermost module run outside of its graph, and so does the function mode where
    a graph breaks. Compiled on their own they would be bookkeeping without a frame to keep the
    books of.
    """
    from torch._C._dynamo import eval_frame

    if hasattr(eval_frame, "set_code_exec_strategy"):  # else what it hides is unseen
        skip = eval_frame._FrameAction.SKIP
        eval_frame.set_code_exec_strategy(code, eval_frame._FrameExecStrategy(skip, skip))
