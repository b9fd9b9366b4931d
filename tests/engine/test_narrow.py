"""Networks in int8 for `evaluate`: calibrated on training images, and scored as themselves."""

import pytest
import torch
from people import write_people, write_recipe
from torch import nn

from atrousops import models
from atrousops.data import transforms
from atrousops.engine import config, evaluate, narrow, outputs
from atrousops.nn import QuantizedConv2d


@pytest.mark.parametrize(("count", "expected"), [(2, [0, 2]), (32, [0, 1, 2, 3])])
def test_scales_come_from_training_images(tmp_path, monkeypatch, count, expected):
    recipe = config.load(write_recipe(tmp_path))
    write_people(tmp_path)
    info = models.Info("enet", {"num_classes": 2}, ("background", "person"), (0.4,) * 3, (0.3,) * 3, 64)
    seen = {}
    monkeypatch.setattr(narrow, "optimize", lambda model, **options: seen.update(options) or model)
    narrow.narrowed(nn.Conv2d(3, 2, 1), recipe, str(tmp_path), info, "float8_e4m3fn", count)
    train = outputs.open_set(recipe, str(tmp_path), "train", transforms.evaluation(info.mean, info.std))
    assert seen["dtype"] == torch.float8_e4m3fn
    assert len(seen["calibration"]) == len(expected)
    assert all(torch.equal(image[0], train[i][0]) for image, i in zip(seen["calibration"], expected, strict=True))


def test_what_is_judged_is_narrow(tmp_path):
    recipe = {"name": "unet", "arguments": {"num_classes": 2, "width": 4}}
    path = write_recipe(tmp_path, model=recipe)
    write_people(tmp_path)
    torch.manual_seed(0)
    net = models.build("unet", **recipe["arguments"])
    info = models.Info("unet", recipe["arguments"], ("background", "person"), (0.5,) * 3, (0.2,) * 3, 64)
    models.save(net, tmp_path / "weights.safetensors", info)
    options = {"split": None, "data_root": str(tmp_path), "overrides": (), "published": None}
    opened = evaluate.opened(path, tmp_path / "weights.safetensors", **options, dtype="int8", calibration=2)
    assert any(type(layer) is QuantizedConv2d for layer in opened.model.modules())
    scores = evaluate.main(
        path, tmp_path / "weights.safetensors", data_root=str(tmp_path), dtype="int8", progress=False
    )
    assert scores.matrix.counts.sum() > 0
