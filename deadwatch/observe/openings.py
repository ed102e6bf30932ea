"""When each gate was last seen open, as far as statistics are taken."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from deadwatch.observe.accumulate import SiteState
from deadwatch.observe.transfer import by_device
from deadwatch.records import Ints


@dataclass(eq=False)
class _Line:
    """The units of all sites on one device, end to end (N,).

    Attributes:
        units: Number of units of each site, by name.
        last: The last step in which each gate was open, -1 for none.
        before: How often it had been open in this window.
    """

    units: dict[str, int]
    last: Tensor
    before: Tensor

    def parts(self) -> dict[str, tuple[Tensor, Tensor]]:
        """``last`` and ``before`` of each site."""
        sizes = list(self.units.values())
        pairs = zip(self.last.split(sizes), self.before.split(sizes), strict=True)
        return dict(zip(self.units, pairs, strict=True))


class Openings:
    """Compares how often gates have been open with how often they had been, in a few launches.

    It reads the counts of the statistics, wherever these were taken, also in compiled graphs.
    """

    def __init__(self) -> None:
        self._lines: dict[torch.device, _Line] = {}

    @torch.no_grad()
    def step(self, states: Iterable[SiteState], step: int) -> None:
        """Note what was open in a step that took statistics."""
        lying = by_device(states, lambda state: state.data["open"])
        self._align(lying)
        for device, there in lying.items():
            line = self._lines[device]
            now = torch.cat([state.data["open"] for state in there])
            line.last = torch.where(now > line.before, step, line.last)
            line.before = now

    def _align(self, lying: Mapping[torch.device, list[SiteState]]) -> None:
        """Have lines with a place for each unit; sites may be new, or on another device."""
        units = {device: {s.site.name: s.units for s in there} for device, there in lying.items()}
        if {device: line.units for device, line in self._lines.items()} == units:
            return
        known = {name: part for one in self._lines.values() for name, part in one.parts().items()}
        self._lines = {device: _line(sizes, device, known) for device, sizes in units.items()}

    def restart(self) -> None:
        """The counts begin anew."""
        for line in self._lines.values():
            line.before = torch.zeros_like(line.before)

    def fetch(self) -> dict[str, Ints]:
        """The last step in which each unit's gate was seen open, by site."""
        found: dict[str, Ints] = {}
        for line in self._lines.values():
            sizes = list(line.units.values())
            found |= zip(line.units, (p.numpy() for p in line.last.cpu().split(sizes)), strict=True)
        return found

    def state_dict(self) -> dict[str, tuple[Tensor, Tensor]]:
        """What `load` needs: ``last`` and ``before`` of each site."""
        return {name: part for line in self._lines.values() for name, part in line.parts().items()}

    def load(self, saved: Mapping[str, tuple[Tensor, Tensor]], *, empty: bool = False) -> None:
        """Go on from there; ``empty`` if another process has the counts of this window."""
        host = torch.device("cpu")
        sizes = {name: len(last) for name, (last, _) in saved.items()}
        self._lines = {host: _line(sizes, host, saved)} if saved else {}
        if empty:
            self.restart()


def _line(
    units: dict[str, int], device: torch.device, known: Mapping[str, tuple[Tensor, Tensor]]
) -> _Line:
    """A line, with what is known of sites that have as many units as before."""
    last, before = [], []
    for name, size in units.items():
        none = (
            torch.full((size,), -1, device=device),
            torch.zeros(size, dtype=torch.int64, device=device),
        )
        parts = known.get(name, none)
        parts = parts if len(parts[0]) == size else none
        last.append(parts[0].to(device))
        before.append(parts[1].to(device))
    return _Line(units, torch.cat(last), torch.cat(before))
