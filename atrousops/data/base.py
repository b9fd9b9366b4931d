"""The base of all readers: indexed images with labels, from a folder or directly from an archive."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset
from torchvision import tv_tensors

from atrousops.common.checks import bad_choice, bad_value
from atrousops.data.bands import Pixels
from atrousops.data.files import Files, find

VOID = 255
Sample = tuple[Tensor, Tensor]


class SegmentationSet(Dataset[Sample]):
    """Pairs of an image (C, H, W), by default RGB in uint8, and its labels (H, W) int64; void is 255.

    Set `pixels` to read other channels or depths, see `bands.read_picture`.

    A set with `instances` has labels (2, H, W): the class, and the number of the object, from 1, or 0 for no object.
    Where the class is void the number is undefined.

    Args:
        root: folder that holds the archive or its unpacked folder; None searches in $ATROUSOPS_DATA.
        split: one of `splits`.
        transform: called with (tv_tensors.Image, tv_tensors.Mask).

    Raises:
        ArgumentError: no such split, more than 255 classes, or a missing file or folder, which the message names.
    """

    file: str
    classes: tuple[str, ...]
    splits: tuple[str, ...]
    instances = False
    pixels = Pixels()

    def __init__(
        self,
        root: str | os.PathLike[str] | None = None,
        split: str = "train",
        transform: Callable[[Any, Any], Sample] | None = None,
    ) -> None:
        if split not in self.splits:
            bad_choice(type(self).__name__, "split", self.splits, split)
        self.files = self._open(root)
        self.split = split
        self.transform = transform
        self.names = self._list()
        if len(self.classes) > VOID:
            rule = f"be at most {VOID}, for label {VOID} is void"
            bad_value(type(self).__name__, "classes", rule, len(self.classes))
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
            PictureError: one is damaged, or is not an image or mask.
            ArgumentError: their sizes differ, or there is an id that the set does not define.
        """
        image, mask = self._paths(name)
        return self._pair(image, self._image(image), mask, self._labels(mask))

    def look(self, names: Iterable[str]) -> None:
        """Checks files before they are used, without decoding them; the default does nothing.

        Raises:
            ArgumentError: some of them are damaged, or do not match; the message names them.
        """

    def _open(self, root: str | os.PathLike[str] | None) -> Files:
        """The files of the set."""
        return Files(find(self.file, root))

    def _image(self, image: str) -> np.ndarray:
        """The image of a file, (H, W, C), read according to `pixels`."""
        return self.files.image(image, self.pixels)

    def _labels(self, mask: str) -> Tensor:
        """The classes of a mask's file."""
        return self._relabel(mask, self.files.mask(mask))

    def _pair(self, image: str, picture: np.ndarray, mask: str, labels: Tensor) -> Sample:
        """Image and labels as tensors; if sizes differ, the error names the files."""
        (h, w), (rows, columns) = picture.shape[:2], labels.shape[-2:]
        if (h, w) != (rows, columns):
            op, where = type(self).__name__, self.files.place(mask)
            rule = f"have the size of its image {self.files.place(image)}, {h} x {w} (height x width)"
            bad_value(op, where, rule, f"{rows} x {columns}", "Orientation in EXIF is applied to both.")
        return torch.from_numpy(picture).permute(2, 0, 1).contiguous(), labels

    def _expected(self) -> str:
        """The files that `_list` searches for, for the message if there are none."""
        return f"images of the split {self.split!r}"

    def _list(self) -> list[str]:
        raise NotImplementedError

    def _paths(self, name: str) -> tuple[str, str]:
        """Files of the image and of the labels."""
        raise NotImplementedError

    def _ids(self) -> Mapping[int, int]:
        """The ids that the files may hold -> class or VOID; 255 is also void."""
        return {number: number for number in range(len(self.classes))}

    def _relabel(self, mask: str, ids: np.ndarray) -> Tensor:
        """Ids of the file `mask` as classes."""
        known = self._known()
        beyond = max(known) + 1
        table = np.full(beyond + 1, -1, dtype=np.int64)
        table[list(known)] = list(known.values())
        # Ids outside the table's range are mapped to its last entry.
        classes = table[np.where((ids < 0) | (ids > beyond), beyond, ids)]
        if (classes < 0).any():
            rows, columns = np.nonzero(classes < 0)
            got = ids[rows[0], columns[0]]
            where = f"{got} at row {rows[0]}, column {columns[0]}, and {len(rows)} such pixels in all"
            names = ", ".join(_ranges(known))
            bad_value(type(self).__name__, self.files.place(mask), f"hold ids of {names}", where, self._remedy(got))
        return torch.from_numpy(classes)

    def _known(self) -> Mapping[int, int]:
        return {VOID: VOID, **self._ids()}

    def _remedy(self, id: int) -> str:
        """The remedy for an unknown id."""
        return "Convert its ids first."


def _ranges(numbers: Iterable[int]) -> list[str]:
    """Numbers as ranges "a-b", or "a" for a single one."""
    runs: list[list[int]] = []
    for number in sorted(numbers):
        if runs and runs[-1][-1] == number - 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return [f"{run[0]}-{run[-1]}" if len(run) > 1 else f"{run[0]}" for run in runs]
