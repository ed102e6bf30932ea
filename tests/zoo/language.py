"""Language: transformers and recurrent networks."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.zoo.data import labelled_texts, texts, words
from tests.zoo.entry import Batch, Entry, adam
from tests.zoo.parts import normal
from tests.zoo.vision_tokens import Attention

VOCABULARY = 500


class Bert(nn.Module):
    """Norms after the residual sums, and a tanh pooler; the size of BERT-tiny."""

    def __init__(self, width: int = 128, depth: int = 2) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(VOCABULARY, width), nn.Embedding(32, width)
        self.norm, self.drop = nn.LayerNorm(width), nn.Dropout(0.1)
        layers = range(depth)
        self.attention = nn.ModuleList(Attention(width, 2) for _ in layers)
        self.first = nn.ModuleList(nn.LayerNorm(width) for _ in layers)
        self.up = nn.ModuleList(nn.Linear(width, 4 * width) for _ in layers)
        self.down = nn.ModuleList(nn.Linear(4 * width, width) for _ in layers)
        self.second = nn.ModuleList(nn.LayerNorm(width) for _ in layers)
        self.pool, self.head = nn.Linear(width, width), nn.Linear(width, 2)

    def forward(self, ids: Tensor) -> Tensor:
        places = torch.arange(ids.shape[1])
        x = self.drop(self.norm(self.words(ids) + self.places(places)))
        layers = self.attention, self.first, self.up, self.down, self.second
        for attention, first, up, down, second in zip(*layers, strict=True):
            x = first(x + self.drop(attention(x)))
            x = second(x + self.drop(down(F.gelu(up(x)))))
        out: Tensor = self.head(self.drop(torch.tanh(self.pool(x[:, 0]))))
        return out


class CausalAttention(nn.Module):
    def __init__(self, width: int, heads: int, bias: bool = True) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width, bias=bias)
        self.out = nn.Linear(width, width, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        out: Tensor = self.out(y.transpose(1, 2).flatten(2))
        return out


class GPT2Block(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.first, self.attention = nn.LayerNorm(width), CausalAttention(width, heads)
        self.second, self.up = nn.LayerNorm(width), nn.Linear(width, 4 * width)
        self.act, self.down = nn.GELU("tanh"), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.first(x))
        out: Tensor = x + self.down(self.act(self.up(self.second(x))))
        return out


class LanguageModel(nn.Module):
    """Embeddings, blocks, a norm, and logits from the tied embeddings."""

    def __init__(self, width: int, places: bool, norm: nn.Module, *blocks: nn.Module) -> None:
        super().__init__()
        self.words = nn.Embedding(VOCABULARY, width)
        self.places = nn.Embedding(64, width) if places else None
        self.blocks, self.norm = nn.Sequential(*blocks), norm
        self.head = nn.Linear(width, VOCABULARY, bias=False)
        if places:
            self.head.weight = self.words.weight

    def forward(self, ids: Tensor) -> Tensor:
        x = self.words(ids)
        if self.places is not None:
            x = x + self.places(torch.arange(ids.shape[1]))
        out: Tensor = self.head(self.norm(self.blocks(x)))
        return out


def gpt2(width: int = 384, depth: int = 3) -> nn.Module:
    """The width of nanoGPT's smallest; residual projections are scaled by 1/√(2 · depth)."""
    blocks = [GPT2Block(width, 6) for _ in range(depth)]
    model = normal(LanguageModel(width, True, nn.LayerNorm(width), *blocks))
    for block in blocks:
        for layer in (block.attention.out, block.down):
            nn.init.normal_(layer.weight, std=0.02 / (2 * depth) ** 0.5)
    return model


class LlamaBlock(nn.Module):
    def __init__(self, width: int, heads: int, inner: int) -> None:
        super().__init__()
        self.first, self.attention = nn.RMSNorm(width), CausalAttention(width, heads, False)
        self.second = nn.RMSNorm(width)
        self.gate = nn.Linear(width, inner, bias=False)
        self.up, self.down = (
            nn.Linear(width, inner, bias=False),
            nn.Linear(inner, width, bias=False),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.first(x))
        y = self.second(x)
        out: Tensor = x + self.down(F.silu(self.gate(y)) * self.up(y))
        return out


def llama(width: int = 256, depth: int = 3) -> nn.Module:
    blocks = [LlamaBlock(width, 4, 688) for _ in range(depth)]
    return normal(LanguageModel(width, False, nn.RMSNorm(width), *blocks))


class T5Block(nn.Module):
    """ReLU in the dense part, no biases, RMS norms before."""

    def __init__(self, width: int, heads: int, inner: int) -> None:
        super().__init__()
        self.first, self.attention = nn.RMSNorm(width), CausalAttention(width, heads, False)
        self.second, self.act = nn.RMSNorm(width), nn.ReLU()
        self.up, self.down = (
            nn.Linear(width, inner, bias=False),
            nn.Linear(inner, width, bias=False),
        )
        for layer in (self.attention.qkv, self.attention.out, self.up):
            nn.init.normal_(layer.weight, std=width**-0.5)
        nn.init.normal_(self.down.weight, std=inner**-0.5)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.first(x))
        out: Tensor = x + self.down(self.act(self.up(self.second(x))))
        return out


