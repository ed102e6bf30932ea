"""A watch and `torch.compile`: few graphs, no breaks, nothing hidden, nothing left behind."""

from __future__ import annotations

import gc
import warnings
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.utils import counters
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from deadwatch import DeadWatch, Policy, Recycle, Remedy, Rules, State, Swap, Watch
from deadwatch.errors import UnseenSiteWarning
from tests.agreement import one_thread
from tests.clinic import Patient
from tests.fitting import BATCH, SAMPLES, Module, fit

X = torch.randn(8, 12, generator=torch.Generator().manual_seed(0))
SITES = ("body.relu", "body-gelu", "relu")


class Body(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.relu, self.down = nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 16)

    def forward(self, x: Tensor) -> Tensor:
        return F.gelu(self.down(self.relu(self.up(x))))


class Net(nn.Module):
    """A module, a function in a part, and a function at the top; ``fail`` raises at the end."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body, self.head, self.fail = Body(), nn.Linear(16, 5), False

    def forward(self, x: Tensor) -> Any:
        h = self.head(F.relu(self.body(x)))
        if self.fail:
            raise ValueError("on purpose")
        return h


def whole(net: Net, **options: Any) -> Any:
    return torch.compile(net, backend="eager", **options)


def whole_in_place(net: Net, **options: Any) -> Any:
    net.compile(backend="eager", **options)
    return net


def part(net: Net, **options: Any) -> Any:
    net.body = torch.compile(net.body, backend="eager", **options)
    return net


def part_in_place(net: Net, **options: Any) -> Any:
    net.body.compile(backend="eager", **options)
    return net


WAYS: dict[str, Callable[..., Any]] = {
    "wrapped": whole,
    "in place": whole_in_place,
    "a part wrapped": part,
    "a part in place": part_in_place,
}


@pytest.fixture(autouse=True)
def nothing_compiled_before() -> Iterator[None]:
    gc.collect()  # watches that other tests have left attached
    torch._dynamo.reset()
    counters.clear()
    with one_thread():
        yield
    assert torch._C._len_torch_function_stack() == 0
    torch._dynamo.reset()


def graphs() -> int:
    return int(counters["stats"]["unique_graphs"])


def breaks() -> int:
    return sum(counters["graph_break"].values())


def compiles_again() -> bool:
    """Whether the compiler is on: it would run this uncompiled otherwise."""
    before = graphs()
    torch.compile(lambda x: x + 1, backend="eager")(X)
    return graphs() == before + 1


def hooks_on(model: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


def step(call: Any, watch: Watch, *args: Any) -> None:
    call(X, *args).sum().backward()
    watch.step()


def samples(watch: Watch) -> dict[str, int]:
    return {name: site.samples for name, site in watch.peek().items()}


# ── how and when it is compiled ─────────────────────────────────────────────────────────


@pytest.mark.parametrize("when", ["before attaching", "after the first call", "when attached"])
@pytest.mark.parametrize("way", WAYS)
def test_every_call_counts_however_and_whenever_it_was_compiled(way: str, when: str) -> None:
    net = Net()
    call = WAYS[way](net, fullgraph=True) if when != "when attached" else net
    if when == "after the first call":
        call(X).sum().backward()
    before = graphs()
    with Watch(call, stats_every_n_steps=2) as watch:
        if when == "when attached":
            call = WAYS[way](net, fullgraph=True)
        known = []
        for _ in range(4):
            for _ in range(4):
                step(call, watch)
                known.append(graphs() - before)
            report = watch.close_window()
            assert {name: site.samples for name, site in report.items()} == dict.fromkeys(SITES, 32)
    assert 1 <= known[2] <= 2  # the first step runs uncompiled; with moments, and without
    assert set(known[2:]) == {known[2]}
    assert breaks() == 0


def test_with_moments_on_every_step_there_is_one_graph() -> None:
    call = whole(Net(), fullgraph=True)
    with Watch(call, stats_every_n_steps=1) as watch:
        for _ in range(6):
            step(call, watch)
        assert samples(watch) == dict.fromkeys(SITES, 48)
    assert graphs() == 1


def test_a_compiled_part_under_a_trainer(tmp_path: Path) -> None:
    module = Module()
    module.net = torch.compile(module.net, backend="eager", fullgraph=True)
    callback = DeadWatch(rules=Rules(min_samples=1), stats_every_n_steps=2)
    fit([callback], tmp_path, module, max_epochs=4)
    assert callback.report is not None
    found = {name: site.samples for name, site in callback.report.items()}
    assert found == {"net.1": SAMPLES, "net.3": SAMPLES}
    assert callback.report["net.1"].dead[:6].all()
    assert SAMPLES // BATCH == 4
    assert breaks() == 0
    assert graphs() <= 4  # training with moments and without, evaluation, uncounted training
    assert hooks_on(module) == 0


# ── windows, pauses, evaluation ─────────────────────────────────────────────────────────


def paused(watch: Watch, net: Net, call: Any) -> None:
    watch.pause()
    call(X)
    watch.resume()


def suspended(watch: Watch, net: Net, call: Any) -> None:
    watch.suspend()
    call(X)
    watch.attach()


def evaluated(watch: Watch, net: Net, call: Any) -> None:
    net.eval()
    with torch.no_grad():
        call(X)
    net.train()


def without_gradients(watch: Watch, net: Net, call: Any) -> None:
    with torch.no_grad():
        call(X)


@pytest.mark.parametrize("between", [paused, suspended, evaluated, without_gradients])
def test_what_comes_between_windows_neither_counts_nor_compiles_for_ever(
    between: Callable[[Watch, Net, Any], None],
) -> None:
    net = Net()
    call = whole(net, fullgraph=True)
    known = []
    with Watch(call, stats_every_n_steps=2) as watch:
        for _ in range(9):
            for _ in range(3):
                step(call, watch)
            between(watch, net, call)
            report = watch.close_window()
            assert {name: site.samples for name, site in report.items()} == dict.fromkeys(SITES, 24)
            known.append(graphs())
    assert known[0] <= 3
    assert set(known) == {known[0]}
    assert breaks() == 0


def test_a_watch_that_was_taken_off_can_be_put_on_again() -> None:
    net = Net()
    call = whole(net)
    watch = Watch(call, stats_every_n_steps=1)
    for _ in range(3):
        with watch:
            for _ in range(3):
                step(call, watch)
            assert {s.samples for s in watch.close_window().values()} == {24}
        assert hooks_on(net) == 0
        step(call, watch)  # neither counted nor in the way
    assert graphs() == 6


def test_two_watches_count_in_the_same_graphs() -> None:
    call = whole(Net())
    with Watch(call, stats_every_n_steps=1) as one, Watch(call, stats_every_n_steps=1) as two:
        for _ in range(4):
            call(X).sum().backward()
            one.step()
            two.step()
        assert samples(one) == samples(two) == dict.fromkeys(SITES, 32)
    assert graphs() == 1
    assert compiles_again()


def test_another_shape_makes_other_graphs_and_counts_on() -> None:
    call = whole(Net())
    with Watch(call, stats_every_n_steps=1) as watch:
        for rows in (8, 8, 5, 3, 7, 4):
            call(X[:rows]).sum().backward()
            watch.step()
        assert samples(watch) == dict.fromkeys(SITES, 35)
    assert graphs() == 2  # one of them for any number of rows


# ── other ways through the model ────────────────────────────────────────────────────────


class Branches(nn.Module):
    """The second way goes through the first activation twice, and through a function."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.linear, self.act = nn.Linear(12, 12), nn.ReLU()

    def forward(self, x: Tensor, twice: bool = False) -> Any:
        x = self.act(self.linear(x))
        return F.gelu(self.act(self.linear(x))) if twice else x


