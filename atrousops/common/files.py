"""Files that are either whole or not there."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

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


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
