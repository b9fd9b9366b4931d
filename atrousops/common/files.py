"""Atomic file writes: a file is complete or does not exist."""

from __future__ import annotations

import contextlib
import os
import re
import stat
import tempfile
import warnings
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from atrousops.common.checks import bad_value
from atrousops.common.places import Remote, place


class OutputError(OSError):
    """A file that could not be written; the message names it and the reason in one line."""


def write_atomically(path: str | os.PathLike[str] | Remote, write: Callable[[str], object]) -> None:
    """Calls `write` with the name of a temporary file beside `path`, then moves it there in one step.

    Missing folders are created. If `write` fails or is interrupted, `path` stays as it was and no temporary file is
    left. For an object store the temporary file is local, and is uploaded when complete.

    Raises:
        OutputError: the folder cannot be written, or the disk is full.
    """
    there = place(path)
    temporary = None
    try:
        there.parent.mkdir(parents=True, exist_ok=True)
        folder = there.parent if isinstance(there, Path) else None
        handle, temporary = tempfile.mkstemp(dir=folder, prefix=_prefix(there.name))
        os.close(handle)
        write(temporary)
        if isinstance(there, Remote):
            there.put(temporary)
            return
        # mkstemp makes private files; results get the permissions of any other new file.
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, there)
        temporary = None
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        if temporary is not None:
            with contextlib.suppress(OSError):
                os.unlink(temporary)


def _prefix(name: str) -> str:
    return f".{name[:40]}."


def _remove_leftovers(results: Iterable[Path]) -> None:
    """Removes temporary files for these results whose process was killed; the caller knows that no other one writes."""
    prefixes: dict[Path, set[str]] = {}
    for path in results:
        prefixes.setdefault(path.parent, set()).add(_prefix(path.name))
    for folder, own in prefixes.items():
        try:
            _remove_from(folder, own)
        except OSError as error:
            what = f"what a killed run may have left in {folder} stays there ({error.strerror or error})"
            warnings.warn(f"{what}: remove files whose names begin as {min(own)}????????", stacklevel=2)


def _remove_from(folder: Path, own: set[str]) -> None:
    if not folder.is_dir():
        return
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name[:-8] not in own or not _MADE_BY_MKSTEMP.fullmatch(entry.name[-8:]):
                continue
            # Another process may have removed it by now.
            with contextlib.suppress(FileNotFoundError):
                if _is_private(entry):
                    os.unlink(entry)


# The characters of mkstemp, which also makes files that only their owner can read; others of such a name are not ours.
_MADE_BY_MKSTEMP = re.compile("[a-z0-9_]{8}")


def _is_private(entry: os.DirEntry[str]) -> bool:
    about = entry.stat(follow_symlinks=False)
    return stat.S_ISREG(about.st_mode) and stat.S_IMODE(about.st_mode) == 0o600 and about.st_uid == os.getuid()


class _Kept:
    """A file that keeps the error of a failed write."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self.error: OSError | None = None

    def write(self, data: bytes) -> int:
        return self._noted(self._stream.write, data)

    def flush(self) -> None:
        self._noted(self._stream.flush)

    def _noted(self, call: Callable[..., Any], *arguments: bytes) -> Any:
        try:
            return call(*arguments)
        except OSError as error:
            self.error = error
            raise


@contextlib.contextmanager
def writing(name: str) -> Iterator[Any]:
    """A file for libraries that replace the OSError of a full disk, as `torch.save` does; raises that OSError."""
    with open(name, "wb") as stream:
        kept = _Kept(stream)
        try:
            yield kept
            stream.flush()
        except Exception as error:
            if kept.error is None:
                raise
            raise kept.error from error


# Descriptors of locked folders. Forked processes, such as data loaders, close them, or they would keep the lock.
_HELD: set[int] = set()


def _let_go() -> None:
    while _HELD:
        os.close(_HELD.pop())


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_let_go)


@contextlib.contextmanager
def alone(folder: Path, op: str, doing: str, results: Iterable[Path] = ()) -> Iterator[None]:
    """Locks a folder against other processes; the lock ends with the `with` block or with the process.

    On systems without such locks (Windows, some network file systems) nothing is locked.

    Args:
        folder: created if missing.
        op, doing: for the error message: the command, and what the other process does with the folder.
        results: files that only holders of the lock write: what a killed one left of `write_atomically` is removed.

    Raises:
        ArgumentError: another process has locked the folder.
        OutputError: the folder cannot be created.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"cannot write {folder}: {error.strerror or error}") from error
    try:
        import fcntl

        handle = os.open(folder, os.O_RDONLY)
    except (ImportError, OSError):
        yield
        return
    _HELD.add(handle)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            remedy = "Wait for it to end, or give another folder by --output."
            bad_value(op, "output", "be a folder of this process alone", f"{folder}, {doing}", remedy)
        except OSError:
            # A file system without locks: another process may write these files now.
            results = ()
        _remove_leftovers(results)
        yield
    finally:
        # Not in a child process that was forked in the meantime.
        if handle in _HELD:
            _HELD.remove(handle)
            os.close(handle)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
