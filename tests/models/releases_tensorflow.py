"""Networks of TensorFlow's deeplab: names, shapes (h, w, in, out) and what they say, as `releases` for PyTorch.

For image sizes at which TensorFlow's padding "SAME" is the same on both sides.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from releases import Shapes, State, enlarge
from torch import Tensor
from torch.nn import functional as F

PATH = (0, 0, 0, 1, 2, 1, 2, 2, 3, 3, 2, 1)
# hnasnet's operations, and the states they read.
_EDGES = (
    ("atrous_5x5", 1), ("separable_3x3", 0), ("separable_3x3", 1), ("atrous_3x3", 0), ("separable_3x3", 3),
    ("separable_3x3", 1), ("separable_5x5", 4), ("separable_5x5", 2), ("separable_5x5", 3), ("atrous_5x5", 5),
)  # fmt: skip


def _norm_shapes(name: str, channels: int) -> Shapes:
    return {f"{name}/{part}": (channels,) for part in ("gamma", "beta", "moving_mean", "moving_variance")}


def _conv_shapes(name: str, side: int, inner: int, outer: int) -> Shapes:
    return {f"{name}/weights": (side, side, inner, outer), **_norm_shapes(f"{name}/BatchNorm", outer)}


def _separable_shapes(name: str, inner: int, outer: int) -> Shapes:
    depthwise = {f"{name}_depthwise/depthwise_weights": (3, 3, inner, 1)}
    depthwise |= _norm_shapes(f"{name}_depthwise/BatchNorm", inner)
    return depthwise | _conv_shapes(f"{name}_pointwise", 1, inner, outer)


def _head_shapes(low: int, deep: int, classes: int, separable: bool) -> Shapes:
    found = _conv_shapes("image_pooling", 1, deep, 256) | _conv_shapes("aspp0", 1, deep, 256)
    three = {f"aspp{i}": deep for i in (1, 2, 3)}
    decoder = [f"decoder_conv{i}" if separable else f"decoder_conv0/decoder_conv0_{i + 1}" for i in (0, 1)]
    three |= {f"decoder/{name}": inner for name, inner in zip(decoder, (304, 256), strict=True)}
    for name, inner in three.items():
        found |= _separable_shapes(name, inner, 256) if separable else _conv_shapes(name, 3, inner, 256)
    found |= _conv_shapes("concat_projection", 1, 1280, 256) | _conv_shapes("decoder/feature_projection0", 1, low, 48)
    return found | {"logits/semantic/weights": (1, 1, 256, classes), "logits/semantic/biases": (classes,)}


def _units(width: int) -> Iterator[tuple[str, tuple[int, int, int]]]:
    middle = 91 * width // 4
    for i, outer in enumerate((4 * width, 8 * width, middle), start=1):
        yield f"entry_flow/block{i}/unit_1", (outer,) * 3
    for i in range(1, 17):
        yield f"middle_flow/block1/unit_{i}", (middle,) * 3
    yield "exit_flow/block1/unit_1", (middle, 32 * width, 32 * width)
    yield "exit_flow/block2/unit_1", (48 * width, 48 * width, 64 * width)


def xception_shapes(width: int, classes: int) -> Shapes:
    """Of DeepLab v3+ on xception_65; width 32 is the release's."""
    found = _conv_shapes("xception_65/entry_flow/conv1_1", 3, 3, width)
    found |= _conv_shapes("xception_65/entry_flow/conv1_2", 3, width, 2 * width)
    inner = 2 * width
    for name, widths in _units(width):
        where = f"xception_65/{name}/xception_module"
        if "middle" not in name and "exit_flow/block2" not in name:
            found |= _conv_shapes(f"{where}/shortcut", 1, inner, widths[-1])
        for i, outer in enumerate(widths, start=1):
            found |= _separable_shapes(f"{where}/separable_conv{i}", inner, outer)
            inner = outer
    # And what only training reads.
    return found | _head_shapes(8 * width, inner, classes, True) | {"global_step": (), "aspp0/weights/Momentum": (1,)}


