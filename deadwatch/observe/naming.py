"""What the tensors of a model are called, also while other tensors stand in for them."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn


class Names:
    """The names of a model's parameters and buffers, by identity.

    While a forward runs, ``fully_shard`` puts whole parameters in the place of the sharded ones,
    module by module. So a parameter that is not known is looked for in the modules as they are;
    and one that is gone leaves its identity to any other tensor.

    Args:
        model: The model.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._parameters: dict[int, tuple[weakref.ref[Tensor], str]] = {}
        self._buffers: dict[int, str] = {}
        self._foreign: set[int] = set()

    def begin(self) -> None:
        """A forward begins: parameters and buffers may be others than in the last one."""
        named = self._model.named_parameters()
        self._parameters = {id(t): (weakref.ref(t), name) for name, t in named}
        self._buffers = {id(t): name for name, t in self._model.named_buffers()}
        self._foreign.clear()

    def aliases(self) -> Iterator[tuple[str, str]]:
        """Every name of every parameter, behind the one that it is known by."""
        for name, parameter in self._model.named_parameters(remove_duplicate=False):
            yield self._parameters[id(parameter)][1], name

    def parameter(self, tensor: Any) -> str | None:
        """The name of a parameter of the model; None for anything else."""
        known = self._known(tensor)
        if known is None and isinstance(tensor, nn.Parameter) and id(tensor) not in self._foreign:
            for name, parameter in self._model.named_parameters():
                if self._known(parameter) is None:
                    self._parameters[id(parameter)] = weakref.ref(parameter), name
            known = self._known(tensor)
            if known is None:
                self._foreign.add(id(tensor))
        return known

    def _known(self, tensor: Any) -> str | None:
        reference, name = self._parameters.get(id(tensor), (None, None))
        return None if reference is None or reference() is not tensor else name

    def buffer(self, tensor: Any) -> str | None:
        """The name of a buffer of the model; None for anything else."""
        return self._buffers.get(id(tensor))
