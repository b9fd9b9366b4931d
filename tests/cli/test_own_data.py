"""docs/own-data.md: its commands as typed, and its recipes and code."""

import contextlib
import csv
import dataclasses
import io
import re
import shlex
from pathlib import Path

import numpy as np
import own
import pytest
import torch
import yaml
from PIL import Image

from atrousops import cli
from atrousops.data import Layout, transforms
from atrousops.engine import config, outputs

PAGE = (Path(__file__).parents[2] / "docs" / "own-data.md").read_text()


def blocks(kind):
    return re.findall(rf"^```{kind}\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """cells/images with cells/masks, 255 being a cell, and new with two images that have no mask."""
    own.write(tmp_path / "cells", mask=lambda discs: 255 * discs.astype(np.uint8))
    own.write(tmp_path, "new/{}.png", "unused/{}.png", ("one", "two"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def typed(line):
    """Runs a line of a shell, which may send what is printed to a file."""
    words = shlex.split(line, comments=True)
    target = None
    if ">" in words:
        *words, _, target = words
    assert words[0] == "atrousops"
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        code = cli.main(words[1:])
    assert code == 0, line
    if target is not None:
        Path(target).write_text(printed.getvalue())
    return printed.getvalue()


def test_the_whole_job(folder, capsys):
    printed = [typed(line) for block in blocks("sh") for line in block.splitlines()]
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
    whole = {"model": {"name": "enet"}, "data": {"name": "camvid"}, "schedule": {"steps": 1}}
    for text in blocks("yaml"):
        recipe = config.parse({**whole, **yaml.safe_load(text)})
        if recipe.data.name == "folder":
            norm = (recipe.data.mean, recipe.data.std)
            data = outputs.open_set(recipe, recipe.data.root, "train", transforms.evaluation(*norm))
            assert data[0][1].unique().tolist() == [0, 1]
    for text in re.findall(r"`((?:data|model|loss|optimiser): \{[^`]*\})`", PAGE):
        config.parse({**whole, **yaml.safe_load(text)})


def test_code_of_the_page(folder):
    (code,) = blocks("python")
    there: dict = {}
    exec(code, there)
    assert there["Slides"]("cells", "all", None, cells="nucleus").classes == ("background", "nucleus")
    assert there["small_net"]()["layer"](torch.zeros(1, 3, 2, 2)).shape == (1, 2, 2, 2)


def test_every_entry_of_the_layout_is_on_the_page():
    for entry in dataclasses.fields(Layout):
        assert f"`{entry.name}`" in PAGE, entry.name
