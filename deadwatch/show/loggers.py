"""Records → the loggers of a Trainer: what of a report is no curve, as far as each one takes it.

Curves go to every logger by Lightning itself. TensorBoard gets all the rest, Weights & Biases and
MLflow get the picture of sites × windows, any other logger nothing.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable
from typing import Any, Protocol

from deadwatch.errors import PictureWarning
from deadwatch.records import WindowReport
from deadwatch.show.picture import History, Picture
from deadwatch.show.tensorboard import PICTURE_TAG, TensorBoardView


class View(Protocol):
    """Takes in what of a report is no curve."""

    def window(self, report: WindowReport, step: int) -> None:
        """All of a window."""

    def events(self, report: WindowReport, step: int) -> None:
        """What was done and told after a window that was written before."""


class PictureView:
    """Gives a logger the picture of sites × windows, until it does not take one.

    Args:
        log: Called with the picture and the step.
    """

    def __init__(self, log: Callable[[Picture, int], object]) -> None:
        self._log = log
        self._history = History()
        self._refused = False

    def window(self, report: WindowReport, step: int) -> None:
        """Draw what there is so far, if there is enough that is new."""
        self._history.add(report)
        if not self._history.due or self._refused:
            return
        picture = self._history.picture()
        try:
            self._log(picture, step)
        except Exception as error:  # each logger has errors of its own; a picture ends no training
            self._refused = True
            warnings.warn(
                f"a logger did not take the picture {PICTURE_TAG!r} and gets no more of them; "
                f"curves and training go on. {type(error).__name__}: {error}",
                PictureWarning,
                stacklevel=2,
            )

    def events(self, report: WindowReport, step: int) -> None:
        """Nothing: treatments are not in the picture."""


class LoggerViews:
    """One view for each logger that takes more than curves."""

    def __init__(self) -> None:
        self._views: dict[int, View | None] = {}

    def window(self, loggers: Iterable[Any], report: WindowReport, step: int) -> None:
        """Write all of a window that is no curve."""
        for view in self._of(loggers):
            view.window(report, step)

    def events(self, loggers: Iterable[Any], report: WindowReport, step: int) -> None:
        """Write what was done and told after a window that was written before."""
        for view in self._of(loggers):
            view.events(report, step)

    def _of(self, loggers: Iterable[Any]) -> Iterable[View]:
        for logger in loggers:
            if id(logger) not in self._views:
                self._views[id(logger)] = _view(logger)
            view = self._views[id(logger)]
            if view is not None:
                yield view


def _view(logger: Any) -> View | None:
    writer: Any = getattr(logger, "experiment", None)
    if hasattr(writer, "add_custom_scalars"):
        return TensorBoardView(writer)
    if callable(getattr(logger, "log_image", None)):  # Weights & Biases, and loggers like it
        return PictureView(lambda picture, step: logger.log_image(PICTURE_TAG, [picture], step))
    if callable(getattr(writer, "log_image", None)) and hasattr(logger, "run_id"):  # MLflow
        return PictureView(
            lambda picture, step: writer.log_image(
                logger.run_id, picture, key=PICTURE_TAG, step=step
            )
        )
    return None
