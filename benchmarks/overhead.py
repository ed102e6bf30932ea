"""What watching costs, as a share of a training step, beside the hook that everybody writes.

All variants of one model run interleaved in one process, round by round, and the medians are
compared: ratios hold on a noisy machine where seconds do not.

    python benchmarks/overhead.py [--rounds 9] [--steps 20] [--threads 1] [--out FILE.json]
"""

from __future__ import annotations

import argparse
import copy
import json
import platform
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from deadwatch import Watch


class Block(nn.Module):
    """A residual block of two 3×3 convolutions with one shared in-place ReLU."""

    def __init__(self, width: int, out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, out, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(out)
        self.conv2 = nn.Conv2d(out, out, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(out)
        self.relu = nn.ReLU(inplace=True)
        self.skip = nn.Identity() if stride == 1 else nn.Conv2d(width, out, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.relu(self.bn1(self.conv1(x)))
        result: Tensor = self.relu(self.bn2(self.conv2(hidden)) + self.skip(x))
        return result


def resnet() -> nn.Module:
    """Shaped like ResNet-18: 17 sites in 9 activation modules."""
    widths = [(64, 64, 1), (64, 64, 1), (64, 128, 2), (128, 128, 1)]
    widths += [(128, 256, 2), (256, 256, 1), (256, 512, 2), (512, 512, 1)]
    return nn.Sequential(
        *(nn.Conv2d(3, 64, 3, 1, 1, bias=False), nn.BatchNorm2d(64), nn.ReLU(inplace=True)),
        *(nn.MaxPool2d(2), *(Block(*width) for width in widths)),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, 10)),
    )


def transformer() -> nn.Module:
    """Four encoder layers of width 256 with GELU modules."""
    layer = nn.TransformerEncoderLayer(
        256, 4, 1024, dropout=0.0, activation=nn.GELU(), batch_first=True
    )
    return nn.TransformerEncoder(layer, 4, enable_nested_tensor=False)


def mlp() -> nn.Module:
    """Three hidden layers of 512 units: a step of about a millisecond."""
    layers = [nn.Linear(512, 512), nn.ReLU()] * 3
    return nn.Sequential(*(copy.deepcopy(layer) for layer in layers), nn.Linear(512, 10))


@dataclass(frozen=True)
class Model:
    """A model and its batch; ``steps`` multiplies the steps of a round for the fast ones."""

    name: str
    build: Callable[[], nn.Module]
    batch: tuple[int, ...]
    steps: int


MODELS = [
    Model("MLP 3×512, batch 128", mlp, (128, 512), 10),
    Model("transformer 4×256, 8×64 tokens", transformer, (8, 64, 256), 1),
    Model("ResNet-18-shaped, 8×3×32×32", resnet, (8, 3, 32, 32), 1),
]


@contextmanager
def handwritten(model: nn.Module) -> Iterator[None]:
    """The hook that everybody writes: zeros, mean and std of every activation, read at once."""
    history: list[tuple[float, float, float]] = []

    def hook(module: nn.Module, args: Any, output: Tensor) -> None:
        zeros = (output == 0).float().mean().item()
        history.append((zeros, output.mean().item(), output.std().item()))

    kinds = (nn.ReLU, nn.GELU)
    handles = [m.register_forward_hook(hook) for m in model.modules() if isinstance(m, kinds)]
    yield
    for handle in handles:
        handle.remove()


VARIANTS: dict[str, Callable[[nn.Module], AbstractContextManager[Any]]] = {
    "bare": lambda model: nullcontext(),
    "deadwatch": Watch,
    "deadwatch, every step": lambda model: Watch(model, stats_every_n_steps=1),
    "hand-written hook": handwritten,
}


def train(model: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor, steps: int) -> None:
    """A number of plain training steps."""
    for _ in range(steps):
        model(x).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()


def measure(model: Model, rounds: int, steps: int, bar: Any) -> dict[str, float]:
    """Median seconds a step of each variant; the rounds of all variants are interleaved."""
    torch.manual_seed(0)
    x, steps = torch.randn(model.batch), steps * model.steps
    times: dict[str, list[float]] = {name: [] for name in VARIANTS}
    networks = {name: model.build() for name in VARIANTS}
    optimizers = {
        name: torch.optim.SGD(net.parameters(), lr=1e-4) for name, net in networks.items()
    }
    for index in range(rounds + 1):
        for name, attach in VARIANTS.items():
            with attach(networks[name]) as watch:
                train(networks[name], optimizers[name], x, 2)  # the first forward is traced
                start = time.perf_counter()
                train(networks[name], optimizers[name], x, steps)
                if isinstance(watch, Watch):
                    watch.close_window()
                if index:  # the round before the first warms up
                    times[name].append((time.perf_counter() - start) / steps)
        bar.update()
    return {name: median(seconds) for name, seconds in times.items()}


def main(arguments: list[str] | None = None) -> None:
    """Measure everything and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, help="write the seconds to this file as JSON")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    machine = f"{platform.machine()} CPU, {options.threads} thread(s), torch {torch.__version__}"
    with tqdm(total=len(MODELS) * (options.rounds + 1), unit="round") as bar:
        results = {m.name: measure(m, options.rounds, options.steps, bar) for m in MODELS}
    names = list(VARIANTS)[1:]
    print(f"\nAdded to a training step, {machine}, median of {options.rounds} rounds\n")
    print("| model | bare step | " + " | ".join(names) + " |")
    print("|---|--:|" + "--:|" * len(names))
    for model, seconds in results.items():
        added = [f"{100 * (seconds[name] / seconds['bare'] - 1):+.1f}%" for name in names]
        print(f"| {model} | {1000 * seconds['bare']:.2f} ms | " + " | ".join(added) + " |")
    if options.out is not None:
        options.out.write_text(
            json.dumps({"machine": machine, "seconds": results}, indent=1) + "\n"
        )


if __name__ == "__main__":
    main()
