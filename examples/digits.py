"""The main job on real data: watch a network whose units die, then revive them.

A small MLP learns scikit-learn's digits with Adam at a learning rate that starts far too high and
decays. The first updates kill most of its ReLU units; the decay comes too late for them. Each seed
is trained twice: watched only, and treated by the "revive" preset.

    python examples/digits.py [--seeds 5] [--epochs 20] [--policy revive] [--out runs/digits]
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
import warnings
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.loggers import TensorBoardLogger
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from tqdm.auto import tqdm

from deadwatch import DeadWatch, WindowReport

LEARNING_RATE = 0.2
SITES = ("net.1", "net.3")


class Digits(pl.LightningModule):
    """An MLP with two hidden layers of 64 ReLU units."""

    def __init__(self, steps: int, talks: bool) -> None:
        super().__init__()
        self.steps = steps
        self.talks = talks
        self.net = nn.Sequential(
            *(nn.Linear(64, 64), nn.ReLU()),
            *(nn.Linear(64, 64), nn.ReLU()),
            nn.Linear(64, 10),
        )

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        loss = nn.functional.cross_entropy(self.net(batch[0]), batch[1])
        self.log("train/loss", loss, on_step=False, on_epoch=True)
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        correct = self.net(batch[0]).argmax(1) == batch[1]
        self.log("val/accuracy", correct.float().mean())

    def print(self, *args: Any, **kwargs: Any) -> None:
        """Let deadwatch's lines pass above the bar, for one run."""
        if self.talks:
            tqdm.write(" ".join(map(str, args)))

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.Adam(self.parameters(), lr=LEARNING_RATE)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, self.steps)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": schedule, "interval": "step"},
        }


class Progress(pl.Callback):
    """Moves one bar over all runs, and keeps the reports that the table needs."""

    def __init__(self, bar: Any, watch: DeadWatch) -> None:
        self.bar = bar
        self.watch = watch
        self.reports: list[WindowReport] = []

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert self.watch.report is not None
        self.reports.append(self.watch.report)
        self.bar.update()


@dataclass(frozen=True)
class Run:
    """What one training run came to."""

    accuracy: float
    worst: dict[str, float]
    last: dict[str, float]
    treated: Counter[str]
    alive: Counter[str]


def data(seed: int) -> tuple[DataLoader[Any], DataLoader[Any]]:
    """Training and validation batches of the digits; the split is the same for every seed."""
    images, labels = load_digits(return_X_y=True)
    parts = train_test_split(images / 16, labels, test_size=0.25, random_state=0, stratify=labels)
    inputs = [torch.tensor(part, dtype=torch.float32) for part in parts[:2]]
    targets = [torch.tensor(part) for part in parts[2:]]
    order = torch.Generator().manual_seed(seed)
    train = TensorDataset(inputs[0], targets[0])
    held_out = TensorDataset(inputs[1], targets[1])
    return (
        DataLoader(train, batch_size=64, shuffle=True, generator=order),
        DataLoader(held_out, batch_size=len(held_out)),
    )


def train(seed: int, epochs: int, policy: str | None, out: Path, bar: Any) -> Run:
    """Train once; everything but the policy is the same for the same seed."""
    torch.manual_seed(seed)
    batches, held_out = data(seed)
    watch = DeadWatch(policy=policy, advice=True)
    progress = Progress(bar, watch)
    name = policy or "watched"
    for old in (out / name / f"seed{seed}").glob("events.out.*"):
        old.unlink()  # TensorBoard would join them to the new curve
    trainer = pl.Trainer(
        max_epochs=epochs,
        callbacks=[watch, progress],
        logger=TensorBoardLogger(out, name=name, version=f"seed{seed}"),
        accelerator="cpu",
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        log_every_n_steps=23,
    )
    bar.set_description(f"{name:8s} seed {seed}")
    talks = seed == 0 and policy is not None
    trainer.fit(Digits(epochs * len(batches), talks), batches, held_out)
    return _run(float(trainer.callback_metrics["val/accuracy"]), progress.reports, watch)


def _run(accuracy: float, reports: list[WindowReport], watch: DeadWatch) -> Run:
    last = {site: reports[-1][site].dead_ratio for site in SITES}
    worst = {site: max(report[site].dead_ratio for report in reports) for site in SITES}
    assert watch.watch is not None
    treated: dict[str, set[tuple[str, int]]] = {}
    for entry in watch.watch.ledger:
        units = {(entry.treatment.site, int(unit)) for unit in entry.treatment.units}
        treated.setdefault(entry.treatment.remedy, set()).update(units)
    dead = {(site, int(unit)) for site in SITES for unit in reports[-1][site].dead.nonzero()[0]}
    alive = {remedy: units - dead for remedy, units in treated.items()}
    return Run(accuracy, worst, last, _sizes(treated), _sizes(alive))


def _sizes(units: dict[str, set[tuple[str, int]]]) -> Counter[str]:
    return Counter({remedy: len(those) for remedy, those in units.items()})


def spread(values: list[float]) -> str:
    """Mean ± standard deviation over seeds, in percent."""
    deviation = stdev(values) if len(values) > 1 else 0.0
    return f"{100 * mean(values):5.1f} ± {100 * deviation:4.1f} %"


def table(runs: dict[str, list[Run]]) -> str:
    """One column a policy."""
    names = list(runs)
    lines = [f"| {'mean ± std over seeds':34s} | " + " | ".join(f"{n:>14s}" for n in names) + " |"]
    lines.append(f"|{'-' * 36}|" + "|".join("-" * 15 + ":" for _ in names) + "|")

    def row(title: str, cells: list[str]) -> None:
        lines.append(f"| {title:34s} | " + " | ".join(f"{cell:>14s}" for cell in cells) + " |")

    row("held-out accuracy", [spread([run.accuracy for run in runs[n]]) for n in names])
    for site in SITES:
        for when in ("worst", "last"):
            ratios = [[getattr(run, when)[site] for run in runs[n]] for n in names]
            row(f"dead in {site}, {when} epoch", [spread(values) for values in ratios])
    for remedy in sorted({key for n in names for run in runs[n] for key in run.treated}):
        treated = [sum(run.treated[remedy] for run in runs[n]) for n in names]
        alive = [sum(run.alive[remedy] for run in runs[n]) for n in names]
        cells = [f"{t}, {a} alive" if t else "–" for t, a in zip(treated, alive, strict=True)]
        row(f"{remedy}: units treated, at end", cells)
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> dict[str, list[Run]]:
    """Train all runs and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--policy", default="revive")
    parser.add_argument("--out", type=Path, default=Path("runs/digits"))
    options = parser.parse_args(arguments)
    logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", module="pytorch_lightning")
    policies: list[str | None] = [None, options.policy]
    runs: dict[str, list[Run]] = {policy or "watched": [] for policy in policies}
    total = len(policies) * options.seeds * options.epochs
    with tqdm(total=total, unit="epoch", file=sys.stderr) as bar:
        for seed in range(options.seeds):
            for policy in policies:
                run = train(seed, options.epochs, policy, options.out, bar)
                runs[policy or "watched"].append(run)
    print(f"\nscikit-learn digits, MLP 64-64-64-10, Adam {LEARNING_RATE} with cosine decay,")
    print(f"{options.epochs} epochs, {options.seeds} seeds\n")
    print(table(runs))
    program = Path(os.path.relpath(Path(sys.executable).parent)) / "tensorboard"
    print(f"\nSee the curves:  {program} --logdir {options.out}")
    return runs


if __name__ == "__main__":
    main()
