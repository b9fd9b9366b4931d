"""Losses: against PyTorch's cross entropy, on cases worked by hand, and cut into parts."""

import math

import pytest
import torch
from torch.nn import functional as F

from atrousops.common.checks import ArgumentError
from atrousops.data import VOID
from atrousops.engine.losses import Criterion, Loss, class_weights


class Fixed(torch.nn.Module):
    """Answers the same scores, whatever the image."""

    def __init__(self, **scores):
        super().__init__()
        self.scores = scores

    def forward(self, images):
        return self.scores


@pytest.fixture
def case():
    scores, aux = torch.randn(2, 2, 4, 5, 6).unbind(0)
    labels = torch.randint(0, 4, (2, 5, 6))
    # Different in the two images, so that a mean of means would show.
    labels[0, :3], labels[1, 4, :2] = VOID, VOID
    return scores, aux, labels


def loss(recipe, network, labels, weights=None):
    criterion = Criterion(recipe, weights)
    images = torch.zeros(len(labels), 3, *labels.shape[-2:])
    return criterion(network, images, labels) / criterion.denominator(network, labels)


@pytest.mark.parametrize("weights", [None, torch.tensor([0.5, 2.0, 0.0, 1.0])])
def test_cross_entropy(case, weights):
    scores, aux, labels = case
    found = loss(Loss(aux=0.3), Fixed(out=scores, aux=aux), labels, weights)
    wanted = [F.cross_entropy(s, labels, weights, ignore_index=VOID) for s in (scores, aux)]
    torch.testing.assert_close(found, wanted[0] + 0.3 * wanted[1])
    # Objects' numbers do not matter to a network of classes.
    numbered = torch.stack([labels, torch.arange(60).view(2, 5, 6)], dim=1)
    torch.testing.assert_close(loss(Loss(aux=0.3), Fixed(out=scores, aux=aux), numbered, weights), found)


def test_hard_pixels(case):
    """The hardest quarter of what counts in each image, rounded up: 3 of 12 and 7 of 28."""
    scores, _, labels = case
    losses = F.cross_entropy(scores, labels, ignore_index=VOID, reduction="none").flatten(1)
    hardest = torch.cat([one.sort(descending=True).values[:count] for one, count in zip(losses, (3, 7), strict=True)])
    torch.testing.assert_close(loss(Loss(hard=0.25), Fixed(out=scores), labels), hardest.mean())


def test_all_void():
    labels = torch.full((1, 2, 2), VOID)
    criterion = Criterion(Loss(hard=0.5))
    assert criterion(Fixed(out=torch.zeros(1, 3, 2, 2)), torch.zeros(1, 3, 2, 2), labels) == 0
    assert criterion.denominator(Fixed(), labels) == 0


def test_every_scale_counts():
    """DeepLab v2 adds the loss of each scale to that of their maximum."""
    labels, images = torch.randint(0, 3, (1, 2, 2)), torch.zeros(1, 3, 2, 2)
    first, second = torch.randn(2, 1, 3, 2, 2)
    network = Fixed(**{"out": torch.maximum(first, second), "scale1.0": first, "scale0.5": second})
    parts = [Criterion(Loss())(Fixed(out=x), images, labels) for x in (torch.maximum(first, second), first, second)]
    torch.testing.assert_close(Criterion(Loss())(network, images, labels), sum(parts))
    torch.testing.assert_close(Criterion(Loss(scales=0.0))(network, images, labels), parts[0])


def test_parts_add_up(case):
    scores, _, labels = case
    for recipe in (Loss(), Loss(hard=0.25)):
        criterion = Criterion(recipe, torch.tensor([0.5, 2.0, 0.0, 1.0]) if recipe.hard == 1 else None)
        parts = [(Fixed(out=scores[i : i + 1]), labels[i : i + 1]) for i in range(2)]
        images = torch.zeros(1, 3, 5, 6)
        total = sum(criterion(n, images, y) for n, y in parts) / sum(criterion.denominator(n, y) for n, y in parts)
        whole = criterion(Fixed(out=scores), torch.zeros(2, 3, 5, 6), labels)
        torch.testing.assert_close(total, whole / criterion.denominator(Fixed(out=scores), labels))


class Labels:
    """Two images of ten pixels: class 0 has 8 + 2, class 1 has 5 of the second, class 2 none; the rest is void."""

    classes = ("a", "b", "c")
    names = ("one", "two")

    def read(self, name):
        labels = [0] * 8 + [VOID] * 2 if name == "one" else [0] * 2 + [1] * 5 + [VOID] * 3
        return torch.zeros(3, 1, 10), torch.tensor([labels])


def test_class_weights():
    assert class_weights("none", Labels()) is None
    # f_0 = 10 / 15 over both images, f_1 = 5 / 7 where it is shown; their median is between the two.
    frequency = torch.tensor([10 / 15, 5 / 7])
    torch.testing.assert_close(class_weights("median_frequency", Labels())[:2], frequency.mean() / frequency)
    part = 10 / 15, 5 / 15
    wanted = torch.tensor([*(1 / math.log(1.02 + p) for p in part), 0.0])
    torch.testing.assert_close(class_weights("enet", Labels()), wanted)
    with pytest.raises(ArgumentError, match="median_frequency"):
        class_weights("inverse", Labels())


def test_bad_part():
    for hard in (0.0, 1.5):
        with pytest.raises(ArgumentError, match="hard"):
            Criterion(Loss(hard=hard))
