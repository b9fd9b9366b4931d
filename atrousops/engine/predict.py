"""Prediction: a picture of any size through a network, in overlapping tiles, refined by a CRF if wanted."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
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
DEFAULT_MODEL = "deeplabv3plus_efficientnet_lite2_voc_person"


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
        overlap: how far neighbouring tiles overlap, in pixels; at most tile - 32. None: four times the network's
            `reach`, so that the labels are those of the whole picture.
        size: the longest side at which the network sees a picture: a larger one is scaled down for it, and the scores
            up again. None: every picture as it is. A network finds objects of the size it was trained on.
        crf: a callable (scores (1, L, H, W), image (1, C, H, W) in 0..255) -> Q (1, L, H, W), such as `ao.DenseCRF()`.
        scales, flip: of MultiScale, whose mean the scores are then: better, for as much more time.
        scale: the number in a picture of integers that counts as 1; by default the largest of its dtype.
        device: of the network; the CRF, and the sum over tiles, are on the CPU.
        page: which page or frame of a file is read, from 1.

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
        overlap: int | None = 256,
        size: int | None = None,
        crf: Callable[[Tensor, Tensor], Tensor] | None = None,
        scales: Sequence[float] = (1.0,),
        flip: bool = False,
        scale: float | None = None,
        device: str | torch.device = "cpu",
        page: int = 1,
    ) -> None:
        if not 1 <= len(classes) <= 256:
            bad_value("Predictor", "classes", "hold 1 to 256 names", f"{len(classes)}")
        if tile < 1:
            bad_value("Predictor", "tile", "be at least 1 pixel", tile)
        if size is not None and size < 1:
            bad_value("Predictor", "size", "be at least 1 pixel, or None", size)
        self.device = torch.device(device)
        self.model = model.eval().to(self.device).to(memory_format=torch.channels_last)
        self.inference = MultiScale(self.model, scales, flip) if flip or tuple(scales) != (1,) else self.model
        self.classes = list(classes)
        self.mean = torch.tensor(list(mean), dtype=torch.float32).view(1, -1, 1, 1)
        self.std = torch.tensor(list(std), dtype=torch.float32).view(1, -1, 1, 1)
        if self.mean.shape != self.std.shape or self.mean.numel() == 0:
            rule = "have a number for each channel, both as many"
            bad_value("Predictor", "mean and std", rule, f"{self.mean.numel()} and {self.std.numel()}")
        self.channels = self.mean.numel()
        self.pixels = Pixels(self.channels, scale, page)
        if not bool((self.std > 0).all()):
            bad_value("Predictor", "std", "be positive", self.std.flatten().tolist())
        self.tile = -(-tile // tiles.GRID) * tiles.GRID
        self.size = size
        self.crf = crf
        overlap = self._seamless() if overlap is None else overlap
        self.overlap = overlap
        if not 0 <= overlap <= self.tile - tiles.GRID:
            bad_value(
                "Predictor", "overlap", f"be from 0 to {self.tile - tiles.GRID}, as the tile is {self.tile}", overlap
            )

    def __call__(self, picture: np.ndarray) -> np.ndarray:
        """Class ids, uint8 (H, W), of a picture (H, W, C), such as RGB in uint8; as `scores` takes it.

        A network that finds objects sees the picture whole, and a pixel has the class of the surest object there.
        """
        return self.batch([picture])[0]

    def batch(self, pictures: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Class ids of pictures of one shape, which go through the network together; as `__call__` gives each.

        Where two classes are equal to within rounding, a kernel for several pictures may choose the other.

        Raises:
            ArgumentTypeError, ArgumentError: as `scores`; or no pictures, or of several shapes.
        """
        if len({picture.shape for picture in pictures}) != 1:
            shapes = [picture.shape for picture in pictures]
            bad_value("Predictor.batch", "pictures", "be at least one, all of one shape", shapes)
        if hasattr(self.model, "objects"):
            return [self._objects(picture) for picture in pictures]
        scores = self._scores(pictures)
        if self.crf is None:
            return list(labels(scores))
        return [labels(self.refine(picture, each.cpu())) for picture, each in zip(pictures, scores)]

    @property
    def streams(self) -> bool:
        """Whether pictures need not be seen whole: at their own size, with no CRF, and no objects to find."""
        return self.size is None and self.crf is None and not hasattr(self.model, "objects")

    @torch.inference_mode()
    def strips(self, rows: Callable[[int, int], np.ndarray], height: int, width: int) -> Iterator[np.ndarray]:
        """Class ids of a picture that is never whole in memory: uint8 (rows, W), from the top down.

        They are those of `__call__` without a CRF, and a row of tiles is in memory at a time.

        Args:
            rows: (top, bottom) -> those rows of the picture, (bottom - top, W, C).

        Raises:
            ArgumentError: as `scores`; or not `streams`.
        """
        if not self.streams:
            got = "objects" if hasattr(self.model, "objects") else f"size {self.size}, crf {self.crf}"
            bad_value("Predictor.strips", "predictor", "see pictures in tiles, at their own size, with no CRF", got)
        read: dict[tuple[int, int], np.ndarray] = {}

        def window(top: int, bottom: int, left: int, right: int) -> Tensor:
            if (top, bottom) not in read:
                read.clear()
                read[top, bottom] = rows(top, bottom)
            return self.normalise(read[top, bottom][:, left:right])

        for part in self._strips(window, height, width):
            yield labels(part)[0]

    def scores(self, picture: np.ndarray) -> Tensor:
        """The network's scores, float32 (L, H, W), of a picture (H, W, C), such as RGB in uint8.

        Args:
            picture: uint8 or uint16, of which `scale` counts as 1; where that is given also float32, of which 1 does,
                as `read_picture` has them.

        Raises:
            ArgumentTypeError, ArgumentError: not such an array; or the network does not give L finite scores a pixel.
        """
        return self._scores([picture])[0].cpu()

    @torch.inference_mode()
    def _scores(self, pictures: Sequence[np.ndarray]) -> Tensor:
        image = self.normalise(*pictures)
        strips = list(self._strips(lambda *window: _cut(image, *window), *image.shape[2:]))
        return resize(strips[0] if len(strips) == 1 else torch.cat(strips, dim=2), pictures[0].shape[:2])

    def _strips(self, window: Callable[[int, int, int, int], Tensor], height: int, width: int) -> Iterator[Tensor]:
        """Scores (N, L, rows, W) from the top down, of an image whose windows (top, bottom, left, right) can be had.

        A window is normalised, (N, C, bottom - top, right - left).
        """
        # Whole multiples of the grid: every network's strides divide them, and a picture of one pixel is like another.
        down = tiles.spans(height + -height % tiles.GRID, self.tile, self.overlap)
        columns = tiles.spans(width + -width % tiles.GRID, self.tile, self.overlap)
        row_weights, column_weights = tiles.weights(down, self.overlap), tiles.weights(columns, self.overlap)
        kept: Tensor | None = None
        for number, (top, bottom) in enumerate(down):
            blended: Tensor | None = None
            for (left, right), across in zip(columns, column_weights):
                image = window(top, min(bottom, height), left, min(right, width))
                ends = (0, max(0, right - width), 0, max(0, bottom - height))
                part = self._network(F.pad(image, ends, mode="replicate"))
                if len(down) == len(columns) == 1:
                    blended = part
                    break
                if blended is None:
                    blended = torch.zeros(*part.shape[:2], bottom - top, columns[-1][1])
                    if kept is not None:
                        blended[:, :, : kept.shape[2]] = kept
                blended[..., left:right] += part.cpu() * row_weights[number][:, None] * across
            assert blended is not None
            # From the next tile's first row on, more is to be added.
            end = down[number + 1][0] if number + 1 < len(down) else bottom
            kept = blended[:, :, end - top :]
            done = blended[:, :, : min(end, height) - top, :width]
            if not bool(done.isfinite().all()):
                bad_value("Predictor", "model", "give finite scores", "NaN or infinity", "Are its weights damaged?")
            yield done

    def normalise(self, *pictures: np.ndarray) -> Tensor:
        """What the network sees: (picture / 255 - mean) / std, float32 (N, C, h, w), no side above `size`."""
        image = torch.cat([_tensor(picture, self.pixels, 1) for picture in pictures])
        height, width = image.shape[-2:]
        scale = min(1.0, self.size / max(height, width)) if self.size is not None else 1.0
        image = resize(image, (max(1, round(height * scale)), max(1, round(width * scale))))
        return ((image - self.mean) / self.std).to(self.device, memory_format=torch.channels_last)

    def _objects(self, picture: np.ndarray) -> np.ndarray:
        classes = find(self.model, self.normalise(picture)[0]).panoptic[:1, None].cpu()
        return F.interpolate(classes.float(), size=picture.shape[:2])[0, 0].to(torch.uint8).numpy()

    @torch.inference_mode()
    def reach(self) -> int | None:
        """How far from its own the pixels are that a score depends on; None: farther than a tile, as by pooling.

        An image in which one cell of the grid is NaN tells: a score is NaN if it depends on the cell.
        """
        # At least a cell on each side of that.
        side = max(self.tile, 3 * tiles.GRID)
        middle = side // 2 // tiles.GRID * tiles.GRID
        image = torch.zeros(1, self.channels, side, side, device=self.device)
        image[:, :, middle : middle + tiles.GRID, middle : middle + tiles.GRID] = torch.nan
        scores = self._network(image.contiguous(memory_format=torch.channels_last))
        found = scores[0].isnan().any(0).nonzero().cpu()
        if not len(found) or int(found.min()) == 0 or int(found.max()) == side - 1:
            return None
        return max(middle - int(found.min()), int(found.max()) + 1 - middle - tiles.GRID)

    def _seamless(self) -> int:
        reach = self.reach()
        most = (self.tile - tiles.GRID) // 4
        if reach is None or reach > most:
            rule = f"reach at most {most} pixels for an overlap of four times that in tiles of {self.tile}"
            got = "more than a tile" if reach is None else f"{reach}"
            bad_value("Predictor", "model", rule, got, "A larger tile, or an overlap in pixels, may do.")
        return 4 * reach

    def fingerprint(self) -> str:
        """A hash of all that decides the labels but the picture: weights, normalisation, tiles, size, scales, CRF."""
        parts = [self.classes, self.channels, self.tile, self.overlap, self.size, self.pixels.scale, self.pixels.page]
        inference = self.inference
        parts += [inference.scales, inference.flip] if isinstance(inference, MultiScale) else [(1.0,), False]
        parts += [f"{type(part).__module__}.{type(part).__qualname__}" for part in (self.model, self.crf)]
        info = getattr(self.model, "info", None)
        parts += [f"{info.network} {info.arguments}" if isinstance(info, models.Info) else ""]
        parts += [repr(self.crf) if isinstance(self.crf, nn.Module) else ""]
        found = hashlib.sha256(json.dumps(parts).encode())
        crf = self.crf.state_dict() if isinstance(self.crf, nn.Module) else {}
        named = {**self.model.state_dict(), **{f"crf.{name}": value for name, value in crf.items()}}
        for name, value in {**named, "mean": self.mean, "std": self.std}.items():
            found.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
            found.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
        return found.hexdigest()

    @torch.inference_mode()
    def refine(self, picture: np.ndarray, scores: Tensor) -> Tensor:
        """The CRF's distribution Q, (L, H, W), from `scores` (L, H, W) and the picture they came from."""
        if self.crf is None:
            bad_value("Predictor", "crf", "be given to refine", "None")
        return self.crf(scores[None], _tensor(picture, self.pixels, 255))[0]

    def _network(self, image: Tensor) -> Tensor:
        output: Any = self.inference(image)
        scores = output if isinstance(output, Tensor) else output["out"]
        if scores.dim() != 4 or scores.shape[:2] != (len(image), len(self.classes)):
            rule = f"give scores ({len(image)}, {len(self.classes)}, h, w), one for each of its classes"
            bad_value("Predictor", "model", rule, tuple(scores.shape))
        return resize(scores.float(), image.shape[2:])


def load_predictor(
    name: str | os.PathLike[str] = DEFAULT_MODEL, *, published: str | None = None, crf: bool = False, **options: Any
) -> Predictor:
    """A Predictor of trained weights: shipped ones by name, or a file written by `atrousops train` or by the user.

    Args:
        name: one of `atrousops.models.list()`, or a path.
        published: a key of `atrousops.models.PUBLISHED`, where the path is of that file.
        crf: refine with the dense CRF that suits the network.
        options: `tile`, `overlap`, `size`, `scales`, `flip`, `device` and `page` of Predictor; `size` is by default
            that of the training.

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


def _cut(image: Tensor, top: int, bottom: int, left: int, right: int) -> Tensor:
    return image[:, :, top:bottom, left:right]


def labels(scores: Tensor) -> np.ndarray:
    """The class id of the largest score at each pixel: (..., L, H, W) -> uint8 (..., H, W); the first of equal ones."""
    return scores.argmax(dim=-3).to(torch.uint8).cpu().numpy()


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
