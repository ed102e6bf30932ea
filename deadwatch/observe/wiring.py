"""Which parameters produce a site's units, and which read them.

Resolved from real data flow, once: while the first counted forward through each part of the model
runs, a function mode attaches a label to every tensor whose unit axis it understands and follows
it through the operations (`operations.py`). What it does not understand is recorded with its
reason, never guessed: a remedy can then refuse.

What a function mode cannot see is looked for afterwards: readers in autograd's graph that no
function accounts for (scripted modules), and tensors that the forward left in some attribute.

Words: a *stem* is the chain from a producer to the activation (convolution → norm → activation).
A *flow* is what happens to a site's output until it is read.
"""

from __future__ import annotations

import gc
import weakref
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import FrameType
from typing import Any

from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from deadwatch.observe.operations import RULES, Flow, Label, Op, tensors_in, unknown
from deadwatch.records import Wire

Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class Wiring:
    """The wires of one site, or why they are unknown."""

    producers: tuple[Wire, ...]
    consumers: tuple[Wire, ...]
    producers_note: str
    consumers_note: str


class Tracer(TorchFunctionMode):
    """Follows labels through the forwards it is entered for.

    Set ``paused`` above zero to let operations pass unseen (inside an activation, and while
    deadwatch itself computes).
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.paused = 0
        self._model = model
        self._parameters: dict[int, str] = {}
        self._buffers: dict[int, str] = {}
        self._labels: dict[int, tuple[weakref.ref[Tensor], Label]] = {}
        self._visits: dict[str, list[tuple[Label | None, Flow]]] = defaultdict(list)
        # A parameter's roles: the same use in a repeated forward is one role.
        self._roles: dict[str, set[tuple[str, int]]] = defaultdict(set)
        self._frame = ""
        self._uses: Counter[str] = Counter()
        self._visited: list[str] = []

    # ── one forward ─────────────────────────────────────────────────────────────────────

    def begin(self, frame: str) -> None:
        """A forward through the module at path ``frame`` begins."""
        self.paused = 0
        self._parameters = {id(t): name for name, t in self._model.named_parameters()}
        self._buffers = {id(t): name for name, t in self._model.named_buffers()}
        self._frame = frame
        self._uses.clear()
        self._visited.clear()

    def finish(self, output: Any) -> None:
        """The forward returned ``output``; nothing that happens to it from here on is seen."""
        for tensor in tensors_in(output):
            label = self.label_of(tensor)
            if label is not None:
                self.read(label, "code outside the forward")
        self._find_unseen_readers(output)
        self._find_kept_tensors()
        for _, label in self._labels.values():
            label.node = None

    def abandon(self) -> None:
        """The forward did not end as it should: forget what it showed of its sites."""
        for site in self._visited:
            self._visits[site].pop()
        self._visited.clear()

    def unit_dim(self, z: Tensor) -> int | None:
        """The unit axis of a pre-activation, -1 for the last one; None if unknown."""
        label = self.label_of(z)
        if label is None or label.dim is None:
            return None
        return -1 if label.dim == z.ndim - 1 else label.dim

    def enter_site(self, site: str, z: Tensor) -> None:
        """Record that activation ``site`` reads pre-activation ``z``."""
        label = self.label_of(z)
        if label is not None:
            self.read(label, site)
        self._visits[site].append((label, Flow()))
        self._visited.append(site)

    def leave_site(self, site: str, h: Tensor, dim: int) -> None:
        """Record that ``h`` is the output of activation ``site``, with units along ``dim``."""
        flow = self._visits[site][-1][1]
        self.set_label(h, Label(dim % h.ndim, note=f"fed by the activation {site}", flow=flow))

    # ── what is known of a site ─────────────────────────────────────────────────────────

    def saw(self, site: str) -> bool:
        """Whether the site ran in a traced forward."""
        return bool(self._visits.get(site))

    def wiring(self, site: str, units: int, shapes: Shapes) -> Wiring:
        """The wiring of a site; ``shapes`` are those of the model's parameters."""
        visits = self._visits[site]
        stems = [self._producers(label, units, shapes) for label, _ in visits]
        producers, producers_note = stems[0]
        for other, note in stems:
            if note or other != producers:
                producers, producers_note = (), note or "different layers feed it in turn"
        consumers: dict[Wire, None] = {}
        for _, flow in visits:
            found, note = self._consumers(flow, units, shapes)
            if note:
                return Wiring(producers, (), producers_note, note)
            consumers |= dict.fromkeys(found)
        return Wiring(producers, tuple(consumers), producers_note, "")

    def _producers(
        self, label: Label | None, units: int, shapes: Shapes
    ) -> tuple[tuple[Wire, ...], str]:
        if label is None or label.note or not label.stem:
            note = label.note if label is not None else ""
            return (), note or "no known operation produces its pre-activation"
        link: Label | None = label
        while link is not None:
            if len(link.readers) > 1:
                return (), f"its pre-activation is read by {' and '.join(link.readers)}"
            link = link.before
        for wire in label.stem:
            for name in filter(None, (wire.weight, wire.bias)):
                if len(self._roles[name]) > 1:
                    return (), self._shared(name)
                if shapes[name][0] != units:
                    return (), f"{name} has {shapes[name][0]} rows for {units} units"
        return label.stem, ""

    def _consumers(self, flow: Flow, units: int, shapes: Shapes) -> tuple[tuple[Wire, ...], str]:
        if flow.note or not flow.consumers:
            return (), flow.note or "nothing in the forward reads it"
        for wire in flow.consumers:
            for name in filter(None, (wire.weight, wire.bias)):
                if len(self._roles[name]) > 1:
                    return (), self._shared(name)
            assert wire.weight is not None
            if shapes[wire.weight][1] != units * wire.block:
                return (), f"{wire.weight} has {shapes[wire.weight][1]} columns for {units} units"
        return tuple(flow.consumers), ""

    def _shared(self, name: str) -> str:
        return f"{name} is used in {len(self._roles[name])} places"

    # ── following operations ────────────────────────────────────────────────────────────

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if self.paused:
            return func(*args, **kwargs)
        shapes = {id(t): tuple(t.shape) for t in tensors_in((args, kwargs))}
        result = func(*args, **kwargs)
        if any(True for _ in tensors_in(result)):
            name = getattr(func, "__name__", str(func))
            self._count_uses(args, kwargs)
            RULES.get(name, unknown)(Op(self, name, args, kwargs, result, shapes))
        return result

    def _count_uses(self, args: Any, kwargs: Any) -> None:
        for tensor in tensors_in((args, kwargs)):
            name = self.parameter_name(tensor)
            if name is not None:
                self._roles[name].add((self._frame, self._uses[name]))
                self._uses[name] += 1

    def label_of(self, tensor: Tensor) -> Label | None:
        """The label of a tensor."""
        reference, label = self._labels.get(id(tensor), (None, None))
        return label if reference is not None and reference() is tensor else None

    def set_label(self, tensor: Tensor, label: Label) -> None:
        """Label a tensor."""
        if label.flow is not None and tensor.grad_fn is not None:
            label.node = tensor.grad_fn, tensor.output_nr
        self._labels[id(tensor)] = (weakref.ref(tensor), label)

    def forget(self, tensor: Tensor) -> None:
        """Take a tensor's label off."""
        self._labels.pop(id(tensor), None)

    def read(self, label: Label, reader: str) -> None:
        """Note a reader that the chain does not run through."""
        label.readers.append(reader)
        if label.flow is not None:
            label.flow.lose(f"it is read by {reader}")

    def parameter_name(self, tensor: Any) -> str | None:
        """The name of a parameter of the model; None for anything else."""
        return self._parameters.get(id(tensor))

    def buffer_name(self, tensor: Any) -> str | None:
        """The name of a buffer of the model; None for anything else."""
        return self._buffers.get(id(tensor))

    # ── what a function mode does not see ───────────────────────────────────────────────

    def _find_unseen_readers(self, output: Any) -> None:
        """Compare the readers that were seen with those in the graph behind the output."""
        edges = _edges([t.grad_fn for t in tensors_in(output) if t.grad_fn is not None])
        for _, label in self._labels.values():
            seen = len(label.readers)
            if label.flow is not None and label.node is not None and edges[label.node] > seen:
                label.flow.lose("it is read by an operation that is not seen")

    def _find_kept_tensors(self) -> None:
        """A tensor that outlives its forward in some attribute can be read by anyone."""
        tensors: list[Tensor] = []
        flows: list[Flow] = []
        for reference, label in self._labels.values():
            tensor = reference()
            if tensor is not None and label.flow is not None and not label.flow.note:
                tensors.append(tensor)
                flows.append(label.flow)
        for holder in gc.get_referrers(*tensors):  # one pass over the heap for all of them
            # Frames belong to calls that are about to end.
            if holder is not tensors and not isinstance(holder, FrameType):
                held = {id(referent) for referent in gc.get_referents(holder)}
                for kept, flow in zip(tensors, flows, strict=True):
                    if id(kept) in held:
                        flow.lose(f"it is kept in a {type(holder).__name__} by the forward")


def _edges(roots: list[Any]) -> Counter[tuple[Any, int]]:
    """How many times each output of each node is read in the graph behind ``roots``."""
    found: Counter[tuple[Any, int]] = Counter()
    seen = set(roots)
    pending = list(seen)
    while pending:
        for node, output in pending.pop().next_functions:
            if node is not None:
                found[node, output] += 1
                if node not in seen:
                    seen.add(node)
                    pending.append(node)
    return found
