"""A network's outputs against the classes of its data, before anything is computed; all numbers are told."""

import pytest
import torch
from people import write_people, write_recipe
from PIL import Image
from torch import nn

from atrousops import cli, models
from atrousops.common.checks import ArgumentError
from atrousops.data import VOCPerson, transforms
from atrousops.engine import evaluate, outputs, predict, train, tune_crf


@pytest.fixture
def people(tmp_path):
    return str(write_people(tmp_path))


def saved(folder, num_classes=2, classes=("background", "person"), network="enet"):
    """Fresh weights, whose file says `classes` whatever the network's outputs."""
    path = folder / "fresh.safetensors"
    info = models.Info(network, {"num_classes": num_classes}, classes, (0.5,) * 3, (0.2,) * 3, 64)
    models.save(models.build(network, num_classes=num_classes), path, info)
    return path


def test_every_network_tells_its_number_of_classes():
    for name in models.list("networks"):
        assert isinstance(outputs.count(name, {}), int), name
        assert outputs.count(name, {"num_classes": 7}) == 7


# Of fewer outputs labels are out of range; of more, all is trained, and the others are never an answer.
@pytest.mark.parametrize("arguments", [{"num_classes": 3}, {"num_classes": 1}, {}])
def test_training(tmp_path, people, arguments, capsys):
    recipe = write_recipe(tmp_path, model={"name": "enet", "arguments": arguments})
    got = arguments.get("num_classes", 12)  # enet's default
    said = (
        "config: model enet must have num_classes = 2, as voc_person has the classes background, person; "
        f"got {got}. Set model.arguments.num_classes=2, or another data.name."
    )
    with pytest.raises(ArgumentError) as caught:
        train.main(recipe, output=tmp_path / "run", data_root=people, progress=False)
    assert str(caught.value) == said
    assert not (tmp_path / "run").exists()
    assert cli.main(["train", str(recipe), "--output", str(tmp_path / "run"), "--data", people]) == 1
    assert capsys.readouterr().err == f"atrousops: {said}\n"


def test_evaluation(tmp_path, people):
    recipe = write_recipe(tmp_path, model={"name": "enet"})
    for main in (evaluate.main, tune_crf.main):
        said = r"evaluate: weights must have an output for each of the 2 classes of voc_person.*; got 3 outputs"
        with pytest.raises(ArgumentError, match=said):
            main(recipe, saved(tmp_path, 3), data_root=people, progress=False)
        with pytest.raises(ArgumentError, match=r"be of the classes background, person; got background, cat"):
            main(recipe, saved(tmp_path, 2, ("background", "cat")), data_root=people, progress=False)
    other = write_recipe(tmp_path, model={"name": "enet", "arguments": {"num_classes": 3}})
    with pytest.raises(ArgumentError, match=r"config: model enet must have num_classes = 2.*; got 3"):
        evaluate.main(other, saved(tmp_path), data_root=people, progress=False)
    nowhere = write_recipe(tmp_path, data={"name": "nowhere"})
    with pytest.raises(ArgumentError, match=r"config: data\.name must be one of camvid"):
        evaluate.main(nowhere, saved(tmp_path), data_root=people, progress=False)


def test_a_network_of_ones_own(people):
    """Three scores for two classes: a third answer would count as an error of the labels."""
    data = VOCPerson(people, "val", transforms.evaluation())
    for run in (evaluate.score, tune_crf.search):
        said = r"model must give a score for each of the 2 classes background, person; got 3 scores a pixel"
        with pytest.raises(ArgumentError, match=said):
            run(Three(), data, progress=False)


class Three(nn.Module):
    """Three scores a pixel."""

    def __init__(self):
        super().__init__()
        self.unused = nn.Parameter(torch.zeros(()))

    def forward(self, images):
        return {"out": images}


def test_segmenting(tmp_path, capsys):
    """The file's list of classes is not that of its network's outputs: known before a photograph is read."""
    path = saved(tmp_path, 3)
    with pytest.raises(ArgumentError, match=r"load_predictor: weights must have an output for each of the 2 classes"):
        predict.load_predictor(path)
    Image.new("RGB", (8, 8)).save(tmp_path / "photo.png")
    assert cli.main(["segment", str(tmp_path / "photo.png"), "--weights", str(path), "-o", str(tmp_path / "out")]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert str(path) in line
    assert "3 outputs" in line
