"""The gradients at pre-activations, against those that autograd gives for kept ones."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from deadwatch import Watch, WindowReport
from deadwatch.errors import SiteDisabledWarning
from deadwatch.observe import gradients
from deadwatch.records import Gauges
from tests import nets
from tests.dispatches import counted


def gauges_of(report: WindowReport) -> Gauges:
    assert type(report.gauges) is Gauges
    return report.gauges


class Kept:
    """What autograd says, by gradients that are kept in full: an oracle of its own.

    It puts an identity before each activation module, and reads the gradient of its output.
    """

    def __init__(self) -> None:
        self.found: dict[str, list[Tensor]] = {}

    def before(self, name: str, z: Tensor) -> Tensor:
        z = z.clone()
        if z.requires_grad:
            z.register_hook(lambda grad: self.found.setdefault(name, []).append(grad.clone()))
        return z

    def rms(self, name: str) -> float:
        grads = torch.cat([grad.double().flatten() for grad in self.found[name]])
        return float(grads.square().mean().sqrt())


class Net(nn.Module):
    """Activations of all kinds; each reads what ``before`` makes of its pre-activation."""

    names = ("act", "-relu", "act-2", "-glu", "flat", "-relu-2")

    def __init__(self, inplace: bool = False) -> None:
        super().__init__()
        self.first, self.second, self.third = nn.Linear(12, 16), nn.Linear(16, 16), nn.Linear(8, 6)
        self.act = nn.ReLU(inplace=inplace)
        self.flat = nn.Tanh()
        self.conv = nn.Conv1d(1, 3, 3)
        self.inplace = inplace
        self.before: Callable[[str, Tensor], Tensor] = lambda name, z: z

    def forward(self, x: Tensor) -> Tensor:
        h = self.act(self.before("act", self.first(x)))
        z = self.second(h)
        h = F.relu(self.before("-relu", -z)) + self.act(self.before("act-2", z * 1))
        h = F.glu(self.before("-glu", h), -1)
        h = self.flat(self.before("flat", self.third(h)))
        h = self.conv(h[:, None])
        return F.relu(self.before("-relu-2", h), inplace=self.inplace)


def batches(steps: int) -> list[Tensor]:
    return [
        torch.randn(9, 12, generator=torch.Generator().manual_seed(step)) for step in range(steps)
    ]


def measured(model: nn.Module, backward: Callable[[Tensor, int], None], every: int = 1) -> Gauges:
    with Watch(model, gradients=True, stats_every_n_steps=every) as watch:
        for step, x in enumerate(batches(4)):
            backward(model(x), step)
            watch.step()
        return gauges_of(watch.close_window())


def plain(out: Tensor, step: int) -> None:
    out.square().mean().backward()


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("every", [1, 3])
def test_gradients_are_those_of_autograd(inplace: bool, every: int) -> None:
    torch.manual_seed(0)
    model, kept = Net(inplace), Kept()
    found = measured(model, plain, every)
    model.before = kept.before
    for step, x in enumerate(batches(4)):
        if step % every == 0:
            plain(model(x), step)
    names = {name.removeprefix("-") for name in model.names}
    assert found.gradients.keys() == names
    for name in model.names:
        if name == "-glu":  # of a GLU, it is the half that gates
            kept.found[name] = [grad.chunk(2, -1)[1] for grad in kept.found[name]]
        assert found.gradients[name.removeprefix("-")] == pytest.approx(kept.rms(name), rel=1e-5)
    assert (found.updates, found.inputs, found.rows, found.last_open) == ({}, {}, {}, {})


def test_gradients_of_kept_pre_activations() -> None:
    torch.manual_seed(0)
    model = nets.mlp()
    found = measured(model, plain)
    squares, count = 0.0, 0
    for x in batches(4):
        z = model[0](x)
        (grad,) = torch.autograd.grad(model[1:](z).square().mean(), z)
        squares, count = squares + float(grad.double().square().sum()), count + grad.numel()
    assert found.gradients["1"] == pytest.approx((squares / count) ** 0.5, rel=1e-5)


def _grads(gradients_on: bool, model: nn.Module, run: Callable[[nn.Module], Any]) -> list[Any]:
    with Watch(model, gradients=gradients_on, advice=gradients_on, stats_every_n_steps=1) as watch:
        run(model)
        watch.step()
        watch.close_window()
    return [None if p.grad is None else p.grad.clone() for p in model.parameters()]


def _twice(model: nn.Module) -> None:
    loss = model(batches(1)[0]).square().mean()
    loss.backward(retain_graph=True)
    loss.backward()


def _accumulated(model: nn.Module) -> None:
    for x in batches(3):
        model(x).square().mean().backward()


def _penalty(model: nn.Module) -> None:
    x = batches(1)[0].requires_grad_()
    out = model(x).square().mean()
    (grad,) = torch.autograd.grad(out, x, create_graph=True)
    (out + grad.square().sum()).backward()


def _scaled(model: nn.Module) -> None:
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**14)
    with torch.autocast("cpu", torch.bfloat16):
        loss = model(batches(1)[0]).float().square().mean()
    scaler.scale(loss).backward()


def _expanded(model: nn.Module) -> None:
    model(batches(1)[0]).sum().backward()


def _partial(model: nn.Module) -> None:
    model(batches(1)[0])  # and no backward pass
    torch.autograd.grad(model(batches(1)[0]).sum(), list(model.parameters()))


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("run", [_twice, _accumulated, _penalty, _scaled, _expanded, _partial])
def test_gradients_of_parameters_are_the_same_to_the_bit(
    run: Callable[[nn.Module], Any], inplace: bool
) -> None:
    found = []
    for on in (False, True):
        torch.manual_seed(0)
        found.append(_grads(on, Net(inplace), run))
    for bare, gauged in zip(*found, strict=True):
        assert (bare is None and gauged is None) or torch.equal(bare, gauged)


def test_two_backward_passes_count_both() -> None:
    model = nets.mlp()

    def both(out: Tensor, step: int) -> None:
        out.sum().backward(retain_graph=True)
        (3 * out.sum()).backward()

    once = measured(model, lambda out, step: out.sum().backward()).gradients
    twice = measured(model, both).gradients
    assert twice == pytest.approx({name: rms * 5**0.5 for name, rms in once.items()}, rel=1e-5)


class Checkpointed(nn.Module):
    def __init__(self, reentrant: bool) -> None:
        super().__init__()
        self.inner, self.last, self.reentrant = nets.mlp(), nn.Sequential(nn.ReLU()), reentrant

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.last(checkpoint(self.inner, x, use_reentrant=self.reentrant))
        return out


def test_checkpoints_that_are_not_reentrant_are_measured_once_and_others_not() -> None:
    torch.manual_seed(0)
    model = Checkpointed(reentrant=False)
    found = measured(model, plain).gradients
    whole = measured(nn.Sequential(model.inner, model.last), plain).gradients
    assert found == pytest.approx(
        {f"inner.{k[2:]}": v for k, v in whole.items() if k[0] == "0"} | {"last.0": whole["1.0"]}
    )
    model.reentrant = True
    with Watch(model, gradients=True) as watch:
        plain(model(batches(1)[0].requires_grad_()), 0)
        watch.step()
        assert gauges_of(watch.close_window()).gradients.keys() == {"last.0"}


def test_compiled_graphs_show_none() -> None:
    model = torch.compile(nets.mlp(), backend="eager")
    assert measured(model, plain).gradients == {}


def test_without_a_backward_pass_there_is_none() -> None:
    assert measured(nets.mlp(), lambda out, step: None).gradients == {}


def test_gradients_that_are_not_finite_are_left_out() -> None:
    torch.manual_seed(0)
    model = nets.mlp()
    found = measured(model, lambda out, step: (out.sum() * (torch.inf if step else 1)).backward())
    model.zero_grad()
    once = Kept()
    out = model[2:](model[1](once.before("1", model[0](batches(1)[0]))))
    out.sum().backward()
    assert found.gradients["1"] == pytest.approx(once.rms("1"), rel=1e-5)


def test_the_smallest_gradients_are_not_zero() -> None:
    model = nets.mlp()
    found = measured(model, lambda out, step: (out.sum() * 1e-30).backward()).gradients
    assert all(1e-35 < rms < 1e-25 for rms in found.values())


def test_nothing_of_the_size_of_a_gradient_is_made() -> None:
    big = torch.ones(1).expand(1 << 23).reshape(64, -1)
    with counted() as tally:
        gradients._norm(big, -1)
    assert max(operation.temporary for operation in tally.operations) <= gradients._PIECE * 8
    assert float(gradients._norm(big.half(), 0)) == pytest.approx((1 << 23) ** 0.5)


def test_what_is_written_over_through_a_view_is_missing() -> None:
    """Autograd replaces the view by another, of which nobody knows when the hook is put there."""

    class Viewed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up, self.act, self.down = nn.Linear(12, 8), nn.ReLU(inplace=True), nn.Linear(8, 2)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.down(self.act(self.up(x).view(-1, 4)).view(-1, 8))
            return out

    found = []
    for on in (False, True):
        torch.manual_seed(0)
        model = Viewed()
        found.append(_grads(on, model, lambda model: plain(model(batches(1)[0]), 0)))
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
    assert measured(model, plain).gradients == {}


def test_a_gradient_that_cannot_be_measured_is_given_up_loudly() -> None:
    model = nn.Sequential(nn.Linear(12, 3), nn.ReLU(), nn.Linear(3, 1))
    with Watch(model, gradients=True) as watch, pytest.MonkeyPatch.context() as patch:
        patch.setattr(gradients, "_norm", lambda z, dim: torch.zeros(2) + torch.zeros(3))
        out = model(batches(1)[0]).sum()
        with pytest.warns(SiteDisabledWarning, match="measuring the gradient at '1' failed"):
            out.backward()
        watch.step()
        assert gauges_of(watch.close_window()).gradients == {}
    assert model[0].weight.grad is not None


def test_a_parameter_that_is_an_activations_input_keeps_no_hook() -> None:
    class Gate(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gate, self.act = nn.Parameter(torch.randn(4)), nn.ReLU()

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = x * self.act(self.gate)
            return out

    model = Gate()
    with Watch(model, gradients=True) as watch:
        model(torch.randn(4)).sum().backward()
        watch.step()
        assert gauges_of(watch.close_window()).gradients == {}
    assert not model.gate._backward_hooks
