"""Everything that needs a GPU, in one resumable run: libraries, selfcheck, tests, compute-sanitizer, benchmarks.

python tests/gpu_check.py leaves benchmarks/results/<gpu>/: environment.txt, summary.json and a log of each step.
A step that passed is not repeated until a source changes (--keep: not even then); one that failed is. Libraries that
are in atrousops/lib already, built elsewhere, are taken as they are. ATROUSOPS_BIG=1 adds tensors beyond 2^31 elements.
On an emulated device (tests/emulated_gpu) it measures nothing, and every report begins with EMULATED and goes to build;
there --few 1 shows that every step begins, ends and is filed (six minutes on two cores).
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import json
import os
import re
import subprocess
import sys
import tarfile
import threading
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from xml.etree import ElementTree

from gpu_steps import ROOT, Step, file_steps, library_steps, python, sanitizer, selfcheck_step, tool_steps
from in_time import run_within

NEEDED = ("torch", "torchvision", "numpy", "pytest", "hypothesis")
# Of packages that a GPU machine without a network may lack; found behind the real ones only.
STAND_INS = ROOT / "tests" / "stand_ins"
GPU = """
import torch
from atrousops.dispatch.devices import is_emulated
if torch.cuda.is_available():
    print(torch.cuda.get_device_name(), is_emulated(), sep="\\n")
"""
EMULATED = "EMULATED: a CPU executed the kernels' PTX. No GPU ran any of this."
ENVIRONMENT = """
import json, platform, torch, torchvision, atrousops
p = torch.cuda.get_device_properties(0)
facts = {"gpu": p.name, "capability": [p.major, p.minor], "memory": p.total_memory,
  "multiprocessors": p.multi_processor_count, "torch": torch.__version__, "cuda": torch.version.cuda,
  "cudnn": torch.backends.cudnn.version(), "torchvision": torchvision.__version__,
  "python": platform.python_version(), "system": platform.platform()}
print(json.dumps(facts, indent=2))
print(atrousops.info())
"""


ALIVE = "import torch; print(torch.ones(3, device='cuda').sum().item())"


@dataclass
class Result:
    """How a step went; `figures` are its counts of tests, or the last line of its command."""

    name: str
    passed: bool
    status: int
    seconds: float
    figures: str
    sources: str


def gpu() -> tuple[str, bool]:
    """Its name, "" without one, and whether it is emulated."""
    done = subprocess.run(python("-c", GPU), cwd=ROOT, capture_output=True, text=True)
    name, emulated = [*done.stdout.splitlines(), "", ""][:2]
    return name, emulated == "True"


def fingerprint() -> str:
    """Of every source that a result depends on."""
    digest = hashlib.sha256()
    for folder in ("csrc", "atrousops", "tests"):
        for path in sorted((ROOT / folder).rglob("*")):
            if path.suffix in (".py", ".h", ".cpp", ".cu", ".cuh"):
                digest.update(str(path.relative_to(ROOT)).encode() + path.read_bytes())
    return digest.hexdigest()[:16]


def counts(report: Path) -> str:
    """What pytest's own report says; the report is gone afterwards."""
    suite = next(ElementTree.parse(report).getroot().iter("testsuite"))
    report.unlink()
    names = ("tests", "failures", "errors", "skipped")
    return ", ".join(f"{suite.get(name)} {name}" for name in names)


def is_alive() -> bool:
    """Whether the driver still answers: behind a fault of a kernel it may not, and all that follows would hang."""
    with open(os.devnull, "w") as nowhere:
        return run_within(60, python("-c", ALIVE), ROOT, dict(os.environ), nowhere) == 0