def test_a_new_branch_is_found_and_counted_but_for_its_first_step() -> None:
    call = torch.compile(Branches(), backend="eager")
    with Watch(call, stats_every_n_steps=1) as watch:
        for _ in range(3):
            step(call, watch)
        for _ in range(3):
            step(call, watch, True)
        settled = graphs()
        for _ in range(3):
            step(call, watch, True)
        counted = samples(watch)
        assert counted["act-2"] == counted["gelu"] == 5 * 8
        assert counted["act"] == 9 * 8
    assert graphs() == settled


class Hidden(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear, self.act = nn.Linear(12, 12), nn.ReLU()

    def forward(self, x: Tensor) -> Any:
        return self.act(torch.relu_(self.linear(x) - 100) - 1)


def test_what_the_compiler_hides_is_unseen_never_dead() -> None:
    call = torch.compile(Hidden(), backend="eager")
    with Watch(call, rules=Rules(min_samples=1)) as watch:
        for _ in range(3):
            for _ in range(3):
                step(call, watch)
            with pytest.warns(UnseenSiteWarning, match=r"not seen in window \d: relu\. "):
                report = watch.close_window()
            assert (report["relu"].state == State.UNSEEN).all()
            assert report["act"].samples == 24
            assert report["act"].dead.all()


# ── activation checkpointing ────────────────────────────────────────────────────────────


class Checkpointed(nn.Module):
    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body, self.head = body, nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Any:
        return self.head(F.relu(checkpoint(self.body, x, use_reentrant=False)))


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_a_compiled_part_within_checkpointing_counts_once(backend: str) -> None:
    torch.manual_seed(0)
    model = Checkpointed(torch.compile(Body(), backend=backend))
    with Watch(model, stats_every_n_steps=2) as watch:
        for _ in range(2):
            for _ in range(3):
                step(model, watch)
            report = watch.close_window()
            assert {name: site.samples for name, site in report.items()} == dict.fromkeys(SITES, 24)


@pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")  # torch's own
def test_checkpointing_within_a_compiled_model_counts_once() -> None:
    torch.manual_seed(0)
    call = torch.compile(Checkpointed(Body()), fullgraph=True)
    with Watch(call, stats_every_n_steps=1) as watch:
        for _ in range(3):
            step(call, watch)
        with pytest.warns(UnseenSiteWarning, match=r"body-gelu\. "):  # the compiler hides it
            report = watch.close_window()
    found = {name: site.samples for name, site in report.items()}
    assert found == {"body.relu": 24, "body-gelu": 0, "relu": 24}
    assert breaks() == 0


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_where_a_backend_cannot_count_in_checkpointing_the_sites_are_unseen(backend: str) -> None:
    torch.manual_seed(0)
    call = torch.compile(Checkpointed(Body()), backend=backend, fullgraph=True)
    with Watch(call, stats_every_n_steps=2) as watch:
        for _ in range(3):
            step(call, watch)
        with pytest.warns(UnseenSiteWarning, match=r"body\.relu, body-gelu\. "):
            report = watch.close_window()
    assert {name: site.samples for name, site in report.items()} == {
        "body.relu": 0,
        "body-gelu": 0,
        "relu": 24,
    }


# ── nothing is left behind ──────────────────────────────────────────────────────────────


@pytest.mark.parametrize("way", WAYS)
def test_detach_restores_a_compiled_model(way: str) -> None:
    net = Net()
    call = WAYS[way](net)
    before = [set(vars(module)) for module in net.modules()]
    for steps in (0, 1, 3):  # taken off while nothing has run, uncompiled, and compiled
        with Watch(call) as watch:
            for _ in range(steps):
                step(call, watch)
        assert hooks_on(net) == 0
        assert [set(vars(module)) for module in net.modules()] == before
        assert torch._C._len_torch_function_stack() == 0
        assert compiles_again()
        known = graphs()
        call(X)
        call(X)
        assert graphs() == known + 1


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("steps", [0, 3])
def test_so_it_does_after_an_error(way: str, steps: int) -> None:
    net = Net()
    call = WAYS[way](net)
    watch = Watch(call)

    def train_and_fail() -> None:
        for _ in range(steps):
            step(call, watch)
        net.fail = True
        call(X)

    with pytest.raises(ValueError, match="on purpose"), watch:
        train_and_fail()
    assert hooks_on(net) == 0
    assert torch._C._len_torch_function_stack() == 0
    assert compiles_again()
    net.fail = False
    known = graphs()
    call(X)
    assert graphs() > known
    with watch:
        step(call, watch)
        step(call, watch)
        assert samples(watch) == dict.fromkeys(SITES, 8 * (steps + 3))  # the failed one had run it


def test_an_interrupt_in_compiled_code_leaves_no_mode_behind() -> None:
    net = Net()
    call = part(net)

    def stop(module: nn.Module, args: Any) -> None:
        raise KeyboardInterrupt("stop")

    watch = Watch(call).attach()
    step(call, watch)
    step(call, watch)
    net.head.register_forward_pre_hook(stop)
    with pytest.raises(KeyboardInterrupt, match="stop"), watch:
        call(X)
    assert hooks_on(net) == 1  # the user's own
    assert torch._C._len_torch_function_stack() == 0
    assert compiles_again()


# ── treatments ──────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(("remedy", "more"), [(Recycle(), 0), (Swap("leaky_relu"), 1)])
def test_a_treated_model_stays_compiled_and_counted(remedy: Remedy, more: int) -> None:
    net = Net()
    with torch.no_grad():
        net.body.up.bias[:4] = -50
    call = whole(net, fullgraph=True)
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)
    watch = Watch(
        call,
        optimizer=optimizer,
        policy=Policy([remedy]),
        rules=Rules(min_samples=1),
        include="body.relu",
        stats_every_n_steps=1,
    )
    known, reports = [], []
    with watch:
        for _ in range(4):
            for _ in range(4):
                optimizer.zero_grad()
                call(X).square().mean().backward()
                optimizer.step()
                watch.step()
            reports.append(watch.close_window())
            known.append(graphs())
    assert [treatment.units.tolist() for treatment in reports[0].treatments] == [[0, 1, 2, 3]]
    assert [report["body.relu"].samples for report in reports] == [32] * 4
    dead = [int(report["body.relu"].dead.sum()) for report in reports]
    assert dead[0] == 4 > max(dead[1:])
    assert known == [1, *[1 + more] * 3]
    assert breaks() == 0


