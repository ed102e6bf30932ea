"""Loading what holds swapped activations: the model takes the architecture of the state dict.

The state dict alone says what to do: where it holds a swap one is put in, and where it holds none
it is taken out again. So a checkpoint can be loaded whether it is from before a swap, from after
it, or from another model's run.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

from torch import Tensor, nn

from deadwatch.activations import MASK, SETTINGS, SHARE, Replacement, SwappedActivation, readable
from deadwatch.errors import ConfigError, DeadwatchError
from deadwatch.treat.surgery import Surgery

Module = TypeVar("Module", bound=nn.Module)


def restore(model: nn.Module, state_dict: Mapping[str, Any], *, strict: bool = True) -> Any:
    """Load a state dict into a model, putting in and taking out swaps as the state dict has them.

    Build the optimizer afterwards: the slopes of a PReLU swap are then among
    ``model.parameters()`` where they were when the optimizer's state was saved. If it has parameter
    groups, load the state of the `Watch` before the optimizer's: that puts them in theirs. What
    `torch.compile`, `DataParallel`, `AveragedModel` or a `LightningModule` put before the names is
    seen through.

    Args:
        model: The model, swapped or not.
        state_dict: Of the same model, swapped or not.
        strict: As for `torch.nn.Module.load_state_dict`.

    Returns:
        What `torch.nn.Module.load_state_dict` returns: missing and unexpected keys.

    Raises:
        ConfigError: An argument is no model or no state dict.
        DeadwatchError: The state dict swaps an activation that the model does not have.

    Example:
        >>> deadwatch.restore(model, torch.load("model.pt"))
    """
    if not isinstance(model, nn.Module):
        raise ConfigError(f"model is {type(model).__name__!r}; expected a torch.nn.Module")
    if not isinstance(state_dict, Mapping):
        kind = type(state_dict).__name__
        raise ConfigError(f"state_dict is {kind!r}; expected what model.state_dict() returned")
    if isinstance(state_dict.get("state_dict"), Mapping):
        raise ConfigError(
            "state_dict is a whole checkpoint; expected checkpoint['state_dict'] (for a "
            "LightningModule, deadwatch.load_from_checkpoint reads the file itself)"
        )
    renamed = _named_as_in(model, state_dict)
    _reconcile(model, renamed, strict)
    return model.load_state_dict(renamed, strict=strict)


def load_from_checkpoint(cls: type[Module], path: Any, **arguments: Any) -> Module:
    """`LightningModule.load_from_checkpoint`, also for checkpoints that hold swaps.

    Args:
        cls: The class of the `LightningModule`, of either package.
        path: As for ``cls.load_from_checkpoint``.
        arguments: As for ``cls.load_from_checkpoint``: ``strict``, ``map_location``,
            ``weights_only`` and what the class itself takes.

    Returns:
        The module, swapped as it was when the checkpoint was written.

    Raises:
        ConfigError: ``cls`` is not the class of a `LightningModule`.
        DeadwatchError: The checkpoint swaps an activation that the module does not have.

    Example:
        >>> net = deadwatch.load_from_checkpoint(Net, "last.ckpt")
    """
    if not inspect.isclass(cls) or not hasattr(cls, "load_from_checkpoint"):
        raise ConfigError(
            f"{cls!r} has no load_from_checkpoint; expected the class of a LightningModule (for "
            "any other model, use deadwatch.restore(model, state_dict))"
        )

    def load_state_dict(self: Any, state_dict: Any, strict: bool = True, **more: Any) -> Any:
        self.__class__ = cls
        _reconcile(self, state_dict, strict)
        return self.load_state_dict(state_dict, strict=strict, **more)

    # Lightning makes the module and loads it in one go; this is the moment between the two.
    namespace = {"load_state_dict": load_state_dict, "__module__": cls.__module__}
    between: Any = type(cls.__name__, (cls,), {**namespace, "__qualname__": cls.__qualname__})
    module: Module = between.load_from_checkpoint(path, **arguments)
    return module


def follow(copy: nn.Module, model: nn.Module) -> None:
    """Give a copy of a model, say one that averages its weights, the swaps that the model has.

    All weights that the copy has already stay as they are, slopes included.
    """
    surgery, had = Surgery(copy), _swapped(copy)
    for path, module in _swapped(model).items():
        state = module.state_dict()
        _put_in(surgery, path, {f"{path}.{key}": value for key, value in state.items()})
        mine = surgery.module(path)
        own = mine.state_dict() if had.get(path) is mine else {}
        mine.load_state_dict(state | {k: v for k, v in own.items() if k.startswith("replacement")})
    _take_out(surgery, had.keys() - _swapped(model).keys())


def reconcile_on_load(module: nn.Module) -> None:
    """Let a module restore swaps whenever a state dict is loaded into it."""
    forget_loading(module)
    module.register_load_state_dict_pre_hook(_before_loading)


def forget_loading(module: nn.Module) -> None:
    """End what `reconcile_on_load` began, on a deep copy of the module as well."""
    hooks: dict[int, Any] = module._load_state_dict_pre_hooks  # torch wraps each of them
    for key in [key for key, wrapped in hooks.items() if wrapped.hook is _before_loading]:
        del hooks[key]


def _before_loading(
    module: nn.Module,
    state_dict: Mapping[str, Any],
    prefix: str,
    *_: Any,
) -> None:
    """The hook: a function of this module, so that a copy or pickle of the model may hold it.

    It cannot know whether the load is strict; what finds no place fails there if it is.
    """
    own = {k.removeprefix(prefix): v for k, v in state_dict.items() if k.startswith(prefix)}
    _reconcile(module, own, strict=False)


def _reconcile(model: nn.Module, state_dict: Mapping[str, Any], strict: bool) -> None:
    """Put in the swaps that the state dict has, and take out those that it lacks."""
    suffix = f".{SETTINGS}"
    wanted = {k.removesuffix(suffix): v for k, v in state_dict.items() if k.endswith(suffix)}
    modules = dict(model.named_modules(remove_duplicate=False))
    surgery = Surgery(model)
    strangers = sorted(wanted.keys() - modules.keys())
    if strangers and strict:
        raise DeadwatchError(
            f"the state dict swaps the activation {strangers[0]!r}, and the model has no module "
            "of that path; build the model as it was when this was saved, or pass the part of "
            "the model that this belongs to"
        )
    for path in sorted(wanted.keys() & modules.keys()):
        _put_in(surgery, path, state_dict)
    gone = _swapped(model).keys() - wanted.keys()
    if gone and _covers(state_dict, model):
        _take_out(surgery, gone)


def _put_in(surgery: Surgery, path: str, state_dict: Mapping[str, Any]) -> None:
    settings = Replacement.unpacked(state_dict[f"{path}.{SETTINGS}"])
    if f"{path}.{MASK}" not in state_dict:
        raise DeadwatchError(
            f"the state dict says what the activation {path!r} was swapped to, and not for which "
            f"units: {path}.{MASK} is missing; load it as it was saved, or without any of "
            f"{path}.deadwatch_*"
        )
    mask, annealed = state_dict[f"{path}.{MASK}"], f"{path}.{SHARE}" in state_dict
    old = surgery.module(path)
    if isinstance(old, SwappedActivation):
        same = len(old.deadwatch_mask) == len(mask) and old.settings == settings
        if same and (old.deadwatch_share is not None) == annealed:
            return
        old = old.restored()
    if any(True for _ in old.parameters()):
        raise DeadwatchError(
            f"the state dict swaps the activation {path!r}, and the model has a "
            f"{type(old).__name__} there; build the model as it was when this was saved"
        )
    beside = surgery.beside(path)
    mask = mask if beside is None else mask.to(beside.device)
    new = SwappedActivation(old, settings, mask, annealed=annealed)
    slopes = state_dict.get(f"{path}.replacement.weight")
    if isinstance(slopes, Tensor):
        new.replacement.to(slopes.dtype)
    surgery.replace(path, new)


def _take_out(surgery: Surgery, paths: Iterable[str]) -> None:
    for path in paths:
        module = surgery.module(path)
        if isinstance(module, SwappedActivation):  # it is not, if it stood at another path, too
            surgery.replace(path, module.restored())


def _swapped(model: nn.Module) -> dict[str, SwappedActivation]:
    named = model.named_modules(remove_duplicate=False)
    return {path: module for path, module in named if isinstance(module, SwappedActivation)}


def _covers(state_dict: Mapping[str, Any], model: nn.Module) -> bool:
    """Whether a state dict is of the whole model, so that a swap it lacks was not there."""
    inside = tuple(f"{path}." for path in _swapped(model))
    return all(key in state_dict or key.startswith(inside) for key in model.state_dict())


def _named_as_in(model: nn.Module, state_dict: Mapping[str, Any]) -> dict[str, Any]:
    """A state dict under the names that the model has, compiled and wrapped or not."""
    if _covers(state_dict, model):
        return dict(state_dict)
    paths = {_tidy(path): path for path, _ in model.named_modules(remove_duplicate=False)}
    averages = "n_averaged" in model.state_dict()
    tidy = {_tidy(k): v for k, v in state_dict.items() if averages or k != "n_averaged"}
    roots = {_tidy(name).split(".")[0] for name in (*paths, *model.state_dict())} - {""}
    while tidy and not any(key.split(".")[0] in roots for key in tidy):
        first = {key.partition(".")[0] for key in tidy}
        if len(first) > 1 or not all("." in key for key in tidy):
            break
        tidy = {key.partition(".")[2]: value for key, value in tidy.items()}
    return {_named(key, paths): value for key, value in tidy.items()}


def _named(key: str, paths: Mapping[str, str]) -> str:
    """A key with the longest module path in it as the model has it."""
    owner, _, leaf = key.rpartition(".")
    while owner not in paths:
        owner, _, inner = owner.rpartition(".")
        leaf = f"{inner}.{leaf}"
    return f"{paths[owner]}.{leaf}" if paths[owner] else leaf


def _tidy(name: str) -> str:
    """A name without what `torch.compile` and parallel wrappers put into it."""
    parts = readable(name).split(".")
    return ".".join(parts[1:] if parts[:1] == ["module"] and len(parts) > 1 else parts)