def _norm(s: State, name: str, x: Tensor, eps: float) -> Tensor:
    parts = (s[f"{name}/{part}"] for part in ("moving_mean", "moving_variance", "gamma", "beta"))
    return F.batch_norm(x, *parts, eps=eps)


def _filter(s: State, name: str, x: Tensor, stride: int = 1, rate: int = 1, part: str = "weights") -> Tensor:
    w = s[f"{name}/{part}"].permute(3, 2, 0, 1)
    return F.conv2d(x, w, s.get(f"{name}/biases"), stride, rate * (w.shape[-1] // 2), rate)


def _depthwise(s: State, name: str, x: Tensor, stride: int = 1, rate: int = 1) -> Tensor:
    w = s[f"{name}/depthwise_weights"].permute(2, 3, 0, 1)
    return F.conv2d(x, w, None, stride, rate * (w.shape[-1] // 2), rate, x.shape[1])


def _conv(s: State, name: str, x: Tensor, eps: float = 1e-5, stride: int = 1, rate: int = 1) -> Tensor:
    return _norm(s, f"{name}/BatchNorm", _filter(s, name, x, stride, rate), eps)


def _separable(s: State, name: str, x: Tensor, eps: float, relu: bool, stride: int = 1, rate: int = 1) -> Tensor:
    x = _norm(s, f"{name}_depthwise/BatchNorm", _depthwise(s, f"{name}_depthwise", x, stride, rate), eps)
    x = _conv(s, f"{name}_pointwise", x.relu() if relu else x, eps)
    return x.relu() if relu else x


def _head(s: State, low: Tensor, deep: Tensor, rates: tuple[int, ...], separable: bool) -> Tensor:
    def three(name: str, x: Tensor, rate: int = 1) -> Tensor:
        if separable:
            return _separable(s, name, x, 1e-5, relu=True, rate=rate)
        return _conv(s, name, x, rate=rate).relu()

    pooled = _conv(s, "image_pooling", deep.mean((2, 3), keepdim=True)).relu()
    branches = [pooled.expand(-1, -1, *deep.shape[2:]), _conv(s, "aspp0", deep).relu()]
    branches += [three(f"aspp{i}", deep, rate) for i, rate in enumerate(rates, start=1)]
    x = _conv(s, "concat_projection", torch.cat(branches, 1)).relu()
    low = _conv(s, "decoder/feature_projection0", low).relu()
    x = torch.cat([enlarge(x, low.shape[2:], True), low], 1)
    for i in (0, 1):
        x = three(f"decoder/decoder_conv{i}" if separable else f"decoder/decoder_conv0/decoder_conv0_{i + 1}", x)
    return _filter(s, "logits/semantic", x)


def xception(s: State, image: Tensor, width: int) -> Tensor:
    """DeepLab v3+ on xception_65 at output stride 16, of images in -1..1."""
    x = image
    for i, stride in ((1, 2), (2, 1)):
        x = _conv(s, f"xception_65/entry_flow/conv1_{i}", x, 1e-3, stride).relu()
    for number, (name, _) in enumerate(_units(width)):
        where = f"xception_65/{name}/xception_module"
        stride, rate, last = 2 if number < 3 else 1, 2 if number == 20 else 1, number == 20
        y = x
        for i in (1, 2, 3):
            y = y if last else y.relu()
            step = stride if i == 3 else 1
            y = _separable(s, f"{where}/separable_conv{i}", y, 1e-3, last, step, rate)
            if (number, i) == (1, 2):
                low = y
        if f"{where}/shortcut/weights" in s:
            x = _conv(s, f"{where}/shortcut", x, 1e-3, stride)
        x = y if last else x + y
    return enlarge(_head(s, low, x, (6, 12, 18), separable=True), image.shape[2:], True)


def hnasnet_shapes(width: int, classes: int) -> Shapes:
    """Of Auto-DeepLab; width 20, 32, 48 are the paper's S, M and L."""
    found: Shapes = {}
    for i, (inner, outer) in enumerate(((3, 64), (64, 64), (64, 128))):
        found |= {f"hnasnet/conv{i}/weights": (3, 3, inner, outer), **_norm_shapes(f"hnasnet/conv{i}_bn", outer)}
    channels = [64, 128]
    for number, level in enumerate(PATH):
        f, where = width * 2**level, f"hnasnet/cell_{number}"
        for conv, norm, inner in (("1x1", "beginning_bn", channels[-1]), ("prev_1x1", "prev_bn", channels[-2])):
            found |= {f"{where}/{conv}/weights": (1, 1, inner, f), **_norm_shapes(f"{where}/{norm}", f)}
        for i, (name, _) in enumerate(_EDGES):
            found |= _edge_shapes(f"{where}/comb_iter_{i // 2}/{('left', 'right')[i % 2]}", name, f)
        channels.append(5 * f)
    return found | _head_shapes(channels[4], channels[-1], classes, separable=False)


def _edge_shapes(where: str, name: str, f: int) -> Shapes:
    kind, _, size = name.partition("_")
    side = int(size[0])
    if kind == "atrous":
        return {f"{where}/{name}/weights": (side, side, f, f), **_norm_shapes(f"{where}/bn_atr_{size}", f)}
    found: Shapes = {}
    for i in (1, 2):
        found[f"{where}/{name}_{i}/depthwise_weights"] = (side, side, f, 1)
        found[f"{where}/{name}_{i}/pointwise_weights"] = (1, 1, f, f)
        found |= _norm_shapes(f"{where}/bn_sep_{size}_{i}", f)
    return found


def _edge(s: State, where: str, name: str, x: Tensor, stride: int) -> Tensor:
    kind, _, size = name.partition("_")
    if kind == "atrous":
        x = x.relu()
        if stride == 2:
            x = enlarge(x, [(side - 1) // 2 + 1 for side in x.shape[2:]], True)
        return _norm(s, f"{where}/bn_atr_{size}", _filter(s, f"{where}/{name}", x, rate=3 - stride), 1e-3)
    for i in (1, 2):
        x = _depthwise(s, f"{where}/{name}_{i}", x.relu(), stride if i == 1 else 1)
        x = _norm(s, f"{where}/bn_sep_{size}_{i}", _filter(s, f"{where}/{name}_{i}", x, part="pointwise_weights"), 1e-3)
    return x


def hnasnet(s: State, image: Tensor) -> Tensor:
    """Auto-DeepLab, of images in -1..1 of 32 n + 1 pixels."""
    cells, net = [], image
    for i, stride in enumerate((2, 1, 2)):
        net = net.relu() if i else net
        net = _norm(s, f"hnasnet/conv{i}_bn", _filter(s, f"hnasnet/conv{i}", net, stride), 1e-3)
        cells.append(net)
    cells, before = cells[1:], 0
    for number, level in enumerate(PATH):
        where, net = f"hnasnet/cell_{number}", cells[-1]
        if level < before:
            net = enlarge(net, [2 * (side - 1) + 1 for side in net.shape[2:]], True)
        older = enlarge(cells[-2], net.shape[2:], True)
        states = [
            _norm(s, f"{where}/{norm}", _filter(s, f"{where}/{conv}", x.relu()), 1e-3)
            for conv, norm, x in (("1x1", "beginning_bn", net), ("prev_1x1", "prev_bn", older))
        ]
        for block in range(5):
            both = []
            for i, side in enumerate(("left", "right")):
                name, source = _EDGES[2 * block + i]
                stride = 2 if level > before and source < 2 else 1
                both.append(_edge(s, f"{where}/comb_iter_{block}/{side}", name, states[source], stride))
            states.append(both[0] + both[1])
        cells.append(torch.cat(states[2:], 1))
        before = level
    return enlarge(_head(s, cells[4], cells[-1].relu(), (12, 24, 36), separable=False), image.shape[2:], True)
