from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from atrousops.common.values import connected
from atrousops.dispatch.geometry import Axis
from atrousops.reference.conv import _wide, _with_bias, as_autocast, taps_of


@as_autocast
def conv_transpose(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    output_padding: Sequence[int],
    groups: int,
    dilation: Sequence[int],
) -> Tensor:
    """y[n, c, stride i + dilation r - padding] += weight[k, c, r] * x[n, k, i], plus bias[c].

    Uses the convolution's tap list with input and output exchanged.
    """
    sizes = zip(input.shape[2:], weight.shape[2:], stride, dilation, padding, output_padding)
    axes = [Axis((i - 1) * s - 2 * p + d * (k - 1) + e + 1, i, k, s, d, p, p) for i, k, s, d, p, e in sizes]
    x = _wide(input).unflatten(1, (groups, weight.shape[0] // groups))
    w = _wide(weight).unflatten(0, (groups, weight.shape[0] // groups))
    y: Any = connected(x.new_zeros(input.shape[0], groups, w.shape[2], *(a.input for a in axes)), x, w)
    for r, read, written in taps_of(axes):
        y[tuple([..., *written])] += torch.einsum("ngk...,gkc->ngc...", x[tuple([..., *read])], w[tuple([..., *r])])
    return _with_bias(y.flatten(1, 2), bias).to(input.dtype)
