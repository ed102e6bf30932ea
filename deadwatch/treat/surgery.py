"""The only file that writes parameters or replaces modules."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from deadwatch.errors import DeadwatchError
from deadwatch.records import Change, Ints
from deadwatch.treat import shards


@dataclass(frozen=True, eq=False)
class Edit:
    """New values for the slices ``index`` along ``axis`` of one parameter or buffer.

    With ``rows``, only within these indices of axis 0. ``shared`` slices are used by live units
    as well.
    """

    tensor: str
    axis: int
    index: Ints
    value: Tensor
    rows: range | None = None
    shared: bool = False


class Surgery:
    """Reads and writes the tensors of a model by name.

    Args:
        model: The model.
        aside: Makes a context in which no hook of ours is on the model.

    Attributes:
        replaced: How often a module has been replaced so far.
    """

    def __init__(
        self, model: nn.Module, aside: Callable[[], AbstractContextManager[None]] = nullcontext
    ) -> None:
        self.replaced = 0
        self._model = model
        self._aside = aside
        self._holders: _Holders | None = None

    def tensor(self, name: str) -> Tensor:
        """A parameter or buffer by its dotted name."""
        path, _, leaf = name.rpartition(".")
        holder = self._model.get_submodule(path)
        if leaf in holder._parameters:
            shards.resharded(self._around(path))
        found = getattr(holder, leaf)
        if not isinstance(found, Tensor):
            raise DeadwatchError(f"the model has no {name} any more")
        return found

    def _around(self, path: str) -> Iterator[nn.Module]:
        """The modules along a path, from the inside out."""
        while path:
            yield self.module(path)
            path = path.rpartition(".")[0]
        yield self._model

    def module(self, path: str) -> nn.Module:
        """A module by its path."""
        return self._model.get_submodule(path)

    def beside(self, path: str) -> Tensor | None:
        """A parameter of the smallest part of the model that has any, around a module."""
        while path:
            path = path.rpartition(".")[0]
            for parameter in self.module(path).parameters():
                return parameter
        return None

    def rows(self, name: str, index: Ints, axis: int = 0, within: range | None = None) -> Tensor:
        """A copy of the slices ``index`` along ``axis``, ``within`` some indices of axis 0."""
        return shards.slices(self.tensor(name), axis, index, within)

    def present(self, name: str, index: Ints, otherwise: Tensor) -> Tensor:
        """Entries of a bias as they are where this rank holds them, else ``otherwise``."""
        return shards.present(self.tensor(name), index, otherwise)

    def twins(self, name: str) -> list[str]:
        """Other modules' parameters that hold the same values: to write one is to write all."""
        holder, own = self._model.get_submodule(name.rpartition(".")[0]), self.tensor(name)
        holders = self._survey() if self._holders is None else self._holders
        return [path for path, module in holders.get(_address(own), ()) if module is not holder]

    @contextmanager
    def surveyed(self) -> Iterator[None]:
        """Look for all twins once, while nothing but this changes the model."""
        shards.resharded(self._model.modules())
        self._holders = self._survey()
        try:
            yield
        finally:
            self._holders = None

    def _survey(self) -> _Holders:
        found: _Holders = {}
        for path, module in self._model.named_modules():
            for leaf, parameter in module._parameters.items():
                if parameter is not None:
                    found.setdefault(_address(parameter), []).append((f"{path}.{leaf}", module))
        return found

    def apply(self, edits: Sequence[Edit]) -> tuple[Change, ...]:
        """Write all edits, in order, and return what changed.

        Raises:
            DeadwatchError: An edit does not fit its tensor; then nothing is written.
        """
        for edit in edits:
            shape = list(self.tensor(edit.tensor).shape)
            shape[0] = shape[0] if edit.rows is None else len(edit.rows)
            shape[edit.axis] = len(edit.index)
            if list(edit.value.shape) != shape:
                raise DeadwatchError(
                    f"an edit of {edit.tensor} has values of shape {tuple(edit.value.shape)}; "
                    f"{len(edit.index)} slices along axis {edit.axis} need {tuple(shape)}"
                )
            self.rows(edit.tensor, edit.index, edit.axis, edit.rows)  # raises where none is
        return tuple(self._record(edit) for edit in edits)

    def _record(self, edit: Edit) -> Change:
        where = edit.tensor, edit.index, edit.axis, edit.rows
        before = self.rows(*where)
        self.put(edit)
        after = self.rows(*where)
        return Change(
            edit.tensor,
            edit.axis,
            edit.index,
            host_copy(before),
            host_copy(after),
            edit.rows,
            shared=edit.shared,
        )

    def undo(self, change: Change) -> None:
        """Write back what an edit has changed."""
        where = change.tensor, change.index, change.axis, change.rows
        now = self.rows(*where)
        before, after = (torch.from_numpy(x).to(now) for x in (change.before, change.after))
        if change.shared:
            before = torch.where(now == after, before, now - after + before)
        self.put(Edit(change.tensor, change.axis, change.index, before, change.rows))

    @torch.no_grad()
    def put(self, edit: Edit) -> None:
        """Write one edit without a record, and without waiting for the device."""
        tensor = self.tensor(edit.tensor)
        new = edit.value.to(tensor.device, tensor.dtype)
        part, index, new = shards.share(tensor, edit.axis, edit.index, new, edit.rows)
        part.index_copy_(edit.axis, index, new)

    def replace(self, path: str, module: nn.Module) -> None:
        """Put ``module`` wherever the module at ``path`` stands in the model."""
        self.replaced += 1
        old = self._model.get_submodule(path)
        with self._aside():
            for parent in list(self._model.modules()):
                for name, child in list(parent._modules.items()):
                    if child is old:
                        setattr(parent, name, module)
        if self._holders is not None:
            self._holders = self._survey()


_Holders = dict[int, list[tuple[str, nn.Module]]]
"""The parameters at each address, by name, and their modules."""


def _address(tensor: Tensor) -> int:
    """Where a tensor's values lie; of one without any, a number that is its own alone.

    Sharded ones are tied as one object; where their values lie is no matter of all ranks.
    """
    apart = shards.is_sharded(tensor) or not tensor.numel()
    return -id(tensor) if apart else tensor.data_ptr()


def host_copy(tensor: Tensor) -> npt.NDArray[np.generic]:
    """A copy for the record that holds the values exactly."""
    # NumPy has no bfloat16; float32 holds every bfloat16 and float16 exactly.
    wide = tensor if tensor.dtype == torch.float64 else tensor.float()
    host: npt.NDArray[np.generic] = wide.cpu().numpy()
    return host
