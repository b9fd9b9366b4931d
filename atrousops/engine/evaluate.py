"""Scores of a network on the labelled images of a data set."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from functools import partial
from typing import Any, cast

import torch
from torch import nn
from tqdm import tqdm

from atrousops import models
from atrousops.common.checks import bad_value
from atrousops.data import Pixels, SegmentationSet, transforms
from atrousops.engine import config as configs
from atrousops.engine import narrow, outputs
from atrousops.engine.distributed import LONGEST_WAIT, Processes, join, pick_device
from atrousops.engine.multiscale import MultiScale
from atrousops.engine.scores import Opened, Refine, Scores, add_images


def main(
    config_path: str | os.PathLike[str],
    weights: str | os.PathLike[str],
    *,
    crf: Refine | bool = False,
    scales: Sequence[float] | None = None,
    flip: bool = False,
    data_root: str | None = None,
    split: str | None = None,
    overrides: tuple[str, ...] = (),
    ap: bool = False,
    widths: tuple[int, ...] = (),
    published: str | None = None,
    progress: bool = True,
    ray: str | None = None,
    workers: int | None = None,
    dtype: str | None = None,
    calibration: int = 32,
) -> Scores:
    """Scores trained weights on the validation images of a recipe; under torchrun each process takes a share of them.

    Args:
        config_path: the recipe, YAML.
        weights: a file written by `atrousops train`, or one of `atrousops.models.list()`.
        published: a key of `atrousops.models.PUBLISHED`, if `weights` is that file.
        crf: (scores (1, L, H, W), image (1, 3, H, W) in 0..255) -> Q (1, L, H, W), such as `atrousops.DenseCRF()`;
            True for the one tuned for the weights.
        scales, flip: as in MultiScale: scores are averaged over scales and mirrored images; scales are by default the
            recipe's.
        data_root: folder of the data, instead of the recipe's.
        split: instead of the recipe's validation split.
        overrides: "part.key=value" entries that replace the recipe's; those of model.arguments rebuild the network,
            except a published one.
        ap, widths: of `Scores`.
        progress: draw a progress bar.
        ray, workers: "local" or the address of a Ray cluster that shares the images, and its number of processes.
        dtype, calibration: evaluate the network in "int8" or "float8_e4m3fn", calibrated on this many training images.

    Returns:
        The scores over all processes, returned in each; `report` formats them.

    Raises:
        FileNotFoundError: no recipe or no weights.
        ArgumentError: an invalid recipe, or weights that are damaged or do not fit.
    """
    load = partial(
        opened, config_path, weights, split=split, data_root=data_root, overrides=overrides, published=published,
        scales=scales, flip=flip, dtype=dtype, calibration=calibration,
    )  # fmt: skip
    model, data, info, norm = load()
    refine = (info.dense_crf() if crf else None) if isinstance(crf, bool) else crf
    if ray is not None:
        from atrousops.engine import cluster

        scores = Scores(data.classes, data.instances, ap, widths)
        for state in cluster.judge(load, refine, scores.like(), len(data), ray, workers):
            scores.add(state)
        return scores
    with join(torch.device("cpu"), LONGEST_WAIT) as processes:
        progress = progress and processes.first
        options: dict[str, Any] = {"ap": ap, "widths": widths, "progress": progress, "processes": processes}
        return score(model, data, crf=refine, norm=norm, **options)


def opened(
    config_path: str | os.PathLike[str],
    weights: str | os.PathLike[str],
    *,
    split: str | None,
    data_root: str | None,
    overrides: tuple[str, ...],
    published: str | None,
    scales: Sequence[float] | None = None,
    flip: bool = False,
    dtype: str | None = None,
    calibration: int = 32,
) -> Opened:
    """Loads recipe and weights; the arguments are those of `main`."""
    recipe = configs.load(config_path, overrides)
    root = data_root if data_root is not None else recipe.data.root
    data = outputs.open_set(recipe, root, split or recipe.data.val)
    if published is None:
        outputs.check_recipe(recipe, data.classes, defaults=False)
        model = models.load(weights, **recipe.model.arguments)
    else:
        model = models.load_published(published, weights)
    info = cast(models.Info, model.info)
    norm = info.mean, info.std
    data.transform = transforms.evaluation(*norm)
    data.pixels = Pixels(len(info.mean), info.scale)
    if recipe.threads:
        torch.set_num_threads(recipe.threads)
    arguments = {**info.arguments, **(recipe.model.arguments if published is None else {})}
    outputs.check_weights("evaluate", info.network, arguments, data.classes, recipe.data.name)
    if info.classes != data.classes:
        bad_value("evaluate", "weights", f"be of the classes {', '.join(data.classes)}", ", ".join(info.classes))
    model = model.to(pick_device(recipe.device))
    if dtype is not None:
        model = narrow.narrowed(model, recipe, root, info, dtype, calibration)
    model = scaled(model, recipe.scales if scales is None else scales, flip, recipe.odd_sides)
    return Opened(model, data, info, norm)


def scaled(model: nn.Module, scales: Sequence[float], flip: bool = False, odd_sides: bool = False) -> nn.Module:
    """The network in a MultiScale, or unchanged if that has no effect."""
    if not flip and tuple(scales) == (1,) and not odd_sides:
        return model
    if hasattr(model, "objects"):
        bad_value(
            "evaluate", "scales, flip and odd_sides", "stay as they are for a network that finds objects", tuple(scales)
        )
    return MultiScale(model, scales, flip, odd_sides)


@torch.inference_mode()
def score(
    model: nn.Module,
    data: SegmentationSet,
    *,
    crf: Refine | None = None,
    norm: tuple[Sequence[float], Sequence[float]] = (transforms.MEAN, transforms.STD),
    ap: bool = False,
    widths: tuple[int, ...] = (),
    progress: bool = True,
    processes: Processes | None = None,
) -> Scores:
    """The scores of `model` on `data`, complete images one by one.

    Args:
        model: images -> {"out": scores}; in evaluation mode during the call.
        data: a set whose transform is `transforms.evaluation(*norm)`.
        crf: refines the scores, given the image; not used if objects are evaluated.
        norm: mean and standard deviation, to recover the image's colours for the CRF.
        ap, widths: as in `Scores`.
        progress: draw a progress bar.
        processes: those that share the work.
    """
    scores = Scores(data.classes, data.instances, ap, widths)
    processes = processes or Processes()
    was_training = model.training
    model.eval()
    mine = range(processes.rank, len(data), processes.world)
    add_images(
        scores, model, data, tqdm(mine, desc="evaluate", disable=None if progress else True, leave=False), crf, norm
    )
    for rank, state in enumerate(processes.gather(scores.state())):
        if rank != processes.rank:
            scores.add(state)
    model.train(was_training)
    return scores


def report(scores: Scores) -> str:
    """The scores as a text table."""
    matrix = scores.matrix
    rows = [(name, iou) for name, iou in zip(scores.classes, matrix.iou.tolist(), strict=True)]
    rows += [
        ("mean IoU", matrix.mean_iou),
        ("frequency weighted IoU", matrix.frequency_weighted_iou),
        ("pixel accuracy", matrix.pixel_accuracy),
        ("mean accuracy", matrix.mean_accuracy),
    ]
    if scores.boundary is not None:
        for width, band in scores.boundary.bands.items():
            rows.append((f"accuracy within {width} px", band.pixel_accuracy))
        rows.append(("accuracy inside", scores.boundary.interior.pixel_accuracy))
    if scores.quality is not None:
        rows += zip(("PQ", "SQ", "RQ"), scores.quality)
    if scores.precision is not None:
        rows += zip(("mask AP", "mask AP50", "mask AP75"), scores.precision)
    # A class that is in no label and no prediction has no IoU and is not part of the mean.
    told = (f"{100 * value:6.2f} %" if math.isfinite(value) else "     -  (nowhere)" for _, value in rows)
    return "\n".join(f"{name:<24}{text}" for (name, _), text in zip(rows, told))
