"""Which distributed strategy a model trains under, where that decides what can be done with it.

Nothing of torch's distributed parts is imported here: what has not been imported is not in use.
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterable
from dataclasses import dataclass, replace
from types import FrameType
from typing import Any

from torch import nn

from deadwatch.observe.sites import uncompiled
from deadwatch.records import SiteSnapshot


@dataclass(frozen=True)
class Strategy:
    """A strategy under which units can only be watched.

    Attributes:
        found: What shows it.
        reason: Why nothing can be treated.
        instead: What to train under, to treat.
    """

    found: str
    reason: str
    instead: str = "shard it with torch.distributed.fsdp.fully_shard instead"


def only_watchable(model: nn.Module, optimizers: Iterable[object]) -> Strategy | None:
    """The strategy for which the units of a model cannot be treated; None if they can."""
    return (
        _deepspeed(model, optimizers)
        or _first_fsdp(model)
        or _pipeline(model)
        or _tensor_parallel(model)
        or _replicas(model)
    )


def _deepspeed(model: nn.Module, optimizers: Iterable[object]) -> Strategy | None:
    reason = "it trains copies of the parameters of its own, and cuts them up over processes"
    for part in (*model.modules(), *optimizers):
        if type(part).__module__.partition(".")[0] == "deepspeed":
            return Strategy(f"a {type(part).__name__} of DeepSpeed", reason)
    for name, parameter in model.named_parameters():
        if any(hasattr(parameter, mark) for mark in ("ds_id", "_hp_mapping")):
            return Strategy(f"{name}, a parameter that DeepSpeed manages", reason)
    return None


def _first_fsdp(model: nn.Module) -> Strategy | None:
    reason = "it flattens parameters and cuts them up, so that units have no rows in them"
    fsdp = getattr(sys.modules.get("torch.distributed.fsdp"), "FullyShardedDataParallel", None)
    for path, module in model.named_modules():
        if fsdp is not None and isinstance(module, fsdp):
            return Strategy(f"{path or 'the model'}, a FullyShardedDataParallel (FSDP1)", reason)
    for path, module in model.named_modules():
        own = dict(module.named_parameters(path, recurse=False))
        for name, parameter in own.items():
            if getattr(parameter, "_is_flat_param", False):
                return Strategy(f"{name}, a flat parameter of FSDP1", reason)
        # Inside of a wrapper that keeps the original parameters, only their shapes tell.
        managed = getattr(module, "_is_fsdp_managed_module", False)
        if managed and isinstance(module, nn.Linear) and module.weight.ndim == 1:
            return Strategy(f"{path}, a module that FSDP1 has flattened", reason)
    return None


def _pipeline(model: nn.Module) -> Strategy | None:
    held = set(model.modules())
    for stage in _stages():
        if held & set(uncompiled(stage.submod).modules()):
            found = f"stage {stage.stage_index} of a pipeline of {stage.num_stages}"
            reason = "its processes hold different layers, and all have to treat alike"
            return Strategy(found, reason)
    return None


def _tensor_parallel(model: nn.Module) -> Strategy | None:
    name = tensor_parallel(model)
    reason = "the rows of its units lie in other processes"
    return Strategy(f"{name}, a DTensor of tensor parallelism", reason) if name else None


def _replicas(model: nn.Module) -> Strategy | None:
    for module in model.modules():
        if isinstance(module, nn.DataParallel) and len(module.device_ids) > 1:
            found = f"a DataParallel over {len(module.device_ids)} devices"
            reason = "its forwards run in copies of the model, in threads"
            return Strategy(found, reason, "use DistributedDataParallel instead")
    return None


# ── tensor parallelism ──────────────────────────────────────────────────────────────────────


def tensor_parallel(model: nn.Module) -> str:
    """Which parameter is a DTensor beyond what `fully_shard` makes of it; empty if none is.

    Call it while no module with parameters runs, when `fully_shard` mostly has them in shards.
    """
    if "torch.distributed.tensor" not in sys.modules:
        return ""
    for path, module in model.named_modules():
        managed = getattr(module, "_is_fsdp_managed_module", False)
        for name, parameter in module.named_parameters(path, recurse=False):
            placements = placements_of(parameter)
            # `fully_shard` itself has one axis of shards, behind one of replicas, if any.
            own = 1 + placements[0].is_replicate() if managed and placements else 0
            if len(placements) > own:
                return str(name)
        for shard in _shards_of(module):
            if getattr(shard, "is_dtensor", False):
                return f"a parameter of {path or 'the model'}"
    return ""


def _shards_of(module: nn.Module) -> list[Any]:
    """What `fully_shard` keeps of each parameter of a module; it may be whole just now."""
    state = getattr(module, "_get_fsdp_state", lambda: None)()
    groups = getattr(state, "_fsdp_param_groups", ())
    return [shard for group in groups for shard in group.fsdp_params]


def placements_of(tensor: object) -> tuple[Any, ...]:
    """How a DTensor lies over its mesh; nothing for any other tensor."""
    kind = getattr(sys.modules.get("torch.distributed.tensor"), "DTensor", None)
    if kind is None or not isinstance(tensor, kind):
        return ()
    placements: tuple[Any, ...] = tensor.placements
    return placements


# ── pipelines ───────────────────────────────────────────────────────────────────────────────


def staged(model: nn.Module, sites: tuple[SiteSnapshot, ...]) -> tuple[SiteSnapshot, ...]:
    """The sites, with the pipeline stages of this process that run them, where it has any."""
    stages = [(stage.stage_index, set(uncompiled(stage.submod).modules())) for stage in _stages()]
    if not stages:
        return sites
    modules = dict(model.named_modules(remove_duplicate=False))
    held = [[n for n, parts in stages if modules.get(site.site.module) in parts] for site in sites]
    return tuple(
        replace(site, share=replace(site.share, stages=tuple(numbers)))
        for site, numbers in zip(sites, held, strict=True)
    )


def is_inferring() -> bool:
    """Whether a pipeline calls its stage on nothing, to learn the shapes of what it passes on."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and frame.f_code.co_name not in _INFERENCE:
        frame = frame.f_back
    return frame is not None


PIPELINES = "torch.distributed.pipelining.stage"
"""The module that has to be there for pipelines."""

_INFERENCE = ("_forward_metadata_inference", "_shape_inference")


def _stages() -> list[Any]:
    """All pipeline stages of this process; a module does not know that it is one."""
    loaded = sys.modules.get(PIPELINES)
    base = getattr(loaded, "_PipelineStageBase", None)
    if base is None:
        return []
    return sorted(
        (found for found in gc.get_objects() if base in type(found).__mro__),
        key=lambda stage: int(stage.stage_index),
    )
