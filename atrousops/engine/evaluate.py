"""Scores of a network on the labelled images of a data set."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from tqdm import tqdm

from atrousops import models
from atrousops.common.checks import bad_value
from atrousops.data import VOID, Pixels, SegmentationSet, transforms
from atrousops.engine import config as configs
from atrousops.engine import narrow, outputs
from atrousops.engine.distributed import LONGEST_WAIT, Processes, join, pick_device
from atrousops.engine.instances import find
from atrousops.engine.multiscale import MultiScale
from atrousops.metrics import BoundaryScores, ConfusionMatrix, MaskAP, PanopticQuality, Precision, Quality

Refine = Callable[[Tensor, Tensor], Tensor]


class Scores:
    """The scores of a network on a data set.

    Args:
        classes: names of the classes.
        instances: also evaluate objects, by panoptic quality (every class except the first is a thing).
        ap: also evaluate masks by AP.
        widths: of the bands along borders that are evaluated separately; none if empty.

    Attributes:
        matrix: ConfusionMatrix of all pixels.
        boundary: BoundaryScores, or None.

    Raises:
        ImportError: torchmetrics or pycocotools is needed and not installed.
    """

    def __init__(
        self, classes: tuple[str, ...], instances: bool = False, ap: bool = False, widths: tuple[int, ...] = ()
    ) -> None:
        self.classes = classes
        self.matrix = ConfusionMatrix(len(classes))
        self.boundary = BoundaryScores(len(classes), widths) if widths else None
        self.things = tuple(range(1, len(classes))) if instances else ()
        self._quality = PanopticQuality(len(classes), self.things, (0,)) if instances else None
        self._ap = MaskAP(self.things) if instances and ap else None

    def update(self, prediction: Tensor, labels: Tensor) -> None:
        """Adds an image's classes (H, W) and its labels (H, W)."""
        self.matrix.update(prediction, labels)
        if self.boundary is not None:
            self.boundary.update(prediction, labels)

    def like(self) -> Callable[[], Scores]:
        """A function that makes empty scores of the same kind."""
        ap, widths = self._ap is not None, tuple(self.boundary.bands) if self.boundary is not None else ()
        return partial(Scores, self.classes, bool(self.things), ap, widths)

    def state(self) -> dict[str, Any]:
        """The state, as an argument for `add`; picklable."""
        return {
            "counts": [matrix.counts for matrix in self._matrices()],
            "quality": self._quality.state() if self._quality is not None else None,
            "ap": self._ap.state() if self._ap is not None else None,
        }

    def add(self, state: dict[str, Any]) -> None:
        """Adds the images of another state."""
        for matrix, counts in zip(self._matrices(), state["counts"], strict=True):
            matrix.counts += counts
        if self._quality is not None:
            self._quality.add(state["quality"])
        if self._ap is not None:
            self._ap.add(state["ap"])

    def _matrices(self) -> list[ConfusionMatrix]:
        near = [] if self.boundary is None else [*self.boundary.bands.values(), self.boundary.interior]
        return [self.matrix, *near]

    def update_objects(self, model: nn.Module, image: Tensor, labels: Tensor, number: int | None = None) -> None:
        """Adds the objects that a network finds in an image with labels (2, H, W); number: as in `MaskAP.update`."""
        found = find(model, image, self.things)
        panoptic = found.panoptic.cpu()
        self.update(panoptic[0], labels[0])
        assert self._quality is not None
        self._quality.update(panoptic, labels)
        if self._ap is not None:
            numbers = torch.where(labels[0] == VOID, 0, labels[1])
            true = numbers.unique()
            true = true[true > 0]
            masks = numbers == true[:, None, None]
            classes = [int(labels[0][mask][0]) for mask in masks]
            self._ap.update(found.masks.cpu(), found.labels, found.scores, masks, classes, number)

    @property
    def quality(self) -> Quality | None:
        return self._quality.compute() if self._quality is not None else None

    @property
    def precision(self) -> Precision | None:
        return self._ap.compute() if self._ap is not None else None

    def summary(self) -> dict[str, float]:
        """The main scores by name: "miou", each class, and "pq", "sq", "rq" if objects are evaluated."""
        values = {"miou": self.matrix.mean_iou}
        values |= dict(zip(self.classes, self.matrix.iou.tolist(), strict=True))
        return values | (self.quality._asdict() if self.quality is not None else {})


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


class Opened(NamedTuple):
    """A network, inside `MultiScale` if the recipe has scales, and its images; norm: mean and standard deviation."""

    model: nn.Module
    data: SegmentationSet
    info: models.Info
    norm: tuple[Sequence[float], Sequence[float]]


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
    model = scaled(model, recipe.scales if scales is None else scales, flip)
    return Opened(model, data, info, norm)


def scores_of(model: nn.Module, image: Tensor, classes: Sequence[str]) -> Tensor:
    """The scores (1, L, H, W) of an image (3, H, W), on the network's device.

    Raises:
        ArgumentError: the number of scores is not the number of classes.
    """
    device = next(iter(model.parameters())).device
    found: Tensor = model(image[None].to(device).contiguous(memory_format=torch.channels_last))["out"]
    if found.shape[1] != len(classes):
        rule = f"give a score for each of the {len(classes)} classes {', '.join(classes)}"
        bad_value(
            "evaluate", "model", rule, f"{found.shape[1]} scores a pixel", f"Build it with {len(classes)} outputs."
        )
    return found


def scaled(model: nn.Module, scales: Sequence[float], flip: bool = False) -> nn.Module:
    """The network in a MultiScale, or unchanged if that has no effect."""
    if not flip and tuple(scales) == (1,):
        return model
    if hasattr(model, "objects"):
        bad_value("evaluate", "scales and flip", "stay as they are for a network that finds objects", tuple(scales))
    return MultiScale(model, scales, flip)


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


@torch.inference_mode()
def add_images(
    scores: Scores,
    model: nn.Module,
    data: SegmentationSet,
    which: Iterable[int],
    crf: Refine | None,
    norm: tuple[Sequence[float], Sequence[float]],
) -> None:
    """Adds some images of a set to the scores; the arguments are those of `score`."""
    device = next(iter(model.parameters())).device
    for index in which:
        image, labels = data[index]
        if data.instances:
            scores.update_objects(model, image.to(device), labels, index)
            continue
        found = scores_of(model, image, data.classes)
        if crf is not None:
            found = crf(found.float().cpu().contiguous(), transforms.denormalise(image, *norm)[None])
        scores.update(found.argmax(1)[0].cpu(), labels)


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
