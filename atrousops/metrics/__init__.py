"""Scores of segmentations."""

from atrousops.metrics.boundary import BoundaryScores, trimap
from atrousops.metrics.confusion import ConfusionMatrix
from atrousops.metrics.mask_ap import MaskAP, Precision
from atrousops.metrics.panoptic import PanopticQuality, Quality

__all__ = ["BoundaryScores", "ConfusionMatrix", "MaskAP", "PanopticQuality", "Precision", "Quality", "trimap"]
