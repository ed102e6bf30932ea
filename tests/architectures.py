"""Small forms of well-known architectures: blocks with every way of wiring that they use."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Forward(nn.Module):
    """Named parts and a forward that is handed the module and the input."""

    def __init__(self, forward: Callable[[Any, Tensor], Any], **parts: nn.Module) -> None:
        super().__init__()
        for name, part in parts.items():
            self.add_module(name, part)
        self.run = forward

    def forward(self, x: Tensor) -> Any:
        return self.run(self, x)


def conv(inputs: int, outputs: int, size: int = 1, **options: Any) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, size, padding=size // 2, **options)


def basic_block() -> nn.Module:
    def forward(net: Any, x: Tensor) -> Tensor:
        x = net.act0(net.stem(x))
        y = net.bn2(net.conv2(net.act1(net.bn1(net.conv1(x)))))
        y += net.bn3(net.down(x))
        x = net.act2(y)
        x = net.act3(net.bn4(net.conv4(x)) + x)
        out: Tensor = net.head(F.adaptive_avg_pool2d(x, 1).flatten(1))
        return out

    return Forward(
        forward,
        stem=conv(3, 4, 3),
        act0=nn.ReLU(),
        conv1=conv(4, 6, 3, stride=2),
        bn1=nn.BatchNorm2d(6),
        act1=nn.ReLU(True),
        conv2=conv(6, 6, 3),
        bn2=nn.BatchNorm2d(6),
        down=conv(4, 6, stride=2),
        bn3=nn.BatchNorm2d(6),
        act2=nn.ReLU(),
        conv4=conv(6, 6),
        bn4=nn.BatchNorm2d(6),
        act3=nn.ReLU(),
        head=nn.Linear(6, 3),
    )


def grouped_bottleneck() -> nn.Module:
    return nn.Sequential(
        *(conv(3, 8), nn.BatchNorm2d(8), nn.ReLU(), conv(8, 12, 3, groups=4), nn.BatchNorm2d(12)),
        *(nn.ReLU(), conv(12, 5)),
    )


def inverted_residual() -> nn.Module:
    return nn.Sequential(
        *(conv(3, 6), nn.ReLU6(), conv(6, 6, 3, groups=6), nn.BatchNorm2d(6), nn.ReLU6()),
        *(conv(6, 12, 3, groups=6), nn.Hardswish(), conv(12, 4)),
    )


def dense_block() -> nn.Module:
    def forward(net: Any, x: Tensor) -> Tensor:
        a = net.act1(net.conv1(x))
        b = net.act2(net.conv2(torch.cat([x, a], 1)))
        c = net.act3(net.bn3(torch.cat([x, net.conv3(b)], dim=1)))
        out: Tensor = net.head(torch.cat([c, x, a, b], 1))
        return out

    return Forward(
        forward,
        conv1=conv(3, 4),
        act1=nn.ReLU(),
        conv2=conv(7, 5),
        act2=nn.ReLU(),
        conv3=conv(5, 2),
        bn3=nn.BatchNorm2d(5),
        act3=nn.ReLU(),
        head=conv(17, 2),
    )


def inception() -> nn.Module:
    def forward(net: Any, x: Tensor) -> Tensor:
        a = net.act1(net.conv1(x))
        b = F.max_pool2d(net.act2(net.conv2(x)), 3, 1, 1)
        out: Tensor = net.head(torch.cat((a, b), dim=1).flatten(1))
        return out

    return Forward(
        forward,
        conv1=conv(3, 4),
        act1=nn.ReLU(),
        conv2=conv(3, 5, 3),
        act2=nn.ReLU(),
        head=nn.Linear(9 * 16, 3),
    )


def u_net() -> nn.Module:
    def forward(net: Any, x: Tensor) -> Tensor:
        a = net.act1(net.conv1(x))
        b = net.act2(net.conv2(F.max_pool2d(a, 2)))
        c = net.act3(net.up(b))
        d = net.act4(net.conv4(torch.cat([c, a], 1)))
        e = F.interpolate(b, scale_factor=2.0)
        out: Tensor = net.head(torch.cat([F.pad(d, (1, 1, 1, 1)), F.pad(e, (1, 1, 1, 1))], 1))
        return out

    return Forward(
        forward,
        conv1=conv(3, 4, 3),
        act1=nn.ReLU(),
        conv2=conv(4, 6, 3),
        act2=nn.ReLU(),
        up=nn.ConvTranspose2d(6, 5, 2, 2),
        act3=nn.ReLU(),
        conv4=conv(9, 4),
        act4=nn.ReLU(),
        head=conv(10, 2),
    )


def conv_next() -> nn.Module:
    def forward(net: Any, x: Tensor) -> Tensor:
        y = net.norm(net.depth(x).permute(0, 2, 3, 1))
        y = net.down(net.act(net.up(y))).permute(0, 3, 1, 2)
        out: Tensor = x + net.scale * y
        return out

    net = Forward(
        forward,
        depth=conv(4, 4, 3, groups=4),
        norm=nn.LayerNorm(4),
        up=nn.Linear(4, 8),
        act=nn.GELU(),
        down=nn.Linear(8, 4),
    )
    net.scale = nn.Parameter(torch.ones(4, 1, 1))
    return net


def transformer(norm_first: bool, batch_first: bool) -> nn.Module:
    def forward(net: Any, x: Tensor) -> Tensor:
        x = x if batch_first else x.transpose(0, 1)
        y = net.norm1(x) if norm_first else x
        x = x + net.attention(y, y, y, need_weights=False)[0]
        x = x if norm_first else net.norm1(x)
        y = net.norm2(x) if norm_first else x
        y = net.down(F.dropout(net.act(net.up(y)), 0.1, net.training))
        x = x + y if norm_first else net.norm2(x + y)
        out: Tensor = net.head(net.act2(net.mix(x)) if batch_first else net.act2(x.mean(0)))
        return out

    return Forward(
        forward,
        norm1=nn.LayerNorm(6),
        norm2=nn.LayerNorm(6),
        attention=nn.MultiheadAttention(6, 2, batch_first=batch_first),
        up=nn.Linear(6, 10),
        act=nn.ReLU(),
        down=nn.Linear(10, 6),
        mix=nn.Linear(6, 6),
        act2=nn.ReLU(),
        head=nn.Linear(6, 3),
    )


def heads() -> nn.Module:
    """Attention by hand, with an activation on the values of every head and one on the scores."""

    def forward(net: Any, x: Tensor) -> Tensor:
        b, t, _ = x.shape
        q, k, v = net.qkv(x).reshape(b, t, 3, 2, 4).permute(2, 0, 3, 1, 4)
        scores = net.act0((q * 0.5) @ k.transpose(-2, -1))
        y = net.act1(scores @ net.act2(v))
        y = net.act3(F.scaled_dot_product_attention(y, k, v).transpose(1, 2).reshape(b, t, 8))
        out: Tensor = net.out(y)
        return out

    acts = {f"act{n}": nn.ReLU() for n in range(4)}
    return Forward(forward, qkv=nn.Linear(6, 24), out=nn.Linear(8, 3), **acts)


def swi_glu(halves: Callable[[Tensor], tuple[Tensor, Tensor]]) -> nn.Module:
    def forward(net: Any, x: Tensor) -> Tensor:
        value, gate = halves(net.up(x))
        out: Tensor = net.down(value * net.act(gate))
        return out

    return Forward(forward, up=nn.Linear(6, 10), act=nn.SiLU(), down=nn.Linear(5, 3))


def glu() -> nn.Module:
    return nn.Sequential(nn.Conv1d(3, 8, 3), nn.GLU(1), nn.Conv1d(4, 2, 1))


def cross_stage() -> nn.Module:
    """A block in the manner of YOLO's C2f: an activation's output is cut in two."""

    def forward(net: Any, x: Tensor) -> Tensor:
        a, b = net.act1(net.conv1(x)).chunk(2, 1)
        c = net.act2(net.conv2(b))
        out: Tensor = net.head(torch.cat((a, b, c), 1))
        return out

    return Forward(
        forward,
        conv1=conv(3, 8),
        act1=nn.ReLU(),
        conv2=conv(4, 4),
        act2=nn.ReLU(),
        head=conv(12, 2),
    )


def shuffle() -> nn.Module:
    def forward(net: Any, x: Tensor) -> Tensor:
        a = net.act1(net.conv1(x))
        n, c, h, w = a.shape
        a = a.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)
        b = net.act2(F.pixel_shuffle(net.conv2(net.act3(a)), 2))
        b = b.view(n, 2, h, 2, w, 2).permute(0, 1, 3, 5, 2, 4).reshape(n, 8, h, w)
        out: Tensor = net.head(net.act4(F.pixel_unshuffle(F.pixel_shuffle(b, 2), 2)))
        return out

    return Forward(
        forward,
        conv1=conv(3, 6),
        act1=nn.ReLU(),
        conv2=conv(6, 8),
        head=conv(8, 3),
        **{f"act{n}": nn.ReLU() for n in (2, 3, 4)},
    )


def point_net() -> nn.Module:
    def forward(net: Any, x: Tensor) -> Tensor:
        points = net.act1(net.bn1(net.conv1(x.transpose(1, 2))))
        all_of_them = torch.max(points, 2, keepdim=True)[0].repeat(1, 1, x.shape[1])
        out: Tensor = net.head(torch.cat([points, all_of_them], 1)).squeeze(1)
        return out

    return Forward(
        forward,
        conv1=nn.Conv1d(3, 6, 1),
        bn1=nn.BatchNorm1d(6),
        act1=nn.ReLU(),
        head=nn.Conv1d(12, 1, 1),
    )


def vision_transformer() -> nn.Module:
    def forward(net: Any, x: Tensor) -> Tensor:
        patches = net.act0(net.patch(x)).flatten(2).transpose(1, 2)
        x = torch.cat((net.token.expand(len(x), -1, -1), patches), 1)
        y = net.act1(net.up(x))
        out: Tensor = net.head(y[:, 0]) + net.rest(y[:, 1:].mean(1))
        return out

    net = Forward(
        forward,
        patch=nn.Conv2d(3, 6, 2, 2),
        act0=nn.ReLU(),
        up=nn.Linear(6, 8),
        act1=nn.GELU(),
        head=nn.Linear(8, 3),
        rest=nn.Linear(8, 3),
    )
    net.token = nn.Parameter(torch.randn(1, 1, 6))
    return net


def mixer() -> nn.Module:
    def forward(net: Any, x: Tensor) -> Tensor:
        x = net.back(net.act0(net.tokens(x.mT))).transpose(1, 2)
        out: Tensor = net.down(net.act1(net.channels(x)))
        return out

    return Forward(
        forward,
        tokens=nn.Linear(5, 7),
        act0=nn.GELU(),
        back=nn.Linear(7, 5),
        channels=nn.Linear(6, 9),
        act1=nn.GELU(),
        down=nn.Linear(9, 2),
    )


def matrices() -> nn.Module:
    """Layers without modules: x @ W, addmm as in GPT-2's Conv1D, x @ W.t(), and einsum."""

    def forward(net: Any, x: Tensor) -> Tensor:
        x = net.act0(x @ net.a)
        x = net.act1(torch.addmm(net.b1, x.view(-1, 7), net.b))
        x = net.act2(x @ net.c.t())
        x = net.act3(torch.einsum("td,ed->te", x, net.d))
        out: Tensor = net.act4((net.e @ x).T @ net.f)
        return out

    net = Forward(forward, **{f"act{n}": nn.ReLU() for n in range(5)})
    sizes = {"a": (6, 7), "b": (7, 8), "b1": (8,), "c": (5, 8), "d": (4, 5), "e": (3, 20)}
    for name, size in (sizes | {"f": (3, 2)}).items():
        net.register_parameter(name, nn.Parameter(torch.randn(size)))
    return net


