"""MS-D: a hundred thin dilated layers, each of which reads all previous maps."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from atrousops import functional
from atrousops.common.checks import bad_value
from atrousops.common.conv_arguments import Arguments
from atrousops.models.base import check_images, crop, is_recorded, reflect
from atrousops.models.channels import check_channels
from atrousops.nn import AtrousConv2d
from atrousops.ops import grad_bias, grad_input, grad_weight


class _Grow(torch.autograd.Function):
    """Maps (N, C, H, W) -> (N, C + layers, H + 2 margin, W + 2 margin), mirrored at the border.

    Channel C + i is relu(w_i * previous maps + b_i). All are in one tensor that is written in place. So only C + layers
    maps are stored, and as many gradients; concatenation would store or copy sum_i (C + i) maps.
    """

    @staticmethod
    def forward(ctx: Any, input: Tensor, dilations: tuple[int, ...], width: int, *parameters: Tensor) -> Tensor:
        ctx.dilations, ctx.width, ctx.shape = dilations, width, input.shape
        maps = grow(input, dilations, width, parameters)
        ctx.save_for_backward(maps, *parameters[::2])
        return maps

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        maps, *weights = ctx.saved_tensors
        size, margin = ctx.shape[-2:], max(ctx.dilations)
        # A view of the first maps is contiguous for one image, but not for several.
        grads = grad.clone(memory_format=torch.contiguous_format)
        found: list[Tensor | None] = [None] * (2 * len(weights))
        for i in reversed(range(len(weights))):
            channel = ctx.shape[1] + i
            read = _inputs(ctx.shape[1], i, ctx.width)
            inside = crop(maps[:, channel : channel + 1], margin, size)
            own = _fold(grads[:, channel : channel + 1], margin, size) * (inside > 0)
            gap = margin - ctx.dilations[i]
            own = F.pad(own, (gap,) * 4)
            a = Arguments((1, 1), (0, 0), (ctx.dilations[i],) * 2, 1, ())
            dw = None
            for n in range(len(maps)):
                one = slice(n, n + 1)
                part = grad_weight(own[one], maps[one, :read], (3, 3), a)
                dw = part if dw is None else dw + part
                grads[one, :read] += grad_input(own[one], weights[i], maps[one, :read].shape, a)
            found[2 * i], found[2 * i + 1] = dw, grad_bias(own)
        return _fold(grads[:, : ctx.shape[1]], margin, size), None, None, *found


def grow(input: Tensor, dilations: Sequence[int], width: int, parameters: Sequence[Tensor]) -> Tensor:
    """The result of `_Grow` without gradients. `parameters` alternates weight and bias of each layer."""
    margin, size = max(dilations), input.shape[-2:]
    n, channels = input.shape[:2]
    maps = input.new_empty((n, channels + len(dilations), size[0] + 2 * margin, size[1] + 2 * margin))
    maps[:, :channels] = reflect(input, margin, (margin, margin))
    # One image at a time: its first maps are contiguous, so nothing is copied. A graph must allow any batch size.
    images = [slice(None)] if is_recorded() else [slice(k, k + 1) for k in range(n)]
    for i, dilation in enumerate(dilations):
        read = _inputs(channels, i, width)
        weight, bias = parameters[2 * i : 2 * i + 2]
        for k in images:
            y = functional.conv2d(maps[k, :read], weight, bias, dilation=dilation)
            y = crop(y, margin - dilation, size).relu()
            maps[k, channels + i : channels + i + 1] = reflect(y, margin, (margin, margin))
    return maps


def _inputs(channels: int, index: int, width: int) -> int:
    """The number of input maps of map `index`: the maps of all previous layers."""
    return channels + index // width * width


def _fold(grad: Tensor, margin: int, size: Sequence[int]) -> Tensor:
    """The transpose of `reflect`: maps the gradient of the mirrored map to that of the map."""
    for axis in (2, 3):
        rows = torch.arange(size[axis - 2], device=grad.device).view(1, 1, 1, -1)
        mirrored = reflect(rows, margin, (margin, margin))[0, 0, margin]
        shape = list(grad.shape)
        shape[axis] = size[axis - 2]
        grad = grad.new_zeros(shape).index_add_(axis, mirrored, grad)
    return grad


class MSD(nn.Module):
    """Mixed-scale dense network; see `msd`."""

    def __init__(
        self, num_classes: int, depth: int, width: int, dilations: Sequence[int], in_channels: int = 3
    ) -> None:
        super().__init__()
        check_channels("msd", in_channels)
        if depth < 1 or width < 1:
            bad_value("msd", "depth and width", "be at least 1", f"{depth} and {width}")
        if not dilations or min(dilations) < 1:
            bad_value("msd", "dilations", "be integers of at least 1", dilations, "For example range(1, 11).")
        self.in_channels, self.width = in_channels, width
        self.dilations = tuple(dilations[i % len(dilations)] for i in range(depth * width))
        self.layers = nn.ModuleList(
            AtrousConv2d(_inputs(in_channels, i, width), 1, 3, dilation=dilation)
            for i, dilation in enumerate(self.dilations)
        )
        self.score = AtrousConv2d(in_channels + depth * width, num_classes, 1)
        deviation = math.sqrt(2 / (9 * (in_channels + width * (depth - 1)) + num_classes))
        for layer in self.layers:
            assert isinstance(layer, AtrousConv2d)
            assert layer.bias is not None
            nn.init.normal_(layer.weight, std=deviation)
            nn.init.zeros_(layer.bias)
        nn.init.zeros_(self.score.weight)
        assert self.score.bias is not None
        nn.init.zeros_(self.score.bias)

    def forward(self, input: Tensor) -> dict[str, Tensor]:
        """Scores of every pixel: (N, in_channels, H, W), any size -> {"out": (N, num_classes, H, W)}."""
        check_images(type(self).__name__, input, self.in_channels)
        parameters = list(self.layers.parameters())
        if torch.is_grad_enabled() and not is_recorded():
            maps = _Grow.apply(input, self.dilations, self.width, *parameters)
        else:
            maps = grow(input, self.dilations, self.width, parameters)
        return {"out": crop(self.score(maps), max(self.dilations), input.shape[-2:])}


def msd(
    num_classes: int = 2,
    depth: int = 100,
    width: int = 1,
    dilations: Sequence[int] = tuple(range(1, 11)),
    in_channels: int = 3,
) -> MSD:
    """MS-D: `depth` layers of `width` channels, each computed from all previous channels, with cycling dilations.

    z_i = relu(sum over all channels j of earlier layers of w_ij *_(s_i) z_j + b_i),  s_i = dilations[i mod 10]

    | part | channels | stride |
    |---|---|---|
    | 100 layers 3x3, dilations 1 2 ... 10 1 2 ..., mirrored at the border | 1 each | 1 |
    | scores 1x1 of the image and all layers | num_classes | 1 |

    The maps of all layers are in one tensor, also in training: memory grows linearly with the depth, not quadratically.
    Only first-order gradients are available.

    Release: the authors' msdnet; its weight files are not supported. The initialisation is the same: weights of the
    layers are drawn from a normal distribution of standard deviation sqrt(2 / n), where n = 9 (3 + w (d - 1)) + K.
    Weights of the scores, and all biases, are zero.

    Args:
        num_classes: K.
        depth: d, layers.
        width: w, channels per layer; each channel has its own dilation, dilations[(i w + j) mod 10].
        dilations: to cycle through.
        in_channels: channels of the image.

    Returns:
        (N, in_channels, H, W) -> {"out": (N, K, H, W)}.

    Raises:
        ArgumentError: depth, width or a dilation is below 1.

    Source: Pelt and Sethian, A mixed-scale dense convolutional neural network for image analysis (2018), equations 3
    to 5.
    """
    return MSD(num_classes, depth, width, dilations, in_channels)
