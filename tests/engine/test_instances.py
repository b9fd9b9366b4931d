"""Objects: connected parts against scipy, painting by hand, and training of the networks that find them."""

import csv

import numpy as np
import pytest
import torch
from nuclei import SIZE, write_nuclei
from scipy import ndimage

from atrousops import models
from atrousops.common.checks import ArgumentError
from atrousops.data import Nuclei, transforms
from atrousops.engine import config, evaluate, instances, train

RECIPE = """
model: {{name: {name}, arguments: {arguments}}}
data: {{name: nuclei, mean: [0.0, 0.0, 0.0], std: [1.0, 1.0, 1.0]}}
augmentation: {{crop: 48, size: 48, scale: [1.0, 1.0], colour: 0.0}}
optimiser: {{lr: {lr}, backbone_lr: {lr}}}
schedule: {{steps: {steps}}}
batch: 2
validate_every: {steps}
pictures_every: {steps}
"""


def recipe(folder, name, arguments, steps, lr=1e-3):
    path = folder / "recipe.yaml"
    path.write_text(RECIPE.format(name=name, arguments=arguments, steps=steps, lr=lr))
    return path


@pytest.mark.parametrize("density", [0.1, 0.4, 0.9])
def test_components(density):
    """Few and many pixels: lone ones, long winding parts, one part."""
    mask = torch.rand(33, 41) < density
    numbers = instances.components(mask)
    wanted, count = ndimage.label(mask.numpy(), np.ones((3, 3)))
    assert torch.equal(numbers > 0, mask)
    pairs = {*zip(numbers[mask].tolist(), wanted[mask.numpy()].tolist(), strict=True)}
    assert len(pairs) == count == len({a for a, _ in pairs}) == len({b for _, b in pairs})


def test_spiral():
    """One part whose pixels are as far apart as they can be."""
    mask = torch.zeros(21, 21, dtype=torch.bool)
    for ring in range(0, 10, 2):
        mask[ring, ring : 21 - ring] = mask[20 - ring, ring : 21 - ring] = True
        mask[ring : 21 - ring, ring] = mask[ring : 21 - ring, 20 - ring] = True
        mask[ring + 1, ring + 1] = True
    assert len(instances.components(mask).unique()) == 2


def test_empty():
    assert int(instances.components(torch.zeros(5, 6, dtype=torch.bool)).sum()) == 0


class Finder(torch.nn.Module):
    """Three objects: the second covers half of the first, and nearly all of the third."""

    def objects(self, image):
        masks = torch.zeros(3, 4, 8, dtype=torch.bool)
        masks[0, :, :4], masks[1, :, 2:6], masks[2, :, 3:5] = True, True, True
        return [1, 2, 1], [0.7, 0.9, 0.5], masks


def test_the_surest_is_painted_first():
    found = instances.find(Finder(), torch.zeros(3, 4, 8))
    assert (found.labels, found.scores) == ([2, 1], [0.9, 0.7])
    assert found.panoptic[0, 0].tolist() == [1, 1, 2, 2, 2, 2, 0, 0]
    assert found.panoptic[1, 0].tolist() == [2, 2, 1, 1, 1, 1, 0, 0]


def test_small_parts_become_background():
    classes = torch.zeros(6, 8, dtype=torch.long)
    classes[:3, :4], classes[5, 7] = 1, 1
    found = instances.parts(classes, torch.full((6, 8), 0.8), [1], least=5)
    assert found.labels == [1]
    assert found.scores == pytest.approx([0.8])
    assert found.panoptic[0].sum() == found.masks.sum() == 12


