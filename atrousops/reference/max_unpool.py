from collections.abc import Sequence

import torch
from torch import Tensor

from atrousops._checks import bad_value


def max_unpool(
    input: Tensor,
    indices: Tensor,
    output_size: Sequence[int],
    kernel_size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
) -> Tensor:
    """y[indices[i]] = x[i] in each plane, zero elsewhere; of several values for one position the last stays."""
    axes = len(kernel_size)
    leading, windows = input.shape[:-axes], input.shape[-axes:]
    plane = 1
    for n in output_size:
        plane *= n
    inside = torch.ones_like(indices, dtype=torch.bool)
    if indices.dtype == torch.uint8:
        indices, inside = _positions(indices.long(), windows, output_size, kernel_size, stride, padding)
    elif plane and bool(((indices < 0) | (indices >= plane)).any()):
        wrong = indices[(indices < 0) | (indices >= plane)][0].item()
        bad_value(
            "max_unpool", "indices", f"lie between 0 and {plane - 1}", wrong, f"Found an invalid max index: {wrong}"
        )
    values, flat, inside = (t.reshape(*leading, -1) for t in (input, indices, inside))

    # Who writes last at each position: windows count from 1, and 0 says nobody.
    order = torch.arange(1, values.shape[-1] + 1, device=input.device).expand(flat.shape) * inside
    writer = torch.zeros(*leading, plane, dtype=torch.int64, device=input.device)
    writer = writer.scatter_reduce(-1, flat * inside, order, "amax")
    placed = values.gather(-1, (writer - 1).clamp(min=0))
    out = torch.where(writer > 0, placed, torch.zeros_like(placed)).reshape(*leading, *output_size)
    channels_last = {4: torch.channels_last, 5: torch.channels_last_3d}.get(axes + 2)
    if channels_last and len(leading) == 2 and input.is_contiguous(memory_format=channels_last):
        return out.contiguous(memory_format=channels_last)
    return out


def _positions(codes, windows, output_size, kernel_size, stride, padding) -> tuple[Tensor, Tensor]:
    """Flat positions of the taps that codes number, and whether they lie inside the output."""
    taps = 1
    for k in kernel_size:
        taps *= k
    if codes.numel() and int(codes.max()) >= taps:
        bad_value("max_unpool", "indices", f"hold codes between 0 and {taps - 1}", int(codes.max()))
    flat, inside = torch.zeros_like(codes), torch.ones_like(codes, dtype=torch.bool)
    axes = len(kernel_size)
    for axis in range(axes):
        after = 1
        for k in kernel_size[axis + 1 :]:
            after *= k
        start = torch.arange(windows[axis], device=codes.device) * stride[axis] - padding[axis]
        x = start.reshape(-1, *[1] * (axes - 1 - axis)) + codes // after % kernel_size[axis]
        inside &= (x >= 0) & (x < output_size[axis])
        flat = flat * output_size[axis] + x
    return flat, inside
