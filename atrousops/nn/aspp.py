"""ASPP: atrous spatial pyramid pooling."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from atrousops.common.checks import bad_value
from atrousops.nn.blocks import check_pooled, conv_norm_relu
from atrousops.nn.branches import run_branches
from atrousops.nn.conv import FusedConv2d
from atrousops.nn.sequence import activation_of, does_nothing, flat, hooks_on_all, run_layers, single, watched


class _ImagePooling(nn.Sequential):
    """The image-level feature: global average, 1x1 convolution, repeated for every pixel."""

    def __init__(self, in_channels: int, out_channels: int, norm: Callable[[int], nn.Module], name: str) -> None:
        super().__init__(nn.AdaptiveAvgPool2d(1), *conv_norm_relu(in_channels, out_channels, norm=norm))
        self.name = name

    def forward(self, input: Tensor) -> Tensor:
        check_pooled(self.name, self, input)
        return spread(run_layers(self.children(), input), input)


def spread(pooled: Tensor, like: Tensor) -> Tensor:
    """A map of one pixel repeated to the size and memory format of another; equal to bilinear upsampling."""
    # The memory format is given explicitly: a 1x1 map has none, and concat would return NCHW.
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
        rates: the dilations r_i, each at least 1; in DeepLab v3 (6, 12, 18) at output stride 16, and twice that at 8.
        out_channels: K, of every branch and of the result.
        separable: atrous separable convolutions in the branches (DeepLab v3+).
        between: for separable convolutions, see `conv_norm_relu`.
        image_pooling: whether to have the image-level branch.
        norm: makes a normalisation from the number of channels.
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
        between: bool = True,
    ) -> None:
        super().__init__()
        rates = tuple(rates)
        if not all(isinstance(rate, int) and rate >= 1 for rate in rates):
            bad_value("ASPP", "rates", "be integers of at least 1", rates, "For example (6, 12, 18).")
        branches: list[nn.Module] = [conv_norm_relu(in_channels, out_channels, norm=norm)]
        branches += [conv_norm_relu(in_channels, out_channels, 3, rate, separable, norm, between) for rate in rates]
        if image_pooling:
            branches.append(_ImagePooling(in_channels, out_channels, norm, f"ASPP.convs.{len(branches)}"))
        self.convs = nn.ModuleList(branches)
        self.project = nn.Sequential(
            *conv_norm_relu(len(branches) * out_channels, out_channels, norm=norm), nn.Dropout(dropout)
        )

    def forward(self, input: Tensor) -> Tensor:
        if (joined := run_aspp(self, input)) is not None:
            return joined
        return self.project(torch.cat([branch(input) for branch in self.convs], dim=1))


def run_aspp(aspp: Any, input: Tensor) -> Tensor | None:
    """The result of an ASPP whose layers `optimize` has prepared, in fewer steps; None if they are not prepared.

    The branches are one layer (`run_branches`). The image-level branch is not repeated for every pixel:
    conv_1x1(concat(a, repeat(p)); w) = conv_1x1(a; w_a) + conv_1x1(p; w_p), the last term on a single pixel. With
    16-bit weights it is repeated, because this would add one rounding.

    Args:
        aspp: of this module's class or torchvision's, with `convs` and `project`; the last branch may be image-level.
    """
    project = next(flat([aspp.project]), None)
    if type(project) is not FusedConv2d or not isinstance(input, Tensor) or input.dim() != 4:
        return None
    if hooks_on_all() or any([watched(layer) for layer in aspp.modules() if layer is not aspp]):
        return None
    pooling = aspp.convs[-1] if isinstance(aspp.convs[-1][0], nn.AdaptiveAvgPool2d) else None
    branches = [single(branch) for branch in aspp.convs if branch is not pooling]
    layers = [branch[0] for branch in branches if branch is not None]
    activation = branches[0][1] if branches[0] is not None else None
    alike = len(layers) == len(branches) and all([branch[1] == activation for branch in branches if branch is not None])
    if not alike and pooling is None:
        return None
    pooled = None if pooling is None else run_layers(pooling.children(), input)
    # The joint launch takes one map of all features in 16 bits.
    apart = project.weight.itemsize >= 4 and _is_pointwise(project)
    others = [] if pooled is None or apart else [spread(pooled, input)]
    if alike:
        x = run_branches(layers, activation, input, others)
    else:
        x = torch.cat([*[branch(input) for branch in aspp.convs if branch is not pooling], *others], 1)
    if pooled is None or not apart:
        return aspp.project(x)
    weight, channels = project.weight, pooled.shape[1]
    of_image = nn.functional.conv2d(pooled, weight[:, -channels:])
    rest = weight[:, :-channels]
    if project.channels_last:
        rest = rest.contiguous(memory_format=torch.channels_last)
    following = [layer for layer in flat([aspp.project]) if not does_nothing(layer)][1:]
    name = activation_of(following[0]) if following else None
    return run_layers(following[1:] if name else following, project.convolve(x, rest, of_image, name))


def _is_pointwise(layer: FusedConv2d) -> bool:
    geometry = layer.kernel_size == layer.stride == (1, 1) and layer.padding in ((0, 0), "same", "valid")
    return geometry and layer.groups == 1
