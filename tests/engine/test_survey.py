"""`atrousops recipe` reads every file: each that cannot be used is named; what ids and names of classes mean."""

import shutil
import zipfile
from pathlib import Path

import numpy as np
import own
import pytest
from PIL import Image

from atrousops import cli
from atrousops.common.checks import ArgumentError
from atrousops.engine import recipe


def test_each_mask_that_is_damaged_is_named(tmp_path):
    """However many: data of a PNG that are cut or changed within, what is no mask, links that lead nowhere."""
    own.write(tmp_path)
    masks = tmp_path / "masks"
    for name in "abc":
        data = bytearray((masks / f"{name}.png").read_bytes())
        start = data.index(b"IDAT") + 8
        data[start : start + 30] = bytes(30)
        (masks / f"{name}.png").write_bytes(data)
    for name in "de":
        Image.fromarray(np.zeros((48, 64), np.float32)).save(masks / f"{name}.png", "TIFF")
    for name in "fg":
        (masks / f"{name}.png").unlink()
        (masks / f"{name}.png").symlink_to(f"moved/{name}.png")
    told: list[str] = []
    with pytest.raises(ArgumentError, match=r"masks/a\.png: cannot be read: .* and 2 more\. Repair or remove them\."):
        recipe.main(str(tmp_path), "msd", say=told.append, progress=False)
    for name in "abc":
        assert any(f"masks/{name}.png: cannot be read: " in line for line in told)
    for name in "de":
        assert any(f"masks/{name}.png: a mask must hold one class id a pixel" in line for line in told)
    for name in "fg":
        assert any(f"masks/{name}.png: a link to moved/{name}.png, which is not there" in line for line in told)


def test_an_archive_that_is_damaged_within(tmp_path, monkeypatch, capsys):
    """Its files are named by `recipe`, and by `train` before the first step, as those of a folder are."""
    monkeypatch.chdir(tmp_path)
    own.write(tmp_path / "cells")
    whole = shutil.make_archive("whole", "zip", "cells")
    data = bytearray(Path(whole).read_bytes())
    with zipfile.ZipFile(whole) as archive:
        for name in ("masks/b.png", "masks/d.png"):
            data[archive.getinfo(name).header_offset + 30 + len(name) + 60] ^= 0xFF
    Path("cut.zip").write_bytes(data)
    assert cli.main(["recipe", "--data", whole, "--model", "msd"]) == 0
    Path("my.yaml").write_text(capsys.readouterr().out)
    for command in (["recipe", "--data", "cut.zip", "--model", "msd"], ["train", "my.yaml", "--data", "cut.zip"]):
        assert cli.main(command) == 1
        error = capsys.readouterr().err
        assert "cut.zip/masks/b.png: cannot be read: " in error
        assert command[0] == "train" or "cut.zip/masks/d.png: cannot be read: " in error


def test_ids_that_have_no_name(tmp_path):
    """Where most masks hold numbers of the named classes, the others are named."""
    own.write(tmp_path)
    (tmp_path / "classes.txt").write_text("ground\ndisc\n")
    for name, values in (("c", [1, 7]), ("e", [0, 2, 900])):
        ids = np.resize(np.array(values, np.uint16), (48, 64))
        Image.fromarray(ids).save(tmp_path / "masks" / f"{name}.png")
    beyond = (
        r"masks/c\.png: ids 7, where classes\.txt names 0-1; .*masks/e\.png: ids 2, 900, where classes\.txt names 0-1"
    )
    with pytest.raises(ArgumentError, match=rf"{beyond}\. Repair or remove them\."):
        own.recipe(tmp_path)
    # Without names an id of one mask alone is a class, and the recipe says where to look.
    (tmp_path / "classes.txt").unlink()
    _, text, _ = own.recipe(tmp_path)
    assert "# 7: class_7, 1536 pixels (6.25%), in masks/c.png alone\n" in text


@pytest.mark.parametrize(
    ("mask", "names", "classes", "ids", "words"),
    [
        (lambda d: np.uint8(255) * d, "ground disc", "classes.txt", {0: "ground", 255: "disc"}, "in the order of the"),
        (lambda d: np.uint8(200) * d, "ground disc", "classes.txt", {0: "ground", 200: "disc"}, "in the order of the"),
        (lambda d: np.uint8(255) * d, "ground disc hole", "classes.txt", None, "names; 255 is taken for void"),
        (
            lambda d: np.uint8(7) * d,
            "ground disc hole",
            ["background", "foreground"],
            {0: "background", 7: "foreground"},
            "guessed names; the 3 of the file of class names do not go with 2 ids 0, 7",
        ),
        (
            lambda d: np.array([[0, 0, 0], [9, 8, 7]], np.uint8)[d.astype(int)],
            "ground disc hole",
            None,
            None,
            "guessed names; the 3 of the file of class names do not go with 2 colours",
        ),
    ],
)
def test_names_and_ids_that_count_otherwise(tmp_path, mask, names, classes, ids, words):
    """0 and 255 are two classes where there are two names, and not one with void; names that are not used are told."""
    own.write(tmp_path, mask=mask)
    (tmp_path / "classes.txt").write_text("\n".join(names.split()))
    entries, _, told = own.recipe(tmp_path)
    assert (entries["data"].get("classes"), entries["data"].get("ids")) == (classes, ids)
    assert words in told


def test_masks_that_do_not_go_together_are_named(tmp_path):
    own.write(tmp_path)
    Image.fromarray(np.zeros((48, 64, 3), np.uint8)).save(tmp_path / "masks" / "d.png")
    Image.fromarray(np.zeros((48, 64, 4), np.uint8)).save(tmp_path / "masks" / "f.png")
    colours = r"holds colours, where 6 masks hold ids, such as .*masks/a\.png"
    with pytest.raises(ArgumentError, match=rf"masks/f\.png: a mask must be opaque.*; .*masks/d\.png: {colours}\."):
        own.recipe(tmp_path)
    own.write(tmp_path, mask=lambda d: np.repeat(np.uint8(9) * d[..., None], 3, axis=2))
    shades = np.arange(48 * 64).reshape(48, 64, 1).repeat(3, 2).astype(np.uint8)
    Image.fromarray(shades).save(tmp_path / "masks" / "c.png")
    with pytest.raises(ArgumentError, match=r"the masks hold 256 colours, .*; .*masks/c\.png is the first with which"):
        own.recipe(tmp_path)
    # As of a photograph that lies on its side, and its mask was drawn upright.
    own.write(tmp_path)
    Image.fromarray(np.zeros((64, 48), np.uint8)).save(tmp_path / "masks" / "a.png")
    with pytest.raises(ArgumentError, match=r"a\.png: 64 x 48, its image 48 x 64; perhaps its EXIF turns"):
        own.recipe(tmp_path)
