"""Prediction for images of any size, in overlapping tiles, optionally refined by a CRF."""

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
from atrousops.surgery.optimize import optimize

# The default weights, which come with the package: people in photographs.
DEFAULT_MODEL = "deeplabv3plus_efficientnet_lite2_voc_person"


class Predictor:
    """Labels every pixel of an image.

    label(i) = argmax over classes of score(i), or of Q(i) after the CRF. Images larger than a tile are processed in
    tiles, whose scores are blended where they overlap (`tiles.weights`).

    Args:
        model: a module that maps (1, C, H, W) to scores (1, L, h, w), or to a mapping with such a tensor under "out";
            h and w may be smaller than H and W. It is set to eval mode and channels_last.
        classes: the names of the L classes, at most 256, in the order of the class ids.
        mean, std: the network's input is (image / 255 - mean) / std; one number for each of its C channels.
        tile: side of a tile in pixels, rounded up to a multiple of 32; larger images are divided.
        overlap: overlap of neighbouring tiles in pixels, at most tile - 32. None: four times the network's `reach`, so
            that the labels are those of the whole image.
        size: the longest side of the network's input: larger images are scaled down, and the scores up again. None: no
            scaling. A network finds objects of the size that it was trained on.
        crf: a callable (scores (1, L, H, W), image (1, C, H, W) in 0..255) -> Q (1, L, H, W), such as `ao.DenseCRF()`.
        scales, flip: as in MultiScale, which averages the scores: more accurate and slower.
        scale: the number in an integer image that counts as 1; by default the largest of its dtype.
        odd_sides: show the network 32 n + 1 pixels along each side, as `MultiScale` explains.
        device: of the network; the CRF and the blending of tiles run on the CPU.
        page: the page or frame of a file to read, from 1.

    Raises:
        ArgumentError: no classes or more than 256, a std or scale that is not positive, mean and std of different
            lengths, or an overlap as large as the tile.
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
        odd_sides: bool = False,
    ) -> None:
        if not 1 <= len(classes) <= 256:
            bad_value("Predictor", "classes", "hold 1 to 256 names", f"{len(classes)}")
        if tile < 1:
            bad_value("Predictor", "tile", "be at least 1 pixel", tile)
        if size is not None and size < 1:
            bad_value("Predictor", "size", "be at least 1 pixel, or None", size)
        self.device = torch.device(device)
        self.model = model.eval().to(self.device).to(memory_format=torch.channels_last)
        self.odd_sides = odd_sides
        several = flip or tuple(scales) != (1,)
        self.inference = MultiScale(self.model, scales, flip, odd_sides) if several else self.model
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
        self._check_crfs()
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
        """Class ids, uint8 (H, W), of an image (H, W, C) as for `scores`, such as RGB in uint8.

        A network that finds objects processes the whole image; a pixel gets the class of the object with the highest
        score.
        """
        return self.batch([picture])[0]

    def batch(self, pictures: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Class ids of images of one shape, processed as one batch; the same as `__call__` for each.

        If two classes are equal to within rounding, a kernel for several images may choose the other one.

        Raises:
            ArgumentTypeError, ArgumentError: as `scores`; or no images, or of several shapes.
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
        """Whether images can be processed in parts: at their own size, without CRF and without objects."""
        return self.size is None and self.crf is None and not hasattr(self.model, "objects")

    @torch.inference_mode()
    def strips(self, rows: Callable[[int, int], np.ndarray], height: int, width: int) -> Iterator[np.ndarray]:
        """Class ids of an image that is not completely in memory: uint8 (rows, W), from top to bottom.

        The same as `__call__` without a CRF, with one row of tiles in memory at a time.

        Args:
            rows: (top, bottom) -> those rows of the image, (bottom - top, W, C).

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
        """The network's scores, float32 (L, H, W), of an image (H, W, C), such as RGB in uint8.

        Args:
            picture: uint8 or uint16, where `scale` counts as 1; if `scale` is given also float32, where 1 counts as 1,
                as from `read_picture`.

        Raises:
            ArgumentTypeError, ArgumentError: not such an array; or the network does not give L finite scores per pixel.
        """
        return self._scores([picture])[0].cpu()

    @torch.inference_mode()
    def _scores(self, pictures: Sequence[np.ndarray]) -> Tensor:
        image = self.normalise(*pictures)
        strips = list(self._strips(lambda *window: _cut(image, *window), *image.shape[2:]))
        return resize(strips[0] if len(strips) == 1 else torch.cat(strips, dim=2), pictures[0].shape[:2])

    def _strips(self, window: Callable[[int, int, int, int], Tensor], height: int, width: int) -> Iterator[Tensor]:
        """Scores (N, L, rows, W) from top to bottom, for an image read by windows (top, bottom, left, right).

        A window is normalised, (N, C, bottom - top, right - left).
        """
        # Multiples of the grid, because every network's strides divide them; this also handles an image of one pixel.
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
            # Rows from the first row of the next tile on are not complete yet.
            end = down[number + 1][0] if number + 1 < len(down) else bottom
            kept = blended[:, :, end - top :]
            done = blended[:, :, : min(end, height) - top, :width]
            if not bool(done.isfinite().all()):
                bad_value("Predictor", "model", "give finite scores", "NaN or infinity", "Are its weights damaged?")
            yield done

    def normalise(self, *pictures: np.ndarray) -> Tensor:
        """The network's input: (image / 255 - mean) / std, float32 (N, C, h, w), no side above `size`."""
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
        """The distance of the farthest pixel that a score depends on; None: more than a tile, as with global pooling.

        Measured with an image in which one cell of the grid is NaN: a score is NaN if it depends on the cell.
        """
        # At least one cell on each side of the NaN cell.
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

    def _check_crfs(self) -> None:
        """A CRF in the network undoes the normalisation, and so must know it."""
        given = (self.mean.flatten(), self.std.flatten())
        for module in self.model.modules():
            if isinstance(module, models.WithCRF):
                known = (module.mean.flatten().cpu(), module.std.flatten().cpu())
                if not all(torch.equal(one, other) for one, other in zip(given, known, strict=True)):
                    rule = f"be those of the network's WithCRF, {[part.tolist() for part in known]}"
                    remedy = "WithCRF.normalise_by sets them."
                    bad_value("Predictor", "mean and std", rule, [part.tolist() for part in given], remedy)

    def fingerprint(self) -> str:
        """A hash of what the labels depend on, except the image: weights, normalisation, tiles, size, scales, CRF."""
        parts = [self.classes, self.channels, self.tile, self.overlap, self.size, self.pixels.scale, self.pixels.page]
        inference = self.inference
        parts += [inference.scales, inference.flip] if isinstance(inference, MultiScale) else [(1.0,), False]
        parts += [f"{type(part).__module__}.{type(part).__qualname__}" for part in (self.model, self.crf)]
        info = getattr(self.model, "info", None)
        parts += ["odd sides"] if self.odd_sides else []
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
        """The CRF's distribution Q, (L, H, W), from `scores` (L, H, W) and their image."""
        if self.crf is None:
            bad_value("Predictor", "crf", "be given to refine", "None")
        return self.crf(scores[None], _tensor(picture, self.pixels, 255))[0]

    def _network(self, image: Tensor) -> Tensor:
        odd = int(self.odd_sides)
        image = F.pad(image, (0, odd, 0, odd), mode="replicate") if odd else image
        output: Any = self.inference(image)
        scores = output if isinstance(output, Tensor) else output["out"]
        if scores.dim() != 4 or scores.shape[:2] != (len(image), len(self.classes)):
            rule = f"give scores ({len(image)}, {len(self.classes)}, h, w), one for each of its classes"
            bad_value("Predictor", "model", rule, tuple(scores.shape))
        scores = resize(scores.float(), image.shape[2:])
        return scores[..., :-1, :-1] if odd else scores


