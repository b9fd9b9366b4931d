"""Our operators expressed in PyTorch's.

torch.onnx.export(dynamo=True) takes them from PyTorch's table of decompositions, `decompose` applies them to an
exported program, and torch.jit.trace records them.

They are not used when our kernels run. Shapes may be symbolic.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch._decomp import register_decomposition
from torch._subclasses.fake_tensor import FakeTensor

from atrousops.dispatch import libraries
from atrousops.ops._register import FAKES, IN_PYTORCH
from atrousops.reference.max_unpool import placed

_CONV: tuple[Any, ...] = (None, F.conv1d, F.conv2d, F.conv3d)
_CONV_TRANSPOSE: tuple[Any, ...] = (None, F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)
_MAX_POOL: tuple[Any, ...] = (None, F.max_pool1d, F.max_pool2d, F.max_pool3d)


def _conv(input, weight, bias, stride, padding, dilation, groups, allow_tf32=False, first_kernel=0) -> Tensor:
    rank = len(stride)
    low, high = padding[:rank], padding[-rank:]
    if list(low) != list(high):
        pairs = [side for axis in reversed(range(rank)) for side in (low[axis], high[axis])]
        input, low = F.pad(input, pairs), [0] * rank
    return _CONV[rank](input, weight, bias, stride, low, dilation, groups)


def _conv_transpose(
    input, weight, bias, stride, padding, output_padding, dilation, groups, allow_tf32=False, first_kernel=0
) -> Tensor:
    return _CONV_TRANSPOSE[len(stride)](input, weight, bias, stride, padding, output_padding, groups, dilation)


def _conv_branches(input, weights, biases, others, padding, dilation, relu, allow_tf32) -> Tensor:
    parts = []
    for i, weight in enumerate(weights):
        here = slice(2 * i, 2 * i + 2)
        y = F.conv2d(input, weight, biases[i] if biases else None, 1, padding[here], dilation[here])
        parts.append(F.relu(y) if relu else y)
    return torch.cat([*parts, *others], 1)


def _context_module(input, weights, biases, dilation, allow_tf32=False) -> Tensor:
    for i, (weight, d) in enumerate(zip(weights, dilation)):
        input = F.relu(input) if i else input
        input = F.conv2d(input, weight, biases[i] if biases else None, 1, d * (weight.shape[-1] // 2), d)
    return input


def _max_pool(input, kernel_size, stride, padding, dilation, ceil_mode) -> tuple[Tensor, Tensor]:
    return _MAX_POOL[len(kernel_size)](input, kernel_size, stride, padding, dilation, ceil_mode, return_indices=True)


def _max_pool_values(input, kernel_size, stride, padding, dilation, ceil_mode) -> Tensor:
    return _MAX_POOL[len(kernel_size)](input, kernel_size, stride, padding, dilation, ceil_mode)


def _max_pool_codes(input, kernel_size, stride, padding, dilation, ceil_mode) -> tuple[Tensor, Tensor]:
    values, indices = _max_pool(input, kernel_size, stride, padding, dilation, ceil_mode)
    axes = len(kernel_size)
    starts = _starts(values.shape[-axes:], stride, padding, values.device)
    rest, codes, step = indices, torch.zeros_like(indices), 1
    for axis in reversed(range(axes)):
        size = input.shape[axis - axes]
        # Exporters do not support the remainder by a symbolic size.
        above = rest // size
        position, rest = rest - above * size, above
        codes = codes + (position - starts[axis]) // dilation[axis] * step
        step = step * kernel_size[axis]
    return values, codes.to(torch.uint8)


def _starts(
    windows: Sequence[int], stride: Sequence[int], padding: Sequence[int], device: torch.device
) -> list[Tensor]:
    """The first position of each window, for each axis, shaped to broadcast along the others."""
    axes = len(windows)
    return [
        (torch.arange(n, device=device) * s - p).reshape(-1, *[1] * (axes - 1 - axis))
        for axis, (n, s, p) in enumerate(zip(windows, stride, padding))
    ]


def _torchvision() -> Any:
    # torchvision's import calls an operator that torch.jit.trace cannot record.
    recording = torch._C._get_tracing_state()
    # Not set unless a trace records: PyTorch forbids it inside its own dispatcher.
    if recording is not None:
        torch._C._set_tracing_state(None)  # type: ignore[attr-defined]
    try:
        import torchvision
    finally:
        if recording is not None:
            torch._C._set_tracing_state(recording)  # type: ignore[attr-defined]
    return torchvision


def _roi_align(input, boxes, spatial_scale, pooled_height, pooled_width, sampling_ratio, aligned) -> Tensor:
    size = (pooled_height, pooled_width)
    return _torchvision().ops.roi_align(input, boxes, size, spatial_scale, sampling_ratio, aligned)


def _roi_pool(input, boxes, spatial_scale, pooled_height, pooled_width) -> tuple[Tensor, Tensor]:
    assert _torchvision().extension._has_ops()
    return torch.ops.torchvision.roi_pool(input, boxes, spatial_scale, pooled_height, pooled_width)


# The dense CRF has none: the size of its lattice's hash table depends on the image.
DECOMPOSITIONS: dict[str, Callable[..., Any]] = {
    "conv": _conv,
    "conv_transpose": _conv_transpose,
    "conv_branches": _conv_branches,
    "context_module": _context_module,
    "max_pool": _max_pool,
    "max_pool_codes": _max_pool_codes,
    "max_pool_values": _max_pool_values,
    "max_unpool": placed,
    "roi_align": _roi_align,
    "roi_pool": _roi_pool,
}


def register() -> None:
    """Adds the decompositions to PyTorch's table, and makes torch.jit.trace record them."""
    IN_PYTORCH.update(DECOMPOSITIONS)
    if libraries.has_schemas:
        for name, function in DECOMPOSITIONS.items():
            register_decomposition(getattr(torch.ops.atrousops, name).default)(_where_traced(name, function))


def _where_traced(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """The decomposition, for recorders; fake tensors with symbolic sizes, which also use the table, get the fake
    kernel.

    The strides of a decomposition differ from the kernels', which Inductor asserts; and sizes must not need
    torchvision.
    """

    @functools.wraps(function)
    def decomposition(*args: Any, **kwargs: Any) -> Any:
        # Imported here because it takes a tenth of a second, and only traces need it.
        from torch.fx.experimental.proxy_tensor import get_proxy_mode

        known = isinstance(args[0], FakeTensor) and get_proxy_mode() is None
        return (FAKES[name] if known else function)(*args, **kwargs)

    return decomposition


def decompose(program: torch.export.ExportedProgram) -> torch.export.ExportedProgram:
    """The program in PyTorch's operators only, so that it loads and runs without this package."""
    ours = {getattr(torch.ops.atrousops, name).default: f for name, f in DECOMPOSITIONS.items()}
    return program.run_decompositions(ours) if libraries.has_schemas else program
