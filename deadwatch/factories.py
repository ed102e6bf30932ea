"""``package.module:name`` on a command line → the model and the batches that it means.

Nothing here knows torch: what a factory returns is for `deadwatch.scan` to judge.
"""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib import import_module
from itertools import islice
from pathlib import Path
from typing import Any

from deadwatch.errors import ConfigError, DeadwatchError


class FactoryError(DeadwatchError):
    """The user's own code raised an error while it made a model or batches."""


TAKEN = 8
"""Batches of a factory's own that are taken unless more are asked for."""


@dataclass(frozen=True)
class Made:
    """What the command line named.

    Attributes:
        model: The model.
        batches: Batches to run through it; None if there are none.
        optimizer: The optimizer that would train it; None if there is none.
        source: The file and the line where the model is made; None where that is not known.
    """

    model: Any
    batches: Iterable[Any] | None
    optimizer: Any
    source: tuple[Path, int] | None


def load(model: str, batches: str | None = None, optimizer: str | None = None) -> Made:
    """The model that a factory makes, batches for it and what would train it.

    Args:
        model: ``package.module:factory``; it returns a model, ``(model, batches)`` or ``(model,
            batches, optimizer)``.
        batches: ``package.module:batches``, an iterable of batches or a function without arguments
            that returns one; or a number: so many of the batches that the factory returned. By
            default at most `TAKEN` of these.
        optimizer: ``package.module:function``, called with the model; by default what the factory
            returned.

    Raises:
        ConfigError: There is no such thing, or it is not what was expected.
        FactoryError: The code that makes it raised an error.
    """
    if "" not in sys.path:
        sys.path.insert(0, "")  # as `python -m` does
    factory = _found("model", model)
    made, own, trains = _parts(_called("a model", model, factory))
    if optimizer is not None:
        trains = _called("an optimizer", optimizer, _found("--optimizer", optimizer), made)
    return Made(made, _chosen(model, own, batches), trains, _source(model, factory))


def _parts(made: Any) -> tuple[Any, Any, Any]:
    """The model, the factory's own batches and its optimizer; None for what there is not."""
    if isinstance(made, tuple) and len(made) in (2, 3):
        return (*made, None)[:3]
    return made, None, None


def _chosen(model: str, own: Any, given: str | None) -> Iterable[Any] | None:
    if given is None:
        return None if own is None else islice(_iterable(model, own), TAKEN)
    if not given.isdecimal():
        return _batches(given)
    if own is None:
        raise ConfigError(
            f"--batches {given} takes batches of the factory's own, but {model} returned none; let "
            "it return (model, batches), or give --batches package.module:batches"
        )
    if int(given) < 1:
        raise ConfigError(f"--batches is {given}; expected at least 1")
    return islice(_iterable(model, own), min(int(given), sys.maxsize))


def _source(text: str, factory: Any) -> tuple[Path, int] | None:
    """Where a factory is written; the first line of its module where it has no lines of its own."""
    try:
        plain = inspect.unwrap(factory)
        lines, first = inspect.getsourcelines(plain)
        file = inspect.getsourcefile(plain)
        decorators = (
            at for at, line in enumerate(lines) if re.match(r"\s*(async |def |class )", line)
        )
        return (Path(file), first + next(decorators, 0)) if file else None
    except (TypeError, ValueError, OSError):  # an object that is called, or code made at runtime
        file = getattr(sys.modules[text.partition(":")[0]], "__file__", None)
        return (Path(file), 1) if file else None


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


def _called(what: str, text: str, function: Callable[..., Any], *given: Any) -> Any:
    takes = "of the model" if given else "without arguments"
    if not callable(function):
        raise ConfigError(
            f"{text} is {type(function).__name__!r}; expected a function {takes} that returns "
            f"{what}"
        )
    try:
        return function(*given)
    except (Exception, SystemExit) as error:
        raise FactoryError(f"{text}() raised {_told(error)}") from error


def _told(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"
