"""Sequences of signals, and networks that make or rebuild images."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from tests.zoo.data import fields, pictures, series
from tests.zoo.entry import Batch, Entry, adam, squared
from tests.zoo.parts import CONVOLUTIONS, Residual, xavier


class Causal(nn.Conv1d):
    """Sees only what was before."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(F.pad(x, (self.dilation[0] * (self.kernel_size[0] - 1), 0)))


def tcn(width: int = 32) -> nn.Module:
    """Dilated causal blocks, weights kept apart from their norm.

    What the reference draws for them with 0.01, before any forward, `weight_norm` computes anew
    from torch's own initialisation; only the skip's weights stay so.
    """

    def layer(inputs: int, dilation: int) -> tuple[nn.Module, ...]:
        made = Causal(inputs, width, 3, dilation=dilation)
        return nn.utils.parametrizations.weight_norm(made), nn.ReLU(), nn.Dropout(0.2)

    def block(inputs: int, dilation: int) -> nn.Module:
        skip = nn.Conv1d(inputs, width, 1) if inputs != width else None
        if skip is not None:
            nn.init.normal_(skip.weight, std=0.01)
        main = nn.Sequential(*layer(inputs, dilation), *layer(width, dilation))
        return Residual(main, skip, nn.ReLU())

    blocks = (block(width if n else 8, 2**n) for n in range(4))
    return nn.Sequential(*blocks, nn.Conv1d(width, 8, 1))


class WaveNet(nn.Module):
    """Gated dilated convolutions with residual and skip connections, then two ReLUs."""

    def __init__(self, width: int = 32, classes: int = 64) -> None:
        super().__init__()
        self.first = Causal(1, width, 2)
        dilations = [1, 2, 4, 8, 16] * 2
        self.filters = nn.ModuleList(Causal(width, width, 2, dilation=n) for n in dilations)
        self.gates = nn.ModuleList(Causal(width, width, 2, dilation=n) for n in dilations)
        self.residuals = nn.ModuleList(nn.Conv1d(width, width, 1) for _ in dilations)
        self.skips = nn.ModuleList(nn.Conv1d(width, 64, 1) for _ in dilations)
        self.last = nn.Sequential(
            nn.ReLU(), nn.Conv1d(64, 64, 1), nn.ReLU(), nn.Conv1d(64, classes, 1)
        )

    def forward(self, x: Tensor) -> Tensor:
        x, found = self.first(x), []
        layers = self.filters, self.gates, self.residuals, self.skips
        for filtered, gate, residual, skip in zip(*layers, strict=True):
            y = torch.tanh(filtered(x)) * torch.sigmoid(gate(x))
            x = x + residual(y)
            found.append(skip(y))
        out: Tensor = self.last(torch.stack(found).sum(0)).mT
        return out


