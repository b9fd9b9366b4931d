"""Augmentation and normalisation with torchvision's transforms (v2)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional

from atrousops.common.checks import bad_value, check_least
from atrousops.data.base import VOID

MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Augmentation:
    """The parameters of random training crops.

    crop: height and width, or the side of a square, in pixels. size: longest side at scale 1. scale: range of the
    random scale. flip: mirror half of the crops. colour: strength of brightness, contrast and saturation jitter; a
    tenth of it is the hue jitter. Saturation and hue are only changed for RGB.
    """

    crop: int | tuple[int, int] = 224
    size: int = 400
    scale: tuple[float, float] = (0.5, 1.5)
    flip: bool = True
    colour: float = 0.3

    def __post_init__(self) -> None:
        for side in (self.crop,) if isinstance(self.crop, int) else self.crop:
            check_least("config", "augmentation.crop", side, 1)
        check_least("config", "augmentation.size", self.size, 1)
        check_least("config", "augmentation.colour", self.colour, 0)
        if not 0 < self.scale[0] <= self.scale[1]:
            bad_value("config", "augmentation.scale", "be a range above 0, [least, most]", self.scale)


class Channels(v2.Transform):
    """Checks that images (..., C, H, W) have `count` channels; converts RGB to grey if count is 1.

    grey = 0.299 r + 0.587 g + 0.114 b (ITU-R BT.601).

    Raises:
        ArgumentError: an image of another number of channels.
    """

    def __init__(self, count: int) -> None:
        super().__init__()
        self.count = count

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        if not isinstance(inpt, tv_tensors.Image) or inpt.shape[-3] == self.count:
            return inpt
        if inpt.shape[-3] != 3 or self.count != 1:
            remedy = "mean and std have a number for each channel of the image."
            bad_value("transforms", "image", f"have {self.count} channels", tuple(inpt.shape), remedy)
        return functional.rgb_to_grayscale(inpt)


class Exposure(v2.Transform):
    """Brightness and contrast jitter for images of any number of channels, the same for all channels.

    y = c (b x - m) + m, with b and c drawn from 1 - strength to 1 + strength, and m the mean of b x; clipped to the
    range of an integer dtype.
    """

    def __init__(self, strength: float) -> None:
        super().__init__()
        self.strength = strength

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        low = max(0.0, 1 - self.strength)
        brightness, contrast = torch.empty(2).uniform_(low, 1 + self.strength).tolist()
        return {"brightness": brightness, "contrast": contrast}

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        if not isinstance(inpt, tv_tensors.Image):
            return inpt
        x = inpt.as_subclass(Tensor).float() * params["brightness"]
        mean = x.mean(dim=(-3, -2, -1), keepdim=True)
        y = (x - mean) * params["contrast"] + mean
        if not inpt.is_floating_point():
            y = y.clamp(0, torch.iinfo(inpt.dtype).max).round()
        return tv_tensors.wrap(y.to(inpt.dtype), like=inpt)


def training(
    augmentation: Augmentation,
    mean: Sequence[float] = MEAN,
    std: Sequence[float] = STD,
    scale: float | None = None,
) -> v2.Compose:
    """Random scale, crop, flip and colour, then normalisation; pixels outside the image are void.

    mean and std have one number per channel of the result; see `Channels`. With a scale, images are floats that may
    exceed 0..1; their jitter is `Exposure`.
    """
    a = augmentation
    grey = [*mean] if scale is not None else [round(255 * m) for m in (MEAN if len(mean) == 3 else mean)]
    colour = (a.colour, a.colour, a.colour, a.colour / 10)
    rgb = scale is None and len(mean) in (1, 3)
    return v2.Compose(
        [
            Channels(len(mean)),
            v2.ScaleJitter((a.size, a.size), tuple(a.scale), antialias=True),
            v2.RandomCrop(a.crop, pad_if_needed=True, fill={tv_tensors.Image: grey, tv_tensors.Mask: VOID}),
            v2.RandomHorizontalFlip(0.5 if a.flip else 0.0),
            v2.ColorJitter(*colour) if rgb else Exposure(a.colour),
            *_normalise(mean, std),
        ]
    )


def evaluation(mean: Sequence[float] = MEAN, std: Sequence[float] = STD) -> v2.Compose:
    """Only normalisation: complete images at their own size."""
    return v2.Compose([Channels(len(mean)), *_normalise(mean, std)])


def plain() -> v2.Compose:
    """RGB in 0..1, complete images at their own size."""
    return evaluation((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))


def _normalise(mean: Sequence[float] = MEAN, std: Sequence[float] = STD) -> list[v2.Transform]:
    dtypes = {tv_tensors.Image: torch.float32, tv_tensors.Mask: torch.int64}
    return [v2.ToDtype(dtypes, scale=True), v2.Normalize(mean, std), v2.ToPureTensor()]


def denormalise(image: Tensor, mean: Sequence[float] = MEAN, std: Sequence[float] = STD) -> Tensor:
    """The colours in 0..255 of a normalised image (C, H, W); mean and std have C numbers."""
    return 255 * (image * torch.tensor(std).view(-1, 1, 1) + torch.tensor(mean).view(-1, 1, 1))
