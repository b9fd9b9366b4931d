"""What keeps objects that touch apart in training: a line of background between them, and the weight of such places."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from atrousops.data import VOID

# Weights beyond this many deviations are below 1.2 % of their height.
_DEVIATIONS = 3.0


def separate(labels: Tensor) -> Tensor:
    """Classes (N, H, W) of labels (N, 2, H, W), with background 0 where two objects touch.

    A pixel becomes background if the 3x3 pixels around it belong to two objects or more. Void stays void.
    """
    classes = labels[:, 0]
    largest, smallest = _grow(*_start(labels))
    touches = (largest > 0) & (largest != -smallest)
    return torch.where(touches & (classes != VOID), 0, classes)


def border_weights(labels: Tensor, height: float, deviation: float) -> Tensor:
    """How much more each pixel of background weighs for lying between two objects: (N, 2, H, W) -> fp32 (N, H, W).

    w = height exp(-(d1 + d2)^2 / (2 deviation^2)), where d1 and d2 are the distances in pixels to the nearest and the
    second nearest object, and a diagonal step counts as one. 0 on objects, on void, and where d2 > 3 deviation.

    Args:
        labels: (N, 2, H, W) int64, classes and numbers of objects; `separate` has been applied to the classes, and
            pixels of background count as no object.
        height: w0 of the paper, 10 there.
        deviation: sigma of the paper, 5 pixels there.

    Source: Ronneberger, Fischer, Brox, U-Net (2015), equation 2, with another distance.
    """
    largest, smallest = _start(labels)
    free = (largest == 0) & (labels[:, 0] != VOID)
    radius = int(_DEVIATIONS * deviation)
    first = torch.full(free.shape, radius + 1, device=labels.device)
    second = first.clone()
    for distance in range(1, radius + 1):
        largest, smallest = _grow(largest, smallest)
        first[(largest > 0) & (first > distance)] = distance
        second[(largest > 0) & (largest != -smallest) & (second > distance)] = distance
    weight = height * torch.exp(-((first + second) ** 2) / (2 * deviation**2))
    return torch.where(free & (second <= radius), weight, 0.0)


def _start(labels: Tensor) -> tuple[Tensor, Tensor]:
    """Each pixel's object, and minus the same with minus infinity where there is none; exact up to 2^24 objects."""
    classes, numbers = labels[:, 0], labels[:, 1]
    found = torch.where((classes != 0) & (classes != VOID), numbers, 0).float()
    return found, torch.where(found > 0, -found, -torch.inf)


def _grow(largest: Tensor, smallest: Tensor) -> tuple[Tensor, Tensor]:
    """The largest number, and minus the smallest, one pixel further."""
    both = F.max_pool2d(torch.stack([largest, smallest], dim=1), 3, stride=1, padding=1)
    return both[:, 0], both[:, 1]
