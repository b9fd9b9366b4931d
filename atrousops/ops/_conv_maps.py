"""The three linear maps of a convolution (forward, input gradient, weight gradient) and their registration."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from atrousops.common.conv_arguments import Arguments, output_size
from atrousops.common.formats import empty_as_kernel, prefers_channels_last
from atrousops.common.values import transformed
from atrousops.ops._conv_format import arranged, is_last
from atrousops.ops._register import register
from atrousops.ops._routes import CALLS
from atrousops.ops.conv import first_of_gradient, in_right_format, ours, rest_of

_BY_RANK = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}


# The three maps below are linear in each of their two tensors, and the derivatives of each are the other two. This
# gives derivatives of any order.


def convolve(input: Tensor, weight: Tensor, size: Sequence[int], a: Arguments) -> Tensor:
    """The convolution within a derivative: its first `size` outputs on each axis."""
    rank = len(a.stride)
    first = first_of_gradient("forward", input.shape, weight.shape, a, input)
    if first is not None:
        out = ours(input, weight, None, a, first)
        # A transposed convolution with output_padding >= stride has fewer inputs than its gradient outputs.
        if out.shape != torch.Size(size):
            for axis in range(2, rank + 2):
                out = out.narrow(axis, 0, size[axis])
            out = _dense(out, input)
        return out
    extent = _extent(input.shape, weight.shape[2:], size, a)
    input, padding = _as_read(input, extent, a)
    if torch.is_grad_enabled() and weight.requires_grad:
        input, weight = in_right_format(weight.shape, a, input, weight)
    return _BY_RANK[rank](input, weight, None, a.stride, padding, a.dilation, a.groups)


def grad_input(grad: Tensor, weight: Tensor, size: Sequence[int], a: Arguments) -> Tensor:
    """dx (N, C, *) of size `size` from dy (N, K, *)."""
    first = first_of_gradient("input_grad", size, weight.shape, a, grad)
    if first is not None:
        return CALLS["conv_grad_input"](grad, weight, size, *rest_of(a, grad, first))
    extent = _extent(size, weight.shape[2:], grad.shape, a)
    # Only its size is used, so that the weight has to say in which format.
    input, padding = _as_read(grad.new_empty(1).expand(size), extent, a)
    weight = weight if transformed() else _dense(weight, grad)
    out = _aten_backward(grad, input, weight, padding, a, (True, False, False))[0]
    if extent is None:
        return out
    for axis, length in enumerate(size[2:], 2):
        low = a.padding[axis - 2]
        behind = max(0, low + length - out.shape[axis])
        out = F.pad(out, (0, 0) * (out.dim() - axis - 1) + (0, behind)).narrow(axis, low, length)
    return _dense(out, grad)


def grad_weight(grad: Tensor, input: Tensor, kernel_size: Sequence[int], a: Arguments) -> Tensor:
    """dw (K, C / groups, *kernel_size) from dy (N, K, *) and x (N, C, *)."""
    size = (grad.shape[1], input.shape[1] // a.groups, *kernel_size)
    first = first_of_gradient("weight_grad", input.shape, size, a, grad)
    if first is not None:
        return CALLS["conv_grad_weight"](grad, input, kernel_size, *rest_of(a, grad, first))
    weight = grad.new_empty(1).expand(size)
    grad, input = in_right_format(size, a, grad, input)
    input, padding = _as_read(input, _extent(input.shape, kernel_size, grad.shape, a), a)
    return _aten_backward(grad, input, weight, padding, a, (False, True, False))[1]


def _extent(
    input_size: Sequence[int], kernel_size: Sequence[int], output_size: Sequence[int], a: Arguments
) -> tuple[int, ...] | None:
    """The extent of the padded input that windows cover, if PyTorch's convolution cannot express it, else None.

    PyTorch pads both sides equally and computes all outputs that fit; a transposed convolution with output_padding >=
    stride has fewer inputs.
    """
    rank = len(a.stride)
    low, high = a.padding[:rank], a.padding[-rank:]
    spans = tuple(d * (k - 1) + 1 for d, k in zip(a.dilation, kernel_size))
    all_fit = all(
        (i + 2 * p - span) // s + 1 == o
        for i, p, span, s, o in zip(input_size[2:], low, spans, a.stride, output_size[2:])
    )
    if all_fit and low == high:
        return None
    return tuple((o - 1) * s + span for o, s, span in zip(output_size[2:], a.stride, spans))


def _as_read(input: Tensor, extent: tuple[int, ...] | None, a: Arguments) -> tuple[Tensor, tuple[int, ...]]:
    """The input for PyTorch's convolution, and the padding, which is zero if the input already contains the zeros."""
    rank = len(a.stride)
    if extent is None:
        return input, a.padding[:rank]
    zeros: list[int] = []
    for low, length, span in zip(a.padding[:rank], input.shape[2:], extent):
        zeros = [low, max(0, span - low - length), *zeros]
    input = F.pad(input, zeros)
    for axis, span in enumerate(extent, 2):
        input = input.narrow(axis, 0, span)
    return input, (0,) * rank


def _dense(t: Tensor, like: Tensor) -> Tensor:
    """`t` as a dense tensor, in channels_last if `like` is."""
    last = {4: torch.channels_last, 5: torch.channels_last_3d} if prefers_channels_last(like) else {}
    return t.contiguous(memory_format=last.get(t.dim(), torch.contiguous_format))


