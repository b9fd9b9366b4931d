"""What every reader is: images with labels, by number, from a folder or straight from an archive."""

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

    A set with `instances` has labels (2, H, W): the class, and the number of the object, from 1, or 0 for what is no
    object. The number means nothing where the class is void.

    Args:
        root: folder that holds the archive or its unpacked folder; None looks in $ATROUSOPS_DATA and ../shared/data.
        split: one of `splits`.
        transform: called with (tv_tensors.Image, tv_tensors.Mask).

    Raises:
        ArgumentError: no such split, or a file or folder of the layout is missing; the message names it.
    """

    file: str
    classes: tuple[str, ...]
    splits: tuple[str, ...]
    instances = False

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
        if not self.names:
            where, what = f"hold {self._expected()}", f"nothing of that kind in {self.files.path}"
            bad_value(type(self).__name__, "root", where, what)

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> Sample:
        picture, labels = self.read(self.names[index])
        sample = (tv_tensors.Image(picture), tv_tensors.Mask(labels))
        return self.transform(*sample) if self.transform is not None else sample

    def read(self, name: str) -> Sample:
        """The image and labels called `name`, before the transform.

        Raises:
            FileNotFoundError: one of its files is missing.
            ArgumentError: the two are of different sizes.
        """
        image_name, label_name, mode = self._paths(name)
        picture = np.array(self.files.image(image_name, "RGB"))
        labels = self._relabel(torch.from_numpy(np.array(self.files.image(label_name, mode)).astype(np.int64)))
        return self._pair(name, picture, labels)

    def _pair(self, name: str, picture: np.ndarray, labels: Tensor) -> Sample:
        if labels.shape[-2:] != picture.shape[:2]:
            rule = f"have labels of the size of its image, {picture.shape[:2]}"
            bad_value(type(self).__name__, name, rule, tuple(labels.shape[-2:]))
        return torch.from_numpy(picture).permute(2, 0, 1).contiguous(), labels

    def _expected(self) -> str:
        """What `_list` looks for, for the message if there is none."""
        return f"images of the split {self.split!r}"

    def _list(self) -> list[str]:
        raise NotImplementedError

    def _paths(self, name: str) -> tuple[str, str, str]:
        """Files of the image and of the labels, and the labels' Pillow mode."""
        raise NotImplementedError

    def _relabel(self, labels: Tensor) -> Tensor:
        raise NotImplementedError


def lookup(table: dict[int, int], size: int = 256) -> Tensor:
    """The ids of a file as the numbers of classes: a tensor to be indexed by labels, void where the table is silent."""
    found = torch.full((size,), VOID)
    found[list(table)] = torch.tensor(list(table.values()))
    return found
