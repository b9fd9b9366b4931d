"""context_module: a stack of small convolutions at one resolution, in one launch if the GPU supports it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from atrousops import reference
from atrousops.common.checks import bad_type, bad_value, check_device
from atrousops.common.formats import empty_as_kernel
from atrousops.common.values import is_autocast, transformed
from atrousops.dispatch import backends, choice
from atrousops.dispatch.devices import tf32_allowed
from atrousops.ops._register import foreign, jit_traces, register
from atrousops.ops.conv import conv2d


def context_module(
    input: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor] | None, dilation: Sequence[int]
) -> Tensor:
    """Size-preserving convolutions from C to C channels, each except the last followed by max(., 0).

    x_0 = input, x_i+1 = max(0, conv2d(x_i, weights[i], biases[i], padding="same", dilation=dilation[i])), without the
    max for the last.

    On a GPU of compute capability 9.0 a 16-bit stack of up to 8 layers and 32 channels is one launch if no gradient is
    needed and the maps fit into the shared memory of a cluster; otherwise it is `conv2d` layer by layer. Every layer's
    result is rounded to the dtype, and weights must be finite.

    Args:
        input: (N, C, H, W) or (C, H, W).
        weights: (C, C, 3, 3) or (C, C, 1, 1) each, of input's dtype.
        biases: (C,) each, or None.
        dilation: of each layer, in pixels.

    Returns:
        A tensor of input's shape, dtype and memory format.

    Raises:
        ArgumentError: counts, shapes or dilations that do not fit.
        ArgumentTypeError: a tensor of another dtype than input's, or one that is not floating.

    Source: Yu & Koltun, Multi-scale context aggregation by dilated convolutions (2016), section 3.
    """
    _check(input, weights, biases, dilation)
    if not runs_as_one(input, weights, biases, dilation):
        return _by_layers(input, weights, biases, dilation)
    batch = input if input.dim() == 4 else input[None]
    operator = torch.ops.atrousops.context_module
    out = operator(batch, list(weights), list(biases or ()), list(dilation), _allow_tf32(batch))
    return out if input.dim() == 4 else out[0]


def runs_as_one(
    input: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor] | None, dilation: Sequence[int]
) -> bool:
    """Whether the operator runs; otherwise each layer runs as planned."""
    forced = backends.forced()
    if input.device.type != "cuda" and forced not in backends.COMPILED:
        return False
    if torch.is_grad_enabled() and any([t.requires_grad for t in (input, *weights, *(biases or ()))]):
        return False
    if transformed() or jit_traces() or foreign(input, *weights, *(biases or ())):
        return False
    if is_autocast(input.device.type) or input.dtype not in backends.FLOATING:
        return False
    if forced is not None:
        return backends.choose("context_module", input.device, input.dtype) in backends.COMPILED
    if backends.choose("context_module", input.device, input.dtype) != "cuda" or input.dim() not in (3, 4):
        return False
    if torch.compiler.is_compiling():
        # Dynamic sizes of a graph cannot be planned for.
        return False
    size = tuple(input.shape) if input.dim() == 4 else (1, *input.shape)
    kernels = tuple([w.shape[-1] for w in weights])
    return choice.one_launch(size, tuple(dilation), kernels, input.dtype, not input.is_contiguous(), str(input.device))


def _by_layers(
    input: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor] | None, dilation: Sequence[int]
) -> Tensor:
    if backends.forced() == "reference":
        return reference.context_module(input, weights, biases or (), dilation)
    for i, (weight, d) in enumerate(zip(weights, dilation)):
        if i:
            input = torch.relu(input)
        padding = d * (weight.shape[-1] // 2)
        input = conv2d(input, weight, biases[i] if biases else None, padding=padding, dilation=d)
    return input


def _allow_tf32(input: Tensor) -> bool:
    return input.device.type == "cuda" and tf32_allowed()


def _check(input: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor] | None, dilation: Sequence[int]) -> None:
    op = "context_module"
    if not isinstance(input, Tensor) or not input.is_floating_point():
        got = input.dtype if isinstance(input, Tensor) else type(input).__name__
        bad_type(op, "input", "be a floating tensor", got)
    if input.dim() not in (3, 4):
        bad_value(op, "input", "be (N, C, H, W) or (C, H, W)", f"shape {tuple(input.shape)}")
    if not weights or len(weights) != len(dilation):
        bad_value(op, "dilation", "have one entry for each weight", f"{len(dilation)} for {len(weights)}")
    if biases is not None and len(biases) != len(weights):
        bad_value(op, "biases", "be None or have one entry for each weight", f"{len(biases)} for {len(weights)}")
    if any(d < 1 for d in dilation):
        bad_value(op, "dilation", "be at least 1 everywhere", tuple(dilation))
    c = input.shape[-3]
    for w in weights:
        if tuple(w.shape) not in ((c, c, 3, 3), (c, c, 1, 1)):
            bad_value(
                op, "weights", f"be ({c}, {c}, 3, 3) or ({c}, {c}, 1, 1), as input has {c} channels", tuple(w.shape)
            )
    for w in weights:
        check_device(op, "input", input, weights=w)
    for b in biases or ():
        check_device(op, "input", input, biases=b)
        if tuple(b.shape) != (c,):
            bad_value(op, "biases", f"be ({c},), as input has {c} channels", tuple(b.shape))
    other = [t.dtype for t in (*weights, *(biases or ())) if t.dtype != input.dtype]
    if other and not is_autocast(input.device.type):
        bad_type(op, "weights and biases", f"be {input.dtype}, as input", other[0])


def _fake(input, weights, biases, dilation, allow_tf32=False) -> Tensor:
    return empty_as_kernel(input.shape, input)


register("context_module", fake=_fake)
