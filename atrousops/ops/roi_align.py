"""roi_align: average of bilinear samples in every bin of every box."""

from __future__ import annotations

from torch import Tensor

from atrousops import reference
from atrousops.common.formats import BoxList, empty_in_format, is_channels_last
from atrousops.ops._batches import entries, fold, fold_boxes
from atrousops.ops._register import keep, register
from atrousops.ops._roi import Kind, check_boxes, find, number, rows
from atrousops.ops._routes import call_of, route_of
from atrousops.ops._windows import check_bool, integer


def roi_align(
    input: Tensor,
    boxes: Tensor | BoxList,
    output_size: int | tuple[int, int],
    spatial_scale: float = 1.0,
    sampling_ratio: int = -1,
    aligned: bool = False,
) -> Tensor:
    """Averages bilinear samples of the features in every bin of every box (RoIAlign).

    y[k, c, p, q] = 1 / (G_h G_w) sum_{i < G_h, j < G_w} x[n_k, c] at row  y1 + (p + (i + 0.5) / G_h) b_h
    and column  x1 + (q + (j + 0.5) / G_w) b_w, where (x1, y1, x2, y2) is box k times `spatial_scale`, less half a pixel
    if `aligned`, and b_h = (y2 - y1) / output height, b_w = (x2 - x1) / output width. Without `aligned` a box is at
    least one pixel wide and high. G is `sampling_ratio`, or ceil(b) if that is not positive. A sample more than
    one pixel outside the map counts as zero.

    Args:
        input: features (N, C, H, W), float64, float32, bfloat16 or float16.
        boxes: (K, 5) rows (image, x1, y1, x2, y2), or a list of N tensors (L, 4), in pixels of the image that
            `spatial_scale` maps to the features. They are used in float32 or float64 whatever the features' dtype.
        output_size: bins of the output, (height, width) or one number for both.
        spatial_scale: features' size over the image's size.
        sampling_ratio: samples per bin along each axis; if not positive, the size of the bin in pixels, rounded up.
        aligned: shift by half a pixel, so that pixel centres are at integers, as in Detectron2.

    Returns:
        (K, C, *output_size) in the features' dtype and memory format. Features get a gradient; boxes do not.

    Raises:
        ArgumentError: a wrong shape, or a box whose corners are not finite or are inverted, or whose image does not
            exist. On a GPU values are not checked, because that would synchronise: such a box gives NaN and no
            gradient.
        ArgumentTypeError: a dtype that is not floating, or an argument of the wrong type.

    Source:
        He et al., Mask R-CNN, arXiv:1703.06870, section 3; borders as in torchvision.ops.roi_align.
    """
    sampling_ratio = integer("roi_align", "sampling_ratio", sampling_ratio, "be an integer")
    check_bool("roi_align", "aligned", aligned)
    spatial_scale = number("roi_align", "spatial_scale", spatial_scale)
    rois = rows("roi_align", input, boxes)
    route = route_of(_CALL, input, rois, None, (output_size,), (spatial_scale, sampling_ratio, aligned))
    return route.run(input, rois, *route.rest)


def _fake(input, boxes, spatial_scale, pooled_height, pooled_width, sampling_ratio, aligned):
    size = (boxes.shape[0], input.shape[1], pooled_height, pooled_width)
    return empty_in_format(input, size, is_channels_last(input))


def _setup(ctx, inputs, output):
    input, boxes, *ctx.geometry = inputs
    keep(ctx, boxes)
    ctx.size = input.shape
    ctx.channels_last = is_channels_last(input)


def _backward(ctx, grad):
    (boxes,) = ctx.saved_tensors
    scale, _, _, sampling_ratio, aligned = ctx.geometry
    args = (grad, boxes, scale, *ctx.size, sampling_ratio, aligned, ctx.channels_last)
    return _run_backward(*args), *[None] * 6


def _fake_backward(
    grad, boxes, spatial_scale, batch_size, channels, height, width, sampling_ratio, aligned, channels_last
):
    return empty_in_format(grad, (batch_size, channels, height, width), channels_last)


def _setup_backward(ctx, inputs, output):
    grad, boxes, scale, _, _, _, _, sampling_ratio, aligned, _ = inputs
    keep(ctx, boxes)
    ctx.geometry = scale, *grad.shape[2:], sampling_ratio, aligned


def _double_backward(ctx, grad):
    # The gradient is linear in the incoming gradient, and its transpose is the operator itself.
    (boxes,) = ctx.saved_tensors
    return _run(grad, boxes, *ctx.geometry), *[None] * 9


def _otherwise(input, boxes, spatial_scale, pooled_height, pooled_width, sampling_ratio, aligned):
    check_boxes("roi_align", boxes, input.shape[0])
    return reference.roi_align(input, boxes, (pooled_height, pooled_width), spatial_scale, sampling_ratio, aligned)


def _otherwise_backward(
    grad, boxes, spatial_scale, batch_size, channels, height, width, sampling_ratio, aligned, channels_last
):
    size = (batch_size, channels, height, width)
    return reference.roi_align_backward(grad, boxes, size, spatial_scale, sampling_ratio, aligned)


def _vmap(info, in_dims, input, boxes, *geometry):
    images = entries(input, in_dims[0])
    check_boxes("roi_align", boxes, images)
    rows = fold_boxes(boxes, in_dims[1], info.batch_size, images)
    out = _run(fold(input, in_dims[0], info.batch_size), rows, *geometry)
    return out.unflatten(0, (info.batch_size, entries(boxes, in_dims[1]))), 0


def _vmap_backward(info, in_dims, grad, boxes, scale, batch_size, *geometry):
    rows = fold_boxes(boxes, in_dims[1], info.batch_size, batch_size)
    grad = fold(grad, in_dims[0], info.batch_size)
    out = _run_backward(grad, rows, scale, info.batch_size * batch_size, *geometry)
    return out.unflatten(0, (info.batch_size, batch_size)), 0


# No autocast: 16-bit features are pooled in fp32 and rounded once, which is equal to casting to fp32 and back.
_run = register("roi_align", fake=_fake, otherwise=_otherwise, backward=_backward, setup_context=_setup, vmap=_vmap)
_run_backward = register(
    "roi_align_backward",
    fake=_fake_backward,
    otherwise=_otherwise_backward,
    backward=_double_backward,
    setup_context=_setup_backward,
    vmap=_vmap_backward,
)
_CALL = call_of("roi_align", find, Kind("roi_align", roi_align, _run, reference.roi_align))
