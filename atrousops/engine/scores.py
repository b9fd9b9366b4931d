"""The scores of a data set's images, and how an image is added to them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from atrousops import models
from atrousops.common.checks import bad_value
from atrousops.data import VOID, SegmentationSet, transforms
from atrousops.engine.instances import find
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


class Opened(NamedTuple):
    """A network, inside `MultiScale` if the recipe has scales, and its images; norm: mean and standard deviation."""

    model: nn.Module
    data: SegmentationSet
    info: models.Info
    norm: tuple[Sequence[float], Sequence[float]]


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
        scores.update(found.max(1).indices[0].cpu(), labels)
