"""What counts, what does not, and what is left behind: nothing."""

from __future__ import annotations

import copy
import gc
import io
import pickle
import warnings
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import (
    CheckpointPolicy,
    checkpoint,
    create_selective_checkpoint_contexts,
)

from deadwatch import DeadwatchWarning, Rules, State, Watch
from deadwatch.errors import (
    AmbiguousUnitDimWarning,
    NoSiteWarning,
    SiteDisabledWarning,
    UnknownWiringWarning,
    UnseenSiteWarning,
)
from tests.nets import SharedReLU, mlp

X = torch.randn(8, 12, generator=torch.Generator().manual_seed(0))


def hooks_on(model: nn.Module) -> int:
    return sum(
        len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules()
    )


def attributes(model: nn.Module) -> list[set[str]]:
    return [set(vars(module)) for module in model.modules()]


def samples(watch: Watch) -> dict[str, int]:
    return {name: site.samples for name, site in watch.peek().items()}


def test_training_forwards_count_and_others_do_not() -> None:
    model = mlp()
    with Watch(model) as watch:
        model(X)
        with torch.no_grad():
            model(X)
        model.eval()
        model(X)
        model.train()
        model(X)
        watch.pause()
        model(X)
        watch.resume()
        assert samples(watch) == {"1": 16, "3": 16}


def test_two_root_calls_a_step_are_the_same_sites() -> None:
    model = SharedReLU()
    x = torch.randn(2, 3, 4, 4)
    with Watch(model) as watch:
        for _ in range(3):
            model(x)
            model(x)
            watch.step()
        assert samples(watch) == {"relu": 6 * 32, "relu-2": 6 * 32}


@pytest.mark.parametrize("reentrant", [True, False])
def test_recomputation_by_checkpointing_counts_once(reentrant: bool) -> None:
    class Checkpointed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = mlp()

        def forward(self, x: Tensor) -> Any:
            return checkpoint(self.body, x, use_reentrant=reentrant)

    model = Checkpointed()
    with Watch(model) as watch:
        for _ in range(2):
            model(X.clone().requires_grad_()).sum().backward()
            watch.step()
        assert samples(watch) == {"body.1": 16, "body.3": 16}


def test_parts_called_by_the_training_loop_itself() -> None:
    class Parts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder, self.decoder = mlp(), nn.Sequential(nn.Linear(5, 3), nn.Tanh())

    model = Parts()
    with Watch(model) as watch:
        for _ in range(2):
            model.decoder(model.encoder(X))
            watch.step()
        assert samples(watch) == {"encoder.1": 16, "encoder.3": 16, "decoder.1": 16}


def test_a_shared_activation_called_outside_of_any_module() -> None:
    model = mlp()
    with Watch(model) as watch:
        watch.resume(reports_steps=True)
        for _ in range(3):
            model[1](model[2](model[1](model[0](X))))
            watch.step()
        report = watch.peek()
    assert {name: site.samples for name, site in report.items()} == {"1": 24, "1-2": 24, "3": 0}


def test_an_activation_that_is_the_whole_model() -> None:
    with Watch(nn.ReLU()) as watch:
        watch._model(X)
        assert samples(watch) == {"relu": 8}


