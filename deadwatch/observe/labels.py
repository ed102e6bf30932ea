"""What is known of a tensor while a forward is followed, and the means to carry it on.

A label says along which axis a tensor's units lie, what produced them, and which sites' outputs
they are. Rules (`operations.py`) carry labels from the arguments of a torch function to its result.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, fields, is_dataclass, replace
from itertools import pairwise
from typing import Any, Protocol

import torch
from torch import Tensor

from deadwatch.records import Wire

Place = tuple[int, ...]

Trail = tuple[str, ...]
"""Functions that are applied one after the other; views are left out."""


@dataclass(eq=False)
class Flow:
    """Who reads a site's output, directly or through operations that keep its units apart."""

    site: str
    consumers: list[Wire] = field(default_factory=list)
    note: str = ""
    only_kept: bool = True
    trails: list[Trail] = field(default_factory=list)

    def lose(self, reason: str, *, kept: bool = False) -> None:
        """Not all readers are known; the first reason stays.

        Args:
            reason: Why.
            kept: Whether it is only that the tensor outlives the forward: what is in the forward is
                known.
        """
        self.note = self.note or reason
        self.only_kept = self.only_kept and kept


@dataclass(frozen=True)
class Part:
    """Where units of a site's output lie along the unit axis of a tensor.

    Unit ``c`` of ``units`` is the entries from ``offset + c * block``, ``block`` of them.

    Attributes:
        flow: The site's readers so far.
        units: The units that are there; a slice may have left some behind.
        offset: Where unit 0 begins, or would begin.
        block: Entries per unit.
        padded: Whether zeros were put, or averaged, into the border on the way.
        shared: Whether other values are added to the units, or lie in their place elsewhere.
        through: The operation that changed the units' values on the way; empty if none did.
        trail: What was applied to the site's output on the way.
    """

    flow: Flow
    units: range
    offset: int = 0
    block: int = 1
    padded: bool = False
    shared: bool = False
    through: str = ""
    trail: Trail = ()

    def cut(self, start: int, stop: int) -> Part | None:
        """What is left of it in the entries from ``start`` to ``stop``; None if nothing."""
        first, head = divmod(start - self.offset, self.block)
        last, tail = divmod(stop - self.offset, self.block)
        if (head and first in self.units) or (tail and last in self.units):
            self.flow.lose("a slice cuts through the entries of a unit")
        units = range(max(first, self.units.start), min(last, self.units.stop))
        return replace(self, units=units, offset=self.offset - start) if units else None

    def moved(self, by: int) -> Part:
        """It, with ``by`` entries put ahead."""
        return replace(self, offset=self.offset + by)

    def widened(self, factor: int) -> Part:
        """It, when every entry becomes ``factor`` entries side by side."""
        return replace(self, offset=self.offset * factor, block=self.block * factor)

    def end(self, reader: str) -> None:
        """Note what its trail leads to: a layer, or what is not followed."""
        trail = (*self.trail, reader)
        if trail not in self.flow.trails and len(self.flow.trails) < MOST_TRAILS:
            self.flow.trails.append(trail)