def load_predictor(
    name: str | os.PathLike[str] = DEFAULT_MODEL,
    *,
    published: str | None = None,
    crf: bool = False,
    optimized: bool = False,
    **options: Any,
) -> Predictor:
    """A Predictor for trained weights: shipped ones by name, or a file written by `atrousops train` or by the user.

    Args:
        name: one of `atrousops.models.list()`, or a path.
        published: a key of `atrousops.models.PUBLISHED`, if the path is that file.
        crf: refine with the dense CRF tuned for the network.
        optimized: use `atrousops.optimize` with freeze=True, which takes seconds at first and then less time for each
            image; scores are the same to within rounding.
        options: `tile`, `overlap`, `size`, `scales`, `flip`, `device` and `page` of Predictor; `size` is by default
            that of training.

    Raises:
        FileNotFoundError, ArgumentError: as `atrousops.models.load`; or the number of outputs differs from the number
            of class names in the file.
    """
    model: nn.Module = models.load(name) if published is None else models.load_published(published, name)
    info = cast(models.Info, model.info)
    outputs.check_weights("load_predictor", info.network, info.arguments, info.classes, str(name))
    refine = info.dense_crf() if crf else None
    if optimized:
        model = optimize(model.eval(), freeze=True)
    given = {"size": info.size, "crf": refine, "scale": info.scale, "odd_sides": info.odd_sides, **options}
    return Predictor(model, info.classes, info.mean, info.std, **given)


def _cut(image: Tensor, top: int, bottom: int, left: int, right: int) -> Tensor:
    return image[:, :, top:bottom, left:right]


def labels(scores: Tensor) -> np.ndarray:
    """The class id of the largest score at each pixel, the first if equal: (..., L, H, W) -> uint8 (..., H, W)."""
    # argmax gives the same and takes three times as long on a CPU.
    return scores.max(dim=-3).indices.to(torch.uint8).cpu().numpy()


def _tensor(picture: np.ndarray, pixels: Pixels, white: float) -> Tensor:
    """(1, C, H, W), in 0..white."""
    # Floats of unknown range would be misinterpreted silently.
    floats = picture.dtype == np.float32 and pixels.scale is not None
    if picture.dtype not in (np.uint8, np.uint16) and not floats:
        bad_type("Predictor", "picture", "be uint8 or uint16, or float32 where scale is given", picture.dtype)
    if picture.ndim != 3 or picture.shape[2] != pixels.channels or picture.size == 0:
        bad_value("Predictor", "picture", f"have shape (H, W, {pixels.channels}), not empty", picture.shape)
    most = 1.0 if floats else pixels.scale or float(np.iinfo(picture.dtype).max)
    image = torch.from_numpy(picture.astype(np.float32) / (most / white))
    return image.permute(2, 0, 1)[None]
