"""Cityscapes: nineteen classes of street scenes."""

from __future__ import annotations

from collections.abc import Mapping

from atrousops.data.base import VOID, SegmentationSet

# The ids of the files that are judged, with the names of their classes; all others up to 33 are void.
_IDS = {
    7: "road",
    8: "sidewalk",
    11: "building",
    12: "wall",
    13: "fence",
    17: "pole",
    19: "traffic light",
    20: "traffic sign",
    21: "vegetation",
    22: "terrain",
    23: "sky",
    24: "person",
    25: "rider",
    26: "car",
    27: "truck",
    28: "bus",
    31: "train",
    32: "motorcycle",
    33: "bicycle",
}


class Cityscapes(SegmentationSet):
    """Cityscapes, fine labels.

    `cityscapes/leftImg8bit/{train,val}/CITY/*_leftImg8bit.png` with `gtFine/{train,val}/CITY/*_gtFine_labelIds.png`.
    """

    file = "cityscapes"
    classes = tuple(_IDS.values())
    splits = ("train", "val")

    def _list(self) -> list[str]:
        folder = f"leftImg8bit/{self.split}"
        cities = self.files.folders(folder)
        return [f"{c}/{name}" for c in cities for name in self.files.names(f"{folder}/{c}", "_leftImg8bit.png")]

    def _expected(self) -> str:
        return f"leftImg8bit/{self.split}/CITY/*_leftImg8bit.png and gtFine/{self.split}/CITY/*_gtFine_labelIds.png"

    def _paths(self, name: str) -> tuple[str, str]:
        image = f"leftImg8bit/{self.split}/{name}_leftImg8bit.png"
        return image, f"gtFine/{self.split}/{name}_gtFine_labelIds.png"

    def _ids(self) -> Mapping[int, int]:
        return dict.fromkeys(range(34), VOID) | {id: number for number, id in enumerate(_IDS)}