def recurrent() -> nn.Module:
    def forward(net: Any, x: Tensor) -> Tensor:
        y, _ = net.lstm(net.act0(net.embed(x)))
        out: Tensor = net.head(net.act1(y[:, -1]))
        return out

    return Forward(
        forward,
        embed=nn.Embedding(9, 4),
        act0=nn.ReLU(),
        lstm=nn.LSTM(4, 5, batch_first=True),
        act1=nn.ReLU(),
        head=nn.Linear(5, 2),
    )


def time_embedding() -> nn.Module:
    """A diffusion block: features of the time step are added to those of the image."""

    def forward(net: Any, x: Tensor) -> Tensor:
        time = net.time(x.mean((2, 3)))[:, :, None, None]
        y = net.act(net.norm(net.conv(x) + time))
        out: Tensor = net.head(y[..., 1:, ::2])
        return out

    return Forward(
        forward,
        conv=conv(3, 6),
        time=nn.Linear(3, 6),
        norm=nn.BatchNorm2d(6),
        act=nn.SiLU(),
        head=conv(6, 2),
    )


def normed_after() -> nn.Module:
    """A batch norm after one activation, a layer norm after the other, and constants between."""
    return nn.Sequential(
        *(nn.Linear(6, 7), nn.ReLU(), nn.BatchNorm1d(7), nn.Linear(7, 5), nn.ReLU()),
        *(nn.LayerNorm(5), nn.Linear(5, 3)),
    )


def added_after() -> nn.Module:
    def forward(net: Any, x: Tensor) -> Tensor:
        x = sum([net.act0(net.a(x)), net.act1(net.b(x))])
        out: Tensor = net.c(x) + net.d(torch.stack([net.act2(net.e(x) * 2), x])).sum(0)
        return out

    layers = {name: nn.Linear(6, 6) for name in "abcde"}
    return Forward(forward, **layers, **{f"act{n}": nn.ReLU() for n in range(3)})


def images() -> Tensor:
    return torch.randn(4, 3, 4, 4)


def tokens() -> Tensor:
    return torch.randn(4, 5, 6)