def test_a_swap_recompiles_once_and_its_share_never() -> None:
    patient = Patient.of()
    call = torch.compile(patient.model, backend="eager", fullgraph=True)
    watch = patient.watch(Swap(anneal=6, quiet=False), cooldown=99).attach()
    known = []

    def steps(count: int) -> None:
        for _ in range(count):
            patient.optimizer.zero_grad()
            call(patient.x).square().mean().backward()
            patient.optimizer.step()
            watch.step()
        known.append(graphs())

    steps(4)
    watch.close_window()
    steps(2)  # the first runs uncompiled, to look at the model again
    steps(3)  # the share falls with every step
    steps(1)  # at its end, the original is back
    steps(2)
    watch.detach()
    assert [after - before for before, after in pairwise(known)] == [1, 0, 0, 1]
    assert type(patient.model[1]) is nn.ReLU
    assert breaks() == 0


# ── the same training ───────────────────────────────────────────────────────────────────


def trained(watched: bool) -> list[Tensor]:
    torch._dynamo.reset()
    net = Net()
    call = whole(net)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    watch = Watch(call, stats_every_n_steps=2)
    if watched:
        watch.attach()
    for _ in range(10):
        optimizer.zero_grad()
        call(X).square().mean().backward()
        optimizer.step()
        if watched:
            watch.step()
    assert not watched or {site.samples for site in watch.peek().values()} == {80}
    watch.detach()
    return [parameter.detach().clone() for parameter in net.parameters()]


def test_watching_changes_no_bit_of_the_weights() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for one, two in zip(trained(True), trained(False), strict=True):
            assert torch.equal(one, two)
