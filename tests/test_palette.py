"""The tab's colours, as people with each kind of colour blindness see them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

import deadwatch.show

Colour = npt.NDArray[np.float64]

MODULE = (Path(deadwatch.show.__path__[0]) / "web/index.js").read_text("utf-8")

SIGHT = {  # Machado, Oliveira and Fernandes 2009, at full severity, on linear RGB
    "normal": np.eye(3),
    "protanopia": np.array(
        [
            [0.152286, 1.052583, -0.204868],
            [0.114503, 0.786281, 0.099216],
            [-0.003882, -0.048116, 1.051998],
        ]
    ),
    "deuteranopia": np.array(
        [
            [0.367322, 0.860646, -0.227968],
            [0.280085, 0.672501, 0.047413],
            [-0.01182, 0.04294, 0.968881],
        ]
    ),
    "tritanopia": np.array(
        [
            [1.255528, -0.076749, -0.178779],
            [-0.078411, 0.930809, 0.147602],
            [0.004733, 0.691367, 0.3039],
        ]
    ),
}

LUMINANCE = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])

ALIKE = 15.0
"""CIE 1976 colour difference; 2 is what can just be seen side by side."""


def of(theme: str, name: str) -> list[Colour]:
    """The colours of a name of a theme in the front end."""
    text = MODULE[MODULE.index(f"  {theme}: {{") :]
    found = re.search(rf"\b{name}: (\[[^\]]*\]|\"[^\"]*\")", text)
    assert found is not None
    codes = re.findall(r"#(\w\w)(\w\w)(\w\w)", found[1])
    return [np.array([int(part, 16) for part in code], np.float64) for code in codes]


def seen(colour: Colour, sight: str) -> Colour:
    """A colour as CIELAB."""
    share = colour / 255
    linear = np.where(share <= 0.04045, share / 12.92, ((share + 0.055) / 1.055) ** 2.4)
    xyz = LUMINANCE @ np.clip(SIGHT[sight] @ linear, 0, 1) / LUMINANCE.sum(1)
    x, y, z = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


def shades(theme: str) -> Iterator[tuple[str, Colour]]:
    """What a cell of a unit may look like; alive ones, treated or not, are one kind here."""
    for name in ("rare", "saturated", "relapsed", "unseen"):
        yield name, of(theme, name)[0]
    yield "dead", of(theme, "dead")[0]
    yield "dead", of(theme, "deadFew")[0]
    for name in ("alive", "revived"):
        low, high = of(theme, name)
        yield from (("alive", low + (high - low) * share) for share in np.linspace(0, 1, 6))
        yield "alive", of(theme, f"{name}Alone")[0]


@pytest.mark.parametrize("sight", SIGHT)
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_states_are_told_apart_whatever_colours_are_seen(theme: str, sight: str) -> None:
    for (one, first), (other, second) in combinations(shades(theme), 2):
        if one != other:
            difference = np.linalg.norm(seen(first, sight) - seen(second, sight))
            assert difference > ALIKE, (one, first, other, second)


@pytest.mark.parametrize("sight", SIGHT)
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_the_dead_ratio_goes_with_lightness_whatever_colours_are_seen(
    theme: str, sight: str
) -> None:
    page = seen(of(theme, "page")[0], sight)[0]
    stand_out = [abs(seen(stop, sight)[0] - page) for stop in of(theme, "ramp")]
    assert stand_out == sorted(stand_out)
    zero = seen(of(theme, "zero")[0], sight)
    assert all(np.linalg.norm(seen(stop, sight) - zero) > ALIKE for stop in of(theme, "ramp"))
