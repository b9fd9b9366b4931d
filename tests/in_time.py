"""A command that ends in time, with its children."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import TextIO


def run_within(limit: float, command: Sequence[str], folder: Path, variables: dict[str, str], out: TextIO) -> int:
    """A command's exit status; 124 where its time ran out, 127 where it is missing. Its children end with it."""
    streams = {"stdout": out, "stderr": subprocess.STDOUT}
    try:
        # A group of its own: compute-sanitizer's and selfcheck's children would go on, and hold the GPU.
        process = subprocess.Popen(command, cwd=folder, env=variables, start_new_session=True, **streams)
    except OSError as error:
        print(error, file=out)
        return 127
    try:
        return process.wait(limit)
    except subprocess.TimeoutExpired:
        return 124
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
