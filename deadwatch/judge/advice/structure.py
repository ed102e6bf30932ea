"""Structure: what the order of layers does to units."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

from deadwatch.judge.advice.facts import Facts
from deadwatch.judge.advice.rule import Hit, rule


@rule(
    "DW103",
    "A bias before a norm",
    reason="Batch norm subtracts its mean, and with it whatever a bias adds: the bias has no "
    "effect, gets no gradient, and warming it brings nothing back. The norm's own shift does.",
    source="Ioffe & Szegedy 2015, arXiv:1502.03167, section 3.2",
)
def bias_before_norm(facts: Facts) -> Iterator[Hit]:
    """A layer with a bias right before a batch norm."""
    for site in facts.sites:
        for layer, norm in pairwise(site.producers):
            if norm.kind == "batch_norm" and layer.bias and layer.branch == norm.branch:
                message = f"{layer.bias} is added right before {norm.module}, which takes it out"
                code = f"model.get_submodule({layer.module!r}).bias = None  # before the optimizer"
                yield Hit("info", (layer.bias,), message, code=code)
