"""What each command says of wrong input: argument, rule, what came, what would do; nothing is lost."""

import shutil
from pathlib import Path

import numpy as np
import own
import pytest
import torch
from PIL import Image

from atrousops import cli, models

RECIPE = """\
model: {name: msd, arguments: {num_classes: 2, depth: 2}}
data: {name: folder, root: data, images: images, masks: masks, fractions: {val: 0.5}, classes: [ground, disc]}
augmentation: {crop: 32, size: 64}
schedule: {steps: 1}
batch: 2
"""
W = "--weights w.safetensors"
DATA = f"evaluate r.yaml {W} --split all --data"
SEGMENT = "segment data/images/a.png"
TRAIN = "train r.yaml --output new --set"
UNKNOWN = "must be one of auto_deeplab, .* got 'enett'. Did you mean enet?"
# The command; the code; parts of what is said, in order, " .* " between them.
CASES = [
    ("recipe --model msd --data absent", "must be a folder or a zip archive; got absent, which does not exist in /"),
    ("recipe --model msd --data empty", "--data must hold images; got empty, which holds nothing"),
    ("recipe --model msd --data text.txt", "--data or data.root must be a folder or a zip archive; got text.txt"),
    ("recipe --model msd --data cut", "must be files that can be used .* cut/images/a.png: cannot be read"),
    ("recipe --model msd --data small", "each with a mask of its size; got small/masks/b.png: 10 x 10"),
    ("recipe --model enett --data data", f"--model {UNKNOWN}"),
    ("recipe --model msd --data data --images pics --masks masks", "images must be files like pics .* images/a.png"),
    (f"{DATA} absent", "--data or data.root must be a folder or a zip archive; got absent, which does not exist"),
    (f"{DATA} text.txt", "--data or data.root must be a folder or a zip archive; got text.txt"),
    (f"{DATA} empty", "masks must be files like masks .* holds nothing. Name another folder by --data"),
    (f"{DATA} data/images", "got none: data/images holds a.png .* Name another folder by --data"),
    (f"{DATA} cut", "cut/images/a.png: cannot be read"),
    (f"{DATA} small", "small/masks/b.png must have the size of its image small/images/b.png, 48 x 64"),
    (f"{DATA} many", "many/masks/c.png must hold ids of 0-1, 255; got 7 at row 0, column 0 .* {7: void}"),
    (f"evaluate r.yaml {W} --split vall", "split must be one of train, val, all; got 'vall'. Did you mean val?"),
    (f"evaluate r.yaml {W} --model enet_camvit", "--model .* must be one of .* Did you mean enet_camvid?"),
    (f"evaluate r.yaml {W} --workers 2", "--workers must be given with --ray"),
    ("evaluate r.yaml --weights unet_nucle", "no file unet_nucle; .* Did you mean unet_nuclei?"),
    ("evaluate r.yaml --weights r.yaml", "r.yaml must be a whole safetensors file; .* `atrousops train` writes one"),
    ("evaluate r.yaml --weights data", "no file data; weights that come with the package: "),
    (f"evaluate absent.yaml {W}", "no recipe absent.yaml; `atrousops recipe` writes one"),
    ("train data", "data must be a file that holds a recipe; got a folder"),
    ("train w.safetensors", "w.safetensors must be YAML; got a file that is not text"),
    ("train r.yaml --output text.txt", "cannot write text.txt: "),
    ("train r.yaml --output new --resume", "no file new/checkpoint.pt; without --resume training begins"),
    ("train r.yaml --output done", "output must hold no checkpoint .* done/checkpoint.pt. Go on with that run"),
    ("train r.yaml --output done --resume", "done/checkpoint.pt must be a whole checkpoint of `atrousops train`"),
    (f"{TRAIN} model.name=enett", f"config: model.name {UNKNOWN}"),
    (f"{TRAIN} model.arguments.dept=3", "arguments must be those of the network; .* Did you mean depth?"),
    (f"{TRAIN} data.name=foldr", "data.images must be of data.name: folder alone; .* Did you mean folder?"),
    (f"{TRAIN} loss.name=dise", "loss.name must be one of .* got 'dise'. Did you mean dice?"),
    (f"{TRAIN} schedule.step=3", "must have only the keys .* got 'step'. Did you mean steps?"),
    (f"{TRAIN} schedule.steps=0", "schedule.steps must be at least 1; got 0"),
    (f"{TRAIN} augmentation.crop=0", "augmentation.crop must be at least 1; got 0"),
    (f"{TRAIN} augmentation.scale=[2,1]", "augmentation.scale must be a range above 0, [least, most]; got (2.0, 1.0)"),
    (f"{TRAIN} average=2", "average must be a part in [0, 1); got 2"),
    (f"{TRAIN} optimiser.lr=-1", "optimiser.lr must be at least 0; got -1"),
    (f"{TRAIN} threads=-1", "threads must be at least 0; got -1"),
    (f"{TRAIN} workers=-1", "workers must be at least 0; got -1"),
    (f"{TRAIN} batch=0", "batch must be at least 1; got 0"),
    (f"{TRAIN} init.weights=hello.pth", "init.weights: hello.pth must be a state dict, whole; got "),
    (f"segment absent.png {W}", "absent.png: no such file"),
    (f"segment empty {W}", "empty: no pictures directly in this folder"),
    (f"segment cut/images/a.png {W}", "cut/images/a.png: cannot be read"),
    (f"{SEGMENT} {W} -o text.txt", "output folder text.txt: File exists"),
    (f"{SEGMENT} {W} --device gpu", "--device must be auto, or a device that PyTorch knows"),
    (f"{SEGMENT} {W} --page 9", "page 9 was asked for, and there is 1"),
    (f"{SEGMENT} {W} --workers 2", "--workers must be given with --ray; got it alone. --ray local"),
    (f"{SEGMENT} --model enet_camvid", "--model must be given with --weights .* got enet_camvid. It comes from https://"),
    (f"{SEGMENT} --model unet_nucle", "no file unet_nucle; .* Did you mean unet_nuclei?"),
    ("export w.safetensors -o x.tflite", "path must end in .onnx or .pt2; got 'x.tflite'"),
    ("export unet_nucle -o x.onnx", "Did you mean unet_nuclei?"),
    ("study empty --runs runs", "must be recipes, or folders with *.yaml directly in them; got empty"),
    ("study r.yaml --runs runs --table text.txt/t.md", "cannot write text.txt/t.md: "),
    ("study r.yaml --runs runs --pages p --speed absent.json", "absent.json: No such file"),
    ("study absent.yaml --runs runs --table new/t.md", "absent.yaml: config: no recipe absent.yaml"),
    ("bench --suite conv", "suite must be one of deeplab, "),
    ("bench --dtype fp31", "dtype must be one of fp64, .* got 'fp31'. Did you mean fp"),
    ("selfcheck --device gpu", 'device must be a device such as "cuda:0"; got \'gpu\''),
]  # fmt: skip


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder of images, a recipe and weights for them, and what is like them and wrong."""
    here = tmp_path_factory.mktemp("wrong")
    own.write(here / "data", names=("a", "b", "c", "d"))
    for name in ("cut", "small", "many"):
        shutil.copytree(here / "data", here / name)
    cut = here / "cut/images/a.png"
    cut.write_bytes(cut.read_bytes()[:-200])
    Image.new("L", (10, 10)).save(here / "small/masks/b.png")
    Image.fromarray(np.full((48, 64), 7, dtype=np.uint8)).save(here / "many/masks/c.png")
    for name in ("empty", "done"):
        (here / name).mkdir()
    for name in ("text.txt", "done/checkpoint.pt", "hello.pth"):
        (here / name).write_text("hello")
    (here / "r.yaml").write_text(RECIPE)
    torch.manual_seed(0)
    arguments = {"num_classes": 2, "depth": 2}
    info = models.Info("msd", arguments, ("ground", "disc"), (0.5,) * 3, (0.2,) * 3, 64)
    models.save(models.build("msd", **arguments), here / "w.safetensors", info)
    return here


def files(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(("command", "said"), CASES, ids=[command for command, _ in CASES])
def test_one_line_says_it(place, command, said, monkeypatch, capsys):
    monkeypatch.chdir(place)
    before = files(place)
    assert cli.main(command.split()) == 1
    error = capsys.readouterr().err
    assert "Traceback" not in error
    assert "(--debug shows the traceback)" not in error
    lines = error.splitlines()
    for part in said.split(" .* "):
        (line,) = [line for line in lines if part in line][:1] or pytest.fail(f"no {part!r} in {error}")
        lines = [line.partition(part)[2]]
    after = files(place)
    # What was there is as it was; a list of what was done may be new.
    assert {name: after.get(name) for name in before} == before
    assert {Path(name).name for name in {*after} - {*before}} <= {
        "classes.csv",
        "t.md",
        "t.json",
        "results.md",
        "results.json",
    }
    for name in ("new", "out", "runs", "docs", "p"):
        shutil.rmtree(place / name, ignore_errors=True)


def test_ap_of_classes_is_not_silent(place, monkeypatch, capsys):
    monkeypatch.chdir(place)
    assert cli.main(f"evaluate r.yaml {W} --ap".split()) == 0
    assert "no AP: it judges objects" in capsys.readouterr().err
