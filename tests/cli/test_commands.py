"""The other commands, and weights from a file."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from people import write_recipe
from PIL import Image

from atrousops import cli, models
from atrousops.engine import evaluate, train, tune_crf

PACKAGE = Path(cli.__file__).parents[1]


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A network with fresh weights for three classes, as training would save it."""
    path = tmp_path_factory.mktemp("weights") / "fresh.safetensors"
    torch.manual_seed(0)
    name = "deeplabv3plus_efficientnet_lite2"
    network = models.build(name, num_classes=3)
    info = models.Info(name, {"num_classes": 3}, ("background", "cat", "dog"), (0.5,) * 3, (0.2,) * 3, 64)
    models.save(network, path, info)
    return path


@pytest.fixture
def photo(tmp_path):
    path = tmp_path / "photo.png"
    Image.effect_mandelbrot((90, 50), (-2, -1, 1, 1), 100).save(path)
    return path


def run(*args):
    return cli.main([str(arg) for arg in args])


@pytest.mark.parametrize("options", [(), ("--crf",), ("--size", 0, "--tile", 64)])
def test_weights_from_a_file(weights, photo, tmp_path, options):
    assert run("segment", photo, "--weights", weights, "-o", tmp_path / "out", *options) == 0
    lines = (tmp_path / "out" / "classes.csv").read_text().splitlines()
    assert [line.split(",")[3] for line in lines[1:]] == ["background", "cat", "dog"]
    assert Image.open(tmp_path / "out" / "photo_mask.png").size == (90, 50)


def test_bad_weights(weights, photo, tmp_path, capsys):
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(weights.read_bytes()[:1000])
    for name in (cut, tmp_path / "absent.safetensors", photo):
        assert run("segment", photo, "--weights", name, "-o", tmp_path / "out") == 1
        (line,) = capsys.readouterr().err.splitlines()
        assert str(name) in line
    assert run("segment", photo, "--model", "abacus", "-o", tmp_path / "out") == 1
    assert "abacus" in capsys.readouterr().err


def test_info(capsys):
    assert run("info") == 0
    assert "torch" in capsys.readouterr().out
    assert run("info", "--json") == 0
    assert json.loads(capsys.readouterr().out)["versions"]["torch"] == torch.__version__


def test_train_passes_its_options_on(tmp_path, monkeypatch, capsys):
    def main(config, **options):
        assert config == Path("recipe.yaml")
        assert options == {
            "output": tmp_path, "data_root": "data", "resume": True, "overrides": ["schedule.steps=2", "batch=1"],
        }  # fmt: skip
        return tmp_path / "weights.safetensors"

    monkeypatch.setattr(train, "main", main)
    sets = ("--set", "schedule.steps=2", "--set", "batch=1")
    assert run("train", "recipe.yaml", "--output", tmp_path, "--resume", "--data", "data", *sets) == 0
    assert capsys.readouterr().out == f"-> {tmp_path / 'weights.safetensors'}\n"


def test_evaluate_passes_its_options_on(weights, monkeypatch, capsys):
    seen = {}
    monkeypatch.setattr(evaluate, "main", lambda config, weights, **options: seen.update(options, weights=weights))
    monkeypatch.setattr(evaluate, "report", lambda scores: "scores")
    extra = ("--split", "test", "--trimap", 1, 3)
    assert run("evaluate", "recipe.yaml", "--weights", weights, "--crf", "--scales", "0.5", "1", "--flip", *extra) == 0
    assert seen == {
        "weights": str(weights), "data_root": None, "overrides": (), "scales": [0.5, 1.0], "flip": True,
        "split": "test", "ap": False, "widths": (1, 3), "crf": True, "published": None,
    }  # fmt: skip
    assert capsys.readouterr().out == "scores\n"


def test_evaluate_with_a_tuned_crf(weights, monkeypatch, capsys):
    seen = {}
    tuned = tune_crf.Tuned({"bilateral_sxy": 20.0}, 0.5, 0.25, 0.75, 4)
    monkeypatch.setattr(tune_crf, "main", lambda config, weights, **options: seen.update(tuning=options) or tuned)
    monkeypatch.setattr(evaluate, "main", lambda config, weights, **options: seen.update(crf=options["crf"]))
    monkeypatch.setattr(evaluate, "report", lambda scores: "scores")
    assert run("evaluate", "recipe.yaml", "--weights", weights, "--tune-crf", 4, "--split", "test") == 0
    assert seen["tuning"] == {"images": 4, "judged": "test", "data_root": None, "overrides": (), "published": None}
    assert seen["crf"].bilateral_sxy == (20.0, 20.0)
    said = "DenseCRF(bilateral_sxy=20): on 4 images mean IoU without 50.00 %, by default 25.00 %, so 75.00 %"
    assert capsys.readouterr().out == f"{said}\nscores\n"


@pytest.mark.parametrize("command", ["train", "evaluate"])
def test_bad_recipe(tmp_path, weights, command, capsys):
    options = ("--weights", weights) if command == "evaluate" else ()
    recipe = tmp_path / "recipe.yaml"
    for text, message in {None: str(recipe), "model: [": "YAML", "speed: 3": "'speed'"}.items():
        if text is not None:
            recipe.write_text(text)
        assert run(command, recipe, *options) == 1
        (line,) = capsys.readouterr().err.splitlines()
        assert message in line


def test_a_reader_that_leaves(weights):
    """`atrousops info | head -1` ends without a word."""
    code = "import sys; from atrousops.cli import main; sys.exit(main(['info']))"
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=PACKAGE
    ) as process:
        process.stdout.close()
        assert process.stderr.read() == ""
    assert process.returncode == 1


@pytest.mark.parametrize(("folder", "mode", "said"), [
    ("SegmentationClass", "RGB", "its mode is RGB; convert it to ids first"),
    ("SegmentationClass", "cut", "cannot be read: "),
    ("JPEGImages", "cut", "cannot be read: "),
])  # fmt: skip
def test_a_file_that_will_not_do_is_named(tmp_path, folder, mode, said, capsys):
    """Training and evaluation, in one line, without a traceback."""
    name = "a.png" if folder == "SegmentationClass" else "a.jpg"
    for file in ("SegmentationClass/a.png", "JPEGImages/a.jpg"):
        path = tmp_path / "voc_person.zip" / file
        path.parent.mkdir(parents=True)
        pictures = Image.effect_noise((48, 40), 50)
        pictures.point(lambda v: 15 * (v > 127)).save(path) if file.endswith("png") else pictures.save(path)
    for split in ("train", "val"):
        (tmp_path / "voc_person.zip" / f"{split}.txt").write_text("a")
    bad = tmp_path / "voc_person.zip" / folder / name
    Image.open(bad).convert("RGB").save(bad) if mode == "RGB" else bad.write_bytes(bad.read_bytes()[:-200])
    file = tmp_path / "fresh.safetensors"
    info = models.Info("enet", {"num_classes": 2}, ("background", "person"), (0.5,) * 3, (0.2,) * 3, 64)
    models.save(models.build("enet", num_classes=2), file, info)
    recipe = write_recipe(tmp_path)
    for command in (("train", recipe, "--output", tmp_path / "run"), ("evaluate", recipe, "--weights", file)):
        assert run(*command, "--data", tmp_path) == 1
        line = capsys.readouterr().err.splitlines()[-1]
        assert f"atrousops: {bad}: " in line
        assert said in line
