"""A watch as a guest: nothing it sits on is disturbed, copied along, miscounted or left marked."""

from __future__ import annotations

import contextlib
import copy
import io
import pickle
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import functional_call, grad, jvp, vmap
from torch.nn import functional as F
from torch.nn.utils import parametrize
from torch.nn.utils.parametrizations import weight_norm
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader, Dataset

from deadwatch import Rules, State, Watch

X = torch.randn(8, 12, generator=torch.Generator().manual_seed(0))
SITES = ("relu", "gelu")
Parts = list[tuple[str, list[tuple[str, Any]]]]


class Net(nn.Module):
    """An activation that is a module, and one that is a function."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.up, self.relu, self.down = nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Any:
        return F.gelu(self.down(self.relu(self.up(x))))


def parts_of(model: nn.Module) -> Parts:
    """All attributes of all modules and what they hold, down to the identity of every object."""
    return [
        (path, [(name, held(value)) for name, value in vars(module).items()])
        for path, module in model.named_modules()
    ]


def held(value: Any) -> Any:
    if isinstance(value, dict):
        return id(value), [(key, held(item)) for key, item in value.items()]
    if isinstance(value, (list, set)):
        return id(value), [held(item) for item in value]
    version = value._version if isinstance(value, Tensor) else 0
    return id(value), version


def samples(watch: Watch) -> dict[str, int]:
    return {name: site.samples for name, site in watch.peek().items()}


pytestmark = pytest.mark.usefixtures("nothing_stays_behind")


def test_detach_restores_every_attribute_of_every_module() -> None:
    model = Net()
    before, keys = parts_of(model), list(model.state_dict())
    with Watch(model, stats_every_n_steps=1) as watch:
        assert parts_of(model) != before  # hooks are on: the comparison can fail
        for _ in range(2):
            model(X).sum().backward()
            watch.step()
        assert list(model.state_dict()) == keys
        assert not [name for module in model.modules() for name in vars(module) if "dead" in name]
        model.zero_grad()
        watch.close_window()
    assert parts_of(model) == before


# ── what is made of a watched model, and what it is put through ─────────────────────────


def parameters(model: nn.Module) -> dict[str, Tensor]:
    return {name: parameter.detach() for name, parameter in model.named_parameters()}


def deep_copy(model: nn.Module) -> None:
    copy.deepcopy(model)(X)


def pickled(model: nn.Module) -> None:
    pickle.loads(pickle.dumps(model))(X)


def saved(model: nn.Module) -> None:
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    torch.load(file, weights_only=False)(X)


def averaged(model: nn.Module) -> None:
    average = AveragedModel(model)
    average.update_parameters(model)
    average.train()(X)


def exponentially_averaged(model: nn.Module) -> None:
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9))
    average.train()(X)
    average.update_parameters(model)
    average(X)


def exported(model: nn.Module) -> None:
    exporting = torch.export.export(model, (X,))
    assert not [node for node in exporting.graph.nodes if "where" in node.name]
    torch.testing.assert_close(exporting.module()(X), model.eval()(X))
    model.train()


def traced(model: nn.Module) -> None:
    jitted: Any = torch.jit.trace(model, X)
    jitted(X)


def gradient(model: nn.Module) -> None:
    grad(lambda given: functional_call(model, given, (X,)).sum())(parameters(model))


def mapped(model: nn.Module) -> None:
    vmap(model)(X)


def mapped_over_parameters(model: nn.Module) -> None:
    stacked = {name: torch.stack([given] * 3) for name, given in parameters(model).items()}
    vmap(lambda given: functional_call(model, given, (X,)))(stacked)


def forward_derivative(model: nn.Module) -> None:
    jvp(model, (X,), (X,))


def fake(model: nn.Module) -> None:
    with FakeTensorMode(allow_non_fake_inputs=True):
        model(torch.randn(8, 12))
        copy.deepcopy(model)(torch.randn(8, 12))


def meta_parameters(model: nn.Module) -> None:
    given = {name: parameter.to("meta") for name, parameter in parameters(model).items()}
    functional_call(model, given, (X.to("meta"),))


def meta_copy(model: nn.Module) -> None:
    copy.deepcopy(model).to("meta")(X.to("meta"))


class Computes(Dataset[Tensor]):
    def __init__(self, model: nn.Module) -> None:
        self.model = model

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> Any:
        return self.model(X[index]).detach()


def forked(model: nn.Module) -> None:
    batches = list(DataLoader(Computes(model), num_workers=2, multiprocessing_context="fork"))
    torch.testing.assert_close(torch.cat(batches), model.eval()(X[:4]))
    model.train()


@pytest.mark.filterwarnings("ignore:.*torch.jit.(trace|script).*:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")
@pytest.mark.parametrize(
    "happens",
    [
        *(deep_copy, pickled, saved, averaged, exponentially_averaged, exported, traced),
        *(gradient, mapped, mapped_over_parameters, forward_derivative),
        *(fake, meta_parameters, meta_copy, forked),
    ],
    ids=lambda happens: happens.__name__,
)
@pytest.mark.parametrize("first", [True, False], ids=["before its first forward", "after it"])
def test_neither_counts_nor_disturbs(happens: Callable[[nn.Module], None], first: bool) -> None:
    model = Net()
    before = parts_of(model)
    with Watch(model, stats_every_n_steps=1) as watch:
        if not first:
            model(X)
        happens(model)
        for _ in range(2):
            model(X)
        report = watch.peek()
        assert {name: site.samples for name, site in report.items()} == dict.fromkeys(
            SITES, 16 if first else 24
        )
        assert [wire.weight for wire in report["relu"].site.consumers] == ["down.weight"]
        assert [wire.weight for wire in report["gelu"].site.producers] == ["down.weight"]
    assert parts_of(model) == before


def test_a_functional_call_with_other_parameters_counts() -> None:
    model = Net()
    with Watch(model) as watch:
        functional_call(model, parameters(model), (X,))
        assert samples(watch) == dict.fromkeys(SITES, 8)


def test_data_parallel_without_devices_is_the_model_itself() -> None:
    model = Net()
    with Watch(model) as watch:
        nn.DataParallel(model)(X)
        assert samples(watch) == dict.fromkeys(SITES, 8)
    with Watch(nn.DataParallel(model)) as watch:
        watch._model(X)
        assert samples(watch) == {"module.relu": 8, "module-gelu": 8}


# ── threads ─────────────────────────────────────────────────────────────────────────────


def in_threads(*work: Callable[[], None]) -> None:
    errors: list[BaseException] = []

    def guarded(job: Callable[[], None]) -> None:
        try:
            job()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=guarded, args=(job,)) for job in work]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []


def test_threads_that_train_at_once_are_counted_together() -> None:
    model = Net()

    def train() -> None:
        for _ in range(40):
            model(X)

    with Watch(model, stats_every_n_steps=1) as watch:
        in_threads(train, train, train)
        report = watch.peek()
    for name in SITES:
        assert report[name].samples == 3 * 40 * 8
    with Watch(model, stats_every_n_steps=1) as alone:
        model(X)
        expected = alone.peek()
    for name in SITES:
        assert (report[name].open_fraction == expected[name].open_fraction).all()


def test_a_thread_that_infers_is_not_counted() -> None:
    model, twin = Net(), Net().eval()
    model.relu = twin.relu = model.relu  # the replica shares what is watched
    done = threading.Event()

    def train() -> None:
        for _ in range(40):
            model(X)
            watch.step()
        done.set()

    def infer() -> None:
        while not done.is_set():
            with torch.no_grad():
                model(X)
                twin(X)

    with Watch(model, stats_every_n_steps=2) as watch:
        in_threads(train, infer)
        assert samples(watch) == dict.fromkeys(SITES, 40 * 8)


# ── models that are not plain ───────────────────────────────────────────────────────────


class Doubled(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * x


def parametrized(model: Net) -> None:
    parametrize.register_parametrization(model.up, "weight", Doubled())


def normed(model: Net) -> None:
    weight_norm(model.up)


@pytest.mark.parametrize("change", [parametrized, normed])
@pytest.mark.parametrize("late", [False, True])
def test_parametrized_weights(change: Callable[[Net], None], late: bool) -> None:
    model = Net()
    if not late:
        change(model)
    with Watch(model) as watch:
        if late:
            model(X)
            change(model)
        before = dict(model.state_dict())
        model(X)
        assert samples(watch) == dict.fromkeys(SITES, 16 if late else 8)
        assert model.state_dict().keys() == before.keys()


def test_outputs_that_a_hook_of_the_user_replaces() -> None:
    """The gate is judged on what the activation is given, by whoever."""
    model = Net()
    model.up.register_forward_hook(lambda module, args, output: output * 0 - 1)
    model.relu.register_forward_pre_hook(lambda module, args: (args[0] - 1,))
    model.relu.register_forward_hook(lambda module, args, output: output + 7)
    before = parts_of(model)
    expected = model(X)
    with Watch(model, rules=Rules(min_samples=1), stats_every_n_steps=1) as watch:
        assert torch.equal(model(X), expected)
        site = watch.peek()["relu"]
    assert (site.mean == -2).all()
    assert site.dead.all()
    assert (site.mean_out == 0).all()
    assert parts_of(model) == before


def test_hooks_put_on_while_watched_come_to_stay() -> None:
    model = Net()
    with Watch(model) as watch:
        model(X)
        model.relu.register_forward_pre_hook(lambda module, args: (args[0] * 0 - 3,))
        model(X)
    assert len(model.relu._forward_pre_hooks) == 1
    assert samples(watch) == dict.fromkeys(SITES, 16)


# ── errors in the forward ───────────────────────────────────────────────────────────────


class Picky(nn.Module):
    """An activation that refuses a batch, as one that runs out of memory would."""

    def __init__(self) -> None:
        super().__init__()
        self.refuses = False

    def forward(self, x: Tensor) -> Tensor:
        if self.refuses:
            raise RuntimeError("refused")
        return x.clamp(min=0)


class Tries(nn.Module):
    """Falls back on another activation when the first raises, then goes on."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.up, self.picky, self.plain = nn.Linear(12, 16), Picky(), nn.ReLU()
        self.last = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Any:
        h = self.up(x)
        try:
            h = self.picky(h)
        except RuntimeError:
            h = self.plain(h)
        with contextlib.suppress(TypeError, AttributeError):
            F.silu("no tensor")
        return F.gelu(self.last(h))


