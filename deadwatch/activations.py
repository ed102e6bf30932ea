"""The module that stands in for a swapped activation.

What a state dict holds of it is enough to build it again: the mask of its units, what replaces the
original function, and how far an annealed swap has come. Everything that is averaged (EMA, SWA)
survives being averaged: the mask is floating point and read by a threshold, since averages of
integers are cut off and those of booleans raise; the settings are no buffer at all.
"""

from __future__ import annotations

import copy
import sys
from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from deadwatch.errors import DeadwatchError

MASK = "deadwatch_mask"
SHARE = "deadwatch_share"
SETTINGS = "deadwatch_restore"
"""Key of the settings in a state dict: what loading it elsewhere fails with names the way out."""

KINDS = {"leaky_relu": 1, "prelu": 2, "elu": 3, "gelu": 4, "silu": 5}
"""What can replace an activation, and the number that stands for it in a state dict."""

SLOPES = {"leaky_relu": 0.01, "prelu": 0.25}
"""Those that have a slope on the closed side, and what it is by default."""

NORMS = (_NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)
"""The norms of torch."""

_VERSION = 1


@dataclass(frozen=True)
class Replacement:
    """What takes the place of an activation, and where its units lie.

    Attributes:
        to: One of `KINDS`.
        unit_dim: Axis of the input that holds the units.
        ndim: Number of axes of the input, 0 if unknown.
        slope: Slope on the closed side (initial slope of a PReLU); 0 for those without.
    """

    to: str
    unit_dim: int
    ndim: int = 0
    slope: float = 0.0

    def build(self, units: int) -> nn.Module:
        """The function itself, for ``units`` units."""
        if self.to == "leaky_relu":
            return nn.LeakyReLU(self.slope)
        if self.to == "prelu":
            return UnitPReLU(units, self.unit_dim, self.slope)
        plain: dict[str, type[nn.Module]] = {"elu": nn.ELU, "gelu": nn.GELU, "silu": nn.SiLU}
        return plain[self.to]()

    def packed(self) -> Tensor:
        """What a state dict holds of it (5,)."""
        kind = KINDS[self.to]
        entries = [_VERSION, kind, self.unit_dim, self.ndim, self.slope]
        return torch.tensor(entries, dtype=torch.float64)

    @classmethod
    def unpacked(cls, packed: Tensor) -> Replacement:
        """Read it from a state dict.

        Raises:
            DeadwatchError: Another version of deadwatch wrote it.
        """
        version, kind, unit_dim, ndim, slope = packed.tolist() if packed.shape == (5,) else [0] * 5
        names = {number: name for name, number in KINDS.items()}
        if version != _VERSION or kind not in names:
            raise DeadwatchError(
                f"a {SETTINGS} entry of this state dict reads {packed.tolist()}, which this "
                "version of deadwatch does not know; load it with the version that wrote it"
            )
        return cls(names[kind], int(unit_dim), int(ndim), slope)


