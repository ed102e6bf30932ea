"""No weight decay on biases and norms."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import nn
from torch.nn.parameter import UninitializedParameter
from torch.optim import Optimizer

from deadwatch.activations import NORMS
from deadwatch.errors import CannotTreat, ConfigError
from deadwatch.treat.optim import OptimizerState
from deadwatch.treat.remedies.base import require_number
from deadwatch.treat.remedies.preventive import Preventive


@dataclass(frozen=True)
class NoBiasDecay(Preventive):
    """Takes weight decay off biases, norms and learned slopes, and leaves it on weights.

    It cuts both ways. Decay shrinks a positive bias that keeps a unit open; but it also pulls up
    the negative bias that has closed one, and so revives units that a large decay would otherwise
    have back: with SGD and a decay of 0.1 on biases that had been pushed down, the dead ratio fell
    from 91% to 0%. At the decay that AdamW is used with, neither is seen. Look at the sign of the
    biases before choosing it.

    Example:
        >>> optimizer = torch.optim.AdamW(NoBiasDecay().groups(model, weight_decay=1e-2), lr=1e-3)
    """

    def parameters(self, model: nn.Module) -> list[nn.Parameter]:
        """The parameters that are not to decay, in ``parameters()`` order, frozen ones included.

        These are all of fewer than two axes, all of norms, and all called ``bias`` or
        ``…_bias``. A tied parameter counts by the name it comes under first.

        Raises:
            ConfigError: A lazy parameter has no shape yet.
        """
        return [parameter for _, parameter, spared in _sorted(model) if spared]

    def groups(self, model: nn.Module, *, weight_decay: float = 1e-2) -> list[dict[str, Any]]:
        """Two parameter groups for a new optimizer: one that decays, one that does not.

        Frozen parameters are in them, so that the groups stay the same when they thaw; an
        optimizer passes over them until then. Names come along (``param_names``).

        Args:
            model: The model to train.
            weight_decay: The decay of the first group.

        Returns:
            The groups, as an optimizer takes them; an empty one is left out.

        Raises:
            ConfigError: ``weight_decay`` is negative, or a lazy parameter has no shape yet.
        """
        require_number("weight_decay", weight_decay, 0, "0 for none")
        named = _sorted(model)
        groups: list[dict[str, Any]] = [
            {"params": [(n, p) for n, p, off in named if off is spared], "weight_decay": decay}
            for spared, decay in ((False, weight_decay), (True, 0.0))
        ]
        return [group for group in groups if group["params"]]

    def exempt(self, model: nn.Module, optimizer: Optimizer) -> str:
        """Exempt them in an optimizer that is in use, for as long as it lives.

        Its groups, their order, and its state stay as they are, and so do schedulers and
        checkpoints: the exempt parameters are set aside while it steps. A checkpoint does not hold
        that, so do it again in a run that is resumed; doing it twice changes nothing.

        Returns:
            What was done, in a few words.

        Raises:
            CannotTreat: The model has no such parameter.
            ConfigError: A lazy parameter has no shape yet.
        """
        return self.apply(model, OptimizerState([optimizer]))

    def apply(self, model: nn.Module, optimizers: OptimizerState) -> str:
        """Exempt them in optimizers that exist; their groups and state stay as they are.

        Raises:
            CannotTreat: The model has no such parameter.
            ConfigError: A lazy parameter has no shape yet.
        """
        spared = self.parameters(model)
        if not spared:
            raise CannotTreat("the model has no biases, norms or slopes")
        self.resume(model, optimizers)
        return f"no weight decay on {len(spared)} biases, norms and slopes"

    def resume(self, model: nn.Module, optimizers: OptimizerState) -> None:
        """Exempt them again, in a run that goes on."""
        optimizers.exempt(self.parameters(model))


def _sorted(model: nn.Module) -> list[tuple[str, nn.Parameter, bool]]:
    """Every parameter once, with its name and whether it is spared."""
    norms = set(_of_norms(model))
    named = list(model.named_parameters())
    for name, parameter in named:
        if isinstance(parameter, UninitializedParameter):
            raise ConfigError(
                f"{name} has no shape yet, so it cannot be sorted into a group; run one forward "
                "first, as lazy modules need before an optimizer is built"
            )
    return [(n, p, p.ndim < 2 or p in norms or _is_bias(n)) for n, p in named]


def _of_norms(model: nn.Module) -> Iterator[nn.Parameter]:
    for module in model.modules():
        if isinstance(module, NORMS):
            yield from module.parameters(recurse=False)


def _is_bias(name: str) -> bool:
    leaf = name.rpartition(".")[2]
    return leaf == "bias" or leaf.endswith("_bias")
