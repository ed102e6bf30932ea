"""The roll of sites: which there are on any rank, in an order common to all.

It is kept from window to window, and only news is told: in most windows no rank has any, or all
have the same, and then nothing but one number has to be compared. Ranks that have met other sites
exchange those alone, once.

Where ranks know the same site otherwise, all go by one record of it, or they would treat otherwise:
it has the readers that any rank has seen, as it would if one process had seen all the data.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from deadwatch.records import Share, Site, SiteSnapshot, Wire

Entry = tuple[Site, int, Share]
"""A site, the number of its units in all processes, and how they are spread over these.

There are 0 units if it has never run, and `APART` if ranks do not agree on it.
"""

APART = -1

_UNITS = (
    "they have not the same number of units on all processes, so that their axis holds none (the "
    "samples, perhaps); name the axis with unit_dim={site: axis}, or leave them out with exclude"
)

_STAGES = (
    "pipeline stages {} each have an activation of this name; let the layers of each stage keep "
    "the names that they have in the whole model"
)

Answer = tuple[list[Entry], list[str]]
"""What a rank has to say after the first has spoken: what it knows otherwise, or besides; and the
names of which it has no news."""


@dataclass(eq=False)
class Roll:
    """What all ranks know of the sites that any of them has.

    Attributes:
        entries: By name, in the common order; the same on all ranks.
        said: What the others know this rank to know of each site.
        ranks: How many ranks there are.
        gauged: What any of them has told of gauges; the same on all ranks.
    """

    entries: dict[str, Entry] = field(default_factory=dict)
    said: dict[str, Entry] = field(default_factory=dict)
    ranks: int = 1
    gauged: set[tuple[str, str]] = field(default_factory=set)

    def news(self, sites: Iterable[SiteSnapshot]) -> list[Entry]:
        """What of this rank's sites is not known to all, or not as it is now."""
        return [entry_of(site) for site in sites if self._is_new(site)]

    def _is_new(self, site: SiteSnapshot) -> bool:
        name = site.site.name
        if not site.units and name in self.entries:  # others may have run it
            return False
        return entry_of(site) not in (self.said.get(name), self.entries.get(name))

    def settle(self, news: Sequence[Entry]) -> None:
        """All ranks have the same news."""
        for entry in news:
            self.entries[entry[0].name] = entry

    def answer(self, first: Sequence[Entry], news: Sequence[Entry]) -> Answer:
        """What this rank has to say to the news of the first one."""
        spoken = {entry[0].name: entry for entry in first}
        own = {entry[0].name for entry in news}
        other = [entry for entry in news if spoken.get(entry[0].name) != entry]
        return other, [name for name in spoken if name not in own]

    def combine(self, first: Sequence[Entry], answers: Sequence[Answer]) -> None:
        """Take in the news of the first rank, and what each rank had to say to them."""
        silent = {name for _, names in answers for name in names}
        # Where every rank has news, what was known before holds nowhere any more.
        outdated = {entry[0].name for entry in first} - silent
        for entry in (*first, *(entry for others, _ in answers for entry in others)):
            name = entry[0].name
            before = None if name in outdated else self.entries.get(name)
            outdated.discard(name)
            self.entries[name] = entry if before is None else _combined(before, entry)

    def told(self, sites: Iterable[SiteSnapshot]) -> None:
        """The others know what this rank knows, whatever came of it."""
        self.said |= {site.site.name: entry_of(site) for site in sites}

    def conflict(self, name: str) -> str:
        """Why a site is not one that all ranks have; empty if it is."""
        _, units, share = self.entries[name]
        if units != APART:
            return ""
        return _STAGES.format(" and ".join(map(str, share.stages))) if share.stages else _UNITS

    def align(self, sites: Iterable[SiteSnapshot]) -> list[SiteSnapshot]:
        """This rank's sites in the common order, as all know them; empty where it has none."""
        here = {site.site.name: site for site in sites}
        return [_aligned(*entry, here.get(name)) for name, entry in self.entries.items()]


def digest(news: Sequence[Entry]) -> int:
    """A number below 2⁶² that is the same for the same news, and for no other."""
    told = [
        # A wire shows only some of itself.
        (units, share, vars(site), [vars(wire) for wire in _wires(site)])
        for site, units, share in news
    ]
    return number_of(told)


def number_of(value: object) -> int:
    """A number below 2⁶² that is the same for values that look the same."""
    hashed = hashlib.blake2b(repr(value).encode(), digest_size=8).digest()
    return int.from_bytes(hashed, "big") >> 2


def _wires(site: Site) -> tuple[Wire, ...]:
    return (*site.producers, *site.consumers, *site.known_consumers)


def entry_of(site: SiteSnapshot) -> Entry:
    """What a rank knows of a site beside its figures."""
    share = Share(total=site.share.total, stages=site.share.stages)
    return site.site, site.share.total or site.units, share


def _aligned(site: Site, units: int, share: Share, own: SiteSnapshot | None) -> SiteSnapshot:
    if own is None or (own.share.total or own.units) != units:
        length = max(0, units)
        age, flat = np.zeros(length, np.int64), np.ones(length, np.bool_)
        own = SiteSnapshot(site, 0, {}, age, flat, share)
    return replace(own, site=site)


def _combined(one: Entry, other: Entry) -> Entry:
    """A site as two ranks know it."""
    (site, units, share), (same, others, spread) = one, other
    if not units or not others:
        return one if units else other
    if share.stages and spread.stages and share.stages != spread.stages:
        stages = sorted({*share.stages, *spread.stages})
        return site, APART, replace(share, stages=tuple(stages))
    if APART in (units, others) or (units, share.total) != (others, spread.total):
        return site, APART, Share()
    return _wired(site, same), units, share


def _wired(one: Site, other: Site) -> Site:
    """A site with all that either has found of its wiring."""
    if Site.producers_note in (one.producers_note, other.producers_note):  # not traced yet
        known = other if one.producers_note == Site.producers_note else one
        return replace(one, **{name: getattr(known, name) for name in _WIRING})
    producers_note = one.producers_note or other.producers_note
    if not producers_note and one.producers != other.producers:
        producers_note = "other layers feed it on other processes"
    consumers_note = one.consumers_note or other.consumers_note
    both = one.known_consumers and other.known_consumers
    return replace(
        one,
        producers=() if producers_note else one.producers,
        producers_note=producers_note,
        consumers=() if consumers_note else _union(one.consumers, other.consumers),
        consumers_note=consumers_note,
        known_consumers=_union(one.known_consumers, other.known_consumers) if both else (),
    )


def _union(one: tuple[Wire, ...], other: tuple[Wire, ...]) -> tuple[Wire, ...]:
    return tuple(dict.fromkeys((*one, *other)))


_WIRING = ("producers", "producers_note", "consumers", "consumers_note", "known_consumers")
