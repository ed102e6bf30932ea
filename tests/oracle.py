"""The slow oracle: keeps every activation call and computes everything from the definitions.

Independent of the package: it hears modules through torch's global module hooks and functions
through a function mode of its own, that knows them by name. It numbers calls itself, keeps every
pre-activation and output as it was, and finds out where a gate is open by differentiating the
very function that was called. What counts it does not find out: nets and training loops say so, by
running everything that must not count under `uncounted`.
"""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from types import FrameType
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.overrides import TorchFunctionMode
from torch.utils.hooks import RemovableHandle

EPSILON = 1e-3
PINHOLE = 0.02  # a smooth slope changes sign within less than this; no gate is closed so briefly

FLAT = ("relu", "relu6", "clamp", "hardtanh", "hardsigmoid", "hardswish", "threshold")
FLAT += ("hardshrink", "softshrink")
SMOOTH = ("celu", "elu", "gelu", "logsigmoid", "mish", "selu", "silu", "sigmoid", "softplus")
SMOOTH += ("softsign", "tanh", "tanhshrink", "glu", "leaky_relu", "prelu", "rrelu")
KINDS = frozenset(FLAT + SMOOTH)
"""Every activation function of torch, by the kind that its sites are named after."""

MODULES: dict[type[nn.Module], str] = {
    nn.ReLU: "relu",
    nn.ReLU6: "relu6",
    nn.Hardtanh: "hardtanh",
    nn.Hardsigmoid: "hardsigmoid",
    nn.Hardswish: "hardswish",
    nn.Threshold: "threshold",
    nn.Hardshrink: "hardshrink",
    nn.Softshrink: "softshrink",
    nn.CELU: "celu",
    nn.ELU: "elu",
    nn.GELU: "gelu",
    nn.LogSigmoid: "logsigmoid",
    nn.Mish: "mish",
    nn.SELU: "selu",
    nn.SiLU: "silu",
    nn.Sigmoid: "sigmoid",
    nn.Softplus: "softplus",
    nn.Softsign: "softsign",
    nn.Tanh: "tanh",
    nn.Tanhshrink: "tanhshrink",
    nn.GLU: "glu",
    nn.LeakyReLU: "leaky_relu",
    nn.PReLU: "prelu",
    nn.RReLU: "rrelu",
}
"""Every activation module of torch, and its function."""

Array = npt.NDArray[np.float64]


class _Silence:
    depth = 0


@contextmanager
def uncounted() -> Iterator[None]:
    """What runs in here must not count: no-grad passes, evaluation, recomputation."""
    _Silence.depth += 1
    try:
        yield
    finally:
        _Silence.depth -= 1


def backward(loss: Tensor) -> None:
    """Run the backward pass; a forward that checkpointing repeats in it must not count."""
    with uncounted():
        loss.backward()


def derivative(function: Callable[[Tensor], Tensor], z: Tensor) -> Tensor:
    """df/dz by autograd, in z's own dtype; ``function`` may be a module or work in place."""
    call = function.forward if isinstance(function, nn.Module) else function
    z = z.detach().clone().requires_grad_()
    # A checkpoint that this runs within must not store what is computed here.
    plain = saved_tensors_hooks(lambda t: t, lambda t: t)
    with torch.enable_grad(), torch.random.fork_rng(devices=[]), plain:
        (slope,) = torch.autograd.grad(call(z.clone()).sum(), z)
    return slope


def open_gate(function: Callable[[Tensor], Tensor], z: Tensor) -> Tensor:
    """Where |df/dz| exceeds epsilon.

    A place where it does not, but does on either side, is where the slope of a smooth activation
    passes through zero (GELU near -0.75). The gate is open there.
    """
    here, left, right = (
        derivative(function, z + d).abs() > EPSILON for d in (0, -PINHOLE, PINHOLE)
    )
    return here | (left & right)


@dataclass(frozen=True)
class Call:
    """One activation call: what went in, what came out, and the function that was called."""

    source: Tensor
    output: Tensor
    function: Callable[[Tensor], Tensor]
    glu_dim: int | None = None

    @property
    def z(self) -> Tensor:
        """What the gate depends on."""
        return self.source if self.glu_dim is None else self.source.chunk(2, self.glu_dim)[1]

    def open(self) -> Tensor:
        """Where the gate is open; that of a GLU is σ(b)."""
        if self.glu_dim is not None:
            return torch.sigmoid(self.z) > EPSILON
        return open_gate(self.function, self.z)


class Kept:
    """All pre-activations and outputs of one call site, with the units moved last: (R, C).

    Attributes:
        dim: Unit axis as the package is to report it.
        flat: Whether the slope where the gate is closed is exactly zero.
        calls: How often the site was called.
    """

    def __init__(self, dim: int, flat: bool) -> None:
        self.dim = dim
        self.flat = flat
        self.calls = 0
        self._axis: int | None = None
        self._inputs: list[Array] = []
        self._outputs: list[Array] = []
        self._opened: list[Array] = []

    def keep(self, call: Call) -> None:
        if self._axis is None:  # counted from the end, for calls without a batch axis
            self._axis = self.dim if self.dim < 0 else self.dim - call.z.ndim
        self.calls += 1
        self._inputs.append(self._rows(call.z))
        self._outputs.append(self._rows(call.output))
        self._opened.append(self._rows(call.open()))

    def _rows(self, tensor: Tensor) -> Array:
        assert self._axis is not None
        wide = tensor.detach().double().movedim(self._axis, -1)
        rows: Array = wide.reshape(-1, wide.shape[-1]).numpy()
        return rows

    @property
    def z(self) -> Array:
        return np.concatenate(self._inputs)

    @property
    def h(self) -> Array:
        return np.concatenate(self._outputs)

    @property
    def open(self) -> npt.NDArray[np.bool_]:
        return np.concatenate(self._opened) > 0


