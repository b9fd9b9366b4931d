"""Auto-DeepLab: a network found by architecture search, built from a description of its cell and its path."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from atrousops.common.checks import bad_value
from atrousops.models.base import Features, SegmentationModel, resize
from atrousops.models.channels import check_channels
from atrousops.models.deeplab_v3plus import DeepLabV3PlusHead
from atrousops.nn import AtrousConv2d

Edge = tuple[int, str]


@dataclass(frozen=True)
class Genotype:
    """A cell and a path through resolutions.

    blocks: each sums two edges (state, operation). State 0 is the output of the previous cell, 1 of the one before
    that, 2 and higher those of the blocks. The cell's output concatenates all blocks. Operations are "atrous3",
        "atrous5" (rate 2), "separable3" and "separable5" (twice).
    path: log2(stride) - 2 of each cell.
    """

    blocks: tuple[tuple[Edge, Edge], ...]
    path: tuple[int, ...]


PUBLISHED = Genotype(
    blocks=(
        ((1, "atrous5"), (0, "separable3")),
        ((1, "separable3"), (0, "atrous3")),
        ((3, "separable3"), (1, "separable3")),
        ((4, "separable5"), (2, "separable5")),
        ((3, "separable5"), (5, "atrous5")),
    ),
    path=(0, 0, 0, 1, 2, 1, 2, 2, 3, 3, 2, 1),
)


def _norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=1e-3)


def _project(in_channels: int, out_channels: int) -> nn.Sequential:
    return nn.Sequential(nn.ReLU(), AtrousConv2d(in_channels, out_channels, 1, bias=False), _norm(out_channels))


def _half(input: Tensor) -> Tensor:
    return resize(input, [(side + 1) // 2 for side in input.shape[-2:]], align_corners=True)


def _twice(input: Tensor) -> Tensor:
    """Upsamples to 2 n - 1 positions, which keeps the corners aligned."""
    return resize(input, [2 * side - 1 for side in input.shape[-2:]], align_corners=True)


class _Operation(nn.Module):
    """One edge of a cell, C -> C channels: ReLU, convolution, normalisation; twice if separable."""

    def __init__(self, name: str, channels: int, stride: int) -> None:
        super().__init__()
        kind, size = name[:-1], int(name[-1])
        self.halves = kind == "atrous" and stride == 2
        self.layers = nn.Sequential()
        if kind == "atrous":
            # Halving is done by interpolation, so convolutions have stride 1.
            rate = 1 if self.halves else 2
            conv = AtrousConv2d(channels, channels, size, padding=rate * (size // 2), dilation=rate, bias=False)
            self.layers.extend([nn.ReLU(), conv, _norm(channels)])
            return
        for step in (stride, 1):
            depthwise = AtrousConv2d(channels, channels, size, step, size // 2, groups=channels, bias=False)
            pointwise = AtrousConv2d(channels, channels, 1, bias=False)
            self.layers.extend([nn.ReLU(), depthwise, pointwise, _norm(channels)])

    def forward(self, input: Tensor) -> Tensor:
        # The input of an interpolation has a ReLU, so the ReLU of the layers does not change it.
        return self.layers(_half(input.relu()) if self.halves else input)


class Cell(nn.Module):
    """A cell of the network: the outputs of two cells before it -> (N, blocks x channels, h, w).

    Args:
        blocks: as in `Genotype`.
        before: channels of the previous cell, and of the one before that.
        channels: of each block.
        change: of the level: -1 doubles the size, 1 halves it.
    """

    def __init__(
        self, blocks: tuple[tuple[Edge, Edge], ...], before: tuple[int, int], channels: int, change: int
    ) -> None:
        super().__init__()
        self.change = change
        self.sources = [(left[0], right[0]) for left, right in blocks]
        self.last = _project(before[0], channels)
        self.older = nn.Identity() if before[1] == channels else _project(before[1], channels)
        # Only inputs from other cells still have to be halved.
        self.edges = nn.ModuleList(
            _Operation(name, channels, 2 if change == 1 and state < 2 else 1) for pair in blocks for state, name in pair
        )

    def forward(self, last: Tensor, older: Tensor) -> Tensor:
        if self.change == -1:
            last = _twice(last)
        states = [self.last(last), self.older(resize(older, last.shape[-2:], align_corners=True))]
        edges = iter(self.edges)
        for left, right in self.sources:
            states.append(next(edges)(states[left]) + next(edges)(states[right]))
        return torch.cat(states[2:], dim=1)


class SearchedEncoder(nn.Module):
    """Stem and cells: images -> features "low" (of the last of the first cells at stride 4) and "out"."""

    def __init__(self, genotype: Genotype, width: int, in_channels: int = 3) -> None:
        super().__init__()
        check_channels("auto_deeplab", in_channels)
        self.in_channels = in_channels
        _check(genotype)
        if width < 1:
            bad_value("auto_deeplab", "width", "be at least 1", width)

        def layer(inner: int, outer: int, stride: int) -> nn.Sequential:
            return nn.Sequential(AtrousConv2d(inner, outer, 3, stride, 1, bias=False), _norm(outer))

        self.stem = nn.ModuleList([layer(in_channels, 64, 2), layer(64, 64, 1), layer(64, 128, 2)])
        self.cells = nn.ModuleList()
        channels = [64, 128]
        level = 0
        for deeper in genotype.path:
            inner = width * 2**deeper
            before = (channels[-1], channels[-2])
            self.cells.append(Cell(genotype.blocks, before, inner, deeper - level))
            channels.append(inner * len(genotype.blocks))
            level = deeper
        left = [i for i, deeper in enumerate(genotype.path) if deeper != 0]
        self.low = (left[0] if left else len(genotype.path)) - 1
        self.channels = {"low": channels[self.low + 2], "out": channels[-1]}

    def forward(self, input: Tensor) -> Features:
        older = self.stem[1](self.stem[0](input).relu())
        last = self.stem[2](older.relu())
        low = last
        for index, cell in enumerate(self.cells):
            last, older = cell(last, older), last
            if index == self.low:
                low = last
        return {"low": low, "out": last.relu()}


def _check(genotype: Genotype) -> None:
    known = ("atrous3", "atrous5", "separable3", "separable5")
    for number, pair in enumerate(genotype.blocks):
        for state, name in pair:
            if name not in known or not 0 <= state < number + 2:
                rule = f"have operations {', '.join(known)} on states before block {number}"
                bad_value("auto_deeplab", "genotype", rule, (state, name))
    steps = [after - before for before, after in zip((0, *genotype.path), genotype.path, strict=False)]
    if not genotype.path or not genotype.blocks or min(genotype.path) < 0 or max(map(abs, steps)) > 1:
        bad_value("auto_deeplab", "genotype", "have blocks, and a path from 0 in steps of at most 1", genotype.path)


def auto_deeplab(
    num_classes: int = 19, width: int = 20, genotype: Genotype = PUBLISHED, in_channels: int = 3
) -> SegmentationModel:
    """Auto-DeepLab: the published cell, twelve times along the published path, and the decoder of DeepLab v3+.

    | part | channels at width F | stride |
    |---|---|---|
    | stem: three 3x3 | 64 64 128 | 2 2 4 |
    | cells 1 to 3 ("low" is the third) | 5 F | 4 |
    | cells 4 to 12 | 5 F x 2 4 2 4 4 8 8 4 2 | 8 16 8 16 16 32 32 16 8 |
    | ASPP: 1x1, 3x3 at rates 12 24 36, image pooling | 256 | 8 |
    | decoder with low-level features, see `DeepLabV3PlusHead`, not separable | 256 num_classes | 4 1 |

    Auto-DeepLab-S, -M and -L have width 20, 32 and 48. As in the authors' release all interpolations align corners, so
    that n positions become (n + 1) / 2 or 2 n - 1: 513 pixels become 129, 65, 33 and 17. The low-level features of the
    third cell are projected without a ReLU.

    Release: TensorFlow's deeplab (hnasnet), whose variables `load_published` reads; the authors published no
    checkpoint. Deliberate differences: maps of even size are padded on both sides, while TensorFlow pads below and to
    the right, so images should have 32 n + 1 pixels; and there is no drop path in training.

    Args:
        num_classes: K.
        width: F, channels of a block at stride 4.
        genotype: the cell and the path.
        in_channels: channels of the image.

    Returns:
        (N, in_channels, H, W) -> {"out": (N, K, H, W)}.

    Raises:
        ArgumentError: the genotype cannot be built, or width is below 1.

    Source: Liu et al., Auto-DeepLab: hierarchical neural architecture search for semantic image segmentation (2019),
    figure 3, section 5.1, table 2; the cell as in the authors' release, and the head according to the table's parameter
    counts (10.15, 21.62, 44.42 M).
    """
    encoder = SearchedEncoder(genotype, width, in_channels)
    first = max(1, 24 // 2 ** genotype.path[-1])
    rates = (first, 2 * first, 3 * first)
    channels = encoder.channels
    head = DeepLabV3PlusHead(channels["out"], channels["low"], num_classes, rates, separable=False, align_corners=True)
    return SegmentationModel(encoder, head, align_corners=True)
