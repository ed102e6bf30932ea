"""Other loggers, for real: scalars by the same names, pictures where they are taken."""

from __future__ import annotations

import csv
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pytorch_lightning.loggers import (
    CSVLogger,
    MLFlowLogger,
    TensorBoardLogger,
    WandbLogger,
)

from deadwatch import DeadWatch, Recycle, Rules
from deadwatch.errors import PictureWarning
from deadwatch.show.events import runs
from deadwatch.show.loggers import LoggerViews
from deadwatch.show.tensorboard import scalars
from deadwatch.treat.policy import Policy
from tests.fitting import Module, fit
from tests.histories import history, window

EPOCHS = 3


def fitted(logger: Any, tmp_path: Path, **given: Any) -> dict[str, float]:
    """Fit with a logger; returns the curves' points of the last window."""
    policy = Policy(Recycle(), when=0.0, patience=1)
    callback = DeadWatch(policy, rules=Rules(min_samples=1), **given)
    fit([callback], tmp_path, Module(), logger=logger, max_epochs=EPOCHS)
    assert callback.report is not None
    assert callback.watch is not None
    assert callback.watch.ledger
    points = scalars(callback.report)
    assert {"deadwatch/dead_ratio", "deadwatch/mean/net.1"} <= set(points)
    return points


@pytest.mark.parametrize("given", [{}, {"window": 3}])
def test_a_csv_file_has_scalars_by_the_same_names(given: dict[str, Any], tmp_path: Path) -> None:
    points = fitted(CSVLogger(tmp_path, version="run"), tmp_path, **given)
    (path,) = tmp_path.rglob("metrics.csv")
    with path.open() as file:
        rows = list(csv.DictReader(file))
    for name, value in points.items():
        (*_, last) = [row[name] for row in rows if row[name]]
        assert float(last) == pytest.approx(value, rel=1e-5)
    assert not list(tmp_path.rglob("*.png"))


@pytest.fixture
def foreign_warnings() -> Iterator[None]:
    """What other loggers warn of themselves is not under test."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@pytest.mark.usefixtures("foreign_warnings")
def test_wandb_offline_has_scalars_and_pictures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wandb = pytest.importorskip("wandb", reason="wandb is another logger's package")
    monkeypatch.setenv("WANDB_SILENT", "true")
    logger = WandbLogger(save_dir=tmp_path, offline=True, project="deadwatch")
    points = fitted(logger, tmp_path)
    folder = Path(logger.experiment.dir)
    summary = dict(logger.experiment.summary)
    wandb.finish()
    for name, value in points.items():
        assert summary[name] == pytest.approx(value, rel=1e-5)
    assert len(pictures(folder)) == EPOCHS


@pytest.mark.usefixtures("foreign_warnings")
def test_mlflow_on_files_has_scalars_and_pictures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("mlflow", reason="mlflow is another logger's package")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    logger = MLFlowLogger("deadwatch", tracking_uri=f"file:{tmp_path / 'store'}")
    points = fitted(logger, tmp_path)
    run = logger.experiment.get_run(logger.run_id)
    for name, value in points.items():
        assert run.data.metrics[name] == pytest.approx(value, rel=1e-5)
    assert len(pictures(tmp_path / "store")) == EPOCHS


def pictures(folder: Path) -> list[Path]:
    """Pictures of the two sites, without thumbnails."""
    found = [path for path in folder.rglob("*.png") if "compressed" not in path.name]
    for path in found:
        height, _, channels = np.asarray(Image.open(path).convert("RGB")).shape
        assert (height, channels) == (32, 3)  # a block for each site
    return found


class Dummy:
    """A logger that takes nothing but curves."""

    experiment = None


def test_a_logger_that_takes_nothing_gets_nothing() -> None:
    views = LoggerViews()
    for report in history(3):
        views.window([Dummy(), object()], report, report.window.last_step)
        views.events([Dummy()], report, report.window.last_step)


def test_a_logger_with_log_image_gets_the_picture() -> None:
    class Logger(Dummy):
        def __init__(self) -> None:
            self.got: list[Any] = []

        def log_image(self, key: str, images: list[Any], step: int | None = None) -> None:
            self.got.append((key, images[0].shape[2], step))

    logger, views = Logger(), LoggerViews()
    for report in history(2):
        views.window([logger], report, report.window.last_step)
        views.events([logger], window(report.window.index), report.window.last_step)
    assert logger.got == [("deadwatch/layers", 3, 9), ("deadwatch/layers", 3, 19)]


def test_a_logger_that_does_not_take_the_picture_costs_the_pictures_alone(tmp_path: Path) -> None:
    class Logger(CSVLogger):
        def log_image(
            self, image: Any, name: str
        ) -> None:  # not as Lightning's own loggers have it
            raise AssertionError("not reached: the arguments do not fit")

    with pytest.warns(PictureWarning, match=r"did not take the picture .* TypeError") as told:
        fitted(Logger(tmp_path, version="run"), tmp_path)
    assert len([one for one in told if one.category is PictureWarning]) == 1
    assert list(tmp_path.rglob("metrics.csv"))


def test_several_loggers_at_once_none_at_all_and_a_fast_dev_run(tmp_path: Path) -> None:
    loggers = [CSVLogger(tmp_path, name="csv"), TensorBoardLogger(tmp_path, name="a")]
    loggers.append(TensorBoardLogger(tmp_path, name="b"))
    fitted(loggers, tmp_path)
    assert sorted(runs(tmp_path)) == ["a/version_0", "b/version_0"]
    assert list(tmp_path.glob("csv/*/metrics.csv"))
    fitted(False, tmp_path)
    fit([DeadWatch()], tmp_path, Module(), fast_dev_run=True)
    assert len(runs(tmp_path)) == 2
