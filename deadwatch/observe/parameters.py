"""What a model's parameters are, and how optimizers treat them, as plain values."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from deadwatch.activations import NORMS, kind_of, readable
from deadwatch.observe.sharding import local_of
from deadwatch.observe.transfer import by_device
from deadwatch.records import Parameter


def parameters_of(
    model: nn.Module, hypers: Mapping[int, tuple[str, float, float]] | None = None
) -> dict[str, Parameter]:
    """The parameters of a model by name, tied ones by their first. Waits for the device once.

    Args:
        model: The model.
        hypers: By ``id`` of a parameter, the class of its optimizer, learning rate and decay.
    """
    named = {readable(n): p for n, p in model.named_parameters() if not is_lazy(p)}
    owners = {readable(path): module for path, module in model.named_modules()}
    rms = _rms(list(named.values()))
    found = {}
    for (name, one), size in zip(named.items(), rms, strict=True):
        owner = owners[name.rpartition(".")[0]]
        how = (hypers or {}).get(id(one), ("", math.nan, 0.0))
        about = tuple(map(int, one.shape)), _kind(name, one, owner), kind_of(owner).__name__
        found[name] = Parameter(*about, size, one.requires_grad, *how)
    return found


def _kind(name: str, parameter: Tensor, owner: nn.Module) -> Literal["weight", "bias", "norm"]:
    leaf = name.rpartition(".")[2]
    if isinstance(owner, NORMS):
        return "norm"
    bias = leaf.startswith("bias") or leaf.endswith("_bias")  # also bias_ih_l0, in_proj_bias
    return "bias" if bias and parameter.ndim < 2 else "weight"


@torch.no_grad()
def _rms(parameters: Sequence[Tensor]) -> list[float]:
    """Root mean squares, in one transfer a device; NaN of what is not all in this process."""
    found = [math.nan] * len(parameters)
    here = [i for i, one in enumerate(parameters) if is_whole(one) and one.numel()]
    for indices in by_device(here, parameters.__getitem__).values():
        norms = torch._foreach_norm([parameters[index].detach() for index in indices])
        for index, norm in zip(
            indices, torch.stack([norm.float() for norm in norms]).tolist(), strict=True
        ):
            found[index] = norm / math.sqrt(parameters[index].numel())
    return found


def is_whole(parameter: Tensor) -> bool:
    """Whether a parameter has values, of real numbers, and all of them are in this process."""
    real = parameter.is_floating_point() and not parameter.is_meta
    return real and local_of(parameter) is parameter
