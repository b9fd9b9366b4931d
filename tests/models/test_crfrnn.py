"""CRF-RNN: gradients through mean field, and what the CRF adds to FCN-8s."""

import torch

from atrousops import models


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
