"""The function mode: the only one there is. It tells of every torch function called in a frame."""

from __future__ import annotations

import sys
import threading
from types import FrameType
from typing import Any, Protocol

import torch
from torch import fx, nn
from torch.overrides import (
    TorchFunctionMode,
    _pop_mode,
    _push_mode,
)

from deadwatch.observe.frames import Frame
from deadwatch.observe.functions import FUNCTIONS, Row
from deadwatch.observe.hooks import is_running
from deadwatch.observe.ingraph import InGraph


class Hearer(Protocol):
    """Who is told; it has to call the function, and to return what that returns."""

    def operation(self, frame: Frame, func: Any, args: Any, kwargs: Any) -> Any:
        """A torch function that is no activation."""

    def function(
        self, frame: Frame, row: Row, owner: nn.Module | None, func: Any, args: Any, kwargs: Any
    ) -> Any:
        """A torch function that is an activation, or might be, perhaps that of a module."""


class _Listener(TorchFunctionMode):
    def __init__(self, hearer: Hearer, graph: InGraph) -> None:
        super().__init__()
        self.frame: Frame | None = None
        self._hearer = hearer
        self._graph = graph

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if torch.compiler.is_compiling():
            return self._in_graph(func, args, kwargs)
        frame = self.frame
        if frame is None or frame.inside is not None:
            return func(*args, **kwargs)
        row, caller = FUNCTIONS.get(func), sys._getframe(1)
        if row is None or _is_compiled_code(frame, caller):
            return self._hearer.operation(frame, func, args, kwargs)
        if not is_running(frame.python):  # an interrupt has cut it short
            self.frame = None
            return func(*args, **kwargs)
        return self._hearer.function(frame, row, _activation(caller), func, args, kwargs)

    def _in_graph(self, func: Any, args: Any, kwargs: Any) -> Any:
        if torch.compiler.is_exporting():
            return func(*args, **kwargs)
        row = FUNCTIONS.get(func)
        return (
            func(*args, **kwargs) if row is None else self._graph.function(row, func, args, kwargs)
        )


def _activation(caller: FrameType | None) -> nn.Module | None:
    """The activation module whose ``forward`` was called past its hooks, if that called."""
    while caller is not None and caller.f_code.co_filename.startswith(_TORCH):
        if caller.f_code.co_filename == _ACTIVATIONS and caller.f_code.co_name == "forward":
            module: nn.Module = caller.f_locals["self"]
            return module
        caller = caller.f_back
    return None


_TORCH = str(torch.__file__).removesuffix("__init__.py")
_ACTIVATIONS = str(sys.modules["torch.nn.modules.activation"].__file__)
_INTERPRETER = str(sys.modules["torch.fx.interpreter"].__file__)


def _is_compiled_code(frame: Frame, caller: FrameType | None) -> bool:
    """Whether a graph of `torch.compile` runs uncompiled (backend "eager"); it counts itself."""
    left = 4  # the function's own frames stand between
    while caller is not None and left:
        if caller.f_code.co_filename.startswith(("<eval_with_key>", _INTERPRETER)):
            return not isinstance(frame.modules[-1], fx.GraphModule)  # else it is the user's own
        # Another function mode called it again.
        left = 4 if caller.f_code.co_name == "__torch_function__" else left - 1
        caller = caller.f_back
    return False


class Ears(threading.local):
    """One listener for each thread that runs the model."""

    hears = _Listener.__torch_function__

    def __init__(self, hearer: Hearer, graph: InGraph) -> None:
        self._listener = _Listener(hearer, graph)
        self._stays = False
        self._entered = False

    def listen(self, frame: Frame) -> None:
        """Tell of what is called from here on, in ``frame``."""
        self._enter()
        self._listener.frame = frame

    def stop(self) -> None:
        """Tell of nothing until `listen`."""
        self._listener.frame = None
        if self._entered and not self._stays:
            self._entered = False
            above = []
            while (mode := _pop_mode()) is not self._listener:
                above.append(mode)  # of another watch, or entered in the forward and still on
            for mode in reversed(above):
                _push_mode(mode)

    def stay(self, stays: bool) -> None:
        """Be on between frames too, for compiled code to listen, or no longer."""
        self._stays = stays
        if stays:
            self._enter()
        else:
            self.stop()

    def _enter(self) -> None:
        if not self._entered:
            self._entered = True
            self._listener.__enter__()  # type: ignore[no-untyped-call]
