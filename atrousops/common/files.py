"""Files that are either whole or not there."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from atrousops.common.checks import bad_value
from atrousops.common.places import Remote, place


class OutputError(OSError):
    """A file that could not be written; the message names it and the reason in one line."""


def write_atomically(path: str | os.PathLike[str] | Remote, write: Callable[[str], object]) -> None:
    """Calls `write` with the name of a temporary file beside `path`, then moves it there in one step.

    Missing folders are made. If `write` fails or is interrupted, `path` stays as it was and no temporary file is left.
    For an object store the temporary file is on this machine, and is put there when it is whole.

    Raises:
        OutputError: the folder cannot be written, or the disk is full.
    """
    there = place(path)
    temporary = None
    try:
        there.parent.mkdir(parents=True, exist_ok=True)
        folder = there.parent if isinstance(there, Path) else None
        handle, temporary = tempfile.mkstemp(dir=folder, prefix=f".{there.name[:40]}.")
        os.close(handle)
        write(temporary)
        if isinstance(there, Remote):
            there.put(temporary)
            return
        # mkstemp keeps its files private; results get the permissions of any other new file.
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, there)
        temporary = None
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        if temporary is not None:
            with contextlib.suppress(OSError):
                os.unlink(temporary)


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
    """A file for a library that makes an error of its own of a full disk, as `torch.save` does; raises the OSError."""
    with open(name, "wb") as stream:
        kept = _Kept(stream)
        try:
            yield kept
            stream.flush()
        except Exception as error:
            if kept.error is None:
                raise
            raise kept.error from error


# Of locked folders: processes that are forked, as those that read images are, are not to hold them longer than we do.
_HELD: set[int] = set()


def _let_go() -> None:
    while _HELD:
        os.close(_HELD.pop())


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_let_go)


@contextlib.contextmanager
def alone(folder: Path, op: str, doing: str) -> Iterator[None]:
    """While it lasts, no other process is in here with this folder; it ends with the process, however that ends.

    Where there are no such locks, as on Windows and some network file systems, nothing is locked.

    Args:
        folder: is made if it is missing.
        op, doing: what the error names: the command, and what the other process does with the folder.

    Raises:
        ArgumentError: another process is.
        OutputError: the folder cannot be made.
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
            pass
        yield
    finally:
        # Not in a child that was forked meanwhile.
        if handle in _HELD:
            _HELD.remove(handle)
            os.close(handle)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
