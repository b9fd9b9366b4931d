"""`atrousops segment` on many files: batches, reading ahead, what a killed run leaves, and going on from there."""

import contextlib
import csv
import json
import os
import re
import signal
import subprocess
import sys
import threading
import warnings
from pathlib import Path
from types import SimpleNamespace

import bright
import numpy as np
import pytest
import torch
from bright import Brightness, write_photos
from PIL import Image

from atrousops import cli
from atrousops.common.checks import ArgumentError
from atrousops.common.files import OutputError, alone
from atrousops.data import decode
from atrousops.engine import distributed, pictures, predict, prediction
from atrousops.engine import segment as segment_module
from atrousops.engine.segment import Segmented, Segmenter, plan


@pytest.fixture(autouse=True)
def network(monkeypatch):
    monkeypatch.setattr(
        predict, "load_predictor", lambda network, **options: bright.predictor(**options | {"crf": None})
    )


@pytest.fixture
def seen(monkeypatch):
    """The shapes of what the network was given."""
    shapes = []
    whole = Brightness.forward
    monkeypatch.setattr(Brightness, "forward", lambda self, x: shapes.append(tuple(x.shape)) or whole(self, x))
    return shapes


def segment(*args, output):
    return cli.main(["segment", *map(str, args), "-o", str(output)])


def contents(folder):
    return {file.name: file.read_bytes() for file in sorted(folder.iterdir())}


def rows(output):
    with open(output / "classes.csv", newline="") as file:
        return list(csv.DictReader(file))


def test_two_runs_into_one_folder(tmp_path, capsys):
    write_photos(tmp_path / "photos", 1)
    with alone(tmp_path / "out", "segment", ""):
        assert segment(tmp_path / "photos", output=tmp_path / "out") == 1
    said = "segment: output must be a folder of this process alone; got"
    assert said in capsys.readouterr().err
    assert contents(tmp_path / "out") == {}
    assert segment(tmp_path / "photos", output=tmp_path / "out") == 0


def test_batches_are_of_one_size_and_give_the_same_bytes(tmp_path, seen):
    photos = tmp_path / "photos"
    write_photos(photos, 5)
    wide = write_photos(photos / "wide", 3, width=50)
    assert segment(photos, *wide, output=tmp_path / "one") == 0
    assert {shape[0] for shape in seen} == {1}
    seen.clear()
    assert segment(photos, *wide, "--batch", 2, "--readers", 3, output=tmp_path / "two") == 0
    assert sorted(seen) == [(1, 3, 32, 32), (1, 3, 32, 64), (2, 3, 32, 32), (2, 3, 32, 32), (2, 3, 32, 64)]
    one, two = contents(tmp_path / "one"), contents(tmp_path / "two")
    assert len(one) == 2 * 8 + 1
    assert one == {name: data.replace(b"/two/", b"/one/") for name, data in two.items()}


def test_pictures_that_wait_for_others_of_their_size_are_few(tmp_path):
    """Of nine sizes, a batch of two each: no more than eight pictures are ever held."""
    files = [write_photos(tmp_path / str(width), 1, width=width)[0] for width in range(1, 10)]
    segmenter = Segmenter(bright.predictor(), tmp_path / "out", batch=2, readers=1)
    held = []
    read = list(segmenter._read_ahead(plan(files, tmp_path / "out")))

    def counted():
        for number, item in enumerate(read):
            held.append(number - len(given))
            yield item

    given = []
    for batch in segmenter._batches(counted()):
        given += batch
    assert len(given) == 9
    assert max(held) < 8


def test_out_of_memory_in_a_batch_is_tried_one_by_one(tmp_path, monkeypatch, capsys):
    write_photos(tmp_path / "photos", 3)
    whole = Brightness.forward

    def forward(self, x):
        if len(x) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
        return whole(self, x)

    monkeypatch.setattr(Brightness, "forward", forward)
    assert segment(tmp_path / "photos", "--batch", 3, output=tmp_path / "out") == 0
    assert len(rows(tmp_path / "out")) == 6
    assert capsys.readouterr().err == ""


