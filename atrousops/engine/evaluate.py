"""Scores of a network on the labelled images of a data set."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from tqdm import tqdm

from atrousops import models
from atrousops.data import SETS, SegmentationSet, transforms
from atrousops.engine import config as configs
from atrousops.engine.multiscale import MultiScale
from atrousops.metrics import ConfusionMatrix

Refine = Callable[[Tensor, Tensor], Tensor]


def main(
    config_path: str | os.PathLike[str],
    weights: str | os.PathLike[str],
    *,
    crf: Refine | None = None,
    scales: Sequence[float] = (1.0,),
    flip: bool = False,
    data_root: str | None = None,
    split: str | None = None,
    overrides: tuple[str, ...] = (),
    progress: bool = True,
) -> ConfusionMatrix:
    """Scores trained weights on the validation images of a recipe.

    Args:
        config_path: the recipe, YAML.
        weights: a file written by `atrousops train`, or one of `atrousops.models.list()`.
        crf: (scores (1, L, H, W), image (1, 3, H, W) in 0..255) -> Q (1, L, H, W), such as `atrousops.DenseCRF()`.
        scales, flip: of MultiScale, the scores being averaged over sizes and mirror images.
        data_root: folder of the data, instead of the recipe's.
        split: instead of the recipe's validation split.
        overrides: "part.key=value" entries that replace the recipe's; those of model.arguments rebuild the network.
        progress: draw a progress bar.

    Returns:
        The confusion matrix, with IoU per class, mIoU and accuracies; `report` makes text of it.

    Raises:
        FileNotFoundError: no recipe or no weights.
        ArgumentError: a wrong recipe, or damaged or unfitting weights.
    """
    recipe = configs.load(config_path, overrides)
    root = data_root if data_root is not None else recipe.data.root
    data = SETS[recipe.data.name](root, split or recipe.data.val, transforms.evaluation())
    if recipe.threads:
        torch.set_num_threads(recipe.threads)
    model = models.load(weights, **recipe.model.arguments)
    if flip or tuple(scales) != (1,):
        model = MultiScale(model, scales, flip)
    return score(model, data, crf=crf, progress=progress)


@torch.inference_mode()
def score(
    model: nn.Module, data: SegmentationSet, *, crf: Refine | None = None, progress: bool = True
) -> ConfusionMatrix:
    """The confusion matrix of `model` on `data`, whole images one by one.

    Args:
        model: images -> {"out": scores}; put into evaluation mode for the time of the call.
        data: a set whose transform is `transforms.evaluation()`.
        crf: refines the scores, given the image.
        progress: draw a progress bar.
    """
    matrix = ConfusionMatrix(len(data.classes))
    was_training = model.training
    model.eval()
    for index in tqdm(range(len(data)), desc="evaluate", disable=not progress, leave=False):
        image, labels = data[index]
        scores = model(image[None].contiguous(memory_format=torch.channels_last))["out"]
        if crf is not None:
            scores = crf(scores.float().contiguous(), transforms.denormalise(image)[None])
        matrix.update(scores.argmax(1)[0], labels)
    model.train(was_training)
    return matrix


def report(matrix: ConfusionMatrix, classes: tuple[str, ...]) -> str:
    """The scores as a small table."""
    rows = [(name, iou) for name, iou in zip(classes, matrix.iou.tolist(), strict=True)]
    rows += [
        ("mean IoU", matrix.mean_iou),
        ("frequency weighted IoU", matrix.frequency_weighted_iou),
        ("pixel accuracy", matrix.pixel_accuracy),
        ("mean accuracy", matrix.mean_accuracy),
    ]
    return "\n".join(f"{name:<24}{100 * value:6.2f} %" for name, value in rows)
