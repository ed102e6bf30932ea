"""Try a module out on a copy: whether it is an element-wise function, and where its gate is.

Layouts name the axes of an input: ``g`` is the axis of the grid, ``c`` the one of a parameter
per channel, the others are batch and space. The module must be element-wise in every layout that
it takes; all axes are longer than 1 there, or a norm over one of them would pass for a sign.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import chain

import torch
from torch import Tensor, nn

from deadwatch.activations import pure_copy
from deadwatch.observe.measure import grid, measure_gate
from deadwatch.records import Gate

_LAYOUTS = ("g", "ng", "gc", "gchw", "ngc", "gch", "nhgc")
_LENGTHS = (2, 3, 5, 7, 11, 13, 17, 19)
_POINTS = 6401  # on each side of zero
_ELEMENTS = 2**19  # on each side of zero, where there are channels …
_FEWEST = 257  # … and still this many points
_TOLERANCE = 1e-4  # of rounding, for functions that work in float32 whatever they are given


@dataclass(frozen=True)
class Trial:
    """An element-wise function found in a module.

    Attributes:
        function: A copy of the module, on the CPU, in evaluation mode.
        dtype: The floating type it works in.
        layout: The axes of an input that it takes.
        channels: Length of the axis ``c``.
    """

    function: nn.Module
    dtype: torch.dtype
    layout: str = "g"
    channels: int = 1

    def gate(self) -> Gate | None:
        """The gate of the function, or None if it is linear or passes no gradient at all."""
        if self.is_line:
            return None
        z = grid(max(_FEWEST, min(_POINTS, _ELEMENTS // self.channels)), self.dtype)
        gate = measure_gate(self.slopes, z)
        if gate is not None and not gate.always_open and self._learns_where_closed(gate, z):
            return replace(gate, flat=False)
        return gate

    def call(self, x: Tensor) -> Tensor:
        """Apply the function; same shape.

        Raises:
            TypeError: It does not return one tensor like its input.
        """
        y = self.function.forward(x.clone())  # it may overwrite its input; hooks stay out
        if not isinstance(y, Tensor) or (y.shape, y.dtype) != (x.shape, x.dtype):
            raise TypeError("not a function of one tensor to one like it")
        return y

    def values(self, z: Tensor) -> Tensor:
        """The function at each z (G,), for each channel: (G, C)."""
        sizes = {"g": len(z), "c": self.channels}
        shape = [sizes.get(axis, 1) for axis in self.layout]
        at_g = [len(z) if axis == "g" else 1 for axis in self.layout]
        return self.call(z.view(at_g).expand(shape)).reshape(len(z), self.channels)

    def slopes(self, z: Tensor) -> Tensor:
        """The derivative at each z (G,), for each channel: (G, C)."""
        wide = z[:, None].repeat(1, self.channels).requires_grad_()
        shape = [{"g": len(z), "c": self.channels}.get(axis, 1) for axis in self.layout]
        (slopes,) = torch.autograd.grad(self.call(wide.view(shape)).sum(), wide)
        return slopes

    @cached_property
    def is_line(self) -> bool:
        """Whether the function is linear, up to a constant."""
        z = grid(_FEWEST, self.dtype)
        at_zero, at_one = self.values(z.new_tensor([0.0, 1.0])).detach()
        found, linear = self.values(z).detach(), z[:, None] * (at_one - at_zero)
        # In place: with a thousand channels, memory for another term costs more than the term.
        off = (found - at_zero).sub_(linear).abs_()
        scale = linear.abs_().add_(found.abs()).add_(at_zero.abs())
        return bool((off <= scale.mul_(_TOLERANCE)).all())

    def _learns_where_closed(self, gate: Gate, z: Tensor) -> bool:
        """Whether a parameter (a slope at zero, a threshold) may still open the closed side."""
        within = (z > gate.low) & (z < gate.high)
        y = self.values(z[~within if gate.inside else within])
        learned = [parameter for parameter in self.function.parameters() if parameter.requires_grad]
        if not learned or not y.requires_grad:
            return False
        weights = 2 + y.detach().cos()  # so that nothing cancels
        grads = torch.autograd.grad(y, learned, weights, allow_unused=True)
        return any(grad is not None and bool((grad != 0).any()) for grad in grads)


def try_out(module: nn.Module, dtype: torch.dtype) -> Trial | None:
    """Look for an element-wise function in a module, which is copied and not called."""
    function = pure_copy(module).eval().to("cpu", dtype)
    for name, value in vars(function).items():
        if isinstance(value, Tensor):  # neither parameter nor buffer, so `to` has passed it by
            setattr(function, name, value.to("cpu", dtype if value.is_floating_point() else None))
    sizes = {tensor.numel() for tensor in tensors_of(module)} - {0, 1}
    found = None
    for layout, channels in _ways(sizes):
        trial = Trial(function, dtype, layout, channels)
        x = _example(trial, sizes)
        if _runs(trial, x):
            if not _is_elementwise(trial, x):
                return None
            if trial.is_line:
                return trial  # whatever else it takes: a line is no activation
            found = found or trial
    return found


def tensors_of(module: nn.Module) -> Iterator[Tensor]:
    """Parameters, buffers, and tensors held as plain attributes."""
    loose = (value for value in vars(module).values() if isinstance(value, Tensor))
    return chain(module.parameters(), module.buffers(), loose)


def _ways(sizes: Iterable[int]) -> Iterator[tuple[str, int]]:
    yield from ((layout, 1) for layout in _LAYOUTS)
    yield from ((layout, size) for size in sorted(sizes) for layout in _LAYOUTS if "c" in layout)


def _example(trial: Trial, sizes: set[int]) -> Tensor:
    """An input with a different length, longer than 1, on every axis."""
    free = iter([length for length in _LENGTHS if length not in sizes])
    shape = [
        trial.channels if axis == "c" and trial.channels > 1 else next(free)
        for axis in trial.layout
    ]
    return torch.linspace(-3.1, 2.9, math.prod(shape), dtype=trial.dtype).view(shape)


def _runs(trial: Trial, x: Tensor) -> bool:
    try:
        trial.call(x)
    except Exception:  # a model's own code may raise anything: it does not take this input
        return False
    return True


def _is_elementwise(trial: Trial, x: Tensor) -> bool:
    """Whether each output depends on its own input, on the channel, and on nothing else."""
    y, axis = trial.call(x), trial.layout.index("g")
    if not _same(trial.call(x), y):
        return False
    if not _same(trial.call(x.flip(axis)), y.flip(axis), _TOLERANCE):
        return False
    for place in (0, x.numel() // 2, x.numel() - 1):
        for value in (-9.0, 9.0):
            mask = torch.arange(x.numel()).view(x.shape) == place
            other = trial.call(torch.where(mask, value, x).to(x.dtype))
            if not _same(other.masked_fill(mask, 0), y.masked_fill(mask, 0)):
                return False
    return True


def _same(a: Tensor, b: Tensor, tolerance: float = 0.0) -> bool:
    return torch.allclose(a, b, rtol=tolerance, atol=tolerance, equal_nan=True)