def perform(step: Step, folder: Path, limit: float, sources: str, note: str = "") -> Result:
    """Runs a step to its end, or to the end of its time; the log has the note, and everything it said."""
    start, log = time.monotonic(), folder / f"{step.name}.log"
    lacking = [] if importlib.util.find_spec("expecttest") else [str(STAND_INS)]
    paths = [str(ROOT), str(ROOT / "tests"), *filter(None, [os.environ.get("PYTHONPATH")]), *lacking]
    variables = os.environ | {"PYTHONPATH": os.pathsep.join(paths)} | step.environment
    with log.open("w") as out:
        print(*filter(None, [note]), *step.command, file=out, flush=True)
        status = run_within(limit, step.command, ROOT, variables, out)
    report = folder / f"{step.name}.xml"
    # Where a command has written its results comes behind what they are.
    lines = [line for line in log.read_text().strip().splitlines() if not line.startswith("-> ")]
    last = lines[-1] if lines else ""
    if status == 124:
        figures = f"stopped after {limit:.0f} s: {last}"[:200]
    else:
        figures = counts(report) if report.exists() else last[:200]
    return Result(step.name, status in step.passes, status, round(time.monotonic() - start, 1), figures, sources)


class Run:
    """The folder of a device, and what has passed there. `note` stands first in every report."""

    def __init__(self, folder: Path, seconds: float, keep: bool, note: str = "", pack: Path | None = None) -> None:
        self.folder, self.keep, self.note, self.sources = folder, keep, note, fingerprint()
        self.end = time.monotonic() + seconds
        self.results: list[Result] = []
        self.left: list[str] = []
        self.dead = False
        self.waiting: list[Step] = []
        self.side_by_side: dict[int, int] = {}
        self.pack, self.lock = pack, threading.Lock()

    def marker(self, step: Step) -> Path:
        return self.folder / "passed" / f"{step.name}.json"

    def earlier(self, step: Step) -> Result | None:
        """How the step passed before, if that still holds."""
        marker = self.marker(step)
        if not marker.exists():
            return None
        result = Result(**json.loads(marker.read_text()))
        return result if self.keep or result.sources == self.sources else None

    def limit(self, step: Step, left: float) -> float:
        """Seconds for a step of those that wait, so that all have a turn though each hangs.

        Its share of what is left, and at least what it is promised, but not what is promised to the others. Where that
        is more than there is, those of most worth get what they are promised, and the last none.
        """
        whole = sum(each.seconds / self.side_by_side[each.stage] for each in self.waiting)
        promised = sum(each.least / self.side_by_side[each.stage] for each in self.waiting if each is not step)
        wanted = max(step.least, left * step.seconds / whole)
        return min(step.seconds, wanted, max(left - promised, step.least), left)

    def step(self, step: Step) -> None:
        result = self.earlier(step)
        if result is None:
            with self.lock:
                left = self.end - time.monotonic()
                if left < 5 or self.dead:
                    self.left.append(step.name)
                    return
                limit = self.limit(step, left)
                self.waiting.remove(step)
            result = perform(step, self.folder, limit, self.sources, self.note)
            # With no time left there is nothing to begin.
            asks = not result.passed and step.stage > 0 and time.monotonic() < self.end
            if asks and not is_alive():
                self.dead = True
                print(f"the driver is dead behind {step.name}: nothing more is begun", flush=True)
            if result.passed:
                self.marker(step).parent.mkdir(parents=True, exist_ok=True)
                self.marker(step).write_text(json.dumps(asdict(result)))
        with self.lock:
            self.results.append(result)
            self.save()
        how = "passed" if result.passed else "FAILED"
        where = "EMULATED, " if self.note else ""
        print(f"{where}{how} {result.name} {result.seconds} s: {result.figures}", flush=True)

    def stages(self, steps: Sequence[Step], jobs: int) -> bool:
        """Whether all of these passed, each stage after the one before."""
        self.waiting = [step for step in steps if self.earlier(step) is None]
        self.side_by_side = {stage: min(jobs, n) for stage, n in Counter(step.stage for step in steps).items()}
        for stage in sorted({step.stage for step in steps}):
            with ThreadPoolExecutor(jobs) as pool:
                list(pool.map(self.step, [step for step in steps if step.stage == stage]))
        return not self.left and all(result.passed for result in self.results)

    def save(self) -> None:
        summary = {"note": self.note} if self.note else {}
        summary |= {"sources": self.sources, "left": self.left, "driver_is_dead": self.dead}  # type: ignore[dict-item]
        summary["steps"] = [asdict(result) for result in sorted(self.results, key=lambda r: r.name)]  # type: ignore[assignment]
        (self.folder / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")
        if self.pack:
            # Again behind each step: what there is survives whoever ends this run.
            made = self.pack.with_name(f".{self.pack.name}")
            with tarfile.open(made, "w:gz") as tar:
                tar.add(self.folder, self.folder.name)
            made.replace(self.pack)


def environment() -> str:
    """What the results hold for."""
    asked = [["git", "rev-parse", "HEAD"], ["git", "status", "--short"], ["nvidia-smi"], ["nvcc", "--version"]]
    asked += [[sanitizer() or "compute-sanitizer", "--version"], python("-c", ENVIRONMENT)]
    told = []
    for command in asked:
        try:
            done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
            told.append(f"$ {Path(command[0]).name} {' '.join(command[1:])[:60].strip()}\n{done.stdout}{done.stderr}")
        except (OSError, subprocess.TimeoutExpired) as error:
            told.append(f"{command[0]}: {error}")
    return "\n".join(told)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--output",
        type=Path,
        metavar="DIR",
        help="default: benchmarks/results; of an emulated device, and with --few, build/gpu_check",
    )
    parser.add_argument("--seconds", type=float, default=3600, help="end within this long (default: an hour)")
    parser.add_argument("--jobs", type=int, default=min(4, os.cpu_count() or 1), help="test files side by side")
    parser.add_argument("--keep", action="store_true", help="what passed stays passed though sources have changed")
    parser.add_argument(
        "--pack", type=Path, metavar="FILE", help="all reports in this one .tar.gz too, after each step"
    )
    parser.add_argument(
        "--few", type=int, default=0, metavar="N", help="a rehearsal: N tests of each file, and as little of the rest"
    )
    parser.add_argument("--only", nargs="*", metavar="STEP", help="these steps, after the libraries")
    parser.add_argument("--dry-run", action="store_true", help="list the steps; needs no GPU")
    return parser.parse_args()


