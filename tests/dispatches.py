"""Counts what torch is asked to do: operations, bytes, temporaries, looks at a value. No clock.

An *operation* is one that torch dispatches below autograd, with everything that is composed of
others taken apart. It is a *launch* if it reads or writes data; views and allocations are none. It
*looks* if the host has to know a value for it, which on an accelerator means to wait. Bytes are
those of whole arguments; a *temporary* is memory that the operation had to be given.

deadwatch takes its operations out of the dispatch modes that are on. `seen` shows them.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

_LOOKS = {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape}

_OVERWRITE = {"copy_", "fill_", "zero_"}
"""In-place operations that do not read what they write on."""


@dataclass(frozen=True)
class Operation:
    """One operation; equal ones are counted together."""

    name: str
    read: int
    written: int
    temporary: int
    looks: bool

    @property
    def is_launch(self) -> bool:
        return self.read + self.written > 0


@dataclass
class Tally:
    """What was counted.

    Attributes:
        operations: How often each was dispatched.
        peak: The most bytes of temporaries that there were at a time.
    """

    operations: list[Operation] = field(default_factory=list)
    peak: int = 0

    @property
    def looks(self) -> int:
        return sum(operation.looks for operation in self.operations)

    @property
    def largest(self) -> int:
        return max((operation.temporary for operation in self.operations), default=0)


class _Counting(TorchDispatchMode):
    def __init__(self, tally: Tally) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._tally = tally
        self._alive: list[tuple[StorageWeakRef, int]] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        given, taken, overwritten = _arguments(func, args, kwargs)
        fresh = _fresh(result, given)
        temporary = sum(tensor.untyped_storage().nbytes() for tensor in fresh)
        name = func._schema.name.removeprefix("aten::")
        allocates = "empty" in name
        moves = not (func.is_view or allocates or name.endswith("_like"))
        written = _bytes(overwritten) + (0 if allocates else _bytes(fresh))
        operation = Operation(
            name,
            _bytes(taken) if moves else 0,
            written,
            temporary,
            bool(_LOOKS & set(func.tags)),
        )
        self._tally.operations.append(operation)
        self._keep(fresh)
        return result

    def _keep(self, fresh: list[Tensor]) -> None:
        self._alive = [item for item in self._alive if not item[0].expired()]
        storages = [tensor.untyped_storage() for tensor in fresh]
        self._alive += [(StorageWeakRef(storage), storage.nbytes()) for storage in storages]
        self._tally.peak = max(self._tally.peak, sum(size for _, size in self._alive))


def _arguments(
    func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """All tensors that an operation is given, those that it reads, and those that it writes."""
    given: list[Tensor] = []
    read: list[Tensor] = []
    written: list[Tensor] = []
    name = func._schema.name.removeprefix("aten::")
    for index, argument in enumerate(func._schema.arguments):
        value = args[index] if index < len(args) else kwargs.get(argument.name)
        tensors = [leaf for leaf in tree_leaves(value) if isinstance(leaf, Tensor)]
        writes = argument.alias_info is not None and argument.alias_info.is_write
        given += tensors
        if writes:
            written += tensors
        if not (writes and (argument.is_out or name in _OVERWRITE)):
            read += tensors
    return given, read, written


def _fresh(result: Any, given: list[Tensor]) -> list[Tensor]:
    """The tensors of a result that lie in memory of their own."""
    known = {tensor.untyped_storage()._cdata for tensor in given}
    results = (leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor))
    return [tensor for tensor in results if tensor.untyped_storage()._cdata not in known]


def _bytes(tensors: list[Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


@contextmanager
def seen() -> Iterator[None]:
    """Let deadwatch's operations be seen by dispatch modes."""
    with patch("deadwatch.observe.hooks._disable_current_modes", nullcontext):
        yield


@contextmanager
def counted() -> Iterator[Tally]:
    """Count the operations that are dispatched, deadwatch's among them."""
    tally = Tally()
    with seen(), _Counting(tally):
        yield tally
