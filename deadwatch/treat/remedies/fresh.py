"""Random draws that leave the user's random stream alone."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from deadwatch.activations import kind_of
from deadwatch.errors import CannotTreat


@contextmanager
def private_random(seed: int) -> Iterator[torch.Generator]:
    """Draw on the CPU from ``seed`` without touching the user's random stream.

    Modules initialised inside follow the seed as well.
    """
    with torch.random.fork_rng(devices=[]):
        yield torch.default_generator.manual_seed(seed)


def fresh_like(module: nn.Module, seed: int) -> dict[str, Tensor]:
    """Parameters as the module's own ``reset_parameters`` would draw them, on the CPU.

    Raises:
        CannotTreat: The module has no ``reset_parameters``, or one that may reach further than
            its own parameters.
    """
    if module._modules or module._buffers:
        raise CannotTreat(
            f"{kind_of(module).__name__} holds more than its own parameters, which its "
            "reset_parameters may reach"
        )
    # Not by copy.copy, which the class that fully_shard makes of a module's does not bear.
    clone: nn.Module = object.__new__(type(module))
    vars(clone).update(vars(module))
    clone._parameters = {
        name: None if p is None else nn.Parameter(torch.empty(p.shape, dtype=p.dtype))
        for name, p in module._parameters.items()
    }
    reset = getattr(clone, "reset_parameters", None)
    if reset is None:
        raise CannotTreat(
            f"{kind_of(module).__name__} has no reset_parameters to start afresh with"
        )
    with private_random(seed), torch.no_grad():
        reset()
    return {name: p.detach() for name, p in clone._parameters.items() if p is not None}
