"""Rows of networks that `modules.module` cannot prepare: results depend on values, or PyTorch lacks a part."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn
from torchvision.models import detection

from atrousops import models
from atrousops.bench.floors import Floor
from atrousops.bench.modules import placed
from atrousops.bench.oracle import Oracle, no_grad
from atrousops.bench.registry import DTYPES, Prepared, Setting
from atrousops.common.testing import Run


def mask_rcnn(at: Setting, height: int, width: int, num_classes: int) -> Prepared:
    """Mask R-CNN on ResNet-50 with a pyramid, to masks, against torchvision's with the same weights.

    Boxes and scores of both are held to torchvision's in NCHW at the row's dtype: in fp64 other boxes are kept, of
    proposals that are as good as equal. Proposals are spread, for those of fresh weights would be nearly equal, and
    with this seed no two that matter are.
    """
    torch.manual_seed(0)
    stock = detection.maskrcnn_resnet50_fpn(weights=None, weights_backbone=None, num_classes=num_classes).eval()
    weights = stock.state_dict()
    for name in ("rpn.head.cls_logits.weight", "rpn.head.bbox_pred.weight"):
        weights[name].mul_(20)
    mine = models.build("mask_rcnn", num_classes=num_classes, frozen_norm=True).eval()
    mine.load_state_dict(weights)
    image = torch.rand(3, height, width)

    def ready(model: nn.Module, where: Setting) -> Run:
        return partial(_objects, placed(model, where), where.tensor(image[None])[0])

    nchw = Setting(at.device, at.dtype, "nchw", at.direction)
    return Prepared(
        ours=partial(ready, mine, at),
        theirs={"torchvision": partial(ready, stock, at)},
        exact=lambda: [t.double() for t in ready(stock, nchw)()],
        floor=_floor(mine, image, at),
        kernel=lambda: ("", "what is called depends on the boxes found"),
    )


@torch.no_grad()
def _objects(network: nn.Module, image: Tensor) -> list[Tensor]:
    found = network([image])[0]
    # Its masks are made, too; pasted where boxes differ by a hundredth of a pixel, they differ along their edges.
    return [found["boxes"], found["scores"]]


def crfrnn(at: Setting, height: int, width: int, num_classes: int) -> Prepared:
    """FCN-8s and mean field as layers, with the paper's ten iterations, to labels; held to `Oracle`."""
    mine = models.build("crfrnn", num_classes=num_classes).eval()
    networks = {DTYPES[where.dtype]: placed(mine, where) for where in (at, at.exact())}
    image = at.tensor(torch.randn(1, 3, height, width))

    def run(x: Tensor) -> Tensor:
        scores: Tensor = networks[x.dtype](x)["out"]
        scores.argmax(1)
        return scores

    oracle = Oracle(run, (image,), iterated=True)
    return Prepared(
        ours=lambda: partial(no_grad, run, image),
        theirs={},
        exact=oracle.exact,
        yardstick=oracle.yardstick,
        floor=_floor(mine, image, at),
        kernel=lambda: (at.device.type, "our kernels; PyTorch has none"),
    )


def _floor(network: nn.Module, image: Tensor, at: Setting) -> Floor:
    return Floor(float(at.element_bytes * (image.numel() + sum(p.numel() for p in network.parameters()))))
