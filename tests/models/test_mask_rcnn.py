"""Mask R-CNN: its layers, and a step of training. test_published_releases.py has it against torchvision's."""

import pytest
import torch
import torchvision
from networks import losses
from torchvision.models.detection.roi_heads import paste_masks_in_image

import atrousops as ao
from atrousops import models
from atrousops.models._detection import paste

SMALL = {"min_size": 64, "max_size": 96, "box_score_thresh": 0.0, "box_detections_per_img": 6}


def test_pastes_as_torchvision():
    """Boxes inside, over each border, outside, of one pixel, and none; in fp64."""
    boxes = torch.tensor(
        [[3, 2, 9, 7], [-4.5, -3, 6, 30], [10.2, 5, 40, 17.9], [50, 50, 60, 60], [4, 4, 4, 4]], dtype=torch.float64
    )
    masks = torch.rand(5, 1, 28, 28, dtype=torch.float64)
    for count in (5, 0):
        wanted = paste_masks_in_image(masks[:count], boxes[:count], (19, 23))
        torch.testing.assert_close(paste(masks[:count], boxes[:count], 19, 23), wanted)


@pytest.mark.parametrize("features", ["fpn", "dilated_c5"])
def test_learns(features):
    few = {"rpn_post_nms_top_n_train": 20, "box_batch_size_per_image": 16}
    network = models.mask_rcnn(3, "resnet18", features, **SMALL, **few).train()
    assert isinstance(network.roi_heads.mask_roi_pool, ao.nn.MultiScaleRoIAlign)
    assert not [layer for layer in network.modules() if type(layer) is torch.nn.Conv2d]
    mask = torch.zeros(1, 64, 80, dtype=torch.uint8)
    mask[0, 10:40, 20:60] = 1
    box = torch.tensor([[20.0, 10.0, 60.0, 40.0]])
    target = {"boxes": box, "labels": torch.tensor([1]), "masks": mask}
    image = torch.rand(3, 64, 80) + mask

    def loss():
        torch.manual_seed(0)
        parts = network([image, image], [target, target])
        assert "loss_mask" in parts
        return sum(parts.values())

    first, _, last = losses(network, loss, 3, 1e-4)
    assert last < first
    assert not [name for name, p in network.named_parameters() if p.grad is None]


def test_dilated_c5():
    """The last stage stays at stride 16, and frozen normalisations keep its numbers."""
    network = models.mask_rcnn(2, "resnet18", "dilated_c5", **SMALL).backbone.eval()
    frozen = models.mask_rcnn(2, "resnet18", "dilated_c5", frozen_norm=True, **SMALL).backbone.eval()
    frozen.load_state_dict(network.state_dict())
    image = torch.rand(1, 3, 64, 96)
    with torch.inference_mode():
        assert network(image)["0"].shape == (1, 512, 4, 6)
        torch.testing.assert_close(frozen(image)["0"], network(image)["0"])
    assert not [layer for layer in frozen.modules() if isinstance(layer, torch.nn.BatchNorm2d)]


def test_backbone_weights():
    weights = torchvision.models.resnet18(weights=None).state_dict()
    for features in ("fpn", "dilated_c5"):
        network = models.mask_rcnn(2, "resnet18", features, backbone_weights=weights, **SMALL)
        assert torch.equal(network.backbone.body["layer4"][1].conv2.weight, weights["layer4.1.conv2.weight"])
