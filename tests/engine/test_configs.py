"""The recipes in the package: they read, build their networks, and say what they leave."""

from pathlib import Path

import pytest
import torch

import atrousops
from atrousops import models
from atrousops.data import SETS
from atrousops.engine import config, optimise

FOLDER = Path(atrousops.__file__).parent / "configs"
RECIPES = sorted(p for p in FOLDER.rglob("*.yaml") if not p.name.startswith("_"))
# Whose objects are not semantic classes, what is not trained by itself, and what ships its own recipe.
ELSEWHERE = {
    "fcn_resnet101",
    "mask_rcnn",
    "metric_learning",
    "deeplabv3plus_vgg16_lowrank",
    "deeplabv3_resnet101",
    "deeplabv3plus_resnet101",
}


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_reads_and_builds(path):
    recipe = config.load(path)
    data = SETS[recipe.data.name]
    assert {recipe.data.train, recipe.data.val, recipe.data.test or recipe.data.val} <= {*data.splits}
    assert recipe.model.arguments["num_classes"] == len(data.classes)
    with torch.device("meta"):
        model = models.build(recipe.model.name, **recipe.model.arguments)
    optimise.freeze(model, recipe.optimiser)
    optimise.build(model, recipe.optimiser)


def test_every_semantic_network_has_a_camvid_recipe():
    names = {config.load(path).model.name for path in RECIPES if path.parent.name == "camvid"}
    assert names == {*models.registry.NETWORKS} - ELSEWHERE


def test_one_budget():
    """Same steps, batch and crops for every network of a folder."""
    for folder in ("camvid", "nuclei"):
        found = [config.load(path) for path in RECIPES if path.parent.name == folder]
        assert len({(r.schedule, r.batch, r.augmentation, r.optimiser.name, r.seed, r.threads) for r in found}) == 1