def test_a_disk_that_is_full_in_the_middle_of_a_batch(tmp_path, monkeypatch):
    """The list holds what was written before."""
    write_photos(tmp_path / "photos", 3)
    write, written = pictures.write_png, []

    def full(path, *arguments):
        written.append(path)
        if len(written) == 3:
            raise OutputError(f"cannot write {path}: No space left on device")
        write(path, *arguments)

    monkeypatch.setattr(pictures, "write_png", full)
    assert segment(tmp_path / "photos", "--batch", 3, output=tmp_path / "out") == 1
    assert [Path(row["picture"]).name for row in rows(tmp_path / "out")] == ["0.png", "0.png"]


def test_throughput(tmp_path, capsys):
    write_photos(tmp_path / "photos", 3, height=500, width=1000)
    assert segment(tmp_path / "photos", output=tmp_path / "out") == 0
    last = capsys.readouterr().out.splitlines()[-1]
    found = re.fullmatch(r"3 images, 1\.5 megapixels in (\S+) s: (\S+) images and (\S+) megapixels a second", last)
    assert found, last


def test_throughput_by_hand(monkeypatch):
    """Two images of 3 megapixels in four seconds; and one of 400 in a quarter of an hour."""
    monkeypatch.setattr(prediction, "time", SimpleNamespace(perf_counter=lambda: 1000.0))

    def told(start, *images):
        path = Path("a")
        return prediction._throughput([Segmented(path, path, path, pixels, 0.0) for pixels in images], start)

    three = (1_000_000, 2_000_000)
    assert told(996.0, three, three) == "2 images, 6.0 megapixels in 4.0 s: 0.5 images and 1.5 megapixels a second"
    wanted = "1 images, 400.0 megapixels in 900.0 s: 0.0011 images and 0.44 megapixels a second"
    assert told(100.0, (400_000_000, 0)) == wanted
    assert "50.0 images and 150.0 megapixels a second" in told(999.96, three, three)


def test_devices(tmp_path, capsys, monkeypatch):
    (photo,) = write_photos(tmp_path, 1)
    taken = []
    stand_in = predict.load_predictor
    monkeypatch.setattr(
        predict, "load_predictor", lambda name, **options: taken.append(options["device"]) or stand_in(name, **options)
    )
    assert segment(photo, "--device", "cpu", output=tmp_path / "out") == 0
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert segment(photo, output=tmp_path / "out") == 0
    for name, rule in {
        "cuda:0": "cpu or auto, as PyTorch sees no GPU here; got cuda:0.",
        "gpu": "auto, or a device that PyTorch knows, such as cpu, cuda or cuda:1; got 'gpu'.",
    }.items():
        assert segment(photo, "--device", name, output=tmp_path / "out") == 1
        assert f"atrousops: segment: --device must be {rule}\n" in capsys.readouterr().err
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    # A recipe's.
    with pytest.raises(
        ArgumentError, match=r"^config: device must be one of the 2 GPUs here, from cuda:0 on; got cuda:2"
    ):
        distributed.pick_device("cuda:2")
    assert distributed.pick_device("cuda:1") == torch.device("cuda:1")
    assert taken == [torch.device("cpu")] * 2
    # "meta" stands for a GPU: a device that is not the CPU.
    assert bright.predictor(device="meta").normalise(np.zeros((4, 4, 3), np.uint8)).device.type == "meta"


def test_pages_are_told(tmp_path, capsys):
    first, second = (Image.new("RGB", (4, 3), colour) for colour in ("black", "white"))
    first.save(tmp_path / "a.tif", save_all=True, append_images=[second])
    assert segment(tmp_path / "a.tif", output=tmp_path / "out") == 0
    assert f"{tmp_path / 'a.tif'}, page 1 of 2 -> " in capsys.readouterr().out
    assert segment(tmp_path / "a.tif", "--page", 2, output=tmp_path / "out") == 0
    assert ", page 2 of 2 -> " in capsys.readouterr().out
    assert [row["pixels"] for row in rows(tmp_path / "out")] == ["0", "12"]
    assert segment(tmp_path / "a.tif", "--page", 3, output=tmp_path / "out") == 1
    assert "a.tif: page 3 was asked for, and there are 2" in capsys.readouterr().err


