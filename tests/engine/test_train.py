"""Training: the same run twice, a run in two halves, Ctrl-C, and recipes that are wrong."""

import csv
import dataclasses
import os
import signal

import numpy as np
import own
import pytest
import safetensors
import torch
from people import write_people, write_recipe
from PIL import Image
from safetensors.torch import load_file

from atrousops import models
from atrousops.common.checks import ArgumentError
from atrousops.common.files import alone
from atrousops.engine import batches, config, evaluate, figures, train
from atrousops.engine import recipe as engine_recipe


@pytest.fixture
def people(tmp_path):
    return str(write_people(tmp_path))


@pytest.fixture
def recipe(tmp_path):
    return write_recipe(tmp_path)


def run(recipe, people, folder, **arguments):
    return train.main(recipe, output=folder, data_root=people, progress=False, **arguments)


def rows(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_resumes_bit_for_bit(tmp_path, recipe, people, monkeypatch):
    """Stopped after an odd number of steps, between two checkpoints, and gone on: the same bits."""
    whole = run(recipe, people, tmp_path / "whole")

    step = train.Trainer.train_step

    def interrupted(self):
        loss = step(self)
        if self.step == 3:
            os.kill(os.getpid(), signal.SIGINT)
        return loss

    with monkeypatch.context() as patch:
        patch.setattr(train.Trainer, "train_step", interrupted)
        stopped = run(recipe, people, tmp_path / "halves")
    assert stopped.name == train.CHECKPOINT
    assert [row["step"] for row in rows(tmp_path / "halves" / "log.csv")] == ["1", "2", "3"]
    halves = run(recipe, people, tmp_path / "halves", resume=True)

    # The header's entries come in any order, so the files are compared by what they hold.
    one, two = (safetensors.safe_open(file, "pt") for file in (whole, halves))
    assert one.metadata() == two.metadata()
    assert one.keys() == two.keys()
    for name in one.keys():  # noqa: SIM118
        assert torch.equal(one.get_tensor(name), two.get_tensor(name))
    for name in ("log.csv", "val.csv"):
        one, two = (rows(tmp_path / folder / name) for folder in ("whole", "halves"))
        for row in (*one, *two):
            del row["seconds"]
        assert one == two
    # And so the curves are whole.
    for name in (figures.CURVES, figures.CONFUSION):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "halves" / name).read_bytes()


def test_learns_and_is_evaluated(tmp_path, people):
    recipe = write_recipe(tmp_path, schedule={"steps": 25}, optimiser={"lr": 5e-3, "backbone_lr": 5e-3}, average=0.5)
    weights = run(recipe, people, tmp_path / "run")
    log = rows(tmp_path / "run" / "log.csv")
    assert float(log[-1]["loss"]) < float(log[0]["loss"])
    scores = evaluate.main(recipe, weights, data_root=people, progress=False)
    matrix = scores.matrix
    # Void is not counted: a row of 24 pixels in each of the two images.
    assert int(matrix.counts.sum()) == 2 * (40 * 48 - 24)
    assert int(matrix.counts[1].sum()) == 2 * 22 * 24
    assert models.load(weights).info.classes == ("background", "person")
    lines = evaluate.report(scores)
    assert "person" in lines
    assert "mean IoU" in lines


def test_a_class_that_is_nowhere_has_no_score():
    scores = evaluate.Scores(("ground", "disc", "ghost"))
    scores.update(torch.tensor([[0, 1, 1]]), torch.tensor([[0, 1, 0]]))
    said = dict(line.split(maxsplit=1) for line in evaluate.report(scores).splitlines()[:3])
    assert said == {"ground": "50.00 %", "disc": "50.00 %", "ghost": "-  (nowhere)"}


def test_weights_of_other_classes(tmp_path, people, recipe):
    weights = tmp_path / "enet.safetensors"
    models.save(models.enet(2), weights, models.Info("enet", {"num_classes": 2}, ("a", "b"), (0,) * 3, (1,) * 3, 48))
    with pytest.raises(ArgumentError, match="be of the classes background, person; got a, b"):
        evaluate.main(recipe, weights, data_root=people, progress=False)


