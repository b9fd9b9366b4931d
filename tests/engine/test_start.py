"""Starting from what people have: classifiers, segmentation networks of other classes and channels, checkpoints."""

import pickle
from functools import cache

import own
import pytest
import torch
import torchvision
import yaml
from safetensors.torch import save_file
from torch import nn

from atrousops import cli, models
from atrousops.common.checks import ArgumentError
from atrousops.engine import config, start, train

DATA = {
    "name": "folder",
    "images": "images",
    "masks": "masks",
    "classes": ["ground", "disc"],
    "fractions": {"val": 0.3},
}
NETWORK = {"name": "deeplabv3plus", "arguments": {"backbone": "resnet18", "num_classes": 2}}


def recipe(folder, channels=3, model=NETWORK, **changes):
    statistics = {"mean": [0.5] * channels, "std": [0.25] * channels}
    parts = {
        "model": {**model, "arguments": {**model["arguments"], "in_channels": channels}},
        "data": {**DATA, "root": str(folder), **statistics},
        "augmentation": {"crop": 32, "size": 64},
        "schedule": {"steps": 4},
        "batch": 2,
        "checkpoint_every": 1,
    }
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump({**parts, **changes}))
    return path


@pytest.fixture(scope="module")
def model():
    """One network for all files that are to fill its encoder."""
    return models.build("deeplabv3plus", backbone="resnet18", num_classes=2)


@cache
def classifier(name="resnet18"):
    torch.manual_seed(1)
    return torchvision.models.get_model(name, weights=None).state_dict()


@pytest.mark.parametrize("kind", ["safetensors", "checkpoint", "half"])
def test_a_classifier_as_trunk(tmp_path, kind, model):
    """In whatever form the file is, the encoder has its weights, and its head is named as not used."""
    given, path = classifier(), tmp_path / f"trunk.{'safetensors' if kind == 'safetensors' else 'pth'}"
    if kind == "safetensors":
        save_file(given, path)
    else:
        parallel = {f"module.{name}": value for name, value in given.items()}
        half = {name: value.half() if value.is_floating_point() else value for name, value in given.items()}
        torch.save(half if kind == "half" else {"epoch": 3, "state_dict": parallel}, path)
    for value in model.state_dict().values():
        value.zero_()
    account = start.from_trunk(model, config.load(recipe(tmp_path, init={"trunk": str(path)})), None)
    for name, value in model.backbone.state_dict().items():
        torch.testing.assert_close(value, given[name], rtol=2**-11 if kind == "half" else 0, atol=1e-6)
    assert {*account.unused} == {"fc.weight", "fc.bias"}
    assert not account.adapted
    assert not account.fresh
    assert str(account).startswith(f"start from {path}: 120 entries loaded; 2 of the file not used: fc.")


def test_a_trunk_for_rgb_reads_five_channels(tmp_path, capsys):
    """By the command line: w'_kc = 3/5 w_k,(c mod 3), as timm does; what happened is told."""
    own.write(tmp_path, "images/{}.tif", save=own.save_floats, channels=5)
    torch.save(given := classifier(), tmp_path / "trunk.pth")
    path = recipe(tmp_path, 5, init={"trunk": str(tmp_path / "trunk.pth")}, schedule={"steps": 1})
    trainer = train.Trainer(config.load(path, ["data.scale=3000"]), str(tmp_path))
    stem = given["conv1.weight"]
    wanted = torch.stack([stem[:, c % 3] * 3 / 5 for c in range(5)], 1)
    torch.testing.assert_close(trainer.model.backbone.conv1.weight.contiguous(), wanted)
    assert "119 entries loaded; 1 adapted: conv1.weight (3 channels -> 5);" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("resnet50", r"init\.trunk must fit most of deeplabv3plus; got .*trunk\.pth, of which 5\d%"),
        (
            "mobilenet_v2",
            r"of which 0% fit: the network's conv1\.weight is not in the file; the file has",
        ),
    ],
)
def test_a_trunk_of_another_network(tmp_path, given, message, model):
    torch.save(classifier(given), tmp_path / "trunk.pth")
    with pytest.raises(ArgumentError, match=message):
        start.from_trunk(model, config.load(recipe(tmp_path, init={"trunk": str(tmp_path / "trunk.pth")})), None)


def test_no_trunk(tmp_path, model):
    with pytest.raises(ArgumentError, match=r"config: init\.trunk must be a file, from .*; there is no r50\.pth\."):
        start.from_trunk(model, config.load(recipe(tmp_path, init={"trunk": "r50.pth"})), str(tmp_path))
    network = models.build("msd", depth=2)
    with pytest.raises(
        ArgumentError, match=r"init\.trunk must be null for a network without a backbone.*init\.weights"
    ):
        start.from_trunk(network, config.load(recipe(tmp_path, init={"trunk": "r50.pth"})), None)


