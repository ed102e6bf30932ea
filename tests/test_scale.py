"""Many sites: read, judged and begun anew together as each alone; memory stays what it is."""

from __future__ import annotations

import gc
import math
from dataclasses import fields
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from deadwatch import Rules, Watch
from deadwatch.errors import UnseenSiteWarning
from deadwatch.judge import rules as judging
from deadwatch.judge.rules import judge
from deadwatch.observe import stats
from deadwatch.observe.accumulate import SiteState
from deadwatch.observe.reduce import reduce
from deadwatch.observe.transfer import fetch
from deadwatch.records import Gate, Site, SiteReport, SiteSnapshot, Snapshot, Window
from deadwatch.treat.surgery import Surgery

WIDTHS = (5, 1, 300, 64, 7)


class Wide(nn.Module):
    """A site of its own width and type each, and two that never run."""

    def __init__(self) -> None:
        super().__init__()
        self.acts = nn.ModuleList([nn.ReLU(), nn.Sigmoid(), nn.ReLU6(), nn.GELU(), nn.ReLU()])
        self.never = nn.ModuleList([nn.ReLU(), nn.Tanh()])

    def forward(self, batch: list[Tensor]) -> Tensor:
        results = zip(self.acts, batch, strict=True)
        return torch.stack([act(x).sum() for act, x in results]).sum()


def batch_of(widths: tuple[int, ...]) -> list[Tensor]:
    """Inputs with dead units, NaN, infinities and, at the fourth site, eight bytes."""
    batch = [torch.randn(200, width) * 3 - 2 for width in widths]
    batch[2][:, ::3] = -1.0
    batch[1][:] = -20.0  # closed, not flat
    batch[2][:, 1], batch[2][5, 1] = -1.0, math.nan
    batch[3] = batch[3].double()
    batch[3][7] = math.inf
    batch[4][:] = -1.0  # a silent layer
    return batch


def watched() -> Watch:
    torch.manual_seed(0)
    model = Wide()
    watch = Watch(model, stats_every_n_steps=2).attach()
    for _ in range(3):
        model(batch_of(WIDTHS))
        watch.step()
    return watch


def states_of(watch: Watch) -> list[SiteState]:
    return list(watch._taps._calls.sites.values())


def same(one: Any, two: Any) -> None:
    for part in fields(one):
        mine, other = getattr(one, part.name), getattr(two, part.name)
        if isinstance(mine, np.ndarray):
            assert mine.dtype == other.dtype
            np.testing.assert_array_equal(mine, other, err_msg=part.name)
        elif part.name != "data":
            assert mine == other or mine != mine, part.name


def test_sites_are_read_together_as_each_alone() -> None:
    watch = watched()
    states = states_of(watch)
    together = fetch(states)
    for state, got in zip(states, together, strict=True):
        (alone,) = fetch([state])
        same(got, alone)
        assert list(got.data) == list(alone.data) == list(stats.STATISTICS)
        for name, tensor in state.data.items():
            np.testing.assert_array_equal(got.data[name], alone.data[name])
            expected = tensor.expand(state.units).numpy()
            np.testing.assert_array_equal(got.data[name], expected)  # bit-equal, only wider
            assert got.data[name].dtype == stats.host_dtype(stats.STATISTICS[name])


def test_all_sites_are_read_by_one_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    states, copies = states_of(watched()), []

    def counted(tensor: Tensor) -> Tensor:
        copies.append(tensor.shape)
        return to_host(tensor)

    to_host = Tensor.cpu
    monkeypatch.setattr(Tensor, "cpu", counted)
    fetch(states)
    assert len(copies) == 1


def snapshot_of(watch: Watch) -> Snapshot:
    empty = SiteSnapshot(
        Site("empty", "empty", 1, "ReLU", Gate(0.0, math.inf)),
        0,
        stats.blank(0),
        np.zeros(0, np.int64),
        np.zeros(0, np.bool_),
    )
    sites = reduce(watch._taps.read()).sites
    return Snapshot(Window(0, 0, 9), (*sites[:2], empty, *sites[2:]))


