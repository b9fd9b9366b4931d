"""y[n, s i + d r - p, c] += x[n, i, k] w[k, c, r], by residues of the written position mod s; see conv."""

from torch import Tensor

from atrousops.dispatch import geometry
from atrousops.triton.conv import Epilogue, tap_sum


def conv_transpose(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride,
    padding,
    output_padding,
    dilation,
    groups: int,
    allow_tf32: bool = False,
    first_kernel: int = 0,
) -> Tensor:
    n, k, *size = (int(v) for v in input.shape)
    c, kernel = weight.shape[1] * groups, tuple(weight.shape[2:])
    pads, rest = tuple(padding), (tuple(stride), tuple(dilation))
    problem = geometry.transposed(n, k, c, size, kernel, *rest, pads, pads, tuple(output_padding), groups=groups)
    written = [axis.input for axis in problem.axes][-len(stride) :]
    return tap_sum(problem, input, weight, Epilogue(bias), (n, c, *written), allow_tf32)
