"""Networks that were released for Caffe, as `releases` has those for PyTorch; `width` 64 is the releases'."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from releases import Shapes, State, conv
from torch import Tensor
from torch.nn import functional as F

STAGES = (2, 2, 3, 3, 3)


def vgg_shapes(width: int) -> Shapes:
    found: Shapes = {}
    inner = 3
    for stage, count in enumerate(STAGES, start=1):
        outer = width * min(2 ** (stage - 1), 8)
        for i in range(1, count + 1):
            found |= {f"conv{stage}_{i}.weight": (outer, inner, 3, 3), f"conv{stage}_{i}.bias": (outer,)}
            inner = outer
    found |= {"fc6.weight": (64 * width, inner, 7, 7), "fc6.bias": (64 * width,)}
    return found | {"fc7.weight": (64 * width, 64 * width, 1, 1), "fc7.bias": (64 * width,)}


def fcn_shapes(stride: int, width: int, classes: int = 21) -> Shapes:
    found = vgg_shapes(width)
    scored = {"score_fr": 64 * width}
    scored |= {"score_pool4": 8 * width} if stride < 32 else {}
    scored |= {"score_pool3": 4 * width} if stride < 16 else {}
    for name, inner in scored.items():
        found |= {f"{name}.weight": (classes, inner, 1, 1), f"{name}.bias": (classes,)}
    last = {32: "upscore", 16: "upscore16", 8: "upscore8"}[stride]
    sides = {last: 2 * stride}
    sides |= {"upscore2": 4} if stride < 32 else {}
    sides |= {"upscore_pool4": 4} if stride < 16 else {}
    return found | {f"{name}.weight": (classes, classes, side, side) for name, side in sides.items()}


def fcn(s: State, image: Tensor, stride: int) -> Tensor:
    """Long et al.'s FCN, of blue, green, red less a mean."""
    pools = []
    x = image
    for stage, count in enumerate(STAGES, start=1):
        for i in range(1, count + 1):
            x = conv(s, f"conv{stage}_{i}", x, 1, 100 if (stage, i) == (1, 1) else 1).relu()
        x = F.max_pool2d(x, 2, 2, ceil_mode=True)
        pools.append(x)
    x = conv(s, "score_fr", conv(s, "fc7", conv(s, "fc6", x).relu()).relu())

    def up(name: str, x: Tensor, step: int) -> Tensor:
        return F.conv_transpose2d(x, s[f"{name}.weight"], s.get(f"{name}.bias"), stride=step)

    def window(x: Tensor, offset: int, like: Tensor) -> Tensor:
        return x[..., offset : offset + like.shape[-2], offset : offset + like.shape[-1]]

    if stride == 32:
        return window(up("upscore", x, 32), 19, image)
    x = up("upscore2", x, 2)
    x = x + window(conv(s, "score_pool4", pools[3]), 5, x)
    if stride == 16:
        return window(up("upscore16", x, 16), 27, image)
    x = up("upscore_pool4", x, 2)
    x = x + window(conv(s, "score_pool3", pools[2]), 9, x)
    return window(up("upscore8", x, 8), 31, image)


def largefov_shapes(width: int) -> Shapes:
    found = {name: shape for name, shape in vgg_shapes(width).items() if not name.startswith("fc")}
    for name, inner, side in (("fc6", 8 * width, 3), ("fc7", 16 * width, 1), ("fc8_voc12", 16 * width, 1)):
        outer = 21 if name == "fc8_voc12" else 16 * width
        found |= {f"{name}.weight": (outer, inner, side, side), f"{name}.bias": (outer,)}
    return found


def largefov(s: State, image: Tensor) -> Tensor:
    """DeepLab-LargeFOV, of blue, green, red less a mean; its positions are eight pixels apart from the first one on."""
    x = image
    for stage, count in enumerate(STAGES, start=1):
        rate = 2 if stage == 5 else 1
        for i in range(1, count + 1):
            x = conv(s, f"conv{stage}_{i}", x, 1, rate, rate).relu()
        x = F.max_pool2d(x, 3, 2 if stage <= 3 else 1, 1, ceil_mode=True)
    x = conv(s, "fc6", F.avg_pool2d(x, 3, 1, 1), 1, 12, 12).relu()
    x = conv(s, "fc8_voc12", conv(s, "fc7", x).relu())
    return F.interpolate(x, [8 * side - 7 for side in x.shape[2:]], mode="bilinear", align_corners=True)


