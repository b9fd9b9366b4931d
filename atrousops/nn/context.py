"""ContextModule: increasing context at full resolution."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from atrousops import ops
from atrousops.common.checks import bad_value
from atrousops.nn.conv import AtrousConv2d
from atrousops.nn.in_place import leaf
from atrousops.ops.context_module import runs_as_one

# Table 1 of the paper; a 1x1 layer follows.
_DILATIONS = (1, 1, 2, 4, 8, 16, 1)


def _widths(kind: str, count: int) -> list[int]:
    """Channels of each 3x3 layer in units of C: (2, 2, 4, 8, 16, 32, 32) for seven of the large module."""
    if kind == "basic":
        return [1] * count
    doubled = [2 ** max(1, i) for i in range(count)]
    return doubled[:-1] + doubled[-2:-1] if count > 1 else doubled


@leaf
class ContextModule(nn.Module):
    """Aggregates context by dilated convolutions without loss of resolution.

    3x3 convolutions, with dilation 1, 1, 2, 4, 8, 16, 1 in the paper, each followed by max(., 0), then a 1x1
    convolution. Maps keep their size; the receptive field is 67 x 67.

    The weights start as the identity: k^b(t, a) = C / c_out where t = 0 and floor(a C / c_in) = floor(b C / c_out),
    for input map a and output map b (eq. (5)); in the basic module, where all widths are C, this is eq. (4). The other
    weights are 0 (basic), or normal noise that breaks ties (large). So the initial module returns a non-negative input
    unchanged, also at borders (except for the noise).

    Args:
        channels: C, of input and output.
        kind: "basic" (all layers C wide) or "large" (2C, 2C, 4C, 8C, 16C, 32C, 32C, C).
        noise: standard deviation of the large module's noise in units of C / c_out.
        dilations: of the 3x3 layers. The authors' releases have, with the 1x1 layer, eight layers for VOC and CamVid,
            seven for KITTI, (1, 1, 2, 4, 8, 1), and ten for Cityscapes, (1, 1, 2, 4, 8, 16, 32, 64, 1).
        border: "layers": each layer pads with zeros by its dilation (CamVid, KITTI, Cityscapes); "input": the input is
            padded with zeros by all of them, 33, and no layer pads, so that positions outside the border pass through
            biases and ReLUs too (VOC).

    Shapes:
        input: (N, C, H, W) or (C, H, W), any floating dtype; output: the same.

    Raises:
        ArgumentError: `channels` or a dilation below 1, no dilation, an unknown `kind` or `border`, or a negative
            `noise`.

    Source: Yu & Koltun, Multi-scale context aggregation by dilated convolutions (2016), section 3, table 1;
    the authors' release, fyu/dilation.
    """

    def __init__(
        self,
        channels: int,
        kind: str = "basic",
        noise: float = 0.01,
        dilations: Sequence[int] = _DILATIONS,
        border: str = "layers",
    ) -> None:
        super().__init__()
        if kind not in ("basic", "large"):
            bad_value("ContextModule", "kind", 'be "basic" or "large"', repr(kind))
        if channels < 1:
            bad_value("ContextModule", "channels", "be at least 1", channels)
        if noise < 0:
            bad_value("ContextModule", "noise", "be 0 or more", noise)
        if not dilations or min(dilations) < 1:
            bad_value("ContextModule", "dilations", "be integers of at least 1", dilations, f"Such as {_DILATIONS}.")
        if border not in ("layers", "input"):
            bad_value("ContextModule", "border", 'be "layers" or "input"', repr(border))
        self.channels, self.kind, self.noise = channels, kind, noise
        self.margin = sum(dilations) if border == "input" else 0
        widths = [channels * factor for factor in (1, *_widths(kind, len(dilations)), 1)]
        layers = [
            AtrousConv2d(widths[i], widths[i + 1], 3, padding=0 if self.margin else d, dilation=d)
            for i, d in enumerate(dilations)
        ]
        self.layers = nn.ModuleList([*layers, AtrousConv2d(widths[-2], widths[-1], 1)])
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Makes the module the identity again, eq. (4) and (5)."""
        for layer in self.layers:
            assert isinstance(layer, AtrousConv2d)
            c_out, c_in = layer.weight.shape[:2]
            centre = layer.kernel_size[0] // 2
            share = self.channels / c_out
            if self.kind == "large":
                layer.weight.normal_(0.0, self.noise * share)
            else:
                layer.weight.zero_()
            group_in = torch.arange(c_in, device=layer.weight.device) * self.channels // c_in
            group_out = torch.arange(c_out, device=layer.weight.device) * self.channels // c_out
            middle = layer.weight[:, :, centre, centre]
            middle.masked_fill_(group_out[:, None] == group_in, share)
            assert layer.bias is not None
            layer.bias.zero_()

    def forward(self, input: Tensor) -> Tensor:
        if self.margin:
            input = nn.functional.pad(input, (self.margin,) * 4)
        elif self.kind == "basic" and (one := self._as_one(input)) is not None:
            return one
        *inner, last = self.layers
        for layer in inner:
            input = nn.functional.relu(layer(input))
        return last(input)

    def _as_one(self, input: Tensor) -> Tensor | None:
        """All layers by one operator, if that operator runs them and the layers are unchanged."""
        plain = [x for x in self.layers if not (x._forward_hooks or x._forward_pre_hooks)]
        layers = [layer for layer in plain if type(layer) is AtrousConv2d]
        biases = [layer.bias for layer in layers if layer.bias is not None]
        if len(biases) != len(self.layers):
            return None
        weights, dilation = [layer.weight for layer in layers], [layer.dilation[0] for layer in layers]
        if not runs_as_one(input, weights, biases, dilation):
            return None
        return ops.context_module(input, weights, biases, dilation)

    def extra_repr(self) -> str:
        return f"{self.channels}, kind={self.kind!r}"
