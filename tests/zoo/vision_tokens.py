"""Images as tokens: transformers and multi-layer perceptrons."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.zoo.data import images
from tests.zoo.entry import Entry
from tests.zoo.parts import Residual, Transpose


def truncated(model: nn.Module, std: float = 0.02) -> nn.Module:
    """Truncated normal dense weights, zero biases."""
    for module in model.modules():
        if isinstance(module, nn.Linear):
            nn.init.trunc_normal_(module.weight, std=std)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    return model


class Attention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v)
        out: Tensor = self.out(y.transpose(1, 2).flatten(2))
        return out


def mlp(width: int, inner: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(width, inner), nn.GELU(), nn.Linear(inner, width))


def block(width: int, heads: int) -> nn.Sequential:
    return nn.Sequential(
        Residual(nn.Sequential(nn.LayerNorm(width), Attention(width, heads))),
        Residual(nn.Sequential(nn.LayerNorm(width), mlp(width, 4 * width))),
    )


class Patches(nn.Module):
    """Patches of images as tokens (B, T, D)."""

    def __init__(self, width: int, size: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, width, size, size)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.conv(x).flatten(2).mT
        return out


class ViT(nn.Module):
    def __init__(self, width: int, heads: int, depth: int, tokens: int) -> None:
        super().__init__()
        self.patches = Patches(width, 8)
        self.first = nn.Parameter(torch.zeros(1, 1, width))
        self.places = nn.Parameter(torch.randn(1, tokens + 1, width) * 0.02)
        self.blocks = nn.Sequential(*(block(width, heads) for _ in range(depth)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat([self.first.expand(len(x), -1, -1), self.patches(x)], 1) + self.places
        out: Tensor = self.head(self.norm(self.blocks(x))[:, 0])
        return out


def vit() -> nn.Module:
    """As in torchvision: Xavier dense layers with biases of 1e-6, a head of zeros."""
    model = ViT(128, 4, 3, 16)
    for module in model.blocks.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            nn.init.normal_(module.bias, std=1e-6)
    fan = 3 * 8 * 8
    nn.init.trunc_normal_(model.patches.conv.weight, std=fan**-0.5)
    nn.init.zeros_(model.patches.conv.bias)
    nn.init.zeros_(model.head.weight)
    return model


def deit() -> nn.Module:
    """The width and heads of DeiT-small, three blocks."""
    return truncated(ViT(384, 6, 3, 16))


class Windowed(nn.Module):
    """Attention within windows of images (N, H, W, C), shifted in every other block."""

    def __init__(self, width: int, heads: int, window: int, shift: int) -> None:
        super().__init__()
        self.attention, self.window, self.shift = Attention(width, heads), window, shift

    def forward(self, x: Tensor) -> Tensor:
        n, size, _, c = x.shape
        w, many = self.window, size // self.window
        x = torch.roll(x, (-self.shift, -self.shift), (1, 2))
        x = x.view(n, many, w, many, w, c).transpose(2, 3).reshape(-1, w * w, c)
        x = self.attention(x).view(n, many, many, w, w, c).transpose(2, 3)
        return torch.roll(x.reshape(n, size, size, c), (self.shift, self.shift), (1, 2))


def swin_block(width: int, heads: int, shift: int) -> nn.Sequential:
    return nn.Sequential(
        Residual(nn.Sequential(nn.LayerNorm(width), Windowed(width, heads, 4, shift))),
        Residual(nn.Sequential(nn.LayerNorm(width), mlp(width, 4 * width))),
    )


class Merge(nn.Module):
    """Four neighbours become one with twice the channels."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm, self.down = nn.LayerNorm(4 * width), nn.Linear(4 * width, 2 * width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        n, size, _, c = x.shape
        x = x.view(n, size // 2, 2, size // 2, 2, c).transpose(2, 3).flatten(3)
        out: Tensor = self.down(self.norm(x))
        return out


class Swin(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.patches, self.norm = nn.Conv2d(3, 48, 4, 4), nn.LayerNorm(48)
        self.blocks = nn.Sequential(
            *(swin_block(48, 2, 0), swin_block(48, 2, 2), Merge(48)),
            *(swin_block(96, 4, 0), swin_block(96, 4, 2), nn.LayerNorm(96)),
        )
        self.head = nn.Linear(96, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.patches(x).permute(0, 2, 3, 1))
        out: Tensor = self.head(self.blocks(x).mean((1, 2)))
        return out


def swin() -> nn.Module:
    return truncated(Swin())


class Mean(nn.Module):
    """The mean over tokens."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mean(1)


def mixer(width: int = 128, tokens: int = 64, depth: int = 4) -> nn.Module:
    def both() -> nn.Module:
        across = nn.Sequential(nn.LayerNorm(width), Transpose(), mlp(tokens, 64), Transpose())
        within = nn.Sequential(nn.LayerNorm(width), mlp(width, 4 * width))
        return nn.Sequential(Residual(across), Residual(within))

    model = nn.Sequential(
        *(Patches(width, 4), *(both() for _ in range(depth))),
        *(nn.LayerNorm(width), Mean(), nn.Linear(width, 10)),
    )
    for module in model.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            nn.init.normal_(module.bias, std=1e-6)
    nn.init.zeros_(model[-1].weight)
    return model


class SpatialGate(nn.Module):
    """gMLP's gate, which begins as one."""

    def __init__(self, width: int, tokens: int) -> None:
        super().__init__()
        self.norm, self.across = nn.LayerNorm(width), nn.Linear(tokens, tokens)
        nn.init.uniform_(self.across.weight, -1e-3, 1e-3)
        nn.init.ones_(self.across.bias)

    def forward(self, x: Tensor) -> Tensor:
        kept, gate = x.chunk(2, -1)
        out: Tensor = kept * self.across(self.norm(gate).mT).mT
        return out


def gmlp(width: int = 96, tokens: int = 64, depth: int = 4) -> nn.Module:
    def one() -> nn.Module:
        return nn.Sequential(
            *(nn.LayerNorm(width), nn.Linear(width, 4 * width), nn.GELU()),
            *(SpatialGate(2 * width, tokens), nn.Linear(2 * width, width)),
        )

    blocks = (Residual(one()) for _ in range(depth))
    return nn.Sequential(
        *(Patches(width, 4), *blocks, nn.LayerNorm(width), Mean(), nn.Linear(width, 10))
    )


ENTRIES = {
    "ViT": Entry("arXiv:2010.11929; torchvision", vit, images(64, 32), lr=3e-4),
    "DeiT-small": Entry("arXiv:2012.12877", deit, images(32, 32), lr=3e-4),
    "Swin": Entry("arXiv:2103.14030", swin, images(32, 32), lr=3e-4),
    "MLP-Mixer": Entry("arXiv:2105.01601", mixer, images(32, 32)),
    "gMLP": Entry("arXiv:2105.08050", gmlp, images(32, 32)),
}
