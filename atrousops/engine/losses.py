"""What training makes small: cross entropy with class weights and hard pixels, or a loss of the network's own."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from atrousops._checks import bad_value
from atrousops.data import VOID, SegmentationSet


@dataclass(frozen=True)
class Loss:
    """A pixelwise cross entropy; void pixels never count.

    weights: of the classes: "none"; "median_frequency", median(f) / f_c, where f_c is the part of class c in the images
        that show it (Eigen and Fergus 2015, SegNet), and the median of an even number of classes is the mean of the two
        in the middle; "enet", 1 / ln(1.02 + p_c), p_c being its part of all pixels.
    hard: the part of each image's pixels that counts, those with the largest loss (bootstrapping, Wu et al. 2016).
    aux: how much the auxiliary head counts; 0.4 in PSPNet.
    scales: how much the scores of each scale of a `MultiScale` count; 1 in DeepLab v2.
    """

    weights: str = "none"
    hard: float = 1.0
    aux: float = 0.4
    scales: float = 1.0


def class_weights(kind: str, data: SegmentationSet, progress: bool = False) -> Tensor | None:
    """The weights of `Loss.weights`, fp32 (L,), from the labels of a set without a transform; None for "none".

    A class that never occurs gets 0.

    Raises:
        ArgumentError: no such kind.
    """
    if kind == "none":
        return None
    if kind not in ("median_frequency", "enet"):
        bad_value("Loss", "weights", "be none, median_frequency or enet", repr(kind))
    pixels = torch.zeros(len(data.classes), dtype=torch.float64)
    shown = torch.zeros_like(pixels)
    for name in tqdm(data.names, desc="class weights", disable=not progress, leave=False):
        labels = classes_of(data.read(name)[1])
        counts = torch.bincount(labels[labels != VOID], minlength=len(pixels)).double()
        pixels += counts
        shown += (counts > 0) * counts.sum()
    if kind == "enet":
        weights = 1 / torch.log(1.02 + pixels / pixels.sum())
    else:
        frequency = pixels / shown
        weights = frequency.nanquantile(0.5) / frequency
    return torch.where(pixels > 0, weights, 0).float()


def classes_of(labels: Tensor) -> Tensor:
    """The classes (H, W) of an image's labels (H, W), or (2, H, W) where objects are numbered."""
    return labels if labels.dim() == 2 else labels[0]


class Criterion(nn.Module):
    """The loss of a network on a batch, as a sum and the number it is to be divided by.

    Both are sums over images, so that a batch may be cut into parts, on one machine or several, without changing the
    gradient. A network with a method `loss(images, labels)` brings its own mean over images; any other is judged by

        sum_i w[y_i] (-log softmax(s_i)[y_i]) / sum_i w[y_i],

    i over the pixels that count, plus `aux` times the same of the auxiliary scores and `scales` times that of the
    scores of each scale.

    Args:
        recipe: see `Loss`.
        weights: (L,), of the classes, or None.

    Raises:
        ArgumentError: hard is not in (0, 1].
    """

    weights: Tensor | None

    def __init__(self, recipe: Loss, weights: Tensor | None = None) -> None:
        super().__init__()
        if not 0 < recipe.hard <= 1:
            bad_value("Loss", "hard", "be a part in (0, 1]", recipe.hard)
        self.recipe = recipe
        self.register_buffer("weights", weights, persistent=False)

    def denominator(self, network: nn.Module, labels: Tensor) -> Tensor:
        """What the sum of a batch is to be divided by; a function of its labels alone."""
        if hasattr(network, "loss"):
            return torch.tensor(float(len(labels)), device=labels.device)
        if self.recipe.hard < 1:
            kept = [self._kept(counted) for counted in (_flat(labels) != VOID).sum(1).tolist()]
            return torch.tensor(float(sum(kept)), device=labels.device)
        flat = _flat(labels)
        counted = flat[flat != VOID]
        return (
            self.weights[counted].sum() if self.weights is not None else counted.numel() + counted.sum() * 0
        ).float()

    def forward(self, network: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
        """The sum."""
        if hasattr(network, "loss"):
            return cast(Any, network).loss(images, labels) * len(images)
        outputs: dict[str, Tensor] = network(images)
        loss = self._sum(outputs["out"], labels)
        for name, scores in outputs.items():
            share = self.recipe.aux if name == "aux" else self.recipe.scales if name.startswith("scale") else 0
            if share:
                loss = loss + share * self._sum(scores, labels)
        return loss

    def _sum(self, scores: Tensor, labels: Tensor) -> Tensor:
        target = _flat(labels)
        losses = F.cross_entropy(
            scores.float().flatten(2), target, self.weights, ignore_index=VOID, reduction="none"
        )  # fmt: skip
        if self.recipe.hard == 1:
            return losses.sum()
        total = losses.sum() * 0
        for one, counted in zip(losses, (target != VOID).sum(1).tolist()):
            total = total + one.topk(self._kept(counted)).values.sum()
        return total

    def _kept(self, counted: int) -> int:
        return math.ceil(self.recipe.hard * counted)


def _flat(labels: Tensor) -> Tensor:
    """Classes (N, H W) of labels (N, H, W) or (N, 2, H, W)."""
    return (labels if labels.dim() == 3 else labels[:, 0]).flatten(1)


class WithLoss(nn.Module):
    """A network and its criterion as one module, images and labels -> the loss's sum, for DistributedDataParallel."""

    def __init__(self, network: nn.Module, criterion: Criterion) -> None:
        super().__init__()
        self.network = network
        self.criterion = criterion

    def forward(self, images: Tensor, labels: Tensor) -> Tensor:
        return self.criterion(self.network, images, labels)
