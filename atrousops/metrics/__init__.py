"""Scores of segmentations."""

from atrousops.metrics.confusion import ConfusionMatrix

__all__ = ["ConfusionMatrix"]
