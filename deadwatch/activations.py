"""The module that stands in for a swapped activation."""

from __future__ import annotations

import copy
from collections import OrderedDict
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn


class SwappedActivation(nn.Module):
    """An activation whose function was replaced, for all units or for some.

    Units outside the mask go through the original function, bit for bit. The mask is a persistent
    buffer named ``deadwatch_mask``: a state dict that holds a swap cannot be loaded, nor one from
    before the swap into a swapped model, without an error that names it.

    Args:
        original: The activation so far; copied, and made not in-place.
        replacement: The new element-wise activation.
        mask: Which units take the replacement (C,).
        unit_dim: Axis of the input that holds the units.
    """

    if TYPE_CHECKING:
        deadwatch_mask: Tensor

    def __init__(
        self, original: nn.Module, replacement: nn.Module, mask: Tensor, unit_dim: int
    ) -> None:
        super().__init__()
        # Both functions read the same input, so neither may overwrite it.
        self.original = pure_copy(original)
        self.replacement = replacement
        self.unit_dim = unit_dim
        self.register_buffer("deadwatch_mask", mask.clone())
        for name in HOOKS:
            # The same object, so that handles which the user holds still remove their hooks.
            setattr(self, name, getattr(original, name))
        self.train(original.training)

    def extended(self, mask: Tensor) -> SwappedActivation:
        """The same swap with further units in the mask."""
        wider = SwappedActivation(
            self.original, self.replacement, self.deadwatch_mask | mask, self.unit_dim
        )
        for name in HOOKS:
            setattr(wider, name, getattr(self, name))
        return wider

    def forward(self, input: Tensor) -> Tensor:
        """Apply the replacement where the mask is set, the original elsewhere; same shape."""
        shape = [1] * input.ndim
        shape[self.unit_dim] = -1
        mask = self.deadwatch_mask.view(shape)
        swapped: Tensor = torch.where(mask, self.replacement(input), self.original(input))
        return swapped

    def extra_repr(self) -> str:
        """How many units are swapped: what a printed model shows."""
        return f"units={len(self.deadwatch_mask)}, unit_dim={self.unit_dim}"


class UnitPReLU(nn.Module):
    """A PReLU with one learned slope per unit, whatever axis the units lie on (He et al. 2015).

    Args:
        units: Number of units C.
        unit_dim: Axis of the input that holds the units.
        slope: Initial slope of all units.
    """

    def __init__(self, units: int, unit_dim: int, slope: float = 0.25) -> None:
        super().__init__()
        self.unit_dim = unit_dim
        self.weight = nn.Parameter(torch.full((units,), slope))

    def forward(self, input: Tensor) -> Tensor:
        """Keep what is positive, scale the rest by the unit's slope; same shape."""
        shape = [1] * input.ndim
        shape[self.unit_dim] = -1
        slope = self.weight.to(input.dtype).view(shape)  # under autocast they differ
        return torch.where(input > 0, input, slope * input)


HOOKS = (
    *("_forward_hooks", "_forward_hooks_with_kwargs", "_forward_hooks_always_called"),
    *("_forward_pre_hooks", "_forward_pre_hooks_with_kwargs"),
    *("_backward_hooks", "_backward_pre_hooks"),
)
"""Where a module keeps its hooks. A swap takes those of the module whose place it takes."""


def pure_copy(module: nn.Module) -> nn.Module:
    """A copy of an activation that overwrites no input and runs no hooks."""
    # Hooks are not even copied: a bound method would take its owner along.
    memo: dict[int, Any] = {id(getattr(module, name)): OrderedDict() for name in HOOKS}
    clone = copy.deepcopy(module, memo)
    for part in clone.modules():
        if hasattr(part, "inplace"):
            setattr(part, "inplace", False)  # noqa: B010 - not every activation has it
    return clone
