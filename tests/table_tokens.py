"""Rows of networks on tokens, (B, T, D): transformers, mixers, recurrent nets."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.setting import Setting


def tokens(batch: int = 3, length: int = 5, wide: int = 8) -> Tensor:
    return torch.randn(batch, length, wide)


def layer(kind: type[nn.Module], act: Any, batch_first: bool, norm_first: bool) -> nn.Module:
    return kind(8, 2, 16, 0.1, act, batch_first=batch_first, norm_first=norm_first)


class Seq2Seq(nn.Module):
    """Encoder and decoder stacks of torch's own layers."""

    def __init__(self, act: Any) -> None:
        super().__init__()
        encoder = layer(nn.TransformerEncoderLayer, act, True, False)
        self.encoder = nn.TransformerEncoder(encoder, 2, enable_nested_tensor=False)
        self.decoder = nn.TransformerDecoder(layer(nn.TransformerDecoderLayer, act, True, False), 2)
        self.generator = nn.Linear(8, 7)

    def forward(self, source: Tensor, target: Tensor) -> Any:
        mask = nn.Transformer.generate_square_subsequent_mask(target.shape[1])
        return self.generator(self.decoder(target, self.encoder(source), tgt_mask=mask))


class Attention(nn.Module):
    def __init__(self, wide: int, heads: int) -> None:
        super().__init__()
        self.qkv, self.out, self.heads = nn.Linear(wide, 3 * wide), nn.Linear(wide, wide), heads

    def forward(self, x: Tensor) -> Any:
        b, t, d = x.shape
        q, k, v = self.qkv(x).view(b, t, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        weights = (q @ k.transpose(-2, -1) / math.sqrt(d)).softmax(-1)
        return self.out((weights @ v).transpose(1, 2).reshape(b, t, d))


class LinearAttention(nn.Module):
    """ELU + 1 as the feature map of queries and keys, on heads (B, H, T, D)."""

    def __init__(self, wide: int, heads: int) -> None:
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(wide, wide) for _ in range(3))
        self.heads = heads

    def split(self, x: Tensor) -> Tensor:
        return x.view(*x.shape[:2], self.heads, -1).transpose(1, 2)

    def forward(self, x: Tensor) -> Any:
        q, k = F.elu(self.split(self.q(x))) + 1, F.elu(self.split(self.k(x))) + 1
        out = q @ (k.transpose(-2, -1) @ self.split(self.v(x)))
        return x + out.transpose(1, 2).flatten(2)


class NewGELU(nn.Module):
    """GPT-2's GELU, written out."""

    def forward(self, x: Tensor) -> Tensor:
        inner = math.sqrt(2 / math.pi) * (x + 0.044715 * torch.pow(x, 3.0))
        return 0.5 * x * (1.0 + torch.tanh(inner))


class Block(nn.Module):
    """A pre-norm transformer block."""

    def __init__(self, act: nn.Module) -> None:
        super().__init__()
        self.ln1, self.ln2, self.attn = nn.LayerNorm(8), nn.LayerNorm(8), Attention(8, 2)
        self.up, self.act, self.down = nn.Linear(8, 16), act, nn.Linear(16, 8)

    def forward(self, x: Tensor) -> Any:
        x = x + self.attn(self.ln1(x))
        return x + self.down(self.act(self.up(self.ln2(x))))


class GPT(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.blocks = nn.Embedding(11, 8), nn.ModuleList(Block(NewGELU()) for _ in "12")
        self.head = nn.Linear(8, 11, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, ids: Tensor) -> Any:
        x = self.embed(ids)
        for block in self.blocks:
            x = block(x)
        return self.head(x)


class ViT(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.patch, self.token = nn.Conv2d(3, 8, 2, 2), nn.Parameter(torch.zeros(1, 1, 8))
        self.place = nn.Parameter(torch.randn(1, 5, 8) / 10)
        self.blocks, self.head = nn.Sequential(Block(nn.GELU())), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Any:
        x = self.patch(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(len(x), -1, -1), x], 1) + self.place
        return self.head(torch.tanh(self.blocks(x)[:, 0]))


class Mixer(nn.Module):
    """One MLP along the tokens, on (B, C, T), and one along the channels, on (B, T, C)."""

    def __init__(self) -> None:
        super().__init__()
        self.across = nn.Sequential(nn.Linear(5, 9), nn.GELU(), nn.Linear(9, 5))
        self.along = nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 8))
        self.norm = nn.LayerNorm(8)

    def forward(self, x: Tensor) -> Any:
        x = x + self.across(self.norm(x).transpose(1, 2)).transpose(1, 2)
        return x + self.along(x)


