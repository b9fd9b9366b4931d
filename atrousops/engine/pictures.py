"""Pictures in and out: any image Pillow opens becomes RGB; class ids become a palette PNG and a colour overlay."""

from __future__ import annotations

import colorsys
import contextlib
import os
import warnings
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageFilter, ImageOps, UnidentifiedImageError

from atrousops._files import write_atomically

Image.preinit()


class PictureError(ValueError):
    """A file that cannot be used as a picture; the message names the file and says why in one line."""


def read_picture(path: str | Path) -> np.ndarray:
    """Reads the first frame of any image Pillow opens, upright, as RGB.

    The EXIF orientation is applied. Transparent pixels are laid on white. 16-bit greys are divided by 257, float
    greys in 0..1 multiplied by 255; any other 32-bit grey is stretched from its minimum and maximum to 0..255.

    Returns:
        uint8 array (H, W, 3), values 0..255.

    Raises:
        PictureError: there is no such file, it is no image, or it is damaged or truncated.
    """
    path = Path(path)
    if path.is_dir():
        raise PictureError(f"{path}: a folder, where a picture file is needed")
    if not path.exists():
        raise PictureError(f"{path}: no such file")
    if not path.is_file():
        raise PictureError(f"{path}: not a regular file")
    try:
        with warnings.catch_warnings():
            # Pillow warns of very large files, odd palettes and odd tags; all are read as well as they can be.
            warnings.simplefilter("ignore")
            with Image.open(path) as image:
                image.load()
                return _to_rgb(_upright(image))
    except UnidentifiedImageError:
        raise PictureError(f"{path}: not an image that Pillow can read") from None
    except MemoryError:
        raise PictureError(f"{path}: too large for the memory of this machine") from None
    except Exception as error:  # Pillow's decoders raise anything from SyntaxError to struct.error on damaged files.
        raise PictureError(f"{path}: cannot be read: {_reason(error)}") from error


def _upright(image: Image.Image) -> Image.Image:
    # An EXIF block that cannot be parsed says nothing about the orientation, and the pixels are there.
    with contextlib.suppress(Exception):
        return ImageOps.exif_transpose(image)
    return image


def _to_rgb(image: Image.Image) -> np.ndarray:
    if image.mode.startswith("I;16"):
        grey = (np.asarray(image).astype(np.uint32) + 128) // 257
        return np.repeat(grey.astype(np.uint8)[..., None], 3, axis=2)
    if image.mode in ("I", "F"):
        return np.repeat(_stretch(np.asarray(image))[..., None], 3, axis=2)
    if image.mode in ("RGBa", "La"):
        image = image.convert("RGBA" if image.mode == "RGBa" else "LA")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return np.array(image.convert("RGB"))


def _stretch(grey: np.ndarray) -> np.ndarray:
    """32-bit greys as bytes. PNG and TIFF keep 16-bit samples in mode I, so its usual range is 0..65535."""
    values = np.nan_to_num(grey.astype(np.float64))
    low, high = values.min(), values.max()
    if grey.dtype.kind == "f" and low >= 0 and high <= 1:
        low, high = 0.0, 1.0
    elif grey.dtype.kind != "f" and low >= 0 and high <= 65535:
        low, high = 0.0, 65535.0 if high > 255 else 255.0
    return np.rint((values - low) * (255.0 / max(high - low, 1e-300))).astype(np.uint8)


def picture_files(inputs: Iterable[str | Path], skip: Path | None = None) -> tuple[list[Path], list[PictureError]]:
    """The picture files among the inputs, each once, in order; a folder gives those directly inside it, sorted.

    In a folder, hidden files and names without an image extension are passed over, subfolders too; where the folder
    is `skip` (the output folder), so are masks and overlays written by an earlier run.

    Returns:
        The files, and one error for each folder that holds none or cannot be listed.
    """
    endings = Image.registered_extensions()
    files: dict[Path, Path] = {}
    errors = []
    for path in map(Path, inputs):
        if not path.is_dir():
            files.setdefault(path.resolve(), path)
            continue
        ours = ("_mask", "_overlay") if skip is not None and path.resolve() == skip.resolve() else ()
        try:
            found = [
                p
                for p in sorted(path.iterdir())
                if p.suffix.lower() in endings
                and p.is_file()
                and not p.name.startswith(".")
                and not p.stem.endswith(ours)
            ]
        except OSError as error:
            errors.append(PictureError(f"{path}: cannot be listed: {_reason(error)}"))
            continue
        if not found:
            errors.append(PictureError(f"{path}: no pictures directly in this folder"))
        for p in found:
            files.setdefault(p.resolve(), p)
    return list(files.values()), errors


