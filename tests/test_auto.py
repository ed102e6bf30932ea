"""``stats_every_n_steps="auto"``: measured in the first window, kept to from the second on."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from deadwatch import ConfigError, DeadWatch, Rules, Watch
from deadwatch.observe.meter import LEAST_OFTEN, ROUND, Cost, Meter, told
from tests.ranks import run_ranks

X = torch.randn(16, 8, generator=torch.Generator().manual_seed(0))


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 2)
    )


def steps(model: nn.Module, watch: Watch, count: int) -> None:
    for _ in range(count):
        model(X).sum().backward()
        watch.step()


class Clock:
    """Every look at it takes a thousandth of a second, whatever the machine does."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        self.now += 0.001
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(time, "perf_counter", clock)
    return clock


def sampled(watch: Watch) -> int:
    """How many elements of each unit moments have been taken of, in forwards of 16."""
    return int(watch._taps.read().sites[0].data["count"][0]) // 16


def test_the_first_window_takes_moments_on_steps_0_1_2_4_8() -> None:
    model = network()
    with Watch(model, stats_every_n_steps="auto") as watch:
        totals = [0]
        for _ in range(20):
            steps(model, watch, 1)
            totals.append(sampled(watch))
        taken = [step for step in range(20) if totals[step + 1] > totals[step]]
        assert taken == [0, 1, 2, 4, 8, 16]
        assert watch.peek()["1"].samples == 20 * 16  # death is judged on every step


def test_from_the_second_window_on_they_come_at_what_was_found() -> None:
    model = network()
    with Watch(model, stats_every_n_steps="auto", overhead=0.5) as watch:
        steps(model, watch, 20)
        first = watch.close_window()
        every = watch._taps._clock.every
        assert every in ROUND
        assert sum("statistics are taken on every" in note for note in first.notes) == 1
        steps(model, watch, 20)
        assert sampled(watch) == len(range(0, 20, every))
        second = watch.close_window()
        assert watch._taps._clock.every == every
        assert not any("statistics are taken" in note for note in second.notes)


def test_a_window_too_short_to_tell_leaves_it_to_the_next() -> None:
    model = network()
    with Watch(model, stats_every_n_steps="auto") as watch:
        for _ in range(3):
            steps(model, watch, 3)
            assert not any("statistics" in note for note in watch.close_window().notes)
            assert watch._taps._clock.every is None
        steps(model, watch, 12)
        watch.close_window()
        assert watch._taps._clock.every is not None


def test_a_loop_that_reports_no_steps_is_measured_too() -> None:
    model = network()
    with Watch(model, stats_every_n_steps="auto") as watch:
        for _ in range(20):
            model(X).sum().backward()
        assert sampled(watch) == 6
        watch.close_window()
        assert watch._taps._clock.every is not None


def test_a_compiled_graph_is_not_broken_to_be_measured() -> None:
    model = network()
    call = torch.compile(model, backend="eager", fullgraph=True)
    with Watch(call, stats_every_n_steps="auto") as watch:
        for _ in range(20):
            call(X).sum().backward()
            watch.step()
        assert sampled(watch) == 6
        (note,) = (note for note in watch.close_window().notes if "statistics" in note)
    assert "on every 10. step" in note
    assert "inside of compiled graphs cannot be measured" in note


def test_the_same_costs_give_the_same_interval(clock: Clock) -> None:
    found = set()
    for _ in range(2):
        model = network()
        with Watch(model, stats_every_n_steps="auto") as watch:
            steps(model, watch, 20)
            watch.close_window()
            found.add(watch._taps._clock.every)
    assert len(found) == 1


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 32)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.layer(x))


def test_functions_are_measured_as_modules_are(clock: Clock) -> None:
    model = Block()
    with Watch(model, stats_every_n_steps="auto") as watch:
        steps(model, watch, 20)
        meter = watch._taps._calls.meter
        assert meter is not None
        cost = meter.read()
        assert cost is not None
        # By this clock the module's two hooks take 1 ms each, and so does what is done before and
        # at the function, and after it where there is something to look at.
        assert 0.004 <= cost.base < 0.005
        assert cost.base + cost.moments == pytest.approx(0.005)


def test_a_stretch_within_a_stretch_counts_once(clock: Clock) -> None:
    meter = Meter(torch.device("cpu"))
    for done in range(8):
        meter.begin_step(done)
        with meter, meter:
            clock.now += 1.0 if done == 4 else 0.25
    cost = meter.read()
    assert cost is not None
    assert cost.base == pytest.approx(0.251)
    assert cost.base + cost.moments == pytest.approx(1.001)


