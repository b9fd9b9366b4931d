"""Common code of roi_align and roi_pool: boxes, their checks, and the choice of a backend."""

from __future__ import annotations

import functools
import math
import numbers
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.overrides import handle_torch_function

from atrousops.common.checks import bad_type, bad_value, check_device, check_not_masked
from atrousops.common.formats import BoxList
from atrousops.common.values import has_values, values_of
from atrousops.dispatch import backends
from atrousops.ops._register import foreign, stands_in
from atrousops.ops._routes import Route
from atrousops.ops._windows import integer

_COLUMNS = "Its columns are (image, x1, y1, x2, y2)."


class Kind(NamedTuple):
    """roi_align or roi_pool: its name, the function, what `register` returned, and its definition."""

    op: str
    function: Callable[..., Tensor]
    kernel: Callable[..., Tensor]
    reference: Callable[..., Tensor]


def find(kind: Kind, input: Tensor, rois: Tensor, _: None, output_size: Any, scale: float, *rest: int) -> Route:
    """The route of a call with (K, 5) boxes."""
    op = kind.op
    if stands_in(input, rois):
        record = functools.partial(handle_torch_function, kind.function, (input, rois))
        return Route(record, (output_size, scale, *rest))
    _check_input(op, input)
    height, width = pair(op, output_size)
    if not 0 < scale < math.inf:
        bad_value(op, "spatial_scale", "be positive and finite", scale, "It is features' size / image's size.")
    _check_box_tensor(op, "boxes", rois, input)
    if rois.dim() != 2 or rois.shape[1] != 5:
        bad_value(op, "boxes", "have shape (K, 5)", tuple(rois.shape), f"{_COLUMNS} Or give one (L, 4) an image.")
    wide = _at_least_float(rois)
    if wide is not rois:
        route = find(kind, input, wide, None, output_size, scale, *rest)
        return Route(lambda input, rois, *rest: route.run(input, _at_least_float(rois), *rest), route.rest)
    backend = backends.choose(op, input.device, input.dtype)
    apart = foreign(input, rois)
    if backend in backends.COMPILED and not apart:
        return Route(kind.kernel, (scale, height, width, *rest))
    return Route(
        _in_torchvision if backend == "aten" and not apart else _by_definition, (kind, (height, width), scale, *rest)
    )


def _in_torchvision(input: Tensor, rois: Tensor, kind: Kind, *rest: Any) -> Tensor:
    check_boxes(kind.op, rois, input.shape[0])
    import torchvision

    # torchvision needs one dtype for both, and 16 bits are too few for boxes.
    dtype = torch.promote_types(torch.promote_types(input.dtype, torch.float32), rois.dtype)
    return getattr(torchvision.ops, kind.op)(input.to(dtype), rois.to(dtype), *rest).to(input.dtype)


def _by_definition(input: Tensor, rois: Tensor, kind: Kind, *rest: Any) -> Tensor:
    check_boxes(kind.op, rois, input.shape[0])
    return kind.reference(input, rois, *rest)


def _check_input(op: str, input: Any) -> None:
    nested = isinstance(input, Tensor) and input.is_nested
    if not isinstance(input, Tensor) or nested or input.dtype not in backends.FLOATING:
        got = "a nested one" if nested else input.dtype if isinstance(input, Tensor) else type(input).__name__
        bad_type(op, "input", "be a float64, float32, bfloat16 or float16 tensor", got, "Cast it with .float().")
    check_not_masked(op, "input", input)
    if input.dim() != 4:
        bad_value(op, "input", "have shape (N, C, H, W)", tuple(input.shape), "Add a batch axis with input[None].")
    if input.shape[2] == 0 or input.shape[3] == 0:
        bad_value(op, "input", "have at least one pixel", tuple(input.shape))


