"""resize_bilinear: F.interpolate(mode="bilinear"), by our kernel for inference on the CPU, otherwise by PyTorch's."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from atrousops.dispatch import backends, libraries
from atrousops.ops._routes import autocasts, is_plain, on_plain, wants_grad

# Not made by `register`: with derivatives, traces or transforms PyTorch's operator runs.
_kernel = on_plain(torch.ops.atrousops.resize_bilinear.default) if libraries.has_operators else None
_function_modes = torch._C._is_torch_function_mode_enabled


def resize_bilinear(
    input: Tensor,
    size: int | Sequence[int] | None = None,
    scale_factor: float | Sequence[float] | None = None,
    align_corners: bool | None = None,
    recompute_scale_factor: bool | None = None,
) -> Tensor:
    """Bilinear interpolation of maps (N, C, H, W) in their memory format, as by F.interpolate.

    y[i, j] = (1 - u) ((1 - v) x[a, b] + v x[a, b + 1]) + u ((1 - v) x[a + 1, b] + v x[a + 1, b + 1]), where a + u and
    b + v are the positions of i and j in the input, computed as in PyTorch; weights and sums are in float, or double.

    Args:
        input, size, scale_factor, align_corners, recompute_scale_factor: as in F.interpolate, which also raises the
            errors.
    """
    # The compiler must only see the first condition.
    if not torch.compiler.is_compiling() and _kernel is not None and _serves(input):
        target = _target(input, size, scale_factor, recompute_scale_factor)
        if target is not None:
            return _kernel(input, target[0], bool(align_corners), *target[1])
    return F.interpolate(
        input,
        size=size,  # type: ignore[arg-type]
        scale_factor=scale_factor,  # type: ignore[arg-type]
        mode="bilinear",
        align_corners=align_corners,
        recompute_scale_factor=recompute_scale_factor,
    )


def _serves(input: Any) -> bool:
    """Whether a call is inference on the CPU, without modes that only know PyTorch's operators."""
    return (
        is_plain((input,))
        and input.is_cpu
        and input.dtype in backends.FLOATING
        and input.dim() == 4
        and min(input.shape[1:]) > 0
        and not wants_grad((input,))
        and not autocasts()
        and not _function_modes()
        and backends.forced() in (None, "cpu")
    )


def _target(input: Tensor, size: Any, scale: Any, recompute: bool | None) -> tuple[list[int], tuple[Any, Any]] | None:
    """(H, W) of the result and the factors for its positions; None for arguments that PyTorch must check."""
    if (size is None) == (scale is None):
        return None
    given = size if scale is None else scale
    kind = int if scale is None else float
    pair = list(given) if isinstance(given, (tuple, list)) else [given, given]
    if len(pair) != 2 or not all([type(value) is kind and 0 < value < math.inf for value in pair]):
        return None
    sides = pair if scale is None else [int(side * factor) for side, factor in zip(input.shape[2:], pair)]
    # A factor computed again is that of the sizes.
    factors = (None, None) if scale is None or recompute else (pair[0], pair[1])
    return (sides, factors) if min(sides) > 0 else None
