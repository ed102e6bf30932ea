"""Which modules are activations, what their call sites are called, and where their units lie."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from torch import Tensor, nn

from deadwatch.activations import SwappedActivation, kind_of, readable
from deadwatch.errors import ConfigError
from deadwatch.observe.functions import FUNCTIONS
from deadwatch.observe.gates import gate_of
from deadwatch.records import Gate


@dataclass(frozen=True)
class Candidate:
    """An activation module of the model, before it has run."""

    module: nn.Module
    activation: str
    gate: Gate
    paths: tuple[str, ...]

    @property
    def path(self) -> str:
        """The first of the paths at which the module is registered."""
        return self.paths[0]


@dataclass(frozen=True)
class Selection:
    """Which activations to watch, and overrides of their unit axis.

    Patterns (as in `fnmatch`) are matched against the path of an activation module, or the name
    of an activation function (``block-relu``).

    Attributes:
        include: Patterns of what to watch; None for all.
        exclude: Patterns of what not to watch.
        unit_dim: Unit axis by pattern, where it should not be found from the data.
    """

    include: Sequence[str] | None = None
    exclude: Sequence[str] | None = None
    unit_dim: Mapping[str, int] | None = None

    def candidates(self, model: nn.Module) -> tuple[Candidate, ...]:
        """The activation modules of ``model``, wanted or not, in registration order.

        Raises:
            ConfigError: A pattern matches no activation of the model, whether module or function.
        """
        found = tuple(_activations(model))
        paths = [readable(candidate.path) for candidate in found]
        for argument in ("include", "exclude", "unit_dim"):
            for pattern in getattr(self, argument) or ():
                if not any(fnmatchcase(path, pattern) for path in paths):
                    _require_function(argument, pattern, paths, model)
        return found

    def wants(self, base: str) -> bool:
        """Whether the activation is to be watched; ``base`` is the name of its first call."""
        included = self.include is None or _matches(base, self.include)
        return included and not _matches(base, self.exclude or ())

    def dim_of(self, base: str, module: nn.Module) -> int | None:
        """The unit axis the user, or the activation itself, prescribes."""
        for pattern, dim in (self.unit_dim or {}).items():
            if fnmatchcase(base, pattern):
                return dim
        return module.dim if isinstance(module, nn.GLU) else None


def pre_activation(module: nn.Module, z: Tensor) -> Tensor:
    """What the gate of an activation call depends on: its input, or the gating half of a GLU."""
    z = z.chunk(2, module.dim)[1] if isinstance(module, nn.GLU) else z
    return z.detach().reshape(1) if z.ndim == 0 else z.detach()


def assumed_unit_dim(z: Tensor) -> tuple[int, bool]:
    """The unit axis of a pre-activation that was not traced, and whether that is a mere guess.

    Autograd's graph tells it where nothing but element-wise operations stand between z and the
    layer that made it.
    """
    if z.ndim <= 2:
        return -1, False
    node: Any = z.grad_fn
    last = z.shape[-1]
    while node is not None:
        name = name_of(node)
        if name in _CHANNELS_FIRST:
            return 1 - z.ndim, False
        if name in _FEATURES_LAST:
            return -1, False
        if name in _OF_DTENSORS:
            spec = getattr(node, "dtensor_spec", None)  # of which z may be a local part
            last = last if spec is None else spec.shape[-1]
        followed = name in ELEMENT_WISE or (name in _VIEWS and _keeps_last(node, last))
        followed = followed or name in _OF_DTENSORS
        parents = [parent for parent, _ in node.next_functions if parent is not None]
        node = parents[0] if followed and parents else None
    return (-1 if z.ndim == 3 else 1 - z.ndim), True


_CHANNELS_FIRST = frozenset(
    {"Convolution", "NativeBatchNorm", "CudnnBatchNorm", "MiopenBatchNorm", "NativeGroupNorm"}
)
_FEATURES_LAST = frozenset({"Addmm", "Mm", "Linear", "NativeLayerNorm", "FusedRmsNorm"})
ELEMENT_WISE = frozenset(
    {"Add", "Sub", "Mul", "Div", "Relu", "Gelu", "Silu", "Tanh", "Sigmoid", "NativeDropout"}
    | {"ToCopy"}
)
"""Nodes of autograd's graph that keep every element in its place."""
_VIEWS = frozenset({"View", "UnsafeView"})
_OF_DTENSORS = frozenset({"_ToTorchTensor", "Redistribute"})


def name_of(node: Any) -> str:
    """The operation that a node of autograd's graph is of."""
    return str(node.name().rstrip("0123456789").removesuffix("Backward"))


def _keeps_last(view: Any, last: int) -> bool:
    """Whether a view only splits the first of two axes: a dense layer on more than two makes it."""
    sizes = view._saved_self_sym_sizes
    return len(sizes) == 2 and sizes[-1] == last


def _activations(model: nn.Module) -> list[Candidate]:
    paths: dict[nn.Module, list[str]] = {}
    for path, module in model.named_modules(remove_duplicate=False):
        paths.setdefault(module, []).append(path)
    found = []
    inside: set[nn.Module] = set()
    for module, places in paths.items():
        gate = gate_of(module)
        if gate is not None and module not in inside:
            found.append(Candidate(module, _function_name(module), gate, tuple(places)))
            inside.update(module.modules())
    return found


def _function_name(module: nn.Module) -> str:
    if not isinstance(module, SwappedActivation):
        return kind_of(module).__name__
    names = [type(part).__name__ for part in (module.original, module.replacement)]
    return names[1] if bool(module.units().all()) else "/".join(names)


def _matches(path: str, patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(path, pattern) for pattern in patterns)


def uncompiled(model: nn.Module) -> nn.Module:
    """The model that `torch.compile` wrapped; the model itself if it did not."""
    original = getattr(model, "_orig_mod", None)
    return original if isinstance(original, nn.Module) else model


def unwrapped(model: nn.Module) -> nn.Module:
    """The model itself, without what `torch.compile` and DDP have wrapped around it."""
    inner = uncompiled(model)
    if isinstance(inner, nn.parallel.DistributedDataParallel):
        return unwrapped(inner.get_submodule("module"))
    return model if inner is model else unwrapped(inner)


def function_base(path: str, kind: str) -> str:
    """What the first call of a function in the forward of the module at ``path`` is named."""
    return f"{path}-{kind}" if path else kind


def _require_function(argument: str, pattern: str, paths: Sequence[str], model: nn.Module) -> None:
    """Which functions a forward calls shows only when it runs; here it is what it could call."""
    kinds = {row.kind for row in FUNCTIONS.values()}
    for path, _ in model.named_modules():
        if any(fnmatchcase(function_base(readable(path), kind), pattern) for kind in kinds):
            return
    known = ", ".join(repr(path) for path in paths[:20]) or "none"
    more = f" and {len(paths) - 20} more" if len(paths) > 20 else ""
    raise ConfigError(
        f"{argument} pattern {pattern!r} matches no activation of the model; the activation "
        f"modules are: {known}{more}; a function called in a forward is named by its module, as "
        "in 'block-relu'. Patterns are those of fnmatch ('net.*') and match the name of the first "
        "call, for all calls."
    )
