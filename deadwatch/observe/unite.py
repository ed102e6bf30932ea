"""What the ranks know of one site, made one.

Ranks may take other ways through a model: a site may have run on some of them only, or be read by
other layers on each. All of them have to judge and treat by the same record, which says what one
process would say that had taken all these ways.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from dataclasses import replace

import numpy as np

from deadwatch.errors import AmbiguousUnitDimWarning
from deadwatch.records import Site, SiteSnapshot, Wire


def united(found: Sequence[SiteSnapshot]) -> SiteSnapshot:
    """One record of a site out of those of the ranks that know it, in their order; without data.

    Where ranks found different numbers of units, it is that of a site without any.
    """
    ran = [snap for snap in found if snap.units]
    if not ran:
        return found[0]
    if len({snap.units for snap in ran}) > 1:
        _tell_units(ran)
        none = np.zeros(0, np.int64), np.zeros(0, np.bool_)
        return replace(ran[0], samples=0, data={}, age=none[0], flat=none[1])
    # A rank on which it has not run before knows of no samples of the windows that have ended.
    age = np.max([snap.age for snap in ran], axis=0)
    return replace(ran[0], site=_wired([snap.site for snap in ran]), age=age)


def _tell_units(ran: Sequence[SiteSnapshot]) -> None:
    site, units = ran[0].site, sorted({snap.units for snap in ran})
    warnings.warn(
        f"{site.name} has {' or '.join(map(str, units))} units, depending on the rank: axis "
        f"{site.unit_dim} holds no units (the samples, perhaps), and nothing is judged there. "
        f"Name the axis with unit_dim={{{site.name!r}: axis}}, or leave the activation out with "
        f"exclude={site.name!r}.",
        AmbiguousUnitDimWarning,
        stacklevel=3,
    )


def _wired(sites: Sequence[Site]) -> Site:
    """The wiring of a site: all that read it on any rank, and nothing where a rank is not sure."""
    first = sites[0]
    if all(site == first for site in sites):
        return first
    makers = {site.producers for site in sites}
    unmade = _note(site.producers_note for site in sites)
    if len(makers) > 1:
        unmade = unmade or "different layers feed it on different ranks"
    unread = _note(site.consumers_note for site in sites)
    within = all(site.known_consumers for site in sites)
    return replace(
        first,
        producers=() if unmade else first.producers,
        consumers=() if unread else _union(site.consumers for site in sites),
        known_consumers=_union(site.known_consumers for site in sites) if within else (),
        producers_note=unmade,
        consumers_note=unread,
    )


def _note(notes: Iterable[str]) -> str:
    return next(filter(None, notes), "")


def _union(wires: Iterable[tuple[Wire, ...]]) -> tuple[Wire, ...]:
    return tuple(dict.fromkeys(wire for some in wires for wire in some))
