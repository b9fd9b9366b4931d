"""Panoptic quality, by torchmetrics."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from atrousops.common.checks import bad_value
from atrousops.metrics.extras import need


class Quality(NamedTuple):
    """PQ, SQ and RQ of one class, or their means."""

    pq: float
    sq: float
    rq: float


class PanopticQuality:
    """Panoptic quality, PQ = SQ RQ.

        SQ = mean IoU of matched segments, RQ = TP / (TP + FP / 2 + FN / 2), matched if IoU > 1/2

    Args:
        num_classes: L.
        things: classes with separate objects. All others, except `unjudged`, are stuff: one segment per image.
        unjudged: classes that are not evaluated, such as a background.
        ignore_index: label of pixels that are ignored.

    Raises:
        ImportError: torchmetrics is not installed.
        ArgumentError: a class is not one of the L, or no class is left to evaluate.

    Source: Kirillov et al., Panoptic segmentation (2019), section 4.
    """

    def __init__(
        self, num_classes: int, things: Sequence[int], unjudged: Sequence[int] = (), ignore_index: int = 255
    ) -> None:
        for name, numbers in (("things", things), ("unjudged", unjudged)):
            if not set(numbers) <= set(range(num_classes)):
                bad_value("PanopticQuality", name, f"be classes 0..{num_classes - 1}", tuple(numbers))
        stuff = set(range(num_classes)) - set(things) - set(unjudged)
        self.judged = sorted(set(things) - set(unjudged)) + sorted(stuff)
        if not self.judged:
            bad_value("PanopticQuality", "unjudged", "leave a class to judge", tuple(unjudged))
        self.ignore_index = ignore_index
        self.unjudged = tuple(unjudged)
        self.num_classes = num_classes
        self._metric = need("torchmetrics.detection", "panoptic quality").PanopticQuality(
            things=set(things) - set(unjudged),
            stuffs=stuff | set(unjudged),
            allow_unknown_preds_category=True,
            return_sq_and_rq=True,
            return_per_class=True,
            # Callers that distribute the work sum up themselves.
            sync_on_compute=False,
        )

    def update(self, prediction: Tensor, target: Tensor) -> None:
        """Adds an image.

        Args:
            prediction: (2, H, W), class and object number at each pixel.
            target: the same.

        Raises:
            ArgumentError: other shapes.
        """
        for name, value in (("prediction", prediction), ("target", target)):
            if value.dim() != 3 or len(value) != 2 or value.shape != target.shape:
                bad_value("PanopticQuality.update", name, "have shape (2, H, W), both the same", tuple(value.shape))
        known = torch.where(target[0] == self.ignore_index, self.num_classes, target[0])
        pairs = [torch.stack(pair, dim=2)[None] for pair in ((prediction[0], prediction[1]), (known, target[1]))]
        self._metric.update(*pairs)

    def state(self) -> dict[str, Tensor]:
        """The state, as an argument for `add`."""
        return dict(self._metric.metric_state)

    def add(self, state: dict[str, Tensor]) -> None:
        """Adds the images of another instance."""
        self._metric.merge_state(state)

    def compute(self) -> Quality:
        """The means over the evaluated classes that occur in labels or predictions; NaN if there are none."""
        found = torch.tensor(list(self.by_class().values()), dtype=torch.float64)
        return Quality(*found.nanmean(0).tolist())

    def by_class(self) -> dict[int, Quality]:
        """PQ, SQ and RQ of each evaluated class; NaN if it does not occur."""
        m = self._metric
        occurs = (m.true_positives + m.false_positives + m.false_negatives) > 0
        with warnings.catch_warnings():
            # Suppresses the warning that `update` was not called: images may have come from `add`.
            warnings.filterwarnings("ignore", message="The ``compute`` method")
            values = torch.where(occurs[:, None], m.compute(), torch.nan)
        return {label: Quality(*values[m.cat_id_to_continuous_id[label]].tolist()) for label in self.judged}
