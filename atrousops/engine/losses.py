"""Training losses: pixel or region losses with class weights, or the network's own loss."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from atrousops.common.checks import bad_choice, bad_value
from atrousops.data import VOID, SegmentationSet
from atrousops.engine.borders import border_weights, separate


@dataclass(frozen=True)
class Loss:
    """The loss of a network; void pixels are ignored.

    name: "cross_entropy", "binary_cross_entropy" and "focal" are means over pixels, "dice" and "lovasz" over images;
        see `binary_cross_entropy`, `focal`, `dice` and `lovasz`.
    gamma: for "focal".
    weights: class weights: "none"; "median_frequency", median(f) / f_c, where f_c is the share of class c in the images
        that contain it (Eigen and Fergus 2015, SegNet), and the median of an even number of classes is the mean of the
        two middle ones; "enet", 1 / ln(1.02 + p_c), where p_c is its share of all pixels.
    hard: use only this fraction of each image's pixels, those with the largest loss (bootstrapping, Wu et al. 2016);
        not for "dice" and "lovasz", which are losses of whole images.
    border: for "cross_entropy" and data with numbered objects: additional weight of background between two objects, w0
        of `border_weights`, 10 in U-Net; a line of background separates objects that touch. 0 turns both off.
    deviation: sigma of `border_weights`, in pixels; 5 in U-Net.
    aux: weight of the auxiliary head's loss; 0.4 in PSPNet.
    scales: weight of the loss of each scale of a `MultiScale`; 1 in DeepLab v2.
    """

    name: str = "cross_entropy"
    gamma: float = 2.0
    weights: str = "none"
    hard: float = 1.0
    border: float = 0.0
    deviation: float = 5.0
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
    for name in tqdm(data.names, desc="class weights", disable=None if progress else True, leave=False):
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
    """The classes (H, W) of an image's labels (H, W), or (2, H, W) if objects are numbered."""
    return labels if labels.dim() == 2 else labels[0]


def cross_entropy(scores: Tensor, labels: Tensor, weights: Tensor | None = None) -> Tensor:
    """w[y_i] (-log softmax(s_i)[y_i]) for every pixel, 0 for void: (N, L, P), (N, P) -> (N, P)."""
    return F.cross_entropy(scores, labels, weights, ignore_index=VOID, reduction="none")


def binary_cross_entropy(scores: Tensor, labels: Tensor, weights: Tensor | None = None) -> Tensor:
    """Binary cross entropy of every class by sigmoids, as the weighted mean over classes for each pixel.

    l_i = sum_c w_c (-log q_ic) / sum_c w_c, where q_ic = sigmoid(s_ic) if c = y_i, else 1 - sigmoid(s_ic).

    Args:
        scores: (N, L, P), logits. labels: (N, P), void being 255. weights: (L,), or None for equal ones.

    Returns:
        (N, P), 0 for void.
    """
    return focal(scores, labels, weights, gamma=0.0)


def focal(scores: Tensor, labels: Tensor, weights: Tensor | None = None, gamma: float = 2.0) -> Tensor:
    """Focal loss: `binary_cross_entropy` with lower weight for confident correct scores: (1 - q_ic)^gamma (-log q_ic).

    Arguments and result as `binary_cross_entropy`.

    Source: Lin et al., Focal loss for dense object detection (2017), equation 4.
    """
    losses = F.binary_cross_entropy_with_logits(scores, _one_hot(scores, labels), reduction="none")
    if gamma:
        # Clamped, so that the power has a finite derivative at q = 1.
        wrong = (-torch.expm1(-losses)).clamp_min(torch.finfo(losses.dtype).tiny)
        losses = wrong**gamma * losses
    share = torch.ones_like(scores[0, :, 0]) if weights is None else weights
    return (losses * (share / share.sum())[:, None]).sum(1) * (labels != VOID)


def dice(scores: Tensor, labels: Tensor, weights: Tensor | None = None) -> Tensor:
    """Soft Dice loss of each image: (N, L, P), (N, P) -> (N,).

    l_n = sum_c w_c (1 - 2 sum_i p_ic t_ic / sum_i (p_ic + t_ic)) / sum_c w_c,

    where p = softmax(s), t is 1 if c is the label, i runs over the pixels of image n that are not void, and c over the
    classes in it. An image with only void has 0.

    Source: Milletari et al., V-Net (2016), section 3, with soft labels and without squares.
    """
    counted = (labels != VOID)[:, None]
    p, t = scores.softmax(1) * counted, _one_hot(scores, labels) * counted
    total = (p + t).sum(2)
    losses = 1 - 2 * (p * t).sum(2) / total.clamp_min(torch.finfo(total.dtype).tiny)
    return _over_classes(losses, t.amax(2), weights)


def lovasz(scores: Tensor, labels: Tensor, weights: Tensor | None = None) -> Tensor:
    """Lovasz-softmax, the convex extension of 1 - IoU: (N, L, P), (N, P) -> (N,), one number per image.

    l_n = sum_c w_c g(m_c) / sum_c w_c over the classes in the image; m_ic = |t_ic - p_ic| are the errors, and g(m) =
    sum_k m_(k) (J_k - J_(k-1)), where m_(k) is the k-th largest error and J_k the Jaccard loss of the k worst pixels.

    Source: Berman et al., The Lovasz-softmax loss (2018), equations 8 to 12.
    """
    counted = (labels != VOID)[:, None]
    t = _one_hot(scores, labels)
    errors, order = ((t - scores.softmax(1)).abs() * counted).sort(dim=2, descending=True, stable=True)
    found = (t * counted).gather(2, order)
    total = found.sum(2, keepdim=True)
    # A void pixel is last, with error 0, and adds nothing.
    jaccard = 1 - (total - found.cumsum(2)) / (total + (1 - found).cumsum(2)).clamp_min(1)
    steps = torch.diff(jaccard, dim=2, prepend=torch.zeros_like(total))
    return _over_classes((errors * steps).sum(2), (total > 0).squeeze(2), weights)