def test_recursion_numbers_its_calls_within_one_forward() -> None:
    class Recursive(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear, self.act = nn.Linear(12, 12), nn.ReLU()

        def forward(self, x: Tensor, depth: int = 2) -> Tensor:
            h: Tensor = self.act(self.linear(x))
            return self(h, depth - 1) if depth else h

    model = Recursive()
    with Watch(model) as watch:
        model(X)
        model(X)
        assert samples(watch) == {"act": 16, "act-2": 16, "act-3": 16}


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_an_error_in_the_forward_disturbs_nothing_later(error: type[BaseException]) -> None:
    class Fragile(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.fail = SharedReLU(), True

        def forward(self, x: Tensor) -> Any:
            h = self.body(x)
            if self.fail:
                raise error("on purpose")
            return h

    model = Fragile()
    before = attributes(model)
    x = torch.randn(2, 3, 4, 4)
    watch = Watch(model)
    with watch:
        with pytest.raises(error, match="on purpose"):
            model(x)
        model.fail = False
        for _ in range(2):
            model(x)
        report = watch.peek()
        assert list(report) == ["body.relu", "body.relu-2"]
        assert report["body.relu"].samples == 3 * 32  # the failed forward had run it, too
        assert report["body.relu"].site.consumers[0].weight == "body.conv2.weight"
    assert hooks_on(model) == 0
    assert attributes(model) == before
    assert torch._C._len_torch_function_stack() == 0


def test_detach_after_an_interrupt_leaves_no_mode_behind() -> None:
    model = mlp()
    handle = model[2].register_forward_pre_hook(_interrupt)
    with pytest.raises(KeyboardInterrupt, match="stop"), Watch(model):
        model(X)
    handle.remove()
    assert hooks_on(model) == 0
    assert torch._C._len_torch_function_stack() == 0


def _interrupt(module: nn.Module, args: Any) -> None:
    raise KeyboardInterrupt("stop")


def test_attach_and_detach_are_idempotent() -> None:
    model = mlp()
    watch = Watch(model)
    watch.attach()
    once = hooks_on(model)
    watch.attach()
    assert hooks_on(model) == once
    model(X)
    watch.detach()
    watch.detach()
    model(X)
    assert hooks_on(model) == 0
    watch.attach()
    model(X)
    assert samples(watch)["1"] == 16
    watch.detach()


def test_watching_changes_no_bit_of_outputs_and_gradients() -> None:
    torch.manual_seed(0)
    plain = SharedReLU()
    watched = copy.deepcopy(plain)
    x = torch.randn(4, 3, 6, 6)
    with Watch(watched, stats_every_n_steps=1) as watch:
        for _ in range(3):
            outputs = [model(x) for model in (plain, watched)]
            for output in outputs:
                output.square().sum().backward()
            watch.step()
            assert torch.equal(*outputs)
        watch.close_window()
    for one, two in zip(plain.parameters(), watched.parameters(), strict=True):
        assert one.grad is not None
        assert two.grad is not None
        assert torch.equal(one.grad, two.grad)


def test_the_random_stream_is_not_touched() -> None:
    model = mlp()
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    with Watch(model) as watch:
        model(X)
        watch.close_window()
    assert torch.equal(torch.rand(3), expected)


def test_copies_and_pickles_of_a_watched_model_do_not_feed_it() -> None:
    model = mlp()
    with Watch(model) as watch:
        model(X)
        twin = copy.deepcopy(model)
        file = io.BytesIO()
        torch.save(model, file)
        file.seek(0)
        loaded = torch.load(file, weights_only=False)
        again = pickle.loads(pickle.dumps(model))
        for copied in (twin, loaded, again):
            copied(X)
        assert samples(watch) == {"1": 8, "3": 8}
        assert set(model.state_dict()) == set(mlp().state_dict())


def test_a_failing_hook_gives_up_its_site_and_nothing_else() -> None:
    model = mlp()
    with Watch(model, unit_dim={"1": 5}) as watch:
        with pytest.warns(SiteDisabledWarning, match="observing '1' failed and is switched off"):
            model(X)
        model(X)
        with pytest.warns(UnseenSiteWarning, match="not seen in window 0: 1"):
            report = watch.close_window()
    assert report["1"].units == 0
    assert report["3"].samples == 16


def test_a_site_that_was_given_up_stays_so_when_hooks_are_put_back() -> None:
    model = mlp()
    with Watch(model, unit_dim={"1": 5}) as watch:
        with pytest.warns(SiteDisabledWarning, match="observing '1' failed"):
            model(X)
        watch.suspend()
        watch.attach()
        model(X)  # no second warning
        assert samples(watch) == {"1": 0, "3": 16}


def test_a_bare_model_is_told_once_however_often_hooks_are_put_back() -> None:
    watch = Watch(nn.Sequential(nn.Linear(2, 2)))
    with pytest.warns(NoSiteWarning, match="holds no activation that can be watched"):
        watch.attach()
    watch.suspend()
    watch.attach()  # no second warning
    watch.detach()


def test_units_that_change_their_number_are_refused() -> None:
    model = nn.Sequential(nn.ReLU())
    with Watch(model) as watch:
        model(X)
        with pytest.warns(SiteDisabledWarning, match="had 12 units on axis -1"):
            model(X[:, :5])
        assert samples(watch) == {"0": 0}  # part of the evidence is none


def test_an_empty_batch_is_no_evidence() -> None:
    model = mlp()
    with Watch(model) as watch:
        model(X[:0])
        with pytest.warns(UnseenSiteWarning, match="not seen in window 0"):
            report = watch.close_window()
    assert (report["1"].state == State.UNSEEN).all()
    assert np.isnan(report["1"].mean).all()


def test_what_did_not_run_is_unseen_and_warned_of() -> None:
    class Branches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.left, self.right = mlp(), mlp()

        def forward(self, x: Tensor, right: bool = False) -> Any:
            return self.right(x) if right else self.left(x)

    model = Branches()
    with Watch(model) as watch:
        model(X, right=True)
        with pytest.warns(UnseenSiteWarning, match=r"left\.1, left\.3"):
            first = watch.close_window()
        model(X)
        with pytest.warns(UnseenSiteWarning, match=r"right\.1, right\.3"):
            second = watch.close_window()
    assert first["left.1"].units == 0
    assert np.isnan(first["left.1"].dead_ratio)
    assert (second["right.1"].state == State.UNSEEN).all()
    for name in ("mean", "std", "min", "max", "open_fraction", "mean_abs", "nonfinite", "dormancy"):
        assert np.isnan(getattr(second["right.1"], name)).all(), name
    assert np.isnan(second["right.1"].sparsity)


def test_a_model_without_activations_is_warned_of() -> None:
    model = nn.Sequential(nn.Linear(2, 2))
    watch = Watch(model)
    with pytest.warns(NoSiteWarning, match="holds no activation that can be watched"):
        watch.attach()
    model(torch.randn(3, 2))
    report = watch.close_window()
    watch.detach()
    assert len(report) == 0
    assert np.isnan(report.dead_ratio)


def test_patterns_that_leave_nothing_are_told_apart_from_a_bare_model() -> None:
    watch = Watch(mlp(), exclude="*")
    with pytest.warns(NoSiteWarning, match="include and exclude leave no activation"):
        watch.attach()
    watch.detach()


def test_an_ambiguous_axis_is_reported_and_can_be_settled() -> None:
    model = nn.Sequential(nn.ReLU())
    x = torch.randn(4, 6, 9)
    with Watch(model) as watch:
        with pytest.warns(AmbiguousUnitDimWarning, match=r"unit_dim=\{'0': axis\}"):
            model(x)
        assert watch.peek()["0"].units == 9
    with Watch(model, unit_dim={"*": 1}) as watch:
        model(x)
        assert watch.peek()["0"].units == 6


def test_parts_that_run_in_turn_are_all_sampled() -> None:
    """On even steps the left half runs, on odd ones the right: neither may go unmeasured."""
    left, right = mlp(), mlp()
    model = nn.ModuleList([left, right])
    with Watch(model, stats_every_n_steps=2) as watch:
        for step in range(8):
            model[step % 2](X)
            watch.step()
        report = watch.close_window()
    counted = {name: site.samples for name, site in report.items()}
    assert counted == {"0.1": 32, "0.3": 32, "1.1": 32, "1.3": 32}
    assert all(np.isfinite(site.mean).all() for site in report.values())


def test_windows_and_their_steps() -> None:
    model = mlp()
    with Watch(model) as watch:
        for _ in range(2):
            for _ in range(3):
                model(X)
                watch.step()
            report = watch.close_window()
            assert report["1"].samples == 24
    assert (report.window.index, report.window.first_step, report.window.last_step) == (1, 3, 5)


def test_windows_in_a_loop_that_never_reports_its_steps() -> None:
    model = mlp()
    with Watch(model) as watch:
        for _ in range(2):
            for _ in range(3):
                model(X)
                watch.pause()
                model(X)
                watch.resume()
            report = watch.close_window()
    assert (report.window.index, report.window.first_step, report.window.last_step) == (1, 3, 5)


def test_include_and_exclude() -> None:
    model = mlp()
    with Watch(model, include="1") as watch:
        model(X)
        assert set(watch.peek()) == {"1"}
    with Watch(model, exclude=["1"]) as watch:
        model(X)
        assert set(watch.peek()) == {"3"}


def test_a_model_moved_to_another_dtype_goes_on() -> None:
    model = mlp()
    with Watch(model, rules=Rules(min_samples=1)) as watch:
        model(X)
        model.bfloat16()(X.bfloat16())
        assert samples(watch) == {"1": 16, "3": 16}


def test_memory_does_not_grow_with_steps() -> None:
    model = mlp()
    with Watch(model, stats_every_n_steps=1) as watch:
        sizes = []
        for _ in range(30):
            model(X)
            watch.step()
            sizes.append(
                len(pickle.dumps([state.data for state in watch._taps._calls.sites.values()]))
            )
        assert len(set(sizes)) == 1


def test_an_interrupt_in_one_part_does_not_count_the_evaluation_of_another() -> None:
    class Body(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.fail = mlp(), False

        def forward(self, x: Tensor) -> Any:
            if self.fail:
                raise KeyboardInterrupt("stop")
            return self.body(x)

    model = Body()
    with Watch(model) as watch:
        model(X)
        model.fail = True
        with pytest.raises(KeyboardInterrupt, match="stop"):
            model(X)
        model.eval()
        with torch.no_grad():
            for _ in range(3):
                model.body(X)
        assert samples(watch) == {"body.1": 8, "body.3": 8}


def test_an_interrupt_leaves_other_function_modes_as_they_were() -> None:
    model = mlp()
    handle = model[2].register_forward_pre_hook(_interrupt)
    with Watch(model):
        with pytest.raises(KeyboardInterrupt, match="stop"):
            model(X)
        handle.remove()
        with torch.device("meta"):
            model(X)
            assert torch.zeros(1).device.type == "meta"
        assert torch.zeros(1).device.type == "cpu"
    assert torch._C._len_torch_function_stack() == 0


def test_a_backward_inside_the_forward_does_not_count_its_recomputation() -> None:
    class Forces(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = mlp()

        def forward(self, x: Tensor) -> Any:
            x = x.clone().requires_grad_()
            energy: Any = checkpoint(self.body, x, use_reentrant=False)
            return torch.autograd.grad(energy.sum(), x, create_graph=True)[0]

    with Watch(Forces()) as watch:
        watch._model(X).sum().backward()
        assert samples(watch) == {"body.1": 8, "body.3": 8}


def test_selective_checkpointing_keeps_its_gradients() -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up, self.act, self.down = nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 8)

        def forward(self, x: Tensor) -> Any:
            h = self.act(self.up(x))
            return self.down(h) * (h + 1).amax(0)

    def policy(ctx: Any, op: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
        save = op is torch.ops.aten.amax.default
        return CheckpointPolicy.MUST_SAVE if save else CheckpointPolicy.PREFER_RECOMPUTE

    torch.manual_seed(0)
    model = nn.Sequential(Block())

    def gradients() -> list[Tensor]:
        model.zero_grad()
        contexts = partial(create_selective_checkpoint_contexts, policy)
        out: Any = checkpoint(model[0], X, use_reentrant=False, context_fn=contexts)
        out.sum().backward()
        return [p.grad.clone() for p in model.parameters() if p.grad is not None]

    expected = gradients()
    with Watch(model, stats_every_n_steps=1):
        for one, two in zip(gradients(), expected, strict=True):
            assert torch.equal(one, two)


def test_a_frozen_transformer_in_eval_mode_keeps_its_fast_path() -> None:
    class Frozen(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            layer = nn.TransformerEncoderLayer(16, 4, 32, 0.0, "relu", batch_first=True)
            self.encoder = nn.TransformerEncoder(layer, 2)
            self.head = nn.Sequential(nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 1))

        def forward(self, x: Tensor, mask: Tensor) -> Any:
            self.encoder.eval()
            with torch.no_grad():
                features = self.encoder(x, src_key_padding_mask=mask)
            return self.head(features.mean(1))

    torch.manual_seed(0)
    model, x = Frozen(), torch.randn(3, 6, 16)
    mask = torch.zeros(3, 6, dtype=torch.bool)
    mask[0, 3:] = True
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*nested tensors.*")
        expected = model(x, mask)
        with Watch(model) as watch:
            assert torch.equal(model(x, mask), expected)
            site = watch.peek()["head.1"].site
    assert [wire.weight for wire in site.producers] == ["head.0.weight"]
    assert [wire.weight for wire in site.consumers] == ["head.2.weight"]


def test_lazy_layers_are_watched_from_their_first_forward() -> None:
    model = nn.Sequential(nn.LazyLinear(8), nn.ReLU(), nn.LazyLinear(3))
    with Watch(model) as watch:
        model(X)
        model(X)
        site = watch.peek()["1"]
    assert site.samples == 16
    assert site.site.consumers[0].weight == "2.weight"


def test_what_cannot_be_followed_disturbs_no_forward() -> None:
    @dataclass
    class Output:
        logits: Tensor
        itself: Any = None

    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = mlp()

        def forward(self, x: Tensor) -> Any:
            output = Output(self.body(x))
            output.itself = output
            nested = torch.nested.as_nested_tensor([x[0], x[1, :3]])
            return output, nested * 2

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*nested.*prototype")
        with Watch(Odd()) as watch:
            with pytest.warns(UnknownWiringWarning, match="following the data failed"):
                watch._model(X)
            watch._model(X)
            report = watch.peek()
    assert report["body.1"].samples == 16
    assert "following the data failed" in report["body.1"].site.producers_note


def test_a_name_that_looks_like_a_second_call_is_kept_apart() -> None:
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.relu = nn.ReLU()
            self.add_module("relu-2", nn.ReLU())

        def forward(self, x: Tensor) -> Any:
            return self.get_submodule("relu-2")(self.relu(self.relu(x)))

    with Watch(Named()) as watch:
        watch._model(X)
        assert samples(watch) == {"relu": 8, "relu--2": 8, "relu-2": 8}


def test_batched_and_unbatched_convolutions_share_their_axis() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv1d(3, 6, 1), nn.ReLU())
    with torch.no_grad():
        model[0].bias[0] = -1000
    with Watch(model, rules=Rules(min_samples=1)) as watch:
        model(torch.randn(40, 3, 10))
        for _ in range(10):
            model(torch.randn(3, 6))
        site = watch.peek()["1"]
    assert (site.samples, site.site.unit_dim) == (460, 1)
    assert [int(unit) for unit in np.flatnonzero(site.dead)] == [0]


def test_inside_an_except_block_everything_is_as_usual() -> None:
    model = mlp()
    with Watch(model) as watch:
        try:
            raise ValueError("out of memory, say")
        except ValueError:
            model(X)
        assert watch.peek()["1"].site.consumers


def test_two_watches_do_not_see_each_other() -> None:
    model = mlp()
    with Watch(model) as one, Watch(model) as two:
        model(X)
        for watch in (one, two):
            site = watch.peek()["1"]
            assert site.samples == 8
            assert site.site.producers
            assert site.site.consumers


# ── who counts ──────────────────────────────────────────────────────────────────────────────


class Body(nn.Module):
    """Two layers and an activation module, called by a function that is given."""

    def __init__(self, call: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        self.up, self.down, self.act = nn.Linear(12, 12), nn.Linear(12, 12), nn.ReLU()
        self.call = call

    def forward(self, x: Tensor) -> Tensor:
        return self.call(self, x)


class _Reversible(Function):
    @staticmethod
    def forward(context: Any, x: Tensor, body: Body) -> Any:
        context.body = body
        context.save_for_backward(x)
        return body.act(body.up(x))

    @staticmethod
    def backward(context: Any, *grads: Tensor) -> Any:
        x = context.saved_tensors[0].detach().requires_grad_()
        with torch.enable_grad():
            context.body.act(context.body.up(x)).backward(grads[0])
        return x.grad, None


class _Late(_Reversible):
    @staticmethod
    def forward(x: Tensor, body: Body) -> Any:  # type: ignore[override]
        return body.act(body.up(x))

    @staticmethod
    def setup_context(context: Any, inputs: Any, output: Any) -> None:
        context.save_for_backward(inputs[0])
        context.body = inputs[1]


@pytest.mark.parametrize("function", [_Reversible, _Late])
def test_what_reversible_functions_call_counts_once(function: Any) -> None:
    model = Body(lambda body, x: function.apply(x, body))
    with Watch(model) as watch:
        model(X.clone().requires_grad_()).sum().backward()
        assert samples(watch) == {"act": 8}


def test_a_teacher_under_no_grad_does_not_count_even_if_it_is_checkpointed() -> None:
    teacher = Body(
        lambda body, x: checkpoint(lambda z: body.act(body.up(z)), x, use_reentrant=True)
    )

    def call(body: Any, x: Tensor) -> Tensor:
        with torch.no_grad():
            target = body.teacher(x)
        out: Tensor = body.act(body.up(x)) - target
        return out

    model = Body(call)
    model.teacher = teacher
    with Watch(model) as watch:
        model(X.clone().requires_grad_()).sum().backward()
        assert samples(watch) == {"act": 8, "teacher.act": 0}


def test_functions_in_hooks_and_patched_forwards_of_stock_modules_count_every_time() -> None:
    model = mlp()
    model[0].register_forward_hook(lambda module, args, output: torch.tanh(output))
    with Watch(model) as watch:
        for _ in range(3):
            model(X)
            watch.step()
        assert samples(watch) == {"tanh": 24, "1": 24, "3": 24}


def test_an_activation_called_by_a_hook_of_another_is_its_own_affair() -> None:
    model = mlp()
    with Watch(model, stats_every_n_steps=1) as watch:
        model[1].register_forward_pre_hook(lambda module, args: _none(model[3](args[0])))
        model(X)
        assert samples(watch) == {"1": 8, "3": 8}
        assert np.isfinite(watch.peek()["1"].mean_abs).all()


def test_after_an_interrupt_nobody_listens_to_the_training_loop() -> None:
    model = nn.Sequential(Body(lambda body, x: torch.relu(body.up(x))), nn.Linear(12, 2), nn.ReLU())
    with Watch(model) as watch:
        model(X)
        watch.step()
        handle = model[1].register_forward_pre_hook(_interrupt)
        with pytest.raises(KeyboardInterrupt, match="stop"):
            model(X)
        handle.remove()
        torch.sigmoid(X)
        model[2](X[:, :2])
        assert samples(watch) == {"0-relu": 16, "0.act": 0, "2": 16}


def test_a_checkpointed_model_does_not_pass_for_a_compiled_one() -> None:
    model = mlp()
    checkpoint(model, X.clone().requires_grad_(), use_reentrant=False)
    watch = Watch(model).attach()
    checkpoint(model, X.clone().requires_grad_(), use_reentrant=False)
    assert not watch._taps.compiled
    watch.detach()


def test_two_watches_keep_the_fast_path_of_a_frozen_transformer() -> None:
    layer = nn.TransformerEncoderLayer(12, 4, 32, 0.0, batch_first=True)
    encoder = nn.TransformerEncoder(layer, 2)

    def call(body: Any, x: Tensor) -> Tensor:
        with torch.no_grad():
            seen.append(body.encoder(x[None]))
        return torch.relu(body.up(x))

    seen: list[Tensor] = []
    model = Body(call)
    model.encoder = encoder.eval()
    model(X)
    with Watch(model) as one, Watch(model) as two:
        for _ in range(2):
            model(X)
            one.step()
            two.step()
    assert all(torch.equal(seen[0], other) for other in seen[1:])


def test_a_site_that_fails_is_never_called_dead() -> None:
    model = Body(lambda body, x: body.act(x))
    with Watch(model, rules=Rules(min_samples=1)) as watch:
        with pytest.warns(SiteDisabledWarning, match="observing 'act' failed"):
            model(X.abs().to_sparse())
        assert np.isnan(watch.peek().dead_ratio)


def test_scalars_count_and_what_has_no_gradient_does_not() -> None:
    model = Body(lambda body, x: body.act(x))
    with Watch(model, stats_every_n_steps=1) as watch:
        for x in (X.long(), torch.tensor(2.0)):
            model(x)
        torch.sigmoid(X.sum())
        assert samples(watch) == {"act": 1}
        assert watch.peek()["act"].mean_abs == [2.0]


def test_modes_of_the_user_see_nothing_of_ours() -> None:
    class Functions(TorchFunctionMode):
        def __torch_function__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            seen.append(func.__name__)
            return func(*args, **kwargs or {})

    class Operations(TorchDispatchMode):
        def __torch_dispatch__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            seen.append(str(func))
            return func(*args, **kwargs or {})

    slope = nn.Parameter(torch.ones(1))
    model = Body(lambda body, x: nn.functional.prelu(torch.relu(body.up(x)).mT.mT, slope))

    seen: list[str] = []
    with Functions(), Operations():
        model(X)
    alone, seen = seen, []
    with Watch(model), Functions(), Operations():
        model(X)
    assert seen == alone


def test_a_model_is_freed_with_its_watch() -> None:
    model = Body(lambda body, x: body.act(torch.relu(body.up(x))))
    kept = weakref.ref(model)
    gc.collect()
    gc.disable()
    try:
        with Watch(model) as watch:
            model(X).sum().backward()
            watch.close_window()
        del watch, model
        assert kept() is None
    finally:
        gc.enable()


@pytest.fixture(autouse=True)
def no_stray_warnings(recwarn: pytest.WarningsRecorder) -> Iterator[None]:
    yield
    assert not [w for w in recwarn if issubclass(w.category, DeadwatchWarning)]


def test_the_axis_of_a_site_first_met_in_an_untraced_forward_is_known_from_the_graph() -> None:
    class Late(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.dense, self.late = nn.Conv1d(3, 5, 1), nn.Linear(9, 7), False

        def forward(self, x: Tensor) -> Any:
            if not self.late:
                return self.conv(x).sum()
            return self.conv(x).relu().sum() + (self.dense(x) * 2).tanh().sum()

    model, x = Late(), torch.randn(4, 3, 9)
    with Watch(model) as watch:
        model(x)
        watch.step()
        model.late = True
        model(x)
        report = watch.peek()
    found = {name: (site.units, site.site.unit_dim) for name, site in report.items()}
    assert found == {"relu": (5, 1), "tanh": (7, -1)}


def _none(value: object) -> None:
    """What a hook returns that changes nothing."""


def test_scores_of_tokens_for_each_other_are_no_features() -> None:
    class Scores(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.q, self.k = nn.Linear(8, 4), nn.Linear(8, 4)

        def forward(self, x: Tensor) -> Any:
            return torch.bmm(self.q(x), self.k(x).mT).relu()

    model = Scores()
    with Watch(model), pytest.warns(AmbiguousUnitDimWarning, match="relu: which axis"):
        model(torch.randn(2, 5, 8))
