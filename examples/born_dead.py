"""Is this network alive before it is trained? A plain loop that looks first.

Deep and narrow ReLU networks are often dead on arrival: for some layer no unit is open on any
input, nothing passes, and no training helps (Lu et al. 2019). `scan` finds that out in one forward.
The first table counts how often it happens and puts the theory for a single input beside it,
1 - (1 - 2^-N)^H for H hidden layers of width N with zero biases. Then a network that was scanned
and drawn anew until it was alive is trained next to one that was taken as it came.

    python examples/born_dead.py [--draws 100]
"""

from __future__ import annotations

import argparse

import torch
from torch import Tensor, nn

from deadwatch import Rules, Watch, scan

DEPTH = 10


def network(inputs: int, width: int) -> nn.Sequential:
    """A deep narrow MLP, He initialisation, zero biases."""
    layers: list[nn.Module] = []
    for depth in range(DEPTH):
        linear = nn.Linear(inputs if depth == 0 else width, width)
        nn.init.kaiming_normal_(linear.weight, nonlinearity="relu")
        nn.init.zeros_(linear.bias)
        layers += [linear, nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(width, 1))


def is_born_dead(model: nn.Module, x: Tensor) -> bool:
    """Whether some layer is dead as a whole, so that nothing passes."""
    report = scan(model, [x], rules=Rules(min_samples=1))
    return any(site.dead.all() for site in report.values())


def born_dead(width: int, draws: int, inputs: int) -> float:
    """Share of networks that are born dead on ``inputs`` inputs in two dimensions."""
    x = torch.randn(inputs, 2)
    return sum(is_born_dead(network(2, width), x) for _ in range(draws)) / draws


def train(model: nn.Module, x: Tensor, y: Tensor, steps: int = 300) -> tuple[float, float]:
    """Fit |x|; returns the loss and the dead ratio at the end."""
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    with Watch(model) as watch:
        for _ in range(steps):
            loss = nn.functional.mse_loss(model(x), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            watch.step()
        report = watch.close_window()
    return loss.item(), report.dead_ratio


def main(arguments: list[str] | None = None) -> dict[str, tuple[float, float]]:
    """Print the table, then train both networks."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--draws", type=int, default=100)
    draws = parser.parse_args(arguments).draws
    torch.manual_seed(0)
    print(
        f"| width of {DEPTH} hidden layers | theory, 1 input | scan, 1 input | scan, 300 inputs |"
    )
    print("|--:|--:|--:|--:|")
    for width in (2, 3, 5, 8):
        theory = 1 - (1 - 2.0**-width) ** DEPTH
        one, many = born_dead(width, draws, 1), born_dead(width, draws, 300)
        print(f"| {width} | {theory:.1%} | {one:.1%} | {many:.1%} |")
    x = torch.randn(300, 2)
    y = x.abs().sum(1, keepdim=True)
    models = {"taken as it came": network(2, 3), "drawn until alive": network(2, 3)}
    while not is_born_dead(models["taken as it came"], x):  # the unlucky case, to be shown
        models["taken as it came"] = network(2, 3)
    while is_born_dead(models["drawn until alive"], x):
        models["drawn until alive"] = network(2, 3)
    results = {name: train(model, x, y) for name, model in models.items()}
    for name, (loss, dead) in results.items():
        print(f"{name:18s} (width 3): loss {loss:.3f}, {dead:.0%} dead after training")
    return results


if __name__ == "__main__":
    main()
