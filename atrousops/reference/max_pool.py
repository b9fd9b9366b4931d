import itertools
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def max_pool(
    input: Tensor,
    kernel_size: tuple[int, ...],
    stride: tuple[int, ...],
    padding: tuple[int, ...],
    dilation: tuple[int, ...],
    ceil_mode: bool,
    codes: bool = False,
) -> tuple[Tensor, Tensor]:
    """The maximum of each window, tap by tap, with its flat position in the map (int64) or its tap's number (uint8)."""
    axes = len(kernel_size)
    sizes = input.shape[-axes:]
    windows: list[int] = []
    edges: list[int] = []
    for n, k, s, p, d in zip(sizes, kernel_size, stride, padding, dilation):
        room = n + 2 * p - d * (k - 1) - 1
        out = -(-room // s) + 1 if ceil_mode else room // s + 1
        if ceil_mode and (out - 1) * s >= n + p:
            out -= 1
        windows.append(out)
        # The last tap of the last window may lie beyond the padding.
        edges = [p, max(0, (out - 1) * s + d * (k - 1) + 1 - n - p), *edges]
    lowest = float("-inf") if input.is_floating_point() else torch.iinfo(input.dtype).min
    padded = F.pad(input, edges, value=lowest)

    # Coordinates of tap (0, ..., 0) of each window, shaped to broadcast along their own axis.
    starts = [
        (torch.arange(o, device=input.device) * s - p).reshape(-1, *[1] * (axes - 1 - axis))
        for axis, (o, s, p) in enumerate(zip(windows, stride, padding))
    ]

    def mark(taps: list) -> Tensor:
        flat = torch.zeros([], dtype=torch.int64, device=input.device)
        for axis, tap in enumerate(taps):
            if codes:
                flat = flat * kernel_size[axis] + tap
            else:
                flat = flat * sizes[axis] + starts[axis] + tap * dilation[axis]
        return flat.expand(windows)

    best = input.new_full((*input.shape[:-axes], *windows), lowest)
    # A window of only -inf: its first tap that is not before the start of the map.
    marks = mark([(-start).clamp(min=0).add(d - 1).div(d, rounding_mode="floor") for start, d in zip(starts, dilation)])
    marks = marks.expand(best.shape)
    for taps in itertools.product(*map(range, kernel_size)):
        here: list[Any] = [
            slice(tap * d, tap * d + (o - 1) * s + 1, s) for tap, d, o, s in zip(taps, dilation, windows, stride)
        ]
        value = padded[tuple([..., *here])]
        better = (value > best) | value.isnan()
        best = torch.where(better, value, best)
        marks = torch.where(better, mark(list(taps)), marks)
    if axes == 1:
        best, marks = best.contiguous(), marks.contiguous()
    return best, marks.to(torch.uint8 if codes else torch.int64)