def _one_hot(scores: Tensor, labels: Tensor) -> Tensor:
    """One-hot labels (N, L, P); void pixels are all 0."""
    classes = torch.arange(scores.shape[1], device=scores.device)[:, None]
    return (labels[:, None] == classes).to(scores.dtype)


def _over_classes(losses: Tensor, shown: Tensor, weights: Tensor | None) -> Tensor:
    """The weighted mean of (N, L) over the classes in each image, 0 if there are none."""
    share = shown.to(losses.dtype) if weights is None else shown * weights
    return (losses * share).sum(1) / share.sum(1).clamp_min(torch.finfo(losses.dtype).tiny)


_OF_PIXELS = {"cross_entropy": cross_entropy, "binary_cross_entropy": binary_cross_entropy, "focal": focal}
_OF_IMAGES = {"dice": dice, "lovasz": lovasz}


class Criterion(nn.Module):
    """The loss of a network on a batch, as a sum and a divisor.

    Both are sums over images, so that a batch can be divided into parts, on one or several machines, without changing
    the gradient. A network with a method `loss(images, labels)` has its own mean over images; others use the recipe's
    loss, for cross entropy

        sum_i w[y_i] (-log softmax(s_i)[y_i]) / sum_i w[y_i],

    where i runs over the pixels that are not ignored and w includes `border_weights` if the recipe sets a border, plus
    `aux` times the same for the auxiliary scores and `scales` times that for the scores of each scale.

    Args:
        recipe: see `Loss`.
        weights: (L,), of the classes, or None.

    Raises:
        ArgumentError: no such loss, hard is not in (0, 1] or is below 1 for a loss of images, or gamma is below 0.
    """

    weights: Tensor | None

    def __init__(self, recipe: Loss, weights: Tensor | None = None) -> None:
        super().__init__()
        if not 0 < recipe.hard <= 1:
            bad_value("Loss", "hard", "be a part in (0, 1]", recipe.hard)
        if recipe.name not in (*_OF_PIXELS, *_OF_IMAGES):
            bad_choice("config", "loss.name", (*_OF_PIXELS, *_OF_IMAGES), recipe.name)
        if recipe.hard < 1 and recipe.name in _OF_IMAGES:
            bad_value("Loss", "hard", f"be 1 for {recipe.name}, a loss of images", recipe.hard)
        if recipe.border < 0 or recipe.deviation <= 0:
            got = f"border {recipe.border:g} and deviation {recipe.deviation:g}"
            bad_value("Loss", "border and deviation", "be at least 0, and deviation above 0", got)
        if recipe.border and (recipe.name != "cross_entropy" or recipe.hard < 1):
            got = f"{recipe.name} with hard {recipe.hard:g}"
            bad_value("Loss", "name", "be cross_entropy with hard 1 where there is a border", got)
        if recipe.gamma < 0:
            bad_value("Loss", "gamma", "be at least 0", recipe.gamma)
        self.recipe = recipe
        self.register_buffer("weights", weights, persistent=False)

    def denominator(self, network: nn.Module, labels: Tensor) -> Tensor:
        """The divisor for the sum of a batch; depends only on its labels."""
        if hasattr(network, "loss"):
            return torch.tensor(float(len(labels)), device=labels.device)
        if self.recipe.hard < 1:
            kept = [self._kept(counted) for counted in (_flat(labels) != VOID).sum(1).tolist()]
            return torch.tensor(float(sum(kept)), device=labels.device)
        if self.recipe.border:
            target, extra = self._apart(labels)
            return self._of_classes(target).sum() + extra.sum()
        flat = _flat(labels)
        counted = flat != VOID
        if self.recipe.name in _OF_IMAGES:
            return counted.any(1).sum().float()
        if self.recipe.name != "cross_entropy" or self.weights is None:
            return counted.sum().float()
        return self._of_classes(flat).sum()

    def _of_classes(self, target: Tensor) -> Tensor:
        """The weight of each pixel by its class, 0 of void."""
        counted = target != VOID
        return counted.float() if self.weights is None else self.weights[target * counted] * counted

    def _apart(self, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Classes with background between objects that touch, and the weights of borders: twice (N, H W)."""
        if labels.dim() == 3:
            rule = "number its objects where loss.border is not 0"
            bad_value("Loss", "data", rule, "classes of pixels alone", "Set loss.border to 0.")
        classes = separate(labels)
        labels = torch.stack([classes, labels[:, 1]], dim=1)
        return classes.flatten(1), border_weights(labels, self.recipe.border, self.recipe.deviation).flatten(1)

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
        flat = scores.float().flatten(2)
        if self.recipe.border:
            target, extra = self._apart(labels)
            return (cross_entropy(flat, target, self.weights) + extra * cross_entropy(flat, target)).sum()
        target = _flat(labels)
        if self.recipe.name in _OF_IMAGES:
            return _OF_IMAGES[self.recipe.name](flat, target, self.weights).sum()
        if self.recipe.name == "focal":
            losses = focal(flat, target, self.weights, self.recipe.gamma)
        else:
            losses = _OF_PIXELS[self.recipe.name](flat, target, self.weights)
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
    """A network and its criterion as one module, images and labels -> sum of the loss, for DistributedDataParallel."""

    def __init__(self, network: nn.Module, criterion: Criterion) -> None:
        super().__init__()
        self.network = network
        self.criterion = criterion

    def forward(self, images: Tensor, labels: Tensor) -> Tensor:
        return self.criterion(self.network, images, labels)
