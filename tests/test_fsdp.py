"""Models sharded by ``fully_shard``: what two gloo processes hold equals one process's."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from deadwatch import (
    BiasWarming,
    NoBiasDecay,
    Policy,
    Recycle,
    Remedy,
    Restandardize,
    Rules,
    Swap,
    ThermalKick,
    Watch,
    restore,
    scan,
)
from tests.ranks import run_ranks
from tests.test_wiring_architectures import CASES, Case

SCRIPT = """
import os, pickle, sys
import torch.distributed as dist
from tests.test_fsdp import everything

rank, world, folder = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=world)
with open(f"{folder}/rank{rank}.pkl", "wb") as file:
    pickle.dump(everything(), file)
dist.barrier()
sys.stdout.flush()
os._exit(0)  # gloo's own threads now and then abort an orderly exit
"""

REMEDIES: dict[str, Remedy] = {
    "warming": BiasWarming(hold=1, anneal=3),
    "closed loop": BiasWarming(hold=1, anneal=2, schedule="closed-loop"),
    "kick": ThermalKick(),
    "recycle": Recycle(),
    "restandardize": Restandardize(),
    "swap": Swap(),
    "annealed swap": Swap("gelu", anneal=3),
}


class Block(nn.Module):
    """A residual block, to be sharded by itself."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.up = nn.Linear(width, hidden)
        self.act = nn.ReLU()
        self.down = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.down(self.act(self.up(self.norm(x))))
        return out


def blocks() -> nn.Module:
    """17 hidden units, which do not divide by two, in blocks of their own."""
    model = nn.Sequential(nn.Linear(6, 9), Block(9, 17), Block(9, 5), nn.Linear(9, 2))
    bury(model[1].up, [1, 16])
    bury(model[2].up, [0])
    return model.double()


