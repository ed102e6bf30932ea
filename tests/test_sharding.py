"""Activations cut over processes: real gloo ranks agree with one process, or say why not."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from deadwatch import ConfigError, State, Watch, WindowReport
from tests.ranks import run_ranks
from tests.sharded import ODD, REFUSED, Net, Odd, Stage, refusal, run

SCRIPT = "from tests.sharded import main; main()"

Ranks = list[dict[str, dict[str, Any]]]


def _ranks(folder: Path, world: int) -> Ranks:
    run_ranks(SCRIPT, folder, world)
    return [pickle.loads((folder / f"rank{rank}.pkl").read_bytes()) for rank in range(world)]


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Ranks:
    return _ranks(tmp_path_factory.mktemp("two"), 2)


def assert_same(report: WindowReport, expected: WindowReport) -> None:
    """All figures of two reports agree, up to rounding; which sites there are as well."""
    ran = [name for name, site in expected.items() if site.samples]
    assert [name for name, site in report.items() if site.samples] == ran
    for name in ran:
        mine, other = report[name], expected[name]
        assert (mine.units, mine.samples) == (other.units, other.samples), name
        for field in ("state", "age", "open_fraction", "nonfinite"):
            np.testing.assert_array_equal(getattr(mine, field), getattr(other, field), field)
        for field in ("mean", "std", "min", "max", "mean_abs", "mean_out", "dormancy"):
            np.testing.assert_allclose(
                getattr(mine, field), getattr(other, field), rtol=1e-4, atol=1e-6, err_msg=field
            )


SHAPES: dict[str, tuple[tuple[int, ...], int]] = {
    "local": ((16, 5), 8),
    "DTensor": ((4, 6, 5), 8),
    "uneven": ((16, 5), 7),
    "sequence": ((4, 6, 5), 8),
}


@pytest.mark.parametrize("case", SHAPES)
def test_tensor_parallel_sites_are_those_of_one_process(case: str, two: Ranks) -> None:
    shape, width = SHAPES[case]
    expected, _ = run(Net(width), shape)
    assert expected["first"].dead[[0, 1, 5]].all()
    assert expected["relu"].dead[[2, width - 1]].all()
    for rank in two:
        report, warned, _ = rank["tensor_parallel"][case]
        assert warned == []
        assert_same(report, expected)
        assert report["first"].dead.tolist() == expected["first"].dead.tolist()


@pytest.mark.parametrize("case", [*SHAPES, *ODD])
def test_watching_changes_no_bit_under_tensor_parallelism(case: str, two: Ranks) -> None:
    for rank in two:
        assert rank["tensor_parallel"][case][2]


@pytest.mark.parametrize("case", [name for name in ODD if name not in REFUSED])
def test_what_keeps_every_element_in_its_place_is_followed(case: str, two: Ranks) -> None:
    expected, _ = run(Odd(case), (16, 5))
    for rank in two:
        report, warned, _ = rank["tensor_parallel"][case]
        assert not any("is switched off" in text for text in warned)
        assert_same(report, expected)


def test_compiled_sites_of_dtensors_are_those_of_one_process(two: Ranks) -> None:
    expected, _ = run(Net(), (16, 5))
    for rank in two:
        report, warned = rank["tensor_parallel"]["compiled"]
        assert not any("is switched off" in text or "not seen" in text for text in warned)
        assert_same(report, expected)


REASONS = {
    "heads": "'act' .* its units are sharded over processes, or what they are made of is",
    "softmax": "'act' .* its units are sharded over processes, or what they are made of is",
    "GLU": "'act' .* its units are sharded over processes, and not as it has them",
    "GLU of a DTensor": "'act' .* its units are sharded over processes, and not as it has them",
    "no graph": "'act' .* the model is tensor parallel, and autograd's graph",
}


@pytest.mark.parametrize("case", REASONS)
def test_a_site_whose_units_cannot_be_placed_is_given_up_with_one_warning(
    case: str, two: Ranks
) -> None:
    for rank in two:
        report, warned, _ = rank["tensor_parallel"][case]
        (text,) = [text for text in warned if "is switched off" in text]
        with pytest.raises(ValueError, match=REASONS[case]):
            raise ValueError(text)
        assert all(not site.samples and not site.dead.any() for _, site in report.items())


def test_a_resumed_run_under_tensor_parallelism_reports_what_it_would_have(two: Ranks) -> None:
    for rank in two:
        whole, resumed = rank["tensor_parallel"]["resumed"]
        assert_same(resumed, whole)
        assert whole["first"].age.max() > whole["first"].samples


def test_two_axes_of_a_mesh_are_those_of_one_process(tmp_path: Path) -> None:
    expected, _ = run(Net(), (16, 5))
    for rank in _ranks(tmp_path, 4):
        found = rank["two_axes"]
        report, warned = found["two axes"]
        assert not any("deadwatch" in text or "units" in text for text in warned)
        assert_same(report, expected)
        assert "a DTensor of tensor parallelism" in found["refused"]
        assert found["fully_shard"] is None
        assert found["fully_shard after a forward"] is None


# ── strategies ──────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("original", [False, True])
def test_watching_under_fsdp1_reports_what_one_process_would(original: bool, two: Ranks) -> None:
    expected, _ = run(Net(), (16, 5))
    for rank in two:
        report, _ = rank["fsdp1"][f"FSDP1 {original}"]
        for name, site in expected.items():
            other = next(report[own] for own in report if own.endswith(name))
            assert (site.samples, site.state.tolist()) == (other.samples, other.state.tolist())
            np.testing.assert_allclose(other.mean, site.mean, rtol=1e-4, atol=1e-6)


REFUSALS = {
    ("tensor_parallel", "refused"): "DTensor of tensor parallelism: the rows of its units",
    ("tensor_parallel", "refused late"): "DTensor of tensor parallelism: the rows of its units",
    ("fsdp1", "refused False"): "FullyShardedDataParallel (FSDP1): it flattens parameters",
    ("fsdp1", "refused True"): "FullyShardedDataParallel (FSDP1): it flattens parameters",
    ("fsdp1", "refused late False"): "a flat parameter of FSDP1: it flattens parameters",
    ("fsdp1", "refused late True"): "that FSDP1 has flattened: it flattens parameters",
    ("pipeline", "refused True"): "of a pipeline of 2: its processes hold different layers",
    ("pipeline", "refused late True"): "of a pipeline of 2: its processes hold different layers",
}


@pytest.mark.parametrize("case", REFUSALS, ids="-".join)
def test_treating_is_refused_before_training_where_it_is_not_supported(
    case: tuple[str, str], two: Ranks
) -> None:
    part, key = case
    for rank in two:
        text = rank[part][key]
        assert text.startswith("ConfigError: the policy treats units, and the model is or holds")
        assert REFUSALS[case] in text
        assert "Pass policy='watch' to only watch, or shard it with" in text


def test_stages_of_a_pipeline_are_merged_by_the_names_of_their_layers(two: Ranks) -> None:
    for rank in two:
        report, warned = rank["pipeline"]["pipeline True"]
        assert warned == []
        assert set(report) == {"layer0.1", "layer1.1"}
        for number, site in enumerate(report[f"layer{n}.1"] for n in range(2)):
            assert site.samples == 16  # and not what the pipeline first calls it on
            assert site.dead[number]


def test_stages_of_a_pipeline_with_the_same_names_are_not_mixed(two: Ranks) -> None:
    for rank in two:
        report, warned = rank["pipeline"]["pipeline False"]
        assert "not seen in window 0: layer.1" in warned[0]
        assert "pipeline stages 0 and 1 each have an activation of this name" in warned[0]
        assert (report["layer.1"].state == State.UNSEEN).all()


def test_processes_with_different_units_are_not_mixed(two: Ranks) -> None:
    for rank in two:
        report, warned = rank["other_units"]["other units"]
        assert "not the same number of units on all processes" in warned[0]
        assert report["1"].unseen
        assert not report["1"].units


def test_a_parameter_that_deepspeed_manages_is_not_treated() -> None:
    """DeepSpeed does not run here; this is the mark that its third stage leaves on parameters."""
    model = Stage(0, named=True)
    Watch(model, optimizer=torch.optim.SGD(model.parameters(), 0.1), policy="revive")
    model.get_parameter("layer0.0.weight").ds_id = 0  # type: ignore[attr-defined]
    with pytest.raises(ConfigError, match=r"layer0\.0\.weight, a parameter that DeepSpeed manages"):
        refusal(model)
    Watch(model, policy="watch")


def test_an_engine_or_optimizer_of_deepspeed_is_not_treated() -> None:
    """DeepSpeed does not run here; its classes are known by the package they come from."""
    engine = type("DeepSpeedEngine", (nn.Sequential,), {"__module__": "deepspeed.runtime.engine"})
    with pytest.raises(ConfigError, match="holds a DeepSpeedEngine of DeepSpeed"):
        refusal(engine(Net()))
    optimizer = type("ZeRO", (), {"__module__": "deepspeed.runtime.zero"})()
    with pytest.raises(ConfigError, match=r"holds a ZeRO of DeepSpeed.*Pass policy='watch'"):
        Watch(Net(), optimizer=optimizer, policy="revive")


def test_replicas_of_data_parallel_are_not_treated() -> None:
    model = nn.DataParallel(Net())
    model.device_ids = [0, 1]  # as on a machine with two devices
    with pytest.raises(ConfigError, match=r"DataParallel over 2 devices.*DistributedDataParallel"):
        refusal(model)