class Extractor(nn.Module):
    """A backbone in timm's names for the features of a ConvNeXt."""

    def __init__(self):
        super().__init__()
        self.network = nn.ModuleDict({"stem_0": nn.Conv2d(3, 4, 4), "stages_0": nn.Sequential(nn.Conv2d(4, 4, 1))})


def test_timms_names():
    """The classifier's `stages.0.0.weight` is the extractor's `network.stages_0.0.weight`."""
    torch.manual_seed(1)
    values = {"stem.0.weight": torch.rand(4, 3, 4, 4), "stem.0.bias": torch.rand(4), "head.fc.weight": torch.rand(9, 4)}
    values |= {"stages.0.0.weight": torch.rand(4, 4, 1, 1), "stages.0.0.bias": torch.rand(4)}
    backbone = Extractor()
    account = start.fill(backbone, values, "init.trunk", "file", "network")
    assert torch.equal(backbone.network["stages_0"][0].weight, values["stages.0.0.weight"])
    assert torch.equal(backbone.network["stem_0"].bias, values["stem.0.bias"])
    assert account.unused == ("head.fc.weight",)


def test_weights_of_other_classes(tmp_path):
    """Outputs of classes of the same name move to their places, others start afresh; the stem goes to one channel."""
    theirs = models.build("unet", num_classes=4, width=4)
    info = models.Info(
        "unet", {"num_classes": 4, "width": 4}, ("sky", "disc", "tree", "ground"), (0.5,) * 3, (0.25,) * 3, 64
    )
    models.save(theirs, tmp_path / "theirs.safetensors", info)
    ours = models.build("unet", num_classes=3, in_channels=1, width=4)
    before = {name: value.clone() for name, value in ours.state_dict().items()}
    account = start.from_weights(ours, str(tmp_path / "theirs.safetensors"), ("ground", "road", "disc"))
    after, given = ours.state_dict(), theirs.state_dict()
    (head,) = [name for name, why in account.adapted.items() if "classes" in why and before[name].dim() == 4]
    axis = next(a for a in range(4) if before[head].shape[a] != given[head].shape[a])
    rows = [after[head].select(axis, n) for n in range(3)]
    for row, number in ((rows[0], 3), (rows[2], 1)):
        torch.testing.assert_close(row, given[head].select(axis, number), rtol=2**-11, atol=1e-6)
    assert torch.equal(rows[1], before[head].select(axis, 1))
    assert account.adapted[head] == "2 of 3 classes by name, the others newly initialised"
    assert "3 channels -> 1" in account.adapted.values()
    assert not account.fresh


@pytest.mark.parametrize(
    ("classes", "note"),
    [
        (("sky", "disc"), ""),
        ((), ""),
        (("disc", "sky"), "outputs are taken over by number, so that disc (number 0) begins as sky of the file"),
        (("sky", "coin"), "outputs are taken over by number, so that coin (number 1) begins as disc of the file"),
    ],
    ids=["the same", "unknown", "another order", "another name"],
)
def test_as_many_classes_of_other_names_are_told(classes, note, tmp_path):
    theirs = models.build("unet", num_classes=2, width=4)
    info = models.Info("unet", {"num_classes": 2, "width": 4}, ("sky", "disc"), (0.5,) * 3, (0.25,) * 3, 64)
    models.save(theirs, tmp_path / "theirs.safetensors", info)
    account = start.from_weights(
        models.build("unet", num_classes=2, width=4), str(tmp_path / "theirs.safetensors"), classes
    )
    assert account.note == note
    assert str(account).endswith(note or "entries loaded")


def test_a_file_of_torchvision_of_other_classes(tmp_path):
    """Whose classes have no names: the last layers start afresh, all else is loaded, and both are told."""
    theirs = torchvision.models.segmentation.lraspp_mobilenet_v3_large(
        weights=None, weights_backbone=None, num_classes=21
    )
    torch.save(theirs.state_dict(), tmp_path / "file.pth")
    ours = models.build("lraspp_mobilenet_v3_large", num_classes=2)
    account = start.from_weights(ours, str(tmp_path / "file.pth"), ("ground", "disc"))
    given = theirs.state_dict()
    assert all(torch.equal(ours.state_dict()[name], given[name]) for name in account.loaded)
    assert len(account.loaded) > 200
    assert account.fresh["classifier.low_classifier.weight"] == "21x40x1x1 in the file, 2x40x1x1 here"
    assert {*account.fresh} == {f"classifier.{n}_classifier.{p}" for n in ("low", "high") for p in ("weight", "bias")}


