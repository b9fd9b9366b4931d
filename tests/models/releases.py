"""Networks as others released them, in plain functions of PyTorch: names and shapes of their files, and what they say.

Written from the releases' definitions, so that nothing of the networks here is asked what it should be.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

State = dict[str, Tensor]
Shapes = dict[str, tuple[int, ...]]


def random_state(shapes: Shapes, device: str = "cpu") -> State:
    """Weights that keep the size of what goes through them, and statistics that are not those of a fresh layer."""
    found = {}
    for name, shape in shapes.items():
        if device == "meta":
            found[name] = torch.empty(shape, device="meta")
        elif name.endswith("num_batches_tracked"):
            found[name] = torch.tensor(7)
        elif name.endswith("running_var"):
            found[name] = 0.5 + torch.rand(shape)
        elif len(shape) >= 2:
            found[name] = torch.randn(shape) * math.sqrt(2 / math.prod(shape[1:]))
        elif name.endswith("weight"):
            found[name] = 0.3 + 0.4 * torch.rand(shape)
        else:
            found[name] = 0.1 * torch.randn(shape)
    return found


def norm_shapes(name: str, channels: int) -> Shapes:
    parts = ("weight", "bias", "running_mean", "running_var")
    return {**{f"{name}.{part}": (channels,) for part in parts}, f"{name}.num_batches_tracked": ()}


def norm(s: State, name: str, x: Tensor, eps: float = 1e-5) -> Tensor:
    mean, var = s[f"{name}.running_mean"], s[f"{name}.running_var"]
    return F.batch_norm(x, mean, var, s[f"{name}.weight"], s[f"{name}.bias"], eps=eps)


def conv(s: State, name: str, x: Tensor, stride: int = 1, padding: int = 0, dilation: int = 1) -> Tensor:
    return F.conv2d(x, s[f"{name}.weight"], s.get(f"{name}.bias"), stride, padding, dilation)


def enlarge(x: Tensor, size: Sequence[int], align_corners: bool) -> Tensor:
    return F.interpolate(x, size=tuple(size), mode="bilinear", align_corners=align_corners)


# (stage from 0, block from 0, part: 0 1 2 of the block or 3 for the shortcut) -> names of convolution and norm.
Naming = Callable[[int, int, int], tuple[str, str]]


def torchs(prefix: str) -> Naming:
    def names(stage: int, block: int, part: int) -> tuple[str, str]:
        where = f"{prefix}layer{stage + 1}.{block}"
        if part == 3:
            return f"{where}.downsample.0", f"{where}.downsample.1"
        return f"{where}.conv{part + 1}", f"{where}.bn{part + 1}"

    return names


def kazutos(stage: int, block: int, part: int) -> tuple[str, str]:
    where = f"base.layer{stage + 2}.block{block + 1}.{('reduce', 'conv3x3', 'increase', 'shortcut')[part]}"
    return f"{where}.conv", f"{where}.bn"


def residual_shapes(counts: Sequence[int], names: Naming, stem: int) -> Shapes:
    found: Shapes = {}
    inner = stem
    for stage, count in enumerate(counts):
        width = 64 * 2**stage
        for block in range(count):
            parts = [(width, inner, 1), (width, width, 3), (4 * width, width, 1)]
            parts += [(4 * width, inner, 1)] if block == 0 else []
            for part, (outer, channels, side) in enumerate(parts):
                name, normal = names(stage, block, part)
                found[f"{name}.weight"] = (outer, channels, side, side)
                found |= norm_shapes(normal, outer)
            inner = 4 * width
    return found


def residual(
    s: State,
    names: Naming,
    x: Tensor,
    counts: Sequence[int],
    strides: Sequence[int],
    rates: Sequence[Sequence[int]],
    stride_first: bool = False,
) -> Iterator[Tensor]:
    """The stages' maps; strides of each stage's first block, in its first or second convolution; rates of blocks."""
    for stage, count in enumerate(counts):
        for block in range(count):
            stride = strides[stage] if block == 0 else 1
            rate = rates[stage][block % len(rates[stage])]
            one, three = (stride, 1) if stride_first else (1, stride)

            def layer(part: int, y: Tensor, stage: int = stage, block: int = block, **geometry: int) -> Tensor:
                name, normal = names(stage, block, part)
                return norm(s, normal, conv(s, name, y, **geometry))

            y = layer(0, x, stride=one).relu()
            y = layer(1, y, stride=three, padding=rate, dilation=rate).relu()
            x = (layer(2, y) + (layer(3, x, stride=stride) if block == 0 else x)).relu()
        yield x


def deeplabv2_shapes(counts: Sequence[int], classes: int) -> Shapes:
    found: Shapes = {"base.layer1.conv1.conv.weight": (64, 3, 7, 7), **norm_shapes("base.layer1.conv1.bn", 64)}
    found |= residual_shapes(counts, kazutos, 64)
    for branch in range(4):
        found[f"base.aspp.c{branch}.weight"] = (classes, 2048, 3, 3)
        found[f"base.aspp.c{branch}.bias"] = (classes,)
    return found


def deeplabv2(s: State, image: Tensor, counts: Sequence[int], align_corners: bool) -> Tensor:
    """DeepLab v2 at scales 1, 0.5, 0.75, of blue, green, red less a mean: kazuto1011's; the authors' aligns corners."""

    def base(x: Tensor) -> Tensor:
        x = norm(s, "base.layer1.conv1.bn", conv(s, "base.layer1.conv1.conv", x, 2, 3)).relu()
        x = F.max_pool2d(x, 3, 2, 1, ceil_mode=True)
        *_, x = residual(s, kazutos, x, counts, (1, 2, 1, 1), ((1,), (1,), (2,), (4,)), stride_first=True)
        return sum(conv(s, f"base.aspp.c{i}", x, 1, rate, rate) for i, rate in enumerate((6, 12, 18, 24)))

    maps = [base(image)]
    for scale in (0.5, 0.75):
        if align_corners:
            small = enlarge(image, [int((side - 1) * scale) + 1 for side in image.shape[2:]], True)
        else:
            small = F.interpolate(image, scale_factor=scale, mode="bilinear", align_corners=False)
        maps.append(enlarge(base(small), maps[0].shape[-2:], align_corners))
    return enlarge(torch.stack(maps).amax(0), image.shape[-2:], align_corners)


STEM = {"0": (64, 3), "3": (64, 64), "6": (128, 64)}


def pspnet_shapes(counts: Sequence[int], classes: int) -> Shapes:
    found: Shapes = {}
    for number, (outer, inner) in STEM.items():
        found[f"layer0.{number}.weight"] = (outer, inner, 3, 3)
        found |= norm_shapes(f"layer0.{int(number) + 1}", outer)
    found |= residual_shapes(counts, torchs(""), 128)
    for i in range(4):
        found[f"ppm.features.{i}.1.weight"] = (512, 2048, 1, 1)
        found |= norm_shapes(f"ppm.features.{i}.2", 512)
    for head, inner, width in (("cls", 4096, 512), ("aux", 1024, 256)):
        found[f"{head}.0.weight"] = (width, inner, 3, 3)
        found |= norm_shapes(f"{head}.1", width)
        found |= {f"{head}.4.weight": (classes, width, 1, 1), f"{head}.4.bias": (classes,)}
    return found


def pspnet(s: State, image: Tensor, counts: Sequence[int]) -> State:
    """hszhao's PSPNet, of images of 8 n + 1 pixels: the scores of its two heads."""
    x = image
    for number, stride in (("0", 2), ("3", 1), ("6", 1)):
        x = norm(s, f"layer0.{int(number) + 1}", conv(s, f"layer0.{number}", x, stride, 1)).relu()
    x = F.max_pool2d(x, 3, 2, 1)
    *_, low, x = residual(s, torchs(""), x, counts, (1, 2, 1, 1), ((1,), (1,), (2,), (4,)))
    maps = [x]
    for i, side in enumerate((1, 2, 3, 6)):
        y = conv(s, f"ppm.features.{i}.1", F.adaptive_avg_pool2d(x, side))
        maps.append(enlarge(norm(s, f"ppm.features.{i}.2", y).relu(), x.shape[-2:], True))
    found = {}
    for name, head, y in (("out", "cls", torch.cat(maps, 1)), ("aux", "aux", low)):
        y = norm(s, f"{head}.1", conv(s, f"{head}.0", y, 1, 1)).relu()
        found[name] = enlarge(conv(s, f"{head}.4", y), image.shape[-2:], True)
    return found


