"""What recipes ask of the loop: schedules, groups, parts of a batch, bf16, processes, full disks, pictures."""

import csv
import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from people import write_people, write_recipe
from PIL import Image

from atrousops import models
from atrousops.common import files
from atrousops.common.checks import ArgumentError
from atrousops.common.files import OutputError
from atrousops.engine import config, log, optimise, start, train

PACKAGE = Path(train.__file__).parents[2]
# No batch statistics and no dropout, so that only the sum's order differs between whole batches and parts.
PLAIN = {"name": "msd", "arguments": {"num_classes": 2, "depth": 4}}


@pytest.fixture
def people(tmp_path):
    return str(write_people(tmp_path))


def rows(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_poly_and_step_schedules():
    poly = config.Schedule(steps=4, kind="poly")
    assert [poly.factor(step) for step in range(5)] == pytest.approx([1, 0.75**0.9, 0.5**0.9, 0.25**0.9, 0])
    step = config.Schedule(steps=9, kind="step", milestones=(3, 6), gamma=0.5, warmup=2)
    assert [step.factor(i) for i in range(8)] == [0.5, 1, 1, 0.5, 0.5, 0.5, 0.25, 0.25]
    with pytest.raises(ArgumentError, match=r"schedule\.kind"):
        config.Schedule(steps=4, kind="cosine")


@pytest.mark.parametrize(("frozen", "random"), [((), True), (("fc.0.",), True), (("fc.",), False)])
def test_no_dropout_inside_frozen_modules(frozen, random):
    """Layers that are trained on frozen ones read the outputs of a test."""
    model = models.dilated_vgg16(2, width=1, padding="zeros", context="basic").train()
    optimise.freeze(model, config.Optimiser(frozen=frozen))
    x = torch.rand(1, 8, 4, 5)
    assert torch.equal(model.fc(x), model.fc(x)) is not random


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("deeplabv2", {"backbone": "vgg16", "width": 2}),
        ("deeplabv2", {"backbone": "vgg16", "width": 2, "multi_scale": True}),
        ("deeplabv2", {"backbone": "vgg16", "width": 2, "multi_scale": True, "crf": "rnn"}),
    ],
)
def test_groups_reach_the_backbone_behind_wrappers(name, arguments):
    model = models.build(name, num_classes=2, **arguments)
    recipe = config.Optimiser("sgd", lr=0.5, backbone_lr=0.01, rates={"classifier": 10.0}, frozen=("backbone.0.",))
    optimise.freeze(model, recipe)
    rates = {id(p): group["lr"] for group in optimise.build(model, recipe).param_groups for p in group["params"]}
    seen = set()
    for name, parameter in model.named_parameters():
        local = name.replace("network.", "")
        if local.startswith("backbone.0."):
            assert id(parameter) not in rates
            continue
        wanted = {"backbone": 0.01, "classifier": 5.0}.get(local.split(".")[0], 0.5)
        assert rates[id(parameter)] == wanted
        seen.add(wanted)
    assert seen == ({0.01, 5.0, 0.5} if "crf" in arguments else {0.01, 5.0})


def test_starts_from_a_trunk(tmp_path, people):
    """The trunk's convolutions, in fp16 as the file has them, wherever the backbone lies; only where there is one."""
    trunk = {name: torch.rand_like(value).half() for name, value in models.vgg.vgg16(2).state_dict().items()}
    torch.save(trunk, tmp_path / "trunk.pth")
    network = {"name": "deeplabv2", "arguments": {"num_classes": 2, "backbone": "vgg16", "width": 2, "crf": "rnn"}}
    init = {"trunk": "trunk.pth"}
    trainer = train.Trainer(config.load(write_recipe(tmp_path, model=network, init=init)), people)
    for name, value in trainer.model.get_submodule("network.backbone").state_dict().items():
        assert torch.equal(value, trunk[name].float())
    path = write_recipe(tmp_path, model=PLAIN, init=init)
    with pytest.raises(ArgumentError, match="without a backbone"):
        train.Trainer(config.load(path), people)


def test_biases_do_not_decay():
    model = models.enet(2)
    groups = optimise.build(model, config.Optimiser("sgd", weight_decay=0.1)).param_groups
    for group in groups:
        assert {p.dim() > 1 for p in group["params"]} == {group["weight_decay"] == 0.1}


def test_sgd_is_pytorchs(tmp_path, people):
    """Two steps by the trainer, and the same by hand."""
    optimiser = {"name": "sgd", "lr": 0.1, "weight_decay": 0.01}
    path = write_recipe(tmp_path, model=PLAIN, optimiser=optimiser, schedule={"steps": 2, "kind": "poly"})
    trainer, other = (train.Trainer(config.load(path), people) for _ in range(2))
    decay = [p for p in other.model.parameters() if p.dim() > 1], [p for p in other.model.parameters() if p.dim() == 1]
    groups = [{"params": p, "weight_decay": d} for p, d in zip(decay, (0.01, 0.0), strict=True)]
    sgd = torch.optim.SGD(groups, lr=0.1, momentum=0.9)
    for step in range(2):
        for group in sgd.param_groups:
            group["lr"] = 0.1 * (1 - step / 2) ** 0.9
        images, labels = other.batch()
        loss = torch.nn.functional.cross_entropy(other.model(images)["out"], labels, ignore_index=255)
        sgd.zero_grad()
        loss.backward()
        sgd.step()
        assert trainer.train_step() == pytest.approx(loss.item(), rel=1e-5)
    for one, two in zip(trainer.model.parameters(), other.model.parameters(), strict=True):
        torch.testing.assert_close(one, two)


