"""Data sets, read from a folder or straight from their zip archives, and their transforms."""

from atrousops.data.sets import SETS, VOID, CamVid, SegmentationSet, VOCPerson

__all__ = ["SETS", "VOID", "CamVid", "SegmentationSet", "VOCPerson"]