NETWORKS = {
    "metric_learning": ("{num_classes: 2, backbone: resnet18, dimensions: 8}", 12, 2e-3),
    # Few proposals and detections, for time.
    "mask_rcnn": (
        "{num_classes: 2, backbone: resnet18, min_size: 64, max_size: 64, rpn_post_nms_top_n_train: 32, "
        "rpn_post_nms_top_n_test: 16, box_batch_size_per_image: 16, box_detections_per_img: 8}",
        5,
        5e-4,
    ),
    "msd": ("{num_classes: 2, depth: 10}", 25, 1e-2),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_learns(tmp_path, name):
    """The same loop for each; the loss falls, and objects are scored."""
    arguments, steps, lr = NETWORKS[name]
    path = recipe(tmp_path, name, arguments, steps, lr)
    root = str(write_nuclei(tmp_path))
    weights = train.main(path, output=tmp_path / "run", data_root=root, progress=False)
    with (tmp_path / "run" / "log.csv").open(newline="") as file:
        losses = [float(row["loss"]) for row in csv.DictReader(file)]
    assert sum(losses[-2:]) < sum(losses[:2])
    with (tmp_path / "run" / "val.csv").open(newline="") as file:
        (row,) = csv.DictReader(file)
    assert [*row] == ["step", "seconds", "miou", "background", "nucleus", "pq", "sq", "rq"]
    assert (tmp_path / "run" / "pictures" / f"{steps:07}.png").is_file()
    scores = evaluate.main(path, weights, data_root=root, ap=True, progress=False)
    # One image of five, whose pixels all count.
    assert int(scores.matrix.counts.sum()) == SIZE * SIZE
    assert scores.quality.pq == pytest.approx(float(row["pq"]), abs=1e-4)
    assert "mask AP50" in evaluate.report(scores)
    if name == "msd":
        assert scores.quality.pq > 0.5


def test_mask_rcnn_targets(tmp_path, monkeypatch):
    """Boxes, classes and masks that torchvision's network is given, from the numbers; void pixels are of no object."""
    network = models.mask_rcnn(2, "resnet18", min_size=64, max_size=64)
    seen = []

    def forward(self, images, targets=None):
        seen.extend(targets)
        return {"loss": images[0].sum()}

    monkeypatch.setattr(type(network), "forward", forward)
    labels = torch.zeros(2, 2, 10, 12, dtype=torch.long)
    labels[0, 0, 2:5, 3:7], labels[0, 1, 2:5, 3:7] = 1, 7
    labels[0, 0, 8:, 8:], labels[0, 1, 8:, 8:] = 255, 9
    network.loss(torch.zeros(2, 3, 10, 12), labels)
    assert seen[0]["boxes"].tolist() == [[3, 2, 7, 5]]
    assert seen[0]["labels"].tolist() == [1]
    assert seen[0]["masks"].sum() == 12
    assert seen[1]["boxes"].shape == (0, 4)


@pytest.mark.parametrize("name", ["metric_learning", "mask_rcnn"])
def test_objects_must_be_numbered(name):
    network = models.build(name, num_classes=2, backbone="resnet18")
    with pytest.raises(ArgumentError, match="nuclei and coco_panoptic"):
        network.loss(torch.zeros(1, 3, 32, 32), torch.zeros(1, 32, 32, dtype=torch.long))


def test_scores_of_the_truth(tmp_path):
    """Whoever answers the labels gets full marks."""
    data = Nuclei(write_nuclei(tmp_path), "all", transforms.plain())
    scores = evaluate.Scores(data.classes, instances=True, ap=True, widths=(2,))
    for image, labels in data:

        class Truth(torch.nn.Module):
            def objects(self, image, labels=labels):
                masks = torch.stack([labels[1] == number for number in (1, 2, 3)])
                return [1, 1, 1], [0.9, 0.8, 0.7], masks

        scores.update_objects(Truth(), image, labels)
    assert scores.quality == pytest.approx((1, 1, 1))
    assert scores.precision == pytest.approx((1, 1, 1))
    assert scores.matrix.mean_iou == scores.boundary.bands[2].mean_iou == 1
    assert set(scores.summary()) == {"miou", "background", "nucleus", "pq", "sq", "rq"}


def test_config_reads(tmp_path):
    assert config.load(recipe(tmp_path, "msd", "{}", 1)).data.mean == (0, 0, 0)
