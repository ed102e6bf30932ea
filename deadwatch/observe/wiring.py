"""Which parameters produce a site's units, and which read them.

Resolved from real data flow, once: while the first counted forward through each part of the model
runs, the tracer is handed every torch function that is called; it attaches a label to every tensor
whose unit axis it understands (`labels.py`) and follows it through the operations
(`operations.py`). What it does not understand is recorded with its reason, never guessed: a remedy
can then refuse.

What a function mode cannot see is looked for afterwards: readers in autograd's graph that no
function accounts for (scripted modules), and tensors that the forward left in some attribute.

Words: a *stem* is the chain from a producer to the activation (convolution → norm → activation).
A *flow* is what happens to a site's output until it is read.
"""

from __future__ import annotations

import gc
import sys
import warnings
import weakref
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from deadwatch.errors import UnknownWiringWarning
from deadwatch.observe.arithmetic import unlisted
from deadwatch.observe.hooks import no_dispatch_modes
from deadwatch.observe.inputs import Inputs
from deadwatch.observe.knowledge import Knowledge, Visit
from deadwatch.observe.labels import Flow, Label, Op, Part, Trail, cut_stem, tensors_in, unknown
from deadwatch.observe.naming import Names
from deadwatch.observe.operations import RULES
from deadwatch.records import Wire

_PASSES_ON = "RegisterPostBackwardFunctionBackward"
"""The node that ``fully_shard`` puts behind each input of a module, to know when its backward ends.

It is no torch function, and passes its inputs on as they are."""


@dataclass(frozen=True)
class _Call:
    """A call of a site in the forward in progress."""

    label: Label | None
    stem: tuple[Wire, ...]
    flow: Flow
    note: str
    path: Trail


