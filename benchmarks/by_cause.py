"""Which remedy helps against which cause of death? The runs of `benchmarks.efficacy`, by cause.

Nothing is trained here: the scenarios in ``efficacy.json`` are grouped by what kills their units,
and each remedy's points above doing nothing are averaged over the scenarios of a group.

    python -m benchmarks.by_cause [--write]

With ``--write`` the table goes into ``docs/dying.md``.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from statistics import mean

from benchmarks.quoting import write
from benchmarks.results import NONE, Results, load, markdown, sample
from benchmarks.scenarios import SCENARIOS
from deadwatch.records.gauged import Cause

EFFICACY = Path(__file__).parent / "efficacy.json"

CAUSES: dict[Cause, tuple[str, ...]] = {
    # Dead before the first step: negative biases, or deep and narrow.
    "birth": ("biases −3", "attention −3", "14 × 6", "born dead"),
    # One update at 300 times the rate, or rates at which single updates replace a layer.
    "update": ("spike", "CNN, Adam", "MLP, Adam", "batch norm", "RMSprop", "autoencoder"),
    # A penalty on the latents pushes their biases down.
    "bias": ("sparse",),
    # Inputs or targets are others from one task to the next.
    "data": ("permuted", "relabelled", "bandit"),
    # High rates, too, but no update stands out.
    "weights": ("MLP, SGD", "residual", "transformer", "diabetes"),
}
"""The scenarios by what kills their units, in the words of `deadwatch.records.Death`.

As they are described in `benchmarks.scenarios`. Whether a high rate is called ``"update"`` or
``"weights"`` follows what ``Watch(advice=True)`` says of most of the units that died. Healthy
scenarios are in none.
"""

REMEDIES = (
    *('"revive"', "Recycle", "Restandardize", "BiasWarming, quiet", "BiasWarming, closed loop"),
    *("ThermalKick, quiet", "Swap, quiet", "Swap, annealed"),
)
"""The arms that a user may give a `Policy` as they are: quiet ones, and guarded."""


def above_none(results: Results, arm: str, names: Sequence[str]) -> dict[str, float]:
    """Points of an arm above doing nothing, by scenario; higher is better also for losses."""
    known = {one.name: one for one in SCENARIOS}
    return {
        name: sample(known[name], results, arm).above(sample(known[name], results, NONE))
        for name in names
    }


def by_cause(results: Results) -> dict[Cause, dict[str, dict[str, float]]]:
    """Cause → remedy → scenario → points above doing nothing."""
    return {
        cause: {arm: above_none(results, arm, names) for arm in REMEDIES}
        for cause, names in CAUSES.items()
    }


def best_by_cause(results: Results | None = None) -> dict[Cause, tuple[str, float]]:
    """For each cause the remedy with the best record, and its mean points above doing nothing.

    Args:
        results: Results of `benchmarks.efficacy`; by default those of ``efficacy.json``.
    """
    means = {
        cause: {arm: mean(points.values()) for arm, points in arms.items()}
        for cause, arms in by_cause(load(EFFICACY) if results is None else results).items()
    }
    return {cause: max(of.items(), key=lambda pair: pair[1]) for cause, of in means.items()}


def table(results: Results) -> str:
    """A row for each remedy, a column for each cause; the best of a column is bold."""
    best = {cause: arm for cause, (arm, _) in best_by_cause(results).items()}
    found = by_cause(results)
    rows = [["points above doing nothing", *(f"{cause} ({len(CAUSES[cause])})" for cause in found)]]
    for arm in REMEDIES:
        cells = [told(found[cause][arm], bold=arm == best[cause]) for cause in found]
        rows.append([arm, *cells])
    return markdown(rows)


def told(points: dict[str, float], bold: bool) -> str:
    """The mean, and behind it the worst scenario of several."""
    middle = f"{mean(points.values()):+.1f}"
    middle = f"**{middle}**" if bold else middle
    return middle if len(points) == 1 else f"{middle} (worst {min(points.values()):+.1f})"


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table, and write it into the document if asked to."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--write", action="store_true", help="into docs/dying.md, too")
    wanted = parser.parse_args(arguments).write
    made = table(load(EFFICACY))
    print(made)
    if wanted:
        write("causes", made)


if __name__ == "__main__":
    main()
