"""Made-up data with the statistics of real ones, so that nothing has to be downloaded.

Images have the 1/f spectrum and the correlated colours of photographs, tokens the frequencies of
words (Zipf), columns of tables heavy tails; all hold something about their target to be learned.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Generator, Tensor

from tests.zoo.entry import Batch

Maker = Callable[[Generator], Batch]


def standardised(x: Tensor, *axes: int) -> Tensor:
    return (x - x.mean(axes, keepdim=True)) / x.std(axes, keepdim=True)


def fields(count: int, channels: int, size: int, generator: Generator) -> Tensor:
    """Smooth random images (N, C, H, W): amplitudes fall with the frequency."""
    white = torch.randn(count, channels, size, size, generator=generator)
    white = 0.8 * white[:, :1] + 0.6 * white  # the same edges in all colours
    height, width = torch.fft.fftfreq(size), torch.fft.rfftfreq(size)
    frequency = (height[:, None] ** 2 + width**2).sqrt().clamp(min=1 / size)
    return standardised(
        torch.fft.irfft2(torch.fft.rfft2(white) / frequency, s=(size, size)), 0, 2, 3
    )


def pictures(count: int, channels: int, size: int, classes: int, generator: Generator) -> Batch:
    """Images (N, C, H, W) of mean 0 and std 1 with what their classes have in common."""
    known = fields(classes, channels, size, Generator().manual_seed(classes))
    target = torch.randint(classes, (count,), generator=generator)
    found = known[target] + fields(count, channels, size, generator)
    return Batch((standardised(found, 0, 2, 3),), target)


def images(count: int, size: int, channels: int = 3, classes: int = 10) -> Maker:
    return lambda generator: pictures(count, channels, size, classes, generator)


def words(count: int, length: int, vocabulary: int, generator: Generator) -> Tensor:
    """Tokens (N, T) with Zipf's frequencies; every other one follows from that before it."""
    frequency = 1 / torch.arange(2, vocabulary + 2)
    drawn = torch.multinomial(frequency, count * length, True, generator=generator)
    drawn = drawn.view(count, length)
    follows = torch.rand(count, length, generator=generator) < 0.5
    for step in range(1, length):
        after = (7 * drawn[:, step - 1] + 3) % vocabulary
        drawn[:, step] = torch.where(follows[:, step], after, drawn[:, step])
    return drawn


def texts(count: int, length: int, vocabulary: int) -> Maker:
    """Tokens, and the token after each."""

    def make(generator: Generator) -> Batch:
        found = words(count, length + 1, vocabulary, generator)
        return Batch((found[:, :-1],), found[:, 1:])

    return make


def labelled_texts(count: int, length: int, vocabulary: int, classes: int = 2) -> Maker:
    """Tokens, and a class for each text."""

    def make(generator: Generator) -> Batch:
        found = words(count, length, vocabulary, generator)
        return Batch((found,), found[:, :3].sum(1) % classes)

    return make


def table(count: int, features: int, generator: Generator) -> Tensor:
    """Rows (N, F), standardised: correlated columns, some with heavy tails."""
    mixing = torch.randn(features, features, generator=Generator().manual_seed(features))
    found = torch.randn(count, features, generator=generator) @ (mixing / features**0.5)
    tailed = torch.arange(features) % 3 == 0
    return standardised(torch.where(tailed, found.expm1().clamp(max=20), found), 0)


def features(count: int, size: int, outputs: int = 1) -> Maker:
    """A table, and values that depend on it."""

    def make(generator: Generator) -> Batch:
        x = table(count, size, generator)
        known = torch.randn(size, outputs, generator=Generator().manual_seed(1))
        return Batch((x,), torch.tanh(x @ known / size**0.5 * 2))

    return make


def labelled(count: int, size: int, classes: int = 10) -> Maker:
    """A table, and classes that depend on it."""

    def make(generator: Generator) -> Batch:
        x = table(count, size, generator)
        known = torch.randn(size, classes, generator=Generator().manual_seed(1))
        return Batch((x,), (x @ known).argmax(1))

    return make


def series(count: int, channels: int, length: int, generator: Generator) -> Tensor:
    """Frames of speech-like features (N, C, T) of mean 0 and std 1 that change slowly."""
    found = torch.randn(count, channels, length, generator=generator)
    for step in range(1, length):
        found[..., step] = 0.9 * found[..., step - 1] + 0.44 * found[..., step]
    return standardised(found, 0, 2)
