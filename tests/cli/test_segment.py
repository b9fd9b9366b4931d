"""`atrousops segment` with a tiny network in place of the shipped one."""

import csv
import os
import resource
import subprocess
import sys
from pathlib import Path

import bright
import numpy as np
import pytest
import torch
from bright import Brightness
from PIL import Image

import atrousops as ao
from atrousops import cli
from atrousops.engine import predict


@pytest.fixture(autouse=True)
def network(monkeypatch):
    def stand_in(network, *, crf, **options):
        return bright.predictor(crf=ao.DenseCRF() if crf else None, **options)

    monkeypatch.setattr(predict, "load_predictor", stand_in)


@pytest.fixture
def photo(tmp_path):
    """A 20x10 photograph, whose right quarter is bright."""
    pixels = np.full((10, 20, 3), 40, dtype=np.uint8)
    pixels[:, 15:] = 220
    path = tmp_path / "photo.png"
    Image.fromarray(pixels).save(path)
    return path


def segment(*args, output):
    return cli.main(["segment", *map(str, args), "-o", str(output)])


def table(output):
    with open(output / "classes.csv", newline="") as file:
        return list(csv.DictReader(file))


def test_one_photo(photo, tmp_path, capsys):
    output = tmp_path / "new" / "out"
    assert segment(photo, output=output) == 0
    assert sorted(os.listdir(output)) == ["classes.csv", "photo_mask.png", "photo_overlay.png"]
    mask = np.asarray(Image.open(output / "photo_mask.png"))
    assert mask[:, :15].max() == 0
    assert mask[:, 15:].min() == 1
    assert Image.open(output / "photo_overlay.png").size == (20, 10)
    rows = table(output)
    assert [(r["id"], r["class"], r["pixels"], r["share"]) for r in rows] == [
        ("0", "background", "150", "0.750000"),
        ("1", "bright", "50", "0.250000"),
    ]
    assert rows[1]["picture"] == str(photo)
    color = tuple(int(rows[1][c]) for c in ("red", "green", "blue"))
    assert Image.open(output / "photo_mask.png").convert("RGB").getpixel((19, 0)) == color
    out, err = capsys.readouterr()
    assert "bright 25.0%" in out
    assert err == ""


def test_optimized_on_request(photo, tmp_path, monkeypatch):
    given = []

    def stand_in(name, **options):
        given.append(options.pop("optimized", False))
        return bright.predictor()

    monkeypatch.setattr(predict, "load_predictor", stand_in)
    assert segment(photo, output=tmp_path / "plain") == 0
    assert segment(photo, "--optimize", output=tmp_path / "fast") == 0
    assert given == [False, True]


def test_a_folder_with_a_bad_file(photo, tmp_path, capsys):
    Image.new("L", (1, 1), 255).save(tmp_path / "dot.gif")
    (tmp_path / "bad.jpg").write_text("no picture")
    (tmp_path / "cut.png").write_bytes(photo.read_bytes()[:-40])
    output = tmp_path / "out"
    assert segment(tmp_path, tmp_path / "absent.png", output=output) == 1
    written = [n for n in sorted(os.listdir(output)) if n.endswith("_mask.png")]
    assert written == ["dot_mask.png", "photo_mask.png"]
    assert len(table(output)) == 4
    err = capsys.readouterr().err
    assert f"{tmp_path / 'bad.jpg'}: not an image that Pillow can read" in err
    assert f"{tmp_path / 'cut.png'}: cannot be read: " in err
    assert f"{tmp_path / 'absent.png'}: no such file" in err
    assert "2 segmented, 3 failed" in err
    assert "Traceback" not in err


def test_links_that_lead_nowhere(photo, tmp_path, capsys):
    """Told, counted and in the exit code, as any other file that cannot be read; so is what is no file."""
    (tmp_path / "gone.png").symlink_to("moved/away.png")
    (tmp_path / "round.png").symlink_to("round.png")
    os.mkfifo(tmp_path / "pipe.png")
    assert segment(tmp_path, output=tmp_path / "out") == 1
    assert len(table(tmp_path / "out")) == 2
    err = capsys.readouterr().err
    assert f"{tmp_path / 'gone.png'}: a link to moved/away.png, which is not there" in err
    assert f"{tmp_path / 'round.png'}: " in err
    assert f"{tmp_path / 'pipe.png'}: not a regular file" in err
    assert "1 segmented, 3 failed" in err


def test_names_that_collide(photo, tmp_path):
    Image.open(photo).transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(tmp_path / "photo.bmp")
    output = tmp_path / "out"
    assert segment(tmp_path, photo, output=output) == 0
    assert np.asarray(Image.open(output / "photo_png_mask.png"))[0, 0] == 0
    assert np.asarray(Image.open(output / "photo_bmp_mask.png"))[0, 0] == 1
    assert len(table(output)) == 4, "a file named twice is done once"


def test_output_among_the_inputs(photo, tmp_path):
    before = photo.read_bytes()
    assert segment(tmp_path, output=tmp_path) == 0
    assert segment(tmp_path, output=tmp_path) == 0
    assert photo.read_bytes() == before
    assert sorted(os.listdir(tmp_path)) == ["classes.csv", "photo.png", "photo_mask.png", "photo_overlay.png"]