class Tracer:
    """Follows labels through the operations of a forward, which `run` is given one by one.

    If following fails, the wiring of every site is unknown, and the forward goes on.

    Attributes:
        knowledge: What the forwards showed.
        inputs: What layers are given, if that is asked for.
    """

    def __init__(self, model: nn.Module) -> None:
        self.knowledge = Knowledge()
        self.inputs: Inputs | None = None
        self._model = model
        self._names = Names(model)
        self._labels: dict[int, tuple[weakref.ref[Tensor], Label]] = {}
        self._frame = ""
        self._uses: Counter[str] = Counter()
        self._open: dict[str, _Call] = {}

    # ── one forward ─────────────────────────────────────────────────────────────────────

    def begin(self, frame: str, given: Any = ()) -> None:
        """A forward through the module at path ``frame`` begins, with these arguments."""
        self._names.begin()
        for name, alias in self._names.aliases():
            self.knowledge.add_name(name, alias)
        self._frame = frame
        self._uses.clear()
        self.abandon()
        if self.inputs is not None:
            self.inputs.begin(given)

    def finish(self, output: Any) -> None:
        """The forward returned ``output``; nothing that happens to it from here on is seen."""
        try:
            for tensor in tensors_in(output):
                label = self.label_of(tensor)
                if label is not None:
                    self.read(label, "code outside the forward", kept=True)
            self._find_unseen_readers(output)
            self._find_kept_tensors(output)
            for site, visit in [(site, _visit(call)) for site, call in self._open.items()]:
                self.knowledge.add_visit(site, visit)
        except Exception as error:  # never break training
            self._fail(error)
        self.abandon()

    def abandon(self) -> None:
        """The forward did not end as it should: forget what it showed."""
        self._labels.clear()
        self._open.clear()
        if self.inputs is not None:
            self.inputs.end()

    def unit_dim(self, z: Tensor) -> int | None:
        """The unit axis of a pre-activation, counted from the end; None if unknown."""
        label = self.label_of(z)
        return None if label is None or label.dim is None else label.dim - z.ndim

    def enter_site(self, site: str, z: Tensor, dim: int, units: int) -> None:
        """Activation ``site`` reads ``z``, whose last ``units`` along ``dim`` < 0 are its units."""
        label = self.label_of(z)
        note, stem = "", tuple[Wire, ...]()
        if label is not None:
            self.read(label, site)
            stem = cut_stem(label.stem, z.shape[dim] - units, z.shape[dim])
            if label.dim != dim + z.ndim:
                note = "its units lie on another axis than those of its producer"
        path = () if label is None else label.path
        self._open[site] = _Call(label, stem, Flow(site), note, path)

    def leave_site(self, site: str, h: Tensor, dim: int) -> None:
        """Tensor ``h`` is the output of activation ``site``, with units along ``dim`` < 0."""
        label, flow = self._open[site].label, self._open[site].flow
        if label is not None and label.node is not None and h.grad_fn is not None:
            # The function may read its input several times; all of them are the site's own.
            label.edges += _edges([h.grad_fn], until=label.node[0])[label.node] - 1
        parts = (Part(flow, range(h.shape[dim])),)
        spread = label.spread if label is not None else ()
        note = f"fed by the activation {site}"
        self.set_label(h, Label(dim % h.ndim, note=note, parts=parts, spread=spread))

    def overlook(self, module: nn.Module, arguments: Any, reason: str) -> None:
        """The operations of ``module`` will not be seen, for ``reason``."""
        for tensor in (*tensors_in(arguments), *module.parameters()):
            label = self.label_of(tensor)
            if label is not None:
                self.read(label, reason)
        self._count_uses(tuple(module.parameters()), {}, None)

    # ── following operations ────────────────────────────────────────────────────────────

    def run(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Call a torch function and follow the labels of its arguments into its result."""
        if self.knowledge.failed:
            return func(*args, **kwargs)
        with torch._C.DisableTorchFunction():
            shapes = self._shapes(args, kwargs)
        result = func(*args, **kwargs)
        try:
            # What looks at tensors here is nothing that other modes should follow.
            with torch._C.DisableTorchFunction(), no_dispatch_modes():
                self._follow(func, args, kwargs, result, shapes)
        except Exception as error:  # never break training
            self._fail(error)
        return result

    def _follow(
        self, func: Any, args: Any, kwargs: Any, result: Any, shapes: dict[int, tuple[int, ...]]
    ) -> None:
        # What returns nothing may have written; what returns no tensor only looked, and so does
        # who asks whether a tensor is a view, as fully_shard does.
        if _name(func) == "_base":
            return
        if result is None or any(True for _ in tensors_in(result)):
            self._count_uses(args, kwargs, result)
            name = _name(func)
            rule = unknown if result is None else RULES.get(name, unlisted)
            rule(op := Op(self, func, name, args, kwargs, result, shapes))
            if self.inputs is not None:
                self.inputs.follow(op)

    def _shapes(self, args: Any, kwargs: Any) -> dict[int, tuple[int, ...]]:
        try:
            return {id(t): tuple(t.shape) for t in tensors_in((args, kwargs)) if not is_lazy(t)}
        except Exception as error:  # never break training
            self._fail(error)
            return {}

    def _fail(self, error: Exception) -> None:
        why = f"following the data failed ({type(error).__name__}: {error})"
        self.knowledge.failed = why
        warnings.warn(
            f"{why}: which layers produce and read units is not known, and remedies that "
            "need it will refuse. Watching goes on.",
            UnknownWiringWarning,
            stacklevel=3,
        )

    def _count_uses(self, args: Any, kwargs: Any, result: Any) -> None:
        """Count the uses of parameters, also by way of views; taking a view is no use yet."""
        for tensor in tensors_in((args, kwargs)):
            parameter = tensor if self.parameter_name(tensor) else tensor._base
            name = self.parameter_name(parameter)
            if parameter is not None and name is not None and not _views(result, parameter):
                role = self._frame, self._uses[name]
                self.knowledge.add_role(name, role, tuple(parameter.shape))
                self._uses[name] += 1

    def label_of(self, tensor: Tensor) -> Label | None:
        """The label of a tensor."""
        reference, label = self._labels.get(id(tensor), (None, None))
        if reference is None or reference() is not tensor:
            return None
        self._pass_on(tensor, label)
        return label

    def _pass_on(self, tensor: Tensor, label: Label | None) -> None:
        """Note which node ``fully_shard`` has put behind the input of a module.

        Its function calls ``view_as`` on the input, which is seen, but not yet with the node.
        """
        node = tensor.grad_fn
        if label is None or label.node is not None or node is None or node.name() != _PASSES_ON:
            return
        label.node = node, tensor.output_nr
        for before in label.before:
            before.edges += 1

    def feed(self, weight: str | None, data: Tensor, dim: int) -> None:
        """The layer of a weight sums over axis ``dim`` < 0 of what it is given."""
        if self.inputs is not None and weight is not None:
            self.inputs.take(weight, data, dim)

    def set_label(self, tensor: Tensor, label: Label) -> None:
        """Label a tensor."""
        if tensor.grad_fn is not None:
            label.node = tensor.grad_fn, tensor.output_nr
        self._labels[id(tensor)] = (weakref.ref(tensor), label)

    def forget(self, tensor: Tensor) -> None:
        """Take a tensor's label off."""
        self._labels.pop(id(tensor), None)

    def read(self, label: Label, reader: str, *, kept: bool = False) -> None:
        """Note a reader that the chain does not run through."""
        label.read_by(reader)
        for part in label.parts:
            part.end("return" if kept else reader)
        label.lose_parts(f"it is read by {reader}", kept=kept)

    def parameter_name(self, tensor: Any) -> str | None:
        """The name of a parameter of the model; None for anything else."""
        return self._names.parameter(tensor)

    def buffer_name(self, tensor: Any) -> str | None:
        """The name of a buffer of the model; None for anything else."""
        return self._names.buffer(tensor)

    # ── what a function mode does not see ───────────────────────────────────────────────

    def _find_unseen_readers(self, output: Any) -> None:
        """Compare the readers that were seen with those in the graph behind the output."""
        found = [*tensors_in(output), *tensors_in(getattr(output, "__dict__", None))]
        edges = _edges([t.grad_fn for t in found if t.grad_fn is not None])
        for _, label in self._labels.values():
            if label.node is not None and edges[label.node] > label.edges:
                label.lose(
                    "it is read by something that is no torch function, say a scripted module"
                )

    def _find_kept_tensors(self, output: Any) -> None:
        """A tensor that outlives its forward in some attribute can be read by anyone.

        So can the output, of which that has been noted.
        """
        returned = {id(tensor) for tensor in tensors_in(output)}
        tensors: list[Tensor] = []
        labels: list[Label] = []
        for reference, label in self._labels.values():
            if label.lost or not _is_held(reference):
                continue
            tensor = reference()
            if tensor is not None and id(tensor) not in returned:
                tensors.append(tensor)
                labels.append(label)
        # One pass over the heap for all of them; it takes as long as the heap is large.
        for holder in gc.get_referrers(*tensors) if tensors else ():
            # Frames belong to calls that are about to end.
            if holder is not tensors and not isinstance(holder, FrameType):
                held = {id(referent) for referent in gc.get_referents(holder)}
                for kept, label in zip(tensors, labels, strict=True):
                    if id(kept) in held:
                        holder_name = type(holder).__name__
                        label.lose(f"it is kept in a {holder_name} by the forward", kept=True)


def _is_held(reference: weakref.ref[Tensor]) -> bool:
    """Whether anything in Python may hold a tensor, and not autograd's graph alone."""
    tensor: Any = reference()
    unheld = _references_of_graph()
    if tensor is None or unheld is None or _owners(tensor) < 2:
        return tensor is not None
    del tensor
    return _references(reference) > unheld


def _owners(tensor: Tensor) -> int:
    count: int = tensor._use_count()  # type: ignore[attr-defined]
    return count


def _references(reference: weakref.ref[Tensor]) -> int:
    tensor = reference()
    return sys.getrefcount(tensor)


@cache
def _references_of_graph() -> int | None:
    """How often a tensor is referred to that nothing in Python holds.

    None with a torch that counts no more references where Python holds it as well.
    """
    if not hasattr(Tensor, "_use_count"):
        return None
    # Nothing that is done here may be recorded, say by a checkpoint around it.
    with no_dispatch_modes(), torch._C.DisableTorchFunction(), torch.inference_mode(False):
        free, held = torch.zeros(1), torch.zeros(1)
        views = free.view(1), held.view(1)  # which hold them, as a graph does
    reference = weakref.ref(free)
    del free
    alone = _references(reference)
    told = len(views) == 2 and _references(weakref.ref(held)) > alone
    return alone if told else None


def _views(result: Any, base: Tensor) -> bool:
    return any(tensor._base is base for tensor in tensors_in(result))


def _name(func: Callable[..., Any]) -> str:
    name = getattr(func, "__name__", str(func))
    # Reading a property such as x.T calls the getter of its descriptor.
    return str(func.__self__.__name__) if name == "__get__" else name  # type: ignore[attr-defined]


def _visit(call: _Call) -> Visit:
    label, flow, stem = call.label, call.flow, call.stem
    stem_note = "no known operation produces its pre-activation"
    if label is not None and (label.note or stem):
        stem_note = label.note or call.note or _other_readers(label)
    readers_note = flow.note or ("" if flow.consumers else "nothing in the forward reads it")
    readers, known = tuple(flow.consumers), flow.only_kept
    trails = tuple(flow.trails)
    return Visit(
        () if stem_note else stem, stem_note, readers, readers_note, known, call.path, trails
    )


def _other_readers(label: Label) -> str:
    """What else reads the stem, so that a treatment would show there as well."""
    pending = [label]
    while pending:
        link = pending.pop()
        if link.rivals:
            return f"its pre-activation is read by {link.rivals}"
        if link.lost:
            return f"its pre-activation: {link.lost}"
        pending += link.before
    return ""


def _edges(roots: list[Any], until: Any = None) -> Counter[tuple[Any, int]]:
    """How often each output of each node is read in the graph behind ``roots``, to ``until``."""
    found: Counter[tuple[Any, int]] = Counter()
    seen = set(roots)
    pending = list(seen)
    while pending:
        for node, output in pending.pop().next_functions:
            if node is not None:
                found[node, output] += 1
                if node not in seen and node is not until:
                    seen.add(node)
                    pending.append(node)
    return found
