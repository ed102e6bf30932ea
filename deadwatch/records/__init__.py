"""The frozen records that the stages hand to each other.

Plain, picklable, and free of torch: they hold names, numbers and NumPy arrays, never modules.
Arrays named "(C,)" have one entry per unit of the site.
"""

from deadwatch.records.arrays import Bools, Floats, Ints
from deadwatch.records.found import SEVERITIES, Finding, Severity
from deadwatch.records.gauged import (
    Cause,
    Death,
    Gauges,
    LayerInput,
    Parameter,
    Rows,
    Update,
)
from deadwatch.records.measured import Share, SiteSnapshot, Snapshot, Window
from deadwatch.records.reports import SiteReport, State, WindowReport
from deadwatch.records.sites import Gate, Site, Wire
from deadwatch.records.treated import Change, Outcome, Refusal, Treatment

__all__ = [
    "SEVERITIES",
    "Bools",
    "Cause",
    "Change",
    "Death",
    "Finding",
    "Floats",
    "Gate",
    "Gauges",
    "Ints",
    "LayerInput",
    "Outcome",
    "Parameter",
    "Refusal",
    "Rows",
    "Severity",
    "Share",
    "Site",
    "SiteReport",
    "SiteSnapshot",
    "Snapshot",
    "State",
    "Treatment",
    "Update",
    "Window",
    "WindowReport",
    "Wire",
]
