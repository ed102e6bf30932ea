"""Fused models compute what they did and need no deadwatch; what cannot be fused is told."""

from __future__ import annotations

import copy
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from deadwatch import ConfigError, Swap, fuse
from deadwatch.activations import KINDS, Replacement, SwappedActivation
from deadwatch.errors import UnfusedSwapWarning
from tests.clinic import Patient
from tests.nets import images

C = 6
PART = torch.arange(C) < 2
ALL = torch.ones(C, dtype=torch.bool)
PLAIN: dict[str, type[nn.Module]] = {
    "leaky_relu": nn.LeakyReLU,
    "prelu": nn.PReLU,
    "elu": nn.ELU,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
}


def swapped(to: str, mask: Tensor, dim: int = 1, ndim: int = 2, **more: Any) -> nn.Sequential:
    """An activation between two identities, and slopes that have learned something."""
    original = more.pop("original", nn.ReLU())
    settings = Replacement(to, dim, ndim, 0.1 if to in ("leaky_relu", "prelu") else 0.0)
    module = SwappedActivation(original, settings, mask, **more)
    for slopes in module.replacement.parameters():
        nn.init.uniform_(slopes)
    return nn.Sequential(nn.Identity(), module)


def fused(model: nn.Sequential, x: Tensor) -> nn.Module:
    """What the activation became; asserts that the model computes the same, gradients included."""
    results = []
    for one in (copy.deepcopy(model), fuse(model)):
        z = x.clone().requires_grad_()
        y = one(z)
        y.square().sum().backward()
        results += [(y, z.grad)]
    for before, after in zip(*results, strict=True):
        assert torch.equal(before, after)
    return model[1]


@pytest.mark.parametrize("to", KINDS)
def test_a_layer_swapped_as_a_whole_becomes_the_new_activation(to: str) -> None:
    plain = fused(swapped(to, ALL), torch.randn(9, C))
    assert type(plain) is PLAIN[to]


@pytest.mark.parametrize("to", KINDS)
def test_a_swap_of_no_unit_becomes_the_original(to: str) -> None:
    assert type(fused(swapped(to, ~ALL), torch.randn(9, C))) is nn.ReLU


@pytest.mark.parametrize("to", ["leaky_relu", "prelu"])
@pytest.mark.parametrize("original", [nn.ReLU(), nn.ReLU(True), nn.LeakyReLU(0.3)], ids=repr)
@pytest.mark.parametrize("shape", [(9, C), (4, C, 5), (4, C, 3, 2)])
def test_a_leak_on_some_units_becomes_a_prelu(
    to: str, original: nn.Module, shape: tuple[int, ...]
) -> None:
    model = swapped(to, PART, 1, len(shape), original=original)
    plain = fused(model, torch.randn(shape))
    assert type(plain) is nn.PReLU
    assert plain.weight.requires_grad is (to == "prelu")


def test_a_last_axis_of_two_is_axis_1() -> None:
    assert type(fused(swapped("prelu", PART, -1, 2), torch.randn(9, C))) is nn.PReLU


@pytest.mark.parametrize(("share", "kind"), [(0.0, nn.ReLU), (0.5, nn.LeakyReLU)])
def test_a_share_is_fused_as_it_stands(share: float, kind: type[nn.Module]) -> None:
    model = swapped("leaky_relu", ALL, annealed=True)
    model[1].deadwatch_share.fill_(share)
    x = torch.randn(9, C)
    before = model(x)
    fuse(model)
    torch.testing.assert_close(model(x), before)
    assert type(model[1]) is kind


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (swapped("prelu", ALL, -1, 3), "a slope per unit on axis -1"),
        (swapped("leaky_relu", PART, -1, 3), "a slope per unit on axis -1"),
        (swapped("prelu", ALL, -1, 0), "a slope per unit on axis -1"),
        (swapped("gelu", PART), "ReLU and GELU in one layer"),
        (swapped("elu", ALL, annealed=True), None),
    ],
)
def test_what_has_no_equivalent_stays_and_is_told(model: nn.Sequential, reason: str | None) -> None:
    before = model[1]
    if reason is None:  # a share of 1 is the replacement
        assert type(fuse(model)[1]) is nn.ELU
        return
    with pytest.warns(UnfusedSwapWarning, match=rf"not fused.*: 1 \({reason}\)\. .*torch\.export"):
        assert fuse(model) is model
    assert model[1] is before


