"""`segment` and `evaluate` on URLs, by fsspec's store in the memory: what they say of the same files on the disk."""

import csv
import io
import os
import shlex
import sys
import zipfile

import bright
import fsspec
import numpy as np
import own
import pytest
import tifffile
import torch
from bright import write_photos
from fsspec.implementations.memory import MemoryFileSystem
from people import write_people, write_recipe
from PIL import Image

from atrousops import cli, models
from atrousops.common.places import Remote, place
from atrousops.engine import predict


@pytest.fixture
def store():
    yield fsspec.filesystem("memory")
    MemoryFileSystem.store.clear()
    MemoryFileSystem.pseudo_dirs[:] = [""]


@pytest.fixture
def network(monkeypatch):
    monkeypatch.setattr(predict, "load_predictor", lambda network, crf, **options: bright.predictor(**options))


def typed(line):
    return cli.main(shlex.split(line))


def names(store, folder):
    return sorted(path.rpartition("/")[2] for path in store.ls(folder, detail=False))


def pixels(data):
    return np.asarray(Image.open(io.BytesIO(data)))


def test_pictures(store, network, tmp_path, capsys):
    """A folder and a single file of the store, into the store; then those that are done are left out."""
    write_photos(tmp_path / "photos", 3)
    store.put(str(tmp_path / "photos"), "/there", recursive=True)
    store.pipe({"/there/text.txt": b"", "/there/.0.png": b"", "/single/bad.png": b"no picture"})
    inputs = "memory://there memory://single/bad.png memory://single/none.png"
    assert typed(f"segment {inputs} -o memory://found/here") == 1
    err = capsys.readouterr().err
    assert "memory://single/bad.png: not an image that Pillow can read" in err
    assert "memory://single/none.png: no such file" in err
    assert "3 segmented, 2 failed" in err

    assert typed(f"segment {tmp_path}/photos -o {tmp_path}/found") == 0
    results = [f"{i}_{what}.png" for i in range(3) for what in ("mask", "overlay")]
    assert names(store, "/found/here") == [*results, "classes.csv"] == sorted(os.listdir(tmp_path / "found"))
    for name in results:
        wanted = pixels((tmp_path / "found" / name).read_bytes())
        np.testing.assert_array_equal(pixels(store.cat(f"/found/here/{name}")), wanted)
    rows = list(csv.DictReader(io.StringIO(store.cat("/found/here/classes.csv").decode())))
    assert [row["picture"] for row in rows] == [f"memory://there/{i}.png" for i in range(3) for _ in range(2)]

    assert typed("segment memory://there -o memory://found/here --resume") == 0
    assert "3 done before, 0 to do" in capsys.readouterr().out
    # Later than its mask.
    store.pipe("/there/1.png", store.cat("/there/1.png"))
    assert typed("segment memory://there -o memory://found/here --resume") == 0
    assert "2 done before, 1 to do" in capsys.readouterr().out


def test_large_pictures(store, network, tmp_path, capsys):
    """A TIFF whose rows are read and written a few at a time."""
    picture = np.random.default_rng(0).integers(0, 256, (300, 70, 3), dtype=np.uint8)
    tifffile.imwrite(tmp_path / "slide.tif", picture, tile=(64, 64), compression="zlib", photometric="rgb")
    store.put(str(tmp_path / "slide.tif"), "/slide.tif")
    tiles = "--size 0 --tile 64 --stream-above 0.01"
    assert typed(f"segment {tmp_path}/slide.tif {tiles} -o {tmp_path}/found") == 0
    assert typed(f"segment memory://slide.tif {tiles} -o memory://found") == 0
    assert names(store, "/found") == ["classes.csv", "slide_mask.tif", "slide_overlay.tif"]
    for name in ("slide_mask.tif", "slide_overlay.tif"):
        got = tifffile.imread(io.BytesIO(store.cat(f"/found/{name}")))
        np.testing.assert_array_equal(got, tifffile.imread(tmp_path / "found" / name))
    capsys.readouterr()
    assert typed(f"segment memory://slide.tif {tiles} -o memory://found --resume") == 0
    assert "1 done before, 0 to do" in capsys.readouterr().out


