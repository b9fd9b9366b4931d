"""Mask R-CNN: its layers, and a step of training. test_published_releases.py has it against torchvision's."""

import pytest
import torch
import torchvision
from networks import losses
from oracle import assert_close
from torchvision.models.detection._utils import BoxCoder
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.roi_heads import paste_masks_in_image

import atrousops as ao
from atrousops import models
from atrousops.models import backbones
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


def test_other_encoders():
    """A pyramid, or one map, on an encoder that is not a ResNet; its trunk is where `init.trunk` looks for it."""
    network = models.mask_rcnn(2, "efficientnet_lite0", version=2, **SMALL).eval()
    alone = backbones.encoder("efficientnet_lite0")
    alone.load_state_dict(network.backbone.body.state_dict())
    image = torch.rand(1, 3, 64, 96)
    with torch.inference_mode():
        maps = network.backbone(image)
        assert [tuple(m.shape[1:]) for m in maps.values()] == [
            (256, 16, 24), (256, 8, 12), (256, 4, 6), (256, 2, 3), (256, 1, 2)
        ]  # fmt: skip
        pyramid = network.backbone.fpn
        wanted = pyramid({str(i): alone.eval()(image)[level] for i, level in enumerate(("low", "mid", "aux", "out"))})
        for name, value in maps.items():
            torch.testing.assert_close(value, wanted[name])
        assert models.mask_rcnn(2, "efficientnet_lite0", "dilated_c5").eval().backbone(image)["0"].shape == (
            1,
            320,
            4,
            6,
        )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_boxes_do_not_lose_bits(dtype):
    """Anchors at 1000 pixels and offsets of 16 bits, against fp64: PyTorch's own coder rounds both to 16 bits."""
    network = models.mask_rcnn(2, "resnet18", **SMALL)
    maps = torch.zeros(1, 8, 250, 250, dtype=dtype)
    images = ImageList(torch.zeros(1, 3, 1000, 1000), [(1000, 1000)])
    rpn = network.rpn
    anchors = AnchorGenerator(rpn.anchor_generator.sizes, rpn.anchor_generator.aspect_ratios)
    wanted = anchors(images, [maps.double()] * 5)[0]
    found = rpn.anchor_generator(images, [maps] * 5)[0]
    # Anchors are rounded to whole numbers, which fp32 holds exactly.
    assert torch.equal(found.double(), wanted)
    offsets = torch.randn(len(wanted), 8, generator=torch.Generator().manual_seed(0)).mul(0.1).to(dtype)
    for coder in (rpn.box_coder, network.roi_heads.box_coder):
        theirs = BoxCoder(coder.weights)
        exact, fp32 = (theirs.decode_single(offsets.to(d), wanted.to(d)) for d in (torch.float64, torch.float32))
        assert_close(coder.decode_single(offsets, found), exact, fp32)


def test_a_callers_anchors_stay():
    class Own(AnchorGenerator):
        pass

    own = Own(((16,), (32,), (64,), (128,), (256,)), ((1.0,),) * 5)
    assert type(models.mask_rcnn(2, "resnet18", rpn_anchor_generator=own).rpn.anchor_generator) is Own
