"""PSPNet of MMSegmentation, DeepLab v3+ of segmentation_models_pytorch and ENet of Torch7, as `releases` has others."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from releases import Shapes, State, conv, enlarge, norm, norm_shapes, residual, residual_shapes, torchs
from torch import Tensor
from torch.nn import functional as F

STEM = {0: (32, 3), 3: (32, 32), 6: (64, 32)}


def mmseg_shapes(counts: Sequence[int], classes: int) -> Shapes:
    found: Shapes = {}
    for number, (outer, inner) in STEM.items():
        found[f"backbone.stem.{number}.weight"] = (outer, inner, 3, 3)
        found |= norm_shapes(f"backbone.stem.{number + 1}", outer)
    found |= residual_shapes(counts, torchs("backbone."), 64)
    layers = {f"decode_head.psp_modules.{i}.1": (512, 2048, 1, 1) for i in range(4)}
    layers |= {"decode_head.bottleneck": (512, 4096, 3, 3), "auxiliary_head.convs.0": (256, 1024, 3, 3)}
    for name, shape in layers.items():
        found |= {f"{name}.conv.weight": shape, **norm_shapes(f"{name}.bn", shape[0])}
    for head, inner in (("decode_head", 512), ("auxiliary_head", 256)):
        found |= {f"{head}.conv_seg.weight": (classes, inner, 1, 1), f"{head}.conv_seg.bias": (classes,)}
    return found


def mmseg(s: State, image: Tensor, counts: Sequence[int]) -> Tensor:
    """PSPNet on ResNet v1c at stride 8, the first block of a stage at the rate of the stage before."""

    def layer(name: str, x: Tensor, padding: int = 0) -> Tensor:
        return norm(s, f"{name}.bn", conv(s, f"{name}.conv", x, 1, padding)).relu()

    x = image
    for number in STEM:
        x = conv(s, f"backbone.stem.{number}", x, 2 if number == 0 else 1, 1)
        x = norm(s, f"backbone.stem.{number + 1}", x).relu()
    x = F.max_pool2d(x, 3, 2, 1)
    rates = ((1,), (1,), (1, *(2,) * (counts[2] - 1)), (2, *(4,) * (counts[3] - 1)))
    *_, x = residual(s, torchs("backbone."), x, counts, (1, 2, 1, 1), rates)
    maps = [x]
    for i, side in enumerate((1, 2, 3, 6)):
        pooled = layer(f"decode_head.psp_modules.{i}.1", F.adaptive_avg_pool2d(x, side))
        maps.append(enlarge(pooled, x.shape[2:], False))
    x = layer("decode_head.bottleneck", torch.cat(maps, 1), 1)
    return enlarge(conv(s, "decode_head.conv_seg", x), image.shape[2:], False)


def smp_head_shapes(deep: int, low: int, classes: int) -> Shapes:
    def separable(name: str, inner: int) -> Shapes:
        return {f"{name}.0.weight": (inner, 1, 3, 3), f"{name}.1.weight": (256, inner, 1, 1)}

    aspp = "decoder.aspp.0"
    found: Shapes = {}
    for name, number, inner in (
        (f"{aspp}.convs.0", 0, deep),
        (f"{aspp}.convs.4", 1, deep),
        (f"{aspp}.project", 0, 1280),
    ):
        found |= {f"{name}.{number}.weight": (256, inner, 1, 1), **norm_shapes(f"{name}.{number + 1}", 256)}
    for i in (1, 2, 3):
        found |= {**separable(f"{aspp}.convs.{i}.0", deep), **norm_shapes(f"{aspp}.convs.{i}.1", 256)}
    found |= {**separable("decoder.aspp.1", 256), **norm_shapes("decoder.aspp.2", 256)}
    found |= {"decoder.block1.0.weight": (48, low, 1, 1), **norm_shapes("decoder.block1.1", 48)}
    found |= {**separable("decoder.block2.0", 304), **norm_shapes("decoder.block2.1", 256)}
    return found | {"segmentation_head.0.weight": (classes, 256, 1, 1), "segmentation_head.0.bias": (classes,)}


def smp_shapes(counts: Sequence[int], classes: int) -> Shapes:
    """On a ResNet with bottlenecks."""
    found: Shapes = {"encoder.conv1.weight": (64, 3, 7, 7), **norm_shapes("encoder.bn1", 64)}
    return found | residual_shapes(counts, torchs("encoder."), 64) | smp_head_shapes(2048, 256, classes)


def smp(s: State, image: Tensor, counts: Sequence[int]) -> Tensor:
    """DeepLabV3Plus at output stride 16, of images of 16 n pixels."""

    def separable(name: str, x: Tensor, rate: int = 1) -> Tensor:
        x = F.conv2d(x, s[f"{name}.0.weight"], None, 1, rate, rate, x.shape[1])
        return conv(s, f"{name}.1", x)

    x = F.max_pool2d(norm(s, "encoder.bn1", conv(s, "encoder.conv1", image, 2, 3)).relu(), 3, 2, 1)
    low, _, _, x = residual(s, torchs("encoder."), x, counts, (1, 2, 2, 1), ((1,), (1,), (1,), (2,)))
    aspp = "decoder.aspp.0"
    branches = [norm(s, f"{aspp}.convs.0.1", conv(s, f"{aspp}.convs.0.0", x)).relu()]
    for i, rate in enumerate((12, 24, 36), start=1):
        branches.append(norm(s, f"{aspp}.convs.{i}.1", separable(f"{aspp}.convs.{i}.0", x, rate)).relu())
    pooled = norm(s, f"{aspp}.convs.4.2", conv(s, f"{aspp}.convs.4.1", x.mean((2, 3), keepdim=True))).relu()
    branches.append(pooled.expand(-1, -1, *x.shape[2:]))
    x = norm(s, f"{aspp}.project.1", conv(s, f"{aspp}.project.0", torch.cat(branches, 1))).relu()
    x = norm(s, "decoder.aspp.2", separable("decoder.aspp.1", x)).relu()
    low = norm(s, "decoder.block1.1", conv(s, "decoder.block1.0", low)).relu()
    x = torch.cat([F.interpolate(x, scale_factor=4, mode="bilinear", align_corners=True), low], 1)
    x = norm(s, "decoder.block2.1", separable("decoder.block2.0", x)).relu()
    x = conv(s, "segmentation_head.0", x)
    return F.interpolate(x, scale_factor=4, mode="bilinear", align_corners=True)


# Of ENet's blocks in turn: channels before and behind, and what is in the middle: a rate, 5 x 1 filters, or 2 x up.
_KINDS = ("1", "2", "5", "4", "1", "8", "5", "16")
_BLOCKS = [(16, 64, "down"), *[(64, 64, "1")] * 4, (64, 128, "down"), *((128, 128, kind) for kind in _KINDS * 2)]
_BLOCKS += [(128, 64, "up"), (64, 64, "1"), (64, 64, "1"), (64, 16, "up"), (16, 16, "1")]


def enet_shapes(classes: int = 20) -> Shapes:
    """Modules of Torch7 by their positions, of PReLUs too."""
    found: Shapes = {"0.0.weight": (13, 3, 3, 3), "0.0.bias": (13,), **norm_shapes("2", 16), "3.weight": (16,)}
    for number, (inner, outer, kind) in enumerate(_BLOCKS, start=4):
        main, thin, side = f"{number}.0.0", outer // 4, 2 if kind == "down" else 1
        found |= {f"{main}.0.weight": (thin, inner, side, side), **norm_shapes(f"{main}.1", thin)}
        found |= {f"{main}.2.weight": (thin,)}
        at = 3
        if kind == "5":
            found[f"{main}.3.weight"], at = (thin, thin, 1, 5), 4
        found[f"{main}.{at}.weight"] = (thin, thin, 5, 1) if kind == "5" else (thin, thin, 3, 3)
        found[f"{main}.{at}.bias"] = (thin,)
        found |= {**norm_shapes(f"{main}.{at + 1}", thin), f"{main}.{at + 2}.weight": (thin,)}
        found |= {f"{main}.{at + 3}.weight": (outer, thin, 1, 1), **norm_shapes(f"{main}.{at + 4}", outer)}
        if kind == "up":
            found |= {f"{number}.0.1.1.weight": (outer, inner, 1, 1), **norm_shapes(f"{number}.0.1.2", outer)}
        found[f"{number}.2.weight"] = (outer,)
    found = {name: shape for name, shape in found.items() if not name.endswith("num_batches_tracked")}
    return found | {"31.weight": (16, classes, 2, 2), "31.bias": (classes,)}


def _enet_block(s: State, number: int, kind: str, x: Tensor) -> Tensor:
    """The thin branch; Torch7's dropout keeps 1 - p of it when it does not train."""
    main = f"{number}.0.0"

    def act(at: int, x: Tensor) -> Tensor:
        return F.prelu(norm(s, f"{main}.{at}", x, 1e-3), s[f"{main}.{at + 1}.weight"])

    x = act(1, conv(s, f"{main}.0", x, 2 if kind == "down" else 1))
    if kind == "up":
        x = F.conv_transpose2d(x, s[f"{main}.3.weight"], s[f"{main}.3.bias"], 2, 1, 1)
    elif kind == "5":
        x = F.conv2d(
            F.conv2d(x, s[f"{main}.3.weight"], padding=(0, 2)), s[f"{main}.4.weight"], s[f"{main}.4.bias"], 1, (2, 0)
        )
    else:
        rate = 1 if kind == "down" else int(kind)
        x = conv(s, f"{main}.3", x, 1, rate, rate)
    at = 5 if kind == "5" else 4
    x = norm(s, f"{main}.{at + 3}", conv(s, f"{main}.{at + 2}", act(at, x)), 1e-3)
    return x * (1 if number >= 26 else 0.99 if number < 9 else 0.9)


def enet(s: State, image: Tensor) -> Tensor:
    """The authors' ENet, of images in 0..1 of 8 n pixels."""
    x = torch.cat([conv(s, "0.0", image, 2, 1), F.max_pool2d(image, 2)], 1)
    x = F.prelu(norm(s, "2", x, 1e-3), s["3.weight"])
    pooled = []
    for number, (_, outer, kind) in enumerate(_BLOCKS, start=4):
        y, other = _enet_block(s, number, kind, x), x
        if kind == "down":
            other, where = F.max_pool2d(x, 2, return_indices=True)
            pooled.append(where)
            other = torch.cat([other, other.new_zeros(len(x), outer - x.shape[1], *other.shape[2:])], 1)
        elif kind == "up":
            other = norm(s, f"{number}.0.1.2", conv(s, f"{number}.0.1.1", x), 1e-3)
            other = F.max_unpool2d(other, pooled.pop(), 2)
        x = F.prelu(y + other, s[f"{number}.2.weight"])
    return F.conv_transpose2d(x, s["31.weight"], s["31.bias"], 2)
