"""Instances by metric learning: pixels of an object have similar embeddings; seed scores choose starting pixels."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from atrousops.common.checks import bad_value
from atrousops.models.backbones import encoder
from atrousops.models.base import check_images, check_objects, resize, scaled
from atrousops.nn import AtrousConv2d

THRESHOLDS = (0.25, 0.5, 0.75, 0.9)


class Instance(NamedTuple):
    """An object: its class, its seed's score in 0..1, its pixels (H, W) and its seed's row and column."""

    label: int
    score: float
    mask: Tensor
    seed: tuple[int, int]


class MetricLearning(nn.Module):
    """Embeddings and seeds; see `metric_learning`."""

    def __init__(
        self,
        backbone: nn.Module,
        channels: int,
        num_classes: int,
        dimensions: int,
        scales: Sequence[float] = (1.0,),
        seed_weight: float = 0.2,
    ) -> None:
        super().__init__()
        if not scales or min(scales) <= 0:
            bad_value("metric_learning", "scales", "be positive numbers", scales, "Such as (0.25, 0.5, 1, 2).")
        if seed_weight < 0:
            bad_value("metric_learning", "seed_weight", "be 0 or more", seed_weight)
        self.num_classes = num_classes
        self.scales = tuple(scales)
        self.seed_weight = seed_weight
        channels *= len(self.scales)
        self.backbone = backbone
        self.in_channels: int = getattr(backbone, "in_channels", 3)
        self.embedding = AtrousConv2d(channels, dimensions, 1)
        self.seeds = AtrousConv2d(channels, len(THRESHOLDS) * num_classes, 1)

    def forward(self, input: Tensor) -> dict[str, Tensor]:
        """Class scores, embeddings and seed scores of every pixel.

        Args:
            input: normalised images (N, in_channels, H, W), any size.

        Returns:
            {"out": (N, K, H, W), log-probabilities, for each class at the threshold where it is largest;
            "embedding": (N, D, H, W); "seeds": (N, T, K, H, W), logits for each of `THRESHOLDS`}.
        """
        check_images(type(self).__name__, input, self.in_channels)
        size = input.shape[-2:]
        features = self._features(input)
        seeds = resize(self.seeds(features), size).unflatten(1, (len(THRESHOLDS), self.num_classes))
        out = seeds.log_softmax(dim=2).amax(dim=1)
        return {"out": out, "embedding": resize(self.embedding(features), size), "seeds": seeds}

    def _features(self, input: Tensor) -> Tensor:
        """The backbone's maps at every scale, concatenated at the size of the map of the scale nearest to 1."""
        maps = []
        for scale in self.scales:
            sides = [max(1, scaled(side, scale)) for side in input.shape[-2:]]
            maps.append(self.backbone(resize(input, sides))["out"])
        middle = min(range(len(maps)), key=lambda i: abs(math.log(self.scales[i])))
        return torch.cat([resize(x, maps[middle].shape[-2:]) for x in maps], dim=1) if len(maps) > 1 else maps[0]

    def loss(self, images: Tensor, labels: Tensor) -> Tensor:
        """`similarity_loss` at ten pixels of each object plus seed_weight times `seed_loss` there and at ten others.

        Averaged over images. Background is not an object: its pixels are not used in the similarities.

        Args:
            images: (N, in_channels, H, W), normalised.
            labels: (N, 2, H, W), class and number of the object; class 255 is ignored.

        Raises:
            ArgumentError: other shapes.

        Source: Fathi et al. (2017), sections 3.2 and 3.3.
        """
        check_objects("MetricLearning.loss", images, labels)
        outputs = self(images)
        total = outputs["seeds"].sum() * 0
        for (classes, numbers), embedding, seeds in zip(labels, outputs["embedding"], outputs["seeds"], strict=True):
            instances = torch.where(classes == 255, -1, numbers)
            pixels = sample(instances, background=True)
            objects = pixels[instances.flatten()[pixels] > 0]
            embedding, seeds = embedding.float(), seeds.float()
            total = total + similarity_loss(embedding, instances, objects)
            total = total + self.seed_weight * seed_loss(seeds, embedding, instances, classes, pixels)
        return total / len(images)

    def objects(self, image: Tensor) -> tuple[list[int], list[float], Tensor]:
        """Classes, scores and masks (M, H, W) of the objects of one image (3, H, W); see `group`."""
        outputs = self(image[None])
        found = group(outputs["embedding"][0], outputs["seeds"][0])
        masks = torch.stack([one.mask for one in found]) if found else image.new_zeros((0, *image.shape[1:])).bool()
        return [one.label for one in found], [one.score for one in found], masks