def images() -> nn.Module:
    """Convolutions in groups: a reader's columns lie within some of its rows."""
    model = nn.Sequential(
        nn.Unflatten(1, (1, 2, 3)),
        nn.Conv2d(1, 6, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(6, 6, 1, groups=2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(36, 1),  # of which the second rank holds nothing
    )
    bury(model[1], [0, 4])
    bury(model[3], [3])
    return model.double()


class Leaky(nn.Module):
    """An activation of the model's own, with a slope for each unit; one of them is zero."""

    def __init__(self, units: int) -> None:
        super().__init__()
        self.slope = nn.Parameter(torch.full((units,), 0.1))
        self.slope.data[3] = 0

    def forward(self, x: Tensor) -> Tensor:
        return torch.where(x > 0, x, self.slope * x)


class Raised(nn.Module):
    """An activation of the model's own whose gate is learned."""

    def __init__(self) -> None:
        super().__init__()
        self.least = nn.Parameter(torch.full((1,), 0.1))

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x - self.least) ** 2


def learned() -> nn.Module:
    """Activations with parameters, of the model's own and of torch."""
    model = nn.Sequential(
        *(nn.Linear(6, 9), Leaky(9), nn.Linear(9, 5), Raised()),
        *(nn.Linear(5, 4), nn.PReLU(4, 0.0), nn.Linear(4, 2)),
    )
    for layer in (0, 2, 4):
        bury(model[layer], [1, 3])
    return model.double()


def bury(layer: Any, units: list[int]) -> None:
    with torch.no_grad():
        layer.bias[units] = -7.0


def flat() -> nn.Module:
    """All in the root, which stays whole after a forward."""
    model = nn.Sequential(nn.Linear(6, 9), nn.ReLU(), nn.Linear(9, 2))
    bury(model[0], [2, 8])
    return model.double()


NETWORKS: dict[str, Callable[[], nn.Module]] = {"blocks": blocks, "images": images}
BUILDS = {**NETWORKS, "flat": flat, "learned": learned}


def shard(model: Any, dims: int = 1) -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor import Shard

    def placement(parameter: nn.Parameter) -> Shard:
        columns = dims == 2 and parameter.ndim > 1 and parameter.shape[1] % 2 == 0
        return Shard(1 if columns else 0)

    mesh = init_device_mesh("cpu", (2,))
    for module in model.modules():
        if isinstance(module, (Block, nn.Conv2d)):
            fully_shard(module, mesh=mesh, shard_placement_fn=placement)
    fully_shard(model, mesh=mesh, shard_placement_fn=placement)


def whole(value: Any) -> Any:
    value = value.full_tensor() if hasattr(value, "full_tensor") else value
    return value.detach().clone() if isinstance(value, Tensor) else value


def batches() -> list[Tensor]:
    generator = torch.Generator().manual_seed(3)
    return [torch.randn(32, 6, generator=generator, dtype=torch.float64) for _ in range(9)]


class Run:
    """A training of one network, in this process alone or sharded over both."""

    def __init__(
        self, network: str, policy: Policy | None = None, *, watched: bool = True, dims: int = 1
    ) -> None:
        self.world, self.rank = world_and_rank()
        torch.manual_seed(5)
        self.model: Any = BUILDS[network]()
        if self.world > 1:
            shard(self.model, dims)
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=1e-2, weight_decay=1e-2)
        self.watch = self.watch_of(policy)
        self.reports: list[Any] = []
        self.losses: list[float] = []
        if watched:
            self.watch.attach()

    def watch_of(self, policy: Policy | None) -> Watch:
        return Watch(
            self.model,
            optimizer=self.optimizer,
            policy=policy,
            rules=Rules(min_samples=1),
            stats_every_n_steps=1,
        )

    def evaluate(self) -> None:
        with torch.no_grad():
            self.model.eval()(batches()[0])
        self.model.train()

    def train(self, *, windows: int = 3) -> Run:
        made = batches()
        for window in range(windows):
            for x in made[3 * window : 3 * window + 3]:
                self.step(x)
            if self.watch.attached:
                self.reports.append(self.watch.close_window())
        self.watch.detach()
        return self

    def step(self, x: Tensor) -> None:
        self.optimizer.zero_grad()
        out = self.model(x[self.rank :: self.world])
        loss = (out - 1).square().mean()
        loss.backward()
        self.optimizer.step()
        self.losses.append(loss.item())
        if self.watch.attached:
            self.watch.step()

    def result(self) -> dict[str, Any]:
        names = dict(self.model.named_parameters())
        moments = {
            f"{name}/{key}": whole(value)
            for name, parameter in names.items()
            for key, value in self.optimizer.state[parameter].items()
        }
        weights = {name: whole(value) for name, value in self.model.state_dict().items()}
        return {
            "weights": weights | moments,
            "reports": self.reports,
            "losses": self.losses,
            "ledger": [repr(entry) for entry in self.watch.ledger],
            "changes": [c for r in self.reports for t in r.treatments for c in t.changes],
        }


def world_and_rank() -> tuple[int, int]:
    import torch.distributed as dist

    return (dist.get_world_size(), dist.get_rank()) if dist.is_initialized() else (1, 0)


def policy_of(remedy: Remedy) -> Policy:
    return Policy((remedy,), when=0.0, cooldown=0, per_unit=1, guard=False)


def treated(network: str, remedy: str, dims: int = 1) -> dict[str, Any]:
    return Run(network, policy_of(REMEDIES[remedy]), dims=dims).train().result()