def test_crf_sees_scores_and_picture(tmp_path, people, recipe):
    """Whatever the refinement answers is scored; it gets the picture in 0..255."""
    weights = tmp_path / "enet.safetensors"
    info = models.Info("enet", {"num_classes": 2}, ("background", "person"), (0, 0, 0), (1, 1, 1), 48)
    models.save(models.enet(2), weights, info)

    def bright(scores, image):
        assert scores.shape == (1, 2, 40, 48)
        assert 150 < image.max() < 256
        person = image.mean(1, keepdim=True) > 125
        return torch.cat([~person, person], dim=1).float()

    matrix = evaluate.main(recipe, weights, crf=bright, data_root=people, progress=False).matrix
    # JPEG blurs the contour of the square a little.
    assert matrix.iou[1] > 0.9


def test_frozen_parameters_stay(tmp_path, people):
    recipe = config.load(write_recipe(tmp_path, optimiser={"frozen": ["initial_block"]}))
    trainer = train.Trainer(recipe, people)
    before = {name: value.clone() for name, value in trainer.model.named_parameters()}
    trainer.train_step()
    changed = {name for name, value in trainer.model.named_parameters() if not torch.equal(value, before[name])}
    assert changed
    assert not any(name.startswith("initial_block.") for name in changed)


def test_schedule():
    schedule = config.Schedule(steps=10, warmup=2, cooldown=4)
    assert [schedule.factor(step) for step in range(10)] == [0.5, 1, 1, 1, 1, 1, 1, 0.75, 0.5, 0.25]
    assert schedule.last == 10
    assert config.Schedule(steps=10, stop=8).last == 8


def test_does_not_overwrite(tmp_path, people, recipe):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / train.CHECKPOINT).touch()
    with pytest.raises(ArgumentError, match=r"by --resume \(resume=True\), give another --output, or remove .*run\."):
        run(recipe, people, tmp_path / "run")


def test_two_runs_into_one_folder(tmp_path, people, recipe):
    with (
        alone(tmp_path / "run", "train", ""),
        pytest.raises(ArgumentError, match=r"train: output must be a folder of this process alone; got .*run, into"),
    ):
        run(recipe, people, tmp_path / "run")


def test_what_a_reading_process_finds_is_one_line(tmp_path):
    """Not DataLoader's page of a traceback: the file and the remedy."""
    own.write(tmp_path)
    recipe = tmp_path / "my.yaml"
    recipe.write_text(engine_recipe.main(str(tmp_path), "msd", progress=False))
    shared = ["schedule.steps=4", "batch=7", "augmentation.crop=32", "model.arguments.depth=2", "workers=1"]
    mask = tmp_path / "masks" / "a.png"
    Image.fromarray(np.full((48, 64), 9, np.uint8)).save(mask)
    with pytest.raises(ArgumentError, match=r"^Folder: .*a\.png must hold ids of .*got 9 at row 0.*\{9: void\}\.$"):
        train.main(recipe, output=tmp_path / "run", overrides=shared, progress=False)
    # What needs no decoding is found before the first step.
    mask.write_bytes(b"")
    with pytest.raises(ArgumentError, match=r"^data: images and masks must be .*a\.png: not an image"):
        train.main(recipe, output=tmp_path / "new", overrides=shared, progress=False)
    assert not (tmp_path / "new" / "log.csv").exists()


def _cut_inside(path):
    """A PNG whose ends are whole and whose pixels are not: a byte of them is another."""
    data = bytearray(path.read_bytes())
    data[data.index(b"IDAT") + 12] ^= 0xFF
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (_cut_inside, r"a\.png: cannot be read: "),
        (lambda path: Image.fromarray(np.full((48, 64), 9, np.uint8)).save(path), r"a\.png must hold ids of .*got 9"),
        (lambda path: Image.fromarray(np.full((48, 64), 900, np.uint16)).save(path), r"a\.png must hold .*got 900"),
    ],
)
@pytest.mark.parametrize("held_back", [False, True])
def test_a_file_that_cannot_be_used_loses_no_step(tmp_path, capsys, spoil, said, held_back):
    """In training and in validation: what was trained is kept, and goes on once the file is mended."""
    own.write(tmp_path)
    recipe = tmp_path / "my.yaml"
    recipe.write_text(engine_recipe.main(str(tmp_path), "msd", progress=False))
    loaded = config.load(recipe)
    layout = loaded.data
    # By its seed `a` is in one part or the other.
    seed = next(n for n in range(99) if (dataclasses.replace(layout, seed=n).split_of("a") == "val") == held_back)
    shared = ["schedule.steps=6", "batch=2", "augmentation.crop=32", "model.arguments.depth=2", "validate_every=3"]
    shared += [f"data.seed={seed}", f"seed={next(n for n in range(99) if _step_of('a', layout, seed, n) == 2)}"]
    mask = tmp_path / "masks" / "a.png"
    whole = mask.read_bytes()
    spoil(mask)
    folder = tmp_path / "run"
    with pytest.raises(ArgumentError, match=said):
        train.main(recipe, output=folder, overrides=shared, progress=False)
    steps = 3 if held_back else 2
    assert torch.load(folder / train.CHECKPOINT)["step"] == steps
    kept = (
        f"{steps} steps are kept in {folder / train.CHECKPOINT}: correct the error below, then continue with --resume"
    )
    assert kept in capsys.readouterr().err
    mask.write_bytes(whole)
    gone_on = train.main(recipe, output=folder, overrides=shared, progress=False, resume=True)
    assert f"resume: {steps} of " in capsys.readouterr().err
    once = train.main(recipe, output=tmp_path / "once", overrides=shared, progress=False)
    one, two = load_file(gone_on), load_file(once)
    assert all(torch.equal(one[name], two[name]) for name in two)
    # A validation that failed is repeated.
    assert _scores(folder) == _scores(tmp_path / "once")


