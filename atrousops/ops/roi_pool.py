"""roi_pool: the largest feature in every bin of every box."""

from __future__ import annotations

import torch
from torch import Tensor

from atrousops import reference
from atrousops.common.formats import BoxList, empty_in_format, is_channels_last
from atrousops.ops._batches import entries, fold, fold_boxes
from atrousops.ops._register import keep, register
from atrousops.ops._roi import Kind, check_boxes, find, number, rows
from atrousops.ops._routes import call_of, route_of


def roi_pool(
    input: Tensor, boxes: Tensor | BoxList, output_size: int | tuple[int, int], spatial_scale: float = 1.0
) -> Tensor:
    """Takes the largest feature in every bin of every box (RoIPool).

    y[k, c, p, q] = max x[n_k, c, i, j] over the rows floor(p h / P) <= i - y1 < ceil((p + 1) h / P) and the columns
    likewise, where (x1, y1, x2, y2) is box k times `spatial_scale`, rounded, and h = y2 - y1 + 1. A bin outside the map
    gives 0; NaN is ignored; a bin with no number above -inf gives -inf and has no gradient.

    Args:
        input: features (N, C, H, W), float64, float32, bfloat16 or float16.
        boxes: (K, 5) rows (image, x1, y1, x2, y2), or a list of N tensors (L, 4), in pixels of the image that
            `spatial_scale` maps to the features. They are used in float32 or float64 whatever the features' dtype.
        output_size: bins of the output, (height, width) or one number for both.
        spatial_scale: features' size over the image's size.

    Returns:
        (K, C, *output_size) in the features' dtype and memory format. The gradient goes to the first maximum.

    Raises:
        ArgumentError: a wrong shape, or a box whose corners are not finite or are inverted, or whose image does not
            exist. On a GPU values are not checked, because that would synchronise: such a box gives NaN and no
            gradient.
        ArgumentTypeError: a dtype that is not floating, or an argument of the wrong type.

    Source:
        Girshick, Fast R-CNN, arXiv:1504.08083, section 2.1; rounding as in torchvision.ops.roi_pool.
    """
    spatial_scale = number("roi_pool", "spatial_scale", spatial_scale)
    rois = rows("roi_pool", input, boxes)
    route = route_of(_CALL, input, rois, None, (output_size,), (spatial_scale,))
    return route.run(input, rois, *route.rest)


def _fake(input, boxes, spatial_scale, pooled_height, pooled_width):
    size = (boxes.shape[0], input.shape[1], pooled_height, pooled_width)
    output = empty_in_format(input, size, is_channels_last(input))
    return output, torch.empty_like(output, dtype=torch.int32)


def _setup(ctx, inputs, output):
    input, boxes, scale, _, _ = inputs
    _, argmax = output
    ctx.set_materialize_grads(False)
    keep(ctx, boxes, argmax)
    ctx.scale = scale
    ctx.size = input.shape
    ctx.channels_last = is_channels_last(input)


def _backward(ctx, grad, _):
    if grad is None:
        return (None,) * 5
    boxes, argmax = ctx.saved_tensors
    args = (grad, boxes, argmax, ctx.scale, *ctx.size, ctx.channels_last)
    return _run_backward(*args), *[None] * 4


def _fake_backward(grad, boxes, argmax, spatial_scale, batch_size, channels, height, width, channels_last):
    return empty_in_format(grad, (batch_size, channels, height, width), channels_last)


def _jvp(ctx, tangent):
    return reference.gather_maxima(tangent, *ctx.saved_tensors)[0], None


def _otherwise(input, boxes, spatial_scale, pooled_height, pooled_width):
    check_boxes("roi_pool", boxes, input.shape[0])
    return reference.roi_pool_with_argmax(input, boxes, spatial_scale, pooled_height, pooled_width)


def _otherwise_backward(grad, boxes, argmax, spatial_scale, batch_size, channels, height, width, channels_last):
    return reference.roi_pool_backward(grad, boxes, argmax, (batch_size, channels, height, width))


def _setup_backward(ctx, inputs, output):
    _, boxes, argmax, *_ = inputs
    keep(ctx, boxes, argmax)


def _double_backward(ctx, grad):
    # Linear in the incoming gradient; the transpose gathers from the positions to which this scatters.
    return reference.gather_maxima(grad, *ctx.saved_tensors)[0], *[None] * 8


def _vmap(info, in_dims, input, boxes, *geometry):
    images = entries(input, in_dims[0])
    check_boxes("roi_pool", boxes, images)
    rows = fold_boxes(boxes, in_dims[1], info.batch_size, images)
    outputs = _run(fold(input, in_dims[0], info.batch_size), rows, *geometry)
    size = (info.batch_size, entries(boxes, in_dims[1]))
    return tuple([t.unflatten(0, size) for t in outputs]), (0, 0)


def _vmap_backward(info, in_dims, grad, boxes, argmax, scale, batch_size, *geometry):
    rows = fold_boxes(boxes, in_dims[1], info.batch_size, batch_size)
    grad, argmax = (fold(t, dim, info.batch_size) for t, dim in ((grad, in_dims[0]), (argmax, in_dims[2])))
    out = _run_backward(grad, rows, argmax, scale, info.batch_size * batch_size, *geometry)
    return out.unflatten(0, (info.batch_size, batch_size)), 0


# No autocast: the maximum of 16-bit features is the same in fp32, and boxes are in fp32 anyway.
_run = register(
    "roi_pool", fake=_fake, otherwise=_otherwise, backward=_backward, setup_context=_setup, jvp=_jvp, vmap=_vmap
)
_run_backward = register(
    "roi_pool_backward",
    fake=_fake_backward,
    otherwise=_otherwise_backward,
    backward=_double_backward,
    setup_context=_setup_backward,
    vmap=_vmap_backward,
)
_CALL = call_of("roi_pool", find, Kind("roi_pool", roi_pool, lambda *args: _run(*args)[0], reference.roi_pool))
