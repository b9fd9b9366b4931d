"""roi_pool: the largest feature in every bin of every box."""

from __future__ import annotations

import torch
from torch import Tensor

from atrousops import backends, reference
from atrousops.ops._register import register
from atrousops.ops._roi import BoxList, call, check_boxes, empty_in_format, is_channels_last, prepare


def roi_pool(
    input: Tensor, boxes: Tensor | BoxList, output_size: int | tuple[int, int], spatial_scale: float = 1.0
) -> Tensor:
    """Takes the largest feature in every bin of every box (RoIPool).

    y[k, c, p, q] = max x[n_k, c, i, j] over the rows floor(p h / P) <= i - y1 < ceil((p + 1) h / P) and the columns
    likewise, where (x1, y1, x2, y2) is box k times `spatial_scale`, rounded, and h = y2 - y1 + 1. A bin outside the map
    gives 0; NaN is never the largest; a bin with no number above -inf gives -inf, and no gradient.

    Args:
        input: features (N, C, H, W), float64, float32, bfloat16 or float16.
        boxes: (K, 5) rows (image, x1, y1, x2, y2), or a list of N tensors (L, 4), in pixels of the image that
            `spatial_scale` maps to the features. They are used in float32 or float64 whatever the features' dtype.
        output_size: bins of the output, (height, width) or one number for both.
        spatial_scale: features' size over the image's size.

    Returns:
        (K, C, *output_size) in the features' dtype and memory format. The gradient goes to the first of the largest.

    Raises:
        ArgumentError: a wrong shape, or a box with corners that are not finite or are inverted, or without an image. On
            a GPU, where a look at the boxes would make the host wait, such a box is not refused: its output is NaN, and
            it sends no gradient.
        ArgumentTypeError: a dtype that is not floating, or an argument of the wrong type.
        NotImplementedError: a second derivative is asked for.

    Source:
        Girshick, Fast R-CNN, arXiv:1504.08083, section 2.1; the rounding is torchvision.ops.roi_pool's.
    """
    rois, height, width, scale = prepare("roi_pool", input, boxes, output_size, spatial_scale)
    backend = backends.choose("roi_pool", input.device, input.dtype)
    if backend in backends.COMPILED:
        return call(_run, input, rois, scale, height, width)[0]
    check_boxes("roi_pool", rois, input.shape[0])
    if backend == "aten":
        import torchvision

        # torchvision wants one dtype for both, and has none of 16 bits that is right for boxes.
        dtype = torch.promote_types(torch.promote_types(input.dtype, torch.float32), rois.dtype)
        return torchvision.ops.roi_pool(input.to(dtype), rois.to(dtype), (height, width), scale).to(input.dtype)
    return reference.roi_pool(input, rois, (height, width), scale)


def _fake(input, boxes, spatial_scale, pooled_height, pooled_width):
    size = (boxes.shape[0], input.shape[1], pooled_height, pooled_width)
    output = empty_in_format(input, size, is_channels_last(input))
    return output, torch.empty_like(output, dtype=torch.int32)


def _setup(ctx, inputs, output):
    input, boxes, scale, _, _ = inputs
    _, argmax = output
    ctx.mark_non_differentiable(argmax)
    ctx.save_for_backward(boxes, argmax)
    ctx.scale = scale
    ctx.size = input.shape
    ctx.channels_last = is_channels_last(input)


def _backward(ctx, grad, _):
    boxes, argmax = ctx.saved_tensors
    args = (grad, boxes, argmax, ctx.scale, *ctx.size, ctx.channels_last)
    return _run_backward(*args), *[None] * 4


def _fake_backward(grad, boxes, argmax, spatial_scale, batch_size, channels, height, width, channels_last):
    return empty_in_format(grad, (batch_size, channels, height, width), channels_last)


def _setup_backward(ctx, inputs, output):
    """Nothing is needed."""


def _double_backward(ctx, grad):
    raise NotImplementedError("roi_pool: no second derivative; use roi_align, which has one.")


# No autocast: the largest of 16-bit features is the same number in fp32, and boxes are fp32 in any case.
_run = register("roi_pool", fake=_fake, backward=_backward, setup_context=_setup)
_run_backward = register(
    "roi_pool_backward", fake=_fake_backward, backward=_double_backward, setup_context=_setup_backward
)