def deeplabv3plus_shapes(counts: Sequence[int], classes: int) -> Shapes:
    found: Shapes = {"backbone.conv1.weight": (64, 3, 7, 7), **norm_shapes("backbone.bn1", 64)}
    found |= residual_shapes(counts, torchs("backbone."), 64)
    for i, side in enumerate((1, 3, 3, 3), start=1):
        found[f"aspp.aspp{i}.atrous_conv.weight"] = (256, 2048, side, side)
        found |= norm_shapes(f"aspp.aspp{i}.bn", 256)
    found["aspp.global_avg_pool.1.weight"] = (256, 2048, 1, 1)
    found |= norm_shapes("aspp.global_avg_pool.2", 256)
    found |= {"aspp.conv1.weight": (256, 1280, 1, 1), **norm_shapes("aspp.bn1", 256)}
    found |= {"decoder.conv1.weight": (48, 256, 1, 1), **norm_shapes("decoder.bn1", 48)}
    found |= {"decoder.last_conv.0.weight": (256, 304, 3, 3), **norm_shapes("decoder.last_conv.1", 256)}
    found |= {"decoder.last_conv.4.weight": (256, 256, 3, 3), **norm_shapes("decoder.last_conv.5", 256)}
    return found | {"decoder.last_conv.8.weight": (classes, 256, 1, 1), "decoder.last_conv.8.bias": (classes,)}


