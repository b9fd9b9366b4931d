"""Turns a trained VGG-16 trunk into VGG16LowRank, in closed form, on a few calibration images.

Two steps a layer (after Jaderberg et al. 2014 for the form and Zhang et al. 2015, "Accelerating very deep
convolutional networks", for the fit to responses):

1. The 3x3 weights as a matrix M (K*3, C*3) are projected on the leading left singular vectors of M S^(1/2), where S
   is the covariance of the vertical patches that the layer sees. That gives the vertical filters.
2. The horizontal filters and the bias are the least-squares fit of what the vertical filters answer to the trunk's
   response. As the input is the factorised network's own, each layer repairs some of the error of those before it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from atrousops.common.checks import bad_value
from atrousops.models.vgg16_lowrank import LowRankConv2d, VGG16LowRank

# The trunk was trained on BGR images in 0..255 less a mean; ours sees RGB, normalised as torchvision does.
_STD = (0.229, 0.224, 0.225)
_LAYERS = (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)
_MAX_ROWS = 40_000
_RIDGE = 1e-4


@torch.no_grad()
def factorise_vgg16(trunk: Mapping[str, Tensor], images: Sequence[Tensor]) -> tuple[VGG16LowRank, list[float]]:
    """Fits VGG16LowRank to a trunk.

    Args:
        trunk: `features.N.weight` and `features.N.bias` of VGG-16, for BGR images in 0..255 less their mean.
        images: batches (N, 3, H, W), normalised as torchvision does; some tens of images in all.

    Returns:
        The network, and the relative error ||ours - trunk||^2 / ||trunk||^2 of each convolution's response, in which
        the trunk's responses were divided by their root mean square, layer by layer (ReLU commutes with that).

    Raises:
        ArgumentError: the trunk lacks a layer.
    """
    network = VGG16LowRank(output_stride=16).eval()
    targets = list(images)
    inputs = list(images)
    errors = []
    index = 0
    for number in range(1, 6):
        if number > 1:
            targets = [F.max_pool2d(x, 2) for x in targets]
            inputs = [F.max_pool2d(x, 2) for x in inputs]
        for conv in getattr(network, f"stage{number}"):
            if isinstance(conv, nn.ReLU):
                continue
            weight, bias = _layer(trunk, _LAYERS[index])
            if index == 0:
                weight = weight.flip(1) * (255 * torch.tensor(_STD)).view(3, 1, 1)
                scale = 1.0
            responses = [F.conv2d(x, weight * scale, bias, padding=1) for x in targets]
            # The next layer's weights take back what this layer's response is divided by.
            rms = math.sqrt(sum(F.relu(y).square().mean().item() for y in responses) / len(responses))
            responses = [y.div_(rms) for y in responses]
            if isinstance(conv, LowRankConv2d):
                _fit(conv, weight * scale / rms, bias / rms, inputs, responses)
            else:
                conv.weight.copy_(weight * scale / rms)
                conv.bias.copy_(bias / rms)
            ours = [conv(x) for x in inputs]
            lost = sum((a - b).square().sum().item() for a, b in zip(ours, responses, strict=True))
            errors.append(lost / sum(b.square().sum().item() for b in responses))
            inputs = [F.relu_(y) for y in ours]
            targets = [F.relu_(y) for y in responses]
            scale = rms
            index += 1
    return network, errors


def _layer(trunk: Mapping[str, Tensor], index: int) -> tuple[Tensor, Tensor]:
    names = (f"features.{index}.weight", f"features.{index}.bias")
    missing = [name for name in names if name not in trunk]
    if missing:
        bad_value("factorise_vgg16", "trunk", "hold the convolutions of VGG-16", f"no {', '.join(missing)}")
    return trunk[names[0]].float(), trunk[names[1]].float()


def _fit(conv: LowRankConv2d, weight: Tensor, bias: Tensor, inputs: list[Tensor], responses: list[Tensor]) -> None:
    vertical, horizontal = conv.vertical, conv.horizontal
    out_channels, in_channels = weight.shape[:2]
    rank = vertical.out_channels
    matrix = weight.permute(0, 3, 1, 2).reshape(out_channels * 3, in_channels * 3).double()
    patches = _rows(inputs, inputs, in_channels, (3, 1), (1, 0))[0]
    covariance = patches.T @ patches / len(patches)
    values, vectors = torch.linalg.eigh(covariance.double())
    root = vectors * values.clamp(min=0).sqrt() @ vectors.T
    left = torch.linalg.svd(matrix @ root, full_matrices=False).U[:, :rank]
    filters = left.T @ matrix
    norms = filters.norm(dim=1, keepdim=True).clamp(min=1e-12)
    vertical.weight.copy_((filters / norms).reshape(rank, in_channels, 3, 1))

    start = (left * norms.T).reshape(out_channels, 3, rank).permute(0, 2, 1)
    start = torch.cat([start.reshape(out_channels, -1), bias.double()[:, None]], dim=1)
    rows, wanted = _rows([vertical(x) for x in inputs], responses, rank, (1, 3), (0, 1))
    rows = torch.cat([rows, torch.ones(len(rows), 1)], dim=1)
    gram = (rows.T @ rows).double()
    rest = (rows.T @ wanted).double() - gram @ start.T
    ridge = _RIDGE * gram.diagonal().mean() * torch.eye(len(gram), dtype=torch.float64)
    solution = start + torch.linalg.solve(gram + ridge, rest).T
    assert horizontal.bias is not None
    horizontal.bias.copy_(solution[:, -1])
    horizontal.weight.copy_(solution[:, :-1].reshape(out_channels, rank, 1, 3))


def _rows(inputs: list[Tensor], outputs: list[Tensor], channels: int, kernel, padding) -> tuple[Tensor, Tensor]:
    """Patches and outputs at the same random positions, one row each."""
    generator = torch.Generator().manual_seed(0)
    share = -(-_MAX_ROWS // len(inputs))
    rows, wanted = [], []
    for x, y in zip(inputs, outputs, strict=True):
        patches = F.unfold(x, kernel, padding=padding).transpose(1, 2).reshape(-1, channels * 3)
        picked = torch.randperm(len(patches), generator=generator)[:share]
        rows.append(patches[picked])
        wanted.append(y.permute(0, 2, 3, 1).reshape(len(patches), -1)[picked])
    return torch.cat(rows), torch.cat(wanted)
