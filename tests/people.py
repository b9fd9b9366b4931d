"""A tiny data set in the layout of the VOC people: bright squares on dark noise."""

import io
import zipfile
from pathlib import Path

import numpy as np
import yaml
from PIL import Image

RECIPE = {
    "model": {"name": "enet", "arguments": {"num_classes": 2}},
    "data": {"name": "voc_person"},
    "augmentation": {"crop": 32, "size": 48},
    "schedule": {"steps": 6, "warmup": 2, "cooldown": 2},
    "average": 0.9,
    "batch": 2,
    "validate_every": 3,
    "checkpoint_every": 2,
}


def write_people(folder: Path, count: int = 4) -> Path:
    """Writes voc_person.zip with `count` training and two validation images; returns the folder."""
    random = np.random.default_rng(0)
    names = [f"{number:06}" for number in range(count + 2)]
    with zipfile.ZipFile(folder / "voc_person.zip", "w") as archive:
        for name in names:
            picture = random.integers(0, 90, (40, 48, 3), dtype=np.uint8)
            labels = np.zeros((40, 48), dtype=np.uint8)
            picture[8:30, 10:34] += 160
            labels[8:30, 10:34] = 15
            labels[7, 10:34] = 255
            labels[35:, :] = 9  # another of VOC's classes: background here
            archive.writestr(f"JPEGImages/{name}.jpg", _encode(Image.fromarray(picture), "JPEG"))
            archive.writestr(f"SegmentationClass/{name}.png", _encode(_palette(labels), "PNG"))
        archive.writestr("train.txt", "\n".join(names[:count]))
        archive.writestr("val.txt", "\n".join(names[count:]))
    return folder


def write_recipe(folder: Path, **changes: object) -> Path:
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump({**RECIPE, **changes}))
    return path


def _palette(labels: np.ndarray) -> Image.Image:
    image = Image.fromarray(labels, "P")
    image.putpalette(list(range(256)) * 3)
    return image


def _encode(image: Image.Image, kind: str) -> bytes:
    file = io.BytesIO()
    image.save(file, kind)
    return file.getvalue()