class Statistics(nn.Module):
    """Mean and standard deviation over time."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x.mean(-1), x.std(-1)], 1)


def x_vector(width: int = 64) -> nn.Module:
    """A TDNN whose norms come after its ReLUs, as in Kaldi."""

    def layer(inputs: int, size: int, dilation: int, outputs: int) -> tuple[nn.Module, ...]:
        made = nn.Conv1d(inputs, outputs, size, dilation=dilation)
        return made, nn.ReLU(), nn.BatchNorm1d(outputs, affine=False)

    def dense(inputs: int) -> tuple[nn.Module, ...]:
        return nn.Linear(inputs, width), nn.ReLU(), nn.BatchNorm1d(width, affine=False)

    return nn.Sequential(
        *(*layer(24, 5, 1, width), *layer(width, 3, 2, width), *layer(width, 3, 3, width)),
        *(*layer(width, 1, 1, width), *layer(width, 1, 1, 3 * width), Statistics()),
        *(*dense(6 * width), *dense(width), nn.Linear(width, 10)),
    )


def frames(count: int, channels: int, length: int) -> Callable[[Generator], Batch]:
    """Features of speech, and the class that their first one has on average."""

    def make(generator: Generator) -> Batch:
        x = series(count, channels, length, generator)
        return Batch((x,), (x[:, 0].mean(-1) * 10).long().clamp(-5, 4) + 5)

    return make


def forecasts(generator: Generator) -> Batch:
    x = series(32, 8, 101, generator)
    return Batch((x[..., :-1],), x[..., 1:])


def waves(generator: Generator) -> Batch:
    """A waveform in [−1, 1], and its next value, quantised."""
    time = torch.arange(401) / 50
    pitch = 1 + 4 * torch.rand(8, 3, 1, generator=generator)
    phase = 6.3 * torch.rand(8, 3, 1, generator=generator)
    x = (torch.sin(pitch * 6.3 * time + phase)).mean(1, keepdim=True)
    return Batch((x[..., :-1],), ((x[:, 0, 1:] + 1) * 31.9).long())


# ── images out of images ────────────────────────────────────────────────────────────────


class UNet(nn.Module):
    """Ronneberger et al. 2015, with a fourth of the channels and two levels."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        w = width
        self.down = nn.ModuleList([self.two(1, w), self.two(w, 2 * w), self.two(2 * w, 4 * w)])
        self.up = nn.ModuleList(
            [nn.ConvTranspose2d(4 * w, 2 * w, 2, 2), nn.ConvTranspose2d(2 * w, w, 2, 2)]
        )
        self.back = nn.ModuleList([self.two(4 * w, 2 * w), self.two(2 * w, w)])
        self.head = nn.Conv2d(w, 2, 1)
        for module in self.modules():
            if isinstance(module, CONVOLUTIONS):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
                nn.init.zeros_(module.bias)

    @staticmethod
    def two(inputs: int, outputs: int) -> nn.Module:
        return nn.Sequential(
            *(nn.Conv2d(inputs, outputs, 3, padding=1), nn.ReLU(True)),
            *(nn.Conv2d(outputs, outputs, 3, padding=1), nn.ReLU(True)),
        )

    def forward(self, x: Tensor) -> Tensor:
        kept = []
        for level, down in enumerate(self.down):
            x = down(F.max_pool2d(x, 2) if level else x)
            kept.append(x)
        kept.pop()
        for up, back in zip(self.up, self.back, strict=True):
            x = back(torch.cat([kept.pop(), up(x)], 1))
        out: Tensor = self.head(x)
        return out


def masks(generator: Generator) -> Batch:
    x = fields(8, 1, 48, generator)
    return Batch((x,), (x[:, 0] > 0).long())


def dcgan(model: nn.Module) -> nn.Module:
    """Weights normal with 0.02; those of norms around one."""
    for module in model.modules():
        if isinstance(module, CONVOLUTIONS):
            nn.init.normal_(module.weight, 0.0, 0.02)
        elif isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.weight, 1.0, 0.02)
            nn.init.zeros_(module.bias)
    return model


def generator_of_dcgan(width: int = 32) -> nn.Module:
    def layer(inputs: int, outputs: int, stride: int, padding: int) -> tuple[nn.Module, ...]:
        made = nn.ConvTranspose2d(inputs, outputs, 4, stride, padding, bias=False)
        return made, nn.BatchNorm2d(outputs), nn.ReLU(True)

    return dcgan(
        nn.Sequential(
            *(*layer(100, 4 * width, 1, 0), *layer(4 * width, 2 * width, 2, 1)),
            *(*layer(2 * width, width, 2, 1), nn.ConvTranspose2d(width, 3, 4, 2, 1, bias=False)),
            nn.Tanh(),
        )
    )


def discriminator_of_dcgan(width: int = 32) -> nn.Module:
    def layer(inputs: int, outputs: int) -> tuple[nn.Module, ...]:
        made = nn.Conv2d(inputs, outputs, 4, 2, 1, bias=False)
        return made, nn.BatchNorm2d(outputs), nn.LeakyReLU(0.2, True)

    return dcgan(
        nn.Sequential(
            *(nn.Conv2d(3, width, 4, 2, 1, bias=False), nn.LeakyReLU(0.2, True)),
            *(*layer(width, 2 * width), *layer(2 * width, 4 * width)),
            *(nn.Conv2d(4 * width, 1, 4, bias=False), nn.Flatten(), nn.Sigmoid()),
        )
    )


def noise(generator: Generator) -> Batch:
    drawn = torch.randn(64, 100, 1, 1, generator=generator)
    return Batch((drawn,), torch.tanh(fields(64, 3, 32, generator)))


def real_or_not(generator: Generator) -> Batch:
    """Photographs, and rougher ones."""
    real = torch.tanh(fields(64, 3, 32, generator))
    rough = torch.tanh(torch.randn(64, 3, 32, 32, generator=generator) * 0.3 + 0.7 * real)
    mixed = torch.arange(64) % 2
    return Batch((torch.where(mixed.view(-1, 1, 1, 1) > 0, real, rough),), mixed.float()[:, None])


