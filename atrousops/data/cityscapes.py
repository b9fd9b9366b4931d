"""Cityscapes: nineteen classes of street scenes."""

from __future__ import annotations

from collections.abc import Mapping

from atrousops.common.class_names import CITYSCAPES
from atrousops.data.base import VOID, SegmentationSet

# The ids that are evaluated, in the order of the classes; all others up to 33 are void.
_IDS = (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33)


class Cityscapes(SegmentationSet):
    """Cityscapes, fine labels.

    `cityscapes/leftImg8bit/{train,val}/CITY/*_leftImg8bit.png` with `gtFine/{train,val}/CITY/*_gtFine_labelIds.png`.
    """

    file = "cityscapes"
    classes = CITYSCAPES
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
