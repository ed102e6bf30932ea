"""A remedy and a policy of your own, side by side with doing nothing.

`Mirror` negates what feeds a dead unit: a ReLU that is never open is then always open. `Layers`
asks for treatment only in the layers that it is told, however few units are dead there. A digits
MLP whose first hidden layer starts with half of its biases at -3 is trained with and without them.

    python examples/own_remedy.py [--epochs 15]
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass

import torch
from sklearn.datasets import load_digits
from torch import nn

from deadwatch import CannotTreat, Case, Plan, Policy, Remedy, SiteReport, Watch, WindowReport
from deadwatch.records import Bools


@dataclass(frozen=True)
class Mirror(Remedy):
    """A ReLU that is never open is always open once what feeds it is negated."""

    def plan(self, case: Case) -> Plan:
        wire = case.producer()  # refuses where it is unknown
        if case.norms():
            raise CannotTreat("a norm would turn the new rows around again")
        case.require_trainable(*wire.names)
        edits, restarts, quiet = case.silence(None)  # zero what reads the units, if known
        for name in wire.names:
            edits += case.edits(name, -case.rows(name))
            restarts += case.restarts(name)
        return Plan(self.name, case.units, edits, restarts, quiet=quiet)


@dataclass(frozen=True)
class Layers(Policy):
    """Treats every dead unit of some sites, and none elsewhere."""

    sites: tuple[str, ...] = ()

    def due(self, site: SiteReport, window: WindowReport) -> Bools:
        return site.dead & (site.site.name in self.sites)


def train(policy: Policy | None, epochs: int) -> tuple[float, WindowReport]:
    """Train once; returns the accuracy on the training set and the last report."""
    torch.manual_seed(0)
    digits = load_digits()
    x = torch.tensor(digits.data / 16, dtype=torch.float32)
    y = torch.tensor(digits.target)
    first = nn.Linear(64, 32)
    model = nn.Sequential(first, nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 10))
    with torch.no_grad():
        first.bias[:16] = -3
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    with Watch(model, optimizer=optimizer, policy=policy) as watch:
        for epoch in range(epochs):
            for rows in torch.randperm(len(x)).split(64):
                loss = nn.functional.cross_entropy(model(x[rows]), y[rows])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                watch.step(loss)
            report = watch.close_window(treat=epoch < epochs - 1)
    with torch.no_grad():
        right = model(x).argmax(1).eq(y).float().mean()
    return right.item(), report


def main(arguments: list[str] | None = None) -> dict[str, WindowReport]:
    """Train both ways and say what came of it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=15)
    options = parser.parse_args(arguments)
    policies = {"watched": None, "mirrored": Layers(Mirror(), sites=("1",))}
    reports = {}
    for name, policy in policies.items():
        accuracy, report = train(policy, options.epochs)
        reports[name] = report
        dead = int(report["1"].dead.sum())
        print(f"{name}: {accuracy:.1%} of the training set right, {dead} of 32 units dead")
        for outcome in report.outcomes:
            print(f"  {outcome.remedy}: {outcome.revived} of {outcome.units} units are alive")
    return reports


if __name__ == "__main__":
    main()