def interrupted(remedy: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """A run through the middle of a window, and one that was resumed there."""
    made, run = batches(), Run("blocks", policy_of(REMEDIES[remedy]))
    for x in made[:3]:
        run.step(x)
    run.watch.close_window()
    run.step(made[3])
    parts = run.model, run.optimizer, run.watch
    model, optimizer, watch = (copy.deepcopy(part.state_dict()) for part in parts)
    again = Run("blocks", policy_of(REMEDIES[remedy]), watched=False)
    restore(again.model, model)
    again.watch.load_state_dict(watch)
    again.optimizer.load_state_dict(optimizer)
    again.watch.attach()
    for one in (run, again):
        for x in made[4:8]:
            one.step(x)
        one.watch.close_window()
        one.watch.detach()
    return run.result(), again.result()


def everything() -> dict[str, Any]:
    """What one rank saw; also what a single process would."""
    done: dict[Any, Any] = {(n, r): treated(n, r) for n in NETWORKS for r in REMEDIES}
    done |= {("columns", r): treated("images", r, dims=2) for r in ("recycle", "restandardize")}
    done["interrupted"] = [interrupted(remedy) for remedy in ("warming", "annealed swap")]
    done["watched"] = Run("blocks").train().result()
    done["unwatched"] = Run("blocks", watched=False).train().result()
    done["learned"] = Run("learned").train().result()
    done["prelu"] = Run("blocks", policy_of(Swap("prelu"))).train(windows=1).result()
    done["after evaluation"] = after_evaluation()
    done["undone"] = undone()
    done["whole root"] = whole_root()
    done["scanned"] = scanned()
    done["activations"] = sharded_activations()
    done["wires"] = {case.name: wires(case) for case in CASES}
    return done


def wires(case: Case) -> dict[str, Any]:
    """The wires of an architecture, every layer of which is sharded by itself."""
    from torch.distributed.fsdp import fully_shard

    torch.manual_seed(0)
    model, x = case.build(), case.batch()
    if world_and_rank()[0] > 1:
        layers = nn.Linear, nn.Conv2d, nn.LayerNorm, nn.MultiheadAttention
        for module in [m for m in model.modules() if type(m) in layers]:
            fully_shard(module)
        fully_shard(model)
    with Watch(model, unit_dim={"act0": 1} if case.name == "heads" else None) as watch:
        model(x)
        return {name: str(report.site) for name, report in watch.peek().items()}


def after_evaluation() -> dict[str, Any]:
    """The window ends while ``fully_shard`` still has whole parameters in the root."""
    run = Run("images", policy_of(Recycle()))
    run.step(batches()[0])
    run.model.eval()
    with torch.no_grad():
        run.model(batches()[1])
    run.reports.append(run.watch.close_window())
    run.model.train()
    run.step(batches()[1])
    run.watch.detach()
    return run.result()


def undone() -> dict[str, Any]:
    """The weights before a treatment, and after the guard took it back."""
    run = Run("images", Policy((Recycle(),), when=0.0, cooldown=0))
    run.optimizer.param_groups[0]["lr"] = 0.0
    for x in batches():
        run.step(x)
        run.watch.step(1.0)
    before = run.result()["weights"]
    run.reports.append(run.watch.close_window())
    between = run.result()["weights"]
    for step in range(33):
        run.watch.step(9.0 if step else 1.0)
    run.watch.detach()
    return {"before": before, "between": between, **run.result()}


def whole_root() -> dict[str, Any]:
    """The root is whole when the watch is made and attached, and after each optimizer step."""
    run = Run("flat", watched=False)
    run.evaluate()
    policy = Policy((REMEDIES["recycle"],), when=0.0, guard=False, prevent=[NoBiasDecay()])
    run.watch = run.watch_of(policy)
    for window in range(3):
        run.evaluate()
        run.watch.attach()
        for x in batches()[3 * window : 3 * window + 3]:
            run.optimizer.zero_grad()
            (run.model(x[run.rank :: run.world]) - 1).square().mean().backward()
            run.optimizer.step()
            run.evaluate()
            run.watch.step()
        run.reports.append(run.watch.close_window())
        run.watch.detach()
    if run.world > 1:
        run.model.reshard()
    return run.result()


class Squared(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x).square()


def sharded_activations() -> tuple[list[str], set[str]]:
    """The sites of activations that are given to ``fully_shard``, and why none is swapped."""
    from torch.distributed.fsdp import fully_shard

    torch.manual_seed(0)
    layers = [nn.Linear(6, 6) for _ in range(3)]
    bury(layers[0], [1])
    parts = [layers[0], nn.ReLU(), layers[1], nn.GELU(), layers[2], Squared()]
    model: Any = nn.Sequential(*parts).double()
    if world_and_rank()[0] > 1:
        fully_shard(parts[:4])
        fully_shard(parts[5])
        fully_shard(model)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    rules = Rules(min_samples=1)
    with Watch(model, optimizer=optimizer, policy=policy_of(Swap()), rules=rules) as watch:
        model(batches()[0]).sum().backward()
        watch.step()
        report = watch.close_window()
    return [str(site.site) for site in report.sites.values()], {r.reason for r in report.refusals}


def scanned() -> dict[str, Any]:
    """What a scan finds, and that the model is trained as if there had been none."""
    run = Run("blocks", watched=False)
    found = scan(run.model, batches()[:2], rules=Rules(min_samples=1))
    trained = run.train().result()
    again = scan(run.model, batches()[:2], rules=Rules(min_samples=1))
    return {**trained, "reports": [found, again]}


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("ranks")
    run_ranks(SCRIPT, folder)
    return [pickle.loads((folder / f"rank{rank}.pkl").read_bytes()) for rank in range(2)]


@pytest.fixture(scope="module")
def alone() -> dict[str, Any]:
    return everything()


def assert_close(weights: dict[str, Any], expected: dict[str, Any]) -> None:
    assert weights.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(weights[name], value, rtol=1e-9, atol=1e-11, msg=name)


def assert_same_sites(reports: list[Any], expected: list[Any]) -> None:
    for report, other in zip(reports, expected, strict=True):
        assert set(report) == set(other)
        for name, site in other.items():
            mine = report[name]
            assert (mine.samples, mine.units) == (site.samples, site.units)
            for each in ("state", "age", "nonfinite", "open_fraction"):
                np.testing.assert_array_equal(getattr(mine, each), getattr(site, each), each)
            for each in ("mean", "std", "mean_abs", "mean_out", "min", "max"):
                mine_each, site_each = getattr(mine, each), getattr(site, each)
                np.testing.assert_allclose(mine_each, site_each, rtol=1e-6, atol=1e-9)
            assert mine.site.producers == site.site.producers
            assert mine.site.consumers == site.site.consumers


def told(result: dict[str, Any]) -> list[Any]:
    reports = result["reports"]
    return [(t.site, t.remedy, list(t.units)) for r in reports for t in r.treatments]


def test_watching_a_sharded_model_changes_no_bit(ranks: list[dict[str, Any]]) -> None:
    for rank in ranks:
        bare, watched = rank["unwatched"], rank["watched"]
        assert watched["losses"] == bare["losses"]
        for name, value in bare["weights"].items():
            assert torch.equal(watched["weights"][name], value), name


@pytest.mark.parametrize(
    ("network", "remedy"),
    [(n, r) for n in NETWORKS for r in REMEDIES]
    + [("columns", "recycle"), ("columns", "restandardize")],
)
def test_treating_a_sharded_model_gives_the_weights_of_one_process(
    ranks: list[dict[str, Any]], alone: dict[str, Any], network: str, remedy: str
) -> None:
    expected = alone[network, remedy]
    assert told(expected), "nothing was treated"
    for rank in ranks:
        assert told(rank[network, remedy]) == told(expected)
        assert_same_sites(rank[network, remedy]["reports"], expected["reports"])
        assert_close(rank[network, remedy]["weights"], expected["weights"])


@pytest.mark.parametrize("architecture", [case.name for case in CASES])
def test_sharded_layers_are_wired_as_whole_ones(
    ranks: list[dict[str, Any]], alone: dict[str, Any], architecture: str
) -> None:
    for rank in ranks:
        assert rank["wires"][architecture] == alone["wires"][architecture]


def test_every_rank_holds_the_same_ledger_and_weights(ranks: list[dict[str, Any]]) -> None:
    first, second = ranks
    for case in [(n, r) for n in NETWORKS for r in REMEDIES]:
        mine, other = first[case], second[case]
        assert told(mine) == told(other)
        for name, value in mine["weights"].items():
            assert np.array_equal(value, other["weights"][name]), (case, name)
        assert mine["ledger"] == other["ledger"]
        for change, another in zip(mine["changes"], other["changes"], strict=True):
            np.testing.assert_array_equal(change.before, another.before)
            np.testing.assert_array_equal(change.after, another.after)


def test_a_window_may_end_while_the_root_is_whole(
    ranks: list[dict[str, Any]], alone: dict[str, Any]
) -> None:
    expected = alone["after evaluation"]
    assert told(expected)
    for rank in ranks:
        assert told(rank["after evaluation"]) == told(expected)
        assert_close(rank["after evaluation"]["weights"], expected["weights"])


def test_a_watch_may_be_made_attached_and_stepped_while_the_root_is_whole(
    ranks: list[dict[str, Any]], alone: dict[str, Any]
) -> None:
    expected = alone["whole root"]
    assert told(expected)
    for rank in ranks:
        assert told(rank["whole root"]) == told(expected)
        assert_close(rank["whole root"]["weights"], expected["weights"])


def test_a_scan_of_a_sharded_model_leaves_it_as_it_was(
    ranks: list[dict[str, Any]], alone: dict[str, Any]
) -> None:
    for rank in ranks:
        assert_same_sites(rank["scanned"]["reports"], alone["scanned"]["reports"])
        for name, value in rank["unwatched"]["weights"].items():
            assert torch.equal(rank["scanned"]["weights"][name], value), name


def test_activations_may_be_given_to_fully_shard(
    ranks: list[dict[str, Any]], alone: dict[str, Any]
) -> None:
    sites, _ = alone["activations"]
    assert len(sites) == 3
    for rank in ranks:
        mine, reasons = rank["activations"]
        assert mine == sites
        assert "1 was given to fully_shard itself" in " ".join(reasons)


def test_the_guard_gives_sharded_weights_back(ranks: list[dict[str, Any]]) -> None:
    for rank in ranks:
        run = rank["undone"]
        assert run["ledger"], "nothing was treated"
        changed = [n for n, v in run["before"].items() if not same(v, run["between"][n])]
        assert changed
        for name in changed:
            assert same(run["weights"][name], run["before"][name]), name


def test_a_resumed_sharded_run_goes_on_bit_by_bit(ranks: list[dict[str, Any]]) -> None:
    for rank in ranks:
        for run, again in rank["interrupted"]:
            assert run["ledger"], "nothing was treated"
            assert again["ledger"] == run["ledger"]
            for name, value in run["weights"].items():
                assert same(again["weights"][name], value), name


def test_sharded_parameters_of_activations_make_the_same_gates(
    ranks: list[dict[str, Any]], alone: dict[str, Any]
) -> None:
    expected = alone["learned"]["reports"]
    assert set(expected[0]) == {"1", "3", "5"}
    assert len({report["3"].site.gate.low for report in expected}) == 3, "it was learned"
    for rank in ranks:
        reports = rank["learned"]["reports"]
        assert_same_sites(reports, expected)
        for report, other in zip(reports, expected, strict=True):
            gates = [(mine.site.gate, one.site.gate) for mine, one in zip_sites(report, other)]
            assert all(a.low == pytest.approx(b.low, rel=1e-6) for a, b in gates)
            assert all((a.inside, a.flat) == (b.inside, b.flat) for a, b in gates)


def zip_sites(report: Any, other: Any) -> list[Any]:
    return [(report[name], other[name]) for name in other]


def same(value: Any, other: Any) -> bool:
    return torch.equal(torch.as_tensor(value), torch.as_tensor(other))


def test_slopes_are_refused_beside_sharded_parameters(ranks: list[dict[str, Any]]) -> None:
    for rank in ranks:
        (report,) = rank["prelu"]["reports"]
        assert not report.treatments
        assert {refusal.site for refusal in report.refusals} == {"1.act", "2.act"}
        assert all("fully_shard" in refusal.reason for refusal in report.refusals)