def deeplabv3plus(s: State, image: Tensor, counts: Sequence[int]) -> Tensor:
    """jfzhang95's DeepLab v3+ at output stride 16."""
    x = norm(s, "backbone.bn1", conv(s, "backbone.conv1", image, 2, 3)).relu()
    x = F.max_pool2d(x, 3, 2, 1)
    rates = ((1,), (1,), (1,), (2, 4, 8))
    low, _, _, x = residual(s, torchs("backbone."), x, counts, (1, 2, 2, 1), rates)
    branches = []
    for i, rate in enumerate((1, 6, 12, 18), start=1):
        y = conv(s, f"aspp.aspp{i}.atrous_conv", x, 1, 0 if i == 1 else rate, rate)
        branches.append(norm(s, f"aspp.aspp{i}.bn", y).relu())
    pooled = norm(s, "aspp.global_avg_pool.2", conv(s, "aspp.global_avg_pool.1", x.mean((2, 3), keepdim=True))).relu()
    branches.append(pooled.expand(-1, -1, *x.shape[-2:]))
    x = norm(s, "aspp.bn1", conv(s, "aspp.conv1", torch.cat(branches, 1))).relu()
    low = norm(s, "decoder.bn1", conv(s, "decoder.conv1", low)).relu()
    x = torch.cat([enlarge(x, low.shape[-2:], True), low], 1)
    x = norm(s, "decoder.last_conv.1", conv(s, "decoder.last_conv.0", x, 1, 1)).relu()
    x = norm(s, "decoder.last_conv.5", conv(s, "decoder.last_conv.4", x, 1, 1)).relu()
    return enlarge(conv(s, "decoder.last_conv.8", x), image.shape[-2:], True)
