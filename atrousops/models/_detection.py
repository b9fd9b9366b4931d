"""torchvision's steps from scores to boxes and masks, for torch.export: without branches on their number.

Masks are pasted without reading the boxes' values, which would synchronise with a GPU. Coordinates are computed in
float32 where features have 16 bits, in which those of 512 pixels are up to two pixels wrong (bfloat16).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad
from torchvision.models.detection._utils import BoxCoder
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.roi_heads import RoIHeads, expand_boxes, expand_masks
from torchvision.models.detection.rpn import RegionProposalNetwork
from torchvision.models.detection.transform import GeneralizedRCNNTransform, resize_boxes
from torchvision.ops import batched_nms, clip_boxes_to_image, nms

_Sizes = list[tuple[int, int]]


class Anchors(AnchorGenerator):
    """torchvision's anchors."""

    def forward(self, image_list: ImageList, feature_maps: list[Tensor]) -> list[Tensor]:
        """Anchors (N, 4) of each image; of the maps their sizes, device and dtype matter."""
        wide = [maps.new_empty(1, dtype=_wide(maps)).expand(maps.shape) for maps in feature_maps]
        anchors: list[Tensor] = super().forward(image_list, wide)
        return anchors


class Boxes(BoxCoder):
    """torchvision's boxes from offsets."""

    def decode_single(self, rel_codes: Tensor, boxes: Tensor) -> Tensor:
        """Boxes (N, 4 K) from offsets (N, 4 K) of boxes (N, 4)."""
        decoded: Tensor = super().decode_single(rel_codes.to(_wide(rel_codes)), boxes)
        return decoded


def _wide(tensor: Tensor) -> torch.dtype:
    return torch.promote_types(tensor.dtype, torch.float32)


class Proposals(RegionProposalNetwork):
    """torchvision's region proposals."""

    def filter_proposals(
        self, proposals: Tensor, objectness: Tensor, image_shapes: _Sizes, num_anchors_per_level: list[int]
    ) -> tuple[list[Tensor], list[Tensor]]:
        """The best boxes of each image and their scores, from (N, A, 4) boxes with objectness (N A, 1)."""
        objectness = objectness.detach().reshape(len(proposals), -1)
        best = self._get_top_n_idx(objectness, num_anchors_per_level)
        levels = torch.cat([best.new_full((count,), level) for level, count in enumerate(num_anchors_per_level)])
        found = []
        for boxes, logits, index, shape in zip(proposals, objectness, best, image_shapes):
            boxes = clip_boxes_to_image(boxes[index], shape)
            scores = logits[index].sigmoid()
            wanted = (scores >= self.score_thresh) & _at_least(boxes, self.min_size)
            found.append(_best(boxes, scores, levels[index], wanted, self.nms_thresh, self.post_nms_top_n()))
        return [boxes for boxes, _, _ in found], [scores for _, scores, _ in found]


class Heads(RoIHeads):
    """torchvision's heads for boxes and masks."""

    def postprocess_detections(
        self, class_logits: Tensor, box_regression: Tensor, proposals: list[Tensor], image_shapes: _Sizes
    ) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        """Boxes, scores and classes of each image, from (P, K) logits and (P, 4 K) offsets at P proposals."""
        classes = class_logits.shape[-1]
        counts = [boxes.shape[0] for boxes in proposals]
        decoded = self.box_coder.decode_single(box_regression, torch.cat(proposals)).unflatten(1, (classes, 4))
        # Class 0 is background.
        probabilities = class_logits.softmax(-1)[:, 1:]
        labels = torch.arange(1, classes, device=class_logits.device)
        found = []
        for boxes, scores, shape in zip(decoded[:, 1:].split(counts), probabilities.split(counts), image_shapes):
            boxes = clip_boxes_to_image(boxes.flatten(0, 1), shape)
            groups = labels.expand_as(scores).flatten()
            scores = scores.flatten()
            wanted = (scores > self.score_thresh) & _at_least(boxes, 1e-2)
            found.append(_best(boxes, scores, groups, wanted, self.nms_thresh, self.detections_per_img))
        return [box for box, _, _ in found], [score for _, score, _ in found], [label for _, _, label in found]


class Transform(GeneralizedRCNNTransform):
    """torchvision's resizing to the network's size and back."""

    def postprocess(
        self, result: list[dict[str, Tensor]], image_shapes: _Sizes, original_image_sizes: _Sizes
    ) -> list[dict[str, Tensor]]:
        """Boxes and masks in pixels of the original images."""
        if not self.training:
            for found, shape, original in zip(result, image_shapes, original_image_sizes):
                found["boxes"] = resize_boxes(found["boxes"], list(shape), list(original))
                found["masks"] = paste(found["masks"], found["boxes"], *original)
        return result


def paste(masks: Tensor, boxes: Tensor, height: int, width: int) -> Tensor:
    """Masks (M, 1, S, S) resized bilinearly to their boxes (M, 4), at their places in (M, 1, height, width).

    All boxes at once, by two products with interpolation matrices, A_y m A_x^T; torchvision resizes them one by one.
    """
    dtype = _wide(masks)
    padded, scale = expand_masks(masks[:, 0].to(dtype), padding=1)
    boxes = expand_boxes(boxes, scale).long()
    x = _interpolation(boxes[:, 0], boxes[:, 2], padded.shape[-1], width, dtype)
    y = _interpolation(boxes[:, 1], boxes[:, 3], padded.shape[-2], height, dtype)
    return (y @ padded @ x.transpose(1, 2))[:, None].to(masks.dtype)


def _interpolation(start: Tensor, end: Tensor, size: int, length: int, dtype: torch.dtype) -> Tensor:
    """(M, length, size): the weight of each of `size` samples, spread over pixels start..end, at each pixel."""
    pixels = torch.arange(length, device=start.device) - start[:, None]
    extent = (end - start + 1).clamp(min=1)[:, None]
    # F.interpolate without align_corners.
    place = ((pixels.to(dtype) + 0.5) * (size / extent.to(dtype)) - 0.5).clamp(0, size - 1)
    weights = (1 - (place[..., None] - torch.arange(size, device=start.device)).abs()).clamp(min=0)
    inside = (pixels >= 0) & (pixels < extent)
    return weights * inside[..., None]


def _at_least(boxes: Tensor, side: float) -> Tensor:
    return ((boxes[:, 2:] - boxes[:, :2]) >= side).all(1)


def _best(
    boxes: Tensor, scores: Tensor, groups: Tensor, wanted: Tensor, overlap: float, most: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Non-maximum suppression per group: at most `most` of the wanted boxes (L, 4), scores and groups, by score."""
    index = torch.where(wanted)[0]
    boxes, scores, groups = boxes[index], scores[index], groups[index]
    kept = _suppress(boxes, scores, groups, overlap)[:most]
    return boxes[kept], scores[kept], groups[kept]


def _suppress(boxes: Tensor, scores: Tensor, groups: Tensor, overlap: float) -> Tensor:
    if not torch.compiler.is_compiling():
        return batched_nms(boxes, scores, groups, overlap)
    # As in torchvision, without its branches: groups are moved so far apart that they do not overlap. torchvision
    # promises torch.export that two boxes remain, so two are added outside the image with the lowest scores.
    apart = torch.cat([boxes, boxes.new_tensor([[-4, -4, -3, -3], [-2, -2, -1, -1]])])
    apart = apart + pad(groups, (0, 2))[:, None] * (apart.max() + 1)
    return nms(apart, pad(scores, (0, 2), value=-1.0), overlap)[:-2]
