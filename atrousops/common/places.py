"""Paths given by users: local files, or URLs of object stores that fsspec supports."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, NamedTuple, TypeAlias, cast

from atrousops.common.checks import bad_value

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")


class _Stat(NamedTuple):
    st_mtime: float


@dataclass(frozen=True, order=True)
class Remote:
    """A file or folder given by a URL, with the methods of `pathlib.Path` that this package uses, and `put`.

    Errors are those of the store's package; most are OSErrors.
    """

    url: str

    def __str__(self) -> str:
        return self.url

    def __truediv__(self, name: str) -> Remote:
        return Remote(f"{self.url.rstrip('/')}/{name}" if self._inside else f"{self.url}{name}")

    @property
    def name(self) -> str:
        return PurePosixPath(self._inside).name

    @property
    def stem(self) -> str:
        return PurePosixPath(self.name).stem

    @property
    def suffix(self) -> str:
        return PurePosixPath(self.name).suffix

    @property
    def parent(self) -> Remote:
        scheme = self.url.partition("://")[0]
        return Remote(f"{scheme}://{self._inside.rstrip('/').rpartition('/')[0]}")

    def resolve(self) -> Remote:
        return self

    def exists(self) -> bool:
        return self._kind() is not None

    def is_dir(self) -> bool:
        return self._kind() == "directory"

    def is_file(self) -> bool:
        return self._kind() == "file"

    def iterdir(self) -> Iterator[Remote]:
        files, path = self._reached()
        names = (
            PurePosixPath(found).name for found in files.ls(path, detail=False) if found.strip("/") != path.strip("/")
        )
        return (self / name for name in names)

    def open(self, mode: str = "rb") -> BinaryIO:
        files, path = self._reached()
        return cast(BinaryIO, files.open(path, mode))

    def read_bytes(self) -> bytes:
        with self.open() as stream:
            return stream.read()

    def stat(self) -> _Stat:
        """The modification time. Raises OSError: the file does not exist, or its store does not report the time."""
        files, path = self._reached()
        try:
            return _Stat(files.modified(path).timestamp())
        except NotImplementedError as error:
            raise OSError(f"{self.url}: its store does not say when it was changed") from error

    def mkdir(self, parents: bool = True, exist_ok: bool = True) -> None:
        files, path = self._reached()
        files.makedirs(path, exist_ok=exist_ok)

    def unlink(self, missing_ok: bool = False) -> None:
        if self.exists() or not missing_ok:
            files, path = self._reached()
            files.rm_file(path)

    def put(self, local: str | os.PathLike[str]) -> None:
        """Replaces the file by a local one; whether this is atomic depends on the store."""
        files, path = self._reached()
        files.put_file(os.fspath(local), path)

    @property
    def _inside(self) -> str:
        return self.url.partition("://")[2]

    def _kind(self) -> str | None:
        files, path = self._reached()
        try:
            return str(files.info(path)["type"])
        except FileNotFoundError:
            return None

    def _reached(self) -> tuple[Any, str]:
        # Not cached here: fsspec caches one per thread, and makes another in a forked process.
        from fsspec.core import url_to_fs

        files, path = url_to_fs(self.url)
        return files, str(path)


Place: TypeAlias = Path | Remote


def place(given: str | os.PathLike[str] | Remote, argument: str = "path") -> Place:
    """A local path, or the place that a URL such as s3://bucket/folder names; `argument` is its name in messages.

    Raises:
        ImportError: fsspec, or the package that it needs for such a store, is not installed.
        ArgumentError: fsspec does not know the store, or the URL is a chain of several.
    """
    if isinstance(given, Remote):
        return given
    text = os.fspath(given)
    if not isinstance(given, str) or not _URL.match(text):
        return Path(given)
    if "::" in text:
        bad_value(
            "atrousops", argument, "be one URL", f"the chain {text}", "Unpack archives, or name one that is local."
        )
    try:
        import fsspec
    except ModuleNotFoundError as error:
        raise ImportError(f"{argument} {text} needs the package fsspec: pip install fsspec") from error
    scheme = text.partition("://")[0]
    try:
        fsspec.get_filesystem_class(scheme)
    except ImportError as error:
        raise ImportError(f"{argument} {text}: {error}") from error
    except ValueError:
        rule = "be of a store that fsspec knows, such as s3, gs or memory; they are in fsspec.available_protocols()"
        bad_value("atrousops", argument, rule, text)
    return Remote(text)


def dangling(path: Place) -> str:
    """For a broken link, a text that says where it points; "" for anything else."""
    if not isinstance(path, Path) or not path.is_symlink() or path.exists():
        return ""
    return f"a link to {os.readlink(path)}, which is not there"


def absent(given: str | os.PathLike[str] | Remote) -> str:
    """The text that a file or folder does not exist; for a relative path also where it was searched."""
    where = place(given)
    return f"{given}, which does not exist" + (
        f" in {Path.cwd()}" if isinstance(where, Path) and not where.is_absolute() else ""
    )
