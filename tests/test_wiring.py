"""Producers and consumers come from real data flow, or are unknown with a reason."""

from __future__ import annotations

import gc
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.nn.utils import prune
from torch.nn.utils.parametrizations import weight_norm

from deadwatch import Watch
from deadwatch.observe.naming import Names
from deadwatch.observe.wiring import _references_of_graph
from deadwatch.records import Site
from tests.nets import SharedReLU, Tokens, conv, images, mlp, vectors


def site_of(model: nn.Module, x: Tensor, name: str) -> Site:
    with Watch(model) as watch:
        model(x)
        return watch.peek()[name].site


def names(wires: tuple[Any, ...]) -> list[str]:
    return [f"{wire.kind} {wire.weight}" for wire in wires]


class Net(nn.Module):
    """Linear → ReLU → Linear with a hand-written forward."""

    def __init__(self, forward: Callable[[Net, Tensor], Any]) -> None:
        super().__init__()
        self.up, self.act, self.down = nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 4)
        self.other = nn.Linear(8, 4)
        self.run = forward

    def forward(self, x: Tensor) -> Any:
        return self.run(self, x)


def test_linear_chain() -> None:
    site = site_of(mlp(), vectors(), "1")
    assert names(site.producers) == ["linear 0.weight"]
    assert site.producers[0].bias == "0.bias"
    assert names(site.consumers) == ["linear 2.weight"]
    assert (site.producers_note, site.consumers_note) == ("", "")
    assert site.unit_dim == -1


@pytest.mark.parametrize("n", [1, 2, 3])
def test_convolution_norm_pool_flatten_linear(n: int) -> None:
    site = site_of(conv(n, norm=True, inplace=True), images(n), "2")
    assert names(site.producers) == ["conv 0.weight", "batch_norm 1.weight"]
    assert names(site.consumers) == ["linear 5.weight"]
    assert site.consumers[0].block == 2**n
    assert site.unit_dim == 1


def test_blocks_of_a_flatten_are_the_columns_that_a_unit_feeds() -> None:
    """Zeroing the columns that the wire names must do what zeroing the channel does."""
    torch.manual_seed(0)
    model = conv(2).eval()
    wire = site_of(model.train(), images(2), "1").consumers[0]
    x, unit = images(2), 3
    model[1].register_forward_hook(lambda m, a, h: h.index_fill(1, torch.tensor([unit]), 0))
    expected = model(x)
    model[1]._forward_hooks.clear()
    assert not torch.equal(model(x), expected)
    with torch.no_grad():
        columns = slice(unit * wire.block, (unit + 1) * wire.block)
        model.get_parameter(str(wire.weight))[:, columns] = 0
    torch.testing.assert_close(model(x), expected)


def test_tokens() -> None:
    site = site_of(Tokens(), torch.randn(4, 5, 8), "act")
    assert names(site.producers) == ["linear up.weight"]
    assert names(site.consumers) == ["linear down.weight"]


def test_residual_block() -> None:
    model = SharedReLU()
    first = site_of(model, images(2), "relu")
    assert names(first.producers) == ["conv conv1.weight", "batch_norm bn1.weight"]
    assert names(first.consumers) == ["conv conv2.weight"]
    assert first.consumers[0].padded
    second = site_of(model, images(2), "relu-2")
    assert second.producers == ()
    assert "add stands between" in second.producers_note
    assert second.consumers == ()
    assert "code outside the forward" in second.consumers_note


def test_several_readers_are_all_found() -> None:
    def both(net: Net, x: Tensor) -> Tensor:
        h = net.act(net.up(x))
        out: Tensor = net.down(h) + net.other(h)
        return out

    site = site_of(Net(both), vectors(), "act")
    assert names(site.consumers) == ["linear down.weight", "linear other.weight"]


def test_dropout_and_reshape_are_followed() -> None:
    def followed(net: Net, x: Tensor) -> Any:
        h = nn.functional.dropout(net.act(net.up(x)), 0.5)
        return net.down(h.view(4, 5, 8).reshape(-1, 8).contiguous())

    assert names(site_of(Net(followed), vectors(), "act").consumers) == ["linear down.weight"]