def test_a_smooth_share_has_no_equivalent() -> None:
    model = swapped("elu", ALL, annealed=True)
    model[1].deadwatch_share.fill_(0.5)
    with pytest.warns(UnfusedSwapWarning, match="ReLU and ELU in one layer"):
        fuse(model)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_slopes_take_the_dtype_of_the_model(dtype: torch.dtype) -> None:
    patient = Patient.of(dtype=dtype)
    patient.treated(Swap(slope=0.3), cooldown=99)[1].detach()
    before = patient.model(patient.x)
    fuse(patient.model)
    torch.testing.assert_close(patient.model(patient.x), before)
    assert patient.model[1].weight.dtype == dtype


def test_hooks_of_the_user_and_the_mode_stay() -> None:
    model = swapped("elu", ALL).eval()
    seen: list[int] = []
    handle = model[1].register_forward_hook(lambda *_: seen.append(1))
    fuse(model)(torch.randn(2, C))
    assert not model[1].training
    handle.remove()
    model(torch.randn(2, C))
    assert seen == [1]


@pytest.mark.parametrize("model", ["net", swapped("elu", ALL)[1]])
def test_only_a_model_around_it_can_be_fused(model: Any) -> None:
    with pytest.raises(ConfigError, match=r"model is .*; expected a torch\.nn\.Module that holds"):
        fuse(model)


# ── without deadwatch ───────────────────────────────────────────────────────────────────────

ALONE = """
    import sys
    sys.modules["deadwatch"] = None  # importing it fails
    import torch
    x, expected = torch.load("data.pt")
    {load}
    got = model(x)
    torch.testing.assert_close(got, expected)
    print("alone")
"""


def alone(tmp_path: Path, load: str) -> None:
    """Run a model in a process that cannot import deadwatch."""
    code = textwrap.dedent(ALONE).format(load=load)
    arguments = [sys.executable, "-W", "ignore", "-c", code]
    done = subprocess.run(arguments, capture_output=True, text=True, cwd=tmp_path)
    assert done.stdout == "alone\n", done.stderr[-2000:]


def treated(kind: str, tmp_path: Path, **swap: Any) -> Patient:
    patient = Patient.of(kind)
    patient.treated(Swap(**swap), cooldown=99)[1].detach()
    patient.model.eval()
    torch.save([patient.x, patient.model(patient.x).detach()], tmp_path / "data.pt")
    return patient


@pytest.mark.parametrize("kind", ["mlp", "conv"])
@pytest.mark.parametrize("to", ["leaky_relu", "prelu"])
def test_a_fused_model_is_unpickled_without_deadwatch(tmp_path: Path, kind: str, to: str) -> None:
    patient = treated(kind, tmp_path, to=to, quiet=False)
    torch.save(patient.model, tmp_path / "swapped.pt")
    load = "model = torch.load('{}.pt', weights_only=False)".format
    with pytest.raises(AssertionError, match="deadwatch"):
        alone(tmp_path, load("swapped"))
    torch.save(fuse(patient.model), tmp_path / "fused.pt")
    alone(tmp_path, load("fused"))


@pytest.mark.parametrize("to", ["leaky_relu", "gelu"])
def test_exported_programs_do_without_deadwatch_fused_or_not(tmp_path: Path, to: str) -> None:
    patient = treated("mlp", tmp_path, to=to, quiet=False)
    exported = torch.export.export(patient.model, (patient.x,))
    torch.export.save(exported, tmp_path / "net.pt2")
    alone(tmp_path, "model = torch.export.load('net.pt2').module()")


@pytest.mark.filterwarnings("ignore:.*deprecated:DeprecationWarning")
@pytest.mark.parametrize("how", ["trace", "script"])
def test_scripted_programs_do_without_deadwatch_fused_or_not(tmp_path: Path, how: str) -> None:
    patient = treated("conv", tmp_path, to="prelu", quiet=False)
    for model in (patient.model, fuse(patient.model)):
        traced = how == "trace"
        scripted = torch.jit.trace(model, patient.x) if traced else torch.jit.script(model)
        torch.jit.save(scripted, tmp_path / "net.ts")
        alone(tmp_path, "model = torch.jit.load('net.ts')")


def test_a_fused_state_dict_is_a_plain_one(tmp_path: Path) -> None:
    patient = treated("conv", tmp_path, to="elu", only="all")
    fuse(patient.model)
    assert not any("deadwatch" in key for key in patient.model.state_dict())
    assert patient.model(images(2)).isfinite().all()