class SwappedActivation(nn.Module):
    """An activation whose function was replaced, for all units or for some.

    Units outside the mask go through the original function, bit for bit. A state dict that holds
    a swap cannot be loaded into a plain model, nor one from before the swap into a swapped model,
    without an error that names `deadwatch.restore`, which loads both.

    Args:
        original: The activation so far; copied, and made not in-place.
        settings: What replaces it.
        mask: Which units take the replacement (C,).
        annealed: Whether the replacement goes back to the original by and by. Then the swapped
            units are a blend, of which ``deadwatch_share`` (1,) is the replacement's part.
    """

    if TYPE_CHECKING:
        deadwatch_mask: Tensor
        deadwatch_share: Tensor | None

    def __init__(
        self,
        original: nn.Module,
        settings: Replacement,
        mask: Tensor,
        *,
        annealed: bool = False,
    ) -> None:
        super().__init__()
        # Both functions read the same input, so neither may overwrite it.
        self.original = pure_copy(original)
        self.settings = settings
        self.replacement = settings.build(len(mask)).to(mask.device)
        self.unit_dim = settings.unit_dim
        in_place = (name for name, part in original.named_modules() if _is_in_place(part))
        self._in_place = tuple(in_place)
        self.register_buffer(MASK, mask.float())
        self.register_buffer(SHARE, torch.ones(1, device=mask.device) if annealed else None)
        for name in HOOKS:
            # The same object, so that handles which the user holds still remove their hooks.
            setattr(self, name, getattr(original, name))
        self.train(original.training)

    def units(self) -> Tensor:
        """Which units take the replacement, as booleans (C,)."""
        return self.deadwatch_mask > 0.5

    def extended(self, mask: Tensor) -> SwappedActivation:
        """The same swap, with the same parameters and hooks, and further units in the mask."""
        return self.masked(self.units() | (mask > 0))

    def masked(self, mask: Tensor) -> SwappedActivation:
        """The same swap, with the same parameters and hooks, for the units of this mask (C,)."""
        other = copy.copy(self)
        other._buffers = {**self._buffers, MASK: mask.to(self.deadwatch_mask)}
        return other

    def restored(self) -> nn.Module:
        """The original activation again, with the hooks that are on this module."""
        original = pure_copy(self.original)
        for name in HOOKS:
            setattr(original, name, getattr(self, name))
        for name in self._in_place:
            setattr(original.get_submodule(name), "inplace", True)  # noqa: B010
        return original

    def forward(self, input: Tensor) -> Tensor:
        """Apply the replacement where the mask is set, the original elsewhere; same shape."""
        shape = [1] * input.ndim
        shape[self.unit_dim] = -1
        mask = self.deadwatch_mask.view(shape) > 0.5
        old, new = self.original(input), self.replacement(input)
        share = self.deadwatch_share
        if share is not None:
            # A lerp, and not a sum of parts: where both functions agree, it is exactly that.
            new = torch.lerp(old, new, share.to(old.dtype))
        swapped: Tensor = torch.where(mask, new, old)
        return swapped

    def extra_repr(self) -> str:
        """How many units there are, and where: what a printed model shows."""
        return f"units={len(self.deadwatch_mask)}, unit_dim={self.unit_dim}"

    def _save_to_state_dict(
        self, destination: dict[str, Any], prefix: str, keep_vars: bool
    ) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination[prefix + SETTINGS] = self.settings.packed()

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: dict[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )
        key = prefix + SETTINGS
        if key in unexpected_keys:
            unexpected_keys.remove(key)
        if key not in state_dict:
            missing_keys.append(key)
        elif Replacement.unpacked(state_dict[key]) != self.settings:
            error_msgs.append(
                f"{prefix.removesuffix('.')} is swapped to {self.settings.to} by deadwatch, and "
                "differently in this state dict; load it with deadwatch.restore(model, state_dict)"
            )


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


def slopes_of(model: nn.Module) -> dict[str, Tensor]:
    """The slopes that swaps have added to a model's parameters, by name."""
    named = model.named_modules()
    return {f"{path}.weight": m.weight for path, m in named if isinstance(m, UnitPReLU)}


HOOKS = (
    *("_forward_hooks", "_forward_hooks_with_kwargs", "_forward_hooks_always_called"),
    *("_forward_pre_hooks", "_forward_pre_hooks_with_kwargs"),
    *("_backward_hooks", "_backward_pre_hooks"),
)
"""Where a module keeps its hooks. A swap takes those of the module whose place it takes."""

_OF_FULLY_SHARD = ("__composable_api", "_is_fsdp", "_fsdp")
"""How the attributes begin that it gives a module."""


def kind_of(module: nn.Module) -> type[nn.Module]:
    """The class of a module, also where ``fully_shard`` has put one of its own before it."""
    kind = type(module)
    fsdp: Any = sys.modules.get("torch.distributed.fsdp")
    if fsdp is None or not isinstance(module, fsdp.FSDPModule):
        return kind
    own: type[nn.Module] = kind.__mro__[kind.__mro__.index(fsdp.FSDPModule) + 1]
    return own


def readable(path: str) -> str:
    """A module's path without what `torch.compile` wraps around compiled parts."""
    if "_orig_mod" not in path:  # of a deep model, paths are long
        return path
    return ".".join(part for part in path.split(".") if part != "_orig_mod")


def pure_copy(module: nn.Module) -> nn.Module:
    """A copy of an activation that overwrites no input and runs no hooks.

    Its parameters are whole. Where they are sharded, all ranks have to call.
    """
    # Hooks are not even copied: a bound method would take its owner along.
    memo: dict[int, Any] = {id(getattr(module, name)): OrderedDict() for name in HOOKS}
    memo |= {id(p): _whole(p) for p in module.parameters() if hasattr(p, "full_tensor")}
    kind = kind_of(module)
    if kind is type(module):
        clone = copy.deepcopy(module, memo)
    else:  # which refuses to be copied
        clone = kind.__new__(kind)
        own = {k: v for k, v in vars(module).items() if not k.startswith(_OF_FULLY_SHARD)}
        vars(clone).update(copy.deepcopy(own, memo))
    for part in clone.modules():
        if hasattr(part, "inplace"):
            setattr(part, "inplace", False)  # noqa: B010 - not every activation has it
    return clone


def _whole(parameter: Any) -> nn.Parameter:
    return nn.Parameter(parameter.detach().full_tensor(), parameter.requires_grad)


def _is_in_place(module: nn.Module) -> bool:
    return bool(getattr(module, "inplace", False))
