"""Objects of an image: those that a network finds itself, or the connected components of its classes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Found(NamedTuple):
    """labels, scores, masks (M, H, W): objects by descending score. panoptic (2, H, W): class and number per pixel."""

    labels: list[int]
    scores: list[float]
    masks: Tensor
    panoptic: Tensor


@torch.inference_mode()
def find(model: nn.Module, image: Tensor, things: Sequence[int] | None = None, least: int = 10) -> Found:
    """The objects of a normalised image (3, H, W).

    A network with a method `objects(image) -> labels, scores, masks` finds them itself. They are placed by descending
    score without overlap, and an object with less than half of its pixels visible is removed. For other networks the
    objects are the connected components of each class with at least `least` pixels; the score is the mean probability
    of the class.

    Args:
        model: in evaluation mode.
        image: (3, H, W).
        things: classes that have objects; all but 0 if None.
    """
    images = image[None].contiguous(memory_format=torch.channels_last)
    if hasattr(model, "objects"):
        labels, scores, masks = cast(Any, model).objects(image)
        order = sorted(range(len(scores)), key=lambda i: -scores[i])
        panoptic = torch.zeros(2, *image.shape[1:], dtype=torch.long, device=image.device)
        kept = []
        for i in order:
            free = masks[i] & (panoptic[1] == 0)
            if int(free.sum()) * 2 >= max(1, int(masks[i].sum())):
                kept.append(i)
                panoptic[0][free], panoptic[1][free] = labels[i], len(kept)
        return Found([labels[i] for i in kept], [scores[i] for i in kept], masks[kept], panoptic)
    probability = model(images)["out"][0].float().softmax(0)
    best, classes = probability.max(0)
    return parts(classes, best, range(1, len(probability)) if things is None else things, least)


def parts(classes: Tensor, score: Tensor, things: Sequence[int], least: int) -> Found:
    """The 8-connected components of the things of (H, W); smaller ones become class 0."""
    labels, scores, masks = [], [], []
    for thing in things:
        where = classes == thing
        numbers = components(where)
        for number in numbers[where].unique().tolist():
            mask = numbers == number
            if int(mask.sum()) >= least:
                labels.append(int(thing))
                scores.append(score[mask].mean().item())
                masks.append(mask)
    order = sorted(range(len(scores)), key=lambda i: -scores[i])
    stacked = torch.stack([masks[i] for i in order]) if masks else classes.new_zeros((0, *classes.shape)).bool()
    numbers = (stacked * torch.arange(1, len(stacked) + 1, device=classes.device)[:, None, None]).sum(0)
    is_thing = torch.isin(classes, torch.tensor(list(things), device=classes.device))
    panoptic = torch.stack([torch.where(is_thing & (numbers == 0), 0, classes), numbers])
    return Found([labels[i] for i in order], [scores[i] for i in order], stacked, panoptic)


def components(mask: Tensor) -> Tensor:
    """A number for each 8-connected component of a mask (H, W); 0 elsewhere.

    Every pixel takes the largest number in its neighbourhood, and follows the label of that pixel, until convergence.
    """
    inside = mask.flatten().nonzero()[:, 0]
    flat = torch.zeros(mask.numel() + 1, dtype=torch.long, device=mask.device)
    flat[inside + 1] = inside + 1
    while True:
        around = F.max_pool2d(flat[1:].view(1, 1, *mask.shape).double(), 3, stride=1, padding=1).long().flatten()
        new = torch.where(mask.flatten(), around, 0)
        new = flat.scatter(0, torch.arange(1, len(flat), device=mask.device), new)
        new = new[new]
        if torch.equal(new, flat):
            return flat[1:].view(mask.shape)
        flat = new
