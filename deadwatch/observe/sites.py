"""Which modules are activations, what their call sites are called, and where their units lie."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from torch import Tensor, nn

from deadwatch.activations import SwappedActivation
from deadwatch.errors import ConfigError
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
    """Which activation modules to watch, and overrides of their unit axis.

    Attributes:
        include: Patterns (as in `fnmatch`) of module paths to watch; None for all.
        exclude: Patterns of module paths not to watch.
        unit_dim: Unit axis by pattern, where it should not be found from the data.
    """

    include: Sequence[str] | None = None
    exclude: Sequence[str] | None = None
    unit_dim: Mapping[str, int] | None = None

    def candidates(self, model: nn.Module) -> tuple[Candidate, ...]:
        """The activation modules of ``model`` to watch, in registration order.

        Raises:
            ConfigError: A pattern matches no activation of the model.
        """
        found = tuple(_activations(model))
        paths = [candidate.path for candidate in found]
        for argument in ("include", "exclude", "unit_dim"):
            for pattern in getattr(self, argument) or ():
                _require_match(argument, pattern, paths)
        return tuple(candidate for candidate in found if self._wants(candidate.path))

    def _wants(self, path: str) -> bool:
        included = self.include is None or _matches(path, self.include)
        return included and not _matches(path, self.exclude or ())

    def dim_of(self, candidate: Candidate) -> int | None:
        """The unit axis the user, or the activation itself, prescribes."""
        for pattern, dim in (self.unit_dim or {}).items():
            if fnmatchcase(candidate.path, pattern):
                return dim
        return candidate.module.dim if isinstance(candidate.module, nn.GLU) else None


def pre_activation(module: nn.Module, z: Any) -> Tensor:
    """What the gate of an activation call depends on: its input, or the gating half of a GLU."""
    if not isinstance(z, Tensor):
        raise TypeError(f"expected a tensor as input, found {type(z).__name__}")
    return z.chunk(2, module.dim)[1] if isinstance(module, nn.GLU) else z


def assumed_unit_dim(z: Tensor) -> tuple[int, bool]:
    """The unit axis of a pre-activation of unknown origin, and whether that is a mere guess."""
    if z.ndim <= 2:
        return -1, False
    return (-1 if z.ndim == 3 else 1 - z.ndim), True


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
        return type(module).__name__
    names = [type(part).__name__ for part in (module.original, module.replacement)]
    return names[1] if bool(module.deadwatch_mask.all()) else "/".join(names)


def _matches(path: str, patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(path, pattern) for pattern in patterns)


def _require_match(argument: str, pattern: str, paths: Sequence[str]) -> None:
    if not any(fnmatchcase(path, pattern) for path in paths):
        known = ", ".join(repr(path) for path in paths[:20]) or "none"
        more = f" and {len(paths) - 20} more" if len(paths) > 20 else ""
        raise ConfigError(
            f"{argument} pattern {pattern!r} matches no activation of the model; "
            f"the activation modules are: {known}{more}. Patterns are those of fnmatch ('net.*')."
        )
