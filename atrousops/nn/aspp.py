"""ASPP: atrous spatial pyramid pooling."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from atrousops._checks import bad_value
from atrousops._graphs import whole
from atrousops.nn.blocks import check_pooled, conv_norm_relu


class _ImagePooling(nn.Sequential):
    """The image-level feature: global average, 1x1 convolution, and every pixel gets it."""

    def __init__(self, in_channels: int, out_channels: int, norm: Callable[[int], nn.Module], name: str) -> None:
        super().__init__(nn.AdaptiveAvgPool2d(1), *conv_norm_relu(in_channels, out_channels, norm=norm))
        self.name = name

    def forward(self, input: Tensor) -> Tensor:
        check_pooled(self.name, self, input)
        return spread(super().forward(input), input)


@whole
def spread(pooled: Tensor, like: Tensor) -> Tensor:
    """A map of one pixel repeated to the size and memory format of another, as bilinear upsampling of it would do."""
    # The format is said aloud: a 1x1 map has lost it, and concat would then answer in NCHW whatever the others are.
    nhwc = like.is_contiguous(memory_format=torch.channels_last) and not like.is_contiguous()
    repeated = pooled.expand(-1, -1, *like.shape[-2:])
    return repeated.contiguous(memory_format=torch.channels_last if nhwc else torch.contiguous_format)


class ASPP(nn.Module):
    """Atrous spatial pyramid pooling: the same features seen at several rates at once.

    y = dropout(f_1x1(concat(f_1x1(x), f_3x3 rate r_1 (x), ..., f_3x3 rate r_n (x), image pooling(x)))),
    where f is a convolution without bias, batch normalisation and ReLU.

    The state dict is that of `torchvision.models.segmentation.deeplabv3.ASPP`, whose weights load.

    Args:
        in_channels: C.
        rates: the dilations r_i, each at least 1; DeepLab v3 has (6, 12, 18) at output stride 16, and twice that at 8.
        out_channels: K, of every branch and of the result.
        separable: atrous separable convolutions in the branches (DeepLab v3+).
        image_pooling: whether the image-level branch is there.
        norm: makes the normalisation of so many channels.
        dropout: probability at the end.

    Shapes:
        input: (N, C, H, W); output: (N, K, H, W) in the input's memory format.

    Raises:
        ArgumentError: a rate below 1, a bad input shape, or one image in training with image pooling.

    Source: Chen et al., Rethinking atrous convolution for semantic image segmentation (2017), section 3.3.
    """

    def __init__(
        self,
        in_channels: int,
        rates: Sequence[int],
        out_channels: int = 256,
        separable: bool = False,
        image_pooling: bool = True,
        norm: Callable[[int], nn.Module] = nn.BatchNorm2d,
        dropout: float = 0.5,
    ) -> None:
        super().__init__()
        rates = tuple(rates)
        if not all(isinstance(rate, int) and rate >= 1 for rate in rates):
            bad_value("ASPP", "rates", "be integers of at least 1", rates, "For example (6, 12, 18).")
        branches: list[nn.Module] = [conv_norm_relu(in_channels, out_channels, norm=norm)]
        branches += [conv_norm_relu(in_channels, out_channels, 3, rate, separable, norm) for rate in rates]
        if image_pooling:
            branches.append(_ImagePooling(in_channels, out_channels, norm, f"ASPP.convs.{len(branches)}"))
        self.convs = nn.ModuleList(branches)
        self.project = nn.Sequential(
            *conv_norm_relu(len(branches) * out_channels, out_channels, norm=norm), nn.Dropout(dropout)
        )

    def forward(self, input: Tensor) -> Tensor:
        return self.project(torch.cat([branch(input) for branch in self.convs], dim=1))
