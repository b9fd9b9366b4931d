"""Readers: CamVid's eleven classes, and the people of Pascal VOC."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset
from torchvision import tv_tensors

from atrousops._checks import bad_value
from atrousops.data.files import Files, find

VOID = 255
Sample = tuple[Tensor, Tensor]


class SegmentationSet(Dataset[Sample]):
    """Pairs of an image (3, H, W) uint8 and its labels (H, W) int64, void being 255.

    Args:
        root: folder that holds the archive or its unpacked folder; None looks in $ATROUSOPS_DATA and ../shared/data.
        split: one of `splits`.
        transform: called with (tv_tensors.Image, tv_tensors.Mask).
    """

    file: str
    classes: tuple[str, ...]
    splits: tuple[str, ...]

    def __init__(
        self,
        root: str | os.PathLike[str] | None = None,
        split: str = "train",
        transform: Callable[[Any, Any], Sample] | None = None,
    ) -> None:
        if split not in self.splits:
            bad_value(type(self).__name__, "split", f"be one of {', '.join(self.splits)}", repr(split))
        self.files = Files(find(self.file, root))
        self.split = split
        self.transform = transform
        self.names = self._list()

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> Sample:
        picture, labels = self.read(self.names[index])
        sample = (tv_tensors.Image(picture), tv_tensors.Mask(labels))
        return self.transform(*sample) if self.transform is not None else sample

    def read(self, name: str) -> Sample:
        """The image and labels called `name`, before the transform."""
        image_name, label_name, mode = self._paths(name)
        picture = np.array(self.files.image(image_name, "RGB"))
        labels = np.array(self.files.image(label_name, mode)).astype(np.int64)
        return torch.from_numpy(picture).permute(2, 0, 1).contiguous(), self._relabel(torch.from_numpy(labels))

    def _list(self) -> list[str]:
        raise NotImplementedError

    def _paths(self, name: str) -> tuple[str, str, str]:
        raise NotImplementedError

    def _relabel(self, labels: Tensor) -> Tensor:
        raise NotImplementedError


class VOCPerson(SegmentationSet):
    """695 Pascal VOC images that hold people; classes background and person (VOC's class 15)."""

    file = "voc_person.zip"
    classes = ("background", "person")
    splits = ("train", "val")

    def _list(self) -> list[str]:
        return self.files.read(f"{self.split}.txt").decode().split()

    def _paths(self, name: str) -> tuple[str, str, str]:
        return f"JPEGImages/{name}.jpg", f"SegmentationClass/{name}.png", "P"

    def _relabel(self, labels: Tensor) -> Tensor:
        return torch.where(labels == VOID, VOID, (labels == 15).long())


class CamVid(SegmentationSet):
    """CamVid at 480x360, the eleven classes of the SegNet split; class 11 of the files is void."""

    file = "camvid11.zip"
    classes = (
        "sky",
        "building",
        "pole",
        "road",
        "pavement",
        "tree",
        "sign",
        "fence",
        "car",
        "pedestrian",
        "bicyclist",
    )
    splits = ("train", "val", "test")

    def _list(self) -> list[str]:
        return self.files.names(self.split, ".jpg")

    def _paths(self, name: str) -> tuple[str, str, str]:
        return f"{self.split}/{name}.jpg", f"{self.split}annot/{name}.png", "L"

    def _relabel(self, labels: Tensor) -> Tensor:
        return torch.where(labels < len(self.classes), labels, VOID)


SETS: dict[str, type[SegmentationSet]] = {"camvid": CamVid, "voc_person": VOCPerson}