def test_weights_that_will_not_do(tmp_path):
    network = models.build("enet", num_classes=2)
    cases = {}
    torch.save({f"other.{name}": value for name, value in network.state_dict().items()}, tmp_path / "other.pth")
    cases["other.pth"] = r"config: init\.weights must fit most of ENet; got .*of which 0% fit"
    torch.save(network.state_dict(), tmp_path / "cut.pth")
    whole = (tmp_path / "cut.pth").read_bytes()
    (tmp_path / "cut.pth").write_bytes(whole[: len(whole) // 2])
    cases["cut.pth"] = r"init\.weights: .*cut\.pth must be a state dict, whole; got"
    save_file(network.state_dict(), tmp_path / "cut.safetensors")
    (tmp_path / "cut.safetensors").write_bytes((tmp_path / "cut.safetensors").read_bytes()[:-100])
    cases["cut.safetensors"] = r".*cut\.safetensors must be a whole safetensors file"
    (tmp_path / "code.pth").write_bytes(pickle.dumps(Runs(), protocol=2))
    cases["code.pth"] = r"init\.weights: .*code\.pth must be a state dict, whole"
    for name, message in cases.items():
        with pytest.raises(ArgumentError, match=message):
            start.from_weights(network, str(tmp_path / name))
    assert not Runs.ran
    with pytest.raises(FileNotFoundError, match=r"no file .*none\.pth"):
        start.from_weights(network, str(tmp_path / "none.pth"))


class Runs:
    """Code in a pickle, which must not run."""

    ran = False

    def __reduce__(self):
        return setattr, (Runs, "ran", True)


SMALL = {"name": "msd", "arguments": {"num_classes": 2, "depth": 4}}


def test_resuming_from_what_does_not_fit(tmp_path, capsys):
    """Another number of classes, another optimiser, a checkpoint cut short, weights: file and remedy in one line."""
    own.write(tmp_path)
    path = recipe(tmp_path, model=SMALL, schedule={"steps": 2, "stop": 1})
    run = tmp_path / "run"
    command = ["train", str(path), "--output", str(run)]
    assert cli.main(command) == 0
    saved = (run / "checkpoint.pt").read_bytes()

    def resumed(*changes):
        capsys.readouterr()
        assert cli.main([*command, "--resume", *(f"--set={change}" for change in changes)]) == 1
        return capsys.readouterr().err.splitlines()[-1]

    more = resumed("model.arguments.num_classes=3", "data.classes=[ground, disc, c]")
    said = f"resume: {run / 'checkpoint.pt'} must be of the data's"
    assert f"{said} 3 classes, in their order; got 2 classes, of which number 2 is none, where the data has c." in more
    turned = resumed("data.classes=[disc, ground]")
    first = "number 0 is ground, where the data has disc. Give the classes their former names and order"
    assert f"{said} 2 classes, in their order; got 2 classes, of which {first}" in turned
    # As versions wrote it that kept no classes: what has another shape is seen.
    state = torch.load(run / "checkpoint.pt")
    assert state.pop("classes") == ["ground", "disc"]
    torch.save(state, run / "checkpoint.pt")
    old = resumed("model.arguments.num_classes=3", "data.classes=[ground, disc, c]")
    assert f"load: {run / 'checkpoint.pt'} must hold the weights of MSD; got" in old
    assert "of another shape, such as" in old
    assert old.endswith(start.RESUME)
    other = resumed("optimiser.weight_decay=0.0")
    assert f"resume: {run / 'checkpoint.pt'} must be of the recipe's optimiser; got" in other
    (run / "checkpoint.pt").write_bytes(saved[: len(saved) // 2])
    cut = resumed()
    assert f"resume: {run / 'checkpoint.pt'} must be a whole checkpoint of `atrousops train`" in cut
    assert cut.endswith("Remove it and train again, without --resume.")
    torch.save({"weight": torch.zeros(1)}, run / "checkpoint.pt")
    assert "it is another file. To start from weights, name them in init.weights." in resumed()
    (run / "checkpoint.pt").write_bytes(saved)
    assert cli.main([*command, "--resume", "--set=schedule.stop=2"]) == 0


def test_weights_of_a_run_that_was_stopped(tmp_path):
    """A checkpoint is no file of weights; the message says how it becomes one, and that does it."""
    own.write(tmp_path)
    command = ["train", str(recipe(tmp_path, model=SMALL)), "--output", str(tmp_path)]
    path = tmp_path / "checkpoint.pt"
    trainer = train.Trainer(config.load(tmp_path / "recipe.yaml"), str(tmp_path))
    trainer.train_step()
    trainer.save(path)
    with pytest.raises(models.WeightsError, match=r"got one of PyTorch's\. .* --resume --set schedule\.stop=1`"):
        models.load(path)
    assert cli.main([*command, "--resume", "--set", "schedule.stop=1"]) == 0
    state = models.load(tmp_path / "weights.safetensors").state_dict()
    average = trainer.average.state_dict()
    assert all(torch.equal(state[name], (t.half() if t.dim() > 1 else t).float()) for name, t in average.items())
