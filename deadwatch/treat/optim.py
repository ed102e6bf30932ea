"""The only file that writes optimizer state, always by parameter identity.

A treated row starts afresh: its momentum is zeroed, and its second moment takes the median of the
live rows. With a zero second moment and an old step count, Adam's first steps would be several
times the learning rate; resetting the step count, which the whole tensor shares, would slow the
live rows instead. Where no row is live the second moment stays.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from deadwatch.errors import OptimizerStateWarning
from deadwatch.records import Ints
from deadwatch.treat.surgery import narrowed

FIRST_MOMENTS = frozenset({"momentum_buffer", "exp_avg"})
SECOND_MOMENTS = frozenset({"exp_avg_sq", "max_exp_avg_sq", "exp_inf"})
KNOWN: tuple[type[Optimizer], ...] = (
    torch.optim.SGD,
    torch.optim.Adam,
    torch.optim.AdamW,
    torch.optim.NAdam,
    torch.optim.RAdam,
    torch.optim.Adamax,
)


@dataclass(frozen=True, eq=False)
class Restart:
    """Slices ``index`` along ``axis`` of a parameter whose state starts afresh.

    ``live`` are the slices that belong to live units: the model for the second moment. With
    ``rows``, only within these indices of axis 0.
    """

    tensor: str
    axis: int
    index: Ints
    live: Ints
    rows: range | None = None


class OptimizerState:
    """The state that one or several optimizers keep for a model's parameters."""

    def __init__(self, optimizers: Sequence[Optimizer]) -> None:
        self._optimizers = tuple(optimizers)
        self._warned: set[type] = set()

    def owner(self, parameter: Tensor) -> Optimizer | None:
        """The optimizer that updates ``parameter``, or None."""
        for optimizer in self._optimizers:
            for group in optimizer.param_groups:
                if any(owned is parameter for owned in group["params"]):
                    return optimizer
        return None

    @torch.no_grad()
    def restart(self, parameter: Tensor, restart: Restart) -> None:
        """Start the state of some slices afresh; all other slices stay bit-equal."""
        optimizer = self.owner(parameter)
        if optimizer is None:
            return
        if not isinstance(optimizer, KNOWN):
            self._warn_unknown(optimizer)
            return
        index = torch.as_tensor(restart.index, device=parameter.device)
        live = torch.as_tensor(restart.live, device=parameter.device)
        for key, value in optimizer.state.get(parameter, {}).items():
            if not isinstance(value, Tensor) or value.shape != parameter.shape:
                continue
            value = narrowed(value, restart.rows)
            if key in FIRST_MOMENTS:
                value.index_fill_(restart.axis, index, 0)
            elif key in SECOND_MOMENTS and len(live):
                typical = value.index_select(restart.axis, live)
                typical = typical.median(dim=restart.axis, keepdim=True).values
                shape = list(value.shape)
                shape[restart.axis] = len(index)
                value.index_copy_(restart.axis, index, typical.expand(shape).contiguous())

    def insert(self, new: nn.Parameter, beside: Tensor, order: Mapping[str, Tensor]) -> None:
        """Hand a new parameter to the optimizer that owns ``beside``, in the same group.

        Args:
            new: The parameter to add.
            beside: A parameter of the group that is to take it.
            order: All parameters of the model by name in ``parameters()`` order, ``new``
                included. The new one takes its place in that order, so that a resumed run, which
                builds its optimizer from ``parameters()``, finds each state where it belongs.
        """
        optimizer = self.owner(beside)
        assert optimizer is not None
        rank = {id(parameter): position for position, parameter in enumerate(order.values())}
        names = {id(parameter): name for name, parameter in order.items()}
        for group in optimizer.param_groups:
            params = group["params"]
            if any(owned is beside for owned in params):
                ahead = [p for p in params if rank.get(id(p), -1) < rank[id(new)]]
                params.insert(len(ahead), new)
                if "param_names" in group:
                    group["param_names"].insert(len(ahead), names[id(new)])

    def _warn_unknown(self, optimizer: Optimizer) -> None:
        if type(optimizer) not in self._warned:
            self._warned.add(type(optimizer))
            names = ", ".join(kind.__name__ for kind in KNOWN)
            warnings.warn(
                f"{type(optimizer).__name__} keeps a state that deadwatch does not know: treated "
                f"parameters keep their old optimizer state. Known are {names}.",
                OptimizerStateWarning,
                stacklevel=2,
            )