def test_global_pooling_and_permute_are_followed() -> None:
    class Pooled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.act, self.head = nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Linear(6, 2)
            self.mixer = nn.Linear(6, 6)

        def forward(self, x: Tensor) -> Any:
            h = self.act(self.conv(x))
            return self.head(h.mean((2, 3))) + self.mixer(h.permute(0, 2, 3, 1)).sum()

    site = site_of(Pooled(), images(2), "act")
    assert names(site.consumers) == ["linear head.weight", "linear mixer.weight"]


@dataclass(frozen=True)
class Unknown:
    """A forward whose readers or producers cannot all be known."""

    name: str
    forward: Callable[[Net, Tensor], Any]
    side: str
    reason: str


class Double(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x * 2

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        return grads[0] * 2


def _hidden(net: Net, x: Tensor) -> Any:
    return net.act(net.up(x))


def _returned(net: Net, x: Tensor) -> Any:
    h = _hidden(net, x)
    return {"logits": net.down(h), "features": h}


def _skip(net: Net, x: Tensor) -> Any:
    h = _hidden(net, x)
    return net.down(h) + h.sum()


def _custom(net: Net, x: Tensor) -> Any:
    h = _hidden(net, x)
    return net.down(h) + net.other(Double.apply(h))


def _inplace(net: Net, x: Tensor) -> Any:
    h = _hidden(net, x)
    h += 1
    return net.down(h)


def _penalty(net: Net, x: Tensor) -> Any:
    h = _hidden(net, x)
    return net.down(h) + h.abs().mean()


def _einsum(net: Net, x: Tensor) -> Any:
    return torch.einsum("ij,kj->ik", _hidden(net, x), net.down.weight)


def _transposed(net: Net, x: Tensor) -> Any:
    h = nn.functional.pad(x, (0, 0)).new_zeros(8, 8) + _hidden(net, x)[:8]
    return net.down(h.t())


def _twice(net: Net, x: Tensor) -> Any:
    h = _hidden(net, x)
    return net.down(h) + net.down(h * 2)


def _pre_skip(net: Net, x: Tensor) -> Any:
    z = net.up(x)
    return net.down(net.act(z)) + net.other(z)


def _scaled(net: Net, x: Tensor) -> Any:
    return net.down(net.act(net.up(x) * 3))


def _same_producer_twice(net: Net, x: Tensor) -> Any:
    return net.down(net.act(net.up(x))) + net.up(-x).sum()


def _scripted(net: Net, x: Tensor) -> Any:
    h = _hidden(net, x)
    with pytest.warns(DeprecationWarning, match="deprecated"):
        reader = torch.jit.script(torch.nn.Tanh())
    return net.down(h) + reader(h).sum()


def _stashed(net: Net, x: Tensor) -> Any:
    h = _hidden(net, x)
    net.__dict__["kept"] = h
    return net.down(h)


def _stashed_view(net: Net, x: Tensor) -> Any:
    h = _hidden(net, x)
    net.__dict__["kept"] = [h.view(-1, 8)]
    return net.down(h)


def _namespace(net: Net, x: Tensor) -> Any:
    h = _hidden(net, x)
    return SimpleNamespace(logits=net.down(h), h=h)


def _two_modules(net: Net, x: Tensor) -> Any:
    return net.down(net.act(nn.functional.linear(x, net.up.weight, net.other.weight[0] * 0)))


def _written_into(net: Net, x: Tensor) -> Any:
    h = _hidden(net, x).clone()
    h[:, :4] = net.other(h)
    return net.down(h)


def _copied_out(net: Net, x: Tensor) -> Any:
    h = _hidden(net, x)
    buffer = torch.zeros_like(x[:, :8])
    buffer[:] = h
    net.__dict__["buffer"] = buffer
    return net.down(h)


def _pooled_units(net: Net, x: Tensor) -> Any:
    return net.down(nn.functional.avg_pool1d(_hidden(net, x), 3, 1, 1))


def _pooled_before(net: Net, x: Tensor) -> Any:
    return net.down(net.act(nn.functional.max_pool1d(net.up(x), 3, 1, 1)))


def _overwritten_before(net: Net, x: Tensor) -> Any:
    z = net.up(x)
    z[:, :4] = 1
    return net.down(net.act(z))


def _scripted_before(net: Net, x: Tensor) -> Any:
    z = net.up(x)
    with pytest.warns(DeprecationWarning, match="deprecated"):
        reader = torch.jit.script(torch.nn.Tanh())
    return net.down(net.act(z)) + reader(z).sum()


def _kept_before(net: Net, x: Tensor) -> Any:
    z = net.up(x)
    net.__dict__["kept"] = z
    return net.down(net.act(z))


def _hidden_behind_no_grad(net: Net, x: Tensor) -> Any:
    h = _hidden(net, x)
    with torch.no_grad():
        net.other(h)
    with pytest.warns(DeprecationWarning, match="deprecated"):
        reader = torch.jit.script(torch.nn.Tanh())
    return SimpleNamespace(y=reader(h).sum())


UNKNOWN = [
    Unknown("written-into", _written_into, "consumers", "read by __setitem__"),
    Unknown("copied-out", _copied_out, "consumers", "read by __setitem__"),
    Unknown("pooled-units", _pooled_units, "consumers", "read by avg_pool1d"),
    Unknown("pooled-before", _pooled_before, "producers", "no known operation"),
    Unknown("overwritten-before", _overwritten_before, "producers", "read by __setitem__ and"),
    Unknown("scripted-before", _scripted_before, "producers", "no torch function"),
    Unknown("kept-before", _kept_before, "producers", "kept in a dict by the forward"),
    Unknown("behind-no-grad", _hidden_behind_no_grad, "consumers", "no torch function"),
    Unknown("scripted", _scripted, "consumers", "no torch function"),
    Unknown("stashed", _stashed, "consumers", "kept in a dict by the forward"),
    Unknown("stashed-view", _stashed_view, "consumers", "kept in a list by the forward"),
    Unknown("namespace", _namespace, "consumers", "kept in a dict by the forward"),
    Unknown("computed-bias", _two_modules, "producers", "the bias of its linear layer is not"),
    Unknown("returned", _returned, "consumers", "code outside the forward"),
    Unknown("skip", _skip, "consumers", "read by sum"),
    Unknown("custom-function", _custom, "consumers", "no torch function"),
    Unknown("in-place", _inplace, "consumers", "read by"),
    Unknown("penalty", _penalty, "consumers", "read by abs"),
    Unknown("einsum", _einsum, "consumers", "read by einsum"),
    Unknown("transposed", _transposed, "consumers", "read by"),
    Unknown("twice", _twice, "consumers", "down.weight is used in 2 places"),
    Unknown("pre-activation-skip", _pre_skip, "producers", "read by act and linear"),
    Unknown("scaled", _scaled, "producers", "mul stands between"),
    Unknown("same-producer-twice", _same_producer_twice, "producers", "is used in 2 places"),
]


@pytest.mark.parametrize("case", UNKNOWN, ids=lambda case: case.name)
def test_what_is_not_understood_is_unknown_with_a_reason(case: Unknown) -> None:
    site = site_of(Net(case.forward), vectors(), "act")
    assert getattr(site, case.side) == ()
    assert case.reason in getattr(site, f"{case.side}_note")


def test_a_computed_weight_is_unknown() -> None:
    model = nn.Sequential(weight_norm(nn.Linear(12, 8)), nn.ReLU(), weight_norm(nn.Linear(8, 4)))
    site = site_of(model, vectors(), "1")
    assert (site.producers, site.consumers) == ((), ())
    assert "is not a parameter of the model" in site.producers_note
    assert "is not a parameter of the model" in site.consumers_note


def test_tied_weights_are_unknown() -> None:
    model = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 6), nn.ReLU())
    model[2].weight = model[0].weight
    site = site_of(model, torch.randn(4, 6), "1")
    assert site.producers_note == "0.weight is used in 2 places (it is 2.weight as well)"
    assert site.consumers_note == "0.weight and 2.bias belong to different modules"


