"""Panoptic quality, mask AP and boundary scores, on cases worked by hand and against other implementations."""

import importlib

import pytest
import torch
from scipy import ndimage

from atrousops.common.checks import ArgumentError
from atrousops.metrics import BoundaryScores, ConfusionMatrix, MaskAP, PanopticQuality, trimap


def strip(*segments):
    """Labels (2, 1, W) of runs of pixels (length, class, number)."""
    pairs = [(label, number) for length, label, number in segments for _ in range(length)]
    return torch.tensor(pairs).T[:, None]


def test_panoptic_by_hand():
    """One nucleus of IoU 6/8, one missed, one invented, one whose IoU of exactly 1/2 does not match."""
    target = strip((8, 1, 1), (2, 0, 0), (4, 1, 2), (2, 0, 0), (4, 1, 3), (4, 0, 0))
    found = strip((6, 1, 5), (4, 0, 0), (4, 0, 0), (2, 0, 0), (2, 1, 6), (2, 0, 0), (4, 1, 7))
    metric = PanopticQuality(2, things=[1], unjudged=[0])
    metric.update(found, target)
    rq = 1 / (1 + 2 / 2 + 2 / 2)
    assert metric.compute() == pytest.approx((0.75 * rq, 0.75, rq))
    assert metric.by_class().keys() == {1}


def test_panoptic_void_and_stuff():
    """Void pixels leave the union; a prediction mostly on void is no false positive; stuff is one segment."""
    target = strip((4, 0, 1), (2, 255, 9), (4, 0, 2), (4, 1, 1), (4, 255, 0))
    found = strip((6, 0, 1), (4, 0, 2), (2, 1, 8), (2, 1, 9), (4, 0, 3))
    metric = PanopticQuality(2, things=[0])
    metric.update(found, target)
    assert metric.compute() == pytest.approx((1, 1, 1))


def test_panoptic_means_are_over_classes_that_occur():
    metric = PanopticQuality(3, things=[1, 2], unjudged=[0])
    metric.update(strip((4, 1, 1)), strip((4, 1, 1)))
    assert metric.compute() == pytest.approx((1, 1, 1))
    assert torch.tensor(metric.by_class()[2]).isnan().all()


def test_panoptic_against_its_formula():
    """Random blobs, with the segments matched one by one here."""
    generator = torch.Generator().manual_seed(0)
    metric = PanopticQuality(2, things=[1], unjudged=[0])
    hits, misses, total = 0, 0, 0.0
    for _ in range(4):
        maps = []
        for _ in range(2):
            noise = ndimage.gaussian_filter(torch.rand(40, 50, generator=generator).numpy(), 3)
            numbers, _ = ndimage.label(noise > 0.5)
            maps.append(torch.from_numpy(numbers).long())
        truth, found = maps
        found = torch.where(torch.rand(40, 50, generator=generator) < 0.9, truth, found)
        metric.update(torch.stack([(found > 0).long(), found]), torch.stack([(truth > 0).long(), truth]))
        matched = 0
        for number in truth.unique()[1:]:
            for other in found.unique()[1:]:
                a, b = truth == number, found == other
                iou = (a & b).sum() / (a | b).sum()
                if iou > 0.5:
                    matched += 1
                    total += iou.item()
        hits += matched
        misses += len(truth.unique()) - 1 - matched + len(found.unique()) - 1 - matched
    assert hits > 5
    assert misses > 5
    assert metric.compute().pq == pytest.approx(total / (hits + misses / 2))


def test_panoptic_bad_input():
    with pytest.raises(ArgumentError, match="things"):
        PanopticQuality(2, things=[2])
    with pytest.raises(ArgumentError, match="unjudged"):
        PanopticQuality(1, things=[], unjudged=[0])
    with pytest.raises(ArgumentError, match="shape"):
        PanopticQuality(2, things=[1]).update(torch.zeros(4, 5), torch.zeros(4, 5))


def squares(*corners):
    found = torch.zeros(len(corners), 32, 32, dtype=torch.bool)
    for mask, (row, column) in zip(found, corners, strict=True):
        mask[row : row + 8, column : column + 8] = True
    return found


