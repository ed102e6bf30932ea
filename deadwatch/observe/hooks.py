"""What a hook needs to be a good guest; `taps.py` decides where hooks go."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from types import FrameType
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes
from torch.utils.hooks import RemovableHandle

from deadwatch.observe.meter import Meter


class Hook:
    """A hook that a copy of the model does not take along.

    A deep copy or a pickle of a watched model (averaged copies, ``torch.save``) holds inert hooks
    instead, so that it neither feeds the original's statistics nor drags them with it.

    Args:
        call: What it does.
        meter: Measures what it costs, if that is to be known.
    """

    def __init__(self, call: Any, meter: Meter | None = None) -> None:
        self._call = call
        self._meter = meter

    def __call__(self, *args: Any) -> None:
        """Run; never returns anything, which would replace an input or output."""
        # In a compiled graph there is no clock to look at; asked first, so that none depends on it.
        if self._meter is None or torch.compiler.is_compiling() or not self._meter.on:
            self._call(*args)
            return
        with self._meter:
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


def is_real(tensor: Tensor) -> bool:
    """Whether a tensor holds data: not one on the meta device, nor a fake one."""
    return not tensor.is_meta and not hasattr(tensor, "fake_mode")


def is_recomputing() -> bool:
    """Whether a backward pass is running: what is called now is activation checkpointing's."""
    return torch._C._current_graph_task_id() != -1


def no_dispatch_modes() -> AbstractContextManager[Any]:
    """Keep our operations out of modes that record them, such as selective checkpointing's."""
    return _disable_current_modes() if torch._C._len_torch_dispatch_stack() else nullcontext()
