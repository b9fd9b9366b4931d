"""docs/own-data.md: its commands as typed, and its recipes and code."""

import csv
import dataclasses
import re

import numpy as np
import pages
import pytest
import torch
import yaml
from PIL import Image

from atrousops.data import Layout, transforms
from atrousops.engine import outputs

PAGE = pages.ROOT / "docs" / "own-data.md"


def blocks(kind):
    return [block for block in pages.blocks(PAGE) if block.kind == kind and block.runs]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    pages.furnish(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_whole_job(folder, capsys):
    printed = [text for block in blocks("sh") for text in pages.run(block, {})]
    assert len(printed) == 5
    assert "images are images, masks are masks (guessed)" in capsys.readouterr().err
    assert re.search(r"foreground +\d+\.\d\d %\nmean IoU", printed[2])
    for name in ("one", "two"):
        mask = np.array(Image.open(folder / "found" / f"{name}_mask.png"))
        assert mask.shape == (48, 64)
        assert {*np.unique(mask)} <= {0, 1}
    with (folder / "found" / "classes.csv").open(newline="") as file:
        assert [row["class"] for row in csv.DictReader(file)] == ["background", "foreground"] * 2
    again, first = (yaml.safe_load((folder / f"{name}.yaml").read_text()) for name in ("again", "cells"))
    for key in ("classes", "ids", "mean", "std"):
        assert again["data"][key] == first["data"][key]


def test_recipes_of_the_page(folder):
    """Each is a part of a recipe that is read; that of `data` reads the folder."""
    for block in blocks("yaml"):
        recipe = pages.recipe(yaml.safe_load(block.text))
        if recipe.data.name == "folder":
            norm = (recipe.data.mean, recipe.data.std)
            data = outputs.open_set(recipe, recipe.data.root, "train", transforms.evaluation(*norm))
            assert data[0][1].unique().tolist() == [0, 1]
    for text in re.findall(r"`((?:data|model|loss|optimiser): \{[^`]*\})`", PAGE.read_text()):
        pages.recipe(yaml.safe_load(text))


def test_code_of_the_page(folder):
    (code,) = blocks("python")
    there: dict = {}
    pages.run(code, there)
    assert there["Slides"]("cells", "all", None, cells="nucleus").classes == ("background", "nucleus")
    assert there["small_net"]()["layer"](torch.zeros(1, 3, 2, 2)).shape == (1, 2, 2, 2)


def test_every_entry_of_the_layout_is_on_the_page():
    for entry in dataclasses.fields(Layout):
        assert f"`{entry.name}`" in PAGE.read_text(), entry.name
