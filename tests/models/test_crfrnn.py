"""CRF-RNN: gradients through mean field, and what the CRF adds to FCN-8s."""

import pytest
import torch
from people import write_people, write_recipe

from atrousops import models
from atrousops.common.checks import ArgumentError
from atrousops.engine import train
from atrousops.engine.predict import Predictor


def test_gradients_reach_both():
    """The loss behind the CRF moves its matrices, the scores and, once those are not zero, the first filter."""
    network = models.crfrnn(3, width=2).train()
    torch.nn.init.normal_(network.network.score.weight)
    image = torch.randn(1, 3, 24, 24)
    network(image)["out"][:, 0].mean().backward()
    for parameter in (*network.crf.parameters(), network.network.score.weight, network.network.backbone["0"].weight):
        assert parameter.grad.abs().max() > 0


def test_iterations():
    network = models.crfrnn(3, width=2)
    assert network.train().crf.iterations == 5
    assert network.eval().crf.iterations == 10


def test_is_the_crf_of_the_scores():
    network = models.crfrnn(3, width=2).eval()
    torch.nn.init.normal_(network.network.score.weight)
    image = torch.randn(1, 3, 20, 28)
    with torch.no_grad():
        scores = network.network(image)["out"]
        colours = 255 * (image * network.std + network.mean)
        wanted = network.crf(scores, colours.clamp(0, 255))
        got = network(image)["out"].softmax(dim=1)
    torch.testing.assert_close(got, wanted)


def test_colours_are_those_of_the_recipe(tmp_path):
    """Trained, loaded and in a Predictor, the CRF undoes the recipe's normalisation; once it undid ImageNet's."""
    mean, std = (0.498, 0.4, 0.5), (0.5, 0.502, 0.25)
    recipe = write_recipe(tmp_path, model={"name": "crfrnn", "arguments": {"num_classes": 2, "width": 2}})
    overrides = [f"data.mean={list(mean)}", f"data.std={list(std)}", "schedule.stop=1"]
    people = str(write_people(tmp_path))
    weights = train.main(recipe, output=tmp_path / "run", data_root=people, overrides=overrides, progress=False)
    network = models.load(weights)
    colours = []
    network.crf.register_forward_pre_hook(lambda crf, args: colours.append(args[1]))
    pixels = torch.rand(1, 3, 20, 28)
    input = (pixels - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
    with torch.no_grad():
        network(input)
    torch.testing.assert_close(colours, [255 * pixels])
    Predictor(network, network.info.classes, mean, std)
    with pytest.raises(ArgumentError, match="Predictor: mean and std must be those of the network's WithCRF"):
        Predictor(network, network.info.classes, mean, models.channels.STD)
