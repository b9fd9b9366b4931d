"""AtrousConv1d/2d/3d and AtrousConvTranspose1d/2d/3d: torch.nn's layers on this package's convolutions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from atrousops import ops
from atrousops.common.checks import bad_value
from atrousops.common.values import transformed
from atrousops.nn.in_place import in_place_of, leaf
from atrousops.ops.conv import frozen

_FROZEN = {rank: frozen(rank) for rank in (1, 2, 3)}
_CHANNELS_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}


class _AtrousConv(_ConvNd):
    """Base of the three ranks. No class here adds state, so that a layer of torch.nn can be converted to it."""

    _function: ClassVar[Callable[..., Tensor]]

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        padding: Any = self.padding
        if self.padding_mode != "zeros":
            input, padding = self._padded(input), 0
        return self._function(input, weight, bias, self.stride, padding, self.dilation, self.groups)

    def _padded(self, input: Tensor) -> Tensor:
        # Objects without checkable sizes go to PyTorch: non-tensors, nested tensors, proxies of torch.fx.
        if isinstance(input, Tensor) and not input.is_nested:
            self._check_padding(input)
        return torch.nn.functional.pad(input, self._reversed_padding_repeated_twice, mode=self.padding_mode)

    def _check_padding(self, input: Tensor) -> None:
        rank = len(self.kernel_size)
        _check_rank(self, input)
        # Reflection repeats everything except the edge itself; circular padding may repeat the whole axis.
        room = {"reflect": -1, "circular": 0}.get(self.padding_mode)
        if room is not None:
            widest = [max(self._reversed_padding_repeated_twice[2 * i : 2 * i + 2]) for i in reversed(range(rank))]
            sizes = list(input.shape[-rank:])
            if any(pad > size + room for pad, size in zip(widest, sizes)):
                limit = "spatial size - 1" if room else "spatial size"
                bad_value(
                    type(self).__name__,
                    "padding",
                    f"be at most the input's {limit} where padding_mode={self.padding_mode!r}",
                    f"padding {widest} for an input of {sizes}",
                    'Use padding_mode="zeros" or "replicate", or a larger input.',
                )


class _FusedConv(_AtrousConv):
    """Base of the three ranks of the layers that `optimize` makes from convolutions."""

    # Whether an input of four or five axes is converted to channels_last.
    channels_last: bool = False
    # Whether the result is always contiguous, because later code reads its strides.
    contiguous_output: bool = False
    # Whether its own weight is kept in the format that oneDNN multiplies it in, besides: `optimize(..., freeze=True)`.
    frozen: bool = False

    def forward(self, input: Tensor, residual: Tensor | None = None, activation: str | None = None) -> Tensor:
        return self.convolve(input, self.weight, residual, activation)

    def convolve(self, input: Tensor, weight: Tensor, residual: Tensor | None, activation: str | None) -> Tensor:
        """activation(convolution with another weight + residual)."""
        # vmap knows contiguous tensors only.
        if self.channels_last and input.dim() == len(self.kernel_size) + 2 and not transformed():
            input = input.contiguous(memory_format=_CHANNELS_LAST.get(input.dim(), torch.contiguous_format))
        padding: Any = self.padding
        if self.padding_mode != "zeros":
            input, padding = self._padded(input), 0
        around = (self.stride, padding, self.dilation, self.groups)
        if self.frozen and weight is self.weight:
            y = _FROZEN[len(self.kernel_size)](input, weight, self.bias, around, residual, activation)
        else:
            y = self._function(input, weight, self.bias, *around, residual=residual, activation=activation)
        return y.contiguous() if self.contiguous_output else y


class _AtrousConvTranspose(_ConvTransposeNd):
    """Base of the three ranks."""

    _function: ClassVar[Callable[..., Tensor]]

    def forward(self, input: Tensor, output_size: list[int] | None = None) -> Tensor:
        output_padding: Any = self.output_padding
        if output_size is not None:
            _check_rank(self, input)
            # torch's annotation here is a list.
            resolve: Any = self._output_padding
            rank = len(self.kernel_size)
            output_padding = resolve(
                input, output_size, self.stride, self.padding, self.kernel_size, rank, self.dilation
            )
        return self._function(
            input, self.weight, self.bias, self.stride, self.padding, output_padding, self.groups, self.dilation
        )


def _check_rank(layer: _ConvNd, input: Tensor) -> None:
    rank = len(layer.kernel_size)
    if input.dim() not in (rank + 1, rank + 2):
        axes = ", ".join("DHW"[-rank:]) if rank > 1 else "L"
        bad_value(
            type(layer).__name__,
            "input",
            f"have shape (N, C, {axes}) or (C, {axes})",
            f"shape {tuple(input.shape)}",
        )


@in_place_of(nn.Conv1d)
class AtrousConv1d(_AtrousConv, nn.Conv1d):
    """torch.nn.Conv1d on functional.conv1d: (N, C, L) -> (N, K, L_out); see AtrousConv2d."""

    _function = staticmethod(ops.conv1d)


@in_place_of(nn.Conv2d)
class AtrousConv2d(_AtrousConv, nn.Conv2d):
    """Convolution with gaps of `dilation` between the taps (atrous convolution), over images.

    y[n, k, p, q] = bias[k] + sum over c, r, s of
        w[k, c, r, s] x[n, c, stride[0] p + dilation[0] r - padding[0], stride[1] q + dilation[1] s - padding[1]]

    A drop-in for `torch.nn.Conv2d`: the same constructor, initialisation, state dict and `padding_mode`s.

    Shapes:
        input: (N, C, H, W) or (C, H, W), float64, float32, bfloat16 or float16, contiguous or channels_last.
        output: (N, K, P, Q) or (K, P, Q) in the input's memory format; each axis
            (size + 2 padding - dilation (kernel_size - 1) - 1) // stride + 1.

    Raises:
        ArgumentError, ArgumentTypeError: shapes or dtypes that do not fit; the message has a remedy.

    Source: Yu & Koltun, Multi-scale context aggregation by dilated convolutions (2016), eq. (2);
    Chen et al., DeepLab (2018), section 3.1.
    """

    _function = staticmethod(ops.conv2d)


@in_place_of(nn.Conv3d)
class AtrousConv3d(_AtrousConv, nn.Conv3d):
    """torch.nn.Conv3d on functional.conv3d: (N, C, D, H, W) -> (N, K, D_out, H_out, W_out); see AtrousConv2d."""

    _function = staticmethod(ops.conv3d)


@in_place_of(nn.ConvTranspose1d)
class AtrousConvTranspose1d(_AtrousConvTranspose, nn.ConvTranspose1d):
    """torch.nn.ConvTranspose1d on functional.conv_transpose1d, for (N, C, L); see AtrousConvTranspose2d."""

    _function = staticmethod(ops.conv_transpose1d)


@in_place_of(nn.ConvTranspose2d)
class AtrousConvTranspose2d(_AtrousConvTranspose, nn.ConvTranspose2d):
    """Transposed convolution over images: the gradient of `AtrousConv2d` with respect to its input.

    y[n, k, stride p + dilation r - padding] += x[n, c, p] w[c, k, r] on both axes, then + bias[k]

    A drop-in for `torch.nn.ConvTranspose2d`.

    Shapes:
        input: (N, C, H, W) or (C, H, W), float64, float32, bfloat16 or float16, contiguous or channels_last.
        output: (N, K, P, Q) or (K, P, Q) in the input's memory format; each axis
            (size - 1) stride - 2 padding + dilation (kernel_size - 1) + output_padding + 1;
            forward's `output_size` picks one of the `stride` sizes that fit.

    Raises:
        ArgumentError, ArgumentTypeError: shapes or dtypes that do not fit; the message has a remedy.

    Source: Zeiler et al., Adaptive deconvolutional networks (2011); Long et al., FCN (2015), section 3.3.
    """

    _function = staticmethod(ops.conv_transpose2d)


@in_place_of(nn.ConvTranspose3d)
class AtrousConvTranspose3d(_AtrousConvTranspose, nn.ConvTranspose3d):
    """torch.nn.ConvTranspose3d on functional.conv_transpose3d, for (N, C, D, H, W); see AtrousConvTranspose2d."""

    _function = staticmethod(ops.conv_transpose3d)


@leaf
class FusedConv1d(_FusedConv, AtrousConv1d):
    """activation(AtrousConv1d(input) + residual); see FusedConv2d."""


@leaf
class FusedConv2d(_FusedConv, AtrousConv2d):
    """activation(AtrousConv2d(input) + residual) in one call; `atrousops.optimize` makes such layers.

    `forward(input, residual=None, activation=None)`; activation is None, "relu", "relu6", "hardswish" or "silu". If the
    attribute `channels_last` is set, the input is converted to that first; if `contiguous_output` is set, the result is
    always contiguous.

    Shapes:
        input: (N, C, H, W) or (C, H, W); residual: the output's shape, or one that broadcasts with it, or None.
        output: as AtrousConv2d's.
    """


@leaf
class FusedConv3d(_FusedConv, AtrousConv3d):
    """activation(AtrousConv3d(input) + residual); see FusedConv2d."""
