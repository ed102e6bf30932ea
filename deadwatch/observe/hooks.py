"""What a hook needs to be a good guest; `taps.py` decides where hooks go."""

from __future__ import annotations

import os
import sys
from contextlib import AbstractContextManager, nullcontext
from types import CodeType, FrameType
from typing import Any, ClassVar
from weakref import WeakSet

import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes
from torch.utils.hooks import RemovableHandle


class Hook:
    """A hook that a copy of the model does not take along.

    A deep copy or a pickle of a watched model (averaged copies, ``torch.save``) holds inert hooks
    instead, so that it neither feeds the original's statistics nor drags them with it.
    """

    def __init__(self, call: Any) -> None:
        self._call = call

    def __call__(self, *args: Any) -> None:
        """Run; never returns anything, which would replace an input or output."""
        self._call(*args)

    def __deepcopy__(self, memo: dict[int, Any]) -> _Inert:
        return _Inert()

    def __reduce__(self) -> tuple[type[_Inert], tuple[()]]:
        return _Inert, ()


class _Inert:
    def __call__(self, *args: Any) -> None:
        return None


def remove(handles: list[RemovableHandle]) -> None:
    """Remove all hooks of a list, and empty it."""
    for handle in handles:
        handle.remove()
    handles.clear()


def is_running(frame: FrameType) -> bool:
    """Whether a call is still in progress."""
    try:
        frame.clear()  # refused for a running frame, and of no consequence for a finished one
    except RuntimeError:
        return True
    return False


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


def is_real(tensor: Tensor) -> bool:
    """Whether a tensor holds data: not one on the meta device, nor a fake one."""
    return not tensor.is_meta and not hasattr(tensor, "fake_mode")


def is_recomputing() -> bool:
    """Whether a backward pass is running: what is called now is activation checkpointing's."""
    return torch._C._current_graph_task_id() != -1


def no_dispatch_modes() -> AbstractContextManager[Any]:
    """Keep our operations out of modes that record them, such as selective checkpointing's."""
    return _disable_current_modes() if torch._C._len_torch_dispatch_stack() else nullcontext()
