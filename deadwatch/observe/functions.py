"""Which torch functions are activations, and which module of `torch.nn` a call amounts to.

`FUNCTIONS` is keyed by the function objects that a `TorchFunctionMode` receives. One activation
has many: ``F.relu``, ``torch.relu``, ``Tensor.relu_`` … are all of kind ``"relu"``. A function that
calls another one (``F.relu`` calls ``torch.relu``) reaches the mode once, as the outer one.

Softmax and its like, normalisations, dropout and plain arithmetic (``exp``, ``abs``, ``sin``) are
no activations.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from numbers import Real
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from deadwatch.observe.hooks import no_dispatch_modes


@dataclass(frozen=True)
class FunctionalCall:
    """One call of an activation as a function.

    Attributes:
        kind: Name of the activation, the same for all its spellings.
        module: The module with the same parameters, shared by all such calls.
        source: The input.
    """

    kind: str
    module: nn.Module
    source: Tensor


@dataclass(frozen=True)
class Row:
    """One activation: how to read its calls.

    Attributes:
        kind: Name of the activation.
        module: Builds the module from the parameters of the call.
        parameters: Names and defaults of those, in the order in which they follow the input.
        accepts: Whether a call with these parameters is an activation.
    """

    kind: str
    module: Callable[..., nn.Module]
    parameters: tuple[tuple[str, Any], ...] = ()
    accepts: Callable[..., bool] | None = None

    def __call__(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> FunctionalCall | None:
        """What a call amounts to, or None if it is no activation of data; see `source`."""
        source, values = self._read(args, kwargs)
        if source is None:
            return None
        return FunctionalCall(self.kind, _shared(self.module, values), source)

    def source(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor | None:
        """The input of a call, or None if it is no activation of data.

        That is so for integers, for a parameter of the model as input (a gate on a weight), and
        for tensors as parameters, which could not be read without waiting for the device.
        """
        return self._read(args, kwargs)[0]

    def _read(
        self, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> tuple[Tensor | None, tuple[Any, ...]]:
        """The input of a call, as `source` gives it, and the values of its parameters."""
        source = args[0] if args else kwargs.get("input")
        if not isinstance(source, Tensor) or not source.dtype.is_floating_point:
            return None, ()
        # A parameter of the model, or a view of one.
        if isinstance(source, nn.Parameter) or isinstance(source._base, nn.Parameter):
            return None, ()
        values = self._values(args, kwargs)
        plain = all(_is_plain(value) for value in values)
        accepted = plain and (self.accepts is None or self.accepts(*values))
        return (source if accepted else None), values

    def _values(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[Any, ...]:
        given = args[1:]
        rest = self.parameters[len(given) :]
        named = [kwargs.get(name, default) for name, default in rest]
        return (*given[: len(self.parameters)], *named)


def _is_plain(value: Any) -> bool:
    return value is None or isinstance(value, (float, int, str, Real))


@lru_cache(maxsize=1024)  # bounded, for a parameter that changes with every step
def _shared(module: Callable[..., nn.Module], values: tuple[Any, ...]) -> nn.Module:
    with no_dispatch_modes():
        return module(*values).eval()  # a random slope takes its mean


def _row(
    kind: str,
    module: Callable[..., nn.Module],
    accepts: Callable[..., bool] | None = None,
    **parameters: Any,
) -> Row:
    return Row(kind, module, tuple(parameters.items()), accepts)


class Clamp(nn.ReLU):
    """``clamp(min=0)``: a ReLU that passes gradient where its input is zero, too."""


def _clamped(low: Any, high: Any = None) -> nn.Module:
    return Clamp()


def _at_zero(low: Any, high: Any = None) -> bool:
    return low is not None and low == 0 and high is None


def _unscaled(alpha: float, scale: float, input_scale: float) -> bool:
    return scale == input_scale == 1


def _elu(alpha: float, scale: float, input_scale: float) -> nn.Module:
    return nn.ELU(alpha)


ROWS: dict[str, Row] = {
    "celu": _row("celu", nn.CELU, alpha=1.0),
    "clamp": _row("clamp", _clamped, _at_zero, min=None, max=None),
    "clamp_min": _row("clamp", _clamped, _at_zero, min=None),
    "clip": _row("clamp", _clamped, _at_zero, min=None, max=None),
    "elu": _row("elu", _elu, _unscaled, alpha=1.0, scale=1, input_scale=1),
    "expit": _row("sigmoid", nn.Sigmoid),
    "gelu": _row("gelu", nn.GELU, approximate="none"),
    "glu": _row("glu", nn.GLU, dim=-1),
    "hardshrink": _row("hardshrink", nn.Hardshrink, lambd=0.5),
    "hardsigmoid": _row("hardsigmoid", nn.Hardsigmoid),
    "hardswish": _row("hardswish", nn.Hardswish),
    # With equal ends it is a constant, which the module refuses to be.
    "hardtanh": _row("hardtanh", nn.Hardtanh, lambda a, b: bool(a < b), min_val=-1.0, max_val=1.0),
    "leaky_relu": _row("leaky_relu", nn.LeakyReLU, negative_slope=0.01),
    "log_sigmoid": _row("logsigmoid", nn.LogSigmoid),
    "logsigmoid": _row("logsigmoid", nn.LogSigmoid),
    "mish": _row("mish", nn.Mish),
    "prelu": _row("prelu", nn.PReLU),  # always open, whatever its slopes
    "relu": _row("relu", nn.ReLU),
    "relu6": _row("relu6", nn.ReLU6),
    "rrelu": _row("rrelu", nn.RReLU, lower=1 / 8, upper=1 / 3),
    "selu": _row("selu", nn.SELU),
    "sigmoid": _row("sigmoid", nn.Sigmoid),
    "silu": _row("silu", nn.SiLU),
    "softplus": _row("softplus", nn.Softplus, beta=1.0, threshold=20.0),
    "softshrink": _row("softshrink", nn.Softshrink, lambd=0.5),
    "softsign": _row("softsign", nn.Softsign),
    "tanh": _row("tanh", nn.Tanh),
    "tanhshrink": _row("tanhshrink", nn.Tanhshrink),
    "threshold": _row("threshold", nn.Threshold, threshold=0.0, value=0.0),
}
"""By the name of the function; the one with an underscore behind it works in place."""

HOMES: tuple[Any, ...] = (F, torch, Tensor, torch._C._nn, torch.special)
"""Where the functions are found."""

FUNCTIONS: dict[Any, Row] = {
    getattr(home, spelling): row
    for name, row in ROWS.items()
    for spelling in (name, f"{name}_")
    for home in HOMES
    if hasattr(home, spelling)
}
"""What a function that a mode receives amounts to, by the function itself."""
