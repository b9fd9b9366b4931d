"""selfcheck: every family of kernels that this build has, checked on one device; the verdicts are kept."""

from __future__ import annotations

import logging
import math
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from atrousops.common.checks import bad_type, bad_value
from atrousops.common.files import OutputError
from atrousops.dispatch import backends, choice, devices, libraries, triton_library, verdicts
from atrousops.dispatch.verdicts import Finding, Rate
from atrousops.proof.worker import Ended, Worker, command

log = logging.getLogger("atrousops")

SECONDS = 60.0
# Of one family, for which Triton compiles first, and of a start: importing torch and starting a driver.
_FAMILY_SECONDS, _TRITON_SECONDS, _START_SECONDS = 15.0, 60.0, 60.0
# What is not begun with less.
_LEAST = 2.0


@dataclass
class Selfcheck:
    """What was found. Prints as a table.

    Attributes:
        device: as str(torch.device); gpu: its name.
        findings: by backend and family.
        left: the families that there was no time for, as "cuda forward wgmma".
        problems: of a backend that could not be checked, why.
        files: where verdicts are kept.
        note: why none are, or nothing.
    """

    device: str
    gpu: str
    findings: dict[str, dict[str, Finding]] = field(default_factory=dict)
    left: list[str] = field(default_factory=list)
    problems: dict[str, str] = field(default_factory=dict)
    files: list[Path] = field(default_factory=list)
    note: str = ""

    @property
    def ok(self) -> bool:
        """Whether something was checked, and nothing found wrong."""
        found = [f.ok for of in self.findings.values() for f in of.values()]
        return bool(found) and all(found)

    def __str__(self) -> str:
        rows = [row(f"{b} {name}", f) for b, of in self.findings.items() for name, f in of.items()]
        return "\n".join([f"{self.gpu} ({self.device})", *rows, *self.summary()])

    def summary(self) -> list[str]:
        """What follows from the rows."""
        found = [f.ok for of in self.findings.values() for f in of.values()]
        lines = [f"{name}: not checked: {problem}" for name, problem in self.problems.items()]
        if self.left:
            more = "a longer --seconds reaches them"
            lines.append(f"no time for {len(self.left)} families ({', '.join(self.left)}): {more}")
        failed = len(found) - sum(found)
        instead = ": PyTorch runs those" if failed and self.device != "cpu" else ""
        lines.append(f"{sum(found)} families passed, {failed} failed{instead}")
        for name, finding in next(iter(self.findings.values()), {}).items():
            if not finding.ok and name in ("permutohedral", "mean_field") and instead:
                lines.append(f'{name} has no other kernels: its calls raise, but with atrousops.backend("reference")')
        return [*lines, *filter(None, [self.note]), *(f"-> {path}" for path in self.files)]


def row(name: str, finding: Finding) -> str:
    """A line for people: a family, its verdict, and what was timed or wrong."""
    if not finding.ok:
        return f"{name:<24} FAILED  {finding.reason}"
    rates = "; ".join(_shown(rate) for rate in finding.rates)
    return f"{name:<24} passed  {finding.cases:2} cases  {rates}".rstrip()


def _shown(rate: Rate) -> str:
    ratio = f"{rate.aten / rate.ours:.2f}x" if rate.ours else ""
    return f"{rate.ours * 1e3:.3f} ms, PyTorch {rate.aten * 1e3:.3f} ms ({ratio}): {rate.what}"


def selfcheck(
    device: str | torch.device | None = None, seconds: float = SECONDS, say: Callable[[str], object] | None = None
) -> Selfcheck:
    """Checks every family of our kernels on one device, and keeps what is found: what passed runs there from then on.

    Each family (a kernel of the planner's in one direction, or an operator) computes small and odd calls twice: the
    values are held to PyTorch's in fp64 on the CPU, within twice PyTorch's own error at that dtype, and the bits to
    each other. Some calls are timed beside PyTorch's operator. All of it runs in another process: a wrong value, an
    error, a crash or a hang is a verdict on that family, and the others are checked behind it.

    Verdicts are kept beside the measured plans (the folder ATROUSOPS_PLANS, or the user's cache; nothing is kept on
    disk with ATROUSOPS_PLANS=none), by model of GPU, driver, torch and build. On the CPU, whose kernels run unasked,
    none are kept.

    Args:
        device: "cuda:0", or "cpu"; by default the current GPU.
        seconds: after which no more is checked.
        say: is told each family's line when it is known.

    Returns:
        A Selfcheck: print it.

    Raises:
        ArgumentError: there is no such device, or `seconds` is not positive.
        ArgumentTypeError: `device` is no device.
    """
    where = _device(device)
    if not 0 < seconds < float("inf"):
        bad_value("selfcheck", "seconds", "be a positive number", seconds)
    is_cpu = where == "cpu"
    gpu = "the CPU" if is_cpu else verdicts.gpu_name(where)
    result = Selfcheck(where, gpu)
    _run(result, Worker(command(where)), seconds, say or log.info)
    if is_cpu:
        result.note = "nothing is kept: the CPU's kernels run without a verdict"
        return result
    for backend, found in result.findings.items():
        try:
            path = verdicts.record(backend, where, found)
        except OutputError as error:
            result.note = f"kept for this process alone: {error}; ATROUSOPS_PLANS=FOLDER names another folder"
        else:
            result.files += [path] if path is not None and path not in result.files else []
    choice.forget()
    if result.findings and not result.files and not result.note:
        emulated = f"{gpu} is no GPU, and its verdicts are no GPU's; ATROUSOPS_PLANS=FOLDER keeps them there"
        result.note = "kept for this process alone: " + (
            emulated if devices.names_emulated(gpu) else "ATROUSOPS_PLANS=none"
        )
    return result


