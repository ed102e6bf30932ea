"""Checkpoints of swapped models: loud in the wrong place, right in the right one, both ways."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any, cast

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import (
    EMAWeightAveraging,
    ModelCheckpoint,
    StochasticWeightAveraging,
)
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_avg_fn, get_ema_multi_avg_fn

from deadwatch import (
    ConfigError,
    DeadWatch,
    DeadwatchError,
    Policy,
    Rules,
    Swap,
    load_from_checkpoint,
    restore,
)
from deadwatch.activations import KINDS, Replacement, SwappedActivation
from deadwatch.restoring import follow
from tests.clinic import DEAD, Patient
from tests.fitting import Module, fit, lightning_remarks, loader
from tests.nets import conv, mlp
from tests.resuming import differences, through_a_file

QUICK = Rules(min_samples=1)
PACKAGES = ["pytorch_lightning", "lightning.pytorch"]


def swapped(to: str = "leaky_relu", **swap: Any) -> Patient:
    """A patient with a swap, and slopes that have learned something."""
    patient = Patient.of()
    _, watch = patient.treated(Swap(to, **swap), cooldown=99)
    patient.train(2)
    watch._taps.detach()  # without its word on what is under way
    return patient


# ── loud ────────────────────────────────────────────────────────────────────────────────────


def test_a_swap_cannot_be_loaded_into_another_architecture_by_accident() -> None:
    patient = swapped()
    plain = mlp()
    with pytest.raises(RuntimeError, match=r'Unexpected key\(s\) in state_dict: "1.deadwatch_mask'):
        plain.load_state_dict(patient.model.state_dict())
    with pytest.raises(RuntimeError, match=r'Missing key\(s\) in state_dict: "1.deadwatch_mask'):
        patient.model.load_state_dict(plain.state_dict())


def test_the_failure_names_the_way_out() -> None:
    patient = swapped()
    with pytest.raises(RuntimeError, match=r"1\.deadwatch_restore"):
        mlp().load_state_dict(patient.model.state_dict())
    with pytest.raises(RuntimeError, match=r"1\.deadwatch_restore"):
        patient.model.load_state_dict(mlp().state_dict())
    other = swapped("elu").model.state_dict()
    with pytest.raises(RuntimeError, match=r"1 is swapped .* load it with deadwatch\.restore\("):
        patient.model.load_state_dict(other)


@pytest.mark.parametrize("other", [Swap(slope=0.2), Swap("elu"), Swap(slope=0.1, anneal=9)])
def test_another_swap_of_the_same_layer_is_loud(other: Swap) -> None:
    one = swapped(slope=0.1)
    two = swapped(**{k: v for k, v in vars(other).items() if k != "quiet"})
    with pytest.raises(RuntimeError, match=r"differently in this state dict|deadwatch_share"):
        two.model.load_state_dict(one.model.state_dict())


def test_without_strict_what_fits_is_loaded() -> None:
    patient, plain = swapped(), mlp()
    found = patient.model.load_state_dict(plain.state_dict(), strict=False)
    assert found.missing_keys == ["1.deadwatch_mask", "1.deadwatch_restore"]
    assert isinstance(patient.model[1], SwappedActivation)


def test_settings_of_another_version_are_loud() -> None:
    state = swapped().model.state_dict()
    for wrong in ([2.0, 1, 1, 2, 0.1], [1.0, 99, 1, 2, 0.1], [1.0]):
        state["1.deadwatch_restore"] = torch.tensor(wrong)
        with pytest.raises(DeadwatchError, match="load it with the version that wrote it"):
            restore(mlp(), state)


# ── restore ─────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("only", ["dead", "all"])
@pytest.mark.parametrize("to", KINDS)
def test_a_plain_model_takes_the_swaps_of_a_state_dict(to: str, only: Any) -> None:
    patient = swapped(to, only=only)
    plain = mlp()
    found = restore(plain, through_a_file(patient.model.state_dict()))
    assert (found.missing_keys, found.unexpected_keys) == ([], [])
    assert torch.equal(plain(patient.x), patient.model(patient.x))
    assert differences(dict(plain.state_dict()), dict(patient.model.state_dict())) == []


@pytest.mark.parametrize("to", KINDS)
@pytest.mark.parametrize("inplace", [False, True])
def test_a_swapped_model_goes_back_with_a_state_dict_from_before(to: str, inplace: bool) -> None:
    patient = Patient.of(act=lambda: nn.ReLU(inplace))
    before, expected = copy.deepcopy(patient.model.state_dict()), patient.model(patient.x)
    _, watch = patient.treated(Swap(to), cooldown=99)
    watch.detach()
    restore(patient.model, before)
    assert type(patient.model[1]) is nn.ReLU
    assert patient.model[1].inplace is inplace
    assert torch.equal(patient.model(patient.x), expected)


def test_a_swap_half_way_back_is_restored_where_it_stood() -> None:
    patient = Patient.of()
    _, watch = patient.treated(Swap("elu", anneal=4), cooldown=99)
    watch.step()
    plain = mlp()
    restore(plain, patient.model.state_dict())
    assert plain[1].deadwatch_share.tolist() == [0.75]
    assert torch.equal(plain(patient.x), patient.model(patient.x))


def test_one_swap_gives_way_to_another() -> None:
    one, two = swapped("prelu"), swapped("gelu", only="all")
    restore(one.model, two.model.state_dict())
    assert torch.equal(one.model(two.x), two.model(two.x))
    assert isinstance(one.model[1].original, nn.ReLU)  # and no swap of a swap


def test_what_fits_already_stays_the_same_object() -> None:
    """Its slopes belong to an optimizer."""
    patient = swapped("prelu")
    module = patient.model[1]
    restore(patient.model, patient.model.state_dict())
    assert patient.model[1] is module


def test_part_of_a_state_dict_takes_no_swap_out() -> None:
    patient = swapped()
    restore(patient.model, {"4.bias": torch.zeros(5)}, strict=False)
    assert isinstance(patient.model[1], SwappedActivation)
    assert patient.model[4].bias.tolist() == [0.0] * 5


class Wrapped(nn.Module):
    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.net(x)
        return out


WRAPPERS: dict[str, Callable[[nn.Module], Any]] = {
    "bare": lambda net: net,
    "compiled": lambda net: torch.compile(net, backend="eager"),
    "parallel": nn.DataParallel,
    "both": lambda net: nn.DataParallel(cast(Any, torch.compile(net, backend="eager"))),
}


@pytest.mark.parametrize("saved", WRAPPERS)
@pytest.mark.parametrize("loaded", WRAPPERS)
@pytest.mark.parametrize("prelu", [False, True])
def test_wrappers_are_seen_through(saved: str, loaded: str, prelu: bool) -> None:
    patient = swapped("prelu" if prelu else "leaky_relu")
    state = WRAPPERS[saved](patient.model).state_dict()
    net = mlp()
    restore(WRAPPERS[loaded](net), state)
    assert torch.equal(net(patient.x), patient.model(patient.x))
    plain = WRAPPERS[saved](mlp()).state_dict()
    restore(WRAPPERS[loaded](net), plain)
    assert type(net[1]) is nn.ReLU


def test_the_prefix_of_a_larger_module_is_seen_through() -> None:
    patient = swapped()
    net = mlp()
    restore(net, Wrapped(Wrapped(patient.model)).state_dict())
    assert torch.equal(net(patient.x), patient.model(patient.x))
    inner = Wrapped(mlp())
    inner.net = torch.compile(inner.net, backend="eager")
    restore(inner, Wrapped(patient.model).state_dict())
    assert torch.equal(inner(patient.x), patient.model(patient.x))


def test_a_model_with_a_part_called_module_is_not_taken_for_a_wrapper() -> None:
    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.module = mlp()
            self.other = mlp()

    one, two = Both(), Both()
    restore(one, two.state_dict())
    assert differences(dict(one.state_dict()), dict(two.state_dict())) == []


def test_a_shared_activation_is_restored_at_all_its_paths() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.act = nn.ReLU()
            self.net = nn.Sequential(nn.Linear(4, 4), self.act)

    one, two = Twice(), Twice()
    new = SwappedActivation(one.act, Replacement("elu", 1), torch.ones(4))
    one.act = one.net[1] = new
    restore(two, one.state_dict())
    assert two.act is two.net[1]
    assert isinstance(two.act, SwappedActivation)
    restore(two, Twice().state_dict())
    assert two.act is two.net[1]
    assert type(two.act) is nn.ReLU


def test_hooks_of_the_user_stay_when_swaps_come_and_go() -> None:
    patient, plain = swapped(), mlp()
    seen: list[int] = []
    handle = plain[1].register_forward_hook(lambda *_: seen.append(1))
    before = copy.deepcopy(plain.state_dict())
    for state in (patient.model.state_dict(), before):
        restore(plain, state)
        plain(patient.x)
    assert seen == [1, 1]
    handle.remove()
    plain(patient.x)
    assert seen == [1, 1]


@pytest.mark.parametrize(
    ("model", "state", "message"),
    [
        ("net", {}, "model is 'str'; expected a torch.nn.Module"),
        (mlp(), None, r"state_dict is 'NoneType'; expected what model.state_dict\(\) returned"),
        (mlp(), {"state_dict": {}}, r"a whole checkpoint; expected checkpoint\['state_dict'\]"),
    ],
)
def test_wrong_arguments_are_named(model: Any, state: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        restore(model, state)


def test_a_swap_without_a_place_is_named() -> None:
    state = swapped().model.state_dict()
    with pytest.raises(DeadwatchError, match="'1', and the model has no module of that path"):
        restore(nn.Sequential(nn.Linear(12, 16)), state)
    with pytest.raises(DeadwatchError, match="'1', and the model has a Linear there"):
        restore(nn.Sequential(nn.Linear(12, 16), nn.Linear(16, 16)), state)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_dtypes_survive(dtype: torch.dtype) -> None:
    patient = Patient.of(dtype=dtype)
    patient.treated(Swap("prelu", slope=0.3))[1].detach()
    plain = mlp().to(dtype)
    restore(plain, through_a_file(patient.model.state_dict()))
    assert plain[1].replacement.weight.dtype == dtype
    assert plain[1].settings.slope == 0.3
    assert torch.equal(plain(patient.x), patient.model(patient.x))


def test_a_leak_keeps_its_slope_to_the_bit_when_the_model_changes_dtype() -> None:
    patient = swapped(slope=0.01)
    plain = mlp().bfloat16()
    restore(plain, patient.model.bfloat16().state_dict())
    assert plain[1].replacement.negative_slope == 0.01


# ── optimizers ──────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "optimizer",
    [
        lambda p: torch.optim.Adam(p, lr=1e-2),
        lambda p: torch.optim.SGD(p, lr=1e-2, momentum=0.9),
        lambda p: torch.optim.AdamW(p, lr=1e-2, weight_decay=0.1),
    ],
)
def test_training_goes_on_bitwise_from_a_restored_prelu(optimizer: Any) -> None:
    patient = Patient.of(optimizer=optimizer)
    patient.treated(Swap("prelu"), cooldown=99)[1].detach()
    patient.train(3)
    saved = through_a_file([patient.model.state_dict(), patient.optimizer.state_dict()])
    fresh = mlp()
    restore(fresh, saved[0])
    other = Patient(fresh, optimizer(fresh.parameters()), patient.x, "1")
    other.optimizer.load_state_dict(saved[1])
    patient.train(5)
    other.train(5)
    assert differences(patient.tensors(), other.tensors()) == []
    assert any(name.startswith("1.replacement.weight:") for name in other.tensors())


# ── averaged copies in a plain loop ─────────────────────────────────────────────────────────

AVERAGES: dict[str, dict[str, Any]] = {
    "swa": {},
    "swa-buffers": {"use_buffers": True},
    "ema": {"multi_avg_fn": get_ema_multi_avg_fn(0.9), "use_buffers": True},
    "ema-one-by-one": {"avg_fn": get_ema_avg_fn(0.9), "use_buffers": True},
}


@pytest.mark.parametrize("kind", AVERAGES)
@pytest.mark.parametrize("to", ["leaky_relu", "prelu"])
def test_an_averaged_copy_of_a_swapped_model_stays_restorable(kind: str, to: str) -> None:
    patient = swapped(to, slope=0.01)
    average = AveragedModel(patient.model, **AVERAGES[kind])
    for _ in range(20):
        patient.train(1)
        average.update_parameters(patient.model)
    plain = mlp()
    restore(plain, through_a_file(average.module.state_dict()))
    assert plain[1].units().tolist() == patient.model[1].units().tolist()
    assert torch.equal(plain(patient.x), average(patient.x))


@pytest.mark.parametrize("to", ["leaky_relu", "prelu"])
def test_a_copy_from_before_a_swap_follows_it_and_back(to: str) -> None:
    patient = Patient.of()
    average = AveragedModel(patient.model, multi_avg_fn=get_ema_multi_avg_fn(0.5))
    average.update_parameters(patient.model)
    own = copy.deepcopy(average.module.state_dict())
    before = copy.deepcopy(patient.model)
    _, watch = patient.treated(Swap(to), cooldown=99)
    watch.detach()
    follow(average.module, patient.model)
    after = average.module.state_dict()
    assert all(torch.equal(after[key], value) for key, value in own.items())
    patient.train(3)
    average.update_parameters(patient.model)
    assert average.module.state_dict().keys() == patient.model.state_dict().keys()
    slopes = copy.deepcopy(dict(average.module[1].named_parameters()))
    follow(average.module, patient.model)  # nothing is new: nothing changes
    assert differences(dict(average.module[1].named_parameters()), slopes) == []
    follow(average.module, before)
    assert type(average.module[1]) is nn.ReLU


# ── Lightning ───────────────────────────────────────────────────────────────────────────────


class Lightning(Module):
    """The module under test, with an argument of its own."""

    def __init__(self, dead: int = 6) -> None:
        super().__init__(dead)
        self.save_hyperparameters()

    def test_step(self, batch: list[Tensor], batch_idx: int) -> None:
        self.log("loss", nn.functional.cross_entropy(self.net(batch[0]), batch[1]))


def trainer_of(tmp_path: Path, *callbacks: Any, **arguments: Any) -> Any:
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False}
    return pl.Trainer(
        callbacks=list(callbacks),
        accelerator="cpu",
        default_root_dir=tmp_path,
        **(quiet | arguments),
    )


def written(tmp_path: Path, swap: Swap, **checkpoint: Any) -> tuple[Lightning, str]:
    """A fitted, swapped module, and the checkpoint of it."""
    keep = ModelCheckpoint(tmp_path / "kept", save_last=True, **checkpoint)
    watch = DeadWatch(policy=Policy(swap, cooldown=99, when=0.0), rules=QUICK)
    _, module = fit([watch, keep], tmp_path, Lightning())
    assert isinstance(module.net[1], SwappedActivation)
    return module, keep.last_model_path


X = torch.randn(7, 12, generator=torch.Generator().manual_seed(5))


@pytest.mark.parametrize("package", PACKAGES)
@pytest.mark.parametrize("to", ["leaky_relu", "prelu"])
@pytest.mark.parametrize("weights_only", [False, True])
def test_a_checkpoint_with_a_swap_is_loaded_by_one_line(
    tmp_path: Path, package: str, to: str, weights_only: bool
) -> None:
    lightning = import_module(package)

    class Net(lightning.LightningModule):  # type: ignore[misc, name-defined]
        def __init__(self, width: int = 16) -> None:
            super().__init__()
            self.save_hyperparameters()
            self.net = mlp(width=width)

    torch.manual_seed(1)
    net = Net(8)
    mask = torch.arange(8) < 3
    net.net[1] = SwappedActivation(net.net[1], Replacement(to, 1, 2, 0.1), mask)
    trainer = lightning.Trainer(logger=False, enable_checkpointing=False, barebones=False)
    trainer.strategy.connect(net)
    trainer.save_checkpoint(tmp_path / "net.ckpt", weights_only=weights_only)
    with pytest.raises(RuntimeError, match="deadwatch_restore"):
        Net.load_from_checkpoint(tmp_path / "net.ckpt")
    loaded = load_from_checkpoint(Net, tmp_path / "net.ckpt", map_location="cpu")
    assert type(loaded) is Net
    assert loaded.hparams == {"width": 8}
    assert torch.equal(loaded.net(X), net.net(X))
    assert not loaded._load_state_dict_pre_hooks


def test_strict_is_passed_on(tmp_path: Path) -> None:
    module, path = written(tmp_path, Swap())

    class Longer(Lightning):
        def __init__(self, dead: int = 6) -> None:
            super().__init__(dead)
            self.more = nn.Linear(2, 2)

    with pytest.raises(RuntimeError, match=r'Missing key\(s\) in state_dict: "more.weight"'):
        load_from_checkpoint(Longer, path)
    with pytest.warns(UserWarning, match="not in the checkpoint"):
        loaded = load_from_checkpoint(Longer, path, strict=False)
    assert torch.equal(loaded.net(X), module.net(X))


def test_only_classes_that_load_checkpoints_are_taken() -> None:
    with pytest.raises(ConfigError, match=r"use deadwatch\.restore\(model, state_dict\)"):
        load_from_checkpoint(nn.Linear, "net.ckpt")
    with pytest.raises(ConfigError, match="expected the class of a LightningModule"):
        load_from_checkpoint(Lightning(), "net.ckpt")


@pytest.mark.parametrize("weights_only", [False, True])
def test_a_fresh_trainer_tests_a_swapped_checkpoint(tmp_path: Path, weights_only: bool) -> None:
    module, path = written(tmp_path, Swap("prelu"), save_weights_only=weights_only)
    fresh = Lightning()
    trainer = trainer_of(tmp_path, DeadWatch())
    with lightning_remarks():
        trainer.test(fresh, loader(), ckpt_path=path, verbose=False)
    assert torch.equal(fresh.net(X), module.net(X))
    assert not fresh._load_state_dict_pre_hooks
    with lightning_remarks(), pytest.raises(RuntimeError, match=r"net\.1\.deadwatch_restore"):
        trainer_of(tmp_path).test(Lightning(), loader(), ckpt_path=path, verbose=False)


def test_a_swapped_module_tests_a_checkpoint_from_before(tmp_path: Path) -> None:
    """ "best" may well be an epoch from before the swap."""
    module, _ = written(tmp_path, Swap())
    plain = Lightning()
    best = tmp_path / "best.ckpt"
    torch.save({"state_dict": plain.state_dict(), "pytorch-lightning_version": "2.5"}, best)
    with lightning_remarks():
        trainer = trainer_of(tmp_path, DeadWatch())
        trainer.test(module, loader(), ckpt_path=best, verbose=False)
    assert type(module.net[1]) is nn.ReLU


@pytest.mark.filterwarnings("ignore:watching ended")  # the first half ends on the way back
@pytest.mark.parametrize("swap", [Swap("prelu"), Swap("elu", anneal=6)], ids=["prelu", "anneal"])
@pytest.mark.parametrize("epochs", [2, 3])
def test_a_resumed_fit_goes_on_bitwise(tmp_path: Path, swap: Swap, epochs: int) -> None:
    def fitted(name: str, epochs: int, resumed: str | None = None) -> tuple[Any, Any, str]:
        watch = DeadWatch(policy=Policy(swap, cooldown=99, when=0.0), rules=QUICK)
        keep = ModelCheckpoint(tmp_path / name, save_last=True)
        trainer = trainer_of(tmp_path, watch, keep, max_epochs=epochs)
        module = Lightning()
        with lightning_remarks():
            trainer.fit(module, loader(), ckpt_path=resumed)
        return trainer, module, keep.last_model_path

    whole, expected, _ = fitted("whole", 5)
    _, _, path = fitted("first", epochs)
    trainer, module, _ = fitted("second", 5, path)
    assert differences(dict(module.state_dict()), dict(expected.state_dict())) == []
    states = [one.optimizers[0].state_dict() for one in (trainer, whole)]
    assert differences(*states) == []


def test_nothing_of_ours_stays_on_the_module(tmp_path: Path) -> None:
    module, _ = written(tmp_path, Swap())
    assert not module._load_state_dict_pre_hooks

    class Failing(Lightning):
        def on_train_epoch_end(self) -> None:
            raise RuntimeError("on purpose")

    failing = Failing()
    with pytest.raises(RuntimeError, match="on purpose"):
        fit([DeadWatch()], tmp_path, failing)
    assert not failing._load_state_dict_pre_hooks


def test_a_hooked_module_can_be_copied_and_pickled() -> None:
    module = Lightning()
    del module.make  # a lambda
    watch = DeadWatch()
    trainer: Any = type("Trainer", (), {"callbacks": []})
    watch.setup(trainer, module, "fit")
    patient = swapped()
    state = {f"net.{key}": value for key, value in patient.model.state_dict().items()}
    for clone in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        clone.net = mlp()
        clone.load_state_dict(state)
        assert isinstance(clone.net[1], SwappedActivation)
        torch.save(clone, io.BytesIO())
    watch.teardown(trainer, module, "fit")
    assert not module._load_state_dict_pre_hooks


# ── Lightning's averages ────────────────────────────────────────────────────────────────────


@pytest.mark.filterwarnings("ignore:watching ended")
@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("use_buffers", [True, False])
@pytest.mark.parametrize("swap", [Swap("prelu"), Swap(anneal=5)], ids=["prelu", "anneal"])
def test_a_moving_average_follows_swaps(
    tmp_path: Path, swap: Swap, use_buffers: bool, first: bool
) -> None:
    def fitted(name: str, epochs: int, resumed: str | None = None) -> tuple[Any, Any, str]:
        watch = DeadWatch(policy=Policy(swap, cooldown=99, when=0.0), rules=QUICK)
        average = EMAWeightAveraging(decay=0.5, use_buffers=use_buffers)
        keep = ModelCheckpoint(tmp_path / name, save_last=True)
        callbacks = [watch, average] if first else [average, watch]
        trainer = trainer_of(tmp_path, *callbacks, keep, max_epochs=epochs)
        module = Lightning()
        with lightning_remarks():
            trainer.fit(module, loader(), loader(), ckpt_path=resumed)
        assert not module._load_state_dict_pre_hooks
        return watch, module, keep.last_model_path

    watch, module, path = fitted("whole", 3)
    assert [entry.treatment.remedy for entry in watch.watch.ledger][:1] == ["Swap"]
    saved = torch.load(path, weights_only=True)
    assert saved["state_dict"].keys() == saved["current_model_state"].keys()
    loaded = load_from_checkpoint(Lightning, path)
    assert torch.equal(loaded.net(X), module.net(X))  # at its end, the fit takes over the average
    _, _, half = fitted("first", 2)
    _, resumed, _ = fitted("second", 3, half)
    assert differences(dict(resumed.state_dict()), dict(module.state_dict())) == []


def test_stochastic_weight_averaging_follows_swaps_from_before(tmp_path: Path) -> None:
    watch = DeadWatch(policy=Policy(Swap("prelu"), cooldown=99, when=0.0), rules=QUICK)
    average = StochasticWeightAveraging(1e-2, swa_epoch_start=3)
    _, module = fit([watch, average], tmp_path, max_epochs=5)
    assert watch.watch is not None
    assert {entry.treatment.remedy for entry in watch.watch.ledger} == {"Swap"}
    assert average._average_model.state_dict().keys() == module.state_dict().keys()
    plain = Module()
    restore(plain, through_a_file(module.state_dict()))
    assert torch.equal(plain.net(X), module.net(X))


def test_an_average_that_is_no_copy_cannot_be_followed(tmp_path: Path) -> None:
    class Other(pl.Callback):
        _average_model = nn.Linear(2, 2)

    watch = DeadWatch(policy=Policy(Swap("prelu"), cooldown=99, when=0.0), rules=QUICK)
    fit([watch, Other()], tmp_path)
    assert watch.watch is not None
    assert not list(watch.watch.ledger)


def test_convolutions_keep_their_axis() -> None:
    patient = Patient.of("conv")
    patient.treated(Swap("prelu"), cooldown=99)[1].detach()
    plain = conv(2)
    restore(plain, patient.model.state_dict())
    assert plain[1].settings == Replacement("prelu", 1, 4, 0.25)
    assert plain[1].units().nonzero().flatten().tolist() == DEAD
    assert torch.equal(plain(patient.x), patient.model(patient.x))
