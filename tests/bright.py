"""A tiny network in place of trained ones, and photographs for it."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn

from atrousops.engine.predict import Predictor


class Brightness(nn.Module):
    """Class 1 where a pixel is brighter than the middle grey, else class 0."""

    def forward(self, x):
        grey = x.mean(dim=1, keepdim=True)
        return {"out": torch.cat([-grey, grey], dim=1)}


def predictor(**options: Any) -> Predictor:
    return Predictor(Brightness(), ["background", "bright"], (0.5, 0.5, 0.5), (1, 1, 1), **options)


def write_photos(folder: Path, count: int, height: int = 10, width: int = 20) -> list[Path]:
    """Photographs of noise, 0.png, 1.png ..."""
    random = np.random.default_rng(0)
    files = [folder / f"{number}.png" for number in range(count)]
    folder.mkdir(exist_ok=True)
    for file in files:
        Image.fromarray(random.integers(0, 256, (height, width, 3), dtype=np.uint8)).save(file)
    return files