def dilation_shapes(width: int, classes: int, dilations: Sequence[int], large: bool) -> Shapes:
    found = vgg_shapes(width)
    final = "fc-final" if large else "final"
    found |= {f"{final}.weight": (classes, 64 * width, 1, 1), f"{final}.bias": (classes,)}
    if not dilations:
        return found
    widths = (2, 2, 4, 8, 16, 32, 32) if large else (1,) * len(dilations)
    inner = classes
    for name, factor in zip(context_names(dilations, large), widths, strict=True):
        found |= {f"{name}.weight": (factor * classes, inner, 3, 3), f"{name}.bias": (factor * classes,)}
        inner = factor * classes
    last = "ct_final" if large else "ctx_final"
    found |= {f"{last}.weight": (classes, inner, 1, 1), f"{last}.bias": (classes,)}
    return found | ({"ctx_upsample.weight": (classes, 1, 16, 16)} if len(dilations) == 9 else {})


def context_names(dilations: Sequence[int], large: bool) -> list[str]:
    names = ["conv1_1", "conv1_2", *(f"conv{i}_1" for i in range(2, len(dilations) - 1)), "fc1"]
    return [f"{'ct' if large else 'ctx'}_{name}" for name in names]


def dilation(s: State, image: Tensor, dilations: Sequence[int], large: bool) -> Tensor:
    """The scores of Yu and Koltun's networks on the map of stride 8, of an image with 186 pixels more on each side."""
    x = image
    for stage, count in enumerate(STAGES, start=1):
        for i in range(1, count + 1):
            x = conv(s, f"conv{stage}_{i}", x, dilation=2 if stage == 5 else 1).relu()
        x = F.max_pool2d(x, 2) if stage <= 3 else x
    x = conv(s, "fc7", conv(s, "fc6", x, dilation=4).relu()).relu()
    x = conv(s, "fc-final" if large else "final", x)
    if not dilations:
        return x
    # The network for VOC pads its first layer by 33, and no other.
    paddings = [33, *(0 for _ in dilations[1:])] if large else dilations
    for name, rate, padding in zip(context_names(dilations, large), dilations, paddings, strict=True):
        x = conv(s, name, x, 1, padding, rate).relu()
    return conv(s, "ct_final" if large else "ctx_final", x)


def bilinear(classes: int) -> Tensor:
    """The weights (classes, 1, 16, 16) of Caffe's bilinear filler for a deconvolution of stride 8."""
    ramp = 1 - (torch.arange(16) / 8 - 15 / 16).abs()
    return (ramp[:, None] * ramp).expand(classes, 1, 16, 16).clone()


def segnet_basic_shapes() -> Shapes:
    found: Shapes = {}
    for name in (*(f"conv{i}" for i in range(1, 5)), *(f"conv_decode{i}" for i in range(1, 5))):
        found |= {f"{name}.weight": (64, 3 if name == "conv1" else 64, 7, 7), f"{name}.bias": (64,)}
        found |= {f"{name}_bn.weight": (1, 64, 1, 1), f"{name}_bn.bias": (1, 64, 1, 1)}
    return found | {"conv_classifier.weight": (11, 64, 1, 1), "conv_classifier.bias": (11,)}