def test_largest(tmp_path, monkeypatch, capsys):
    (photo,) = write_photos(tmp_path, 1)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 50)
    assert segment(photo, output=tmp_path / "out") == 1
    assert "more than the 100 pixels" in capsys.readouterr().err
    assert segment(photo, "--largest", 0.0002, output=tmp_path / "out") == 0


def test_resume_does_what_is_missing(tmp_path, seen, capsys):
    files = write_photos(tmp_path / "photos", 4)
    output = tmp_path / "out"
    assert segment(*files, output=output) == 0
    whole = contents(output)
    (output / "1_mask.png").unlink()
    cut = (output / "2_mask.png").read_bytes()
    (output / "2_mask.png").write_bytes(cut[:20])
    (output / "classes.csv").unlink()
    seen.clear()
    assert segment(*files, "--resume", output=output) == 0
    assert len(seen) == 2
    assert "2 done before, 2 to do" in capsys.readouterr().out
    assert contents(output) == whole
    # Another network, or another option: what there is counts for nothing.
    seen.clear()
    assert segment(*files, "--resume", "--flip", output=output) == 0
    assert len(seen) == 2 * 4
    # A picture that is newer than its mask.
    seen.clear()
    later = (output / "3_mask.png").stat().st_mtime + 10
    os.utime(files[3], (later, later))
    assert segment(*files, "--resume", "--flip", output=output) == 0
    assert len(seen) == 2


def test_what_decides_the_labels_is_in_the_fingerprint():
    one = bright.predictor()
    assert one.fingerprint() == bright.predictor(device="cpu").fingerprint()
    options = ({"tile": 512}, {"overlap": 32}, {"size": 5}, {"flip": True}, {"scales": (1.0, 2.0)}, {"page": 2})
    others = [bright.predictor(**each) for each in options]
    others.append(bright.predictor(crf=torch.nn.Identity()))
    others.append(predict.Predictor(Brightness(), one.classes, (0.4,) * 3, (1,) * 3))
    weighted = [predict.Predictor(torch.nn.Conv2d(3, 2, 1), one.classes, (0.5,) * 3, (1,) * 3) for _ in range(2)]
    assert len({each.fingerprint() for each in (one, *others, *weighted)}) == 2 + len(options) + 1 + 2


def test_sigterm_leaves_a_whole_list(tmp_path, monkeypatch):
    write_photos(tmp_path / "photos", 4)
    whole, calls = Brightness.forward, []

    def forward(self, x):
        calls.append(x)
        if len(calls) == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return whole(self, x)

    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(Brightness, "forward", forward)
    with pytest.raises(SystemExit) as left:
        segment(tmp_path / "photos", output=tmp_path / "out")
    assert left.value.code == 143
    assert signal.getsignal(signal.SIGTERM) == before
    assert [Path(row["picture"]).name for row in rows(tmp_path / "out")] == ["0.png", "0.png", "1.png", "1.png"]
    assert segment(tmp_path / "photos", "--resume", output=tmp_path / "out") == 0
    assert len(rows(tmp_path / "out")) == 8
    assert len(calls) == 3 + 2


KILLED = """
import os, signal, sys
import bright
from atrousops import cli
from atrousops.engine import pictures, predict
predict.load_predictor = lambda network, **options: bright.predictor(**options | {"crf": None})
mask_image, calls = pictures.mask_image, []
def killing(*arguments):
    calls.append(arguments)
    if len(calls) == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return mask_image(*arguments)
pictures.mask_image = killing
cli.main(["segment", *sys.argv[1:]])
"""


