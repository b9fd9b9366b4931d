"""Recipes one after another: goes on where it stopped, and says what failed."""

import hashlib
import json
import os
import shutil
import signal

import pytest
import torch
import yaml
from people import RECIPE, write_people

from atrousops import cli, models
from atrousops.bench import pages
from atrousops.bench.machine import Ceilings
from atrousops.bench.results import Report, Result
from atrousops.bench.suites.networks import ON_CAMVID
from atrousops.common.checks import ArgumentError
from atrousops.engine import study, train
from atrousops.testing import Timing

EXTRA = "crf: true\nscales: [0.5]\nvariants: {twice: {scales: [0.5, 1], flip: true}, wide: {scales: [1.0]}}"


KNOWN_BEFORE = ("name", "root", "train", "val", "test", "mean", "std")


@pytest.fixture
def place(tmp_path):
    """Two recipes on a base, and one of a network that does not exist, in a folder of their own."""
    folder = tmp_path / "small"
    folder.mkdir()
    base = {**RECIPE, "schedule": {"steps": 2}, "checkpoint_every": 1, "pictures_every": 2}
    (folder / "_base.yaml").write_text(yaml.safe_dump(base))
    arguments = "{num_classes: 2, depth: 3}"
    (folder / "a.yaml").write_text(f"base: _base.yaml\nmodel: {{name: msd, arguments: {arguments}}}\n{EXTRA}")
    (folder / "b.yaml").write_text(f"base: _base.yaml\nmodel: {{name: absent, arguments: {arguments}}}")
    (folder / "c.yaml").write_text(f"base: _base.yaml\nmodel: {{name: msd, arguments: {arguments}}}\nseed: 1")
    write_people(tmp_path)
    return tmp_path


def run(place, said, **options):
    return study.main(
        [place / "small"], runs=place / "runs", table=place / "results.md", data_root=str(place), progress=False,
        say=said.append, **options,
    )  # fmt: skip


def test_all_in_turn(place, monkeypatch):
    said = []
    assert run(place, said) == 1
    assert any("absent" in line for line in said)
    table = (place / "results.md").read_text()
    a, twice, wide, c = (line.split("|")[1:-1] for line in table.splitlines() if line.startswith("| small/"))
    head = next(line for line in table.splitlines() if line.startswith("| recipe")).split("|")[1:-1]
    assert len(a) == len(twice) == len(wide) == len(c) == len(head)
    assert (twice[0].strip(), wide[0].strip()) == ("small/a, twice", "small/a, wide")
    # c is a's network with another seed, judged at another scale.
    assert all(0 <= float(row[head.index(" mIoU ")]) <= 100 for row in (a, twice, wide, c))
    assert (a[0].strip(), c[0].strip(), a[3].strip(), c[-1].strip()) == ("small/a", "small/c", "2 x 2", "1")
    card = (place / "runs" / "small" / "a" / "card.md").read_text()
    assert hashlib.sha256((place / "runs" / "small" / "a" / "weights.safetensors").read_bytes()).hexdigest() in card
    # Only one asked for the CRF.
    assert float(a[head.index(" + CRF ")]) > 0
    assert float(a[head.index(" tuned ")]) > 0
    assert c[head.index(" + CRF ")].strip() == ""

    # A page of the network that ran, and one of another.
    monkeypatch.setattr(pages.models, "list", lambda kind: ("msd", "enet"))
    written = pages.write(place / "runs", place / "pages", [_speed()])
    assert [path.name for path in written] == ["msd.md", "enet.md"]
    page, other = (path.read_text() for path in written)
    assert all(row in page for row in table.splitlines() if row.startswith("| small/"))
    assert "| atrousops, fp32 nhwc | 4.00 | 3 MB | a machine | 2026-11-22 |" in page
    assert "| on PyTorch's kernels, fp32 nhwc | 2.00 |  | a machine | 2026-11-22 |" in page
    assert "| smp Net, of its own design, fp32 nhwc | 0.50 |  | a machine | 2026-11-22 |" in page
    assert ("small/" in other, "Measured:" in other) == (False, False)
    assert all("![The stages of" in text and "MB" in text for text in (page, other))
    assert "<svg" in (place / "pages" / "enet.svg").read_text()
    index = (place / "pages" / "README.md").read_text()
    assert all(f"[{name}]({name}.md)" in index for name in ("msd", "enet"))

    # Again: nothing is trained, what an earlier version left out is judged, the table is the same.
    scores = place / "runs" / "small" / "a" / "scores.json"
    values = json.loads(scores.read_text())
    del values["tuned_crf"], values["crf"]
    values["recipe"]["crf"] = False
    scores.write_text(json.dumps(values))
    monkeypatch.setattr(train, "main", None)
    (place / "small" / "b.yaml").unlink()
    said.clear()
    assert run(place, said) == 0
    assert [line.split(": ")[1] for line in said] == ["with a CRF"]
    assert (place / "results.md").read_text() == table