def t5(width: int = 128, depth: int = 3) -> nn.Module:
    """A decoder of its blocks; embeddings have std 1.

    T5 has no 1/√d in its attention and smaller queries instead, which comes to the same.
    """
    blocks = [T5Block(width, 4, 512) for _ in range(depth)]
    model = LanguageModel(width, False, nn.RMSNorm(width), *blocks)
    nn.init.normal_(model.head.weight, std=width**-0.5)
    return model


class Translation(nn.Module):
    """`torch.nn.Transformer` with Xavier weights, as its tutorial has it."""

    def __init__(self, norm_first: bool, width: int = 128) -> None:
        super().__init__()
        self.words, self.width = nn.Embedding(VOCABULARY, width), width
        sizes = width, 4, 512, 0.1
        layer = nn.TransformerEncoderLayer(*sizes, batch_first=True, norm_first=norm_first)
        encoder = nn.TransformerEncoder(layer, 2, nn.LayerNorm(width), enable_nested_tensor=False)
        self.transformer = nn.Transformer(
            *(width, 4, 2, 2, 512, 0.1),
            custom_encoder=encoder,
            batch_first=True,
            norm_first=norm_first,
        )
        self.head = nn.Linear(width, VOCABULARY)
        for parameter in self.parameters():
            if parameter.ndim > 1:
                nn.init.xavier_uniform_(parameter)

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        mask = nn.Transformer.generate_square_subsequent_mask(target.shape[1])
        both = (self.words(ids) * self.width**0.5 for ids in (source, target))
        out: Tensor = self.head(self.transformer(*both, tgt_mask=mask, tgt_is_causal=True))
        return out


def pairs(generator: torch.Generator) -> Batch:
    source, target = words(32, 20, VOCABULARY, generator), words(32, 21, VOCABULARY, generator)
    return Batch((source, target[:, :-1]), target[:, 1:])


class RecurrentModel(nn.Module):
    """Zaremba et al. 2014: uniform weights, dropout between the layers."""

    def __init__(self, width: int = 128) -> None:
        super().__init__()
        self.words, self.drop = nn.Embedding(VOCABULARY, width), nn.Dropout(0.5)
        self.lstm = nn.LSTM(width, width, 2, batch_first=True, dropout=0.5)
        self.head = nn.Linear(width, VOCABULARY)
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -0.1, 0.1)

    def forward(self, ids: Tensor) -> Tensor:
        out: Tensor = self.head(self.drop(self.lstm(self.drop(self.words(ids)))[0]))
        return out


class GRUEncoder(nn.Module):
    """Both directions, a dense ReLU layer, two classes."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.words = nn.Embedding(VOCABULARY, width)
        self.gru = nn.GRU(width, width, batch_first=True, bidirectional=True)
        self.mix, self.act, self.head = nn.Linear(2 * width, 64), nn.ReLU(), nn.Linear(64, 2)

    def forward(self, ids: Tensor) -> Tensor:
        state = self.gru(self.words(ids))[1].transpose(0, 1).flatten(1)
        out: Tensor = self.head(self.act(self.mix(state)))
        return out


class TextCNN(nn.Module):
    """Kim 2014: convolutions of three lengths, the maximum over time."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.words, self.drop = nn.Embedding(VOCABULARY, width), nn.Dropout()
        self.convs = nn.ModuleList(nn.Conv1d(width, 50, size) for size in (3, 4, 5))
        self.head = nn.Linear(150, 2)
        nn.init.uniform_(self.words.weight, -0.25, 0.25)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.words(ids).mT
        found = torch.cat([F.relu(conv(x)).amax(-1) for conv in self.convs], 1)
        out: Tensor = self.head(self.drop(found))
        return out


class FastText(nn.Module):
    """Mean of embeddings, one hidden layer: the deep averaging network of Iyyer et al. 2015."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.EmbeddingBag(VOCABULARY, 100)
        self.layers = nn.Sequential(
            *(nn.Linear(100, 100), nn.ReLU(), nn.Linear(100, 100), nn.ReLU(), nn.Linear(100, 2))
        )

    def forward(self, ids: Tensor) -> Tensor:
        out: Tensor = self.layers(self.words(ids))
        return out


TEXTS = texts(32, 40, VOCABULARY)
LABELLED = labelled_texts(320, 20, VOCABULARY)
ENTRIES = {
    "BERT-tiny": Entry("arXiv:1810.04805, 1908.08962", lambda: normal(Bert()), LABELLED, lr=3e-4),
    "GPT-2": Entry("Radford et al. 2019", gpt2, TEXTS, lr=3e-4),
    "Llama": Entry("arXiv:2302.13971", llama, TEXTS, lr=3e-4),
    "T5": Entry("arXiv:1910.10683", t5, TEXTS),
    "Transformer, norm after": Entry(
        "arXiv:1706.03762", lambda: Translation(False), pairs, lr=3e-4, optimizer=adam
    ),
    "Transformer, norm before": Entry(
        "arXiv:2002.04745", lambda: Translation(True), pairs, lr=3e-4, optimizer=adam
    ),
    "LSTM language model": Entry("arXiv:1409.2329", RecurrentModel, TEXTS, sites=False),
    "GRU encoder": Entry("arXiv:1406.1078", GRUEncoder, LABELLED),
    "TextCNN": Entry("arXiv:1408.5882", TextCNN, LABELLED),
    "Deep averaging network": Entry("Iyyer et al. 2015", FastText, LABELLED),
}