class SwinMLP(nn.Module):
    """Windows of an image as tokens: (B·windows, 4, C)."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.norm = nn.Conv2d(3, 6, 1), nn.LayerNorm(6)
        self.fc1, self.act, self.fc2 = nn.Linear(6, 12), nn.GELU(), nn.Linear(12, 6)
        self.drop = nn.Dropout(0.1)

    def forward(self, x: Tensor) -> Any:
        x = self.embed(x).permute(0, 2, 3, 1)
        b, h, w, c = x.shape
        windows = x.view(b, h // 2, 2, w // 2, 2, c).permute(0, 1, 3, 2, 4, 5).reshape(-1, 4, c)
        return self.fc2(self.drop(self.act(self.fc1(self.norm(windows))))).view(b, -1, c)


class SwiGLU(nn.Module):
    """Two projections, one of which gates the other."""

    def __init__(self, fused: bool) -> None:
        super().__init__()
        self.gate, self.up = nn.Linear(8, 12), nn.Linear(8, 12)
        self.both, self.down = nn.Linear(8, 24), nn.Linear(12, 8)
        self.fused = fused

    def forward(self, x: Tensor) -> Any:
        gate, up = self.both(x).chunk(2, -1) if self.fused else (self.gate(x), self.up(x))
        return x + self.down(F.silu(gate) * up)


class GEGLU(nn.Module):
    """A leaf that holds an activation, but halves its input: not one itself."""

    def forward(self, x: Tensor) -> Tensor:
        value, gate = x.chunk(2, -1)
        return value * F.gelu(gate)


class FunctionalGLU(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear, self.conv = nn.Linear(8, 20), nn.Conv1d(10, 12, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = F.glu(self.linear(x))
        return F.glu(self.conv(h.transpose(1, 2)), dim=1)


class ConvGLU(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.glu, self.norm = nn.Conv1d(8, 12, 3), nn.GLU(dim=1), nn.BatchNorm1d(6)

    def forward(self, x: Tensor) -> Any:
        return self.norm(self.glu(self.conv(x.transpose(1, 2))))


class Recurrent(nn.Module):
    """Torch's own cells, whose gates are no sites, and a head."""

    def __init__(self, kind: Any, functional: bool) -> None:
        super().__init__()
        self.rnn, self.cell = kind(8, 10, batch_first=True), nn.GRUCell(10, 8)
        self.head, self.relu, self.out = nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 2)
        self.functional = functional

    def forward(self, x: Tensor) -> Any:
        h = self.head(self.cell(self.rnn(x)[0][:, -1]))
        return self.out(F.relu(h) if self.functional else self.relu(h))


class Cell(nn.Module):
    """An LSTM cell written out: its functions are sites, one a time step."""

    def __init__(self) -> None:
        super().__init__()
        self.gates, self.new = nn.Linear(8 + 6, 18), nn.Linear(8 + 6, 6)

    def forward(self, x: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        both = torch.cat([x, h], -1)
        i, f, o = self.gates(both).chunk(3, -1)
        c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(self.new(both))
        return torch.sigmoid(o) * torch.tanh(c), c


class OwnLSTM(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cell, self.head = Cell(), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Any:
        h = c = x.new_zeros(len(x), 6)
        for step in x.unbind(1):
            h, c = self.cell(step, h, c)
        return self.head(h)


def geglu() -> nn.Module:
    return nn.Sequential(nn.Linear(8, 24), GEGLU(), nn.Linear(12, 8))


def module_glu() -> nn.Module:
    return nn.Sequential(nn.Linear(8, 24), nn.GLU(), nn.Linear(12, 8))


def gpt_batch() -> Tensor:
    return torch.randint(0, 11, (3, 6))


LAST = {"*": -1}
ENCODER = nn.TransformerEncoderLayer

ROWS = [
    *(
        Setting(
            f"encoder-layer-{name}{'-batch-first' if batch else ''}{'-norm-first' if norm else ''}",
            partial(layer, ENCODER, act, batch, norm),
            tokens,
            LAST,
        )
        for name, act in (("relu", "relu"), ("gelu", "gelu"), ("module", nn.ReLU()), ("F", F.silu))
        for batch, norm in ((True, False), (False, True))
    ),
    Setting("seq2seq", partial(Seq2Seq, "relu"), lambda: (tokens(), tokens(3, 4)), LAST),
    Setting(
        "seq2seq-module",  # torch's decoder layer forgets its module when it is copied, for F.relu
        partial(Seq2Seq, nn.GELU()),
        lambda: (tokens(), tokens(3, 4)),
        LAST,
        unseen=tuple(f"decoder.layers.{n}.activation" for n in (0, 1)),
    ),
    Setting("attention-linear", partial(LinearAttention, 8, 2), tokens, LAST, compilable=True),
    Setting(
        "gpt", GPT, gpt_batch, LAST, own={f"blocks.{n}.act": False for n in (0, 1)}, compilable=True
    ),
    Setting("vit", ViT, lambda: torch.randn(3, 3, 4, 4), LAST, compilable=True),
    Setting("mixer", Mixer, tokens, LAST, compilable=True),
    Setting("swin-mlp", SwinMLP, lambda: torch.randn(2, 3, 4, 4), LAST),
    Setting("swiglu", partial(SwiGLU, False), tokens, LAST, compilable=True),
    Setting("swiglu-fused", partial(SwiGLU, True), tokens, LAST, compilable=True),
    Setting("geglu-leaf", geglu, tokens, LAST, compilable=True),
    Setting("glu-module", module_glu, tokens, LAST),
    Setting("glu-function", FunctionalGLU, tokens, {"glu": -1, "glu-2": 1}),
    Setting("glu-conv", ConvGLU, tokens, {"glu": 1}),
    Setting("lstm-head", partial(Recurrent, nn.LSTM, False), tokens, LAST),
    Setting("gru-head", partial(Recurrent, nn.GRU, True), tokens, LAST, unseen=("relu",)),
    Setting("lstm-own", OwnLSTM, partial(tokens, 4, 3), LAST),
    Setting("unbatched-tokens", Mixer, lambda: tokens()[0][None], LAST),
]
