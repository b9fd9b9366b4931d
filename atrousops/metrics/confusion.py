"""The confusion matrix, and scores of semantic segmentation computed from it."""

from __future__ import annotations

import torch
from torch import Tensor

from atrousops.common.checks import bad_value


def default_void(num_classes: int) -> int:
    """The default label of ignored pixels."""
    return 255 if num_classes <= 255 else -1


class ConfusionMatrix:
    """Counts pixels by true class (rows) and predicted class (columns).

    With n_ij the pixels of class i predicted as j, t_i = sum_j n_ij and p_j = sum_i n_ij:

        IoU_i = n_ii / (t_i + p_i - n_ii)         mIoU = mean over classes that occur in labels or predictions
        pixel accuracy = sum_i n_ii / sum_i t_i   mean accuracy = mean_i n_ii / t_i
        frequency weighted IoU = sum_i t_i IoU_i / sum_i t_i                 (Long et al. 2015, section 5)

    Args:
        num_classes: number of classes; labels are 0..num_classes-1.
        ignore_index: label of pixels that are ignored. By default 255, or -1 if 255 is a class.
    """

    def __init__(self, num_classes: int, ignore_index: int | None = None) -> None:
        if num_classes < 1:
            bad_value("ConfusionMatrix", "num_classes", "be at least 1", num_classes)
        self.num_classes = num_classes
        self.ignore_index = default_void(num_classes) if ignore_index is None else ignore_index
        self.counts = torch.zeros(num_classes, num_classes, dtype=torch.int64)

    def update(self, prediction: Tensor, target: Tensor) -> None:
        """Adds pixels.

        Args:
            prediction: predicted classes, any shape, integer.
            target: labels, the same shape.

        Raises:
            ArgumentError: the shapes differ, or a class is out of range.
        """
        if prediction.shape != target.shape:
            bad_value(
                "ConfusionMatrix.update", "prediction", f"have the labels' shape {tuple(target.shape)}",
                tuple(prediction.shape),
            )  # fmt: skip
        kept = target != self.ignore_index
        true, predicted = target[kept].long(), prediction[kept].long()
        for name, classes in (("target", true), ("prediction", predicted)):
            if classes.numel() and not 0 <= int(classes.min()) <= int(classes.max()) < self.num_classes:
                got = f"{int(classes.min())}..{int(classes.max())}"
                bad_value("ConfusionMatrix.update", name, f"be in 0..{self.num_classes - 1}", got)
        n = self.num_classes
        self.counts += torch.bincount(true * n + predicted, minlength=n * n).reshape(n, n).cpu()

    @property
    def iou(self) -> Tensor:
        """IoU of each class, fp64; NaN for a class that occurs nowhere."""
        counts = self.counts.double()
        hits = counts.diagonal()
        return hits / (counts.sum(0) + counts.sum(1) - hits)

    @property
    def mean_iou(self) -> float:
        return self.iou.nanmean().item()

    @property
    def pixel_accuracy(self) -> float:
        return (self.counts.diagonal().sum().double() / self.counts.sum()).item()

    @property
    def mean_accuracy(self) -> float:
        return (self.counts.diagonal().double() / self.counts.sum(1)).nanmean().item()

    @property
    def frequency_weighted_iou(self) -> float:
        truth = self.counts.sum(1).double()
        return ((truth * self.iou.nan_to_num()).sum() / truth.sum()).item()
