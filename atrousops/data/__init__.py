"""Data sets, read from a folder or directly from their zip archives, and their transforms."""

from atrousops.data.bands import Pixels
from atrousops.data.base import VOID, SegmentationSet
from atrousops.data.cityscapes import Cityscapes
from atrousops.data.coco import COCOPanoptic, COCOStuff
from atrousops.data.folder import Folder, Layout
from atrousops.data.nuclei import Nuclei
from atrousops.data.sets import VOC, CamVid, VOCPerson

SETS: dict[str, type[SegmentationSet]] = {
    "camvid": CamVid,
    "cityscapes": Cityscapes,
    "coco_panoptic": COCOPanoptic,
    "coco_stuff": COCOStuff,
    "nuclei": Nuclei,
    "voc": VOC,
    "voc_person": VOCPerson,
}

__all__ = [
    "SETS",
    "VOC",
    "VOID",
    "COCOPanoptic",
    "COCOStuff",
    "CamVid",
    "Cityscapes",
    "Folder",
    "Layout",
    "Nuclei",
    "Pixels",
    "SegmentationSet",
    "VOCPerson",
]