@given(
    step=st.floats(1e-3, 1.0),
    base=st.floats(0, 1e-3),
    moments=st.floats(0, 1.0),
    overhead=st.floats(1e-3, 0.5),
)
def test_the_interval_is_the_shortest_that_keeps_to_the_bound(
    step: float, base: float, moments: float, overhead: float
) -> None:
    cost = Cost(step, base, moments)
    every = cost.interval(overhead)
    if every != LEAST_OFTEN:
        assert cost.share(every) <= overhead * (1 + 1e-6)
    shorter = [other for other in ROUND if other < every]
    if shorter:
        assert cost.share(shorter[-1]) > overhead * (1 - 1e-6)


def test_what_cannot_be_kept_is_said() -> None:
    dear = Cost(0.1, 0.05, 0.01)
    assert dear.interval(0.02) == LEAST_OFTEN
    note = told(LEAST_OFTEN, dear, 0.02)
    assert "on every first step of a window" in note
    assert "adds 100.0% to a step so, and 100.0% without them; overhead=2.0% is not kept" in note
    cheap = told(5, Cost(0.1, 0.0, 0.01), 0.02)
    assert "on every 5. step" in cheap
    assert "overhead=2.0% is kept" in cheap


def test_a_resumed_run_keeps_to_what_was_found() -> None:
    model = network()
    with Watch(model, stats_every_n_steps="auto", overhead=0.3) as watch:
        steps(model, watch, 20)
        watch.close_window()
        steps(model, watch, 3)
        state = watch.state_dict()
    again = Watch(model, stats_every_n_steps="auto", overhead=0.3)
    again.load_state_dict(state)
    assert again._taps._clock.every == watch._taps._clock.every
    with again:
        steps(model, again, 17)
        assert sampled(again) == len(range(0, 20, watch._taps._clock.every or 1))
        assert not any("statistics" in note for note in again.close_window().notes)


def test_resumed_before_it_was_found_the_window_goes_on() -> None:
    model = network()
    with Watch(model, stats_every_n_steps="auto") as watch:
        steps(model, watch, 6)
        state = watch.state_dict()
    again = Watch(model, stats_every_n_steps="auto")
    again.load_state_dict(state)
    with again:
        steps(model, again, 14)
        assert sampled(again) == 6


def test_a_number_of_ones_own_is_not_overruled_by_a_checkpoint() -> None:
    model = network()
    with Watch(model, stats_every_n_steps="auto") as watch:
        steps(model, watch, 20)
        watch.close_window()
        state = watch.state_dict()
    again = Watch(model, stats_every_n_steps=3)
    again.load_state_dict(state)
    assert again._taps._clock.every == 3


def test_watching_by_auto_changes_no_bit() -> None:
    bare, watched = network(), network()
    with Watch(watched, stats_every_n_steps="auto", rules=Rules(min_samples=1)) as watch:
        for _ in range(2):
            for model in (bare, watched):
                optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
                for _ in range(9):
                    model(X).square().sum().backward()
                    optimizer.step()
                    optimizer.zero_grad()
                    if model is watched:
                        watch.step()
            watch.close_window()
    for one, two in zip(bare.parameters(), watched.parameters(), strict=True):
        assert torch.equal(one, two)


SCRIPT = """
import os, sys, time, torch, torch.distributed as dist
from deadwatch import Watch
from tests.test_auto import X, network, steps
rank, world, folder = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
dist.init_process_group("gloo", rank=rank, world_size=world, init_method=f"file://{folder}/store")
model = network()
class Dear(torch.nn.ReLU):
    pass
with Watch(model, stats_every_n_steps="auto", overhead=0.05) as watch:
    take = watch._taps._calls._observe
    steps(model, watch, 3)
    if rank:  # on this one moments take half a second
        for state in watch._taps._calls.sites.values():
            own = state._take_moments
            state._take_moments = lambda z, own=own: (time.sleep(0.02), own(z))
    steps(model, watch, 17)
    own = watch._taps._calls.meter.read().interval(0.05)
    watch.close_window()
    open(f"{folder}/{rank}", "w").write(f"{own} {watch._taps._clock.every}")
    dist.barrier()
os._exit(0)
"""


def test_all_ranks_take_the_longest_interval_of_any(tmp_path: Path) -> None:
    run_ranks(SCRIPT, tmp_path)
    (own, every), (dear, other) = (
        map(int, (tmp_path / str(rank)).read_text().split()) for rank in range(2)
    )
    assert every == other == max(own, dear)
    assert dear > 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"stats_every_n_steps": "often"}, "stats_every_n_steps is 'often'; expected an integer"),
        ({"overhead": 0.02}, "overhead is 0.02 and stats_every_n_steps is 10.*'auto' with it"),
        ({"stats_every_n_steps": "auto", "overhead": 2}, "overhead is 2; expected a share"),
        ({"stats_every_n_steps": "auto", "overhead": 0.0}, "overhead is 0.0; expected a share"),
        ({"stats_every_n_steps": "auto", "overhead": True}, "overhead is True; expected a share"),
    ],
)
def test_bad_arguments_say_what_was_expected(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Watch(network(), **arguments)
    with pytest.raises(ConfigError, match=message):
        DeadWatch(**arguments)
