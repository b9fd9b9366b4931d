"""The script for a GPU machine, with steps that need none: it has to be right the first time it meets one."""

import json
import re
import runpy
import subprocess
import sys
import tarfile
import time
import unittest

import gpu_check
import gpu_steps
import pytest
from gpu_check import ROOT, Run, Step


def step(name: str, code: str, seconds: float = 60, stage: int = 0, **more) -> Step:
    return Step(name, [sys.executable, "-c", code], seconds, stage=stage, **more)


def summary(folder) -> dict[str, bool]:
    return {s["name"]: s["passed"] for s in json.loads((folder / "summary.json").read_text())["steps"]}


def test_a_rerun_goes_on_where_it_failed(tmp_path, monkeypatch):
    count = f"open({str(tmp_path / 'count')!r}, 'a').write('x')"
    steps = [
        step("good", count),
        step("bad", f"import os; raise SystemExit(not os.path.exists({str(tmp_path / 'ok')!r}))"),
    ]
    assert not Run(tmp_path, 60, False).stages(steps, 2)
    assert summary(tmp_path) == {"bad": False, "good": True}
    (tmp_path / "ok").touch()
    assert Run(tmp_path, 60, False).stages(steps, 2)
    assert summary(tmp_path) == {"bad": True, "good": True}
    assert (tmp_path / "count").read_text() == "x"
    # Other sources: what passed is of yesterday, unless the caller knows better.
    monkeypatch.setattr(gpu_check, "fingerprint", lambda: "other")
    assert Run(tmp_path, 60, True).stages(steps, 1)
    assert (tmp_path / "count").read_text() == "x"
    assert Run(tmp_path, 60, False).stages(steps, 1)
    assert (tmp_path / "count").read_text() == "xx"


def test_a_later_stage_waits_and_a_slow_step_is_stopped(tmp_path):
    here = str(tmp_path / "here")
    steps = [
        step("second", f"open({here!r})", stage=1),
        step("first", f"import time; time.sleep(0.5); open({here!r}, 'w')"),
        step("slow", "import time; print('so far', flush=True); time.sleep(60)", 1),
    ]
    assert not Run(tmp_path, 60, False).stages(steps, 2)
    assert summary(tmp_path) == {"first": True, "second": True, "slow": False}
    assert "so far" in (tmp_path / "slow.log").read_text()
    assert "stopped after 1 s: so far" in (tmp_path / "summary.json").read_text()


def test_the_figures_of_a_command_are_its_last_line_but_for_its_files(tmp_path):
    code = "print('3 families passed, 0 failed'); print('-> verdicts/h100.json')"
    done = Run(tmp_path, 60, False)
    assert done.stages([step("selfcheck", code)], 1)
    assert done.results[0].figures == "3 families passed, 0 failed"


def test_what_there_was_no_time_for_is_said(tmp_path):
    assert not Run(tmp_path, 0, False).stages([step("late", "")], 1)
    assert not (tmp_path / "passed").exists()


def test_counts_of_pytest_and_a_file_without_gpu_tests(tmp_path):
    (tmp_path / "test_it.py").write_text("def test_one(): pass\ndef test_two(): assert 0\n")

    def run(name: str, *options: str) -> Step:
        report = f"--junitxml={tmp_path / name}.xml"
        command = [sys.executable, "-m", "pytest", "-q", *options, report, str(tmp_path / "test_it.py")]
        return Step(name, command, 60, passes=(0, gpu_steps.NO_TESTS))

    done = Run(tmp_path, 60, False)
    assert not done.stages([run("all"), run("none", "-k", "three")], 1)
    assert done.results[0].figures == "2 tests, 1 failures, 0 errors, 0 skipped"
    assert [r.passed for r in done.results] == [False, True]


def test_compute_sanitizer_sees_every_operator(monkeypatch, tmp_path):
    tool = tmp_path / "compute-sanitizer"
    tool.write_text("#!/bin/sh\necho --kernel-regex\n")
    tool.chmod(0o755)
    monkeypatch.setattr(gpu_steps, "sanitizer", lambda: str(tool))
    steps = gpu_steps.sanitizer_steps()
    commands = {s.name: s.command for s in steps}
    assert list(commands) == ["memcheck", "racecheck", "initcheck", "synccheck"]
    (bench, _) = gpu_steps.benchmark_steps(tmp_path)
    assert [s.stage < bench.stage for s in steps] == [True, True, False, False]
    assert all(command[-1] == "tests/every_operator.py" for command in commands.values())
    assert [name for name, command in commands.items() if "kns=atrousops" not in command] == ["initcheck"]


