"""ESPNet: what every network is held to, its parameters, and its published weights turned from BGR to RGB."""

import torch
from networks import parameters

from atrousops import models
from atrousops.models.published.sacmehta import espnet_from_bgr


def test_parameters():
    """0.364 M in the paper, for 20 classes (section 5); we count 0.365 M, to which the weights fit."""
    assert abs(parameters("espnet", num_classes=20) / 1e6 - 0.364) < 0.002


def test_bgr():
    """Every weight that reads the image is turned: a network of random numbers answers the same."""
    networks = [models.espnet(11, width=12).double().eval() for _ in range(2)]
    state = {name: torch.rand_like(value, dtype=torch.float64) for name, value in networks[0].state_dict().items()}
    networks[0].load_state_dict(state)
    networks[1].load_state_dict(espnet_from_bgr(state))
    image = torch.rand(1, 3, 24, 32, dtype=torch.float64)
    with torch.inference_mode():
        bgr, rgb = networks[0](image.flip(1))["out"], networks[1](image)["out"]
        straight = networks[0](image)["out"]
    torch.testing.assert_close(rgb, bgr)
    assert (straight - bgr).abs().max() > 1e-3 * bgr.abs().max()
