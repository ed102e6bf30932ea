"""``package.module:name`` on a command line → the model and the batches that it means.

Nothing here knows torch: what a factory returns is for `deadwatch.scan` to judge.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from importlib import import_module
from itertools import islice
from typing import Any

from deadwatch.errors import ConfigError, DeadwatchError


class FactoryError(DeadwatchError):
    """The user's own code raised an error while it made a model or batches."""


def load(model: str, batches: str) -> tuple[Any, Iterable[Any]]:
    """The model that a factory makes, and batches for it.

    Args:
        model: ``package.module:factory``; it returns a model, or a model and its batches.
        batches: ``package.module:batches``, an iterable of batches or a function without arguments
            that returns one; or a number: so many of the batches that the factory returned.

    Raises:
        ConfigError: There is no such thing, or it is not what was expected.
        FactoryError: The code that makes it raised an error.
    """
    if "" not in sys.path:
        sys.path.insert(0, "")  # as `python -m` does
    made = _called("a model", model, _found("model", model))
    own = isinstance(made, tuple) and len(made) == 2
    if not batches.isdecimal():
        return (made[0] if own else made), _batches(batches)
    if not own:
        raise ConfigError(
            f"--batches {batches} takes batches of the factory's own, but {model} returned "
            f"{type(made).__name__!r}; let it return (model, batches), or give "
            "--batches package.module:batches"
        )
    if int(batches) < 1:
        raise ConfigError(f"--batches is {batches}; expected at least 1")
    return made[0], islice(_iterable(model, made[1]), min(int(batches), sys.maxsize))


def _batches(text: str) -> Iterable[Any]:
    found = _found("--batches", text)
    if callable(found) and not hasattr(found, "__iter__"):
        found = _called("batches", text, found)
    return _iterable(text, found)


def _iterable(text: str, batches: Any) -> Iterable[Any]:
    if not hasattr(batches, "__iter__") and not hasattr(batches, "__getitem__"):
        raise ConfigError(
            f"{text} gives {type(batches).__name__!r} for batches; expected an iterable of them, "
            "such as a DataLoader or [x]"
        )
    iterable: Iterable[Any] = batches
    return iterable


def _found(what: str, text: str) -> Any:
    path, colon, name = text.partition(":")
    if not (path and colon and name):
        raise ConfigError(f"{what} is {text!r}; expected package.module:name, as in train:make")
    module = _imported(path)
    found = module
    for part in name.split("."):
        if not hasattr(found, part):
            there = sorted(name for name in vars(module) if not name.startswith("_"))
            listed = ", ".join(there[:12]) + (" …" if len(there) > 12 else "")
            raise ConfigError(f"module {path} has no {name!r}; it has: {listed or 'no names'}")
        found = getattr(found, part)
    return found


def _imported(path: str) -> Any:
    try:
        return import_module(path)
    except ModuleNotFoundError as error:
        if error.name is not None and f"{path}.".startswith(f"{error.name}."):
            raise ConfigError(
                f"there is no module {error.name!r}; run from the directory that holds it, or set "
                "PYTHONPATH"
            ) from error
        raise FactoryError(f"importing {path} raised {_told(error)}") from error
    except (Exception, SystemExit) as error:  # a script that runs as a whole when it is imported
        raise FactoryError(f"importing {path} raised {_told(error)}") from error


def _called(what: str, text: str, function: Callable[[], Any]) -> Any:
    if not callable(function):
        raise ConfigError(
            f"{text} is {type(function).__name__!r}; expected a function without arguments that "
            f"returns {what}"
        )
    try:
        return function()
    except (Exception, SystemExit) as error:
        raise FactoryError(f"{text}() raised {_told(error)}") from error


def _told(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"