def _aten_backward(
    grad: Tensor, input: Tensor, weight: Tensor, padding: tuple[int, ...], a: Arguments, mask: tuple[bool, bool, bool]
):
    no_extra = (0,) * len(a.stride)
    return torch.ops.aten.convolution_backward(
        grad, input, weight, None, a.stride, padding, a.dilation, False, no_extra, a.groups, mask
    )


def grad_bias(grad: Tensor) -> Tensor:
    """db (K,): the sum of dy over images and positions."""
    return grad.sum((0, *range(2, grad.dim())))


def _fake(input, weight, bias, stride, padding, dilation, groups, allow_tf32=False, first_kernel=0) -> Tensor:
    size = output_size(input.shape, weight.shape, Arguments(stride, padding, dilation, groups, ()))
    return empty_as_kernel(size, input)


def keep_pair(ctx: Any, first: Tensor, second: Tensor, arguments: Arguments, forward: bool = True) -> None:
    """The tensors to save for the gradients of a map linear in two tensors: each gradient needs only the other one.

    forward: whether the map is a convolution, not a derivative of one. As in PyTorch, the graphs of all its gradients
    then lead to both tensors, so that of one whose values nobody needs the edge is saved.
    """
    needs = ctx.needs_input_grad
    edges = forward and not torch.compiler.is_compiling()
    ctx.save_for_backward(
        first if needs[1] else _edge(first) if needs[0] and edges else None,
        second if needs[0] else _edge(second) if needs[1] and edges else None,
    )
    ctx.sizes, ctx.arguments, ctx.is_forward = (tuple(first.shape), tuple(second.shape)), arguments, forward
    # `in_format` arranged the input of a map or a volume; of sequences the weight alone decides.
    ctx.last = is_last(second) if first.dim() == 3 else prefers_channels_last(first)


def _edge(t: Tensor) -> Tensor:
    """A tensor with the same place in the graph, without the memory."""
    with torch.enable_grad():
        return t.narrow(0, 0, 0).clone()


class _Led(torch.autograd.Function):
    """The first tensor unchanged, with a graph that leads to the others too, where it ends without a gradient."""

    @staticmethod
    def forward(ctx: Any, t: Tensor, *others: Tensor) -> Tensor:
        ctx.set_materialize_grads(False)
        ctx.mark_dirty(t)
        return t

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None) -> tuple[Tensor | None, ...]:
        return (grad, *(None,) * (len(ctx.needs_input_grad) - 1))


def _led_to_both(grads: tuple[Tensor | None, ...], *saved: Tensor | None) -> tuple[Tensor | None, ...]:
    """As PyTorch's convolution_backward: each gradient requires one if the input or the weight does."""
    if not torch.is_grad_enabled() or torch.compiler.is_compiling():
        return grads
    ends = [t for t in saved if t is not None and t.requires_grad]
    return tuple([g if g is None or g.requires_grad or not ends else _Led.apply(g, *ends) for g in grads])


def derivatives(of_first: Callable[..., Tensor], of_second: Callable[..., Tensor]) -> Callable[..., Any]:
    """The backward pass of such a map, with the gradient of the bias if the third argument is a bias.

    of_first, of_second: functions for the two gradients, called with the output's gradient, the other tensor, the size
    of the gradient, and the arguments.
    """

    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (first, second), (first_size, second_size) = ctx.saved_tensors, ctx.sizes
        needs, a = ctx.needs_input_grad, ctx.arguments
        in_order = ctx.is_forward and not transformed()
        if in_order:
            grad = arranged(grad, ctx.last)
        grads: tuple[Tensor | None, ...] = (
            of_first(grad, second, first_size, a) if needs[0] else None,
            of_second(grad, first, second_size, a) if needs[1] else None,
            grad_bias(grad) if needs[2] else None,
        )
        if in_order:
            grads = (*[g if g is None else arranged(g, ctx.last) for g in grads[:2]], grads[2])
            grads = _led_to_both(grads, first, second)
        return (*grads, *(None,) * (len(needs) - 3))

    return backward


def _setup(ctx, inputs, output, forward: bool = True) -> None:
    first, second, _, stride, padding, dilation, groups, *_ = inputs
    keep_pair(ctx, first, second, Arguments(tuple(stride), tuple(padding), tuple(dilation), groups, ()), forward)


_setup_derivative = functools.partial(_setup, forward=False)


def _grad_input_fake(
    grad, weight, input_size, stride, padding, dilation, groups, allow_tf32=False, first_kernel=0
) -> Tensor:
    return empty_as_kernel(tuple(input_size), grad)


def _grad_weight_fake(
    grad, input, kernel_size, stride, padding, dilation, groups, allow_tf32=False, first_kernel=0
) -> Tensor:
    return input.new_empty((grad.shape[1], input.shape[1] // groups, *kernel_size))


_backward = derivatives(grad_input, lambda grad, input, size, a: grad_weight(grad, input, size[2:], a))
_grad_input_backward = derivatives(convolve, lambda grad2, grad, size, a: grad_weight(grad, grad2, size[2:], a))
_grad_weight_backward = derivatives(
    lambda grad2, input, size, a: convolve(input, grad2, size, a),
    lambda grad2, grad, size, a: grad_input(grad, grad2, size, a),
)
register("conv", fake=_fake, backward=_backward, setup_context=_setup, autocast="lower")
register("conv_grad_input", fake=_grad_input_fake, backward=_grad_input_backward, setup_context=_setup_derivative)
register("conv_grad_weight", fake=_grad_weight_fake, backward=_grad_weight_backward, setup_context=_setup_derivative)