@pytest.mark.parametrize("together", [1, 70, 10**6])
def test_sites_are_judged_together_as_each_alone(
    together: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    snapshot = snapshot_of(watched())
    monkeypatch.setattr(judging, "_TOGETHER", together)
    report = judge(snapshot, Rules(min_samples=500))
    assert list(report) == [site.site.name for site in snapshot.sites]
    assert len({state for site in report.values() for state in site.state}) >= 4
    for site in snapshot.sites:
        alone = judge(Snapshot(snapshot.window, (site,)), Rules(min_samples=500))
        same(report[site.site.name], alone[site.site.name])


def test_figures_of_one_site_do_not_keep_those_of_a_large_model() -> None:
    watch = watched()
    report = watch.peek()
    for site in report.values():
        for array in arrays_of(site):
            held = array if array.base is None else array.base
            assert held.nbytes <= 8 * max(site.units, judging._TOGETHER)


def arrays_of(site: SiteReport) -> list[Any]:
    found = [getattr(site, part.name) for part in fields(site)]
    return [value for value in found if isinstance(value, np.ndarray)]


def test_a_new_window_begins_empty_at_every_site() -> None:
    watch = watched()
    with pytest.warns(UnseenSiteWarning):
        watch.close_window()
    for state in states_of(watch):
        wide = state.data["min"].dtype == torch.float64
        for name, fresh in stats.new(state.units, state.seen.device, wide=wide).items():
            assert torch.equal(state.data[name], fresh), name
        assert (int(state.seen), state.samples, state.sampled, state.checks) == (0, 0, -1, 0)


def test_a_window_without_any_site_can_be_closed() -> None:
    with Watch(nn.Sequential(nn.Linear(2, 2), nn.ReLU())) as watch, pytest.warns(UnseenSiteWarning):
        assert list(watch.close_window()) == ["1"]


@pytest.mark.parametrize("every", [1, 10])
def test_memory_is_at_most_64_bytes_a_unit(every: int) -> None:
    units = 4096
    model = nn.Sequential(nn.BatchNorm1d(units), nn.ReLU(), nn.Hardtanh())
    with Watch(model, stats_every_n_steps=every) as watch:
        for _ in range(3):
            model(torch.randn(8, units))
            watch.step()
        for state in states_of(watch):
            held = [value for value in vars(state).values() if isinstance(value, Tensor)]
            held += state.data.values()
            size = sum(tensor.numel() * tensor.element_size() for tensor in held)
            assert size <= 64 * units
        assert len(states_of(watch)) == 2


def living() -> tuple[int, int]:
    """Tensors that are alive, and their bytes."""
    gc.collect()
    tensors = [held for held in gc.get_objects() if issubclass(type(held), Tensor)]
    return len(tensors), sum(held.numel() * held.element_size() for held in tensors)


@pytest.mark.parametrize("every", [1, 10])
def test_memory_does_not_grow_between_step_10_and_step_60(every: int) -> None:
    model = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 32), nn.GELU())
    x, sizes = torch.randn(16, 8), {}
    with Watch(model, stats_every_n_steps=every) as watch:
        for step in range(1, 61):
            model(x).sum().backward()
            watch.step()
            if step in (10, 60):
                sizes[step] = living()
    assert all(now <= then for then, now in zip(sizes[10], sizes[60], strict=True))


def test_a_model_nested_deep_and_one_with_many_sites_are_watched() -> None:
    model: nn.Module = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
    for _ in range(100):  # with torch's own frames, Python's recursion ends at about 250
        model = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), model)
    flat = nn.Sequential(*(part for _ in range(1000) for part in (nn.Linear(2, 2), nn.ReLU())))
    for watched_model, sites in ((model, 101), (flat, 1000)):
        with Watch(watched_model) as watch:
            watched_model(torch.randn(4, 2))
            report = watch.close_window()
        assert len(report) == sites
        assert all(site.site.producers for site in report.values())


def test_treating_many_sites_looks_for_ties_once(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    parts = [part for _ in range(20) for part in (nn.Linear(4, 4), nn.ReLU())]
    model = nn.Sequential(*parts, nn.Linear(4, 1))
    with torch.no_grad():
        for layer in parts[::2]:
            layer.bias[0] = -100.0
    looks = []

    def survey(surgery: Surgery) -> Any:
        looks.append(surgery)
        return look(surgery)

    look = Surgery._survey
    monkeypatch.setattr(Surgery, "_survey", survey)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with Watch(model, optimizer=optimizer, policy="revive") as watch:
        model(torch.randn(400, 4)).sum().backward()
        watch.step()
        assert len(watch.close_window().treatments) >= 20
    assert len(looks) == 1


def test_ties_are_found_among_modules_that_were_put_in_since() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
    surgery, other = Surgery(model), nn.Linear(2, 2)
    other.weight = model[0].weight
    with surgery.surveyed():
        assert surgery.twins("0.weight") == []
        surgery.replace("1", other)
        assert surgery.twins("0.weight") == ["1.weight"]
    model[1] = nn.ReLU()  # by somebody else
    assert surgery.twins("0.weight") == []