def _device(device: str | torch.device | None) -> str:
    try:
        where = torch.device("cuda" if device is None else device)
    except (RuntimeError, TypeError):
        bad_type("selfcheck", "device", 'be a device such as "cuda:0"', repr(device))
    if where.type == "cpu":
        return "cpu"
    if where.type not in triton_library.KEYS:
        bad_value("selfcheck", "device", f"be one of cpu, {', '.join(triton_library.KEYS)}", str(where))
    module = torch.get_device_module(where)
    count = module.device_count() if module.is_available() else 0
    if (where.index or 0) >= count:
        number = f"{count} of them" if count else "none"
        bad_value(
            "selfcheck",
            "device",
            "be a GPU of this machine",
            f"{where}, and PyTorch sees {number}",
            "The CPU's kernels are 'cpu'.",
        )
    return verdicts.numbered(str(where))


def _backends(device: str) -> Iterator[tuple[str, str | None]]:
    """Those of ours for a device, the one that runs unasked first, and why one is missing."""
    if device == "cpu":
        yield "cpu", libraries.cpu.problem
        return
    if device.startswith("cuda"):
        yield "cuda", libraries.cuda.problem
    yield "triton", libraries.triton.problem


def _run(result: Selfcheck, worker: Worker, seconds: float, say: Callable[[str], object]) -> None:
    from atrousops.proof import registry

    end = time.monotonic() + seconds
    try:
        for backend, missing in _backends(result.device):
            problem = missing or _start(worker, backend, end)
            if problem:
                result.problems[backend] = problem
                continue
            found: dict[str, Finding] = {}
            names = list(registry.families(backend, result.device))
            # Where PTX is compiled for a newer GPU a family takes longer: more time is more for each.
            most = max(_TRITON_SECONDS if backend == "triton" else _FAMILY_SECONDS, seconds / 4)
            # On an emulated GPU a family that takes long does not hang.
            most = math.inf if devices.names_emulated(result.gpu) else most
            result.left += [f"{backend} {n}" for n in _ask(worker, backend, names, end, most, found, say)]
            if found:
                result.findings[backend] = found
    finally:
        worker.stop()


def _start(worker: Worker, backend: str, end: float) -> str:
    """Why a backend does not run at all on the device, or nothing."""
    left = end - time.monotonic()
    try:
        worker.ready(max(min(_START_SECONDS, left), 0))
        answer = worker.ask({"backend": backend, "family": ""}, _FAMILY_SECONDS)
    except Ended as ended:
        return str(ended)
    return "" if answer["ok"] else answer["reason"]


def _ask(
    worker: Worker,
    backend: str,
    names: Sequence[str],
    end: float,
    most: float,
    found: dict[str, Finding],
    say: Callable[[str], object],
) -> list[str]:
    """Fills in what is found of each family, in `most` seconds; gives those that there was no time for."""
    for done, name in enumerate(names):
        try:
            worker.ready(max(min(_START_SECONDS, end - time.monotonic()), 0))
        except Ended as ended:
            say(f"{backend}: {ended}; {len(names) - done} families are not checked")
            return list(names[done:])
        limit = min(most, end - time.monotonic())
        if limit < _LEAST:
            return list(names[done:])
        try:
            answer = worker.ask({"backend": backend, "family": name, "seconds": limit}, limit)
            rates = tuple(verdicts.rate_from(*rate) for rate in answer["rates"])
            found[name] = Finding(answer["ok"], answer["reason"], answer["cases"], rates)
        except Ended as ended:
            # The end of all time is no verdict on what was running then.
            if ended.hung and limit < most:
                return list(names[done:])
            found[name] = Finding(False, str(ended))
        say(row(f"{backend} {name}", found[name]))
    return []


_tried: set[str] = set()


def _complain(text: str) -> None:
    from tqdm import tqdm

    tqdm.write(f"atrousops: {text}", file=sys.stderr)


def ensure(device: torch.device, say: Callable[[str], object] | None = None) -> None:
    """Runs `selfcheck` on a GPU of which nothing is known, once a process, unless a backend is forced."""
    if device.type not in triton_library.KEYS or backends.forced() is not None:
        return
    where = verdicts.numbered(str(device))
    ours = [name for name, problem in _backends(where) if problem is None]
    if where in _tried or not ours or verdicts.known(ours[0], where):
        return
    _tried.add(where)
    say = say or _complain
    gpu = verdicts.identity(ours[0], where).gpu
    say(f"our {ours[0]} kernels have not been checked on {gpu}: selfcheck, {SECONDS:.0f} s at most")
    result = selfcheck(where, say=lambda line: say(line) if "FAILED" in line else None)
    for line in result.summary():
        say(line)