def test_tiles_give_the_same_mask(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (150, 170, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "noise.png")
    assert segment(tmp_path / "noise.png", output=tmp_path / "whole") == 0
    assert segment(tmp_path / "noise.png", "--tile", 64, "--overlap", 16, output=tmp_path / "tiled") == 0
    masks = [np.asarray(Image.open(tmp_path / name / "noise_mask.png")) for name in ("whole", "tiled")]
    np.testing.assert_array_equal(*masks)


def test_output_folder_that_cannot_be(photo, tmp_path, capsys):
    (tmp_path / "file").touch()
    assert segment(photo, output=tmp_path / "file") == 1
    assert segment(photo, output=tmp_path / "file" / "below") == 1
    err = capsys.readouterr().err.splitlines()
    assert err == [
        f"atrousops: output folder {tmp_path / 'file'}: File exists",
        f"atrousops: output folder {tmp_path / 'file' / 'below'}: Not a directory",
    ]


def test_full_disk(tmp_path, capsys):
    # Dark noise: one class everywhere, so that the mask is small and the overlay, the noise itself, is not.
    noise = np.random.default_rng(0).integers(0, 100, (100, 100, 3), dtype=np.uint8)
    for name in ("a.png", "b.png"):
        Image.fromarray(noise).save(tmp_path / name)
    output = tmp_path / "out"
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    # The operating system refuses to let a file grow beyond 4000 bytes.
    resource.setrlimit(resource.RLIMIT_FSIZE, (4000, limits[1]))
    try:
        assert segment(tmp_path, output=output) == 1
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert sorted(os.listdir(output)) == ["classes.csv"], "nothing half written is left, no mask without its overlay"
    assert capsys.readouterr().err == f"atrousops: cannot write {output / 'a_overlay.png'}: File too large\n"


def test_interrupted(photo, tmp_path, monkeypatch, capsys):
    def interrupt(self, x):
        raise KeyboardInterrupt

    monkeypatch.setattr(Brightness, "forward", interrupt)
    assert segment(photo, output=tmp_path / "out") == 130
    assert capsys.readouterr().err == "atrousops: interrupted\n"
    assert os.listdir(tmp_path / "out") == ["classes.csv"]


def test_a_fault_of_ours_is_one_line_unless_debug(photo, tmp_path, monkeypatch, capsys):
    def fail(self, x):
        raise KeyError("inner")

    monkeypatch.setattr(Brightness, "forward", fail)
    assert segment(photo, output=tmp_path / "out") == 1
    assert capsys.readouterr().err == "atrousops: KeyError: 'inner' (--debug shows the traceback)\n"
    assert segment(photo, "--debug", output=tmp_path / "out") == 1
    assert "Traceback (most recent call last)" in capsys.readouterr().err


def test_too_large_for_memory_is_one_photos_failure(photo, tmp_path, monkeypatch, capsys):
    def exhaust(self, x):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes")

    monkeypatch.setattr(Brightness, "forward", exhaust)
    assert segment(photo, output=tmp_path / "out") == 1
    assert "too large for the memory of this machine" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ([], "the following arguments are required: COMMAND"),
        (["segment"], "the following arguments are required: PHOTO"),
        (["segment", "a.png", "--tile", "8"], "argument --tile: must be at least 32; got 8"),
        (["segment", "a.png", "--tile", "x"], "argument --tile: must be a whole number; got 'x'"),
        (["segment", "a.png", "--overlap", "-1"], "argument --overlap: must be at least 0"),
        (["segment", "a.png", "--threads", "0"], "argument --threads: must be at least 1"),
        (["segment", "a.png", "--backend", "abacus"], "argument --backend: invalid choice"),
        (["fly"], "invalid choice: 'fly'"),
        (["bench", "--budget", "-1"], "must be a number of seconds"),
        (["bench", "--repeats", "0"], "must be at least 1"),
        (["bench", "--list", "--plot", "a.json"], "not allowed with argument"),
    ],
)
def test_wrong_usage(args, message, capsys):
    with pytest.raises(SystemExit) as exit:
        cli.main(args)
    assert exit.value.code == 2
    assert message in capsys.readouterr().err


def test_overlap_as_large_as_the_tile(photo, tmp_path, capsys):
    assert segment(photo, "--tile", 64, "--overlap", 64, output=tmp_path / "out") == 1
    assert "overlap must be from 0 to 32" in capsys.readouterr().err


def test_threads_and_backend(photo, tmp_path, monkeypatch):
    from atrousops.dispatch import backends

    seen = []
    monkeypatch.setattr(Brightness, "forward", lambda self, x: seen.append(backends.forced()) or {"out": x[:, :2]})
    threads = torch.get_num_threads()
    try:
        assert segment(photo, "--backend", "reference", "--threads", 1, output=tmp_path / "out") == 0
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(threads)
    assert seen == ["reference"]
    assert backends.forced() is None


def test_runs_as_a_module():
    done = subprocess.run(
        [sys.executable, "-m", "atrousops", "--version"],
        capture_output=True, text=True, cwd=Path(cli.__file__).parents[1], check=True,
    )  # fmt: skip
    assert done.stdout.startswith("atrousops 0.")
