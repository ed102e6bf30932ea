"""What a run left in its event files, put together again.

A run that was interrupted and resumed has several *sessions*; a later one takes the place of what
an earlier one had from its first window on, so that no window is there twice.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from deadwatch.errors import DeadwatchError
from deadwatch.records import State, Window
from deadwatch.show.archive import (
    COUNTS,
    DETAILS,
    EVENTS,
    FIGURES,
    LAYOUT,
    MEASURES,
    PRE_ACTIVATION,
    SHARES,
    SITES,
    UNCHANGED,
    UNITS,
    Payload,
    tag,
    unpack,
)
from deadwatch.show.intact import intact

Array = npt.NDArray[Any]


ABSENT = -1
"""In a window, a site that its model did not have then."""


@dataclass(frozen=True)
class Record:
    """One payload as an event file holds it."""

    wall_time: float
    data: bytes

    @classmethod
    def of(cls, wall_time: float, values: Array) -> Record:
        """What one event holds; a tensor of anything else than one string holds no payload."""
        item = values.item() if values.size == 1 else b""
        return cls(wall_time, item if isinstance(item, bytes) else b"")


Reader = Callable[[str], Iterable[Record]]
"""All records under a tag."""


@dataclass(frozen=True, eq=False)
class Units:
    """The units of one site over the windows of a run.

    Attributes:
        state: `State` of each unit in each window (C, W).
        details: By name, what was measured of each unit (C, W); NaN where it was not, or not kept.
        kept: Whether the shares of open gates of a window were kept (W,).
    """

    state: Array
    details: Mapping[str, Array]
    kept: Array


class Run:
    """A run, read tag by tag as it is asked for.

    Args:
        read: Gives the records under a tag.
    """

    def __init__(self, read: Reader) -> None:
        self._damaged: dict[str, int] = {}
        self._read = read

    @property
    def damaged(self) -> int:
        """How many records could not be read, of those that were asked for."""
        return sum(self._damaged.values())

    # ── windows and sites ───────────────────────────────────────────────────────────────

    @cached_property
    def _counted(self) -> list[Payload]:
        return self._joined(COUNTS)

    @cached_property
    def windows(self) -> list[Window]:
        """The windows there are, in order."""
        return [Window(p.head["window"], *p.head["steps"]) for p in self._counted]

    @cached_property
    def position(self) -> dict[int, int]:
        """Where the window of an index stands among `windows`."""
        return {window.index: at for at, window in enumerate(self.windows)}

    @cached_property
    def _layouts(self) -> list[Payload]:
        return self._payloads(LAYOUT)

    @cached_property
    def sites(self) -> list[dict[str, Any]]:
        """What is known of each site, in the order of the data."""
        found: dict[str, dict[str, Any]] = {}
        for payload in self._layouts:
            later = {site["name"]: site for site in payload.head["sites"]}
            found = {**{n: s for n, s in found.items() if n not in later}, **later}
        return list(found.values())

    @cached_property
    def row(self) -> dict[str, int]:
        """Where a site stands among `sites`, by its name."""
        return {site["name"]: at for at, site in enumerate(self.sites)}

    @cached_property
    def _rows(self) -> list[list[int]]:
        """For each window, where its sites stand among `sites`."""
        layouts = self._layouts
        keys = [(p.head["session"], p.head["window"]) for p in layouts]
        rows = [[self.row[site["name"]] for site in p.head["sites"]] for p in layouts]
        found = []
        for payload in self._counted:
            session, window = payload.head["session"], payload.head["window"]
            at = [i for i, key in enumerate(keys) if key[0] == session and key[1] <= window]
            found.append(rows[at[-1]] if at else [])
        return found

    @cached_property
    def counts(self) -> Array:
        """How many units are in each `State`: (S, W, states); 0 throughout where a site was not."""
        table = np.zeros((len(self.sites), len(self.windows), len(State)), np.int64)
        for at, (rows, payload) in enumerate(zip(self._rows, self._counted, strict=True)):
            states = payload.arrays["states"]
            if len(rows) == len(states):
                table[rows, at, : states.shape[1]] = states
        return table

    @cached_property
    def harmful(self) -> Array:
        """Whether dead units do harm (S, W): 1, 0, or -1 where that was not recorded."""
        table = np.full((len(self.sites), len(self.windows)), -1, np.int16)
        for at, (rows, payload) in enumerate(zip(self._rows, self._counted, strict=True)):
            found = payload.arrays.get("harmful")
            if found is not None and len(found) == len(rows):
                table[rows, at] = found
        return table

    @cached_property
    def dead(self) -> Array:
        """Dead units (S, W)."""
        return self.counts[..., State.DEAD]

    @cached_property
    def judged(self) -> Array:
        """Units with enough evidence for a state (S, W)."""
        judged: Array = self.counts[..., State.DEAD :].sum(-1)
        return judged

    @cached_property
    def measures(self) -> dict[str, Array]:
        """Averages over the units of each site by name (S, W); NaN where nothing was measured."""
        table = {name: np.full(self.dead.shape, np.nan) for name in MEASURES}
        rows = dict(zip((w.index for w in self.windows), self._rows, strict=True))
        for payload in self._joined(SITES):
            window = payload.head["window"]
            values = payload.arrays["measures"]
            if window in rows and len(rows[window]) == len(values):
                for column, name in enumerate(payload.head["columns"]):
                    if name in table:
                        table[name][rows[window], self.position[window]] = values[:, column]
        return table

    # ── what was done ───────────────────────────────────────────────────────────────────

    @cached_property
    def treatments(self) -> list[dict[str, Any]]:
        """All treatments, in the order of windows; none twice."""
        found = {_key(t): t for p in self._events for t in p.head.get("treatments", ())}
        return sorted(found.values(), key=lambda t: (t["window"], t["step"]))

    @cached_property
    def notes(self) -> list[dict[str, Any]]:
        """What there was to tell, and what was refused, window by window."""
        told: dict[tuple[int, str], dict[str, Any]] = {}
        for payload in self._events:
            window = payload.head["window"]
            lines = list(payload.head.get("notes", ()))
            lines += [_refused(refusal) for refusal in payload.head.get("refusals", ())]
            told |= {(window, line): {"window": window, "text": line} for line in lines}
        return list(told.values())

    @cached_property
    def outcomes(self) -> list[dict[str, Any]]:
        """What came of each remedy, as last told."""
        told = [p.head["outcomes"] for p in self._events if p.head.get("outcomes")]
        return list(told[-1]) if told else []

    @cached_property
    def findings(self) -> list[dict[str, Any]] | None:
        """What advice there is in the last window that has any; None if none was asked for.

        Each has the index of the ``window`` in which it was first told. It is the same finding as
        long as its rule and where it applies are the same; figures change.
        """
        first: dict[tuple[str, ...], int] = {}
        found: list[dict[str, Any]] | None = None
        for payload in self._events:
            if "findings" in payload.head:
                told = payload.head["findings"]
                for finding in told:
                    first.setdefault(_place(finding), payload.head["window"])
                found = [{**finding, "window": first[_place(finding)]} for finding in told]
        return found

    @cached_property
    def _events(self) -> list[Payload]:
        return [p for p in self._joined(EVENTS) if p.head["window"] in self.position]

    # ── units ───────────────────────────────────────────────────────────────────────────

    def units(self, site: str, names: Sequence[str] = DETAILS, among: slice = slice(None)) -> Units:
        """The units of one site; windows in which it was not, or had not run, are unseen.

        Args:
            site: The site's name.
            names: Of `DETAILS`, what is wanted; all of a wide layer take much memory.
            among: Which of the units are wanted.
        """
        payloads = self._payloads_of(UNITS, site)
        count = self.sites[self.row[site]]["units"]
        shape = len(self.windows), len(range(count)[among])
        state = np.full(shape, State.UNSEEN, np.uint8)  # window by window, as it is written
        details = {name: np.full(shape, np.nan, np.float32) for name in names}
        kept = np.zeros(len(self.windows), np.bool_)
        last: Array | None = None
        for at, (counted, how) in enumerate(
            zip(self._counted, self._how[self.row[site]], strict=True)
        ):
            if how == ABSENT:
                continue
            payload = payloads.get((counted.head["session"], counted.head["window"]))
            fits = payload is not None and len(payload.arrays["state"]) == count
            if how != UNCHANGED and not fits:
                last = None  # its states are lost, and so are those of windows that are as it was
            if payload is not None and fits:
                last = payload.arrays["state"][among]
                kept[at] = how == SHARES
                for name in details.keys() & payload.arrays.keys():
                    details[name][at] = payload.arrays[name][among]
            if last is not None:
                state[at] = last
        if details.keys() & set(PRE_ACTIVATION):
            self._add_figures(site, details, count, among)
        return Units(state.T, {name: table.T for name, table in details.items()}, kept)

    def _add_figures(
        self, site: str, details: Mapping[str, Array], count: int, among: slice
    ) -> None:
        payloads = self._payloads_of(FIGURES, site)
        for at, counted in enumerate(self._counted):
            payload = payloads.get((counted.head["session"], counted.head["window"]))
            for name in details.keys() & payload.arrays.keys() if payload is not None else ():
                if payload is not None and payload.arrays[name].shape == (count,):
                    details[name][at] = payload.arrays[name][among]

    def _payloads_of(self, kind: str, site: str) -> dict[tuple[str, int], Payload]:
        """What was kept of a site's units, by session and window."""
        found = self._joined(f"{kind}/{tag(site)}")
        found = [p for p in found if p.head.get("site", site) == site]
        return {(p.head["session"], p.head["window"]): p for p in found}

    @cached_property
    def _how(self) -> Array:
        """What each window kept of the units of each site (S, W); `ABSENT` where it was not."""
        table = np.full((len(self.sites), len(self.windows)), ABSENT, np.int16)
        for at, (rows, payload) in enumerate(zip(self._rows, self._counted, strict=True)):
            kept = payload.arrays["kept"]
            if len(rows) == len(kept):
                table[rows, at] = kept
        return table

    # ── reading ─────────────────────────────────────────────────────────────────────────

    def _payloads(self, name: str) -> list[Payload]:
        found = []
        self._damaged[name] = 0
        for record in sorted(self._read(name), key=lambda record: record.wall_time):
            try:
                found.append(intact(name, unpack(record.data)))
            except DeadwatchError:  # a file that is being written, or was cut short
                self._damaged[name] += 1
        return found

    def _joined(self, name: str) -> list[Payload]:
        """The payloads under a tag, in the order of windows, without what a resumed run redid."""
        kept: list[Payload] = []
        for payload in self._payloads(name):
            while kept and _redone(kept[-1], payload):
                kept.pop()
            kept.append(payload)
        return kept


def _redone(before: Payload, after: Payload) -> bool:
    if before.head["session"] != after.head["session"]:
        return bool(before.head["window"] >= after.head["window"])
    # Of one session only what is there twice, say in a copied file. Two sites may share a tag.
    return all(before.head.get(name) == after.head.get(name) for name in ("window", "site"))


def _refused(refusal: Mapping[str, Any]) -> str:
    units = len(refusal["units"])
    what = f"{refusal['remedy']} refused on {units} units of {refusal['site']}"
    return f"{what}: {refusal['reason']}"


def _place(finding: Mapping[str, Any]) -> tuple[str, ...]:
    return finding["id"], *finding["where"]


def _key(treatment: Mapping[str, Any]) -> tuple[Any, ...]:
    return treatment["site"], treatment["window"], treatment["remedy"], *treatment["units"]