def test_a_step_that_is_stopped_leaves_nobody_behind(tmp_path):
    """compute-sanitizer and selfcheck have children, which would hold the GPU."""
    child = "import time, pathlib; time.sleep(2); pathlib.Path({!r}).touch()".format(str(tmp_path / "alive"))
    code = f"import subprocess, sys, time; subprocess.Popen([sys.executable, '-c', {child!r}]); time.sleep(60)"
    assert not Run(tmp_path, 60, False).stages([step("slow", code, 1)], 1)
    time.sleep(2)
    assert not (tmp_path / "alive").exists()


def test_nothing_is_begun_behind_a_dead_driver(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(gpu_check, "is_alive", lambda: False)
    steps = [step("good", "", stage=1), step("bad", "raise SystemExit(1)", stage=2), step("late", "", stage=3)]
    done = Run(tmp_path, 60, False)
    assert not done.stages(steps, 2)
    assert summary(tmp_path) == {"good": True, "bad": False}
    assert done.left == ["late"]
    assert "the driver is dead behind bad" in capsys.readouterr().out


def test_all_reports_are_in_one_file_after_each_step(tmp_path):
    folder, pack = tmp_path / "h100", tmp_path / "reports.tar.gz"
    folder.mkdir()
    seen = f"import tarfile; print(tarfile.open({str(pack)!r}).getnames())"
    assert Run(folder, 60, False, pack=pack).stages([step("one", "print(1)"), step("two", seen, stage=1)], 1)
    assert "h100/one.log" in (folder / "two.log").read_text()
    with tarfile.open(pack) as tar:
        assert {"h100/one.log", "h100/two.log", "h100/summary.json"} <= set(tar.getnames())
    assert {path.name for path in tmp_path.iterdir()} == {"h100", "reports.tar.gz"}


class InTurn:
    """A pool whose jobs run one after the other, on a clock that says what they would take side by side."""

    def __init__(self, jobs: int) -> None:
        self.jobs = jobs

    def __enter__(self) -> "InTurn":
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def map(self, function, steps) -> list:
        InTurn.side_by_side = min(self.jobs, len(steps))
        return [function(step) for step in steps]


def all_hang(monkeypatch) -> tuple[list[float], dict[str, float]]:
    """A clock, and the seconds that each step was given: it hangs for as long."""
    now, begun = [0.0], {}

    def hang(step, folder, limit, sources, note):
        now[0] += limit / InTurn.side_by_side
        begun[step.name] = limit
        return gpu_check.Result(step.name, False, 124, limit, "", sources)

    def answered() -> bool:
        """To import torch and ask the driver takes its time too."""
        now[0] += 8 / InTurn.side_by_side
        return True

    monkeypatch.setattr(gpu_check.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(gpu_check, "perform", hang)
    monkeypatch.setattr(gpu_check, "is_alive", answered)
    monkeypatch.setattr(gpu_check, "ThreadPoolExecutor", InTurn)
    return now, begun


def test_fourteen_minutes_are_enough_though_every_step_hangs(tmp_path, monkeypatch):
    """Every step has its turn, those of most worth first, and the run ends in time."""
    now, begun = all_hang(monkeypatch)
    monkeypatch.setattr(gpu_steps, "sanitizer", lambda: sys.executable)
    tools, left_out = gpu_steps.tool_steps(tmp_path, False, 0)
    assert not left_out
    steps = [gpu_steps.selfcheck_step(tmp_path), *gpu_steps.file_steps(tmp_path), *tools]
    done = Run(tmp_path, 840, False)
    assert not done.stages([step("libraries", "", 60)], 1)
    assert not done.stages(steps, 4)
    assert now[0] <= 840
    assert done.left == []
    order = list(begun)
    assert order[:5] == ["libraries", "selfcheck", "every_operator", "cuda-test_gpu_wgmma", "cuda-test_gpu"]
    last = ["memcheck", "racecheck", "bench_quick", "triton", "initcheck", "synccheck", "triton_whole", "bench"]
    assert order[-len(last) :] == last
    assert all(begun[each.name] >= each.least for each in steps)


def test_a_short_run_gives_its_time_to_the_first(tmp_path, monkeypatch):
    """Where there is less time than is promised: a few seconds for each would show nothing of any."""
    now, begun = all_hang(monkeypatch)
    steps = [gpu_steps.selfcheck_step(tmp_path), *(step(f"test_{i}", "", 420, stage=2) for i in range(40))]
    done = Run(tmp_path, 240, False)
    assert not done.stages(steps, 1)
    assert begun == {"selfcheck": 120} | {f"test_{i}": 20 for i in range(4)}
    assert now[0] == 240
    assert done.left == [f"test_{i}" for i in range(4, 40)]


def lack(monkeypatch, package: str) -> None:
    find = gpu_check.importlib.util.find_spec
    monkeypatch.setattr(gpu_check.importlib.util, "find_spec", lambda name: None if name == package else find(name))


def test_a_missing_package_has_a_stand_in(tmp_path, monkeypatch):
    """opcheck of torch imports expecttest, which a machine without a network may lack."""
    lack(monkeypatch, "expecttest")
    assert Run(tmp_path, 60, False).stages([step("paths", "import sys; print(sys.path)")], 1)
    assert "stand_ins" in (tmp_path / "paths.log").read_text()
    stand_in = ROOT / "tests" / "stand_ins" / "expecttest.py"
    module = runpy.run_path(str(stand_in))
    assert issubclass(module["TestCase"], unittest.TestCase)


def test_verdicts_are_among_the_results_and_the_benchmarks_find_them(tmp_path):
    kept = {"ATROUSOPS_PLANS": str(tmp_path / "verdicts")}
    check, quick, whole = gpu_steps.selfcheck_step(tmp_path), *gpu_steps.benchmark_steps(tmp_path)
    assert [s.environment for s in (check, quick, whole)] == [kept] * 3
    assert check.command[1:] == ["-m", "atrousops", "selfcheck"]
    # What they leave is in the folder that is packed.
    assert quick.command[1:] == ["-m", "atrousops", "bench", "--output", str(tmp_path / "bench"), "--quick"]


def test_tests_of_triton_come_behind_all_that_a_gpu_shows_at_once(tmp_path):
    """They compile as they run; a hundred of them come before what is worth less, and no file's step has any."""
    first, whole = gpu_steps.triton_steps(tmp_path)
    stages = {step.stage for step in gpu_steps.file_steps(tmp_path)}
    assert max(stages) < first.stage < whole.stage
    few = int(first.command[first.command.index("--few") + 1])
    assert few * len(gpu_steps.gpu_files()) >= gpu_steps.TRITONS
    marks = {step.command[step.command.index("-m", 3) + 1] for step in gpu_steps.file_steps(tmp_path)}
    assert marks == {"gpu and not triton_gpu"}
    assert first.command[first.command.index("-m", 3) + 1] == "triton_gpu"


def test_every_file_with_a_gpu_test_is_among_the_steps(request):
    """As far as tests were collected here; those that need a GPU may have been left out, their like on the CPU not."""
    files = {path.relative_to(ROOT) for path in gpu_steps.gpu_files()}
    like = [item for item in request.session.items if getattr(item, "callspec", None)]
    wanted = {item.path for item in like if item.callspec.params.get("backend") == "host_cuda"}
    assert {path.relative_to(ROOT) for path in wanted} <= files
    stems = {path.stem for path in files}
    assert {"test_gpu", "test_conv", "test_roi_pool", "test_permutohedral"} <= stems
    # torch.compile's backend is none of these.
    assert not {"test_transforms", "test_aspp"} & stems


def test_the_emulations_own_tests_are_for_it_alone():
    of_both, emulated = gpu_steps.gpu_files(), gpu_steps.gpu_files(emulated=True)
    assert {path.parent.name for path in set(emulated) - set(of_both)} == {"emulated_gpu"}
    assert set(of_both) < set(emulated)


def test_a_rehearsal_has_a_few_tests_of_each_file(tmp_path):
    """Far apart in their order, and counted as the others are."""
    (tmp_path / "test_a.py").write_text(
        "import pytest\n@pytest.mark.parametrize('i', range(9))\ndef test_it(i): print('ran', i)"
    )
    (tmp_path / "test_b.py").write_text("def test_alone(): pass")
    (file,) = [step for step in gpu_steps.file_steps(tmp_path, True, 2) if step.name == "test_conv"]
    words = [word for word in file.command if not word.endswith("test_conv.py")]
    words[words.index("gpu and not triton_gpu")] = "not gpu"
    done = Run(tmp_path, 60, False)
    command = [*words, "-s", "--rootdir", str(tmp_path), str(tmp_path)]
    assert done.stages([Step("test_conv", command, 60)], 1)
    assert done.results[0].figures == "3 tests, 0 failures, 0 errors, 0 skipped"
    assert re.findall(r"ran (\d)", (tmp_path / "test_conv.log").read_text()) == ["0", "4"]


def test_selfcheck_ends_before_its_step_does(tmp_path, monkeypatch):
    """Its verdicts are written at its end; an emulated device takes minutes for a family."""
    now, begun = all_hang(monkeypatch)
    for seconds, few in ((3600, 0), (840, 2)):
        check = gpu_steps.selfcheck_step(tmp_path, True, few)
        steps = [check, *gpu_steps.file_steps(tmp_path, True, few), *gpu_steps.tool_steps(tmp_path, True, few)[0]]
        now[0] = 0.0
        Run(tmp_path, seconds, False).stages(steps, 2)
        asked = float(check.command[check.command.index("--seconds") + 1])
        assert asked + 60 < begun["selfcheck"]


def test_dry_run_needs_no_gpu():
    done = subprocess.run([sys.executable, "tests/gpu_check.py", "--dry-run"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "3 cuda-test_gpu" in done.stdout
    # Where no CUDA library is built, that is done first.
    libraries = re.search(r"^[01] libraries", done.stdout, re.M)
    assert libraries is not None
    assert libraries.start() < done.stdout.index("1 selfcheck") < done.stdout.index("3 cuda-test_gpu")


@pytest.mark.parametrize("missing", ["hypothesis", "torchvision"])
def test_missing_packages_are_named_at_once(missing, monkeypatch, capsys):
    lack(monkeypatch, missing)
    monkeypatch.setattr(sys, "argv", ["gpu_check.py"])
    assert gpu_check.main() == 2
    assert f"pip install {missing}" in capsys.readouterr().out


def pretend(monkeypatch, name: str, emulated: bool, tests: list[Step], *arguments: str) -> None:
    """A GPU whose libraries load, and whose measurement is one step."""
    monkeypatch.setattr(gpu_check, "gpu", lambda: (name, emulated))
    monkeypatch.setattr(gpu_check, "is_alive", lambda: True)
    monkeypatch.setattr(gpu_check, "library_steps", lambda: [step("libraries", "")])
    tools = [] if emulated else [step("bench", "", stage=4)]
    monkeypatch.setattr(gpu_check, "file_steps", lambda folder, emulated, few: tests)
    monkeypatch.setattr(gpu_check, "tool_steps", lambda folder, emulated, few: (tools, []))
    monkeypatch.setattr(gpu_check, "selfcheck_step", lambda folder, emulated, few: step("selfcheck", "", stage=1))
    monkeypatch.setattr(sys, "argv", ["gpu_check.py", *arguments])


def test_an_emulated_device_is_in_no_report_of_hardware(tmp_path, monkeypatch, capsys):
    pretend(monkeypatch, "H100 EMULATED", True, [step("test_one", "print('fine')", stage=2)], "--output", str(tmp_path))
    assert gpu_check.main() == 0
    folder = tmp_path / "h100-emulated"
    assert summary(folder) == {"libraries": True, "selfcheck": True, "test_one": True}
    reports = [path for path in folder.rglob("*") if path.is_file() and path.parent.name != "passed"]
    logs = {"libraries.log", "selfcheck.log", "test_one.log"}
    assert {path.name for path in reports} == {"environment.txt", "summary.json", *logs}
    assert all("EMULATED: a CPU executed" in path.read_text() for path in reports)
    said = capsys.readouterr().out.splitlines()
    assert all("EMULATED" in line or "emulated" in line for line in said)


def test_an_emulated_device_files_nothing_among_results(monkeypatch):
    results = ROOT / "benchmarks" / "results"
    pretend(monkeypatch, "H100 EMULATED", True, [], "--output", str(results / "x"))
    with pytest.raises(SystemExit, match=r"must not lie in .*results for H100 EMULATED"):
        gpu_check.main()
    assert not (results / "x").exists()
    assert gpu_check.folder_of("H100 EMULATED", True, None) == ROOT / "build" / "gpu_check" / "h100-emulated"
    assert gpu_check.folder_of("NVIDIA H100", False, None) == results / "nvidia-h100"
    # Nor does a rehearsal, in which steps pass that have run in part.
    assert gpu_check.folder_of("NVIDIA H100", False, None, 2) == ROOT / "build" / "gpu_check" / "nvidia-h100-few"
    with pytest.raises(SystemExit, match="for NVIDIA H100, of which a rehearsal says little"):
        gpu_check.folder_of("NVIDIA H100", False, results, 2)


def test_a_whole_run_on_a_pretended_gpu(tmp_path, monkeypatch, capsys):
    steps = [step("test_one", "print('fine')", stage=2), step("memcheck", "raise SystemExit(9)", stage=3)]
    pretend(monkeypatch, "NVIDIA H100 80GB HBM3", False, steps, "--output", str(tmp_path))
    monkeypatch.setattr(
        gpu_check, "selfcheck_step", lambda folder, emulated, few: step("selfcheck", "raise SystemExit(1)", stage=1)
    )
    assert gpu_check.main() == 1
    folder = tmp_path / "nvidia-h100-80gb-hbm3"
    # A family that fails is no reason to stop.
    passed = {"libraries": True, "selfcheck": False, "test_one": True, "memcheck": False, "bench": True}
    assert summary(folder) == passed
    assert "git rev-parse HEAD" in (folder / "environment.txt").read_text()
    assert "fine" in (folder / "test_one.log").read_text()
    assert "3 of 5 steps passed" in capsys.readouterr().out