def test_unbatched_input() -> None:
    model = nn.Sequential(nn.Conv2d(3, 5, 3), nn.ReLU())
    with Watch(model) as watch:
        model(torch.randn(3, 6, 6))
        report = watch.peek()["1"]
    assert report.units == 5
    assert report.samples == 16


def test_wiring_is_printed_in_full() -> None:
    text = str(site_of(mlp(), vectors(), "1").producers)
    assert "0.weight" in text
    assert "0.bias" in text


class Parts(nn.Module):
    """A body and two heads that a training loop may call by themselves."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(12, 8), nn.ReLU())
        self.head, self.aux = nn.Linear(8, 4), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Any:
        return self.head(self.body(x))


@pytest.mark.parametrize("root_first", [True, False])
def test_a_reader_in_any_forward_counts(root_first: bool) -> None:
    model = Parts()
    with Watch(model) as watch:
        calls = [lambda: model(vectors()), lambda: model.aux(model.body(vectors()))]
        for call in calls if root_first else reversed(calls):
            call()
        site = watch.peek()["body.1"].site
    assert site.consumers == ()
    assert "code outside the forward" in site.consumers_note


def test_weights_tied_across_parts_that_are_called_by_themselves() -> None:
    model = nn.ModuleList([mlp(), mlp()])
    model[1][0].weight = model[0][2].weight = nn.Parameter(torch.randn(16, 16))
    with Watch(model) as watch:
        model[0](vectors())
        model[1](torch.randn(4, 16))
        report = watch.peek()
    for name, side in (("0.1", "consumers"), ("0.3", "producers"), ("1.1", "producers")):
        assert getattr(report[name].site, side) == ()
        assert "0.2.weight" in getattr(report[name].site, f"{side}_note")


def test_one_activation_shared_by_parts_that_are_called_by_themselves() -> None:
    act = nn.ReLU()
    model = nn.ModuleList([nn.Sequential(nn.Linear(6, 6), act, nn.Linear(6, 6)) for _ in range(2)])
    with Watch(model) as watch:
        for _ in range(2):
            model[1](model[0](torch.randn(30, 6)))
        report = watch.peek()
    assert {name: site.samples for name, site in report.items()} == {"0.1": 60, "1.1": 60}
    assert names(report["0.1"].site.producers) == ["linear 0.0.weight"]
    assert names(report["1.1"].site.producers) == ["linear 1.0.weight"]


def test_the_same_forward_again_is_no_further_use() -> None:
    model = Parts()
    with Watch(model) as watch:
        for _ in range(3):
            model(vectors())
            model(vectors())
            watch.step()
        site = watch.peek()["body.1"].site
    assert names(site.producers) == ["linear body.0.weight"]
    assert names(site.consumers) == ["linear head.weight"]


def test_weight_and_bias_of_different_modules_are_unknown() -> None:
    class Borrowed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lin, self.act, self.head = nn.Linear(12, 8, bias=False), nn.ReLU(), nn.Linear(8, 2)
            self.ob = nn.Parameter(torch.zeros(8))

        def forward(self, x: Tensor) -> Any:
            return self.head(self.act(nn.functional.linear(x, self.lin.weight, self.ob)))

    site = site_of(Borrowed(), vectors(), "act")
    assert site.producers_note == "lin.weight and ob belong to different modules"


def test_average_pooling_with_padding_is_remembered() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.AvgPool2d(3, 1, 1), nn.Conv2d(4, 2, 1))
    assert site_of(model, images(2), "1").consumers[0].padded


def test_a_way_taken_only_later_is_traced_as_well() -> None:
    def warming_up(net: Net, x: Tensor) -> Any:
        h = net.act(net.up(x))
        return net.down(h) + net.other(h) if net.late else net.down(h)

    model = Net(warming_up)
    model.late = False
    with Watch(model) as watch:
        for window in range(5):
            model(vectors())
            site = watch.close_window()["act"].site
            assert len(site.consumers) == (2 if window == 4 else 1)
            model.late = window >= 2


def test_readers_in_a_hook_of_the_user_are_seen() -> None:
    model = mlp()
    aux, losses = nn.Linear(16, 2), []
    model.add_module("aux", aux)
    model[1].register_forward_hook(lambda m, a, h: losses.append(aux(h).mean()))
    model.forward = lambda x: model[4](model[3](model[2](model[1](model[0](x)))))
    site = site_of(model, vectors(), "1")
    assert names(site.consumers) == ["linear aux.weight", "linear 2.weight"]


def test_a_hook_of_the_user_that_replaces_the_output() -> None:
    model = mlp()
    model[1].register_forward_hook(lambda m, a, h: h.flip(-1))
    assert "read by flip" in site_of(model, vectors(), "1").consumers_note


def test_units_on_another_axis_than_the_producers() -> None:
    model = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 2))
    with Watch(model, unit_dim={"1": 1}) as watch:
        model(torch.randn(3, 6, 6))
        site = watch.peek()["1"].site
    assert "lie on another axis" in site.producers_note


def test_parameters_that_are_gone_by_the_end_of_the_window() -> None:
    model = mlp()
    with Watch(model) as watch:
        model(vectors())
        prune.l1_unstructured(model[0], "weight", 0.5)
        model[2] = nn.Linear(16, 16)
        report = watch.close_window()
    assert report["1"].site.producers_note == "0.weight is no longer a parameter of the model"


def test_a_weight_without_columns() -> None:
    class Dot(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up, self.act, self.w = nn.Linear(12, 8), nn.ReLU(), nn.Parameter(torch.randn(8))

        def forward(self, x: Tensor) -> Any:
            return nn.functional.linear(self.act(self.up(x)), self.w)

    site = site_of(Dot(), vectors(), "act")
    assert site.consumers_note == "it is read by linear"


def test_a_norm_called_in_another_way_than_its_module_does() -> None:
    class Direct(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up, self.norm, self.act = nn.Linear(12, 8), nn.BatchNorm1d(8), nn.ReLU()

        def forward(self, x: Tensor) -> Any:
            z, n = self.up(x), self.norm
            z = torch.batch_norm(z, n.weight, n.bias, None, None, True, 0.1, 1e-5, False)
            return self.act(z)

    assert site_of(Direct(), vectors(), "act").producers == ()


@pytest.mark.parametrize("act", [nn.Softsign, nn.Tanhshrink, nn.GELU, nn.Mish, nn.PReLU])
def test_an_activation_may_read_its_input_several_times(act: Callable[[], nn.Module]) -> None:
    site = site_of(mlp(act), vectors(), "1")
    assert names(site.producers) == ["linear 0.weight"]
    assert names(site.consumers) == ["linear 2.weight"]


def test_branches_are_numbered_and_what_follows_them_is_not() -> None:
    def sums(net: Net, x: Tensor) -> Any:
        return net.act(net.norm(net.up(x) + (net.second(x) + net.act0(net.third(x)))))

    model = Net(sums)
    model.second, model.third, model.act0 = nn.Linear(12, 8), nn.Linear(12, 8), nn.ReLU()
    model.norm = nn.BatchNorm1d(8)
    site = site_of(model, vectors(), "act")
    assert [(wire.kind, wire.module, wire.branch) for wire in site.producers] == [
        ("linear", "up", 1),
        ("linear", "second", 2),
        ("skip", "act0", 3),
        ("batch_norm", "norm", 0),
    ]


def test_a_sum_of_a_normed_sum_is_unknown() -> None:
    def sums(net: Net, x: Tensor) -> Any:
        return net.act(net.norm(net.up(x) + net.second(x)) + net.third(x))

    model = Net(sums)
    model.second, model.third = nn.Linear(12, 8), nn.Linear(12, 8)
    model.norm = nn.BatchNorm1d(8)
    assert "add stands between" in site_of(model, vectors(), "act").producers_note


def test_a_transposed_weight_used_twice_is_tied() -> None:
    def tied(net: Net, x: Tensor) -> Any:
        weight = net.down.weight.t()
        return net.act(net.up(x)) @ weight + torch.ones(20, 8) @ weight

    site = site_of(Net(tied), vectors(), "act")
    assert site.consumers_note == "down.weight is used in 2 places"


def test_a_sum_in_place_that_a_view_shares_is_unknown() -> None:
    def shared(net: Net, x: Tensor) -> Any:
        h = _hidden(net, x)
        view = h.view(-1, 8)
        h += net.other_act(net.up2(x))
        return net.down(view)

    model = Net(shared)
    model.up2, model.other_act = nn.Linear(12, 8), nn.ReLU()
    assert "read by add" in site_of(model, vectors(), "act").consumers_note


def test_a_parameter_that_changes_its_size_is_unknown() -> None:
    model = mlp()
    with Watch(model) as watch:
        model(vectors())
        model[0] = nn.Linear(12, 17)
        report = watch.close_window()
    assert report["1"].site.producers_note == "0.weight had shape (16, 12) and now has (17, 12)"


def test_a_loop_that_sums_up_its_results_stays_cheap() -> None:
    def loop(net: Net, x: Tensor) -> Any:
        total = net.up(x)
        for _ in range(300):
            total = total + net.up(x)
        return net.act(total)

    assert "add stands between" in site_of(Net(loop), vectors(), "act").producers_note


def test_only_what_is_kept_is_looked_for_in_the_heap(monkeypatch: pytest.MonkeyPatch) -> None:
    """The pass takes as long as the heap is large, for every tensor again."""
    looked: list[int] = []
    get_referrers = gc.get_referrers

    def counting(*tensors: Tensor) -> list[Any]:
        looked.append(len(tensors))
        return get_referrers(*tensors)

    def keeping(net: Net, x: Tensor) -> Tensor:
        net.kept = net.act(net.up(x))
        out: Tensor = net.down(net.kept * net.kept)
        return out

    monkeypatch.setattr(gc, "get_referrers", counting)
    site_of(Net(lambda net, x: net.down(net.act(net.up(x)))), vectors(), "act")
    assert not looked
    site_of(Net(keeping), vectors(), "act")
    assert looked == [1]


def test_what_is_looked_up_in_a_checkpointed_region_is_not_recorded_there() -> None:
    saved: list[Tensor] = []

    def noting(tensor: Tensor) -> Tensor:
        saved.append(tensor)
        return tensor

    _references_of_graph.cache_clear()
    with saved_tensors_hooks(noting, noting), torch.inference_mode(False):
        assert _references_of_graph() == _references_of_graph.__wrapped__()
    assert not saved


def by_head(y: Tensor) -> Tensor:
    """(B, T, 8) as (B, 2 heads, T, 4)."""
    return y.view(4, 5, 2, 4).transpose(1, 2)


AXES: dict[str, tuple[Callable[[Any, Tensor], Tensor], int, int]] = {
    "scores": (lambda net, y: by_head(y) @ torch.randn(4, 2, 4, 6), 1, 2),
    "scores-of-keys": (lambda net, y: torch.randn(4, 2, 3, 4) @ by_head(y).mT, 1, 2),
    "rows": (lambda net, y: y.mT @ torch.randn(4, 5, 6), 1, 8),
    "channels": (lambda net, y: y.mT @ y, -1, 8),
    "each-head": (
        lambda net, y: (
            torch.baddbmm(net.offset, y.view(20, 2, 4).transpose(0, 1), net.heads)
            .transpose(0, 1)
            .reshape(4, 5, 6)
        ),
        -1,
        6,
    ),
    "sum-in-heads": (lambda net, y: y.view(4, 5, 2, 4).sum(-1), -1, 2),
    "mean-of-heads": (lambda net, y: by_head(y).mean(1), -1, 4),
    "kept": (lambda net, y: y.view(4, 5, 2, 4).sum(-1, keepdim=True), 2, 2),
    "gather": (lambda net, y: y.gather(1, torch.zeros(4, 2, 8, dtype=torch.int64)), -1, 8),
    "index_select": (lambda net, y: y.index_select(1, torch.tensor([0, 2])), -1, 8),
}


@pytest.mark.parametrize("name", AXES)
def test_the_unit_axis_is_known_behind(name: str) -> None:
    run, dim, units = AXES[name]

    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up, self.act = nn.Linear(6, 8), nn.ReLU()
            self.heads = nn.Parameter(torch.randn(2, 4, 3))
            self.offset = nn.Parameter(torch.zeros(2, 1, 3))

        def forward(self, x: Tensor) -> Any:
            return self.act(run(self, self.up(x)))

    model = Mixed()
    with Watch(model) as watch, warnings.catch_warnings(action="error"):
        model(torch.randn(4, 5, 6))
        site = watch.peek()["act"]
    assert (site.site.unit_dim, site.units) == (dim, units)
    assert site.site.producers == ()


def test_heads_that_are_merged_behind_an_activation_keep_their_axis() -> None:
    class Heads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.q, self.out = nn.Linear(8, 8), nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Any:
            q = self.q(x).view(2, 5, 2, 4).transpose(1, 2)
            merged = (nn.functional.elu(q) + 1).transpose(1, 2).reshape(2, 5, 8)
            return self.out(torch.relu(merged))

    with Watch(Heads()) as watch:
        watch._model(torch.randn(2, 5, 8))
        report = watch.peek()
    found = {name: (site.units, site.site.unit_dim) for name, site in report.items()}
    assert found == {"elu": (4, -1), "relu": (8, -1)}


def test_a_tensor_is_not_called_what_a_parameter_was_that_is_gone() -> None:
    """With a number for ``reshard_after_forward``, parameters are freed within a forward."""
    model = nn.Linear(2, 2)
    named = Names(model)
    named.begin()
    gone = id(model.weight)
    model.weight = nn.Parameter(torch.zeros(2, 2))
    others = [torch.zeros(2) for _ in range(100)]
    (stranger,) = (tensor for tensor in others if id(tensor) == gone)
    assert named.parameter(stranger) is None
    assert named.parameter(model.weight) == "weight"
