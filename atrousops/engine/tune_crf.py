"""Searches settings of the dense CRF for a network, on labelled images that are not used for scoring."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from atrousops.common.checks import bad_value
from atrousops.data import SegmentationSet, transforms
from atrousops.engine import config as configs
from atrousops.engine import evaluate
from atrousops.engine.scores import scores_of
from atrousops.metrics import ConfusionMatrix
from atrousops.nn import DenseCRF

# Coordinate search: one setting after another, starting from those of `DenseCRF`. The papers search the three bilateral
# settings in 5..10, 3..10 and 50..100 on a hundred images, for networks with more confident scores.
VALUES: dict[str, tuple[float, ...]] = {
    "bilateral_compat": (0.5, 1.0, 2.0, 5.0),
    "gaussian_compat": (0.5, 1.0),
    "bilateral_srgb": (3.0, 5.0, 8.0),
    "bilateral_sxy": (20.0, 40.0),
}
START: dict[str, Any] = {name: signature(DenseCRF).parameters[name].default for name in VALUES}
IMAGES = 16


@dataclass(frozen=True)
class Tuned:
    """settings: of `DenseCRF`. plain, default, best: mean IoU on the search images without CRF, untuned, tuned."""

    settings: dict[str, Any]
    plain: float
    default: float
    best: float
    images: int

    def __str__(self) -> str:
        settings = ", ".join(f"{name}={value:g}" for name, value in self.settings.items())
        figures = f"{100 * self.plain:.2f} %, by default {100 * self.default:.2f} %, so {100 * self.best:.2f} %"
        return f"DenseCRF({settings}): on {self.images} images mean IoU without {figures}"


def main(
    config_path: str | os.PathLike[str],
    weights: str | os.PathLike[str],
    *,
    images: int = IMAGES,
    judged: str | None = None,
    data_root: str | None = None,
    overrides: tuple[str, ...] = (),
    published: str | None = None,
    progress: bool = True,
) -> Tuned:
    """Searches the settings of the dense CRF for trained weights.

    Args:
        config_path: the recipe, YAML.
        weights: a file written by `atrousops train`, or one of `atrousops.models.list()`.
        images: the number of search images, spread evenly over the split.
        judged: the split for scoring the network, by default the recipe's validation images. If it is another split,
            the validation images are searched, else the training images.
        data_root, overrides, published, progress: as in `evaluate.main`.

    Raises:
        FileNotFoundError, ArgumentError: as `evaluate.main`; or a network that finds objects.

    Source: Chen et al., DeepLab (2015), experimental evaluation: coarse to fine on part of the validation images.
    """
    sets = configs.load(config_path, overrides).data
    split = sets.train if judged in (None, sets.val) else sets.val
    opened = evaluate.opened(
        config_path, weights, split=split, data_root=data_root, overrides=overrides, published=published
    )
    return search(opened.model, opened.data, images=images, norm=opened.norm, progress=progress)


@torch.inference_mode()
def search(
    model: nn.Module,
    data: SegmentationSet,
    *,
    images: int = IMAGES,
    norm: tuple[Sequence[float], Sequence[float]] = (transforms.MEAN, transforms.STD),
    progress: bool = True,
) -> Tuned:
    """The settings among `VALUES` with the best mean IoU, the first if equal. Scores are computed only once.

    Args:
        model: images -> {"out": scores}; in evaluation mode during the call.
        data: a set whose transform is `transforms.evaluation(*norm)`.
        images: the number of images, spread evenly.
        norm: mean and standard deviation, to recover the image's colours.
        progress: draw a progress bar.
    """
    if data.instances:
        bad_value("tune_crf", "data", "be labelled by classes alone", "objects")
    chosen = [i * len(data) // images for i in range(images)] if images < len(data) else list(range(len(data)))
    cases = _cases(model, data, chosen, norm)
    classes = len(data.classes)
    plain = _mean_iou(classes, cases, None)
    settings = dict(START)
    default = best = _mean_iou(classes, cases, DenseCRF(**settings))
    trials = [(name, value) for name, values in VALUES.items() for value in values]
    for name, value in tqdm(trials, desc="tune the CRF", disable=None if progress else True, leave=False):
        trial = settings | {name: value}
        found = _mean_iou(classes, cases, DenseCRF(**trial))
        if found > best:
            settings, best = trial, found
    return Tuned(settings, plain, default, best, len(cases))


Case = tuple[Tensor, Tensor, Tensor]


def _cases(
    model: nn.Module, data: SegmentationSet, chosen: Sequence[int], norm: tuple[Sequence[float], Sequence[float]]
) -> list[Case]:
    """Scores (1, L, H, W), colours (1, 3, H, W) and labels (H, W) of the chosen images."""
    was_training = model.training
    model.eval()
    cases = []
    for index in chosen:
        image, labels = data[index]
        colours = transforms.denormalise(image, *norm)[None]
        cases.append((scores_of(model, image, data.classes).float().cpu().contiguous(), colours, labels))
    model.train(was_training)
    return cases


def _mean_iou(classes: int, cases: Sequence[Case], crf: DenseCRF | None) -> float:
    matrix = ConfusionMatrix(classes)
    for scores, colours, labels in cases:
        refined = scores if crf is None else crf(scores, colours)
        matrix.update(refined.argmax(1)[0], labels)
    return matrix.mean_iou
