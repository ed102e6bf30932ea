"""Records ↔ plain values, such as every checkpoint holds and `torch.load` reads unsuspiciously.

Plain are dicts with names as keys, lists, tuples, strings, bytes, numbers, None and tensors:
``torch.load(..., weights_only=True)`` refuses all else. What a value was is not written down; it
is told by the type annotations of the record that is read back, so that nothing in a file decides
what is built. What is written is a copy, and so is what is read.
"""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from dataclasses import fields, is_dataclass
from enum import IntEnum
from functools import cache
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

import numpy as np
import torch
from torch import Tensor

from deadwatch.errors import DeadwatchError

VERSION = 3
"""Of the layout of what is saved; another one whenever a record gains, loses or renames a field."""


def stamped(state: Mapping[str, Any]) -> dict[str, Any]:
    """A state with the version of its layout."""
    return {"version": VERSION, **state}


def require_version(state: Any) -> None:
    """Check the version of a state before it is read.

    Raises:
        DeadwatchError: It was saved in another layout, or by something else.
    """
    if not isinstance(state, Mapping) or "version" not in state:
        found = sorted(map(str, state)) if isinstance(state, Mapping) else type(state).__name__
        raise DeadwatchError(
            f"this is no state that deadwatch saved: expected the dict that state_dict() returned, "
            f"with a 'version', found {found}"
        )
    if state["version"] != VERSION:
        raise DeadwatchError(
            f"the saved state has version {state['version']!r}, and this deadwatch reads version "
            f"{VERSION}: load it with the deadwatch that saved it, or leave it out to start anew"
        )


def to_plain(value: Any) -> Any:
    """A copy of a value in plain values; tensors and arrays become tensors on the host.

    Raises:
        DeadwatchError: It holds something that has no plain form, such as a module.
    """
    if isinstance(value, np.generic):
        return value.item()
    if value is None or type(value) in (bool, int, float, str, bytes):
        return value
    if isinstance(value, IntEnum):
        return int(value)
    if isinstance(value, Tensor):
        return value.detach().cpu().clone()
    if isinstance(value, np.ndarray):
        return torch.from_numpy(value.copy())
    if isinstance(value, range):
        return (value.start, value.stop, value.step)
    return _container_to_plain(value)


def _container_to_plain(value: Any) -> Any:
    # A report is both a record and a mapping.
    if is_dataclass(value) and not isinstance(value, type):
        return {part.name: to_plain(getattr(value, part.name)) for part in fields(value)}
    if isinstance(value, Mapping):
        return {to_plain(key): to_plain(item) for key, item in value.items()}
    if isinstance(value, AbstractSet):
        return [to_plain(item) for item in sorted(value)]
    if isinstance(value, tuple):
        return tuple(to_plain(item) for item in value)
    if isinstance(value, list):
        return [to_plain(item) for item in value]
    raise DeadwatchError(
        f"{type(value).__name__} cannot be saved in a checkpoint; expected numbers, strings, "
        "tensors, arrays, and lists, dicts or dataclasses of them"
    )


def from_plain(kind: Any, value: Any) -> Any:
    """What `to_plain` made plain.

    Args:
        kind: Its type, as an annotation would have it: ``Site``, ``tuple[Wire, ...]``.
        value: The plain value.

    Raises:
        DeadwatchError: It does not have the fields of the record it is to be.
    """
    origin = get_origin(kind) or kind
    if origin in (Union, UnionType):
        kinds = [one for one in get_args(kind) if one is not NoneType]
        return value if value is None or len(kinds) > 1 else from_plain(kinds[0], value)
    if not isinstance(origin, type):  # `Any`, or a `Literal`
        return value
    if is_dataclass(origin):
        return _record_from_plain(origin, value)
    if origin is np.ndarray:
        return value.numpy(force=True).copy()
    if origin is Tensor:
        return value.clone()
    if origin is range:
        return range(*value)
    if issubclass(origin, IntEnum):
        return origin(value)
    return _container_from_plain(origin, get_args(kind), value)


def _record_from_plain(kind: Any, value: Any) -> Any:
    hints = _hints(kind)
    if not isinstance(value, Mapping) or value.keys() != hints.keys():
        found = sorted(map(str, value)) if isinstance(value, Mapping) else type(value).__name__
        raise DeadwatchError(
            f"the saved {kind.__name__} is damaged: expected the fields {sorted(hints)}, "
            f"found {found}"
        )
    return kind(**{name: from_plain(hint, value[name]) for name, hint in hints.items()})


@cache
def _hints(kind: Any) -> dict[str, Any]:
    hints = get_type_hints(kind)
    return {part.name: hints[part.name] for part in fields(kind)}


def _container_from_plain(origin: type[Any], args: tuple[Any, ...], value: Any) -> Any:
    if issubclass(origin, Mapping):
        key, item = args or (Any, Any)
        return {from_plain(key, name): from_plain(item, one) for name, one in value.items()}
    if issubclass(origin, tuple):
        kinds = (args[0],) * len(value) if args[1:] == (...,) else args or (Any,) * len(value)
        return tuple(from_plain(one, item) for one, item in zip(kinds, value, strict=True))
    if issubclass(origin, (list, set)):
        return origin(from_plain(args[0] if args else Any, item) for item in value)
    return value
