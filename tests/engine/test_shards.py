"""`segment` and `evaluate` by several processes together: the bytes and scores of one."""

import contextlib
import copy
import csv
import io
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from bright import write_photos
from people import write_people, write_recipe

from atrousops import cli, models
from atrousops.engine import evaluate
from atrousops.engine.distributed import Processes

PACKAGE = Path(cli.__file__).parents[1]
# One launch for both commands, since it is the imports that take the time.
BOTH = """
import shlex, sys
import torch
from atrousops import cli
from atrousops.engine.distributed import join
with join(torch.device("cpu")):
    for line, code in zip(sys.argv[1::2], sys.argv[2::2]):
        found = cli.main(shlex.split(line))
        assert found == int(code), (line, found)
"""


def typed(line, code):
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        assert cli.main(shlex.split(line)) == code
    return printed.getvalue()


def contents(folder):
    return {file.name: file.read_bytes().replace(str(folder).encode(), b"") for file in folder.iterdir()}


def test_two_processes_are_one(tmp_path):
    """Five photos and one that cannot be read, and a validation set of two images, by Gloo."""
    write_people(tmp_path)
    write_photos(tmp_path / "photos", 5, 40, 48)
    (tmp_path / "photos" / "6.png").write_text("no picture")
    torch.manual_seed(0)
    weights = tmp_path / "weights.safetensors"
    info = models.Info("enet", {"num_classes": 2}, ("background", "person"), (0.5,) * 3, (0.2,) * 3, 64)
    models.save(models.build("enet", num_classes=2), weights, info)
    recipe = write_recipe(tmp_path, device="cpu", threads=1)
    segment = f"segment {tmp_path}/photos --weights {weights} --device cpu --threads 1 -o {tmp_path}"
    judge = f"evaluate {recipe} --weights {weights} --data {tmp_path} --trimap 1 3"
    script = tmp_path / "both.py"
    script.write_text(BOTH)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(script)]
    lines = [f"{segment}/two", "1", judge, "0", f"{segment}/two --resume", "1"]
    found = subprocess.run([*launcher, *lines], capture_output=True, text=True, cwd=PACKAGE)
    assert found.returncode == 0, found.stderr[-2000:]
    assert "atrousops: 5 segmented, 1 failed" in found.stderr
    assert "5 images, 0.0 megapixels in " in found.stdout
    assert "5 done before, 1 to do" in found.stdout
    typed(f"{segment}/one", 1)
    assert len(contents(tmp_path / "one")) == 2 * 5 + 1
    assert {*contents(tmp_path / "one")} == {*contents(tmp_path / "two")}
    with (tmp_path / "two" / "classes.csv").open(newline="") as file:
        assert [Path(row["picture"]).name for row in csv.DictReader(file)] == [
            f"{i}.png" for i in range(5) for _ in "ab"
        ]
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
    report = typed(judge, 0)
    assert "accuracy within 3 px" in report
    assert report in found.stdout
    assert found.stdout.count("mean IoU") == 1, "the first process alone prints"


class Squares(torch.nn.Module):
    """Three objects in an image (3, 8, 8) whose numbers are their places; of equal scores, where order counts."""

    def objects(self, image):
        places = image[0, 0, :3].long().tolist()
        masks = torch.zeros(3, 8, 8, dtype=torch.bool)
        for mask, place in zip(masks, places, strict=True):
            mask[place : place + 2, place : place + 2] = True
        return [1, 1, 1], [0.5, 0.5, 0.25], masks


def test_objects_are_judged_as_by_one():
    """Panoptic quality and AP of six images, dealt to three, and put together in another order."""
    random = torch.Generator().manual_seed(0)
    shares = [evaluate.Scores(("background", "cell"), True, True, (1,)) for _ in range(3)]
    whole = evaluate.Scores(("background", "cell"), True, True, (1,))
    for number in range(6):
        image = torch.randint(0, 6, (3, 8, 8), generator=random).float()
        labels = torch.zeros(2, 8, 8, dtype=torch.long)
        labels[:, 2:4, 2:4] = 1
        labels[0, 5:7, 5:7], labels[1, 5:7, 5:7] = 1, 2
        for scores in (whole, shares[number % 3]):
            scores.update_objects(Squares(), image, labels, number)
    first, *others = shares[::-1]
    for each in others:
        first.add(each.state())
    assert 0 < whole.quality.pq < 1
    assert 0 < whole.precision.ap50 < 1
    assert evaluate.report(first) == evaluate.report(whole)
    assert len(shares[0].state()["ap"][0]) == 2


def test_one_process_gathers_its_own():
    assert Processes().gather({"a": 1}) == [{"a": 1}]


@pytest.mark.parametrize("rank", [0, 1])
def test_a_share_of_objects(tmp_path, rank, monkeypatch):
    """Each process judges its own images, and adds those of the others."""
    gathered = []

    def gather(self, value):
        gathered.append(copy.deepcopy(value))
        return [gathered[0]] * 2

    monkeypatch.setattr(Processes, "gather", gather)

    class Set(list):
        classes, instances = ("background", "cell"), True

    labels = torch.zeros(2, 8, 8, dtype=torch.long)
    labels[:, 2:4, 2:4] = 1
    data = Set((torch.full((3, 8, 8), float(place)), labels) for place in (2, 5, 3))
    model = Squares()
    model.weight = torch.nn.Parameter(torch.zeros(1))
    scores = evaluate.score(model, data, processes=Processes(rank, 2), progress=False)
    mine = 2 - rank
    assert int(gathered[0]["counts"][0].sum()) == 64 * mine
    assert int(scores.matrix.counts.sum()) == 2 * 64 * mine
