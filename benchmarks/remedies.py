"""What each remedy does by itself: the table in the README.

Four ways in which training on scikit-learn's digits goes wrong, and one healthy run in which
nothing should be done. Every row is a plain loop with `Watch`; "LeakyReLU from the start" is what
a user would have done who had known.

    python benchmarks/remedies.py [--seeds 5] [--only NAME …]
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from dataclasses import dataclass
from statistics import mean, stdev
from typing import Any

import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn
from tqdm.auto import tqdm

from deadwatch import BiasWarming, Policy, Recycle, Swap, ThermalKick, Watch

Activation = Callable[[], nn.Module]


def mlp(act: Activation) -> nn.Sequential:
    return nn.Sequential(nn.Linear(64, 64), act(), nn.Linear(64, 64), act(), nn.Linear(64, 10))


def buried(act: Activation) -> nn.Sequential:
    """Every hidden bias starts at -3: dead on arrival."""
    model = mlp(act)
    with torch.no_grad():
        for layer in (model[0], model[2]):
            assert isinstance(layer, nn.Linear)
            layer.bias.fill_(-3)
    return model


def cnn(act: Activation) -> nn.Sequential:
    return nn.Sequential(
        nn.Unflatten(1, (1, 8, 8)),
        *(nn.Conv2d(1, 16, 3, padding=1), act()),
        *(nn.Conv2d(16, 32, 3, padding=1), act(), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Linear(512, 64), act(), nn.Linear(64, 10)),
    )


@dataclass(frozen=True)
class Scenario:
    """A network and an optimizer; the learning rate decays by a cosine to zero."""

    name: str
    build: Callable[[Activation], nn.Sequential]
    optimizer: Callable[[Any], torch.optim.Optimizer]
    epochs: int = 20


SCENARIOS = [
    Scenario("MLP, Adam 0.2", mlp, lambda p: torch.optim.Adam(p, lr=0.2)),
    Scenario("MLP, SGD 0.5", mlp, lambda p: torch.optim.SGD(p, lr=0.5, momentum=0.9)),
    Scenario("CNN, Adam 0.05", cnn, lambda p: torch.optim.Adam(p, lr=0.05), 12),
    Scenario("biases at -3", buried, lambda p: torch.optim.Adam(p, lr=1e-3)),
    Scenario("healthy, Adam 3e-3", mlp, lambda p: torch.optim.Adam(p, lr=3e-3)),
]

LEAKY = "LeakyReLU from the start"
ARMS: dict[str, Policy | str | None] = {
    "none": None,
    LEAKY: None,
    "BiasWarming(quiet=False)": Policy(BiasWarming(quiet=False)),
    "BiasWarming(quiet=True)": Policy(BiasWarming(quiet=True)),
    "ThermalKick(quiet=False)": Policy(ThermalKick(quiet=False)),
    "ThermalKick(quiet=True)": Policy(ThermalKick(quiet=True)),
    "Swap(quiet=False)": Policy(Swap(quiet=False)),
    "Swap(quiet=True)": Policy(Swap(quiet=True)),
    "Recycle()": Policy(Recycle()),
    '"gentle"': "gentle",
    '"ladder"': "ladder",
}


def data() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Training and held-out images and labels."""
    images, labels = load_digits(return_X_y=True)
    parts = train_test_split(images / 16, labels, test_size=0.25, random_state=0, stratify=labels)
    x, x_out = (torch.tensor(part, dtype=torch.float32) for part in parts[:2])
    y, y_out = (torch.tensor(part) for part in parts[2:])
    return x, x_out, y, y_out


def run(scenario: Scenario, arm: str, seed: int, epochs: int) -> tuple[float, float]:
    """Held-out accuracy and dead ratio after training once."""
    torch.manual_seed(seed)
    x, x_out, y, y_out = data()
    model = scenario.build(nn.LeakyReLU if arm == LEAKY else nn.ReLU)
    optimizer = scenario.optimizer(model.parameters())
    steps = epochs * len(torch.arange(len(x)).split(64))
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    watch = Watch(model, optimizer=optimizer, policy=ARMS[arm])
    with watch:
        for epoch in range(epochs):
            for rows in torch.randperm(len(x)).split(64):
                nn.functional.cross_entropy(model(x[rows]), y[rows]).backward()
                optimizer.step()
                optimizer.zero_grad()
                schedule.step()
                watch.step()
            report = watch.close_window(treat=epoch < epochs - 1)
    model.eval()
    with torch.no_grad():
        accuracy = (model(x_out).argmax(1) == y_out).float().mean()
    return float(accuracy), report.dead_ratio


def cell(results: list[tuple[float, float]]) -> str:
    """Accuracy, mean ± std over seeds in percent, and the mean share of dead units at the end.

    Without a share, some run went to NaN: its units are uncertain, not dead.
    """
    accuracies = [100 * accuracy for accuracy, _ in results]
    spread = stdev(accuracies) if len(accuracies) > 1 else 0.0
    ratios = [100 * ratio for _, ratio in results]
    dead = "diverged" if any(map(math.isnan, ratios)) else f"{mean(ratios):.0f}%"
    return f"{mean(accuracies):.1f} ± {spread:.1f} ({dead})"


def main(arguments: list[str] | None = None) -> None:
    """Run everything and print the table."""
    import warnings

    from deadwatch.errors import UnfinishedCourseWarning

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--epochs", type=int, help="for a quick look; changes every figure")
    parser.add_argument("--only", nargs="+", default=list(ARMS), choices=list(ARMS))
    options = parser.parse_args(arguments)
    warnings.simplefilter("ignore", UnfinishedCourseWarning)
    torch.set_num_threads(1)
    rows = {arm: [arm] for arm in options.only}
    with tqdm(total=len(SCENARIOS) * len(rows), unit="cell") as bar:
        for scenario in SCENARIOS:
            epochs = options.epochs or scenario.epochs
            for arm, cells in rows.items():
                results = [run(scenario, arm, seed, epochs) for seed in range(options.seeds)]
                cells.append(cell(results))
                bar.update()
    print(f"\nHeld-out accuracy in %, mean ± std over {options.seeds} seeds (dead at the end)\n")
    table = [["remedy", *(scenario.name for scenario in SCENARIOS)], *rows.values()]
    widths = [max(len(row[column]) for row in table) for column in range(len(table[0]))]
    for index, row in enumerate(table):
        print("| " + " | ".join(text.ljust(w) for text, w in zip(row, widths, strict=True)) + " |")
        if index == 0:
            print("|" + "|".join("-" * (width + 2) for width in widths) + "|")


if __name__ == "__main__":
    main()