def result_names(files: Sequence[Path], folder: Path) -> list[str]:
    """A name for the results of each file; no `folder/NAME_mask.png` or `_overlay.png` is another's, or an input.

    The name is the file's stem, cut to 200 bytes; where stems meet, the extension is added (`a.jpg`, `a.png` ->
    `a_jpg`, `a_png`), then a number. Case is ignored, since some file systems do.
    """
    inputs = {str(file.resolve()).casefold() for file in files}
    stems = [os.fsdecode(os.fsencode(file.stem)[:200]) for file in files]
    count = Counter(stem.casefold() for stem in stems)
    taken: set[str] = set()

    def is_free(name: str) -> bool:
        results = (str((folder / f"{name}_{kind}.png").resolve()).casefold() for kind in ("mask", "overlay"))
        return name.casefold() not in taken and inputs.isdisjoint(results)

    names = []
    for file, stem in zip(files, stems):
        name = base = stem if count[stem.casefold()] == 1 else f"{stem}_{file.suffix[1:]}"
        number = 2
        while not is_free(name):
            name, number = f"{base}_{number}", number + 1
        taken.add(name.casefold())
        names.append(name)
    return names


def class_colors(classes: Sequence[str]) -> np.ndarray:
    """A colour for each class: black for "background", for the others hues a golden angle apart: uint8 (L, 3), RGB."""
    colors = np.zeros((len(classes), 3), dtype=np.uint8)
    # Azure first: skin, wood and foliage leave it free. Saturation and brightness take turns as hues come closer.
    shades = ((0.9, 1.0), (1.0, 0.65), (0.5, 0.95))
    others = [index for index, name in enumerate(classes) if name != "background"]
    for number, index in enumerate(others):
        hue = (0.56 + number * 0.381966) % 1
        colors[index] = np.rint(255 * np.array(colorsys.hsv_to_rgb(hue, *shades[number % len(shades)])))
    return colors


def mask_image(labels: np.ndarray, colors: np.ndarray) -> Image.Image:
    """Class ids, uint8 (H, W), as a palette image: its pixel values are the ids, its palette the colours (L, 3)."""
    image = Image.fromarray(np.ascontiguousarray(labels, dtype=np.uint8))
    image.putpalette(np.ascontiguousarray(colors).tobytes())
    return image


def overlay_image(picture: np.ndarray, labels: np.ndarray, colors: np.ndarray, alpha: float = 0.5) -> Image.Image:
    """The picture tinted by class, with a contour where classes meet; a class whose colour is black stays as it is.

    y = (1 - alpha) picture + alpha colors[label]; on the contour the class colour itself, or white for black.

    Args:
        picture: uint8 (H, W, 3).
        labels: uint8 (H, W).
        colors: uint8 (L, 3).
        alpha: the share of the class colour, 0..1.
    """
    black = (colors == 0).all(axis=1)
    share = np.where(black, 0.0, alpha).astype(np.float32)[labels][..., None]
    blended = np.rint(picture * (1 - share) + colors[labels] * share).astype(np.uint8)
    edge = contours(labels)
    blended[edge] = np.where(black[:, None], 255, colors).astype(np.uint8)[labels[edge]]
    return Image.fromarray(blended)


def contours(labels: np.ndarray) -> np.ndarray:
    """True within a line of about 1/250 of the shorter side, where classes meet: bool (H, W)."""
    size = 2 * max(1, round(min(labels.shape) / 500)) + 1
    image = Image.fromarray(np.ascontiguousarray(labels, dtype=np.uint8))
    return np.asarray(image.filter(ImageFilter.MaxFilter(size))) != np.asarray(
        image.filter(ImageFilter.MinFilter(size))
    )


def write_png(path: Path, image: Image.Image) -> None:
    """Writes `image` to `path` as PNG, whole or not at all; raises OutputError as `write_atomically` does."""
    write_atomically(path, lambda name: image.save(name, format="PNG"))


def _reason(error: BaseException) -> str:
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return " ".join(text.split()) or type(error).__name__
