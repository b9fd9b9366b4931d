"""The process in which families are checked: it may hang or die, and the process that asked goes on.

Both sides: `python -m atrousops.proof DEVICE` answers questions, lines of JSON on its standard input, with lines
of JSON on its standard output; `Worker` asks. What is printed meanwhile goes to standard error.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any


class Ended(Exception):
    """The process gave no answer: it hung, or died. `hung` tells which, and the message says so in a sentence."""

    def __init__(self, message: str, hung: bool) -> None:
        super().__init__(message)
        self.hung = hung


class Worker:
    """Asks a process, which is started when it is needed and stopped where it gives no answer in time."""

    def __init__(self, command: Sequence[str]) -> None:
        self.command = command
        self._process: subprocess.Popen[bytes] | None = None
        self._read = b""
        self._case = ""

    def ask(self, question: dict[str, Any], limit: float) -> dict[str, Any]:
        """The answer to a question, from a process that has been `ready` for it.

        Raises:
            Ended: there was none within `limit` seconds, or the process died.
        """
        process = self._process
        if process is None:
            raise Ended("no process is running", False)
        self._case = ""
        try:
            assert process.stdin is not None
            process.stdin.write(json.dumps(question).encode() + b"\n")
            process.stdin.flush()
        except OSError:
            raise self._ended(False, limit) from None
        answer = self._answer(limit)
        if answer.get("over"):
            self.stop()
        return answer

    def ready(self, limit: float) -> None:
        """Starts the process if none is running, and waits until it has found its device.

        Raises:
            Ended: it did not within `limit` seconds.
        """
        if self._process is not None:
            return
        self._read, self._case = b"", ""
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115, read when the process has ended
        # A session of its own: what it starts, such as Triton's assembler, ends with it.
        self._process = subprocess.Popen(
            self.command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors,
            env=_environment(), start_new_session=True,
        )  # fmt: skip
        self._answer(limit)

    def stop(self) -> int | None:
        """Ends the process, if one is running; its exit status, None where even that is not had of it."""
        process, self._process = self._process, None
        if process is None:
            return None
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        for pipe in (process.stdin, process.stdout):
            # What was written for a process that is dead cannot be flushed.
            with contextlib.suppress(OSError):
                if pipe is not None:
                    pipe.close()
        try:
            return process.wait(10)
        except subprocess.TimeoutExpired:  # stuck in the driver
            return None

    def _answer(self, limit: float) -> dict[str, Any]:
        end = time.monotonic() + limit
        while True:
            while b"\n" not in self._read:
                assert self._process is not None
                assert self._process.stdout is not None
                pipe = self._process.stdout.fileno()
                if not select.select([pipe], [], [], max(0.0, end - time.monotonic()))[0]:
                    raise self._ended(True, limit)
                chunk = os.read(pipe, 1 << 16)
                if not chunk:
                    raise self._ended(False, limit)
                self._read += chunk
            line, _, self._read = self._read.partition(b"\n")
            said = json.loads(line)
            if "case" not in said:
                return said
            self._case = said["case"]

    def _ended(self, hung: bool, limit: float) -> Ended:
        where = f"{self._case}: " if self._case else ""
        if hung:
            self.stop()
            return Ended(f"{where}did not end within {limit:.0f} s, and was stopped", True)
        assert self._process is not None
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(10)
        status = self._process.poll()
        self.stop()
        how = "vanished" if status is None else f"ended with status {status}"
        if status is not None and status < 0:
            how = f"died of {signal.Signals(-status).name}"
        self._errors.seek(0)
        last = (self._errors.read().decode(errors="replace").strip().splitlines() or [""])[-1][:300]
        return Ended(f"{where}the process {how}{f': {last}' if last else ''}", False)


def _environment() -> dict[str, str]:
    # The package that this process has; no backend is forced but by the cases.
    package = str(Path(__file__).resolve().parents[2])
    paths = [package, *filter(None, [os.environ.get("PYTHONPATH")])]
    kept = {name: value for name, value in os.environ.items() if name != "ATROUSOPS_BACKEND"}
    return kept | {"PYTHONPATH": os.pathsep.join(paths)}


def command(device: str) -> list[str]:
    """What starts the answering side for a device."""
    return [sys.executable, "-m", "atrousops.proof", device]


def answer(device: str, question: dict[str, Any], say: Callable[[str], object]) -> dict[str, Any]:
    """What is found of a family on a device, or, where none is named, whether the backend runs there at all."""
    import torch

    from atrousops.dispatch import backends
    from atrousops.dispatch.verdicts import Finding
    from atrousops.proof import check, registry

    backend, family = question["backend"], question["family"]
    if not family:
        return backends.can_run(backend, "conv", torch.device(device), torch.float32)._asdict()
    end = time.monotonic() + question["seconds"]
    last = [""]

    def told(case: str) -> None:
        last[0] = case
        say(case)

    try:
        found = check.check(
            registry.families(backend, device)[family], backend, device, told, lambda: end - time.monotonic()
        )
    except Exception as error:  # of a kernel, the compiler or the driver: a verdict; what the device is now is unknown
        first = (str(error).strip().splitlines() or [""])[0]
        return _fields(Finding(False, f"{last[0]}: {type(error).__name__}: {first}")) | {"over": True}
    return _fields(found)


def _fields(finding: Any) -> dict[str, Any]:
    return finding._asdict() | {"rates": [list(rate) for rate in finding.rates]}


def main(device: str) -> None:
    """Answers questions until there are no more of them, or one has left the device in doubt."""
    import torch

    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def tell(said: dict[str, Any]) -> None:
        print(json.dumps(said), file=out, flush=True)

    where = torch.device(device)
    if where.type != "cpu":
        torch.get_device_module(where).set_device(where)
    torch.zeros(1, device=where).cpu()
    tell({"ready": True})
    for line in sys.stdin:
        said = answer(device, json.loads(line), lambda case: tell({"case": case}))
        tell(said)
        if said.get("over"):
            return
