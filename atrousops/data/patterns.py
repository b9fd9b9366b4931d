"""Patterns of file names, for images and their masks."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from functools import lru_cache
from pathlib import PurePosixPath

from PIL import Image

from atrousops.common.checks import bad_value

_WILD = {"**/": "((?:[^/]+/)*)", "**": "(.*)", "*": "([^/]*)", "?": "([^/])"}


class Pattern:
    """A folder, or a path with wildcards: `*` within a name, `**` across folders, `?` for one character.

    A file's key is the text that the wildcards match: "masks/*_mask.png" gives masks/a_mask.png the key "a", which
    pairs it with the image of key "a" of another pattern. A pattern without wildcards is a folder, and matches all
    images in it and below it: "masks" is "masks/**/*.*". A suffix `.*` matches that of any image format and is not part
    of the key. Literal text matches in any case, so `*.jpg` matches A.JPG. Composed and decomposed accented letters (as
    on a Mac) are equal.

    Attributes:
        folder: the part before the first wildcard, relative to the data folder.
        text: the pattern.
    """

    def __init__(self, text: str) -> None:
        parts = list(PurePosixPath(text.replace("\\", "/")).parts)
        first = next((i for i, part in enumerate(parts) if "*" in part or "?" in part), len(parts))
        self.folder = str(PurePosixPath(*parts[:first])) if first else ""
        wild = parts[first:] or ["**", "*.*"]
        self.text = str(PurePosixPath(self.folder, *wild))
        self.any_image = wild[-1].endswith(".*")
        inside = "/".join(wild).removesuffix(".*")
        pieces = re.split(r"(\*\*/|\*\*|\*|\?)", composed(inside))
        self._expression = re.compile("".join(_WILD.get(piece, re.escape(piece)) for piece in pieces), re.IGNORECASE)

    def key(self, name: str) -> str | None:
        """The key of a file, by its path relative to `folder`; None if the pattern does not match."""
        if self.any_image:
            path = PurePosixPath(name)
            if path.suffix.lower() not in endings():
                return None
            name = str(path.with_suffix(""))
        found = self._expression.fullmatch(composed(name))
        return "/".join(part.strip("/") for part in found.groups() if part) if found else None

    def keys(self, what: str, names: Iterable[str]) -> dict[str, str]:
        """The matching files by their keys, as paths relative to the data folder.

        Raises:
            ArgumentError: two files have the same key.
        """
        found: dict[str, str] = {}
        for name in names:
            key = self.key(name)
            if key is None:
                continue
            path = str(PurePosixPath(self.folder, name))
            if key in found:
                remedy = "Name the files by a pattern, such as 'images/*.png'."
                bad_value("data", what, f"give one file for {key!r}", f"{found[key]} and {path}", remedy)
            found[key] = path
        return found


def composed(name: str) -> str:
    """A name with composed accented letters."""
    return unicodedata.normalize("NFC", name)


@lru_cache(maxsize=1)
def endings() -> frozenset[str]:
    """The suffixes of image files, in lower case."""
    return frozenset(Image.registered_extensions()) | {".npy"}