def steps(recipe, people, count):
    trainer = train.Trainer(recipe, people)
    losses = [trainer.train_step() for _ in range(count)]
    return losses, trainer.model.state_dict()


def test_parts_of_a_batch_are_the_batch(tmp_path, people):
    path = write_recipe(tmp_path, model=PLAIN, batch=4, loss={"weights": "enet"}, optimiser={"name": "sgd", "lr": 0.1})
    whole, parts = (steps(config.load(path, [f"accumulate={n}"]), people, 3) for n in (1, 4))
    assert whole[0] == pytest.approx(parts[0], rel=1e-4)
    for name, value in whole[1].items():
        torch.testing.assert_close(parts[1][name], value, rtol=1e-4, atol=1e-6)


def test_workers_draw_the_same(tmp_path, people):
    path = write_recipe(tmp_path)
    alone, helped = (train.Trainer(config.load(path, [f"workers={n}"]), people) for n in (0, 1))
    for _ in range(2):
        for one, two in zip(alone.batch(), helped.batch(), strict=True):
            assert torch.equal(one, two)


def test_bfloat16(tmp_path, people):
    """The losses are those of fp32 but for rounding, and weights stay in fp32.

    The first loss is log 2 in both, for the scores start at zero.
    """
    path = write_recipe(tmp_path, model=PLAIN)
    exact, _ = steps(config.load(path), people, 2)
    rounded, state = steps(config.load(path, ["autocast=bfloat16"]), people, 2)
    assert rounded == pytest.approx(exact, rel=0.02)
    assert rounded != exact
    assert {value.dtype for value in state.values()} == {torch.float32}


def launch(processes, *arguments):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    found = subprocess.run(
        [*command, "-m", "atrousops", "train", *map(str, arguments)], capture_output=True, text=True, cwd=PACKAGE
    )
    assert found.returncode == 0, found.stderr[-2000:]


def test_two_processes_are_one(tmp_path, people):
    """Gloo: losses, validation and weights as of one process, and a second half that goes on from a checkpoint."""
    path = write_recipe(
        tmp_path, model=PLAIN, batch=4, accumulate=2, average=0.0, threads=1, loss={"hard": 0.5}, device="cpu",
        optimiser={"name": "sgd", "lr": 0.1}, schedule={"steps": 4}, validate_every=2,
    )  # fmt: skip
    one, two = tmp_path / "one", tmp_path / "two"
    train.main(path, output=one, data_root=people, progress=False)
    launch(2, path, "--data", people, "--output", two, "--set", "schedule.stop=2")
    launch(2, path, "--data", people, "--output", two, "--resume")
    for name in ("log.csv", "val.csv"):
        for a, b in zip(rows(one / name), rows(two / name), strict=True):
            assert a["step"] == b["step"]
            for key in {*a} - {"step", "seconds"}:
                assert float(a[key]) == pytest.approx(float(b[key]), rel=1e-3, abs=1e-3)
    states = [torch.load(folder / train.CHECKPOINT, weights_only=True)["model"] for folder in (one, two)]
    for name, value in states[0].items():
        torch.testing.assert_close(states[1][name], value, rtol=1e-4, atol=1e-6)


def test_batch_and_processes(tmp_path, people):
    recipe = config.load(write_recipe(tmp_path, batch=3))
    with pytest.raises(ArgumentError, match="multiple of the 2 processes"):
        train.Trainer(recipe, people, processes=train.Processes(0, 2))
    recipe = config.load(write_recipe(tmp_path, sync_norm=True))
    with pytest.raises(ArgumentError, match="sync_norm"):
        train.Trainer(recipe, people, processes=train.Processes(0, 2))


def test_full_disk_loses_nothing(tmp_path, people, monkeypatch):
    """The third checkpoint does not fit: the second stays, and the run goes on from there to the same end."""
    path = write_recipe(tmp_path)
    whole = train.main(path, output=tmp_path / "whole", data_root=people, progress=False)
    save, saved = torch.save, []

    def full(state, stream):
        saved.append(state["step"])
        if len(saved) == 3:
            stream.write(b"half")
            raise OSError(28, "No space left on device")
        save(state, stream)

    folder = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", full)
        with pytest.raises(OutputError, match=r"checkpoint\.pt: No space left"):
            train.main(path, output=folder, data_root=people, progress=False)
    assert saved == [2, 4, 6]
    assert torch.load(folder / train.CHECKPOINT, weights_only=True)["step"] == 4
    assert len(rows(folder / "log.csv")) == 6
    resumed = train.main(path, output=folder, data_root=people, resume=True, progress=False)
    one, two = (models.load(path).state_dict() for path in (whole, resumed))
    assert one.keys() == two.keys()
    for name, value in one.items():
        assert torch.equal(two[name], value)
    assert [p.name for p in folder.iterdir() if p.name.startswith(".")] == []