# The archive, and the folder that it unpacks to.
@pytest.mark.parametrize("unpacked", [False, True])
def test_scores(unpacked, store, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write_people(tmp_path)
    torch.manual_seed(0)
    info = models.Info("enet", {"num_classes": 2}, ("background", "person"), (0.5,) * 3, (0.2,) * 3, 64)
    models.save(models.build("enet", num_classes=2), tmp_path / "weights.safetensors", info)
    layout = {"images": "JPEGImages", "masks": "SegmentationClass", "classes": ["background", "person"], "void": 255}
    ids = {0: 0, 9: 0, 15: 1}
    data = {"name": "folder", "lists": "{split}.txt", "ids": ids, **layout} if unpacked else {"name": "voc_person"}
    recipe = write_recipe(tmp_path, device="cpu", threads=1, data=data)
    assert typed(f"evaluate {recipe} --weights weights.safetensors --data .{'/voc_person.zip' * unpacked}") == 0
    wanted = capsys.readouterr().out
    if unpacked:
        with zipfile.ZipFile("voc_person.zip") as archive:
            store.pipe({f"/data/{name}": archive.read(name) for name in archive.namelist()})
    else:
        store.put("voc_person.zip", "/data/voc_person.zip")
    assert typed(f"evaluate {recipe} --weights weights.safetensors --data memory://data") == 0
    assert capsys.readouterr().out == wanted
    assert "person" in wanted


def test_a_recipe(store, tmp_path, capsys):
    own.write(tmp_path / "cells", names=("a", "b"))
    store.put(str(tmp_path / "cells"), "/cells", recursive=True)
    texts = []
    for root in (str(tmp_path / "cells"), "memory://cells"):
        assert typed(f"recipe --data {root} --model msd") == 0
        texts.append(capsys.readouterr().out.replace(root, "cells"))
    assert texts[0] == texts[1]


def test_what_cannot_be_reached(store, network, tmp_path, monkeypatch, capsys):
    recipe = write_recipe(tmp_path)
    lines = {
        "PHOTO": "segment {url} -o out",
        "--output": "segment photo.png -o {url}",
        "--data": "recipe --data {url} --model msd",
        "--data or data.root": f"evaluate {recipe} --weights unet_nuclei --data {{url}}",
    }
    monkeypatch.chdir(tmp_path)
    fsspec.register_implementation("atrous-absent", "no_such_package.Files", errtxt="Install no_such_package")
    for argument, line in lines.items():
        assert typed(line.format(url="atrous-absent://there/a.png")) == 1
        assert f"{argument} atrous-absent://there/a.png: Install no_such_package" in capsys.readouterr().err
        assert typed(line.format(url="nowhere://there/a.png")) == 1
        assert f"atrousops: {argument} must be of a store that fsspec knows" in capsys.readouterr().err
        assert typed(line.format(url="zip://a.png::memory://a.zip")) == 1
        assert f"{argument} must be one URL; got the chain zip://" in capsys.readouterr().err
        with monkeypatch.context() as without:
            without.setitem(sys.modules, "fsspec", None)
            assert typed(line.format(url="s3://there/a.png")) == 1
        assert f"{argument} s3://there/a.png needs the package fsspec: pip install fsspec" in capsys.readouterr().err


def test_names():
    there = Remote("s3://bucket/a.b/photo.tar.png")
    assert (there.name, there.stem, there.suffix) == ("photo.tar.png", "photo.tar", ".png")
    assert str(there.parent) == "s3://bucket/a.b"
    assert [str(Remote(url) / "c") for url in ("s3://b", "s3://b/", "memory://")] == [
        "s3://b/c",
        "s3://b/c",
        "memory://c",
    ]
    assert str(Remote("memory://a").parent) == "memory://"
    # A folder of this machine whose name has a colon.
    assert str(place("a:b/c")) == "a:b/c"