@dataclass
class Label:
    """What is known of one tensor.

    Attributes:
        dim: The axis of its units, non-negative.
        spread: Further axes over which a reshape spread the units, most significant first.
        stem: What produced the units so far, in the order of the data.
        note: Why the producers are unknown; empty if they are known.
        parts: The sites' outputs it holds, possibly pooled, reshaped, sliced or concatenated.
        before: The labels this one continues, back along the stem.
        readers: Everything seen to read the tensor, with the entries along ``dim`` that it reads;
            None for all, or if in doubt.
        edges: How many of them autograd's graph should know.
        node: Where the tensor stands in that graph.
        lost: Why not everything that reads the tensor is known; empty if it is.
        path: What was applied since the layer that made it.
    """

    dim: int | None
    stem: tuple[Wire, ...] = ()
    note: str = ""
    parts: tuple[Part, ...] = ()
    spread: Place = ()
    before: tuple[Label, ...] = ()
    readers: list[tuple[str, range | None]] = field(default_factory=list)
    edges: int = 0
    node: tuple[Any, int] | None = None
    lost: str = ""
    path: Trail = ()

    def then(self, dim: int, **changes: Any) -> Label:
        """The label of what an operation makes of the tensor, keeping its units apart."""
        names = ("stem", "note", "parts", "spread", "path")
        same = {name: getattr(self, name) for name in names}
        return Label(dim, **(same | {"before": (self,)} | changes))

    def step(self, name: str) -> None:
        """Note a function that was applied."""
        self.path = (*self.path, name)
        self.parts = tuple(replace(part, trail=(*part.trail, name)) for part in self.parts)

    def parts_with(
        self, *, padded: bool = False, shared: bool = False, through: str = ""
    ) -> tuple[Part, ...]:
        """Its parts, with what happened to their values on the way."""
        return tuple(
            replace(
                part,
                padded=part.padded or padded,
                shared=part.shared or shared,
                through=part.through or through,
            )
            for part in self.parts
        )

    def read_by(self, reader: str, entries: range | None = None) -> None:
        """Note a reader."""
        self.readers.append((reader, entries))
        self.edges += torch.is_grad_enabled()

    @property
    def rivals(self) -> str:
        """Readers of which one may see what is done for the sake of another; empty if none."""
        spans = sorted((r.start, r.stop) for _, r in self.readers if r is not None)
        apart = all(stop <= start for (_, stop), (start, _) in pairwise(spans))
        if len(self.readers) < 2 or (apart and len(spans) == len(self.readers)):
            return ""
        return " and ".join(name for name, _ in self.readers)

    def lose_parts(self, reason: str, *, kept: bool = False) -> None:
        """Something unknown happens to the sites' outputs that it holds."""
        for part in self.parts:
            part.flow.lose(reason, kept=kept)

    def lose(self, reason: str, *, kept: bool = False) -> None:
        """Something unknown reads the tensor."""
        self.lost = self.lost or reason
        self.lose_parts(reason, kept=kept)


def cut_stem(stem: tuple[Wire, ...], start: int, stop: int) -> tuple[Wire, ...]:
    """What produced the units from ``start`` to ``stop``, counted anew from 0."""
    return tuple(replace(w, offset=w.offset + start, units=range(stop - start)) for w in stem)


class Labels(Protocol):
    """What a rule needs of the tracer."""

    def label_of(self, tensor: Tensor) -> Label | None:
        """The label of a tensor."""

    def set_label(self, tensor: Tensor, label: Label) -> None:
        """Label a tensor."""

    def forget(self, tensor: Tensor) -> None:
        """Take a tensor's label off."""

    def feed(self, weight: str | None, data: Tensor, dim: int) -> None:
        """The layer of a weight sums over axis ``dim`` < 0 of what it is given."""

    def read(self, label: Label, reader: str) -> None:
        """Note a reader that the chain does not run through."""

    def parameter_name(self, tensor: Any) -> str | None:
        """The name of a parameter of the model; None for anything else."""

    def buffer_name(self, tensor: Any) -> str | None:
        """The name of a buffer of the model; None for anything else."""