def test_log_keeps_whole_rows(tmp_path, monkeypatch):
    """A row cut short by a full disk goes; the others stay, even if the disk is full again."""
    path = tmp_path / "log.csv"
    path.write_text("step,loss\n1,0.5\n2,0.25\n3,0.1\n4")
    log.Log(path, ("step", "loss"), 2)
    assert path.read_text() == "step,loss\n1,0.5\n2,0.25\n"

    def full(path, write):
        raise OutputError("cannot write")

    monkeypatch.setattr(log, "write_atomically", full)
    with pytest.raises(OutputError):
        log.Log(path, ("step", "loss"), 2)
    assert path.read_text() == "step,loss\n1,0.5\n2,0.25\n"
    assert files.write_atomically is not full


def test_pictures_and_curves(tmp_path, people):
    path = write_recipe(tmp_path, pictures_every=3)
    train.main(path, output=tmp_path / "run", data_root=people, progress=False)
    pictures = sorted((tmp_path / "run" / "pictures").iterdir())
    assert [p.name for p in pictures] == ["0000003.png", "0000006.png"]
    # Two images of 40 x 48, each beside its labels and the prediction.
    assert Image.open(pictures[0]).size == (3 * 48, 2 * 40)
    assert importlib.util.find_spec("tensorboard") is not None, "it is among the packages for tests"
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    curves = EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    curves.Reload()
    logged = [float(row["loss"]) for row in rows(tmp_path / "run" / "log.csv")]
    assert [event.value for event in curves.Scalars("train/loss")] == pytest.approx(logged, abs=1e-4)
    assert len(curves.Scalars("val/miou")) == 2


def test_without_tensorboard(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    board = log.Board(tmp_path / "curves", 0)
    board.write(1, {"loss": 1.0})
    board.close()
    assert not (tmp_path / "curves").exists()


def test_base(tmp_path):
    (tmp_path / "base.yaml").write_text(yaml.safe_dump({"batch": 3, "schedule": {"steps": 5, "warmup": 1}}))
    (tmp_path / "middle.yaml").write_text("base: base.yaml\ndata: {name: camvid}")
    (tmp_path / "top.yaml").write_text("base: middle.yaml\nmodel: {name: enet}\nschedule: {steps: 7}")
    recipe = config.load(tmp_path / "top.yaml")
    assert (recipe.batch, recipe.schedule.steps, recipe.schedule.warmup) == (3, 7, 1)
    (tmp_path / "base.yaml").write_text("base: top.yaml")
    with pytest.raises(ArgumentError, match="back to itself"):
        config.load(tmp_path / "top.yaml")
    (tmp_path / "base.yaml").unlink()
    with pytest.raises(FileNotFoundError, match=r"base\.yaml"):
        config.load(tmp_path / "top.yaml")


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("optimiser.name=rmsprop", r"optimiser\.name must be adamw or sgd"),
        ("optimiser.frozen=[encoder]", r"optimiser\.frozen"),
        ("optimiser.rates={decoder: 2}", r"optimiser\.rates"),
        ("autocast=float16", "autocast must be bfloat16"),
        ("accumulate=0", "accumulate"),
        ("data.name=mnist", r"data\.name must be one of camvid"),
        ("loss.weights=yes", r"loss\.weights must be a valid string"),
        ("augmentation.flip=1", r"augmentation\.flip must be a valid boolean"),
        ("sync_norm=3", "sync_norm must be a valid boolean"),
    ],
)
def test_wrong_entry(tmp_path, people, key, message):
    path = write_recipe(tmp_path)
    with pytest.raises(ArgumentError, match=message):
        train.Trainer(config.load(path, [key]), people)


def test_starts_from_weights(tmp_path, people):
    """Of the same network, at once before its CRF; what has another shape starts afresh, what is foreign is refused."""
    first = train.Trainer(config.load(write_recipe(tmp_path, model=_vgg())), people)
    models.save(first.model, tmp_path / "first.safetensors", first.info())
    init = {"weights": str(tmp_path / "first.safetensors")}
    second = train.Trainer(config.load(write_recipe(tmp_path, model=_vgg(crf="rnn"), init=init, seed=1)), people)
    ours, theirs = second.model.network.state_dict(), first.model.state_dict()
    for name, value in theirs.items():
        # The file has matrices in fp16.
        torch.testing.assert_close(ours[name], value, rtol=2**-11, atol=2**-25)

    wider = models.build("dilated_vgg16", **_vgg(context="basic")["arguments"])
    fresh = start.from_weights(wider, init["weights"]).fresh
    assert fresh
    assert all(name.startswith("context") for name in fresh)
    with pytest.raises(ArgumentError, match=r"init\.weights"):
        start.from_weights(models.build("msd", depth=3), init["weights"])


def _vgg(**arguments):
    return {"name": "dilated_vgg16", "arguments": {"num_classes": 2, "width": 1, "padding": "zeros", **arguments}}