def test_mask_ap_by_hand():
    """A perfect mask, then one of IoU 7/9 (hit up to 0.75), a false one between them in score."""
    truth = squares((0, 0), (16, 16))
    found = squares((0, 0), (0, 20), (16, 17))
    metric = MaskAP([1])
    metric.update(found, [1, 1, 1], [0.9, 0.8, 0.7], truth, [1, 1])
    result = metric.compute()
    # Precision is 1 up to recall 1/2 (51 of the 101 points) and 2/3 after, or 0 where the second is no hit.
    both, one = (51 + 50 * 2 / 3) / 101, 51 / 101
    assert result.ap50 == result.ap75 == pytest.approx(both)
    assert result.ap == pytest.approx((6 * both + 4 * one) / 10)


def test_mask_ap_needs_the_right_class():
    metric = MaskAP([1, 2])
    metric.update(squares((0, 0)), [2], [0.9], squares((0, 0)), [1])
    # Class 2 has no objects and does not count.
    assert metric.compute().ap == 0


def test_mask_ap_without_predictions_or_objects():
    metric = MaskAP([1])
    metric.update(squares(), [], [], squares((0, 0)), [1])
    assert metric.compute().ap == 0
    metric = MaskAP([1])
    metric.update(squares((0, 0)), [1], [0.5], squares(), [])
    assert metric.compute().ap != metric.compute().ap


def test_mask_ap_bad_input():
    with pytest.raises(ArgumentError, match="label and a score"):
        MaskAP([1]).update(squares((0, 0)), [1], [], squares(), [])
    with pytest.raises(ArgumentError, match="size"):
        MaskAP([1]).update(squares((0, 0)), [1], [0.5], squares((0, 0))[:, :5], [1])


@pytest.mark.parametrize(
    ("build", "package"), [(lambda: PanopticQuality(1, [0]), "torchmetrics"), (lambda: MaskAP([0]), "pycocotools")]
)
def test_missing_package_says_how_to_get_it(monkeypatch, build, package):
    def none(name):
        raise ImportError(name)

    monkeypatch.setattr(importlib, "import_module", none)
    with pytest.raises(ImportError, match=rf"{package}, which is not installed: pip install 'atrousops\[train\]'"):
        build()


def test_trimap_against_distances():
    """scipy's chessboard distance to the nearest pixel of another label."""
    target = torch.zeros(24, 30, dtype=torch.long)
    target[5:12, 6:20], target[15:, 9:] = 3, 255
    for width in (1, 2, 5):
        near = torch.zeros_like(target, dtype=torch.bool)
        for label in target.unique():
            distance = ndimage.distance_transform_cdt((target == label).numpy(), "chessboard")
            near |= (target == label) & (torch.from_numpy(distance) <= width)
        assert torch.equal(trimap(target, width), near)


def test_boundary_scores_by_hand():
    """A step between columns 3 and 4 that the prediction sees one column late; a border of void at the right."""
    target = torch.zeros(5, 12, dtype=torch.long)
    target[:, 4:], target[:, 11] = 1, 255
    found = torch.zeros_like(target)
    found[:, 5:] = 1
    scores = BoundaryScores(2, (1, 2))
    scores.update(found, target)
    # Width 1: columns 3, 4 and 10, void not counted. Width 2: columns 2 to 5, 9 and 10.
    assert scores.bands[1].pixel_accuracy == pytest.approx(2 / 3)
    assert scores.bands[2].pixel_accuracy == pytest.approx(5 / 6)
    assert scores.interior.pixel_accuracy == 1
    assert int(scores.interior.counts.sum()) == 5 * 5
    with pytest.raises(ArgumentError, match="width"):
        BoundaryScores(2, (0,)).update(found, target)


def test_confusion_against_torchmetrics():
    from torchmetrics.functional.classification import multiclass_confusion_matrix, multiclass_jaccard_index

    found, target = torch.randint(0, 4, (2, 3, 50))
    target[0, :20] = 255
    matrix = ConfusionMatrix(4)
    matrix.update(found, target)
    assert torch.equal(matrix.counts, multiclass_confusion_matrix(found, target, 4, ignore_index=255))
    mean = multiclass_jaccard_index(found, target, 4, ignore_index=255).item()
    assert matrix.mean_iou == pytest.approx(mean, rel=1e-6)
