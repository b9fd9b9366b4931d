"""The files of a data set, in a folder or a zip archive, and the search for data sets."""

from __future__ import annotations

import contextlib
import io
import os
import zipfile
import zlib
from collections.abc import Iterator
from typing import BinaryIO, cast

import numpy as np

from atrousops.common.checks import bad_value
from atrousops.common.places import Place, Remote, dangling, place
from atrousops.data import bands, decode
from atrousops.data.bands import Pixels

# Errors of the system, and of zipfile for archives that are damaged, truncated, unsupported or encrypted.
_UNREADABLE = (OSError, zipfile.BadZipFile, zlib.error, EOFError, RuntimeError)


def find(name: str, root: str | os.PathLike[str] | None = None) -> Place:
    """The path of a data file or folder.

    Searched in `root` if given, else in $ATROUSOPS_DATA.

    Raises:
        ArgumentError: it does not exist, or neither is given.
    """
    given = "--data or data.root" if root is not None else "$ATROUSOPS_DATA"
    folder = os.environ.get("ATROUSOPS_DATA") if root is None else root
    found = place(folder, given) / name if folder else None
    if found is None or not found.exists():
        where = str(folder) if folder else "neither"
        bad_value("data", "--data or data.root", f"be a folder that holds {name}", where, "Or set $ATROUSOPS_DATA.")
    return found


def _walk(folder: Place, inside: str, above: frozenset[Place]) -> Iterator[str]:
    """Names of files, prefixed with `inside`; links are followed, except to a parent folder."""
    here = folder.resolve()
    if here in above or not folder.is_dir():
        return
    for path in folder.iterdir():
        if path.is_dir():
            yield from _walk(path, f"{inside}{path.name}/", above | {here})
        else:
            yield f"{inside}{path.name}"


class Files:
    """Reads files by their relative name, from a folder or directly from a zip archive.

    Every process opens the archive itself, so that workers do not share a file position.
    """

    def __init__(self, path: str | Place) -> None:
        self.path = place(path)
        self._folder = self.path.is_dir()
        if not self._folder and not self._is_archive():
            bad_value("data", "--data or data.root", "be a folder or a zip archive", str(path))
        self._archive: zipfile.ZipFile | None = None
        self._process = -1

    def read(self, name: str) -> bytes:
        """The bytes of one file. Raises FileNotFoundError; PictureError: it cannot be read."""
        with self.open(name) as stream, self._naming(name):
            return stream.read()

    def open(self, name: str) -> BinaryIO:
        """One file as a seekable stream. Raises as `read`."""
        with self._naming(name):
            # Opening a pipe would block until there is a writer.
            if self._folder and (self.path / name).is_file():
                return (self.path / name).open("rb")
            with contextlib.suppress(KeyError):
                if not self._folder:
                    return cast(BinaryIO, self._zip().open(name))
        raise self._absent(name)

    @contextlib.contextmanager
    def _naming(self, name: str) -> Iterator[None]:
        """Converts errors of a file system or archive, not of a store, to PictureErrors that name the file."""
        try:
            yield
        except _UNREADABLE as error:
            if isinstance(self.path, Remote):
                raise
            raise decode.PictureError(f"{self.place(name)}: cannot be read: {decode.reason(error)}") from error

    def _absent(self, name: str) -> FileNotFoundError:
        link = dangling(self.path / name)
        return FileNotFoundError(f"{self.place(name)}: {link}" if link else f"{self.path} holds no {name}")

    def names(self, folder: str, suffix: str) -> list[str]:
        """The sorted stems of the files in `folder` that end in `suffix`."""
        if self._folder:
            parent = self.path / folder
            found = [p.name for p in parent.iterdir()] if parent.is_dir() else []
        else:
            inside = (n[len(folder) + 1 :] for n in self._zip().namelist() if n.startswith(f"{folder}/"))
            found = [name for name in inside if "/" not in name]
        return sorted(name[: -len(suffix)] for name in found if name.endswith(suffix))

    def folders(self, folder: str) -> list[str]:
        """The sorted names of the folders in `folder` ("" for the top level)."""
        if self._folder:
            parent = self.path / folder
            return sorted(p.name for p in parent.iterdir() if p.is_dir()) if parent.is_dir() else []
        start = f"{folder}/" if folder else ""
        inside = (n[len(start) :] for n in self._zip().namelist() if n.startswith(start))
        return sorted({name.split("/")[0] for name in inside if "/" in name})

    def place(self, name: str) -> str:
        """The file as named in messages: the path of the folder or archive, and the name in it."""
        return f"{self.path}/{name}"

    def walk(self, folder: str = "") -> list[str]:
        """The sorted relative paths of the files in `folder` and all folders below it, without hidden files."""
        if self._folder:
            found = _walk(self.path / folder, "", frozenset())
        else:
            start = f"{folder}/" if folder else ""
            found = (n[len(start) :] for n in self._zip().namelist() if n.startswith(start) and not n.endswith("/"))
        return sorted(name for name in found if not any(part.startswith((".", "__MACOSX")) for part in name.split("/")))

    def image(self, name: str, pixels: Pixels | None = None) -> np.ndarray:
        """One image (H, W, C), uint8 RGB unless `pixels` specifies otherwise; see `bands.read_picture`.

        Raises:
            PictureError, FileNotFoundError: it cannot be read, or does not exist.
        """
        return bands.picture_from(io.BytesIO(self.read(name)), self.place(name), pixels or Pixels())

    def mask(self, name: str, remedy: str = "convert it to ids first") -> np.ndarray:
        """The ids of one mask, int64 (H, W); see `decode.read_mask`. Raises PictureError, FileNotFoundError."""
        stream = io.BytesIO(self.read(name))
        if name.lower().endswith(".npy"):
            return bands.integers_from(stream, self.place(name))
        return decode.mask_from(stream, self.place(name), remedy)

    def colours(self, name: str) -> np.ndarray:
        """The colours of one mask, uint8 (H, W, 3); see `decode.colours_from`, also for errors."""
        return decode.colours_from(io.BytesIO(self.read(name)), self.place(name))

    def colour_ids(self, name: str) -> np.ndarray:
        """Ids R + 256 G + 65536 B of one file, int64 (H, W). Raises PictureError, FileNotFoundError."""
        return decode.colour_ids_from(io.BytesIO(self.read(name)), self.place(name))

    def _is_archive(self) -> bool:
        if not self.path.is_file():
            return False
        with self.path.open("rb") as stream:
            return zipfile.is_zipfile(stream)

    def _zip(self) -> zipfile.ZipFile:
        if self._archive is None or self._process != os.getpid():
            self._archive = zipfile.ZipFile(self.path.open() if isinstance(self.path, Remote) else self.path)
            self._process = os.getpid()
        return self._archive
