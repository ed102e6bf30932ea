"""Which modules of a model get hooks, and when they must be left alone.

Hooks go on every module through which a frame can be entered or a function be called, and on
every activation. In evaluation mode `nn.TransformerEncoderLayer` takes a faster way, with other
roundings, unless it or a module below has hooks or a function mode is on; so that a frozen encoder
inside a model that trains computes what it computes without us, its hooks go on and off with its
training mode, and nobody listens while it is called.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import nn
from torch.utils.hooks import RemovableHandle

from deadwatch.activations import readable
from deadwatch.observe.places import Place, within
from deadwatch.observe.sites import Selection, uncompiled


@dataclass(eq=False)
class Group:
    """Modules whose hooks go on and off together.

    Attributes:
        layer: The layer that must be without hooks in evaluation mode, if any.
        parts: The modules, and the place of those that are activations.
        handles: Their hooks.
    """

    layer: nn.Module | None = None
    parts: list[tuple[nn.Module, Place | None]] = field(default_factory=list)
    handles: list[RemovableHandle] = field(default_factory=list)

    @property
    def wants_hooks(self) -> bool:
        """Whether its hooks should be on."""
        return self.layer is None or self.layer.training


class Layout:
    """The modules of a model as `Taps` needs to know them; `refresh` follows changes.

    Args:
        model: The model.
        selection: Which activations to watch.
        yields: Whether modules that evaluate faster unwatched are left alone when they do.

    Attributes:
        places: All activation modules, also those that are not wanted.
        groups: The modules that get hooks.
        paths: The paths of every module, without what `torch.compile` adds.
        names: All these paths.
        activations: The places by their modules.
        calls_functions: Whether some module has a forward of its own, which may call anything.
    """

    def __init__(self, model: nn.Module, selection: Selection, *, yields: bool = True) -> None:
        self._model = model
        self._selection = selection
        self._yields = yields
        self.places: list[Place] = []
        self.groups: list[Group] = []
        self.paths: dict[nn.Module, list[str]] = {}
        self.names: frozenset[str] = frozenset()
        self.activations: dict[nn.Module | None, Place] = {}
        self.calls_functions = False
        self._fast: dict[nn.Module, list[nn.Module]] = {}
        self._modules: set[nn.Module] = set()
        self._find_places()

    @property
    def compiled(self) -> bool:
        """Whether a module, or a part of it, has been compiled."""
        return any(
            uncompiled(module) is not module or module._compiled_call_impl is not None
            for module in self.paths
        )

    def _find_places(self) -> None:
        self._modules = set(self._model.modules())
        known = {place.candidate.path: place for place in self.places}
        for candidate in self._selection.candidates(self._model):
            place = known.get(candidate.path)
            if place is None:
                wanted = self._selection.wants(readable(candidate.path))
                self.places.append(Place.of_module(candidate, wanted))
            elif place.candidate.module is not candidate.module:
                place.adopt(candidate)

    def refresh(self) -> None:
        """Look at the model again; modules may have been swapped."""
        if set(self._model.modules()) != self._modules:
            self._find_places()
        self.paths = {}
        for path, module in self._model.named_modules(remove_duplicate=False):
            self.paths.setdefault(module, []).append(readable(path))
        self.names = frozenset(path for paths in self.paths.values() for path in paths)
        self.groups = [Group()]
        self._fast = {}
        self.activations = {place.candidate.module: place for place in self.places}
        self._walk(self._model, self.groups[0], self._model, set())
        self.calls_functions = any(
            place is None and not is_stock(module)
            for group in self.groups
            for module, place in group.parts
        )

    def _walk(
        self,
        module: nn.Module,
        group: Group,
        above: nn.Module,
        seen: set[nn.Module],
    ) -> None:
        """Assign ``module`` and what is below; ``above`` is the nearest module sure of hooks."""
        if module in seen:
            return
        seen.add(module)
        if module in self.activations:
            group.parts.append((module, self.activations[module]))
            return
        group = self._group_of(module, group, above)
        children = list(module.children())
        if not _is_uncalled(module) and (children or not is_stock(module)):
            group.parts.append((module, None))
            above = module if group.layer is None else above
        for child in children:
            self._walk(child, group, above, seen)

    def _group_of(self, module: nn.Module, group: Group, above: nn.Module) -> Group:
        """The group of a module; one that evaluates faster unwatched has a group of its own."""
        if self._yields and isinstance(module, nn.MultiheadAttention):
            self._fast.setdefault(module, []).append(module)
        if self._yields and isinstance(module, nn.TransformerEncoderLayer):
            self._fast.setdefault(above, []).append(module)
            if module is not self._model:
                group = Group(module)
                self.groups.append(group)
        return group

    def path_of(self, module: nn.Module) -> str:
        """The first path of a module; empty for a stranger, say a replica."""
        return self.paths.get(module, [""])[0]

    def path_within(self, module: nn.Module, outermost: nn.Module) -> str:
        """The path of a module below the one whose call the frame is."""
        paths = self.paths.get(module, [""])
        return within(paths, self.path_of(outermost)) if len(paths) > 1 else paths[0]

    def must_not_listen(self, module: nn.Module) -> str:
        """Why no function mode may be on while ``module`` is called; empty if it may."""
        for fast in self._fast.get(module, ()):
            if not fast.training:
                return f"a {type(fast).__name__} in eval mode, which cannot be followed"
        return ""


def is_stock(module: nn.Module) -> bool:
    """Whether a module is one of torch's own, whose forward calls no activation function."""
    stock = type(module).__module__.startswith("torch.nn.modules.")
    return stock and not isinstance(module, _OPEN_ENDED) and "forward" not in vars(module)


def _is_uncalled(module: nn.Module) -> bool:
    return isinstance(module, _UNCALLED) and type(module).forward is nn.Module.forward


_OPEN_ENDED = (nn.TransformerEncoderLayer, nn.TransformerDecoderLayer)
"""Modules of torch that call whatever activation function they are given."""

_UNCALLED: tuple[Any, ...] = (nn.ModuleList, nn.ModuleDict, nn.ParameterList, nn.ParameterDict)
