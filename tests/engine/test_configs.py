"""The recipes in the package: they read, build their networks, and say what they leave."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch
import yaml

import atrousops
from atrousops import models
from atrousops.common.checks import ArgumentError
from atrousops.data import SETS
from atrousops.engine import config, optimise
from atrousops.engine.orders import SEED

FOLDER = Path(atrousops.__file__).parent / "configs"
RECIPES = sorted(p for p in FOLDER.rglob("*.yaml") if not p.name.startswith("_"))
# Whose objects are not semantic classes, what ships its own recipe, and what another factory makes at another depth.
ELSEWHERE = {
    "mask_rcnn",
    "metric_learning",
    "deeplabv3plus_efficientnet_lite2",
    "deeplabv3plus_mobilenet_v3_large",
    *(f"{name}_resnet{depth}" for name in ("fcn", "deeplabv3", "deeplabv3plus") for depth in (50, 101)),
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


@pytest.mark.parametrize("name", ["deeplabv2_resnet101", "deeplabv3_resnet101", "pspnet_resnet101"])
def test_papers_align_corners_as_their_releases(name):
    """In every part that interpolates, and on crops of 8 n + 1 pixels."""
    recipe = config.load(FOLDER / "papers" / f"{name}.yaml")
    with torch.device("meta"):
        model = models.build(recipe.model.name, **recipe.model.arguments)
    found = [layer.align_corners for layer in model.modules() if hasattr(layer, "align_corners")]
    assert found
    assert all(found)
    assert recipe.augmentation.crop % 8 == 1


def test_papers_front_end():
    assert config.load(FOLDER / "papers" / "frontend.yaml").model.arguments["placement"] == "corner"


def test_every_semantic_network_has_a_camvid_recipe():
    names = {config.load(path).model.name for path in RECIPES if path.parent.name == "camvid"}
    assert names == {*models.registry.NETWORKS} - ELSEWHERE


LONGEST = ("deeplabv3plus_lite0_long", "deeplabv3plus_lite0_lovasz")


def test_one_budget():
    """Same steps, batch and crops for all of a folder that start alike.

    Starts are afresh, from a trunk, from a trunk at output stride 8, from a run, and on a run that is not changed. But
    for the two steps to the best that there is: they have ten times the steps, and are compared with nothing.
    """
    for folder in ("camvid", "nuclei"):
        budgets: dict[object, set[object]] = {}
        compared = [p for p in RECIPES if p.parent.name == folder and p.stem not in LONGEST]
        for r in map(config.load, compared):
            rest = r.schedule, r.batch, r.augmentation, r.optimiser.name, r.seed, r.threads, r.scales
            held, fine = "backbone." in r.optimiser.frozen, r.model.name in ("dilated_vgg16", "deeplabv1")
            # Mask R-CNN sets the sides of its images itself.
            own = r.init.trunk is not None and (fine or r.model.name == "mask_rcnn")
            start = r.init.trunk, own, bool(r.init.weights), held, r.autocast
            budgets.setdefault(start, set()).add(rest)
        assert all(len(budget) == 1 for budget in budgets.values())


def test_goes_on_from_a_recipe_that_is_there():
    for path in RECIPES:
        weights = config.load(path).init.weights
        if weights is not None:
            assert path.with_name(f"{Path(weights).parent.name.partition(SEED)[0]}.yaml").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"schedule": {"steps": "9"}}, r"config\.schedule\.steps must be a valid integer; got '9'"),
        ({"schedule": {"steps": True}}, r"config\.schedule\.steps must be a valid integer; got True"),
        (
            {"schedule": {"steps": 9, "kinds": "poly"}},
            r"config\.schedule must have only the keys .*mean kind\?",
        ),
        ({"schedule": {"steps": 9, "kind": "cosine"}}, r"schedule\.kind must be linear, poly or step; got 'cosine'"),
        ({"schedule": {}}, r"config\.schedule must have the key 'steps'"),
        (
            {"augmentation": {"crop": "x"}},
            r"augmentation\.crop must be a valid integer or a valid array; got",
        ),
        ({"scales": [1, "a"]}, r"config\.scales\.1 must be a valid number; got 'a'"),
        ({"optimiser": {"rates": {"crf": "low"}}}, r"config\.optimiser\.rates\.crf must be a valid number; got 'low'"),
        ({"variants": {"flipped": {"flap": True}}}, r"config\.variants\.flipped must have only the keys .*mean flip\?"),
        ({"data": 3}, r"config\.data must be a mapping; got 3"),
        ({"bach": 3}, r"config must have only the keys .*; got 'bach'\. Did you mean batch\?"),
    ],
)
def test_errors_name_the_key_and_the_rule(tmp_path, changes, message):
    recipe = {"model": {"name": "enet"}, "data": {"name": "camvid"}, "schedule": {"steps": 9}}
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe | changes))
    with pytest.raises(ArgumentError, match=message):
        config.load(path)


@pytest.mark.parametrize("text", ["", "cells", "base: other.yaml\n"])
def test_a_file_that_is_no_recipe(tmp_path, text):
    """Such as `atrousops recipe > FILE` leaves where it fails: with --set the override had been called wrong."""
    (tmp_path / "other.yaml").touch()
    (tmp_path / "recipe.yaml").write_text(text)
    for overrides in ((), ("schedule.steps=9",)):
        with pytest.raises(ArgumentError, match=r"(recipe|other)\.yaml must hold a recipe, .*; got (nothing|'cells')"):
            config.load(tmp_path / "recipe.yaml", overrides)


def bare(schema):
    """Without descriptions, which Python 3.13 indents in another way."""
    if isinstance(schema, dict):
        return {key: bare(value) for key, value in schema.items() if key != "description"}
    return schema


def written(value, inside=""):
    """JSON with an entry a line, where an object does not fit on one."""
    line = json.dumps(value)
    if not isinstance(value, dict) or len(inside + line) < 110:
        return line
    deeper = f"{inside}  "
    entries = [f"{deeper}{json.dumps(key)}: {written(entry, deeper)}" for key, entry in value.items()]
    return "\n".join(["{", ",\n".join(entries), f"{inside}}}"])


def test_the_schema_is_the_recipe():
    """`written(config.schema())` is the file."""
    text = (FOLDER / "schema.json").read_text()
    stored = json.loads(text)
    assert text == f"{written(stored)}\n"
    assert bare(stored) == bare(config.schema())
    assert set(stored["properties"]) == {"base", *(f.name for f in dataclasses.fields(config.Config))}
