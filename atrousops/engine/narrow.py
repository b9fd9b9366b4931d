"""A network in int8 or float8 for `evaluate`, calibrated on training images."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from atrousops.data import Pixels, transforms
from atrousops.engine import outputs
from atrousops.engine.config import Config
from atrousops.surgery.optimize import optimize

DTYPES = {"int8": torch.int8, "float8_e4m3fn": torch.float8_e4m3fn}


def narrowed(model: nn.Module, recipe: Config, root: str | None, info: Any, dtype: str, count: int) -> nn.Module:
    """`atrousops.optimize` with a dtype, calibrated on training images of a recipe at even distances in their set.

    Args:
        root: the folder of the data.
        info: `models.Info` of the weights, for the normalisation of the images.
        dtype: a key of DTYPES.
        count: number of images; all images if there are fewer.
    """
    data = outputs.open_set(recipe, root, recipe.data.train, transforms.evaluation(info.mean, info.std))
    data.pixels = Pixels(len(info.mean), info.scale)
    count = min(count, len(data))
    device = next(model.parameters()).device
    images = [data[i * len(data) // count][0][None].to(device) for i in range(count)]
    return optimize(model.eval(), dtype=DTYPES[dtype], calibration=images)