def test_killed_in_the_middle(tmp_path, seen):
    """Between the overlay and the mask of the third of five: two stay, three are done, the bytes are the same."""
    files = write_photos(tmp_path / "photos", 5)
    output, whole = tmp_path / "out", tmp_path / "whole"
    there = [str(Path(bright.__file__).parent), str(Path(cli.__file__).parents[1])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(there)}
    done = subprocess.run([sys.executable, "-c", KILLED, *map(str, files), "-o", str(output)], env=environment)
    assert done.returncode == -signal.SIGKILL
    assert len(list(output.glob("[0-9]_mask.png"))) == 2
    assert len(list(output.glob("[0-9]_overlay.png"))) == 3
    assert {row["picture"] for row in rows(output)} <= set(map(str, files[:2]))
    before = (output / "0_mask.png").stat().st_ino
    seen.clear()
    assert segment(*files, "--resume", output=output) == 0
    assert len(seen) == 3
    assert (output / "0_mask.png").stat().st_ino == before, "the file was not written again"
    assert segment(*files, output=whole) == 0
    assert contents(output) == contents(whole)
    assert [row["picture"] for row in rows(output)] == [str(file) for file in files for _ in range(2)]


def test_notes_of_masks(tmp_path):
    files = write_photos(tmp_path, 1)
    assert segment(*files, output=tmp_path / "out") == 0
    note = json.loads(pictures.read_note(tmp_path / "out" / "0_mask.png"))
    assert sum(note["pixels"]) == 200
    assert pictures.read_note(files[0]) is None
    assert pictures.read_note(tmp_path / "absent.png") is None
    assert decode.read_mask(tmp_path / "out" / "0_mask.png").sum() == note["pixels"][1]


def test_pictures_of_a_batch_have_one_shape():
    pair = [np.zeros((4, width, 3), np.uint8) for width in (4, 5)]
    with pytest.raises(ArgumentError, match=r"pictures must be at least one, all of one shape; got \[\(4, 4, 3\)"):
        bright.predictor().batch(pair)


def test_without_ray(tmp_path, monkeypatch, capsys):
    (photo,) = write_photos(tmp_path, 1)
    monkeypatch.setitem(sys.modules, "ray", None)
    assert segment(photo, "--ray", "local", output=tmp_path / "out") == 1
    assert capsys.readouterr().err == "atrousops: --ray needs the package ray: pip install 'atrousops[ray]'\n"


def test_ray_under_torchrun_raises(tmp_path, monkeypatch, capsys):
    (photo,) = write_photos(tmp_path, 1)

    @contextlib.contextmanager
    def two(*_):
        yield distributed.Processes(1, 2)

    monkeypatch.setattr(distributed, "join", two)
    assert segment(photo, "--ray", "local", output=tmp_path / "out") == 1
    assert "--ray must stand alone" in capsys.readouterr().err


def test_readers_leave_the_filters_of_warnings(tmp_path, monkeypatch):
    """Two threads set the filters, and restore them in the order in which they came: the second, what the first set."""
    jobs = plan(write_photos(tmp_path / "photos", 2), tmp_path / "out")
    read, both, first_left = segment_module.read_picture, threading.Barrier(2), threading.Event()
    lock, entered = threading.Lock(), []

    def overlapping(path, pixels):
        with contextlib.ExitStack() as filters:
            with lock:
                filters.enter_context(warnings.catch_warnings())
                warnings.simplefilter("ignore")
                entered.append(path)
            both.wait(60)
            if path == entered[1]:
                assert first_left.wait(60)
        first_left.set()
        return read(path, pixels)

    monkeypatch.setattr(segment_module, "read_picture", overlapping)
    before = list(warnings.filters)
    assert len(list(Segmenter(bright.predictor(), tmp_path / "out").run(jobs))) == 2
    assert warnings.filters == before


def test_nothing_done_has_no_throughput(tmp_path, capsys):
    (tmp_path / "a.png").write_bytes(b"nothing")
    assert cli.main(["segment", str(tmp_path / "a.png"), "-o", str(tmp_path / "out")]) == 1
    assert "megapixels" not in capsys.readouterr().out
