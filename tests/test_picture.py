"""The picture of sites × windows, and what a viewer sees who has no plugin."""

from __future__ import annotations

import io
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from benchmarks.board import tensorboard
from deadwatch.show.picture import COLUMNS, EVERY, ROWS, UNJUDGED, History, coloured, enlarged
from tests.histories import HOSTILE, outcome, refusal, site, treatment, window, written
from tests.test_plugin import asked, eventually


def shown(picture: Any, rows: int, columns: int) -> Any:
    """The colours of the cells of a picture."""
    height, width = picture.shape[0] // rows, picture.shape[1] // columns
    cells = picture[height // 2 :: height, width // 2 :: width]
    assert (enlarged(cells) == picture).all()
    return cells


def drawn(*states: dict[str, list[int]]) -> History:
    history = History()
    for index, sites in enumerate(states):
        history.add(window(index, *(site(name, units) for name, units in sites.items())))
    return history


def test_each_cell_is_the_colour_of_its_dead_ratio_and_grey_where_nothing_was_judged() -> None:
    history = drawn({"a": [2, 5]}, {"a": [5, 5], "b": [2, 2]}, {"b": [1, 1], "a": []})
    assert history.names == ["a", "b"]
    cells = shown(history.picture(), 2, 3)
    expected = coloured(np.array([[0.5, 0, np.nan], [np.nan, 1, np.nan]]))
    assert (cells == expected).all()
    assert tuple(cells[1, 0]) == UNJUDGED


def test_colours_differ_in_lightness_and_one_dead_unit_from_none() -> None:
    def lightness(ratio: float) -> float:
        return float(coloured(np.array(ratio)) @ np.array([0.2126, 0.7152, 0.0722]))

    found = [lightness(ratio) for ratio in (0, 1 / 16_384, 0.25, 0.5, 1)]
    assert all(later - before > 15 for before, later in pairwise(found))
    assert abs(lightness(np.nan) - lightness(0)) > 100


@pytest.mark.parametrize("windows", [COLUMNS, COLUMNS + 1, 2 * COLUMNS + 1, 5 * COLUMNS + 3])
def test_a_long_run_loses_no_dead_window(windows: int) -> None:
    dead = {7, windows // 2, windows - 1}
    history = drawn(*({"a": [2 if index in dead else 5]} for index in range(windows)))
    picture = history.picture()
    width = min(16, -(-192 // len(history._columns)))
    assert picture.shape[1] // width <= COLUMNS
    each = history._each
    expected = np.zeros(-(-windows // each))
    expected[[index // each for index in dead]] = 1
    assert (shown(picture, 1, len(expected)) == coloured(expected[None])).all()


def test_a_deep_network_loses_no_dead_site() -> None:
    names = [f"s{n}" for n in range(2 * ROWS + 5)]
    history = drawn({name: [2 if name == "s700" else 5] for name in names})
    cells = shown(history.picture(), -(-len(names) // 3), 1)
    assert (cells == coloured(np.array(1.0))).all(-1).ravel().nonzero()[0].tolist() == [700 // 3]


def test_pictures_come_less_often_in_long_runs() -> None:
    history, drawn_at = History(), []
    for index in range(400):
        history.add(window(index, site("a", [5])))
        if history.due:
            history.picture()
            drawn_at.append(index)
    assert drawn_at[:EVERY] == list(range(EVERY))
    assert len(drawn_at) < 200
    assert drawn_at[-1] > 390


def test_nothing_is_drawn_of_nothing() -> None:
    history = History()
    assert not history.due
    history.add(window(0))
    assert not history.due


# ── without the plugin on the viewer's side ─────────────────────────────────────────────


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("logs")
    told = {
        "treatments": (treatment(1, [0], HOSTILE),),
        "refusals": (refusal(1, [1]),),
        "outcomes": (outcome(),),
    }
    sites = site("act", [2, 5, 5, 5]), site(HOSTILE, [2, 2])
    written(folder / "run", [window(0, *sites), window(1, *sites, **told), window(2, *sites)])
    return folder


def test_event_files_hold_curves_charts_pictures_and_texts(run: Path) -> None:
    events = EventAccumulator(str(run / "run"))
    events.Reload()
    tags = events.Tags()
    assert {"deadwatch/dead_ratio", "deadwatch/dead_ratio_of/act"} <= set(tags["scalars"])
    assert tags["images"] == ["deadwatch/layers"]
    texts = {"deadwatch/treatments", "deadwatch/outcomes", "deadwatch/layers_rows"}
    assert {f"{name}/text_summary" for name in texts} <= set(tags["tensors"])
    assert "custom_scalars__config__" in tags["tensors"]
    images = events.Images("deadwatch/layers")
    assert [image.step for image in images] == [9, 19, 29]
    pixels = np.asarray(Image.open(io.BytesIO(images[-1].encoded_image_string)))
    cells = shown(pixels, 2, 3)
    assert (cells == coloured(np.array([[0.25] * 3, [1.0] * 3]))).all()
    assert len(images[-1].encoded_image_string) < 2_000


@pytest.mark.parametrize("load_fast", ["true", "false"])
def test_tensorboard_without_the_plugin_shows_them_on_its_own_dashboards(
    run: Path, load_fast: str
) -> None:
    with tensorboard("--logdir", str(run), "--load_fast", load_fast, plugin=False) as url:
        plugins = eventually(f"{url}data/plugins_listing", lambda found: found["images"]["enabled"])
        assert "deadwatch" not in plugins
        tags = eventually(f"{url}data/plugin/scalars/tags", lambda found: "run" in found)
        assert {"deadwatch/dead_ratio", "deadwatch/dead_ratio_of/act"} <= set(tags["run"])
        images = eventually(f"{url}data/plugin/images/tags", lambda found: "run" in found)
        assert list(images["run"]) == ["deadwatch/layers"]
        texts = eventually(f"{url}data/plugin/text/tags", lambda found: "run" in found)
        assert "deadwatch/treatments/text_summary" in texts["run"]
        query = "run=run&tag=deadwatch/treatments/text_summary"
        (told,) = asked(f"{url}data/plugin/text/text?{query}")
        assert "Recycle" in told["text"]
        assert "<img" not in told["text"]
        layout = asked(f"{url}data/plugin/custom_scalars/layout")
        titles = [chart["title"] for chart in layout["category"][0]["chart"]]
        assert titles[0] == "dead ratio"