class VAE(nn.Module):
    """Kingma & Welling 2013 on digits, one hidden layer to and fro."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden, self.both = nn.Linear(784, 400), nn.Linear(400, 40)
        self.back, self.out = nn.Linear(20, 400), nn.Linear(400, 784)

    def forward(self, x: Tensor) -> Tensor:
        mean, logvar = self.both(F.relu(self.hidden(x))).chunk(2, -1)
        z = mean + torch.randn_like(mean) * (0.5 * logvar).exp()
        out: Tensor = torch.sigmoid(self.out(F.relu(self.back(z))))
        return out


def digits(generator: Generator) -> Batch:
    """Strokes on black, in [0, 1], as MNIST's: four of five pixels are 0."""
    x = (fields(320, 1, 28, generator).flatten(1) - 0.8).clamp(0, 1)
    return Batch((x,), x)


def conv_autoencoder() -> nn.Module:
    return nn.Sequential(
        *(nn.Conv2d(3, 16, 3, 2, 1), nn.ReLU(), nn.Conv2d(16, 32, 3, 2, 1), nn.ReLU()),
        *(nn.Conv2d(32, 64, 3, 2, 1), nn.ReLU()),
        *(nn.ConvTranspose2d(64, 32, 4, 2, 1), nn.ReLU()),
        *(nn.ConvTranspose2d(32, 16, 4, 2, 1), nn.ReLU(), nn.ConvTranspose2d(16, 3, 4, 2, 1)),
    )


def rebuilt(generator: Generator) -> Batch:
    (x,) = pictures(32, 3, 32, 10, generator).inputs
    return Batch((x,), x)


class Diffusion(nn.Module):
    """A denoiser in the manner of DDPM: group norm, SiLU, features of the time step."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.time = nn.Sequential(nn.Linear(32, 4 * width), nn.SiLU(), nn.Linear(4 * width, width))
        self.first = nn.Conv2d(3, width, 3, padding=1)
        self.norm1, self.conv1 = nn.GroupNorm(8, width), nn.Conv2d(width, width, 3, padding=1)
        self.norm2, self.conv2 = nn.GroupNorm(8, width), nn.Conv2d(width, width, 3, padding=1)
        self.norm3, self.last = nn.GroupNorm(8, width), nn.Conv2d(width, 3, 3, padding=1)
        nn.init.zeros_(self.conv2.weight)
        nn.init.zeros_(self.last.weight)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        angles = time[:, None] * 1000 * torch.exp(-torch.arange(16) * 0.576)
        emb = self.time(torch.cat([angles.sin(), angles.cos()], 1))[:, :, None, None]
        x = self.first(x)
        y = self.conv1(F.silu(self.norm1(x))) + emb
        x = x + self.conv2(F.silu(self.norm2(y)))
        out: Tensor = self.last(F.silu(self.norm3(x)))
        return out


def noised(generator: Generator) -> Batch:
    clean, noise = fields(16, 3, 32, generator), torch.randn(16, 3, 32, 32, generator=generator)
    time = torch.rand(16, generator=generator)
    share = time[:, None, None, None]
    return Batch(((1 - share).sqrt() * clean + share.sqrt() * noise, time), noise)


def judged(out: Tensor, target: Tensor) -> Tensor:
    return F.binary_cross_entropy(out, target)


ENTRIES = {
    "TCN": Entry("arXiv:1803.01271", tcn, forecasts, squared),
    "WaveNet": Entry("arXiv:1609.03499", lambda: xavier(WaveNet()), waves),
    "x-vector": Entry("Snyder et al. 2018", x_vector, frames(320, 24, 40)),
    "U-Net": Entry("arXiv:1505.04597", UNet, masks, lr=3e-4),
    "DCGAN generator": Entry("arXiv:1511.06434", generator_of_dcgan, noise, squared, 2e-4, adam),
    "DCGAN discriminator": Entry(
        "arXiv:1511.06434", discriminator_of_dcgan, real_or_not, judged, 2e-4, adam
    ),
    "VAE": Entry("arXiv:1312.6114", VAE, digits, judged, optimizer=adam),
    "Convolutional autoencoder": Entry("Masci et al. 2011", conv_autoencoder, rebuilt, squared),
    "DDPM": Entry("arXiv:2006.11239", Diffusion, noised, squared, 2e-4),
}
