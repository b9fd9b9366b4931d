"""What a training run shows: lines or a bar as it goes, its curves and confusion matrix when it is over."""

import csv
import io
import re
import sys
from functools import partial

import pytest
from people import write_people, write_recipe

from atrousops.engine import evaluate, figures, train
from atrousops.engine.progress import Progress


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


def test_lines_are_few(capsys):
    clock = Clock()
    show = Progress(100, 90, enabled=True, seconds=30.0, clock=clock)
    for step in range(1, 7):
        clock.now += 10
        show.step(float(step), 1e-3)
        if step == 5:
            show.scored(0.25)
    show.close()
    show.close()
    assert capsys.readouterr().err.splitlines() == [
        "train: step 91 of 100, loss 1.000, lr 1.0e-03, 0:01:30 left",
        "train: step 94 of 100, loss 3.000, lr 1.0e-03, 0:01:00 left",
        "train: step 95 of 100, loss 5.000, lr 1.0e-03, mIoU 25.0 %, 0:00:50 left",
        "train: step 96 of 100, loss 6.000, lr 1.0e-03, mIoU 25.0 %, 0:00:40 left",
    ]
    # A resumed run may begin with the validation that an error kept it from.
    Progress(5, 3, enabled=True, clock=clock).scored(0.25)
    assert capsys.readouterr().err == "train: step 3 of 5, mIoU 25.0 %, 0:00:00 left\n"
    Progress(5, 0, enabled=False).step(1.0, 1.0)
    assert capsys.readouterr().err == ""


def test_a_terminal_has_a_bar(monkeypatch):
    screen = io.StringIO()
    screen.isatty = lambda: True
    monkeypatch.setattr(sys, "stderr", screen)
    show = Progress(10, 0, enabled=True)
    show.step(0.5, 2e-4)
    show.scored(0.25)
    show.step(0.25, 1e-4)
    show.close()
    last = screen.getvalue().split("\r")[-1]
    assert "2/10" in last
    assert "loss 0.250, lr 1.0e-04, mIoU 25.0 %" in last


def test_a_run_is_told_and_drawn(tmp_path, capsys, monkeypatch):
    # However slow the machine is, no line is due for the time alone.
    monkeypatch.setattr(train, "Progress", partial(Progress, clock=Clock()))
    people, recipe = str(write_people(tmp_path)), write_recipe(tmp_path)
    folder = tmp_path / "whole"
    weights = train.main(recipe, output=folder, data_root=people)
    told = capsys.readouterr().err
    assert "\r" not in told
    lines = [line for line in told.splitlines() if line.startswith("train: ")]
    score = r"(, mIoU [\d.]+ %)"
    for line, (step, scored) in zip(lines, ((1, ""), (3, score), (6, score)), strict=True):
        assert re.fullmatch(rf"train: step {step} of 6, loss [\d.]+, lr [\d.e+-]+{scored}, \d:\d\d:\d\d left", line)

    with (folder / "confusion.csv").open(newline="") as file:
        head, *rows = csv.reader(file)
    matrix = evaluate.main(recipe, weights, data_root=people, progress=False).matrix
    assert head == ["step 6", "background", "person"]
    assert [[int(n) for n in row[1:]] for row in rows] == matrix.counts.tolist()
    for name in (figures.CURVES, figures.CONFUSION):
        assert (folder / name).read_bytes().startswith(b"\x89PNG\r\n\x1a\n")


def test_without_matplotlib_one_sentence(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    people, recipe = str(write_people(tmp_path)), write_recipe(tmp_path, schedule={"steps": 1})
    folder = tmp_path / "run"
    weights = train.main(recipe, output=folder, data_root=people, progress=False)
    sentence = "train: curves.png and confusion.png need matplotlib: pip install 'atrousops[train]'"
    assert capsys.readouterr().err.splitlines() == [sentence]
    assert weights.exists()
    assert not list(folder.glob("*.png"))


@pytest.mark.parametrize("count", [1, 12, 60])
def test_confusion_names_every_class(count, tmp_path):
    pytest.importorskip("matplotlib")
    classes = [f"class {i}" for i in range(count)]
    counts = [[1000 if i == j else abs(i - j) for j in range(count)] for i in range(count)]
    counts[0] = [0] * count
    figures.keep_confusion(tmp_path, 7, classes, counts)
    figure = figures._confusion(tmp_path / "confusion.csv")
    axes = figure.axes[0]
    for labels in (axes.get_xticklabels(), axes.get_yticklabels()):
        assert [label.get_text() for label in labels] == classes
    assert axes.images[0].get_array()[0].tolist() == [0] * count
    assert axes.get_title() == "% of each true class's pixels, step 7"
