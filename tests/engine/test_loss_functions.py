"""Losses of pixels and of images: by hand, against PyTorch, and against segmentation_models_pytorch."""

import math

import pytest
import torch
from test_losses import Fixed, loss
from torch.nn import functional as F

from atrousops.common.checks import ArgumentError
from atrousops.data import VOID
from atrousops.engine import config
from atrousops.engine.losses import Criterion, Loss, binary_cross_entropy, dice, focal, lovasz

NAMES = ("cross_entropy", "binary_cross_entropy", "focal", "dice", "lovasz")
# Multiples of 1/8 without order, and labels in which every class occurs and one pixel is void.
SCORES = (torch.arange(24) * 7919 % 31).view(1, 3, 2, 4) / 8 - 2
LABELS = torch.tensor([[[0, 1, 2, VOID], [2, 0, 1, 1]]])


@pytest.mark.parametrize(
    ("name", "value"),
    # Of segmentation_models_pytorch 0.6.0 in mode "multiclass": FocalLoss(gamma=2), DiceLoss(smooth=0), LovaszLoss;
    # SoftBCEWithLogitsLoss on one-hot labels without the void pixel.
    [
        ("focal", 0.6213184595108032),
        ("dice", 0.862611711025238),
        ("lovasz", 0.8883866667747498),
        ("binary_cross_entropy", 1.120309591293335),
    ],
)
def test_segmentation_models(name, value):
    found = loss(Loss(name), Fixed(out=SCORES), LABELS)
    torch.testing.assert_close(found.item(), value, rtol=1e-6, atol=0)


def test_binary_cross_entropy_is_torchs():
    target = F.one_hot(LABELS.flatten(1).clamp_max(2), 3).mT.float()
    wanted = F.binary_cross_entropy_with_logits(SCORES.flatten(2), target, reduction="none").mean(1)
    wanted[0, 3] = 0
    torch.testing.assert_close(binary_cross_entropy(SCORES.flatten(2), LABELS.flatten(1)), wanted)


def by_hand():
    """Two pixels, two classes, probabilities 3/4 and 1/4; the labels are 0 and 1, so that the second is wrong."""
    return torch.tensor([[[math.log(3), math.log(3)], [0.0, 0.0]]]), torch.tensor([[0, 1]])


def test_dice_by_hand():
    # Class 0: 1 - 2 * 0.75 / (1.5 + 1); class 1: 1 - 2 * 0.25 / (0.5 + 1).
    torch.testing.assert_close(dice(*by_hand()), torch.tensor([(0.4 + 2 / 3) / 2]))
    torch.testing.assert_close(dice(*by_hand(), torch.tensor([3.0, 1.0])), torch.tensor([(3 * 0.4 + 2 / 3) / 4]))


def test_lovasz_by_hand():
    # Of either class the errors are 3/4 (the second pixel) and 1/4. Class 0: J = 1/2 with one false positive, then 1.
    # Class 1: the miss alone is J = 1 already.
    wanted = ((0.75 * 0.5 + 0.25 * 0.5) + 0.75) / 2
    torch.testing.assert_close(lovasz(*by_hand()), torch.tensor([wanted]))


def test_focal_by_hand():
    # sigmoid(log 3) = 3/4 and sigmoid(0) = 1/2. Pixel 0: q = 3/4, 1/2; pixel 1: 1/4, 1/2.
    half = 0.25 * math.log(2)
    wanted = [(math.log(4 / 3) / 16 + half) / 2, (9 / 16 * math.log(4) + half) / 2]
    torch.testing.assert_close(focal(*by_hand()), torch.tensor([wanted]))


def test_absent_classes_do_not_count():
    """A class that no pixel shows is not asked for; a perfect prediction costs nothing."""
    labels = torch.tensor([[0, 0, 1, VOID]])
    scores = 80 * F.one_hot(torch.tensor([[0, 0, 1, 2]]), 3).mT.float()
    for function in (dice, lovasz):
        torch.testing.assert_close(function(scores, labels), torch.zeros(1), rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_void(name):
    """Scores of void pixels change nothing, get no gradient, and an image of void alone is no image."""
    scores = SCORES.repeat(2, 1, 1, 1).requires_grad_()
    labels = torch.cat([LABELS, torch.full_like(LABELS, VOID)])
    found = loss(Loss(name), Fixed(out=scores), labels)
    torch.testing.assert_close(found, loss(Loss(name), Fixed(out=SCORES), LABELS))
    found.backward()
    assert bool(scores.grad.isfinite().all())
    assert scores.grad[0, :, 0, 3].abs().sum() == 0
    assert scores.grad[1].abs().sum() == 0
    assert scores.grad.abs().sum() > 0


@pytest.mark.parametrize("name", NAMES)
def test_parts_add_up(name):
    scores, labels = torch.randn(2, 3, 4, 5), torch.randint(0, 3, (2, 4, 5))
    labels[0, :2] = VOID
    criterion = Criterion(Loss(name), torch.tensor([0.5, 2.0, 1.0]))
    parts = [(Fixed(out=scores[i : i + 1]), labels[i : i + 1]) for i in range(2)]
    image = torch.zeros(1, 3, 4, 5)
    total = sum(criterion(n, image, y) for n, y in parts) / sum(criterion.denominator(n, y) for n, y in parts)
    whole = criterion(Fixed(out=scores), torch.zeros(2, 3, 4, 5), labels)
    torch.testing.assert_close(total, whole / criterion.denominator(Fixed(out=scores), labels))


@pytest.mark.parametrize("gamma", [0.5, 2.0])
def test_sure_and_right(gamma):
    """A pixel whose probability is 1 in fp32 has a finite gradient."""
    scores = torch.tensor([[[200.0], [-200.0]]], requires_grad=True)
    focal(scores, torch.tensor([[0]]), None, gamma).sum().backward()
    assert bool(scores.grad.isfinite().all())


@pytest.mark.parametrize("name", NAMES[1:])
def test_gradients(name):
    """Of the formula, in fp64, at scores of which no two pixels' errors are equal."""
    criterion = Criterion(Loss(name))
    function = {"focal": focal, "dice": dice, "lovasz": lovasz, "binary_cross_entropy": binary_cross_entropy}[name]
    scores = torch.randn(1, 3, 8, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda s: function(s, LABELS.flatten(1)), scores)
    assert criterion.recipe.name == name


def test_recipe(tmp_path):
    """A recipe chooses its loss, and a wrong one is told what there is."""
    text = "model: {name: msd}\ndata: {name: camvid}\nschedule: {steps: 1}\nloss: {name: focal, gamma: 1.5}\n"
    (tmp_path / "recipe.yaml").write_text(text)
    assert config.load(tmp_path / "recipe.yaml").loss == Loss("focal", 1.5)
    with pytest.raises(ArgumentError, match="name must be one of cross_entropy"):
        Criterion(Loss("hinge"))
    with pytest.raises(ArgumentError, match="hard must be 1 for dice"):
        Criterion(Loss("dice", hard=0.5))
    with pytest.raises(ArgumentError, match="gamma"):
        Criterion(Loss("focal", gamma=-1.0))
