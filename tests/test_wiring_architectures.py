"""Unit axes and wires of well-known architectures, and proof that the wires say what is so."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from deadwatch import Watch
from deadwatch.records import Site
from tests import architectures as nets
from tests.proof import prove_producers, prove_readers


@dataclass(frozen=True)
class Wired:
    """What is to be found of one site: its unit axis, and wires or the reason they are unknown."""

    dim: int
    made: str
    read: str


@dataclass(frozen=True)
class Case:
    """An architecture, its input and its sites."""

    name: str
    build: Callable[[], nn.Module]
    batch: Callable[[], Tensor]
    sites: dict[str, Wired]


def trace(case: Case) -> tuple[Any, Tensor, dict[str, Site]]:
    torch.manual_seed(0)
    model, x = case.build(), case.batch()
    with Watch(model, unit_dim={"act0": 1} if case.name == "heads" else None) as watch:
        model(x)
        sites = {name: report.site for name, report in watch.peek().items()}
    return model.eval(), x, sites


CASES = [
    Case(
        "basic-block",
        nets.basic_block,
        nets.images,
        {
            "act0": Wired(
                1,
                "<conv stem.weight[0:4] + stem.bias>",
                "<conv conv1.weight[:, 0:4] + conv1.bias> <conv down.weight[:, 0:4] + down.bias>",
            ),
            "act1": Wired(
                1,
                "<conv conv1.weight[0:6] + conv1.bias> <batch_norm bn1.weight[0:6] + bn1.bias>",
                "<conv conv2.weight[:, 0:6] + conv2.bias>",
            ),
            "act2": Wired(
                1,
                (
                    "<conv conv2.weight[0:6] + conv2.bias> "
                    "<batch_norm bn2.weight[0:6] + bn2.bias> "
                    "<conv down.weight[0:6] + down.bias> "
                    "<batch_norm bn3.weight[0:6] + bn3.bias>"
                ),
                "it is read by act3",
            ),
            "act3": Wired(
                1,
                (
                    "<conv conv4.weight[0:6] + conv4.bias> "
                    "<batch_norm bn4.weight[0:6] + bn4.bias> "
                    "<skip from act2>"
                ),
                "<linear head.weight[:, 0:6] + head.bias>",
            ),
        },
    ),
    Case(
        "grouped-bottleneck",
        nets.grouped_bottleneck,
        nets.images,
        {
            "2": Wired(
                1,
                "<conv 0.weight[0:8] + 0.bias> <batch_norm 1.weight[0:8] + 1.bias>",
                "<conv 3.weight[:, 0:8] + 3.bias in 4 groups>",
            ),
            "5": Wired(
                1,
                "<conv 3.weight[0:12] + 3.bias> <batch_norm 4.weight[0:12] + 4.bias>",
                "<conv 6.weight[:, 0:12] + 6.bias>",
            ),
        },
    ),
    Case(
        "inverted-residual",
        nets.inverted_residual,
        nets.images,
        {
            "1": Wired(
                1, "<conv 0.weight[0:6] + 0.bias>", "<conv 2.weight[:, 0:6] + 2.bias in 6 groups>"
            ),
            "4": Wired(
                1,
                "<conv 2.weight[0:6] + 2.bias> <batch_norm 3.weight[0:6] + 3.bias>",
                "<conv 5.weight[:, 0:6] + 5.bias in 6 groups>",
            ),
            "6": Wired(1, "<conv 5.weight[0:12] + 5.bias>", "<conv 7.weight[:, 0:12] + 7.bias>"),
        },
    ),
    Case(
        "dense-block",
        nets.dense_block,
        nets.images,
        {
            "act1": Wired(
                1,
                "<conv conv1.weight[0:4] + conv1.bias>",
                (
                    "<conv conv2.weight[:, 3:7] + conv2.bias> "
                    "<conv head.weight[:, 8:12] + head.bias>"
                ),
            ),
            "act2": Wired(
                1,
                "<conv conv2.weight[0:5] + conv2.bias>",
                (
                    "<conv conv3.weight[:, 0:5] + conv3.bias> "
                    "<conv head.weight[:, 12:17] + head.bias>"
                ),
            ),
            "act3": Wired(
                1,
                "cat stands between its producers and the activation",
                "<conv head.weight[:, 0:5] + head.bias>",
            ),
        },
    ),
    Case(
        "inception",
        nets.inception,
        nets.images,
        {
            "act1": Wired(
                1,
                "<conv conv1.weight[0:4] + conv1.bias>",
                "<linear head.weight[:, 0:64] + head.bias>",
            ),
            "act2": Wired(
                1,
                "<conv conv2.weight[0:5] + conv2.bias>",
                "<linear head.weight[:, 64:144] + head.bias>",
            ),
        },
    ),
    Case(
        "u-net",
        nets.u_net,
        nets.images,
        {
            "act1": Wired(
                1,
                "<conv conv1.weight[0:4] + conv1.bias>",
                (
                    "<conv conv2.weight[:, 0:4] + conv2.bias> "
                    "<conv conv4.weight[:, 5:9] + conv4.bias>"
                ),
            ),
            "act2": Wired(
                1,
                "<conv conv2.weight[0:6] + conv2.bias>",
                (
                    "<conv_transpose up.weight[0:6] + up.bias> "
                    "<conv head.weight[:, 4:10] + head.bias>"
                ),
            ),
            "act3": Wired(
                1,
                "<conv_transpose up.weight[:, 0:5] + up.bias>",
                "<conv conv4.weight[:, 0:5] + conv4.bias>",
            ),
            "act4": Wired(
                1, "<conv conv4.weight[0:4] + conv4.bias>", "<conv head.weight[:, 0:4] + head.bias>"
            ),
        },
    ),
    Case(
        "conv-next",
        nets.conv_next,
        lambda: torch.randn(2, 4, 5, 5),
        {
            "act": Wired(
                -1, "<linear up.weight[0:8] + up.bias>", "<linear down.weight[:, 0:8] + down.bias>"
            ),
        },
    ),
    Case(
        "pre-norm-transformer",
        lambda: nets.transformer(norm_first=True, batch_first=True),
        nets.tokens,
        {
            "act": Wired(
                -1,
                "<linear up.weight[0:10] + up.bias>",
                "<linear down.weight[:, 0:10] + down.bias>",
            ),
            "act2": Wired(
                -1,
                "<linear mix.weight[0:6] + mix.bias>",
                "<linear head.weight[:, 0:6] + head.bias>",
            ),
        },
    ),
    Case(
        "post-norm-transformer",
        lambda: nets.transformer(norm_first=False, batch_first=False),
        nets.tokens,
        {
            "act": Wired(
                -1,
                "<linear up.weight[0:10] + up.bias>",
                "<linear down.weight[:, 0:10] + down.bias>",
            ),
            "act2": Wired(
                -1,
                "add stands between its producers and the activation",
                "<linear head.weight[:, 0:6] + head.bias>",
            ),
        },
    ),
    Case(
        "heads",
        nets.heads,
        nets.tokens,
        {
            "act0": Wired(1, "it is produced by matmul", "it is read by matmul"),
            "act2": Wired(
                -1, "a reshape spreads its units over several axes", "it is read by matmul"
            ),
            "act1": Wired(
                -1, "it is produced by matmul", "it is read by scaled_dot_product_attention"
            ),
            "act3": Wired(
                -1,
                "it is produced by scaled_dot_product_attention",
                "<linear out.weight[:, 0:8] + out.bias>",
            ),
        },
    ),
    Case(
        "swi-glu-chunk",
        lambda: nets.swi_glu(lambda y: y.chunk(2, -1)),
        nets.tokens,
        {
            "act": Wired(-1, "<linear up.weight[5:10] + up.bias>", "it is read by mul"),
        },
    ),
    Case(
        "swi-glu-slices",
        lambda: nets.swi_glu(lambda y: (y[..., :5], y[..., 5:])),
        nets.tokens,
        {
            "act": Wired(-1, "<linear up.weight[5:10] + up.bias>", "it is read by mul"),
        },
    ),
    Case(
        "glu",
        nets.glu,
        lambda: torch.randn(4, 3, 9),
        {
            "1": Wired(1, "<conv 0.weight[4:8] + 0.bias>", "<conv 2.weight[:, 0:4] + 2.bias>"),
        },
    ),
    Case(
        "cross-stage",
        nets.cross_stage,
        nets.images,
        {
            "act1": Wired(
                1,
                "<conv conv1.weight[0:8] + conv1.bias>",
                (
                    "<conv conv2.weight[:, 0:4] + conv2.bias> "
                    "<conv head.weight[:, 0:4] + head.bias> "
                    "<conv head.weight[:, 4:8] + head.bias>"
                ),
            ),
            "act2": Wired(
                1,
                "<conv conv2.weight[0:4] + conv2.bias>",
                "<conv head.weight[:, 8:12] + head.bias>",
            ),
        },
    ),
    Case(
        "shuffle",
        nets.shuffle,
        nets.images,
        {
            "act1": Wired(
                1,
                "<conv conv1.weight[0:6] + conv1.bias>",
                "a reshape spreads its units over several axes",
            ),
            "act3": Wired(
                1, "fed by the activation act1", "<conv conv2.weight[:, 0:6] + conv2.bias>"
            ),
            "act2": Wired(
                1,
                "pixel_shuffle stands between its producers and the activation",
                "it is read by pixel_shuffle",
            ),
            "act4": Wired(
                1,
                "pixel_shuffle stands between its producers and the activation",
                "<conv head.weight[:, 0:8] + head.bias>",
            ),
        },
    ),
    Case(
        "point-net",
        nets.point_net,
        lambda: torch.randn(4, 5, 3),
        {
            "act1": Wired(
                1,
                "<conv conv1.weight[0:6] + conv1.bias> <batch_norm bn1.weight[0:6] + bn1.bias>",
                "<conv head.weight[:, 0:6] + head.bias> <conv head.weight[:, 6:12] + head.bias>",
            ),
        },
    ),
    Case(
        "vision-transformer",
        nets.vision_transformer,
        nets.images,
        {
            "act0": Wired(
                1,
                "<conv patch.weight[0:6] + patch.bias>",
                "<linear up.weight[:, 0:6] + up.bias shared>",
            ),
            "act1": Wired(
                -1,
                "<linear up.weight[0:8] + up.bias>",
                (
                    "<linear head.weight[:, 0:8] + head.bias> "
                    "<linear rest.weight[:, 0:8] + rest.bias>"
                ),
            ),
        },
    ),
    Case(
        "mixer",
        nets.mixer,
        nets.tokens,
        {
            "act0": Wired(
                -1,
                "<linear tokens.weight[0:7] + tokens.bias>",
                "<linear back.weight[:, 0:7] + back.bias>",
            ),
            "act1": Wired(
                -1,
                "<linear channels.weight[0:9] + channels.bias>",
                "<linear down.weight[:, 0:9] + down.bias>",
            ),
        },
    ),
    Case(
        "matrices",
        nets.matrices,
        nets.tokens,
        {
            "act0": Wired(-1, "<linear a[:, 0:7]>", "<linear b[0:7] + b1>"),
            "act1": Wired(-1, "<linear b[:, 0:8] + b1>", "<linear c[:, 0:8]>"),
            "act2": Wired(-1, "<linear c[0:5]>", "it is read by einsum"),
            "act3": Wired(-1, "it is produced by einsum", "it is read by matmul"),
            "act4": Wired(-1, "<linear f[:, 0:2]>", "it is read by code outside the forward"),
        },
    ),
    Case(
        "recurrent",
        nets.recurrent,
        lambda: torch.randint(9, (4, 5)),
        {
            "act0": Wired(-1, "it is produced by an embedding", "it is read by lstm"),
            "act1": Wired(
                -1,
                "it is produced by a recurrent layer",
                "<linear head.weight[:, 0:5] + head.bias>",
            ),
        },
    ),
    Case(
        "time-embedding",
        nets.time_embedding,
        nets.images,
        {
            "act": Wired(
                1,
                (
                    "<conv conv.weight[0:6] + conv.bias> "
                    "<linear time.weight[0:6] + time.bias> "
                    "<batch_norm norm.weight[0:6] + norm.bias>"
                ),
                "<conv head.weight[:, 0:6] + head.bias>",
            ),
        },
    ),
    Case(
        "normed-after",
        nets.normed_after,
        lambda: torch.randn(8, 6),
        {
            "1": Wired(
                -1,
                "<linear 0.weight[0:7] + 0.bias>",
                "<linear 3.weight[:, 0:7] + 3.bias behind a batch_norm>",
            ),
            "4": Wired(
                -1,
                "<linear 3.weight[0:5] + 3.bias>",
                "a layer_norm between it and its readers mixes the units",
            ),
        },
    ),
    Case(
        "added-after",
        nets.added_after,
        lambda: torch.randn(8, 6),
        {
            "act0": Wired(
                -1,
                "<linear a.weight[0:6] + a.bias>",
                (
                    "<linear c.weight[:, 0:6] + c.bias shared> "
                    "<linear e.weight[:, 0:6] + e.bias shared> "
                    "<linear d.weight[:, 0:6] + d.bias shared>"
                ),
            ),
            "act1": Wired(
                -1,
                "<linear b.weight[0:6] + b.bias>",
                (
                    "<linear c.weight[:, 0:6] + c.bias shared> "
                    "<linear e.weight[:, 0:6] + e.bias shared> "
                    "<linear d.weight[:, 0:6] + d.bias shared>"
                ),
            ),
            "act2": Wired(
                -1,
                "mul stands between its producers and the activation",
                "<linear d.weight[:, 0:6] + d.bias shared>",
            ),
        },
    ),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_unit_axis_and_wires(case: Case) -> None:
    _, _, sites = trace(case)
    assert {
        name: Wired(
            site.unit_dim,
            site.producers_note or " ".join(map(str, site.producers)),
            site.consumers_note or " ".join(map(str, site.consumers)),
        )
        for name, site in sites.items()
    } == case.sites


# ── proof ───────────────────────────────────────────────────────────────────────────────────


def known(side: str) -> list[Any]:
    """All sites whose wires on one side are known, as the table has it."""
    return [
        pytest.param(case, name, id=f"{case.name}-{name}")
        for case in CASES
        for name, wired in case.sites.items()
        if getattr(wired, side).startswith("<")
    ]


@pytest.mark.parametrize(("case", "name"), known("read"))
def test_zeroed_columns_do_what_a_zeroed_unit_does(case: Case, name: str) -> None:
    model, x, sites = trace(case)
    prove_readers(model, x, sites[name])


@pytest.mark.parametrize(("case", "name"), known("made"))
def test_rows_of_the_producers_are_their_unit(case: Case, name: str) -> None:
    model, x, sites = trace(case)
    prove_producers(model, x, sites[name], sites)
