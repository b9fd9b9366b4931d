"""Prediction: a picture of any size through a network, in overlapping tiles, refined by a CRF if wanted."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from atrousops import models
from atrousops.common.checks import bad_type, bad_value
from atrousops.data.bands import Pixels
from atrousops.engine import outputs, tiles
from atrousops.engine.instances import find
from atrousops.engine.multiscale import MultiScale, resize

# People in photographs: the weights that come with the package.
DEFAULT_MODEL = "deeplabv3plus_vgg16_lowrank_voc_person"


class Predictor:
    """Labels every pixel of a picture.

    label(i) = argmax over classes of score(i), or of Q(i) after the CRF. Pictures larger than a tile go through the
    network in tiles whose scores are blended where they overlap (`tiles.weights`).

    Args:
        model: a module that maps (1, C, H, W) to scores (1, L, h, w), or to a mapping with such a tensor under "out";
            h and w may be smaller than H and W. It is put into eval mode and channels_last.
        classes: the names of the L classes, at most 256; their order is the class id.
        mean, std: what the network expects: (picture / 255 - mean) / std, with a number for each of its C channels.
        tile: side of a tile in pixels; a larger picture is cut up. Rounded up to a multiple of 32.
        overlap: how far neighbouring tiles overlap, in pixels; at most tile - 32.
        size: the longest side at which the network sees a picture: a larger one is scaled down for it, and the scores
            up again. None: every picture as it is. A network finds objects of the size it was trained on.
        crf: a callable (scores (1, L, H, W), image (1, C, H, W) in 0..255) -> Q (1, L, H, W), such as `ao.DenseCRF()`.
        scales, flip: of MultiScale, whose mean the scores are then: better, for as much more time.
        scale: the number in a picture of integers that counts as 1; by default the largest of its dtype.

    Raises:
        ArgumentError: no classes or more than 256, a std or scale that is not positive, mean and std of different
            lengths, or an overlap that leaves no step.
    """

    def __init__(
        self,
        model: nn.Module,
        classes: Sequence[str],
        mean: Iterable[float],
        std: Iterable[float],
        tile: int = 1024,
        overlap: int = 256,
        size: int | None = None,
        crf: Callable[[Tensor, Tensor], Tensor] | None = None,
        scales: Sequence[float] = (1.0,),
        flip: bool = False,
        scale: float | None = None,
    ) -> None:
        if not 1 <= len(classes) <= 256:
            bad_value("Predictor", "classes", "hold 1 to 256 names", f"{len(classes)}")
        if tile < 1:
            bad_value("Predictor", "tile", "be at least 1 pixel", tile)
        if size is not None and size < 1:
            bad_value("Predictor", "size", "be at least 1 pixel, or None", size)
        self.model = model.eval().to(memory_format=torch.channels_last)
        self.inference = MultiScale(self.model, scales, flip) if flip or tuple(scales) != (1,) else self.model
        self.classes = list(classes)
        self.mean = torch.tensor(list(mean), dtype=torch.float32).view(1, -1, 1, 1)
        self.std = torch.tensor(list(std), dtype=torch.float32).view(1, -1, 1, 1)
        if self.mean.shape != self.std.shape or self.mean.numel() == 0:
            rule = "have a number for each channel, both as many"
            bad_value("Predictor", "mean and std", rule, f"{self.mean.numel()} and {self.std.numel()}")
        self.channels = self.mean.numel()
        self.pixels = Pixels(self.channels, scale)
        if not bool((self.std > 0).all()):
            bad_value("Predictor", "std", "be positive", self.std.flatten().tolist())
        self.tile = -(-tile // tiles.GRID) * tiles.GRID
        self.overlap = overlap
        if not 0 <= overlap <= self.tile - tiles.GRID:
            bad_value(
                "Predictor", "overlap", f"be from 0 to {self.tile - tiles.GRID}, as the tile is {self.tile}", overlap
            )
        self.size = size
        self.crf = crf

    def __call__(self, picture: np.ndarray) -> np.ndarray:
        """Class ids, uint8 (H, W), of a picture (H, W, C), such as RGB in uint8; as `scores` takes it.

        A network that finds objects sees the picture whole, and a pixel has the class of the surest object there.
        """
        if hasattr(self.model, "objects"):
            classes = find(self.model, self.normalise(picture)[0]).panoptic[:1, None]
            return F.interpolate(classes.float(), size=picture.shape[:2])[0, 0].to(torch.uint8).numpy()
        scores = self.scores(picture)
        return labels(self.refine(picture, scores) if self.crf is not None else scores)

    @torch.inference_mode()
    def scores(self, picture: np.ndarray) -> Tensor:
        """The network's scores, float32 (L, H, W), of a picture (H, W, C), such as RGB in uint8.

        Args:
            picture: uint8 or uint16, of which `scale` counts as 1; where that is given also float32, of which 1 does,
                as `read_picture` has them.

        Raises:
            ArgumentTypeError, ArgumentError: not such an array; or the network does not give L finite scores a pixel.
        """
        image = self.normalise(picture)
        height, width = image.shape[-2:]
        # Whole multiples of the grid: every network's strides divide them, and a picture of one pixel is like another.
        image = F.pad(image, (0, -width % tiles.GRID, 0, -height % tiles.GRID), mode="replicate")
        rows = tiles.spans(image.shape[2], self.tile, self.overlap)
        columns = tiles.spans(image.shape[3], self.tile, self.overlap)
        if len(rows) == len(columns) == 1:
            blended = self._network(image)
        else:
            blended = torch.zeros(len(self.classes), *image.shape[2:])
            row_weights, column_weights = tiles.weights(rows, self.overlap), tiles.weights(columns, self.overlap)
            for (top, bottom), down in zip(rows, row_weights):
                for (left, right), across in zip(columns, column_weights):
                    part = self._network(image[:, :, top:bottom, left:right])
                    blended[:, top:bottom, left:right] += part * down[:, None] * across
        blended = blended[:, :height, :width]
        if not bool(blended.isfinite().all()):
            bad_value("Predictor", "model", "give finite scores", "NaN or infinity", "Are its weights damaged?")
        return resize(blended[None], picture.shape[:2])[0]

    def normalise(self, picture: np.ndarray) -> Tensor:
        """What the network sees: (picture / 255 - mean) / std, float32 (1, C, h, w), no side above `size`."""
        image = _tensor(picture, self.pixels, 1)
        height, width = image.shape[-2:]
        scale = min(1.0, self.size / max(height, width)) if self.size is not None else 1.0
        image = resize(image, (max(1, round(height * scale)), max(1, round(width * scale))))
        return ((image - self.mean) / self.std).contiguous(memory_format=torch.channels_last)

    @torch.inference_mode()
    def refine(self, picture: np.ndarray, scores: Tensor) -> Tensor:
        """The CRF's distribution Q, (L, H, W), from `scores` (L, H, W) and the picture they came from."""
        if self.crf is None:
            bad_value("Predictor", "crf", "be given to refine", "None")
        return self.crf(scores[None], _tensor(picture, self.pixels, 255))[0]

    def _network(self, image: Tensor) -> Tensor:
        output: Any = self.inference(image)
        scores = output if isinstance(output, Tensor) else output["out"]
        if scores.dim() != 4 or scores.shape[:2] != (1, len(self.classes)):
            rule = f"give scores (1, {len(self.classes)}, h, w), one for each of its classes"
            bad_value("Predictor", "model", rule, tuple(scores.shape))
        return resize(scores.float(), image.shape[2:])[0]


