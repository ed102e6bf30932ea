"""The sites that an ``nn.Sequential`` shows without being run: there the order of modules is known.

What stands outside of one, or in a module with a forward of its own, is left out.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from torch import nn
from torch.nn.parameter import is_lazy

from deadwatch.activations import kind_of, readable
from deadwatch.observe.gates import gate_of
from deadwatch.observe.sites import unwrapped
from deadwatch.records import Gate, Site, Wire

_VIEWS = (nn.Flatten, nn.Unflatten, nn.Identity)
_NORMS = {
    "batch_norm": "batch_norm",
    "instance_norm": "batch_norm",
    "layer_norm": "layer_norm",
    "group_norm": "group_norm",
}
_FOLLOWED = ("dropout", "alpha_dropout", "feature_alpha_dropout")
_POOLS = ("max_pool", "avg_pool", "adaptive_avg_pool", "adaptive_max_pool")


@dataclass
class _Open:
    """A site whose readers are being looked for."""

    site: Site
    trail: tuple[str, ...] = ()
    through: str = ""


@dataclass
class _Walk:
    """Where a walk along a sequence stands."""

    stem: tuple[Wire, ...] = ()
    path: tuple[str, ...] = ()
    units: int = 0
    open: _Open | None = None
    found: list[Site] = field(default_factory=list)

    def close(self, *ends: str, reader: Wire | None = None) -> None:
        """The open site's output has found its reader, or is lost sight of."""
        if self.open is None:
            return
        site, trail = self.open.site, (*self.open.trail, *ends)
        readers = () if reader is None else (replace(reader, through=self.open.through),)
        self.found.append(replace(site, trails=(trail,) if ends else (), consumers=readers))
        self.open = None

    def lose(self) -> None:
        """What comes next is made by something unknown."""
        self.stem, self.path, self.units = (), (), 0

    def step(self, name: str) -> None:
        """A function is applied."""
        self.path = (*self.path, name)
        if self.open is not None:
            self.open.trail = (*self.open.trail, name)


def sequences(model: nn.Module) -> tuple[Site, ...]:
    """The activations within the sequences of a model, with what is known of their wiring."""
    model = unwrapped(model)
    inner = {part for one in model.modules() if type(one) is nn.Sequential for part in one}
    found: list[Site] = []
    for path, module in model.named_modules():
        if type(module) is nn.Sequential and module not in inner:
            found += _sites(readable(path), module, last=module is model)
    names = dict.fromkeys(site.name for site in found)
    return tuple(next(site for site in found if site.name == name) for name in names)


def _sites(path: str, sequence: nn.Sequential, *, last: bool) -> list[Site]:
    walk = _Walk()
    for name, module in _flat(path, sequence):
        _walk(walk, name, module)
    walk.close(*(["return"] if last else []))
    return walk.found


def _flat(path: str, sequence: nn.Sequential) -> Iterator[tuple[str, nn.Module]]:
    for name, module in sequence.named_children():
        inner = f"{path}.{name}" if path else name
        if type(module) is nn.Sequential:
            yield from _flat(inner, module)
        else:
            yield inner, module


def _walk(walk: _Walk, path: str, module: nn.Module) -> None:
    function = _function(module)
    gate = gate_of(module)
    if isinstance(module, _VIEWS):
        return
    if gate is not None:
        _activation(walk, path, module, gate)
    elif function in _NORMS:
        _norm(walk, path, module, function)
    elif function in ("linear", "conv", "conv_transpose") and _weighted(module):
        _layer(walk, path, module, function)
    elif function.startswith("dropout") or function in (*_FOLLOWED, *_POOLS):
        if getattr(module, "p", 1.0) != 0:
            walk.step(_function(module, dimensions=True))
    else:
        walk.close(function)
        walk.lose()


def _activation(walk: _Walk, path: str, module: nn.Module, gate: Gate) -> None:
    walk.close(path)
    site = Site(path, path, 1, kind_of(module).__name__, gate)
    known = replace(site, producers=walk.stem, path=walk.path)
    walk.open = _Open(replace(known, producers_note="" if walk.stem else "not run yet"))
    walk.stem, walk.path = (), ()


def _norm(walk: _Walk, path: str, module: nn.Module, function: str) -> None:
    walk.step(function)
    kind = _NORMS[function]
    if walk.open is not None:
        walk.open.through = walk.open.through or kind
    if walk.stem:
        names = [name for name in ("weight", "bias") if getattr(module, name, None) is not None]
        weight, bias = (f"{path}.{name}" if name in names else None for name in ("weight", "bias"))
        norm = Wire(kind, path, weight, bias, units=range(walk.units), shape=(walk.units,))
        walk.stem = (*walk.stem, norm)


def _layer(walk: _Walk, path: str, module: nn.Module, kind: str) -> None:
    weight = module.get_parameter("weight")
    axis = 1 if kind == "conv_transpose" else 0
    groups = getattr(module, "groups", 1)
    units = weight.shape[axis] * (groups if axis else 1)
    bias = f"{path}.bias" if getattr(module, "bias", None) is not None else None
    wire = Wire(kind, path, f"{path}.weight", bias, axis, range(units), shape=tuple(weight.shape))
    wire = replace(wire, groups=groups if axis else 1)
    read = weight.shape[1 - axis] * (1 if axis else groups)
    block = max(1, read // walk.units) if walk.units else 1
    units_read = range(walk.units or read)
    reader = replace(wire, axis=1 - axis, units=units_read, block=block, groups=groups)
    walk.close(kind, reader=reader)
    walk.stem, walk.path, walk.units = (wire,), (), units


def _weighted(module: nn.Module) -> bool:
    """Whether a layer's weight is a parameter of its own: not lazy, computed or quantised."""
    own = dict(module.named_parameters(recurse=False))
    return "weight" in own and not any(is_lazy(parameter) for parameter in own.values())


def _function(module: nn.Module, *, dimensions: bool = False) -> str:
    """What the function of a module of `torch.nn` is called: ``"max_pool2d"`` or ``"max_pool"``."""
    if not type(module).__module__.startswith("torch.nn"):
        return type(module).__name__
    name = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", type(module).__name__).lower()
    name = {"rmsnorm": "rms_norm"}.get(name, name)
    return name if dimensions else re.sub(r"[123]d$", "", name)
