"""Recognise a model's own activation class: by what it does, not by its name.

An activation is a leaf module that is element-wise and non-linear and that passes gradient
somewhere. A copy of it is tried out on the CPU; the module itself is never called. What cannot be
tried (its code raises, it wants two inputs) is no activation. Nor is what is linear at the time,
such as a learned slope that begins at 1.
"""

from __future__ import annotations

import random
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from types import BuiltinFunctionType, FunctionType, ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from deadwatch.activations import NORMS, kind_of
from deadwatch.observe.hooks import no_dispatch_modes
from deadwatch.observe.trial import tensors_of, try_out
from deadwatch.records import Gate


def probe(module: nn.Module) -> Gate | None:
    """The measured gate of a class of the model's own, or None if it is no activation.

    One that holds tensors is measured anew each time, for they may have changed.
    """
    if not _may_be_activation(module):
        return None
    key = _key(module)
    if key is None:
        return _probe(module)
    if key not in _PROBED:
        _PROBED[key] = _probe(module)
    return _PROBED[key]


_PROBED: dict[tuple[Any, ...], Gate | None] = {}
_BASE = frozenset(vars(nn.Module()))


def _may_be_activation(module: nn.Module) -> bool:
    """Whether it is worth a copy: a leaf that is not torch's own and holds no weight matrix."""
    if kind_of(module).__module__.split(".")[0] == "torch" or any(True for _ in module.children()):
        return False
    own = vars(module)
    if "forward" in own:  # patched, and a copy may still lead to the original
        return False
    if isinstance(module, NORMS):  # trying these out takes time, and some models have hundreds
        return False
    if any(_holds_module(value) for name, value in own.items() if name not in _BASE):
        return False  # a teacher, say, hidden in a list: it would be copied as well
    return not any(map(_is_matrix, tensors_of(module)))


def _holds_module(value: Any) -> bool:
    if isinstance(value, dict):
        value = list(value.values())
    parts = value if isinstance(value, (list, tuple, set)) else (value,)
    return any(isinstance(part, nn.Module) for part in parts)


def _is_matrix(tensor: Tensor) -> bool:
    return is_lazy(tensor) or tensor.is_meta or sum(size != 1 for size in tensor.shape) > 1


def _key(module: nn.Module) -> tuple[Any, ...] | None:
    """All that the function of a module depends on, or None if that cannot be told."""
    own = {name: value for name, value in vars(module).items() if name not in _BASE}
    if any(True for _ in tensors_of(module)) or not all(map(_is_constant, own.values())):
        return None
    return type(module), type(module).forward, *own.items()


def _is_constant(value: Any) -> bool:
    if isinstance(value, FunctionType):
        return value.__closure__ is None
    if isinstance(value, BuiltinFunctionType):
        return isinstance(value.__self__, (ModuleType, type))
    return value is None or isinstance(value, (bool, int, float, str))


def _probe(module: nn.Module) -> Gate | None:
    for dtype in (torch.float64, torch.float32):  # not every function takes the better one
        try:
            with isolated():
                trial = try_out(module, dtype)
                if trial is not None:
                    return trial.gate()
        except Exception:  # a model's own code may raise anything: then it is no activation
            continue
    return None


def _as_it_is(tensor: Tensor) -> Tensor:
    return tensor


@contextmanager
def isolated() -> Iterator[None]:
    """Keep the surroundings from foreign code, and the random numbers it draws from them."""
    python, legacy = random.getstate(), np.random.get_state()
    devices = [torch.cuda.current_device()] if torch.cuda.is_initialized() else []
    try:
        with (
            torch._C.DisableTorchFunction(),
            no_dispatch_modes(),
            torch.random.fork_rng(devices),
            torch.autocast("cpu", enabled=False),
            torch.inference_mode(False),
            torch.enable_grad(),
            # Checkpointing counts what is saved for the backward pass.
            torch.autograd.graph.saved_tensors_hooks(_as_it_is, _as_it_is),
            warnings.catch_warnings(action="ignore"),
        ):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(legacy)
