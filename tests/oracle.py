"""The slow oracle: keeps every activation and computes everything from the definitions.

Independent of the package: it numbers calls itself, keeps every pre-activation and output as it
was, and finds out where a gate is open by differentiating the activation itself.
"""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from deadwatch.observe.gates import EXACT, SMOOTH

EPSILON = 1e-3


def is_activation(module: nn.Module) -> bool:
    return isinstance(module, (*EXACT, *SMOOTH))


class Kept:
    """All pre-activations and outputs of one call site, with the units moved last: (R, C)."""

    def __init__(self, module: nn.Module, dim: int) -> None:
        self.module = module
        self.dim = dim
        self.inputs: list[np.ndarray[Any, Any]] = []
        self.outputs: list[np.ndarray[Any, Any]] = []
        self.opened: list[np.ndarray[Any, Any]] = []

    def _rows(self, tensor: Tensor) -> np.ndarray[Any, Any]:
        wide = tensor.detach().double().movedim(self.dim, -1)
        rows: np.ndarray[Any, Any] = wide.reshape(-1, wide.shape[-1]).numpy()
        return rows

    def keep(self, z: Tensor, h: Tensor) -> None:
        self.inputs.append(self._rows(z))
        self.outputs.append(self._rows(h))
        self.opened.append(self._rows(derivative(self.module, z).abs() > EPSILON))

    @property
    def z(self) -> np.ndarray[Any, Any]:
        return np.concatenate(self.inputs)

    @property
    def h(self) -> np.ndarray[Any, Any]:
        return np.concatenate(self.outputs)

    @property
    def open(self) -> np.ndarray[Any, Any]:
        return np.concatenate(self.opened) > 0


def derivative(module: nn.Module, z: Tensor) -> Tensor:
    """df/dz by autograd, in z's own dtype."""
    function = copy.deepcopy(module)
    function._forward_hooks.clear()
    function._forward_pre_hooks.clear()
    if hasattr(function, "inplace"):
        setattr(function, "inplace", False)  # noqa: B010
    z = z.detach().clone().requires_grad_()
    with torch.enable_grad():
        (slope,) = torch.autograd.grad(function(z).sum(), z)
    return slope


@contextmanager
def oracle(model: nn.Module, dims: dict[str, int]) -> Iterator[dict[str, Kept]]:
    """Keep every activation of ``model``; ``dims`` gives the unit axis of each module path."""
    kept: dict[str, Kept] = {}
    calls: dict[str, int] = defaultdict(int)
    before: dict[str, Tensor] = {}
    handles = []

    def start(module: nn.Module, args: Any) -> None:
        calls.clear()

    def pre(path: str) -> Any:
        def hook(module: nn.Module, args: Any) -> None:
            before[path] = args[0].detach().clone(memory_format=torch.contiguous_format)

        return hook

    def post(path: str) -> Any:
        def hook(module: nn.Module, args: Any, output: Tensor) -> None:
            calls[path] += 1
            name = path if calls[path] == 1 else f"{path}-{calls[path]}"
            kept.setdefault(name, Kept(module, dims[path])).keep(
                before[path], output.detach().clone()
            )

        return hook

    handles.append(model.register_forward_pre_hook(start))
    for path, module in model.named_modules():
        if is_activation(module):
            handles.append(module.register_forward_pre_hook(pre(path)))
            handles.append(module.register_forward_hook(post(path)))
    try:
        yield kept
    finally:
        for handle in handles:
            handle.remove()
