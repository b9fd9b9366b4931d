"""`segment --ray` and `evaluate --ray`: two processes of a local Ray cluster give the bytes and scores of one."""

import contextlib
import io
import os
import shlex
import signal

import bright
import numpy as np
import pytest
import ray
import torch
from bright import write_photos
from people import write_people, write_recipe
from PIL import Image

from atrousops import cli, models
from atrousops.engine import cluster
from atrousops.engine.segment import Segmented, Segmenter, plan


@pytest.fixture
def local():
    """One cluster for all that the test does, since its start takes seconds."""
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


def contents(folder):
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def typed(line):
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        code = cli.main(shlex.split(line))
    return code, printed.getvalue()


def test_two_processes_are_one(local, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    files = [path.relative_to(tmp_path) for path in write_photos(tmp_path / "photos", 8)]
    mark, folder = tmp_path / "killed", tmp_path / "two"

    def dying():
        """The first process that comes to the fifth photo is killed, in the middle of a piece of work."""
        segmenter = Segmenter(bright.predictor(), folder)
        write = segmenter._write

        def killing(job, *arguments):
            if job.name == "5" and not mark.exists():
                mark.touch()
                os.kill(os.getpid(), signal.SIGKILL)
            return write(job, *arguments)

        segmenter._write = killing
        return segmenter

    jobs = plan(files, folder)
    found = list(cluster.label(dying, jobs, "local", workers=2))
    assert mark.exists()
    assert all(isinstance(item, Segmented) for item in found)
    assert sorted(item.picture for item in found) == files, "nothing is lost, nothing is there twice"
    whole = list(Segmenter(bright.predictor(), tmp_path / "one").run(plan(files, tmp_path / "one")))
    assert contents(tmp_path / "two") == contents(tmp_path / "one")
    assert {item.picture: item.pixels for item in found} == {item.picture: item.pixels for item in whole}

    # The commands: photos one of which cannot be read, a folder that cannot be written to, and scores.
    torch.manual_seed(0)
    info = models.Info("enet", {"num_classes": 2}, ("background", "person"), (0.5,) * 3, (0.2,) * 3, 64)
    models.save(models.build("enet", num_classes=2), tmp_path / "weights.safetensors", info)
    (tmp_path / "photos" / "9.png").write_text("no picture")
    options = "--weights weights.safetensors --device cpu --threads 1"
    for extra in ("-o alone", "-o shared --ray local --workers 2"):
        code, printed = typed(f"segment photos {options} {extra}")
        assert code == 1
        assert "8 images, 0.0 megapixels in " in printed
        assert "photos/9.png: not an image that Pillow can read" in capsys.readouterr().err
    assert contents(tmp_path / "shared") == contents(tmp_path / "alone")
    assert len(contents(tmp_path / "shared")) == 2 * 8 + 1
    write_people(tmp_path)
    recipe = write_recipe(tmp_path, device="cpu", threads=1)
    judge = f"evaluate {recipe} --weights weights.safetensors --data . --trimap 1 3"
    assert typed(f"{judge} --ray local --workers 2") == typed(judge)


def test_without_ray(tmp_path, monkeypatch, capsys):
    Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(tmp_path / "a.png")
    monkeypatch.setitem(__import__("sys").modules, "ray", None)
    assert cli.main(["segment", str(tmp_path / "a.png"), "--ray", "local", "-o", str(tmp_path / "out")]) == 1
    assert capsys.readouterr().err == "atrousops: --ray needs the package ray: pip install 'atrousops[ray]'\n"
