"""A transformer as people write it: functional activations, a class of one's own, a plain loop.

Each of scikit-learn's digits is read as eight tokens, its rows. The encoder is torch's, whose
layers call `F.relu`; the head has an activation class that torch does not know. Nothing is changed
in the model for deadwatch: it finds the sites, their units and who produces and reads them.

    python examples/transformer.py [--epochs 5]
"""

from __future__ import annotations

import argparse

import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn

from deadwatch import Watch, WindowReport


class SquaredReLU(nn.Module):
    """relu(x)², as in Primer (So et al. 2021)."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x).square()


class Rows(nn.Module):
    """Reads an image row by row."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.embed = nn.Linear(8, width)
        self.place = nn.Parameter(0.1 * torch.randn(8, width))
        layer = nn.TransformerEncoderLayer(width, 4, 2 * width, dropout=0.0, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2)
        self.hidden, self.act, self.out = nn.Linear(width, 64), SquaredReLU(), nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.encoder(self.embed(x) + self.place)
        logits: Tensor = self.out(self.act(self.hidden(tokens.mean(1))))
        return logits


def data() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Training and held-out images (N, 8, 8), and their labels."""
    images, labels = load_digits(return_X_y=True)
    parts = train_test_split(images / 16, labels, test_size=0.25, random_state=0, stratify=labels)
    x, held_out = (torch.tensor(part, dtype=torch.float32).view(-1, 8, 8) for part in parts[:2])
    y, truth = map(torch.tensor, parts[2:])
    return x, held_out, y, truth


def train(epochs: int) -> tuple[float, WindowReport]:
    """Train in a plain loop; returns held-out accuracy and the last window's report."""
    torch.manual_seed(0)
    x, held_out, y, truth = data()
    model = Rows()
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    with Watch(model) as watch:
        for epoch in range(epochs):
            for batch in torch.randperm(len(x)).split(64):
                optimizer.zero_grad()
                nn.functional.cross_entropy(model(x[batch]), y[batch]).backward()
                optimizer.step()
                watch.step()
            report = watch.close_window()
            print(f"epoch {epoch}: {report.dead} of {report.judged} units dead")
    with torch.no_grad():
        accuracy = (model.eval()(held_out).argmax(1) == truth).float().mean()
    return float(accuracy), report


def show(report: WindowReport) -> None:
    """What each site is, and how often its gates were open."""
    for name, site in report.items():
        wires = site.site.producers, site.site.consumers
        produced, read = (", ".join(map(str, side)) or "unknown" for side in wires)
        print(f"\n{name} ({site.site.activation}): {site.units} units, {site.dead.sum()} dead")
        print(f"  open on {1 - site.sparsity:.0%} of {site.samples} elements a unit")
        print(f"  produced by {produced}\n  read by     {read}")


def main(arguments: list[str] | None = None) -> tuple[float, WindowReport]:
    """Train and print what was seen."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--epochs", type=int, default=5)
    accuracy, report = train(parser.parse_args(arguments).epochs)
    show(report)
    print(f"\nheld-out accuracy {accuracy:.1%}")
    return accuracy, report


if __name__ == "__main__":
    main()