def load_predictor(
    name: str | os.PathLike[str] = DEFAULT_MODEL, *, published: str | None = None, crf: bool = False, **options: Any
) -> Predictor:
    """A Predictor of trained weights: shipped ones by name, or a file written by `atrousops train` or by the user.

    Args:
        name: one of `atrousops.models.list()`, or a path.
        published: a key of `atrousops.models.PUBLISHED`, where the path is of that file.
        crf: refine with the dense CRF that suits the network.
        options: `tile`, `overlap`, `size`, `scales` and `flip` of Predictor; `size` is by default that of the training.

    Raises:
        FileNotFoundError, ArgumentError: as `atrousops.models.load`; or the network has more or fewer outputs than the
            file names classes.
    """
    model = models.load(name) if published is None else models.load_published(published, name)
    info = cast(models.Info, model.info)
    outputs.check_weights("load_predictor", info.network, info.arguments, info.classes, str(name))
    refine = info.dense_crf() if crf else None
    given = {"size": info.size, "crf": refine, "scale": info.scale, **options}
    return Predictor(model, info.classes, info.mean, info.std, **given)


def labels(scores: Tensor) -> np.ndarray:
    """The class id of the largest score at each pixel: (L, H, W) -> uint8 (H, W); the first of equal ones."""
    return scores.argmax(dim=0).to(torch.uint8).numpy()


def _tensor(picture: np.ndarray, pixels: Pixels, white: float) -> Tensor:
    """(1, C, H, W), in 0..white."""
    # Floats of unknown range would be taken for something else without a word.
    floats = picture.dtype == np.float32 and pixels.scale is not None
    if picture.dtype not in (np.uint8, np.uint16) and not floats:
        bad_type("Predictor", "picture", "be uint8 or uint16, or float32 where scale is given", picture.dtype)
    if picture.ndim != 3 or picture.shape[2] != pixels.channels or picture.size == 0:
        bad_value("Predictor", "picture", f"have shape (H, W, {pixels.channels}), not empty", picture.shape)
    most = 1.0 if floats else pixels.scale or float(np.iinfo(picture.dtype).max)
    image = torch.from_numpy(picture.astype(np.float32) / (most / white))
    return image.permute(2, 0, 1)[None]
