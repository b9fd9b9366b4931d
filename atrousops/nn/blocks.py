"""conv_norm_relu: the building block of DeepLab's heads."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from atrousops.common.checks import bad_value
from atrousops.nn.conv import AtrousConv2d


def check_pooled(name: str, layers: nn.Module, input: Tensor) -> None:
    """For layers after a global pooling: refuses a batch of one, from which batch normalisation cannot train.

    Args:
        name: of the layers in their network.
        layers: those with input (N, C, 1, 1).
        input: the input of the pooling, (N, C, H, W).

    Raises:
        ArgumentError: N is 1, and a batch normalisation among them is in training.
    """
    if not layers.training or len(input) != 1:
        return
    for path, layer in layers.named_modules():
        # SyncBatchNorm also uses the images of other processes.
        if isinstance(layer, _BatchNorm) and not isinstance(layer, nn.SyncBatchNorm) and layer.training:
            bad_value(
                f"{name}.{path}",
                "input",
                f"hold two images or more in training, as {type(layer).__name__} has one value a channel of an image",
                tuple(input.shape),
                "Train with larger batches (or fewer accumulated parts), put this layer into eval(), or give it "
                "another normalisation, such as GroupNorm.",
            )


def conv_norm_relu(
    in_channels: int,
    out_channels: int,
    kernel_size: int = 1,
    dilation: int = 1,
    separable: bool = False,
    norm: Callable[[int], nn.Module] = nn.BatchNorm2d,
    between: bool = True,
) -> nn.Sequential:
    """Convolution that keeps the size, normalisation, ReLU: relu(norm(conv(x))).

    If separable, the convolution is a depthwise one with its own normalisation and ReLU, then a pointwise one; a 1x1
    convolution stays dense.

    Args:
        in_channels, out_channels: C and K.
        kernel_size: odd.
        dilation: the rate.
        separable: atrous separable convolution, Chen et al., DeepLab v3+ (2018), section 3.1.
        norm: makes a normalisation from the number of channels.
        between: whether a separable convolution has the normalisation and the ReLU between its parts.

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
        middle = [norm(in_channels), nn.ReLU()] if between else []
        first = nn.Sequential(depthwise, *middle, conv(in_channels, out_channels, 1))
    else:
        first = conv(in_channels, out_channels, kernel_size)
    return nn.Sequential(first, norm(out_channels), nn.ReLU())