def pair(op: str, output_size: int | Sequence[int]) -> tuple[int, int]:
    """(height, width) from one number or two."""
    rule = "be one integer or (height, width)"
    sizes = tuple(output_size) if isinstance(output_size, (tuple, list)) else (output_size, output_size)
    if len(sizes) != 2:
        bad_value(op, "output_size", rule, output_size)
    height, width = (integer(op, "output_size", n, rule) for n in sizes)
    if height < 1 or width < 1:
        bad_value(op, "output_size", "be positive", output_size)
    return height, width


def number(op: str, argument: str, value: Any) -> float:
    """Converts any real number to float, including NumPy's and one-element tensors, but not bool."""
    if type(value) is float:
        return value
    if isinstance(value, Tensor):
        real = value.numel() == 1 and not value.is_complex() and value.dtype != torch.bool
    else:
        real = isinstance(value, (numbers.Real, torch.SymInt, torch.SymFloat)) and not isinstance(value, bool)
    if not real:
        bad_type(op, argument, "be a number", type(value).__name__)
    return float(value)


def rows(op: str, input: Tensor, boxes: Tensor | BoxList) -> Tensor:
    """(K, 5) boxes from a list for each image; a tensor, or an object that acts as one, is returned unchanged."""
    if isinstance(boxes, Tensor):
        return boxes
    if stands_in(input, boxes):
        return boxes  # type: ignore[return-value]
    _check_input(op, input)
    if not isinstance(boxes, (list, tuple)):
        bad_type(op, "boxes", "be a (K, 5) tensor or a list of (L, 4) tensors", type(boxes).__name__)
    if len(boxes) > input.shape[0]:
        bad_value(op, "boxes", f"have at most one tensor for each of the {input.shape[0]} images", len(boxes))
    for i, one in enumerate(boxes):
        _check_box_tensor(op, f"boxes[{i}]", one, input)
        if one.dim() != 2 or one.shape[1] != 4:
            bad_value(op, f"boxes[{i}]", "have shape (L, 4)", tuple(one.shape), "Its columns are (x1, y1, x2, y2).")
    if len(boxes) == 0:
        return torch.empty((0, 5), dtype=torch.float32, device=input.device)
    # Widened before the image index is added: bfloat16 does not represent all integers above 256.
    wide = [_at_least_float(one) for one in boxes]
    return torch.cat([torch.nn.functional.pad(one, (1, 0), value=float(i)) for i, one in enumerate(wide)])


def _check_box_tensor(op: str, name: str, boxes: object, input: Tensor) -> None:
    if not isinstance(boxes, Tensor) or not boxes.is_floating_point():
        got = boxes.dtype if isinstance(boxes, Tensor) else type(boxes).__name__
        bad_type(op, name, "be a floating tensor", got, "Cast it with .float().")
    check_not_masked(op, name, boxes)
    check_device(op, "input", input, "", **{name: boxes})


def _at_least_float(boxes: Tensor) -> Tensor:
    return boxes if boxes.dtype in (torch.float32, torch.float64) else boxes.float()


def check_boxes(op: str, rois: Tensor, batch: int) -> None:
    """The CPU operator's checks of the boxes' values, for backends without checks."""
    rois = values_of(rois).flatten(0, -2)
    if not has_values(rois) or rois.shape[0] == 0:
        return
    image, corners = rois[:, 0], rois[:, 1:]
    _refuse(op, rois, ~rois.isfinite().all(1), "be finite", "Drop such boxes.")
    _refuse(op, rois, (corners[:, :2] > corners[:, 2:]).any(1), "have x1 <= x2 and y1 <= y2", _COLUMNS)
    outside = (image < 0) | (image >= batch) | (image != image.floor())
    _refuse(op, rois, outside, f"have an image index among 0 .. {batch - 1} in column 0", _COLUMNS)


def _refuse(op: str, rois: Tensor, bad: Tensor, rule: str, remedy: str) -> None:
    if bad.any():
        k = int(bad.nonzero()[0])
        bad_value(op, "boxes", rule, f"box {k} = {tuple(rois[k].tolist())}", remedy)
