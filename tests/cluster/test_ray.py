"""`segment --ray` and `evaluate --ray`: two processes of a local Ray cluster give the bytes and scores of one.

Apart from the other tests, for Ray is large: `make ray`.
"""

import contextlib
import io
import os
import shlex
import signal
from pathlib import Path

import bright
import pytest
import ray
import torch
from bright import write_photos
from people import write_people, write_recipe

from atrousops import cli, models
from atrousops.engine import prediction


@pytest.fixture
def local(monkeypatch):
    """One cluster for all that the test does, since its start takes seconds."""
    there = (Path(bright.__file__).parent, Path(cli.__file__).parents[1])
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(map(str, there)))
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
    """Eight photos and one that cannot be read; one of the processes is killed; then the scores of two images."""
    monkeypatch.chdir(tmp_path)
    write_photos(tmp_path / "photos", 8, 40, 48)
    (tmp_path / "photos" / "9.png").write_text("no picture")
    torch.manual_seed(0)
    info = models.Info("enet", {"num_classes": 2}, ("background", "person"), (0.5,) * 3, (0.2,) * 3, 64)
    models.save(models.build("enet", num_classes=2), tmp_path / "weights.safetensors", info)
    worker, mark = prediction._worker, tmp_path / "killed"

    def dying(args):
        """The first process that comes to the sixth photo is killed, in the middle of its piece of work."""
        segmenter = worker(args)
        write = segmenter._write

        def killing(job, *arguments):
            if job.name == "5" and not mark.exists():
                mark.touch()
                os.kill(os.getpid(), signal.SIGKILL)
            return write(job, *arguments)

        segmenter._write = killing
        return segmenter

    monkeypatch.setattr(prediction, "_worker", dying)
    options = "--weights weights.safetensors --device cpu --threads 1"
    for extra in ("-o alone", "-o shared --ray local --workers 2"):
        code, printed = typed(f"segment photos {options} {extra}")
        assert code == 1
        # Ray tells between them of the process that died.
        lines = [line for line in printed.splitlines() if " -> " in line]
        assert sorted(line.split(" -> ")[0] for line in lines) == [f"photos/{i}.png" for i in range(8)]
        assert "8 images, 0.0 megapixels in " in printed
        said = capsys.readouterr().err
        assert said.count("photos/9.png: not an image that Pillow can read") == 1
        assert "8 segmented, 1 failed" in said
    assert mark.exists()
    # As many as there are: nothing is lost, nothing is there twice.
    assert contents(tmp_path / "shared") == contents(tmp_path / "alone")
    assert len(contents(tmp_path / "shared")) == 2 * 8 + 1

    write_people(tmp_path)
    recipe = write_recipe(tmp_path, device="cpu", threads=1)
    judge = f"evaluate {recipe} --weights weights.safetensors --data . --trimap 1 3"
    assert typed(f"{judge} --ray local --workers 2") == typed(judge)
