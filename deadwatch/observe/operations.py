"""What each torch function does to the units of its input: one row of `RULES` each.

A rule reads the labels of its arguments and labels its result. Whatever a function without a row
reads is from then on read by something unknown, and of its result at most the unit axis is known.
So a missing row costs knowledge, never truth.
"""

from __future__ import annotations

from deadwatch.observe import arithmetic, layers, shapes
from deadwatch.observe.labels import Rule

_SAME = (
    *("dropout", "dropout1d", "dropout2d", "dropout3d", "feature_dropout"),
    *("contiguous", "clone", "to", "type", "type_as", "double", "float", "half", "bfloat16"),
)
_VIEWS = (
    *("permute", "transpose", "swapaxes", "swapdims", "movedim", "moveaxis"),
    *("t", "T", "mT", "H", "mH", "adjoint", "squeeze", "unsqueeze", "expand", "expand_as"),
    *("chunk", "split", "split_with_sizes", "tensor_split", "unbind", "narrow", "select"),
)
_MIXED = (
    *("sub", "sub_", "__sub__", "__rsub__", "rsub", "__isub__", "where", "maximum", "minimum"),
    *("gather", "index_select", "take_along_dim"),
    *("addcmul", "addcdiv", "lerp", "__rdiv__", "__rtruediv__", "pow", "__pow__"),
)
_RECURRENT = ("lstm", "gru", "rnn_tanh", "rnn_relu")
_POOLS = ("max_pool", "avg_pool", "adaptive_avg_pool", "adaptive_max_pool")


def _rules() -> dict[str, Rule]:
    rules: dict[str, Rule] = {"linear": layers.linear, "einsum": layers.einsum}
    rules |= dict.fromkeys(("matmul", "__matmul__", "mm", "bmm"), layers.matmul)
    rules |= {
        "addmm": layers.addmm,
        "baddbmm": layers.baddbmm,
        "bilinear": layers.last_axis("a bilinear layer"),
    }
    rules |= {f"conv{n}d": layers.conv for n in (1, 2, 3)}
    rules |= {f"conv_transpose{n}d": layers.conv_transpose for n in (1, 2, 3)}
    norms = {"batch_norm": "batch_norm", "instance_norm": "batch_norm"}
    norms |= {"layer_norm": "layer_norm", "group_norm": "group_norm"}
    rules |= {name: layers.norm(kind) for name, kind in norms.items()}
    recurrent = (*_RECURRENT, *(f"{name}_cell" for name in _RECURRENT))
    rules |= dict.fromkeys(recurrent, layers.last_axis("a recurrent layer"))
    rules |= dict.fromkeys(("embedding", "embedding_bag"), layers.last_axis("an embedding"))
    rules |= {"scaled_dot_product_attention": layers.attention}
    return rules | {"multi_head_attention_forward": layers.multi_head_attention}


def _moves() -> dict[str, Rule]:
    rules: dict[str, Rule] = dict.fromkeys(_VIEWS, shapes.viewed)
    rules |= dict.fromkeys(("flatten", "reshape", "view", "unflatten", "view_as"), shapes.reshape)
    rules |= {"__getitem__": shapes.getitem, "unfold": shapes.unfold, "repeat": shapes.repeat}
    rules |= dict.fromkeys(("cat", "concat", "concatenate"), shapes.cat) | {"stack": shapes.stack}
    rules |= {f"{pool}{n}d": shapes.pool for pool in _POOLS for n in (1, 2, 3)}
    rules |= dict.fromkeys(("mean", "max", "min", "amax", "amin"), shapes.reduce())
    rules |= {"sum": shapes.reduce(through="sum"), "pad": shapes.pad}
    rules |= dict.fromkeys(("interpolate", "upsample"), shapes.interpolate)
    return rules | {
        "pixel_shuffle": shapes.pixel_shuffle,
        "pixel_unshuffle": shapes.pixel_unshuffle,
    }


def _sums() -> dict[str, Rule]:
    rules: dict[str, Rule] = dict.fromkeys(_SAME, arithmetic.same)
    rules |= dict.fromkeys(("add", "add_", "__add__", "__radd__", "__iadd__"), arithmetic.add)
    products = ("mul", "mul_", "__mul__", "__rmul__", "__imul__", "div", "div_", "__truediv__")
    rules |= dict.fromkeys((*products, "__itruediv__", "__idiv__"), arithmetic.scale)
    rules |= dict.fromkeys(_MIXED, arithmetic.mixed)
    return rules | dict.fromkeys(("alpha_dropout", "feature_alpha_dropout"), arithmetic.changed)


RULES = _rules() | _moves() | _sums()
