"""What TensorBoard's entry point names: it can cost the tab, and never TensorBoard.

TensorBoard does not start if importing an entry point raises. So this file imports nothing but
TensorBoard's own; the rest comes when the tab is made, and an installation that lacks something is
told in the log.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from tensorboard.plugins.base_plugin import TBContext, TBLoader

if TYPE_CHECKING:
    from deadwatch.show.server import Plugin

logger = logging.getLogger(__name__)

NAME = "deadwatch"
"""Whose data it is, for TensorBoard: that of `deadwatch.show.archive.PLUGIN`."""


class Loader(TBLoader):  # type: ignore[misc]  # TensorBoard has no types
    """TensorBoard's entry point."""

    def fix_flags(self, flags: Any) -> None:
        """Have every record kept, which else are thinned out, unless the user chose a number."""
        if isinstance(getattr(flags, "samples_per_plugin", None), dict):
            flags.samples_per_plugin.setdefault(NAME, 0)

    def load(self, context: TBContext) -> Plugin | None:
        """The plugin, or None where TensorBoard has no data provider, or deadwatch is damaged."""
        if context.data_provider is None:
            return None
        try:
            from deadwatch.show.server import Plugin

            return Plugin(context)
        except Exception:  # whatever it is, TensorBoard starts
            logger.exception("deadwatch: not installed as a whole, so there is no tab")
            return None
