"""Plain modules of ``torch.nn`` in the place of swapped activations, for a model that is done."""

from __future__ import annotations

import warnings
from typing import TypeVar

import torch
from torch import Tensor, nn

from deadwatch.activations import HOOKS, SwappedActivation, UnitPReLU
from deadwatch.errors import ConfigError, UnfusedSwapWarning
from deadwatch.treat.surgery import Surgery

Module = TypeVar("Module", bound=nn.Module)


def fuse(model: Module) -> Module:
    """Put plain modules of ``torch.nn`` where they are equivalent to swapped activations.

    A layer swapped as a whole becomes the new activation itself. One that leaks on some units of a
    (leaky) ReLU becomes a `torch.nn.PReLU` with a slope per unit, where the units lie on axis 1.
    Do this when training is over and nothing is attached: for a pickle, a state dict or a fork of
    the model that is to do without deadwatch. Outputs stay what they were, for finite inputs.

    Args:
        model: The model; changed in place.

    Returns:
        The model.

    Raises:
        ConfigError: ``model`` is no module, or is itself the activation.

    Warns:
        UnfusedSwapWarning: Some swaps have no equivalent, and stay.
    """
    if not isinstance(model, nn.Module) or isinstance(model, SwappedActivation):
        raise ConfigError(
            f"model is {type(model).__name__!r}; expected a torch.nn.Module that holds activations"
        )
    surgery = Surgery(model)
    left: list[str] = []
    for path, module in list(model.named_modules()):
        if not isinstance(module, SwappedActivation):
            continue
        plain = _equivalent(module, surgery.beside(path))
        if plain is None:
            left.append(f"{path} ({_reason(module)})")
            continue
        for name in HOOKS:
            setattr(plain, name, getattr(module, name))
        surgery.replace(path, plain.train(module.training))
    if left:
        warnings.warn(
            f"not fused, because torch.nn has nothing equivalent: {', '.join(left)}. The model "
            "still needs deadwatch where it is unpickled or built; torch.export and "
            "torch.jit.trace write programs that do not.",
            UnfusedSwapWarning,
            stacklevel=2,
        )
    return model


def _equivalent(module: SwappedActivation, beside: Tensor | None) -> nn.Module | None:
    """A module that computes the same, in the dtype of ``beside``; None if there is none."""
    units = module.units()
    share = 1.0 if module.deadwatch_share is None else float(module.deadwatch_share)
    if share == 0 or not bool(units.any()):
        return module.restored()
    if share == 1 and bool(units.all()) and not isinstance(module.replacement, UnitPReLU):
        return module.replacement
    old, new = _slopes(module.original, units), _slopes(module.replacement, units)
    if old is None or new is None:
        return None
    slopes = torch.where(units, torch.lerp(old, new, share), old)
    if bool((slopes == slopes[0]).all()) and not isinstance(module.replacement, UnitPReLU):
        return nn.LeakyReLU(float(slopes[0]))
    if not _on_axis_1(module):
        return None
    plain = nn.PReLU(len(slopes)).to(slopes.device)
    # Slopes that training did not move are not to be moved by it from now on.
    learned = isinstance(module.replacement, UnitPReLU)
    plain.weight = nn.Parameter(
        slopes if beside is None else slopes.to(beside), requires_grad=learned
    )
    return plain


def _slopes(module: nn.Module, units: Tensor) -> Tensor | None:
    """The slope below zero of each unit, if the function is piecewise linear with a bend there."""
    if type(module) is UnitPReLU:
        return module.weight.detach().float()
    if type(module) is nn.LeakyReLU:
        return torch.full(units.shape, module.negative_slope, device=units.device)
    return torch.zeros(units.shape, device=units.device) if type(module) is nn.ReLU else None


def _on_axis_1(module: SwappedActivation) -> bool:
    """Whether the units lie where a `torch.nn.PReLU` looks for them."""
    dim, ndim = module.settings.unit_dim, module.settings.ndim
    return ndim > 1 and dim % ndim == 1


def _reason(module: SwappedActivation) -> str:
    """Why there is no equivalent."""
    parts = (module.original, module.replacement)
    if any(_slopes(part, module.units()) is None for part in parts):
        return " and ".join(type(part).__name__ for part in parts) + " in one layer"
    return f"a slope per unit on axis {module.settings.unit_dim}"
