"""What is left out where nothing can be learned, and that nothing is missed by it."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.overrides import _get_current_function_mode_stack

from deadwatch import Rules, State, Watch
from deadwatch.observe import kernels

X = torch.randn(64, 8, generator=torch.Generator().manual_seed(0))


class Body(nn.Module):
    """Calls what it is given; layer and activation are modules."""

    def __init__(self, forward: Callable[[Body, Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer, self.act = nn.Linear(8, 6), nn.ReLU()
        self._forward = forward

    def forward(self, x: Tensor) -> Tensor:
        return self._forward(self, x)


def plain(body: Body, x: Tensor) -> Tensor:
    out: Tensor = body.act(body.layer(x))
    return out


def watched(model: nn.Module, **arguments: Any) -> Watch:
    return Watch(model, rules=Rules(min_samples=1), **arguments)


def step(model: nn.Module, watch: Watch, x: Tensor = X) -> None:
    model(x).sum().backward()
    watch.step()


# ── gates that have all been open ───────────────────────────────────────────────────────


def test_once_every_gate_was_open_nothing_is_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Body(plain)
    watch = watched(model, stats_every_n_steps=1000)
    looked: list[int] = []
    own = kernels.liveness

    def looking(*arguments: Any) -> Any:
        looked.append(watch.steps)
        return own(*arguments)

    monkeypatch.setattr(kernels, "liveness", looking)
    with watch:
        for _ in range(20):
            step(model, watch)
        assert looked == [1]  # step 0 takes moments, which tell it too
        assert watch.close_window()["act"].samples == 20 * 64
        for _ in range(20):
            step(model, watch)
        assert looked == [1, 21]  # each window begins anew
        assert watch.close_window()["act"].samples == 20 * 64


def test_a_gate_that_opens_late_is_looked_for_until_it_does() -> None:
    model = Body(plain)
    model.layer.weight.data[2] = 0
    with watched(model, stats_every_n_steps=1000) as watch:
        for index in range(30):
            model.layer.bias.data[2] = 1.0 if index == 23 else -1.0
            step(model, watch)
        assert watch.close_window()["act"].state[2] != State.DEAD
        for _ in range(30):
            step(model, watch)
        report = watch.close_window()["act"]
        assert report.dead.tolist() == [False, False, True, False, False, False]
        assert report.age[2] == 30 * 64


def test_a_unit_that_dies_in_a_later_window_is_dead_there() -> None:
    model = Body(plain)
    with watched(model) as watch:
        for _ in range(12):
            step(model, watch)
        assert not watch.close_window()["act"].dead.any()
        model.layer.bias.data[4] = -1e4
        for _ in range(12):
            step(model, watch)
        assert watch.close_window()["act"].dead.tolist() == [False] * 4 + [True, False]


def test_samples_of_every_shape_are_counted_while_idle() -> None:
    model = Body(plain)
    with watched(model, stats_every_n_steps=1000) as watch:
        sizes = [64, 64, 64, 64, 3, 1, 17, 64]
        for size in sizes:
            step(model, watch, X[:size])
        step(model, watch, X.view(4, 16, 8))  # another number of axes
        assert watch.close_window()["act"].samples == sum(sizes) + 64


def test_what_holds_no_floating_point_data_is_not_counted_while_idle_either() -> None:
    model = Body(lambda body, x: body.act(x))
    with watched(model, stats_every_n_steps=1000) as watch:
        for _ in range(6):
            step(model, watch, X.abs().requires_grad_())
        assert watch._taps._calls.sites["act"].settled
        for other in (X.long(), X.to("meta"), X[:0]):
            model(other)
        assert watch.close_window()["act"].samples == 6 * 64


def test_a_nan_after_every_gate_was_open_hides_nothing() -> None:
    model = Body(plain)
    with watched(model, stats_every_n_steps=1000) as watch:
        for _ in range(6):
            step(model, watch)
        step(model, watch, torch.full_like(X, math.nan))
        report = watch.close_window()["act"]
        assert report.samples == 7 * 64
        assert (report.state == State.ALIVE).all()


def test_a_pause_within_an_idle_window_counts_nothing() -> None:
    model = Body(plain)
    with watched(model) as watch:
        for _ in range(6):
            step(model, watch)
        watch.pause()
        model(X)
        watch.resume()
        with torch.no_grad():
            model(X)
        model.eval()(X)
        model.train()
        step(model, watch)
        assert watch.close_window()["act"].samples == 7 * 64


# ── the function mode ───────────────────────────────────────────────────────────────────


def test_functions_are_listened_for_only_now_and_then_where_there_are_none() -> None:
    heard = []

    def forward(body: Body, x: Tensor) -> Tensor:
        if _get_current_function_mode_stack():
            heard.append(watch.steps)
        return plain(body, x)

    model = Body(forward)
    with watched(model) as watch:
        for _ in range(20):
            step(model, watch)
        # Step 0 traces the wiring; the count begins after it.
        assert heard == [0, 1, 2, 4, 8, 16]


def test_where_a_function_was_found_every_forward_is_listened_to() -> None:
    def forward(body: Body, x: Tensor) -> Tensor:
        late = watch.steps >= 3
        return torch.relu(plain(body, x) - 0.1) if late else plain(body, x)

    model = Body(forward)
    with watched(model) as watch:
        for _ in range(20):
            step(model, watch)
        report = watch.close_window()
        assert report["act"].samples == 20 * 64
        assert report["relu"].samples == 16 * 64  # found in step 4, the next that is listened to
        step(model, watch)
        assert watch.peek()["relu"].samples == 64


def test_each_part_that_is_called_by_itself_is_listened_to() -> None:
    heard: dict[str, list[int]] = {"one": [], "two": []}
    done = [0]

    def ear(name: str) -> Callable[[Body, Tensor], Tensor]:
        def forward(body: Body, x: Tensor) -> Tensor:
            if _get_current_function_mode_stack():
                heard[name].append(done[0])
            return plain(body, x)

        return forward

    model = nn.ModuleDict({name: Body(ear(name)) for name in heard})
    with watched(model) as watch:
        while done[0] < 10:
            (model["one"](X) + model["two"](X)).sum().backward()
            watch.step()
            done[0] += 1
    assert heard["one"] == heard["two"] == [0, 1, 2, 4, 8]


# ── modules that nobody needs to know of ────────────────────────────────────────────────


def test_a_module_that_calls_itself_ends_its_frame_once() -> None:
    def forward(body: Body, x: Tensor) -> Tensor:
        return plain(body, x) if len(x) < 9 else body(x[:8]) + body(x[8:16])

    model = Body(forward)
    with watched(model) as watch:
        for _ in range(11):
            step(model, watch)
        report = watch.close_window()
    assert {name: site.samples for name, site in report.items()} == {"act": 88, "act-2": 88}


def test_an_exception_within_ends_the_frame() -> None:
    broken = [False]

    def forward(body: Body, x: Tensor) -> Tensor:
        z = body.layer(x)
        if broken[0]:
            raise ValueError("on purpose")
        out: Tensor = body.act(body.act(z) - 0.1)
        return out

    model = nn.Sequential(nn.Sequential(Body(forward)))
    with watched(model) as watch:
        for index in range(12):
            broken[0] = index == 7
            if broken[0]:
                with pytest.raises(ValueError, match="on purpose"):
                    model(X)
            else:
                step(model, watch)
        report = watch.close_window()
    assert {name: site.samples for name, site in report.items()} == {
        "0.0.act": 11 * 64,
        "0.0.act-2": 11 * 64,
    }


def test_an_interrupt_within_is_forgotten_by_the_next_frame() -> None:
    interrupt = [False]

    def forward(body: Body, x: Tensor) -> Tensor:
        out = plain(body, x)
        if interrupt[0]:
            raise KeyboardInterrupt("on purpose")
        return plain(body, x) + out

    model = nn.Sequential(Body(forward))
    with watched(model) as watch:
        for index in range(12):
            interrupt[0] = index == 7
            if interrupt[0]:
                with pytest.raises(KeyboardInterrupt, match="on purpose"):
                    model(X)
            else:
                step(model, watch)
        report = watch.close_window()
    assert report["0.act"].samples == 12 * 64  # it had run before the interrupt
    assert report["0.act-2"].samples == 11 * 64