@dataclass
class _Running:
    """A module call in progress; ``source`` is the input of an activation module."""

    module: nn.Module
    deaf: bool
    source: Tensor | None


class Oracle(TorchFunctionMode):
    """Keeps every activation call of a model while it is entered.

    Args:
        model: The model.
        dims: Unit axis by site name or pattern; the first that matches holds.
        own: Paths of the model's own activation modules, and whether each is flat where closed.
    """

    def __init__(
        self, model: nn.Module, dims: Mapping[str, int], own: Mapping[str, bool] | None = None
    ) -> None:
        super().__init__()
        self.kept: dict[str, Kept] = {}
        self._dims = dims
        self._own = own or {}
        self._paths: dict[nn.Module, list[str]] = defaultdict(list)
        for path, module in model.named_modules(remove_duplicate=False):
            self._paths[module].append(path)
        self._taken = {path for paths in self._paths.values() for path in paths}
        self._stack: list[_Running] = []
        self._numbers: dict[str, int] = defaultdict(int)
        self._handles: list[RemovableHandle] = []

    def __enter__(self) -> Oracle:
        self._handles = [
            register_module_forward_pre_hook(self._start),
            register_module_forward_hook(self._end, always_call=True),
        ]
        TorchFunctionMode.__enter__(self)
        return self

    def __exit__(self, *error: Any) -> None:
        TorchFunctionMode.__exit__(self, *error)
        for handle in self._handles:
            handle.remove()

    # ── modules ─────────────────────────────────────────────────────────────────────────

    def _start(self, module: nn.Module, args: Any) -> None:
        if module not in self._paths:
            return
        if not self._stack:
            self._numbers.clear()
        deaf = bool(self._stack) and self._stack[-1].deaf
        activation = not deaf and self._flat(module) is not None
        source = args[0].detach().clone() if activation else None
        self._stack.append(_Running(module, deaf or activation, source))

    def _end(self, module: nn.Module, args: Any, output: Any) -> None:
        if module not in self._paths:
            return
        running = self._stack.pop()
        assert running.module is module
        flat = self._flat(module)
        if running.source is None or flat is None or output is None:
            return
        name = self._path(module) or type(module).__name__.lower()
        dim = module.dim if isinstance(module, nn.GLU) else None
        self._keep(name, flat, Call(running.source, output, module.forward, dim))

    def _flat(self, module: nn.Module) -> bool | None:
        """None for a module that is no activation."""
        own = [self._own[path] for path in self._paths[module] if path in self._own]
        kinds = [MODULES[kind] in FLAT for kind in type(module).__mro__ if kind in MODULES]
        return next(iter(own + kinds), None)

    def _path(self, module: nn.Module) -> str:
        """Where it stands below the outermost module called, if it stands in several places."""
        root = self._stack[0].module if self._stack else module
        start = self._paths[root][0]
        places = self._paths[module]
        return next((p for p in places if start and p.startswith(f"{start}.")), places[0])

    # ── functions ───────────────────────────────────────────────────────────────────────

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if not self._stack or self._stack[-1].deaf or not args:
            return func(*args, **kwargs)
        kind = kind_of(func, args, kwargs)
        if kind is None:
            return func(*args, **kwargs)
        source = args[0].detach().clone()
        output = func(*args, **kwargs)
        path = self._path(self._stack[-1].module)
        dim = (*args[1:], kwargs.get("dim", -1))[0] if kind == "glu" else None
        kwargs.pop("inplace", None)

        def function(z: Tensor) -> Any:
            return func(z, *args[1:], **kwargs)

        name = f"{path}-{kind}" if path else kind
        if name in self._taken:  # by a module
            name = f"{path}--{kind}"
        name = self._called_past_hooks() or name
        self._keep(name, kind in FLAT, Call(source, output, function, dim))
        return output

    def _called_past_hooks(self) -> str | None:
        """The path of a torch activation of the model whose ``forward`` calls, if one does."""
        call: FrameType | None = sys._getframe(2)
        for _ in range(4):
            owner = call.f_locals.get("self") if call is not None else None
            if call is not None and call.f_code.co_name == "forward" and owner in self._paths:
                torchs = type(owner).__module__ == "torch.nn.modules.activation"
                return self._path(owner) if torchs else None
            call = call.f_back if call is not None else None
        return None

    # ── both ────────────────────────────────────────────────────────────────────────────

    def _keep(self, base: str, flat: bool, call: Call) -> None:
        if _Silence.depth:
            return
        self._numbers[base] += 1
        number = self._numbers[base]
        name = base if number == 1 else f"{base}-{number}"
        if name not in self.kept:
            self.kept[name] = Kept(self._dim(name), flat)
        with uncounted():  # nor do the functions that this calls
            self.kept[name].keep(call)

    def _dim(self, name: str) -> int:
        for pattern, dim in self._dims.items():
            if fnmatchcase(name, pattern):
                return dim
        raise KeyError(f"the setting gives no unit axis for {name!r}")


def kind_of(func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> str | None:
    """The kind of an activation function that is called on an activation, or None."""
    z = args[0]
    if not isinstance(z, Tensor) or not z.is_floating_point():
        return None
    if isinstance(z, nn.Parameter) or isinstance(z._base, nn.Parameter):
        return None
    name = str(getattr(func, "__name__", "")).strip("_").replace("log_sigmoid", "logsigmoid")
    if name in ("clamp", "clamp_min"):
        low = args[1] if len(args) > 1 else kwargs.get("min")
        high = args[2] if len(args) > 2 else kwargs.get("max")
        zero = isinstance(low, (int, float)) and low == 0
        return "clamp" if zero and high is None else None
    return name if name in KINDS - {"clamp"} else None