def metric_learning(
    num_classes: int = 21,
    backbone: str = "resnet101",
    output_stride: int = 8,
    dimensions: int = 64,
    backbone_weights: Mapping[str, Tensor] | None = None,
    in_channels: int = 3,
    scales: Sequence[float] = (1.0,),
    seed_weight: float = 0.2,
) -> MetricLearning:
    """Instance segmentation by deep metric learning: an embedding and a seed score for every pixel.

    | part | channels (ResNet-50 and deeper) | stride |
    |---|---|---|
    | encoder, see `encoder` | 2048 | 8, rates 2 and 4 |
    | embedding 1x1, bilinear to the input's size | dimensions | 8, 1 |
    | seeds 1x1, bilinear to the input's size | 4 thresholds x num_classes | 8, 1 |

    Train with `loss`; `group` finds objects. The paper runs its backbone, DeepLab v2's ResNet-101 trained on COCO, on
    the image at scales (0.25, 0.5, 1, 2) and passes the concatenated maps to both layers; here the default is scale 1.
    There is no release. The paper does not specify the size of the concatenated maps (here that of the scale nearest to
    1), nor the choice of background pixels for the seeds (here ten per image, as for an object).

    After 400 training steps on nuclei it finds no object (docs/training.md, "Metric learning on a pretrained trunk").
    The mask around the middle pixel of a nucleus has a mean IoU of 0.24 with the nucleus, and 6 % of the masks exceed
    0.5, the limit for a seed. A likely cause: pixels of background have no part in the similarity loss, so that masks
    spill over.

    Args:
        num_classes: K, background (class 0) included.
        backbone: a name for `encoder`.
        output_stride: 8, 16 or 32.
        dimensions: D, of the embedding.
        backbone_weights: state dict of torchvision's classifier to start from.
        in_channels: channels of the image; RGB filters are adapted to them, see `channels.adapt`.
        scales: of the image.
        seed_weight: lambda, the weight of the seed loss; in the paper 0 at first, and 0.2 when embeddings have
            converged.

    Returns:
        (N, in_channels, H, W) -> {"out": (N, K, H, W), "embedding": (N, D, H, W), "seeds": (N, 4, K, H, W)}.

    Raises:
        ArgumentError: a bad backbone, output_stride or scale, dimensions below 1, a negative seed_weight, or a weight
            is missing.

    Source: Fathi et al., Semantic instance segmentation via deep metric learning (2017), sections 3.1 to 3.4.
    """
    if dimensions < 1:
        bad_value("metric_learning", "dimensions", "be at least 1", dimensions)
    trunk = encoder(backbone, output_stride, backbone_weights, in_channels)
    return MetricLearning(trunk, trunk.channels["out"], num_classes, dimensions, scales, seed_weight)


def squared_distance(a: Tensor, b: Tensor) -> Tensor:
    """|a_i - b_j|^2, (P, D) and (Q, D) -> (P, Q)."""
    return (a.square().sum(1)[:, None] + b.square().sum(1) - 2 * a @ b.T).clamp_min(0)


def similarity(a: Tensor, b: Tensor) -> Tensor:
    """sigma = 2 / (1 + exp(|a_i - b_j|^2)): 1 for equal embeddings, 0 for far ones; (P, D) and (Q, D) -> (P, Q)."""
    return 2 * torch.sigmoid(-squared_distance(a, b))


def sample(
    instances: Tensor, count: int = 10, generator: torch.Generator | None = None, background: bool = False
) -> Tensor:
    """Up to `count` pixels of each instance of (H, W): positions in the flattened image (S,).

    Args:
        instances: 0 for background, numbers from 1 for objects, negative for ignored pixels.
        background: also sample as many background pixels.
    """
    flat = instances.flatten()
    picked = []
    for number in flat.unique().tolist():
        if number > 0 or (background and number == 0):
            where = (flat == number).nonzero()[:, 0]
            order = torch.randperm(len(where), generator=generator)[:count].to(where.device)
            picked.append(where[order])
    return torch.cat(picked) if picked else flat.new_zeros(0, dtype=torch.long)


