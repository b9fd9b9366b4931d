"""The steps of gpu_check.py: what each runs, what it may cost, and in which order they come.

As a script: the test files that an emulated GPU runs.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
# Architecture by compute capability's major number; those of CMakeLists.txt.
ARCHITECTURES = {8: "80", 9: "90a", 10: "100", 12: "120"}
TOOLS = ("memcheck", "racecheck", "initcheck", "synccheck")
FOUND = 9  # compute-sanitizer's exit status for an error
NO_TESTS = 5  # pytest's
LIBRARIES = """
from atrousops.dispatch import libraries as l
print(" ".join(f"{p.name}: {p.problem}." for p in l.parts if p.problem))
raise SystemExit(bool(l.cpu.problem or l.cuda.problem))
"""


@dataclass(frozen=True)
class Step:
    """A command, what it may cost, and the exit statuses that count as passed.

    seconds: at most, where there is time; least: what it has in a run that is short of it.
    """

    name: str
    command: Sequence[str]
    seconds: float
    environment: dict[str, str] = field(default_factory=dict)
    passes: tuple[int, ...] = (0,)
    # Steps of one stage run side by side.
    stage: int = 0
    least: float = 20


def python(*arguments: str) -> list[str]:
    return [sys.executable, *arguments]


def architecture() -> str:
    code = "import torch; print(torch.cuda.get_device_capability()[0])"
    done = subprocess.run(python("-c", code), capture_output=True, text=True)
    return ARCHITECTURES.get(int(done.stdout.strip() or 9), "90a")


def library_steps() -> list[Step]:
    """Nothing to build where libraries load; otherwise for this GPU alone, which takes a quarter of the time."""
    if subprocess.run(python("-c", LIBRARIES), cwd=ROOT, capture_output=True).returncode == 0:
        return [Step("libraries", python("-c", LIBRARIES), 60)]
    flags = f"-DATROUSOPS_CUDA=ON -DATROUSOPS_CUDA_ARCHS={architecture()} {os.environ.get('ATROUSOPS_CMAKE_ARGS', '')}"
    build = python("setup.py", "build_ext", "--inplace")
    return [
        Step("build", build, 900, {"ATROUSOPS_CMAKE_ARGS": flags.strip()}),
        Step("libraries", python("-c", LIBRARIES), 60, stage=1),
    ]


def verdicts_kept(folder: Path) -> dict[str, str]:
    """Where selfcheck leaves its verdicts, and benchmarks find them: among the results."""
    return {"ATROUSOPS_PLANS": str(folder / "verdicts")}


def selfcheck_step(folder: Path, emulated: bool = False, few: int = 0) -> Step:
    """What runs unasked on this GPU; what failed there is a result like others, and the tests say more of it."""
    command = python("-m", "atrousops", "selfcheck")
    if not emulated:
        return Step("selfcheck", command, 120, verdicts_kept(folder), stage=1, least=120)
    # A CPU takes minutes for a family that a GPU has done in a second. The verdicts are written at the end, which has
    # to come before the step's.
    seconds = 120 if few else 3000
    command += ["--seconds", str(seconds)]
    return Step("selfcheck", command, seconds + 180, verdicts_kept(folder), stage=1, least=seconds + 180)


def gpu_files(emulated: bool = False) -> list[Path]:
    """Test files with a test that may need a GPU; those of the emulation say nothing of another."""
    tests = sorted((ROOT / "tests").rglob("test_*.py"))
    wanted = re.compile(r"def test_\w+\([^)]*\bbackend\b|mark\.gpu")
    found = [path for path in tests if wanted.search(path.read_text())]
    found = [path for path in found if emulated or path.parent.name != "emulated_gpu"]
    # In order of worth: what nothing but a GPU can show, then what most of a network's time goes to.
    worth = ("test_gpu_wgmma", "test_gpu", "test_conv", "test_conv_branches", "test_context_module")
    return sorted(found, key=lambda path: worth.index(path.stem) if path.stem in worth else len(worth))


def file_steps(folder: Path, emulated: bool = False, few: int = 0) -> list[Step]:
    """A step for each file; `few`: of its tests no more than so many."""
    steps = []
    for path in gpu_files(emulated):
        name = str(path.relative_to(ROOT / "tests")).removesuffix(".py").replace("/", "-")
        report = f"--junitxml={folder / name}.xml"
        # No test is to hang a run that has ten minutes; CUDA loads only the kernels that are called.
        command = python("-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider", report, str(path))
        command += ["-p", "few", "--few", str(few)] if few else []
        steps.append(Step(name, command, 420, {"CUDA_MODULE_LOADING": "LAZY"}, (0, NO_TESTS), stage=2))
    return steps


def sanitizer() -> str | None:
    beside = Path("/usr/local/cuda/bin/compute-sanitizer")
    return shutil.which("compute-sanitizer") or (str(beside) if beside.exists() else None)


def every_operator(name: str, few: int, *before: str) -> Step:
    """What compute-sanitizer watches, behind its command."""
    # Every tensor gets memory of its own, so that a step outside it shows.
    own = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    number = [str(few)] if few else []
    return Step(name, [*before, *python("tests/every_operator.py", *number)], 400, own, stage=4)


def sanitizer_steps(few: int = 0) -> list[Step]:
    tool = sanitizer()
    if tool is None:
        return []
    offers = subprocess.run([tool, "--help"], capture_output=True, text=True).stdout
    steps = []
    for check in TOOLS:
        command = [tool, "--tool", check, "--error-exitcode", str(FOUND)]
        # initcheck has to see PyTorch's kernels write what ours read.
        if check != "initcheck" and "--kernel-regex" in offers:
            command += ["--kernel-regex", "kns=atrousops"]
        steps.append(every_operator(check, few, *command))
    return steps


def benchmark_steps(folder: Path, few: int = 0) -> list[Step]:
    """The suite, where this version has one."""
    there = '"bench"' in (ROOT / "atrousops" / "cli.py").read_text()
    command = python("-m", "atrousops", "bench", *(["--quick"] if few else []))
    return [Step("bench", command, 600, verdicts_kept(folder), stage=3, least=90)] if there else []


def tool_steps(folder: Path, emulated: bool, few: int) -> tuple[list[Step], list[str]]:
    """Of compute-sanitizer and the benchmarks, and what is left out, and why.

    Both are for hardware. On an emulated device every operator runs without the tool, for the emulation looks at each
    address itself; one row of the benchmarks is among its tests.
    """
    if emulated:
        return [every_operator("every_operator", few)], [
            "compute-sanitizer and atrousops bench are for hardware: left out on an emulated device"
        ]
    steps = {"compute-sanitizer": sanitizer_steps(few), "atrousops bench": benchmark_steps(folder, few)}
    missing = [f"{tool} is missing here: its steps are left out" for tool, found in steps.items() if not found]
    return [step for found in steps.values() for step in found], missing


if __name__ == "__main__":
    print(*(path.relative_to(ROOT) for path in gpu_files(emulated=True)))
