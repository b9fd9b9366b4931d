"""Cell nuclei in microscope images, with a number for every nucleus."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from atrousops.common.checks import bad_value
from atrousops.data.base import Sample, SegmentationSet


class Nuclei(SegmentationSet):
    """Microscope images of the Data Science Bowl 2018, classes background and nucleus, labels (2, H, W).

    Either image/NAME.png with label/NAME.png, whose grey values number the nuclei; or, as distributed,
    NAME/images/NAME.png with one NAME/masks/*.png per nucleus, which covers the pixels above half of the mask's
    maximum. Neither defines splits: every fifth image by name is "val", the others are "train".
    """

    file = "nuclei_dsb2018.zip"
    classes = ("background", "nucleus")
    splits = ("train", "val", "all")
    instances = True

    def _list(self) -> list[str]:
        self.flat = bool(self.files.names("image", ".png"))
        names = self.files.names("image", ".png") if self.flat else self.files.folders("")
        if not self.flat:
            names = [name for name in names if self.files.names(f"{name}/images", ".png")]
        return [n for i, n in enumerate(names) if self.split == "all" or (i % 5 == 0) == (self.split == "val")]

    def _expected(self) -> str:
        return "image/*.png and label/*.png, or */images/*.png and */masks/*.png"

    def read(self, name: str) -> Sample:
        image = f"image/{name}.png" if self.flat else f"{name}/images/{name}.png"
        picture = self._image(image)
        if self.flat:
            mask = f"label/{name}.png"
            numbers = self.files.mask(mask)
            if numbers.min() < 0:
                bad_value("Nuclei", self.files.place(mask), "number its nuclei from 1, and the rest 0", numbers.min())
            return self._pair(image, picture, mask, _labels(numbers))
        numbers = np.zeros(picture.shape[:2], dtype=np.int64)
        for number, stem in enumerate(self.files.names(f"{name}/masks", ".png"), start=1):
            mask = f"{name}/masks/{stem}.png"
            greys = self.files.mask(mask)
            self._pair(image, picture, mask, torch.from_numpy(greys))
            numbers[2 * greys > greys.max()] = number
        return self._pair(image, picture, f"{name}/masks", _labels(numbers))


def _labels(numbers: np.ndarray) -> Tensor:
    """Class and number of each pixel."""
    found = torch.from_numpy(numbers)
    return torch.stack([(found > 0).long(), found])
