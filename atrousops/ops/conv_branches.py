"""conv_branches: parallel convolutions of one map with concatenated results, in one launch if the GPU supports it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from atrousops import reference
from atrousops.common.checks import bad_type, bad_value, check_device
from atrousops.common.conv_arguments import Arguments, check_conv
from atrousops.common.formats import empty_as_kernel, prefers_channels_last
from atrousops.common.values import is_autocast, transformed
from atrousops.dispatch import backends, choice
from atrousops.dispatch.devices import allow_tf32
from atrousops.ops._conv_maps import grad_bias, grad_input, grad_weight
from atrousops.ops._register import foreign, jit_traces, register
from atrousops.ops.conv import conv2d

Sizes = Sequence[int | tuple[int, int]]


def conv_branches(
    input: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor] | None,
    padding: Sizes,
    dilation: Sizes,
    activation: str | None = None,
    others: Sequence[Tensor] = (),
) -> Tensor:
    """Several convolutions of one map, concatenated along the channels, as in ASPP.

    y = concat over i of activation(conv2d(input, weights[i], biases[i], padding=padding[i], dilation=dilation[i])),
        then of the others

    On a GPU of compute capability 9.0, in 16 bits or TF32, two to six convolutions with the same number of output
    channels are one launch that writes into y, if this is predicted to be faster; otherwise it is `conv2d` branch by
    branch. The gradients are those of the convolutions; that of the input is summed in the order of the branches.

    Args:
        input: (N, C, H, W) or (C, H, W).
        weights: (K_i, C, kernel_h, kernel_w) each, of input's dtype.
        biases: (K_i,) each, or None.
        padding, dilation: of each branch, in pixels, one number or one per axis; all results must have the same size.
        activation: "relu" or None, of all branches.
        others: (N, any K, H_out, W_out) maps that are appended unchanged, such as ASPP's image-level features.

    Returns:
        (N, K_1 + K_2 + ..., H_out, W_out), or without N, in input's dtype and memory format.

    Raises:
        ArgumentError: counts, shapes, paddings or dilations that do not fit, or another activation.
        ArgumentTypeError: an argument of a wrong type, or tensors of different dtypes.

    Source: Chen et al., Rethinking atrous convolution for semantic image segmentation (2017), section 3.3.
    """
    around = _check(input, weights, biases, padding, dilation, activation, others)
    relu = activation is not None
    if why_apart(input, weights, *around, relu, others, biases or ()):
        return _apart(input, weights, biases, *around, activation, others)
    batch, others = (input, others) if input.dim() == 4 else (input[None], [t[None] for t in others])
    pads, gaps = ([v for values in sizes for v in values] for sizes in around)
    operator = torch.ops.atrousops.conv_branches
    out = operator(batch, list(weights), list(biases or ()), list(others), pads, gaps, relu, allow_tf32(batch))
    return out if input.dim() == 4 else out[0]


def why_apart(
    input: Tensor,
    weights: Sequence[Tensor],
    padding: Sequence[tuple[int, int]],
    dilation: Sequence[tuple[int, int]],
    relu: bool,
    others: Sequence[Tensor] = (),
    biases: Sequence[Tensor] = (),
) -> str:
    """Why branches run one by one, each as planned; empty if the operator runs."""
    forced, kind = backends.forced(), input.device.type
    if kind != "cuda" and forced not in backends.COMPILED:
        return f"forced by backend({forced!r})" if forced else "one launch is a GPU's"
    if is_autocast(kind) or input.dtype not in backends.FLOATING:
        return "they are cast one by one"
    compiling = torch.compiler.is_compiling()
    if transformed() or jit_traces() or foreign(input, *weights, *others, *biases):
        return "subclasses, traces and transforms of functions know them one by one"
    if forced is not None:
        own = backends.choose("conv_branches", input.device, input.dtype) in backends.COMPILED
        return "" if own else f"forced by backend({forced!r})"
    if backends.choose("conv_branches", input.device, input.dtype) != "cuda":
        return backends.unproved("conv_branches", input.device, input.dtype) or "there is no CUDA library"
    if compiling:
        # Dynamic sizes of a graph cannot be planned for.
        return "compiled graphs have them one by one"
    size = tuple(input.shape) if input.dim() == 4 else (1, *input.shape)
    shapes = tuple([tuple(w.shape) for w in weights])
    layout, beside = not input.is_contiguous(), sum([t.shape[-3] for t in others])
    return choice.why_apart(
        size, shapes, tuple(padding), tuple(dilation), input.dtype, layout, relu, beside, str(input.device)
    )


def _apart(input, weights, biases, padding, dilation, activation, others) -> Tensor:
    if backends.forced() == "reference":
        batch, others = (input, others) if input.dim() == 4 else (input[None], [t[None] for t in others])
        out = reference.conv_branches(batch, weights, biases or (), others, padding, dilation, activation is not None)
        return out if input.dim() == 4 else out[0]
    parts = []
    for i, (weight, p, d) in enumerate(zip(weights, padding, dilation)):
        bias = biases[i] if biases else None
        parts.append(conv2d(input, weight, bias, padding=p, dilation=d, activation=activation))
    return torch.cat([*parts, *others], -3)


def _check(input, weights, biases, padding, dilation, activation, others) -> tuple[list, list]:
    # Padding and dilation of each branch along both axes.
    op = "conv_branches"
    if activation not in (None, "relu"):
        bad_value(op, "activation", "be 'relu' or None", repr(activation))
    lists = {"weights": weights, "padding": padding, "dilation": dilation}
    if biases is not None:
        lists["biases"] = biases
    for name, value in lists.items():
        if not isinstance(value, list | tuple):
            bad_type(op, name, "be a list with one entry for each branch", type(value).__name__)
        if not value or len(value) != len(weights):
            rule = "have at least one entry" if name == "weights" else f"have {len(weights)} entries, as weights"
            bad_value(op, name, rule, len(value))
    pads, gaps = [], []
    first: tuple[int, ...] = ()
    for i, weight in enumerate(weights):
        args = (None if biases is None else biases[i], 1, padding[i], dilation[i], 1)
        a = check_conv(op, 2, input, weight, *args)
        if len(a.padding) > 2:
            bad_value(op, "padding", "be the same on either side", f"'same' for a kernel of {tuple(weight.shape[2:])}")
        axes = zip(input.shape[-2:], a.padding, a.dilation, weight.shape[2:])
        size = tuple([n + 2 * p - d * (k - 1) for n, p, d, k in axes])
        first = first or size
        if size != first:
            remedy = "Give a 3x3 kernel its dilation for padding, and a 1x1 none."
            bad_value(op, "padding", f"give every branch the size of the first, {first}", f"{size} of {i}", remedy)
        pads.append(a.padding)
        gaps.append(a.dilation)
    _check_others(op, input, first, others)
    return pads, gaps


def _check_others(op: str, input: Tensor, size: tuple[int, ...], others) -> None:
    if not isinstance(others, list | tuple):
        bad_type(op, "others", "be a list of tensors", type(others).__name__)
    for t in others:
        if not isinstance(t, Tensor):
            bad_type(op, "others", "be a list of tensors", f"{type(t).__name__} in it")
        if (*t.shape[:-3], *t.shape[-2:]) != (*input.shape[:-3], *size) or t.dim() != input.dim():
            bad_value(op, "others", f"have the branches' batch and size, {size}", tuple(t.shape))
        check_device(op, "input", input, others=t)
        if t.dtype != input.dtype and not is_autocast(input.device.type):
            bad_type(op, "others", f"have input's dtype, {input.dtype}", t.dtype)


def _fake(input, weights, biases, others, padding, dilation, relu, allow_tf32) -> Tensor:
    axes = zip(input.shape[2:], padding, dilation, weights[0].shape[2:])
    size = [n + 2 * p - d * (k - 1) for n, p, d, k in axes]
    channels = sum([w.shape[0] for w in weights]) + sum([t.shape[1] for t in others])
    return empty_as_kernel((input.shape[0], channels, *size), input)


def _setup(ctx, inputs, output) -> None:
    input, weights, _, others, padding, dilation, relu, _ = inputs
    ctx.save_for_backward(input, output if relu else None, *weights)
    rank = input.dim() - 2
    pairs = [(tuple(padding[i : i + rank]), tuple(dilation[i : i + rank])) for i in range(0, len(padding), rank)]
    ctx.widths = [w.shape[0] for w in weights], [t.shape[1] for t in others]
    ctx.arguments = [Arguments((1,) * rank, p, d, 1, ()) for p, d in pairs]


def _backward(ctx, grad: Tensor):
    input, output, *weights = ctx.saved_tensors
    wants_input, wants_weights, wants_biases = ctx.needs_input_grad[:3]
    widths, beside = ctx.widths
    nhwc = prefers_channels_last(grad)
    grad, *d_others = grad.split([sum(widths), *beside], 1)
    if output is not None:
        grad = torch.ops.aten.threshold_backward(grad, output[:, : sum(widths)], 0)
    dx: Tensor | None = None
    dw: list[Tensor | None] = []
    db: list[Tensor | None] = []
    for i, part in enumerate(grad.split(widths, 1)):
        # Dense, in its original memory format, because the choice of the kernel depends on it.
        dy = part.movedim(1, -1).contiguous().movedim(-1, 1) if nhwc else part.contiguous()
        w, a = weights[i], ctx.arguments[i]
        if wants_input:
            own = grad_input(dy, w, tuple(input.shape), a)
            dx = own if dx is None else dx + own
        dw.append(grad_weight(dy, input, tuple(w.shape[2:]), a) if wants_weights[i] else None)
        if wants_biases:
            db.append(grad_bias(dy) if wants_biases[i] else None)
    return dx, dw, db, d_others, None, None, None, None


register("conv_branches", fake=_fake, backward=_backward, setup_context=_setup)