def test_an_activation_that_raises_and_is_caught() -> None:
    model = Tries()
    before = parts_of(model)
    with Watch(model, rules=Rules(min_samples=1), stats_every_n_steps=1) as watch:
        model.picky.refuses = True
        model(X)
        model(X)
        model.picky.refuses = False
        model(X)
        report = watch.peek()
    assert (report["plain"].samples, report["gelu"].samples) == (16, 24)
    assert report["picky"].samples == 24  # it was given them
    assert (report["picky"].mean_out >= 0).all()
    assert set(report) == {"picky", "plain", "gelu"}
    assert report["gelu"].site.producers[0].weight == "last.weight"
    assert parts_of(model) == before


class Fails(Net):
    """Raises between its activations."""

    error: BaseException | None = None

    def forward(self, x: Tensor) -> Any:
        h = F.silu(self.relu(self.up(x)))
        if self.error is not None:
            raise self.error
        return F.gelu(self.down(h))


@pytest.mark.parametrize("error", [ValueError("stop"), KeyboardInterrupt("stop")])
@pytest.mark.parametrize("first", [True, False])
def test_functions_around_an_error(error: BaseException, first: bool) -> None:
    model = Fails()
    before = parts_of(model)
    with Watch(model) as watch:
        if not first:
            model(X)
        model.error = error
        for _ in range(2):
            with pytest.raises(type(error), match="stop"):
                model(X)
        del model.error
        assert F.gelu(X).shape == X.shape  # outside of the model: not counted
        model(X)
        model(X)
        report = watch.peek()
    whole = 16 if first else 24
    assert {name: site.samples for name, site in report.items()} == {
        "relu": whole + 16,
        "silu": whole + 16,
        "gelu": whole,
    }
    assert report["gelu"].site.producers[0].weight == "down.weight"
    assert all((site.state != State.UNSEEN).all() for site in report.values())
    assert parts_of(model) == before