def folder_of(name: str, emulated: bool, output: Path | None, few: int = 0) -> Path:
    """Where the reports of a device go; those of a rehearsal, whose steps have passed in part, have a folder apart.

    Raises:
        SystemExit: an emulated device's, or a rehearsal's, would stand among those of hardware.
    """
    results = ROOT / "benchmarks" / "results"
    parent = (output or (ROOT / "build" / "gpu_check" if emulated or few else results)).resolve()
    if (emulated or few) and parent.is_relative_to(results):
        why = "which is no hardware" if emulated else "of which a rehearsal says little"
        raise SystemExit(f"--output must not lie in {results} for {name}, {why}")
    folder = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-") or "no-gpu"
    return parent / (f"{folder}-few" if few else folder)


def main() -> int:
    args = arguments()
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        print(f"this Python lacks {', '.join(missing)}: pip install {' '.join(missing)}")
        return 2
    name, emulated = ("", False) if args.dry_run else gpu()
    if not name and not args.dry_run:
        print("no GPU: torch.cuda.is_available() is False")
        return 2
    folder = folder_of(name, emulated, args.output, args.few)
    tools, left_out = tool_steps(folder, emulated, args.few)
    print(*left_out, sep="\n", end="\n" if left_out else "")
    later = [selfcheck_step(folder, emulated, args.few), *file_steps(folder, emulated, args.few), *tools]
    if args.only:
        later = [step for step in later if step.name in args.only]
    if args.dry_run:
        for step in [*library_steps(), *later]:
            print(step.stage, step.name, " ".join(map(str, step.command[:12])))
        return 0
    folder.mkdir(parents=True, exist_ok=True)
    run = Run(folder, args.seconds, args.keep, EMULATED if emulated else "", args.pack)
    if not run.stages(library_steps(), 1):
        return 1
    (folder / "environment.txt").write_text("\n".join(filter(None, [run.note, environment()])))
    passed = run.stages(later, args.jobs)
    run.save()
    print(f"{sum(r.passed for r in run.results)} of {len(run.results)} steps passed, {len(run.left)} left -> {folder}")
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