def _scores(folder):
    """The rows of val.csv without their times."""
    rows = [line.split(",") for line in (folder / "val.csv").read_text().splitlines()]
    return [[step, *scores] for step, _, *scores in rows]


def _step_of(name, layout, data_seed, seed):
    """The first step, of two images, that reads an image, if there are six or more in training."""
    keys = [key for key in "abcdefgh" if dataclasses.replace(layout, seed=data_seed).split_of(key) == "train"]
    order = [keys[index] for index in batches._order(len(keys), seed)]
    return order.index(name) // 2 if name in order else 2


def test_a_loss_that_is_not_finite(tmp_path, people, recipe):
    """Training ends there, and the checkpoint of the step before has finite weights."""
    spoilt = ("schedule.steps=9", "schedule.warmup=0", "optimiser.lr=1.0e+30", "checkpoint_every=1")
    with pytest.raises(ArgumentError, match=r"train: the loss must be finite; got (nan|inf) in step \d\. Lower optim"):
        run(recipe, people, tmp_path / "run", overrides=spoilt)
    state = torch.load(tmp_path / "run" / train.CHECKPOINT)
    assert 1 <= state["step"] < 9
    assert all(value.isfinite().all() for value in state["model"].values())


def test_resume_without_checkpoint(tmp_path, people, recipe):
    with pytest.raises(FileNotFoundError):
        run(recipe, people, tmp_path / "run", resume=True)


def test_data_not_found(tmp_path, recipe):
    with pytest.raises(ArgumentError, match=r"holds voc_person\.zip"):
        run(recipe, str(tmp_path / "nowhere"), tmp_path / "run")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("model: [", "be YAML"),
        ("- 1", r"hold a recipe, KEY: VALUE; got \[1\]"),
        ("model: {name: enet}", "key 'data'"),
        ("model: {name: enet, size: 3}\ndata: {name: camvid}\nschedule: {steps: 1}", "only the keys name, arguments"),
        (
            "model: {name: enet}\ndata: {name: camvid}\nschedule: {steps: many}",
            "schedule.steps must be a valid integer",
        ),
    ],
)
def test_wrong_recipe(tmp_path, text, message):
    path = tmp_path / "wrong.yaml"
    path.write_text(text)
    with pytest.raises(ArgumentError, match=message):
        config.load(path)


def test_overrides(tmp_path):
    path = write_recipe(tmp_path)
    recipe = config.load(path, ["schedule.steps=9", "optimiser.lr=0.5", "model.arguments.num_classes=7"])
    assert (recipe.schedule.steps, recipe.optimiser.lr, recipe.model.arguments) == (9, 0.5, {"num_classes": 7})
    for wrong in ("steps", "batch.size=3", "seed=["):
        with pytest.raises(ArgumentError, match="override"):
            config.load(path, [wrong])


def test_shipped_recipe_is_right():
    """The recipe in the package reads, and names what exists."""
    from importlib.resources import files

    recipe = config.load(files("atrousops") / "configs" / "voc_person.yaml")
    assert recipe.model.name in models.registry.NETWORKS
    names = [name for name, _ in models.build(recipe.model.name, **recipe.model.arguments).named_parameters()]
    for prefix in recipe.optimiser.frozen:
        assert any(name.startswith(prefix) for name in names)


def test_weights_file_holds_half_precision(tmp_path, people, recipe):
    state = load_file(run(recipe, people, tmp_path / "run"))
    assert {value.dtype for value in state.values() if value.dim() > 1} == {torch.float16}
