"""Random calls of every CPU operator under AddressSanitizer and UndefinedBehaviorSanitizer, each held to PyTorch.

python tests/fuzz_cpu.py --seconds 60 [--calls 300] [--seed 0] [--isa plain avx2 avx512]
python tests/fuzz_cpu.py --isa avx2 --call "Pool(...)"

A worker for each instruction set writes a call down before it runs it, so that one which ends the process is known. A
call that fails is made smaller for as long as it still fails, and printed as a line that runs it again.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import os
import random
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
SANITIZED = ROOT / "build" / "sanitized" / "lib"
ISAS = ("plain", "avx2", "avx512")
_SKIPPED = 77
_SHRINKING = 300  # seconds at most


def calls_of(seed: int) -> Iterator[Any]:
    """Calls without end, the same for the same seed."""
    from fuzz.convolutions import draw_branches, draw_conv
    from fuzz.lattices import draw_lattice
    from fuzz.pooling import draw_pool, draw_roi
    from fuzz.resizing import draw_resize

    r = random.Random(seed)
    while True:
        draws = (draw_conv, draw_pool, draw_roi, draw_lattice, draw_branches, draw_resize)
        yield r.choices(draws, (58, 19, 11, 6, 2, 4))[0](r)


def parsed(text: str) -> Any:
    """The call that a line of a journal, or of the command line, describes."""
    from fuzz import convolutions, lattices, pooling, resizing

    names = {c.__name__: c for c in (convolutions.Conv, convolutions.Branches, pooling.Pool, pooling.Roi)}
    return eval(text, {"__builtins__": {}}, names | {"Lattice": lattices.Lattice, "Resize": resizing.Resize})


def work(isa: str, calls: Iterator[Any], seconds: float, journal: Path) -> int:
    """Runs calls until time is up; 1 at the first that fails."""
    import torch

    from atrousops.info import cpu_isa

    if cpu_isa() != isa:
        return _SKIPPED
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    end, count = time.monotonic() + seconds, 0
    with journal.open("w") as file:
        for call in calls:
            if time.monotonic() > end:
                break
            file.write(f"{call!r}\n")
            file.flush()
            try:
                call.run()
            except Exception:
                traceback.print_exc()
                return 1
            count += 1
    print(f"{isa}: {count} calls")
    return 0


def sanitizers() -> dict[str, str]:
    """Variables that load the sanitizers first, as they must be where the program itself was built without."""
    # libstdc++ with them: they look for the C++ runtime's functions when they start, and Python has none.
    ask = [["gcc", f"-print-file-name={name}"] for name in ("libasan.so", "libstdc++.so.6")]
    runtimes = [subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip() for command in ask]
    return {
        "LD_PRELOAD": " ".join(runtimes),
        # Python and torch leak on purpose, and torch's own libraries define symbols twice.
        "ASAN_OPTIONS": "detect_leaks=0:detect_odr_violation=0",
        "UBSAN_OPTIONS": "print_stacktrace=1",
    }


def environment(isa: str) -> dict[str, str]:
    """Of a worker."""
    return os.environ | {
        **sanitizers(),
        "ATROUSOPS_LIBRARY": str(SANITIZED),
        "ATROUSOPS_ISA": isa,
        "ATROUSOPS_PLANS": "none",
        "PYTHONPATH": f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}",
    }


def start(isa: str, journal: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """A worker, to its end."""
    command = [sys.executable, __file__, "--worker", str(journal), "--isa", isa, *arguments]
    return subprocess.run(command, env=environment(isa), capture_output=True, text=True)


def last_of(journal: Path) -> str | None:
    """What a worker was doing."""
    lines = journal.read_text().splitlines() if journal.exists() else []
    return lines[-1] if lines else None


def smaller(call: Any) -> Iterator[Any]:
    """The call with one of its numbers less, or one of its words plainer."""
    for field in dataclasses.fields(call):
        value = getattr(call, field.name)
        if field.name == "seed":
            continue
        for other in _less(value):
            candidate = dataclasses.replace(call, **{field.name: other})
            if candidate.is_valid():
                yield candidate


def _less(value: Any) -> list[Any]:
    if isinstance(value, bool):
        return [False] if value else []
    if isinstance(value, int):
        return sorted({0, 1, value // 2, value - 1} - {value, -1}) if value > 0 else []
    if isinstance(value, tuple):
        return [(*value[:i], v, *value[i + 1 :]) for i, old in enumerate(value) for v in _less(old)]
    plain = {"bfloat16": "float32", "float16": "float32", "channels_last": "contiguous", "strided": "contiguous"}
    return [plain[value]] if value in plain else []


def shrunk(isa: str, call: str, folder: Path) -> str:
    """The smallest call found that fails like `call`."""
    end = time.monotonic() + _SHRINKING
    candidates, journal = folder / "candidates", folder / "shrinking"
    while time.monotonic() < end:
        candidates.write_text("\n".join(map(repr, smaller(parsed(call)))))
        if start(isa, journal, "--replay", str(candidates)).returncode == 0:
            break
        found = last_of(journal)
        if found is None or found == call:
            break
        call = found
    return call


def fuzz(isas: list[str], seconds: float, calls: int | None, seed: int) -> int:
    """Every instruction set for its share of the time, or for so many calls."""
    if not SANITIZED.exists():
        print(f"{SANITIZED} is missing: make sanitized")
        return 1
    ran = 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for isa in isas:
            journal = folder / isa
            most = () if calls is None else ("--calls", str(calls))
            done = start(isa, journal, "--seconds", str(seconds / len(isas)), "--seed", str(seed), *most)
            if done.returncode == _SKIPPED:
                print(f"{isa}: left out, this machine does not run it")
                continue
            if done.returncode != 0:
                return report(isa, done, last_of(journal), folder)
            ran += 1
            print(done.stdout, end="", flush=True)
    return 0 if ran else 1


def report(isa: str, done: subprocess.CompletedProcess[str], call: str | None, folder: Path) -> int:
    """Says what failed and how to run it again."""
    # What a sanitizer found, and who called, is said first.
    print(done.stdout[-2000:] + done.stderr[:4000])
    print(f"{isa}: exit status {done.returncode}")
    if call is not None:
        print(f"as drawn: {call}", flush=True)
        print(f'python {Path(__file__).relative_to(ROOT)} --isa {isa} --call "{shrunk(isa, call, folder)}"')
    return 1


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60.0, help="of all instruction sets together")
    parser.add_argument("--calls", type=int, help="at most, on each instruction set: the same ones on any machine")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--isa", nargs="+", choices=ISAS, default=list(ISAS))
    parser.add_argument("--call")
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--replay", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker is None and options.call is None:
        return fuzz(options.isa, options.seconds, options.calls, options.seed)
    if options.worker is None:
        with tempfile.TemporaryDirectory() as name:
            replay = Path(name) / "call"
            replay.write_text(options.call)
            done = start(options.isa[0], Path(name) / "journal", "--replay", str(replay))
        print(done.stdout + done.stderr)
        return done.returncode
    if options.replay is not None:
        lines = options.replay.read_text().splitlines()
        return work(options.isa[0], map(parsed, lines), float("inf"), options.worker)
    calls = itertools.islice(calls_of(options.seed), options.calls)
    return work(options.isa[0], calls, options.seconds, options.worker)


if __name__ == "__main__":
    sys.exit(main())
