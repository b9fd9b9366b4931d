"""COCO: things and stuff for every pixel (COCO-Stuff), and separate objects (panoptic)."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from typing import Any

import torch

from atrousops.common.checks import ArgumentError, bad_value
from atrousops.common.class_names import COCO_STUFF
from atrousops.data.base import VOID, Sample, SegmentationSet

# Names that COCO removed again; ids are positions from 1.
_GONE = "street sign,hat,shoe,eye glasses,plate,mirror,window,desk,door,blender,hair brush"
_NAMES = {number: name for number, name in enumerate(COCO_STUFF) if name not in _GONE.split(",")}


class COCOStuff(SegmentationSet):
    """COCO-Stuff: 80 things and 91 stuff classes.

    `coco/{train,val}2017/*.jpg` with `coco/stuffthingmaps/{train,val}2017/*.png`, whose grey values are the ids minus
    one.

    Source: Caesar et al., COCO-Stuff: thing and stuff classes in context (2018).
    """

    file = "coco"
    classes = tuple(_NAMES.values())
    splits = ("train", "val")

    def _list(self) -> list[str]:
        return self.files.names(f"stuffthingmaps/{self.split}2017", ".png")

    def _expected(self) -> str:
        return f"{self.split}2017/*.jpg and stuffthingmaps/{self.split}2017/*.png"

    def _paths(self, name: str) -> tuple[str, str]:
        return f"{self.split}2017/{name}.jpg", f"stuffthingmaps/{self.split}2017/{name}.png"

    def _ids(self) -> Mapping[int, int]:
        return dict.fromkeys(range(max(_NAMES) + 1), VOID) | {grey: number for number, grey in enumerate(_NAMES)}


class COCOPanoptic(SegmentationSet):
    """COCO panoptic: classes in the order of their ids, things first, and a number for every object.

    coco/annotations/panoptic_{train,val}2017.json with `coco/annotations/panoptic_{train,val}2017/*.png`, whose colours
    are segments' ids R + 256 G + 65536 B, and `coco/{train,val}2017/*.jpg`. Crowds are void.

    Attributes:
        things: the number of things; they are the first classes.

    Source: Kirillov et al., Panoptic segmentation (2019).
    """

    file = "coco"
    splits = ("train", "val")
    instances = True

    def __init__(
        self,
        root: str | os.PathLike[str] | None = None,
        split: str = "train",
        transform: Callable[[Any, Any], Sample] | None = None,
    ) -> None:
        self._annotations: dict[str, dict[str, Any]] = {}
        super().__init__(root, split, transform)

    def _list(self) -> list[str]:
        listing = f"annotations/panoptic_{self.split}2017.json"
        try:
            found = json.loads(self.files.read(listing))
        except ValueError as error:
            raise ArgumentError(f"COCOPanoptic: {self.files.place(listing)} must be JSON; got {error}.") from error
        for key in ("categories", "images", "annotations"):
            if key not in found:
                bad_value("COCOPanoptic", self.files.place(listing), f"have the entry {key!r}", ", ".join(found))
        categories = sorted(found["categories"], key=lambda c: (not c["isthing"], c["id"]))
        self.classes = tuple(c["name"] for c in categories)
        self.things = sum(c["isthing"] for c in categories)
        self._numbers = {c["id"]: number for number, c in enumerate(categories)}
        images = {image["id"]: image["file_name"] for image in found["images"]}
        for annotation in found["annotations"]:
            if annotation["image_id"] not in images:
                rule, got = "list the image of every annotation", f"none with id {annotation['image_id']}"
                bad_value("COCOPanoptic", self.files.place(listing), rule, got)
            self._annotations[annotation["file_name"]] = annotation | {"image": images[annotation["image_id"]]}
        return sorted(self._annotations)

    def _expected(self) -> str:
        return f"annotations in annotations/panoptic_{self.split}2017.json"

    def read(self, name: str) -> Sample:
        annotation = self._annotations[name]
        image, mask = f"{self.split}2017/{annotation['image']}", f"annotations/panoptic_{self.split}2017/{name}"
        ids = torch.from_numpy(self.files.colour_ids(mask))
        unknown = ids[(ids != 0) & ~torch.isin(ids, torch.tensor([s["id"] for s in annotation["segments_info"]]))]
        if len(unknown):
            got = f"{int(unknown[0])}, and {len(unknown)} such pixels in all"
            bad_value("COCOPanoptic", self.files.place(mask), "hold ids of the segments in its annotation, or 0", got)
        labels = torch.stack([torch.full_like(ids, VOID), torch.zeros_like(ids)])
        number = 0
        for segment in annotation["segments_info"]:
            where = ids == segment["id"]
            category = self._numbers.get(segment["category_id"])
            if category is None:
                rule = "have the categories of the annotations' list"
                bad_value("COCOPanoptic", self.files.place(mask), rule, segment["category_id"])
            if not segment["iscrowd"]:
                is_thing = category < self.things
                number += is_thing
                labels[0][where], labels[1][where] = category, number if is_thing else 0
        return self._pair(image, self._image(image), mask, labels)
