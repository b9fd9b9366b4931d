"""Augmentation and normalisation with torchvision's transforms (v2)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2

from atrousops.data.base import VOID

MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Augmentation:
    """How training crops are drawn.

    crop: height and width, or the side of a square, in pixels. size: longest side at scale 1. scale: range of the
    random scale. flip: half of the crops are mirrored. colour: strength of brightness, contrast and saturation jitter;
    a tenth of it turns the hue.
    """

    crop: int | tuple[int, int] = 224
    size: int = 400
    scale: tuple[float, float] = (0.5, 1.5)
    flip: bool = True
    colour: float = 0.3


def training(augmentation: Augmentation, mean: Sequence[float] = MEAN, std: Sequence[float] = STD) -> v2.Compose:
    """Random scale, crop, flip and colour, then normalisation; void fills what lies outside the image."""
    a = augmentation
    grey = [round(255 * m) for m in MEAN]
    return v2.Compose(
        [
            v2.ScaleJitter((a.size, a.size), tuple(a.scale), antialias=True),
            v2.RandomCrop(a.crop, pad_if_needed=True, fill={tv_tensors.Image: grey, tv_tensors.Mask: VOID}),
            v2.RandomHorizontalFlip(0.5 if a.flip else 0.0),
            v2.ColorJitter(a.colour, a.colour, a.colour, a.colour / 10),
            *_normalise(mean, std),
        ]
    )


def evaluation(mean: Sequence[float] = MEAN, std: Sequence[float] = STD) -> v2.Compose:
    """Normalisation only: images are seen whole, at their own size."""
    return v2.Compose(_normalise(mean, std))


def plain() -> v2.Compose:
    """RGB in 0..1, whole images at their own size."""
    return evaluation((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))


def calibration(side: int) -> v2.Compose:
    """The whole image at `side` x `side`, normalised."""
    return v2.Compose([v2.Resize((side, side), antialias=True), *_normalise()])


def _normalise(mean: Sequence[float] = MEAN, std: Sequence[float] = STD) -> list[v2.Transform]:
    dtypes = {tv_tensors.Image: torch.float32, tv_tensors.Mask: torch.int64}
    return [v2.ToDtype(dtypes, scale=True), v2.Normalize(mean, std), v2.ToPureTensor()]


def denormalise(image: Tensor, mean: Sequence[float] = MEAN, std: Sequence[float] = STD) -> Tensor:
    """RGB in 0..255 from a normalised image (3, H, W)."""
    return 255 * (image * torch.tensor(std).view(3, 1, 1) + torch.tensor(mean).view(3, 1, 1))
