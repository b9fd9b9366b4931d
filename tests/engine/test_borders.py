"""Borders between objects: hand-worked, against distances pixel by pixel, and as a part of the loss."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from atrousops.common.checks import ArgumentError
from atrousops.engine.borders import border_weights, separate
from atrousops.engine.losses import Criterion, Loss

VOID = 255


def labelled(numbers, void=()):
    """(1, 2, H, W) of a picture of numbers; class 1 has the objects."""
    numbers = torch.as_tensor(numbers)
    classes = (numbers > 0).long()
    for y, x in void:
        classes[y, x] = VOID
    return torch.stack([classes, numbers])[None]


def test_background_comes_between_objects_that_touch():
    # Objects 1 and 2 touch along an edge, 2 and 3 at a corner; 4 touches none.
    labels = labelled([[1, 1, 2, 2, 0, 0], [1, 1, 2, 2, 0, 0], [0, 0, 0, 0, 3, 0], [4, 0, 0, 0, 3, 0]])
    kept = labels.clone()
    expected = [[1, 0, 0, 1, 0, 0], [1, 0, 0, 0, 0, 0], [0, 0, 0, 0, 0, 0], [1, 0, 0, 0, 1, 0]]
    assert separate(labels)[0].tolist() == expected
    assert torch.equal(labels, kept)


def test_void_is_no_object_and_stays_void():
    # The fill of a crop beyond the image is 255 in both channels.
    labels = labelled([[7, 255], [7, 255]], void=((0, 1), (1, 1)))
    assert separate(labels)[0].tolist() == [[1, VOID], [1, VOID]]
    assert not border_weights(labels, 10, 5).any()


def test_weights_of_a_row_by_hand():
    # d1 + d2 of the pixels between: 1 + 3, 2 + 2, 3 + 1. Outside d2 = 6 is within 3 x 2 pixels and 7 is not.
    labels = labelled([[0, 0, 0, 1, 0, 0, 0, 2, 0, 0, 0]])
    at = {distance: 10 * math.exp(-(distance**2) / 8) for distance in (4, 6, 8)}
    expected = [[0, at[8], at[6], 0, at[4], at[4], at[4], 0, at[6], at[8], 0]]
    torch.testing.assert_close(border_weights(labels, 10.0, 2.0)[0], torch.tensor(expected))


@pytest.mark.parametrize("seed", range(4))
def test_weights_against_distances_pixel_by_pixel(seed):
    rng = np.random.default_rng(seed)
    numbers = np.zeros((23, 31), dtype=np.int64)
    for number in range(1, 8):
        y, x = rng.integers(0, 20), rng.integers(0, 28)
        numbers[y : y + rng.integers(1, 5), x : x + rng.integers(1, 5)] = 1000 * number
    labels = labelled(numbers)
    labels = torch.stack([separate(labels), labels[:, 1]], dim=1)
    objects = [np.argwhere((numbers == n) & (labels[0, 0].numpy() > 0)) for n in np.unique(numbers[numbers > 0])]
    expected = torch.zeros(1, 23, 31)
    for y, x in np.argwhere(labels[0, 0].numpy() == 0):
        near = sorted(np.abs(o - (y, x)).max(1).min() for o in objects if len(o))
        if len(near) > 1 and near[1] <= 6:
            expected[0, y, x] = 10 * math.exp(-((near[0] + near[1]) ** 2) / 8)
    torch.testing.assert_close(border_weights(labels, 10.0, 2.0), expected)


class Scores(nn.Module):
    def __init__(self, scores):
        super().__init__()
        self.scores = nn.Parameter(scores)

    def forward(self, images):
        return {"out": self.scores}


@pytest.mark.parametrize("weights", [None, [0.5, 2.0]])
def test_loss_is_a_mean_by_weights_of_classes_and_borders(weights):
    numbers = torch.zeros(2, 12, 12, dtype=torch.long)
    numbers[:, 2:6, 2:6], numbers[:, 2:6, 6:10], numbers[:, 9:, 3:8] = 1, 2, 3
    labels = torch.cat([labelled(n, void=((0, 0), (11, 11))) for n in numbers])
    scores = torch.randn(2, 2, 12, 12, generator=torch.Generator().manual_seed(0))
    given = None if weights is None else torch.tensor(weights)
    criterion = Criterion(Loss(border=10.0), given)
    network = Scores(scores)
    loss = criterion(network, torch.zeros(2, 3, 12, 12), labels) / criterion.denominator(network, labels)
    target = separate(labels)
    total = whole = 0.0
    extra = border_weights(torch.stack([target, labels[:, 1]], 1), 10.0, 5.0)
    for n, y, x in (target != VOID).nonzero().tolist():
        kind = int(target[n, y, x])
        weight = (1.0 if weights is None else weights[kind]) + float(extra[n, y, x])
        total -= weight * float(scores[n, :, y, x].double().log_softmax(0)[kind])
        whole += weight
    assert extra.max() > 5
    assert loss.item() == pytest.approx(total / whole, rel=1e-5)
    loss.backward()
    assert network.scores.grad.isfinite().all()


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (Loss(border=-1.0), r"must be at least 0, and deviation above 0; got border -1 and deviation 5"),
        (Loss(border=1.0, deviation=0.0), r"got border 1 and deviation 0"),
        (Loss(name="dice", border=1.0), r"name must be cross_entropy with hard 1 .*; got dice with hard 1"),
        (Loss(hard=0.5, border=1.0), r"got cross_entropy with hard 0.5"),
    ],
)
def test_what_a_border_does_not_go_with(loss, message):
    with pytest.raises(ArgumentError, match=message):
        Criterion(loss)


def test_borders_need_numbered_objects():
    labels = torch.zeros(1, 4, 4, dtype=torch.long)
    with pytest.raises(ArgumentError, match=r"number its objects where loss.border is not 0"):
        Criterion(Loss(border=10.0)).denominator(nn.Identity(), labels)
