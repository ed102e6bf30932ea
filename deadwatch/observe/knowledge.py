"""What the forwards that were followed have shown of the wiring, and what can be said from it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from deadwatch.records import Wire

Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class Wiring:
    """The wires of one site, or why they are unknown."""

    producers: tuple[Wire, ...]
    consumers: tuple[Wire, ...]
    producers_note: str
    consumers_note: str
    known_consumers: tuple[Wire, ...] = ()
    path: tuple[str, ...] = ()
    trails: tuple[tuple[str, ...], ...] = ()


@dataclass(frozen=True)
class Visit:
    """What one call of a site showed."""

    stem: tuple[Wire, ...]
    stem_note: str
    readers: tuple[Wire, ...]
    readers_note: str
    only_kept: bool
    path: tuple[str, ...] = ()
    trails: tuple[tuple[str, ...], ...] = ()


@dataclass
class Knowledge:
    """All that was shown so far.

    Attributes:
        failed: Why nothing is known after all; empty if it is.
        visits: What the calls of each site showed, each but once.
        roles: The uses of each parameter; the same use in a repeated forward is one role.
        shapes: The shape that each of them had.
        ties: Further names of a parameter that stands at several places in the model.
    """

    failed: str = ""
    visits: dict[str, list[Visit]] = field(default_factory=dict)
    roles: dict[str, set[tuple[str, int]]] = field(default_factory=dict)
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    ties: dict[str, list[str]] = field(default_factory=dict)

    def add_visit(self, site: str, visit: Visit) -> None:
        """Note what a call of a site showed."""
        visits = self.visits.setdefault(site, [])
        if visit not in visits:
            visits.append(visit)

    def add_role(self, parameter: str, role: tuple[str, int], shape: tuple[int, ...]) -> None:
        """Note that a parameter of this shape is used: in which frame, and as which use there."""
        self.roles.setdefault(parameter, set()).add(role)
        self.shapes[parameter] = shape

    def add_name(self, parameter: str, name: str) -> None:
        """Note a name of a parameter, which may be its own."""
        names = self.ties.setdefault(parameter, []) if name != parameter else []
        if name not in names:
            names.append(name)

    def learn(self, other: Knowledge) -> None:
        """Take in what another process has found of the same model."""
        self.failed = self.failed or other.failed
        for site, visits in other.visits.items():
            for visit in visits:
                self.add_visit(site, visit)
        for parameter, roles in other.roles.items():
            self.roles.setdefault(parameter, set()).update(roles)
            self.shapes[parameter] = other.shapes[parameter]
        for parameter, names in other.ties.items():
            for name in names:
                self.add_name(parameter, name)

    def saw(self, site: str) -> bool:
        """Whether there is anything to say of the site's wiring."""
        return bool(self.failed) or site in self.visits

    def wiring(self, site: str, shapes: Shapes) -> Wiring:
        """The wiring of a site; ``shapes`` are those of the model's parameters now."""
        if self.failed:
            return Wiring((), (), self.failed, self.failed)
        visits = self.visits[site]
        producers_note = next((v.stem_note for v in visits if v.stem_note), "")
        if len({visit.stem for visit in visits}) > 1:
            producers_note = producers_note or "different layers feed it in turn"
        stem = visits[0].stem
        producers_note = producers_note or self._unfit(stem, shapes)
        consumers_note = next((v.readers_note for v in visits if v.readers_note), "")
        readers = tuple(dict.fromkeys(wire for visit in visits for wire in visit.readers))
        # What reads a dead unit needs no bias of its own to be silenced.
        readers = tuple(self._without_unfit_bias(wire, shapes) for wire in readers)
        unfit = self._unfit(readers, shapes)
        return Wiring(
            () if producers_note else stem,
            () if consumers_note or unfit else readers,
            producers_note,
            consumers_note or unfit,
            readers if not unfit and all(visit.only_kept for visit in visits) else (),
            visits[0].path,
            tuple(dict.fromkeys(trail for visit in visits for trail in visit.trails)),
        )

    def _without_unfit_bias(self, wire: Wire, shapes: Shapes) -> Wire:
        alone = replace(wire, weight=None)
        return replace(wire, bias=None) if self._unfit((alone,), shapes) else wire

    def _unfit(self, wires: tuple[Wire, ...], shapes: Shapes) -> str:
        """Why wires cannot be used as they are: tied, gone, or of another size; empty if none."""
        for name in (name for wire in wires for name in wire.names):
            uses = len(self.roles.get(name, ()))
            if uses > 1:
                return f"{name} is used in {uses} places{self._also(name)}"
            if name not in shapes:
                return f"{name} is no longer a parameter of the model"
            if shapes[name] != self.shapes[name]:
                return f"{name} had shape {self.shapes[name]} and now has {shapes[name]}"
        return ""

    def _also(self, name: str) -> str:
        others = " and ".join(self.ties.get(name, ()))
        return f" (it is {others} as well)" if others else ""
