"""The Gaussian kernels of a CRF: over positions, over image values, or over both."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from atrousops.common.checks import bad_type, bad_value
from atrousops.ops.permutohedral import MAX_FEATURES, Blame, Lattice, check_count, is_known, lattice_of

MAX_AXES = 3
Compatibility = float | Sequence[float] | Sequence[Sequence[float]] | Tensor
Numbers = float | Sequence[float]


@dataclass(frozen=True)
class CRFKernel:
    """One kernel of a CRF: exp(-|p_i - p_j|^2 / (2 sxy^2) - sum over channels c of (I_ic - I_jc)^2 / (2 srgb_c^2)).

    Attributes:
        compat: the weight. In DenseCRF as gaussian_compat: w of the Potts model, L numbers or an (L, L) matrix. In
            CRFasRNN the initial diagonal of its kernel weights.
        sxy: standard deviation of positions, one number or (sx, sy, sz), where x is the last axis of the tensors, in
            the unit of the CRF's spacing. None: positions are not used.
        srgb: standard deviation of the image in its units, one number or one per channel. None: the image is not used.
        channels: the image channels to use; all if None.
    """

    compat: Compatibility
    sxy: Numbers | None = None
    srgb: Numbers | None = None
    channels: Sequence[int] | None = None


class Checked(NamedTuple):
    """A kernel with checked numbers; `prefix` is put before its arguments' names in messages.

    A single sxy is for all axes, and a single srgb for all channels.
    """

    prefix: str
    sxy: tuple[float, ...] | None
    srgb: tuple[float, ...] | None
    channels: tuple[int, ...] | None


def deviations(op: str, argument: str, value: Numbers, most: int) -> tuple[float, ...]:
    """One positive number, or up to `most` of them.

    Raises:
        ArgumentError, ArgumentTypeError: it is something else.
    """
    try:
        numbers = (float(value),) if isinstance(value, int | float) else tuple(map(float, value))
    except (TypeError, ValueError):
        bad_type(op, argument, f"be a number or 1 to {most} of them", repr(value))
    if not 1 <= len(numbers) <= most or not all(0 < v < math.inf for v in numbers):
        bad_value(op, argument, f"be a positive number or 1 to {most} of them", repr(value))
    return numbers


def check_kernel(op: str, prefix: str, kernel: CRFKernel) -> Checked:
    """The kernel's numbers as tuples.

    Raises:
        ArgumentError, ArgumentTypeError: a number is not positive, there are too many, or neither sxy nor srgb is
            given.
    """
    sxy = None if kernel.sxy is None else deviations(op, f"{prefix}sxy", kernel.sxy, MAX_AXES)
    room = MAX_FEATURES - (0 if sxy is None else len(sxy))
    srgb = None if kernel.srgb is None else deviations(op, f"{prefix}srgb", kernel.srgb, room)
    if sxy is None and srgb is None:
        bad_value(op, f"{prefix}sxy", "be given unless srgb is", None)
    channels = None if kernel.channels is None else tuple(kernel.channels)
    if channels is not None and (srgb is None or not channels or not all(type(c) is int and c >= 0 for c in channels)):
        rule = "be integers of at least 0, with an srgb"
        bad_value(op, f"{prefix}channels", rule, f"{kernel.channels!r} with srgb {kernel.srgb!r}")
    return Checked(prefix, sxy, srgb, channels)


def given_kernels(
    op: str,
    usual: Mapping[str, CRFKernel],
    default: Mapping[str, CRFKernel],
    kernels: Sequence[CRFKernel | Mapping[str, Any]] | None,
    compat: str = "compat",
) -> Mapping[str, CRFKernel]:
    """The two default kernels, or the given ones, by the prefix of their argument names in messages.

    Args:
        compat: the name of the compat argument of the default kernels.

    Raises:
        ArgumentError, ArgumentTypeError: the sequence is empty or holds something else, or a setting of the default
            kernels, which would be ignored, differs from `default`.
    """
    if kernels is None:
        return usual
    for prefix, kernel in usual.items():
        for key, value in vars(kernel).items():
            plain = value is None or isinstance(value, int | float)
            if not (plain and value == getattr(default[prefix], key)):
                name = prefix + (compat if key == "compat" else key)
                bad_value(op, "kernels", f"be None where {name} is given", repr(value))
    if not isinstance(kernels, Sequence) or isinstance(kernels, str):
        bad_type(op, "kernels", "be a sequence of CRFKernel", type(kernels).__name__)
    if len(kernels) == 0:
        bad_value(op, "kernels", "be at least one", "none", "A CRF without any is the softmax of its scores.")
    return {f"kernels[{number}].": _kernel(op, f"kernels[{number}]", one) for number, one in enumerate(kernels)}


def _kernel(op: str, argument: str, given: CRFKernel | Mapping[str, Any]) -> CRFKernel:
    if isinstance(given, CRFKernel):
        return given
    if not isinstance(given, Mapping):
        bad_type(op, argument, "be a CRFKernel or its keyword arguments", type(given).__name__)
    try:
        return CRFKernel(**given)
    except TypeError as error:
        bad_value(op, argument, "have keyword arguments of CRFKernel", f"{dict(given)}: {error}")


def check_image(op: str, kernels: Sequence[Checked], spacing: tuple[float, ...], image: Tensor) -> None:
    """Raises ArgumentError unless an image (N, C, *spatial) has the axes and channels that the kernels use."""
    axes, count = image.dim() - 2, image.shape[1]
    for argument, value in (("spacing", spacing), *((f"{k.prefix}sxy", k.sxy) for k in kernels)):
        if value is not None and len(value) not in (1, axes):
            bad_value(op, argument, f"be one number or {axes}, one an axis of scores", value)
    for kernel in kernels:
        if kernel.srgb is None:
            check_count(op, "image", image, axes, images=1)
            continue
        if kernel.channels is not None and max(kernel.channels) >= count:
            bad_value(op, f"{kernel.prefix}channels", f"be below {count}, the channels of the image", kernel.channels)
        read = count if kernel.channels is None else len(kernel.channels)
        most = MAX_FEATURES - (0 if kernel.sxy is None else axes)
        given = len(kernel.srgb)
        if 1 <= read <= most and given in (1, read):
            check_count(op, "image", image, read + MAX_FEATURES - most, image.shape[0])
            continue
        if kernel.channels is not None:
            rule = f"be one number or {read}, one for each of {kernel.channels}, which may be {most} at most"
            bad_value(op, f"{kernel.prefix}srgb", rule, kernel.srgb)
        wanted = f"1 to {most} channels" if given == 1 else f"{given} channels, as {kernel.prefix}srgb"
        remedy = "A grey image has one channel; repeated three times, its distances grow by the root of 3."
        if read > most:
            remedy = f"The lattice has at most {MAX_FEATURES} features, and the position takes {axes}; give a "
            remedy += "CRFKernel the channels that matter, or the image's principal components."
        bad_value(op, "image", f"have {wanted}", tuple(image.shape), remedy)


def lattice(op: str, kernel: Checked, spacing: tuple[float, ...], image: Tensor) -> Lattice:
    """The lattice of a kernel: one per image, or one for all if the kernel does not use the image."""
    colours = None
    if kernel.srgb is not None:
        # Divided by Python numbers: a tensor would make a GPU wait for a copy.
        channels, by = image.unbind(1), kernel.srgb
        if kernel.channels is not None:
            channels = tuple(channels[c] for c in kernel.channels)
        by = by * len(channels) if len(by) == 1 else by
        colours = torch.stack([channel / deviation for channel, deviation in zip(channels, by)], 1)
    if kernel.sxy is None:
        assert colours is not None
        return lattice_of(colours, Blame(op, "image", image))
    place = _positions(kernel.sxy, spacing, image)
    if colours is None:
        return lattice_of(place, Blame(op, f"{kernel.prefix}sxy", place))
    place = place.expand(image.shape[0], *place.shape[1:])
    return lattice_of(torch.cat([place, colours], 1), Blame(op, "image", image))


def _positions(sxy: tuple[float, ...], spacing: tuple[float, ...], image: Tensor) -> Tensor:
    """(1, axes, *spatial), in standard deviations, in pydensecrf's order: x, y for images; z, y, x for volumes."""
    size = image.shape[2:]
    axes = len(size)
    sxy, spacing = (value * axes if len(value) == 1 else value for value in (sxy, spacing))
    found = []
    for i, (deviation, step) in enumerate(zip(sxy, spacing)):
        at = torch.arange(size[-1 - i], dtype=image.dtype, device=image.device) / (deviation / step)
        found.append(at.view(-1, *(1,) * i).expand(size))
    return torch.stack(found[::-1] if axes == 3 else found)[None]


def check_range(op: str, kernels: Sequence[Checked], image: Tensor) -> None:
    """Warns of an image whose colours have no effect; not on a GPU, because the check would synchronise."""
    read = [kernel for kernel in kernels if kernel.srgb is not None]
    if not image.is_floating_point() or not read or any(kernel.channels for kernel in read):
        return
    least = min(min(kernel.srgb or ()) for kernel in read)
    if least < 1 or image.numel() == 0 or not is_known(image):
        return
    low, high = (float(v) for v in image.detach().aminmax())
    # Denormalised images may lie slightly below 0; images in other units span several deviations.
    if high - low <= 2 * least and (low < -0.5 or 0 < high <= 1):
        warnings.warn(
            f"{op}: image is in {low:g}..{high:g}, where 0..255 is expected: to deviations of "
            f"{least:g} and more its colours are nearly one. Give it in 0..255, or divide "
            f"{read[0].prefix}srgb accordingly.",
            stacklevel=2,
        )