def test_a_row_of_several_seeds(place):
    recipe = place / "small" / "c.yaml"
    recipe.write_text(
        f"{recipe.read_text().replace('seed: 1', 'seed: 5')}\ninit:\n  weights: {place}/first{{seed}}.pth"
    )
    for seed in (3, 4):
        torch.manual_seed(seed)
        torch.save(models.build("msd", num_classes=2, depth=3).state_dict(), place / f"first{seed}.pth")
    options = {"runs": place / "runs", "table": place / "results.md", "data_root": str(place), "progress": False}
    assert study.main([recipe], seeds=[3, 4], **options) == 0
    runs = [json.loads((place / "runs" / "small" / f"c.seed{seed}" / "scores.json").read_text()) for seed in (3, 4)]
    assert [run["recipe"]["init"]["weights"] for run in runs] == [f"{place}/first{seed}.pth" for seed in (3, 4)]
    (row,) = (line for line in (place / "results.md").read_text().splitlines() if line.startswith("| small/"))
    one, other = (100 * run["summary"]["miou"] for run in runs)
    # Of two values the standard deviation is their distance by the root of two.
    assert "| small/c | msd | " in row
    assert f"| {(one + other) / 2:.1f} ± {abs(one - other) / 2**0.5:.1f} |" in row
    assert row.endswith("| 3 4 |")


def test_rows_outlive_their_runs(place, monkeypatch):
    (place / "small" / "b.yaml").unlink()
    run(place, [])
    table, runs = place / "results.md", place / "runs"
    monkeypatch.setattr(pages.models, "list", lambda kind: ("msd",))
    pages.write(runs, place / "pages", table=table)
    before = [path.read_bytes() for path in (table, *sorted((place / "pages").iterdir()))]
    shutil.move(runs / "small", place / "gone")
    assert study.main([place / "small" / "c.yaml"], runs=runs, table=table, data_root=str(place), progress=False) == 0
    again = [line for line in table.read_text().splitlines() if line.startswith("| small/a")]
    assert len(again) == 3
    assert all(line.encode() in before[0] for line in again)
    shutil.rmtree(runs)
    pages.write(runs, place / "pages", table=table)
    assert [path.read_bytes() for path in sorted((place / "pages").iterdir())] == before[1:]


@pytest.mark.parametrize("text", ["{", "[]", '{"small/a": {}}'])
def test_scores_beside_the_table_of_another_kind(place, text):
    (place / "results.json").write_text(text)
    with pytest.raises(ArgumentError, match=r"results\.json"):
        run(place, [])
    assert not (place / "runs").exists()
    assert (place / "results.json").read_text() == text


def _speed():
    timings = {"dispatched": Timing(0.25, 0.25, 0.25, 1), "aten": Timing(0.5, 0.5, 0.5, 1)}
    row = Result("networks", f"msd, {ON_CAMVID}", "", "fp32", "nhwc", "forward", timings=timings)
    row.memory = {"dispatched": 3_000_000}
    row.beside = {"smp Net": Timing(2.0, 2.0, 2.0, 1)}
    return Report({"device": "a machine", "date": "2026-11-22T08:35:07+00:00"}, Ceilings(1.0, {}), [row])


def test_goes_on_after_ctrl_c(place, monkeypatch):
    step, done = train.Trainer.train_step, []

    def interrupted(self):
        loss = step(self)
        done.append((self.recipe.seed, self.step))
        if done == [(0, 1), (0, 2), (1, 1)]:
            os.kill(os.getpid(), signal.SIGINT)
        return loss

    monkeypatch.setattr(train.Trainer, "train_step", interrupted)
    (place / "small" / "b.yaml").unlink()
    with pytest.raises(KeyboardInterrupt):
        run(place, [])
    assert "small/a" in (place / "results.md").read_text()
    assert run(place, []) == 0
    assert done == [(0, 1), (0, 2), (1, 1), (1, 2)]
    assert "small/c" in (place / "results.md").read_text()


def test_another_recipe_in_the_same_folder(place):
    (place / "small" / "b.yaml").unlink()
    run(place, [])
    said = []
    assert run(place, said, overrides=["schedule.steps=3"]) == 2
    assert "Remove the folder" in said[0]
    # Scores of a version that knew fewer entries, and others, are of the same recipe.
    for scores in (place / "runs").rglob("scores.json"):
        values = json.loads(scores.read_text())
        values["recipe"]["init"]["how"] = "factorise"
        values["recipe"]["data"] = {k: v for k, v in values["recipe"]["data"].items() if k in KNOWN_BEFORE}
        scores.write_text(json.dumps(values))
    assert run(place, said) == 0


def test_no_recipes(tmp_path):
    with pytest.raises(ArgumentError, match=r"\*\.yaml"):
        study.recipes([tmp_path])


def test_command(place, capsys):
    (place / "small" / "b.yaml").unlink()
    options = ("--runs", place / "runs", "--table", place / "t.md", "--data", place, "--set", "schedule.steps=1")
    assert cli.main(["study", str(place / "small" / "a.yaml"), *map(str, options)]) == 0
    assert capsys.readouterr().out == f"-> {place / 't.md'}\n"
    assert "1 x 2" in (place / "t.md").read_text()
