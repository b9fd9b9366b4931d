"""conv_transpose1d, conv_transpose2d, conv_transpose3d: transposed convolution, as torch.nn.functional has it."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor

from atrousops import reference
from atrousops.common.conv_arguments import Arguments, check_conv_transpose, transposed_size
from atrousops.common.formats import empty_as_kernel
from atrousops.dispatch.devices import allow_tf32
from atrousops.ops._conv_format import in_format
from atrousops.ops._conv_maps import convolve, derivatives, grad_weight, keep_pair
from atrousops.ops._register import register
from atrousops.ops._routes import Call, kernel_of, route_of, run
from atrousops.ops.conv import Convolution, find, find_unusual, may_be_channels_last

Size = int | Sequence[int]


def conv_transpose1d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Size = 1,
    padding: Size = 0,
    output_padding: Size = 0,
    groups: int = 1,
    dilation: Size = 1,
) -> Tensor:
    """Transposed convolution over sequences (N, K, L) or (K, L); `conv_transpose2d` on one axis."""
    return run(_CONV_TRANSPOSE1D, input, weight, bias, (stride, padding, output_padding, groups, dilation))


def conv_transpose2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Size = 1,
    padding: Size = 0,
    output_padding: Size = 0,
    groups: int = 1,
    dilation: Size = 1,
) -> Tensor:
    """Transposed convolution of images: the same map as the gradient of `conv2d` with respect to its input.

    y[n, c, stride * i + dilation * r - padding] += weight[k, c, r] * x[n, k, i], on both axes, plus bias[c]

    With a stride, output positions are computed by their residue, without multiplications by the inserted zeros.

    Args:
        input: (N, K, H, W) or (K, H, W); N may be 0.
        weight: (K, C / groups, kernel_h, kernel_w), of input's dtype.
        bias: (C,).
        stride: distance between the outputs of neighbouring inputs, in output pixels.
        padding: output pixels left out on each side.
        output_padding: output pixels added at the end of each axis; smaller than stride or dilation.
        groups: number of groups that channels are divided into.
        dilation: distance between taps, in output pixels.

    Returns:
        (N, C, H_out, W_out) or (C, H_out, W_out) in input's dtype and memory format, with
        H_out = (H - 1) stride - 2 padding + dilation (kernel_h - 1) + output_padding + 1.

    Raises:
        ArgumentError: a size, stride, padding, dilation or groups that does not fit; it is a RuntimeError too.
        ArgumentTypeError: an argument of a wrong type, or tensors of different dtypes.

    Source: Zeiler et al., Adaptive deconvolutional networks (2011); Long et al., FCN (2015), section 3.3.
    """
    # `run` inlined, as in conv2d.
    route = route_of(_CONV_TRANSPOSE2D, input, weight, bias, (stride, padding, output_padding, groups, dilation))
    return route.run(input, weight, bias, *route.rest) if route.rest else route.run(input, weight, bias)


def conv_transpose3d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Size = 1,
    padding: Size = 0,
    output_padding: Size = 0,
    groups: int = 1,
    dilation: Size = 1,
) -> Tensor:
    """Transposed convolution of volumes (N, K, D, H, W) or (K, D, H, W); `conv_transpose2d` on three axes."""
    return run(_CONV_TRANSPOSE3D, input, weight, bias, (stride, padding, output_padding, groups, dilation))


def _ours(input: Tensor, weight: Tensor, bias: Tensor | None, a: Arguments, first: int = 0) -> Tensor:
    rest = (a.stride, a.padding, a.output_padding, a.dilation, a.groups, allow_tf32(input), first)
    kernel = kernel_of("conv_transpose", input, weight, bias)
    if may_be_channels_last(input, weight):
        return in_format(kernel, input, weight, bias, a, *rest)
    result: Tensor = kernel(input, weight, bias, *rest)
    return result


def _reference(input: Tensor, weight: Tensor, bias: Tensor | None, a: Arguments) -> Tensor:
    return reference.conv_transpose(input, weight, bias, a.stride, a.padding, a.output_padding, a.groups, a.dilation)


def _call(rank: int, aten) -> Call:
    names, defaults = (f"conv_transpose{rank}d", "conv_transpose"), (1, 0, 0, 1, 1)
    kind = Convolution(*names, rank, aten, check_conv_transpose, _ours, _reference, defaults)
    return Call(find, find_unusual, kind)


_CONV_TRANSPOSE1D = _call(1, F.conv_transpose1d)
_CONV_TRANSPOSE2D = _call(2, F.conv_transpose2d)
_CONV_TRANSPOSE3D = _call(3, F.conv_transpose3d)


def _fake(
    input, weight, bias, stride, padding, output_padding, dilation, groups, allow_tf32=False, first_kernel=0
) -> Tensor:
    a = Arguments(stride, padding, dilation, groups, output_padding)
    sizes = transposed_size(input.shape, weight.shape[2:], a)
    return empty_as_kernel((input.shape[0], weight.shape[1] * groups, *sizes), input)


def _setup(ctx, inputs, output) -> None:
    input, weight, _, stride, padding, _, dilation, groups, *_ = inputs
    keep_pair(ctx, input, weight, Arguments(tuple(stride), tuple(padding), tuple(dilation), groups, ()))


# The convolution whose input gradient this is: input and output are swapped.
_backward = derivatives(convolve, lambda grad, input, size, a: grad_weight(input, grad, size[2:], a))
register("conv_transpose", fake=_fake, backward=_backward, setup_context=_setup, autocast="lower")
