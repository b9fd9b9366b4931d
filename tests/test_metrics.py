"""The confusion matrix, on a case worked by hand."""

import pytest
import torch

from atrousops.common.checks import ArgumentError
from atrousops.metrics import BoundaryScores, ConfusionMatrix


@pytest.fixture
def matrix():
    """Ten pixels, two of them void: counts [[3, 1, 0], [1, 2, 0], [0, 1, 0]]."""
    found = ConfusionMatrix(3)
    found.update(torch.tensor([[0, 0, 0, 1, 0]]), torch.tensor([[0, 0, 0, 0, 255]]))
    found.update(torch.tensor([[0, 1, 1, 1, 2]]), torch.tensor([[1, 1, 1, 2, 255]]))
    return found


def test_counts(matrix):
    assert matrix.counts.tolist() == [[3, 1, 0], [1, 2, 0], [0, 1, 0]]


def test_scores(matrix):
    # IoU: 3 / (4 + 4 - 3), 2 / (3 + 4 - 2), 0 / (1 + 0 - 0).
    assert matrix.iou.tolist() == pytest.approx([0.6, 0.4, 0.0])
    assert matrix.mean_iou == pytest.approx(1 / 3)
    assert matrix.pixel_accuracy == pytest.approx(5 / 8)
    assert matrix.mean_accuracy == pytest.approx((3 / 4 + 2 / 3 + 0) / 3)
    assert matrix.frequency_weighted_iou == pytest.approx((4 * 0.6 + 3 * 0.4) / 8)


def test_absent_class_does_not_count():
    matrix = ConfusionMatrix(3)
    matrix.update(torch.tensor([0, 1]), torch.tensor([0, 1]))
    assert matrix.iou.isnan().tolist() == [False, False, True]
    assert matrix.mean_iou == 1


@pytest.mark.parametrize(
    ("prediction", "target", "message"),
    [
        (torch.zeros(2, 3), torch.zeros(3, 2), "prediction must have the labels' shape"),
        (torch.tensor([0]), torch.tensor([2]), "target must be in 0..1"),
        (torch.tensor([-1]), torch.tensor([0]), "prediction must be in 0..1"),
    ],
)
def test_bad_input(prediction, target, message):
    with pytest.raises(ArgumentError, match=message):
        ConfusionMatrix(2).update(prediction, target)


@pytest.mark.parametrize("scores", [ConfusionMatrix, BoundaryScores])
def test_with_more_than_255_classes_255_is_one(scores):
    found = scores(300)
    labels = torch.full((8, 8), 255)
    labels[:, 4:], labels[0, 0] = 299, -1
    found.update(labels.clamp(min=0), labels)
    matrix = found if scores is ConfusionMatrix else found.bands[15]
    assert matrix.counts[255, 255] == 31
    assert matrix.counts.sum() == 63


def test_no_classes():
    with pytest.raises(ArgumentError, match="num_classes"):
        ConfusionMatrix(0)