def segnet_basic(s: State, image: Tensor) -> Tensor:
    """SegNet-Basic, of blue, green, red in 0..255."""

    def layer(name: str, x: Tensor) -> Tensor:
        return conv(s, name, x, 1, 3) * s[f"{name}_bn.weight"] + s[f"{name}_bn.bias"]

    # Caffe's LRN over two channels on either side, alpha 1e-4 and beta 0.75.
    squares = F.pad(image.square(), (0, 0, 0, 0, 2, 2))
    total = sum(squares[:, i : i + 3] for i in range(5))
    x = image / (1 + 1e-4 / 5 * total) ** 0.75
    pooled = []
    for i in range(1, 5):
        x = layer(f"conv{i}", x).relu()
        size = x.shape[-2:]
        x, where = F.max_pool2d(x, 2, 2, ceil_mode=True, return_indices=True)
        pooled.append((where, size))
    for i in range(4, 0, -1):
        where, size = pooled[i - 1]
        x = layer(f"conv_decode{i}", F.max_unpool2d(x, where, 2, 2, output_size=size))
    return conv(s, "conv_classifier", x)


def unpooling_names(segnet: bool) -> list[tuple[str, str, str]]:
    """Kind (conv, pool, up, deconv), layer and normalisation of SegNet or DeconvNet, in the order they run."""
    found = []
    for stage, count in enumerate(STAGES, start=1):
        for i in range(1, count + 1):
            name = f"conv{stage}_{i}"
            found.append(("conv", name, f"{name}_bn" if segnet else f"bn{stage}_{i}"))
        found.append(("pool", f"pool{stage}", ""))
    if not segnet:
        found += [("conv", "fc6", "bnfc6"), ("conv", "fc7", "bnfc7"), ("deconv", "fc6-deconv", "fc6-deconv-bn")]
    for stage, count in zip(range(5, 0, -1), reversed(STAGES), strict=True):
        found.append(("up", f"pool{stage}", ""))
        for i in range(1, count + 1):
            name = f"conv{stage}_{count + 1 - i}_D" if segnet else f"deconv{stage}_{i}"
            found.append(("conv" if segnet else "deconv", name, f"{name}_bn" if segnet else f"debn{stage}_{i}"))
    # SegNet's last layer is its scores.
    return [*found[:-1], ("conv", "conv1_1_D", "")] if segnet else [*found, ("conv", "seg-score-voc", "")]


def unpooling_shapes(segnet: bool, width: int, classes: int) -> Shapes:
    found: Shapes = {}
    inner = 3
    for kind, name, norm in unpooling_names(segnet):
        if kind in ("pool", "up"):
            continue
        side, pad = 3, name
        if name.startswith("fc"):
            outer, side = (64 * width, 1) if name == "fc7" else (64 * width, 7) if name == "fc6" else (8 * width, 7)
        elif not norm:
            outer, side = classes, 3 if segnet else 1
        else:
            stage = int(pad.removeprefix("de").removeprefix("conv")[0])
            outer = width * min(2 ** (stage - 1), 8)
            # The mirror narrows with the last layer of a stage.
            last = name.endswith("_1_D") if segnet else name == f"deconv{stage}_{STAGES[stage - 1]}"
            outer = outer // 2 if last and 1 < stage < 5 else outer
        shape = (inner, outer) if kind == "deconv" else (outer, inner)
        found |= {f"{name}.weight": (*shape, side, side), f"{name}.bias": (outer,)}
        if norm:
            # Blobs of Caffe's normalisation for inference.
            found |= {f"{norm}.weight": (1, outer, 1, 1), f"{norm}.bias": (1, outer, 1, 1)}
        inner = outer
    return found


def unpooled(s: State, image: Tensor, segnet: bool) -> Tensor:
    """SegNet or DeconvNet, of blue, green, red."""
    x = image
    pooled = {}
    for kind, name, norm in unpooling_names(segnet):
        if kind == "pool":
            size = x.shape
            x, where = F.max_pool2d(x, 2, 2, ceil_mode=True, return_indices=True)
            pooled[name] = where, size
        elif kind == "up":
            where, size = pooled[name]
            x = F.max_unpool2d(x, where, 2, 2, output_size=size[-2:])
        else:
            weight, bias = s[f"{name}.weight"], s[f"{name}.bias"]
            padding = 1 if weight.shape[-1] == 3 else 0
            run = F.conv_transpose2d if kind == "deconv" else F.conv2d
            x = run(x, weight, bias, padding=padding)
            x = (x * s[f"{norm}.weight"] + s[f"{norm}.bias"]).relu() if norm else x
    return x
