"""Semantic sets that differ only by names: CamVid, Pascal VOC and its subset of people."""

from __future__ import annotations

from collections.abc import Mapping

from atrousops.common import class_names
from atrousops.data.base import VOID, SegmentationSet


class CamVid(SegmentationSet):
    """CamVid at 480x360, the eleven classes of the SegNet split; class 11 of the files is void.

    `{train,val,test}/*.jpg` with `{train,val,test}annot/*.png` of the same names. "trainval" is train, then val.
    """

    file = "camvid11.zip"
    classes = class_names.CAMVID
    splits = ("train", "val", "trainval", "test")

    def _list(self) -> list[str]:
        if self.split == "trainval":
            return [f"{folder}/{name}" for folder in ("train", "val") for name in self.files.names(folder, ".jpg")]
        return self.files.names(self.split, ".jpg")

    def _expected(self) -> str:
        folder = "{train,val}" if self.split == "trainval" else self.split
        return f"{folder}/*.jpg and {folder}annot/*.png"

    def _paths(self, name: str) -> tuple[str, str]:
        folder, _, stem = name.rpartition("/")
        folder = folder or self.split
        return f"{folder}/{stem}.jpg", f"{folder}annot/{stem}.png"

    def _ids(self) -> Mapping[int, int]:
        return {**super()._ids(), len(self.classes): VOID}


class VOC(SegmentationSet):
    """Pascal VOC 2012's 21 classes.

    VOCdevkit/VOC2012 with ImageSets/Segmentation/{train,val,trainval}.txt, `JPEGImages/*.jpg` and
    `SegmentationClass/*.png`, whose palette numbers are the classes. With the labels of Hariharan et al. (2011) added
    to SegmentationClass and their list as train_aug.txt, the split "train_aug" is the papers' training set.
    """

    file = "VOCdevkit/VOC2012"
    lists = "ImageSets/Segmentation/"
    classes: tuple[str, ...] = class_names.VOC
    splits: tuple[str, ...] = ("train", "val", "trainval", "train_aug")

    def _list(self) -> list[str]:
        return self.files.read(f"{self.lists}{self.split}.txt").decode().split()

    def _expected(self) -> str:
        return f"names in {self.lists}{self.split}.txt"

    def _paths(self, name: str) -> tuple[str, str]:
        return f"JPEGImages/{name}.jpg", f"SegmentationClass/{name}.png"


class VOCPerson(VOC):
    """695 Pascal VOC images with people; classes background and person (VOC's class 15)."""

    file = "voc_person.zip"
    lists = ""
    classes = ("background", "person")
    splits = ("train", "val")

    def _ids(self) -> Mapping[int, int]:
        return {id: int(id == 15) for id in range(len(VOC.classes))}
