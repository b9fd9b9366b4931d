"""conv_norm_relu: the block that DeepLab's heads are made of."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from atrousops.nn.conv import AtrousConv2d


def conv_norm_relu(
    in_channels: int,
    out_channels: int,
    kernel_size: int = 1,
    dilation: int = 1,
    separable: bool = False,
    norm: Callable[[int], nn.Module] = nn.BatchNorm2d,
) -> nn.Sequential:
    """Convolution that keeps the size, normalisation, ReLU: relu(norm(conv(x))).

    Separable, the convolution is a depthwise one with its own normalisation and ReLU, then a pointwise one; a 1x1
    convolution has nothing to separate and stays dense.

    Args:
        in_channels, out_channels: C and K.
        kernel_size: odd.
        dilation: the rate.
        separable: atrous separable convolution, Chen et al., DeepLab v3+ (2018), section 3.1.
        norm: makes the normalisation of so many channels.

    Returns:
        (N, C, H, W) -> (N, K, H, W), state-dict keys `0` (convolution) and `1` (normalisation).
    """

    def conv(inner: int, outer: int, size: int, groups: int = 1) -> AtrousConv2d:
        return AtrousConv2d(
            inner,
            outer,
            size,
            padding=dilation * (size - 1) // 2,
            dilation=dilation if size > 1 else 1,
            groups=groups,
            bias=False,
        )

    first: nn.Module
    if separable and kernel_size > 1:
        depthwise = conv(in_channels, in_channels, kernel_size, groups=in_channels)
        first = nn.Sequential(depthwise, norm(in_channels), nn.ReLU(), conv(in_channels, out_channels, 1))
    else:
        first = conv(in_channels, out_channels, kernel_size)
    return nn.Sequential(first, norm(out_channels), nn.ReLU())
