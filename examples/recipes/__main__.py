"""All recipes: prints their tables, and writes them into ``docs/dying.md``.

python -m examples.recipes [--only gan_generator …] [--seeds 3] [--write]
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from benchmarks.quoting import write
from examples.recipes import (
    attention_scorer,
    continual_learning,
    contrastive_encoder,
    gan_generator,
    sparse_autoencoder,
)
from examples.recipes.frame import Recipe

RECIPES: dict[str, Recipe[Any]] = {
    "gan_generator": gan_generator.RECIPE,
    "contrastive_encoder": contrastive_encoder.RECIPE,
    "attention_scorer": attention_scorer.RECIPE,
    "sparse_autoencoder": sparse_autoencoder.RECIPE,
    "continual_learning": continual_learning.RECIPE,
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run them, and print and write what comes of it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=list(RECIPES), default=list(RECIPES))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--write", action="store_true", help="into docs/dying.md, too")
    options = parser.parse_args(arguments)
    for name in options.only:
        recipe = RECIPES[name]
        table = recipe.table(recipe.runs(options.seeds, quick=False))
        print(f"\n{recipe.name}\n\n{table}", flush=True)
        if options.write:
            write(name, table)


if __name__ == "__main__":
    main()