def similarity_loss(embedding: Tensor, instances: Tensor, pixels: Tensor) -> Tensor:
    """The loss of the similarities of pairs of pixels.

    L = -sum over pairs p, q of w_pq (1{y_p = y_q} log sigma_pq + 1{y_p != y_q} log(1 - sigma_pq)),

    where w_pq is inversely proportional to the sizes of both instances in pixels, and the weights sum to 1.

    Args:
        embedding: (D, H, W) of one image.
        instances: (H, W), as for `sample`.
        pixels: (S,) positions, such as from `sample`.

    Returns:
        A scalar; 0 without pixels.

    Source: Fathi et al. (2017), section 3.2, equations 1 and 2.
    """
    e = embedding.flatten(1).T[pixels]
    number = instances.flatten()[pixels]
    if len(e) == 0:
        return embedding.sum() * 0
    same = number[:, None] == number
    _, which, counts = instances.flatten().unique(return_inverse=True, return_counts=True)
    weight = 1 / counts[which[pixels]].to(e.dtype)
    weight = weight[:, None] * weight
    d = squared_distance(e, e)
    # log sigma = log 2 - softplus(d). 1 - sigma = tanh(d / 2), and two equal embeddings of different objects cost 16.
    log_same = math.log(2) - F.softplus(d)
    log_other = torch.log(torch.tanh(d / 2).clamp_min(1e-7))
    return -(weight * torch.where(same, log_same, log_other)).sum() / weight.sum()


def seed_loss(seeds: Tensor, embedding: Tensor, instances: Tensor, labels: Tensor, pixels: Tensor) -> Tensor:
    """The loss of the seed scores of some pixels.

    The mask of seed p at threshold t is {q: sigma_pq >= t}. The target of p is the class of its instance if mask and
    instance have an IoU above 1/2, else background. The loss is the cross entropy, averaged over pixels and thresholds.

    Args:
        seeds: (T, K, H, W) of one image; embedding: (D, H, W).
        instances: (H, W), as for `sample`; labels: (H, W), classes, 0 for background.
        pixels: (S,) positions, such as from `sample`.

    Source: Fathi et al. (2017), section 3.3.
    """
    if len(pixels) == 0:
        return seeds.sum() * 0
    with torch.no_grad():
        e = embedding.flatten(1).T
        number, counted = instances.flatten(), instances.flatten() >= 0
        near = similarity(e[pixels], e)
        own = (number[pixels][:, None] == number) & (number[pixels] > 0)[:, None]
        targets = []
        for threshold in THRESHOLDS:
            mask = (near >= threshold) & counted
            overlap = (mask & own).sum(1) / (mask | own).sum(1).clamp_min(1)
            targets.append(torch.where(overlap > 0.5, labels.flatten()[pixels], 0))
    scores = seeds.flatten(2)[:, :, pixels]
    return F.cross_entropy(scores, torch.stack(targets))


@torch.no_grad()
def group(
    embedding: Tensor,
    seeds: Tensor,
    alpha: float = 0.3,
    least: float = 0.5,
    count: int = 100,
    thresholds: Sequence[float] = THRESHOLDS,
) -> list[Instance]:
    """Objects of one image, seed by seed.

    The next seed is the pixel with the largest  log S_p + alpha log D_p,  where S_p is its largest probability of a
    class other than background, and D_p = 1 - max over previous seeds of sigma_pq. Its object is all free pixels whose
    similarity to it reaches the threshold that gave S_p. The search ends when no free pixel has an S_p of at least
    `least`.

    Args:
        embedding: (D, H, W).
        seeds: (T, K, H, W), logits.
        alpha: weight of the distance to previous seeds.
        least: minimum probability of a seed.
        count: maximum number of seeds.
        thresholds: T similarities.

    Returns:
        The objects in the order in which they were found, without overlaps.

    Raises:
        ArgumentError: shapes that do not match.

    Source: Fathi et al. (2017), section 3.4, equations 4 to 6: alpha 0.3, 100 seeds. In the paper masks may overlap.
    """
    size = embedding.shape[-2:]
    if seeds.dim() != 4 or seeds.shape[0] != len(thresholds) or seeds.shape[-2:] != size:
        bad_value("group", "seeds", f"have shape ({len(thresholds)}, K, {size[0]}, {size[1]})", tuple(seeds.shape))
    e = embedding.flatten(1).T
    probability = seeds.softmax(dim=1)[:, 1:].flatten(2)
    # Best threshold and class of each pixel.
    best, which = probability.flatten(0, 1).max(dim=0)
    free = torch.ones_like(best, dtype=torch.bool)
    nearest = torch.zeros_like(best)
    found: list[Instance] = []
    while len(found) < count:
        score = best.log() + alpha * (1 - nearest).clamp_min(1e-12).log()
        score = score.masked_fill(~free | (best < least), -torch.inf)
        p = int(score.argmax())
        if score[p] == -torch.inf:
            break
        near = similarity(e[p : p + 1], e)[0]
        nearest = torch.maximum(nearest, near)
        threshold, label = divmod(int(which[p]), probability.shape[1])
        mask = (near >= thresholds[threshold]) & free
        free &= ~mask
        found.append(Instance(label + 1, best[p].item(), mask.view(size), divmod(p, size[1])))
    return found
