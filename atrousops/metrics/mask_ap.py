"""Average precision of masks, by pycocotools."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from atrousops.common.checks import bad_value
from atrousops.metrics.extras import need


class Precision(NamedTuple):
    """AP averaged over IoU 0.50, 0.55 ... 0.95, and at 0.50 and 0.75."""

    ap: float
    ap50: float
    ap75: float


class MaskAP:
    """COCO's average precision of scored masks.

    Args:
        classes: indices of the classes to evaluate.
        most: maximum number of objects per image, by descending score; 100 in COCO.

    Raises:
        ImportError: pycocotools is not installed.

    Source: Lin et al., Microsoft COCO (2014); cocodataset.org's detection evaluation.
    """

    def __init__(self, classes: Sequence[int], most: int = 100) -> None:
        self._mask = need("pycocotools.mask", "mask AP")
        self.classes = tuple(classes)
        self.most = most
        self._images: list[dict[str, Any]] = []
        self._truth: list[dict[str, Any]] = []
        self._found: list[dict[str, Any]] = []

    def update(
        self,
        masks: Tensor,
        labels: Sequence[int],
        scores: Sequence[float],
        true: Tensor,
        true_labels: Sequence[int],
        image: int | None = None,
    ) -> None:
        """Adds an image.

        Args:
            masks: (M, H, W), bool; labels: their M classes; scores: their confidence.
            true: (T, H, W), bool; true_labels: their T classes.
            image: a unique index of the image, needed if several processes add images; by default the next.

        Raises:
            ArgumentError: counts or sizes that do not match.
        """
        if not len(masks) == len(labels) == len(scores) or len(true) != len(true_labels):
            got = f"{len(masks)} masks, {len(labels)} labels, {len(scores)} scores; {len(true)} and {len(true_labels)}"
            bad_value("MaskAP.update", "masks", "have a label and a score each", got)
        if len(masks) and len(true) and masks.shape[1:] != true.shape[1:]:
            bad_value("MaskAP.update", "masks", f"have size {tuple(true.shape[1:])}", tuple(masks.shape[1:]))
        image = len(self._images) + 1 if image is None else image + 1
        height, width = (true if len(true) else masks).shape[1:]
        self._images.append({"id": image, "height": height, "width": width})
        for mask, label in zip(true, true_labels):
            one: dict[str, Any] = {"id": len(self._truth) + 1, "iscrowd": 0, "area": int(mask.sum())}
            self._truth.append(self._entry(image, mask, label) | one)
        for mask, label, score in zip(masks, labels, scores):
            one = {"id": len(self._found) + 1, "score": score, "area": int(mask.sum())}
            self._found.append(self._entry(image, mask, label) | one)

    def state(self) -> tuple[list[dict[str, Any]], ...]:
        """The state, as an argument for `add`."""
        return self._images, self._truth, self._found

    def add(self, state: Sequence[list[dict[str, Any]]]) -> None:
        """Adds the images of another instance; indices must not repeat."""
        images, truth, found = state
        self._images += images
        for own, others in ((self._truth, truth), (self._found, found)):
            own += [{**each, "id": len(own) + number} for number, each in enumerate(others, 1)]

    def _entry(self, image: int, mask: Tensor, label: int) -> dict[str, Any]:
        code = self._mask.encode(np.asfortranarray(mask.cpu().numpy().astype(np.uint8)))
        return {"image_id": image, "category_id": int(label), "segmentation": code}

    def compute(self) -> Precision:
        """Means over the evaluated classes that occur in the labels; NaN if there are none."""
        coco, cocoeval = need("pycocotools.coco", "mask AP"), need("pycocotools.cocoeval", "mask AP")
        truth, found = coco.COCO(), coco.COCO()
        categories = [{"id": label} for label in self.classes]
        # It prints its progress on stdout.
        with contextlib.redirect_stdout(io.StringIO()):
            for index, annotations in ((truth, self._truth), (found, self._found)):
                index.dataset = {"images": self._images, "annotations": annotations, "categories": categories}
                index.createIndex()
            judge = cocoeval.COCOeval(truth, found, "segm")
            judge.params.maxDets = [self.most]
            judge.evaluate()
            judge.accumulate()
        # (IoU, recall, class, area, most): all areas. -1 marks a class without objects.
        precision = judge.eval["precision"][:, :, :, 0, 0]

        def mean(values: np.ndarray) -> float:
            values = values[values > -1]
            return float(values.mean()) if values.size else float("nan")

        return Precision(mean(precision), mean(precision[0]), mean(precision[5]))
