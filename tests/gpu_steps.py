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
# Of compute-sanitizer, and the stage of each: what finds most comes before the benchmarks.
TOOLS = {"memcheck": 4, "racecheck": 4, "initcheck": 7, "synccheck": 7}
TRITONS = 100  # tests of Triton's before what is worth less
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
    every = sorted((ROOT / "tests").rglob("test_*.py"))
    wanted = re.compile(r"def test_\w+\([^)]*\bbackend\b|mark\.gpu")
    found = [path for path in every if wanted.search(path.read_text())]
    found = [path for path in found if emulated or path.parent.name != "emulated_gpu"]
    # In order of worth: what nothing but a GPU can show, then what most of a network's time goes to.
    worth = ("test_gpu_wgmma", "test_gpu", "test_conv", "test_conv_branches", "test_context_module")
    return sorted(found, key=lambda path: worth.index(path.stem) if path.stem in worth else len(worth))


def tests(name: str, marked: str, folder: Path, few: int, *files: Path) -> list[str]:
    """The command for the tests of files that are marked so; `few`: of each file no more than so many."""
    report = f"--junitxml={folder / name}.xml"
    command = python("-m", "pytest", "-q", "-m", marked, "-p", "no:cacheprovider", report, *map(str, files))
    return command + (["-p", "few", "--few", str(few)] if few else [])


# CUDA loads only the kernels that are called.
LAZY = {"CUDA_MODULE_LOADING": "LAZY"}


def file_steps(folder: Path, emulated: bool = False, few: int = 0) -> list[Step]:
    """A step for each file, without Triton's kernels, which are compiled as they are called."""
    steps = []
    for path in gpu_files(emulated):
        name = str(path.relative_to(ROOT / "tests")).removesuffix(".py").replace("/", "-")
        command = tests(name, "gpu and not triton_gpu", folder, few, path)
        # No test is to hang a run that has ten minutes.
        steps.append(Step(name, command, 420, LAZY, (0, NO_TESTS), stage=3))
    return steps


def triton_steps(folder: Path, few: int = 0) -> list[Step]:
    """A hundred of Triton's tests, and all of them at the end of a run that has the time."""
    files = gpu_files()
    of_each = few or -(-TRITONS // len(files))
    first = tests("triton", "triton_gpu", folder, of_each, *files)
    steps = [Step("triton", first, 300, LAZY, stage=6, least=60)]
    if not few:
        steps.append(Step("triton_whole", tests("triton_whole", "triton_gpu", folder, 0, *files), 1800, LAZY, stage=8))
    return steps


def sanitizer() -> str | None:
    beside = Path("/usr/local/cuda/bin/compute-sanitizer")
    return shutil.which("compute-sanitizer") or (str(beside) if beside.exists() else None)


def every_operator(few: int, name: str = "every_operator", stage: int = 2, before: Sequence[str] = ()) -> Step:
    """Each operator in both precisions and formats, alone or behind a command of compute-sanitizer that watches."""
    # Every tensor gets memory of its own, so that a step outside it shows.
    own = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    number = [str(few)] if few else []
    return Step(name, [*before, *python("tests/every_operator.py", *number)], 400, own, stage=stage)


def sanitizer_steps(few: int = 0) -> list[Step]:
    tool = sanitizer()
    if tool is None:
        return []
    offers = subprocess.run([tool, "--help"], capture_output=True, text=True).stdout
    steps = []
    for check, stage in TOOLS.items():
        command = [tool, "--tool", check, "--error-exitcode", str(FOUND)]
        # initcheck has to see PyTorch's kernels write what ours read.
        if check != "initcheck" and "--kernel-regex" in offers:
            command += ["--kernel-regex", "kns=atrousops"]
        steps.append(every_operator(few, check, stage, command))
    return steps


def benchmark_steps(folder: Path, few: int = 0) -> list[Step]:
    """A selection of every suite against cuDNN, and the suites whole at the end of a run that has the time."""
    command, kept = python("-m", "atrousops", "bench", "--output", str(folder / "bench")), verdicts_kept(folder)
    quick = Step("bench_quick", [*command, "--quick"], 300, kept, stage=5, least=90)
    return [quick] if few else [quick, Step("bench", command, 3000, kept, stage=9)]


def tool_steps(folder: Path, emulated: bool, few: int) -> tuple[list[Step], list[str]]:
    """Every operator; compute-sanitizer, Triton and the benchmarks; and what is left out, and why.

    All but the first are for hardware: the emulation looks at each address itself, and one row of the benchmarks is
    among its tests.
    """
    plain = every_operator(few)
    if emulated:
        return [plain], [
            "compute-sanitizer, Triton and atrousops bench are for hardware: left out on an emulated device"
        ]
    watched = sanitizer_steps(few)
    missing = [] if watched else ["compute-sanitizer is missing here: its steps are left out"]
    return [plain, *watched, *triton_steps(folder, few), *benchmark_steps(folder, few)], missing


if __name__ == "__main__":
    print(*(path.relative_to(ROOT) for path in gpu_files(emulated=True)))
