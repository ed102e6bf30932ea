"""What the tensors of a model are called, also while other tensors stand in for them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import nn


class Names:
    """The names of a model's parameters and buffers, by identity.

    While a forward runs, ``fully_shard`` puts whole parameters in the place of the sharded ones,
    module by module. So a parameter that is not known is looked for in the modules as they are.

    Args:
        model: The model.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._parameters: dict[int, str] = {}
        self._buffers: dict[int, str] = {}
        self._foreign: set[int] = set()

    def begin(self) -> None:
        """A forward begins: parameters and buffers may be others than in the last one."""
        self._parameters = {id(t): name for name, t in self._model.named_parameters()}
        self._buffers = {id(t): name for name, t in self._model.named_buffers()}
        self._foreign.clear()

    def aliases(self) -> Iterator[tuple[str, str]]:
        """Every name of every parameter, behind the one that it is known by."""
        for name, parameter in self._model.named_parameters(remove_duplicate=False):
            yield self._parameters[id(parameter)], name

    def parameter(self, tensor: Any) -> str | None:
        """The name of a parameter of the model; None for anything else."""
        known = self._parameters.get(id(tensor))
        if known is None and isinstance(tensor, nn.Parameter) and id(tensor) not in self._foreign:
            for name, parameter in self._model.named_parameters():
                self._parameters.setdefault(id(parameter), name)
            known = self._parameters.get(id(tensor))
            if known is None:
                self._foreign.add(id(tensor))
        return known

    def buffer(self, tensor: Any) -> str | None:
        """The name of a buffer of the model; None for anything else."""
        return self._buffers.get(id(tensor))
