"""Nuclei under the microscope: an image, and a number for every nucleus."""

from __future__ import annotations

import numpy as np
import torch

from atrousops.data.base import Sample, SegmentationSet


class Nuclei(SegmentationSet):
    """Microscope images of the Data Science Bowl 2018, classes background and nucleus, labels (2, H, W).

    Either image/NAME.png with label/NAME.png, whose greys number the nuclei; or, as it was handed out,
    NAME/images/NAME.png with one NAME/masks/*.png for each nucleus. Neither knows splits: every fifth image by name is
    "val", the others are "train".
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
        picture = np.array(self.files.image(image, "RGB"))
        if self.flat:
            numbers = np.array(self.files.image(f"label/{name}.png", "I")).astype(np.int64)
        else:
            numbers = np.zeros(picture.shape[:2], dtype=np.int64)
            masks = self.files.names(f"{name}/masks", ".png")
            for number, mask in enumerate(masks, start=1):
                numbers[np.array(self.files.image(f"{name}/masks/{mask}.png", "L")) > 127] = number
        found = torch.from_numpy(numbers)
        return self._pair(name, picture, torch.stack([(found > 0).long(), found]))
