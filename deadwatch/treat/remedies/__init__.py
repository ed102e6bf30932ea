"""The remedies, one file each."""

from deadwatch.treat.remedies.bias_warming import BiasWarming
from deadwatch.treat.remedies.no_bias_decay import NoBiasDecay
from deadwatch.treat.remedies.positive_bias import PositiveBias
from deadwatch.treat.remedies.recycle import Recycle
from deadwatch.treat.remedies.restandardize import Restandardize
from deadwatch.treat.remedies.revive import Revive
from deadwatch.treat.remedies.swap import Swap
from deadwatch.treat.remedies.thermal_kick import ThermalKick

__all__ = [
    "BiasWarming",
    "NoBiasDecay",
    "PositiveBias",
    "Recycle",
    "Restandardize",
    "Revive",
    "Swap",
    "ThermalKick",
]