@dataclass
class Op:
    """One call of a torch function, as a rule sees it; ``shapes`` are from before the call."""

    tracer: Labels
    func: Callable[..., Any]
    name: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    result: Any
    shapes: dict[int, tuple[int, ...]]

    def argument(self, position: int, name: str) -> Any:
        """An argument given by position or by name; None if absent."""
        return self.args[position] if len(self.args) > position else self.kwargs.get(name)

    @property
    def first(self) -> Any:
        """The first argument."""
        return self.argument(0, "input")

    @property
    def label(self) -> Label | None:
        """The label of the first argument."""
        return self.tracer.label_of(self.first) if isinstance(self.first, Tensor) else None

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the first argument before the call."""
        return self.shapes[id(self.first)]

    def parameter(self, tensor: Any) -> str | None:
        """The name of a parameter of the model; None for anything else."""
        return self.tracer.parameter_name(tensor)

    def labelled(self) -> list[tuple[Tensor, Label]]:
        """All tensors among the arguments whose labels have a unit axis."""
        found = [(t, self.tracer.label_of(t)) for t in tensors_in((self.args, self.kwargs))]
        return [(t, label) for t, label in found if label is not None and label.dim is not None]

    def place(self, tensor: Tensor, label: Label) -> Place:
        """The axes of a tensor's units before the call, from the end; the unit axis is last."""
        assert label.dim is not None
        ndim = len(self.shapes[id(tensor)])
        return tuple(axis - ndim for axis in (*label.spread, label.dim))

    def on(self, first: Tensor) -> Any:
        """What the function makes of another first argument."""
        if self.args:
            return self.func(first, *self.args[1:], **self.kwargs)
        return self.func(**(self.kwargs | {"input": first}))

    def produce(self, label: Label, *known: Label) -> None:
        """Label the (first) result; labelled arguments not ``known`` are read by an unknown."""
        for tensor in tensors_in((self.args, self.kwargs)):
            other = self.tracer.label_of(tensor)
            if other is not None and not any(other is each for each in known):
                self.tracer.read(other, self.name)
        results = list(tensors_in(self.result))
        for tensor in results[1:]:
            self.tracer.forget(tensor)
        self.tracer.set_label(results[0], label)

    def follow(self, dim: int, **changes: Any) -> None:
        """Label the result as the first argument's units, kept apart, along ``dim``."""
        old = self.label
        assert old is not None
        old.read_by(self.name)
        label = old.then(dim, **changes)
        if self.name not in _VIEWS and not self._drops_nothing():
            label.step(self.name)
        self.produce(label, old)

    def _drops_nothing(self) -> bool:
        return "dropout" in self.name and self.argument(1, "p") == 0

    def keep_axis(self, place: Place, note: str) -> None:
        """Only the unit axis of the results is known: whoever reads the arguments is unknown."""
        unknown(self)
        for tensor in tensors_in(self.result):
            if tensor.ndim >= -min(place):
                *spread, dim = (axis % tensor.ndim for axis in place)
                self.tracer.set_label(tensor, Label(dim, note=note, spread=tuple(spread)))


_VIEWS = frozenset(
    {"reshape", "view", "view_as", "flatten", "unflatten", "contiguous", "clone", "__getitem__"}
    | {"to", "type", "type_as", "float", "double", "half", "bfloat16"}
)

MOST_TRAILS = 32
"""Of a site; a layer of a dense block has more readers than anyone wants to read of."""

Rule = Callable[[Op], None]


def unknown(op: Op) -> None:
    """An operation that is not understood: its readers are noted, the result is unlabelled."""
    for tensor in tensors_in((op.args, op.kwargs)):
        label = op.tracer.label_of(tensor)
        if label is not None:
            op.tracer.read(label, op.name)
    for tensor in tensors_in(op.result):
        op.tracer.forget(tensor)


def on_label(rule: Callable[[Op, Label, int], None]) -> Rule:
    """A rule for what a function does to the label and unit axis of its first argument."""

    def apply(op: Op) -> None:
        label = op.label
        if label is None or label.dim is None:
            return unknown(op)
        return rule(op, label, label.dim)

    return apply


def tensors_in(value: Any, seen: frozenset[int] = frozenset()) -> Iterator[Tensor]:
    """All tensors in nested arguments or results, which may hold themselves."""
    if isinstance(value, Tensor):
        yield value
    elif id(value) not in seen:
        parts: Iterable[Any] = ()
        if isinstance(value, dict):
            parts = list(value.values())
        elif isinstance(value, (tuple, list)):
            parts = list(value)
        elif is_dataclass(value) and not isinstance(value, type):
            parts = [getattr(value, part.name, None) for part in fields(value)]
        for part in parts:
            if not isinstance(part, _HOLDS_NOTHING):  # most arguments: looking closer takes time
                yield from tensors_in(part, seen | {id(value)})


_HOLDS_NOTHING = (type(None), bool, int, float, str)


def as_tuple(value: Any) -> tuple[Any, ...]:
    """A sequence as a tuple, anything else as the only item of one."""
    return tuple(value) if isinstance(value, (tuple, list)) else (value,)
