"""selfcheck on a pretended GPU, by a process that passes, is wrong, hangs or dies: a verdict each."""

import json
import sys
import textwrap

import pytest
import torch

import atrousops as ao
from atrousops import cli
from atrousops.bench import run as bench
from atrousops.common.checks import ArgumentError, ArgumentTypeError
from atrousops.dispatch import backends, choice, libraries, verdicts
from atrousops.proof import registry, run
from atrousops.proof.worker import Ended, Worker, _environment
from atrousops.surgery import autotune

# Answers as the family's name says, and counts its starts. The true one imports torch, which takes seconds.
ANSWERS = """
    import json, os, signal, sys, time
    open({starts!r}, "a").write("x")
    def tell(**said):
        print(json.dumps(said), flush=True)
    {begin}
    tell(ready=True)
    for line in sys.stdin:
        asked = json.loads(line)
        name = asked["family"]
        if not name:
            tell(ok={runs}, reason="a trivial kernel failed on cuda:0: out of order")
            continue
        tell(case=name + " 2x5x13x12")
        if name == "hangs":
            time.sleep(1000)
        if name == "crashes":
            print("Fatal: bad access", file=sys.stderr, flush=True)
            os.kill(os.getpid(), signal.SIGSEGV)
        if name == "leaves":
            sys.exit(3)
        if name == "raises":
            tell(ok=False, reason="a call: RuntimeError: CUDA error", cases=0, rates=[], over=True)
            break
        wrong = name == "wrong"
        tell(ok=not wrong, reason="a call: error 1.0e-01" if wrong else "", cases=4, rates=[["a call", 1e-3, 3e-3]])
"""


class Pretended:
    """A GPU, and the process that checks it."""

    def __init__(self, monkeypatch, tmp_path):
        self.monkeypatch, self.file, self.begun = monkeypatch, tmp_path / "starts", tmp_path
        self.name = "NVIDIA H100"
        monkeypatch.setenv("ATROUSOPS_PLANS", str(tmp_path / "plans"))
        for name, value in (
            ("is_available", True), ("device_count", 1), ("current_device", 0),
        ):  # fmt: skip
            monkeypatch.setattr(torch.cuda, name, lambda value=value: value)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda index=0: self.name)
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index=0: self._properties())
        monkeypatch.setattr(verdicts, "_driver", lambda gpu: "580.65.06, CUDA 13.0")
        monkeypatch.setattr(verdicts, "_digest_of", lambda files: "0123456789abcdef")
        monkeypatch.setattr(libraries, "cuda", libraries.Part("cuda", "", None))
        monkeypatch.setattr(libraries, "triton", libraries.Part("triton", "", "switched off"))
        # What a busy machine needs to start Python, and no test but one waits for.
        monkeypatch.setattr(run, "_FAMILY_SECONDS", 20.0)
        self.families("good")
        self.answers()

    def _properties(self):
        return type("Properties", (), {"name": self.name, "major": 9, "minor": 0})

    def families(self, *names):
        self.monkeypatch.setattr(registry, "families", lambda backend, device: dict.fromkeys(names))

    def answers(self, begin="pass", runs=True):
        code = textwrap.dedent(ANSWERS).format(starts=str(self.file), begin=begin, runs=runs)
        self.monkeypatch.setattr(run, "command", lambda device: [sys.executable, "-c", code])

    @property
    def starts(self) -> int:
        return len(self.file.read_text()) if self.file.exists() else 0


@pytest.fixture
def gpu(monkeypatch, tmp_path):
    def forget():
        verdicts.forget()
        choice.forget()
        run._tried.clear()

    forget()
    yield Pretended(monkeypatch, tmp_path)
    forget()


def test_a_verdict_each_and_the_others_go_on(gpu):
    gpu.families("good", "wrong", "raises", "crashes", "leaves", "also good")
    told = []
    result = ao.selfcheck("cuda:0", say=told.append)
    found = result.findings["cuda"]
    assert {name: finding.ok for name, finding in found.items()} == {
        "good": True, "wrong": False, "raises": False, "crashes": False, "leaves": False, "also good": True
    }  # fmt: skip
    assert found["crashes"].reason == "crashes 2x5x13x12: the process died of SIGSEGV: Fatal: bad access"
    assert found["leaves"].reason == "leaves 2x5x13x12: the process ended with status 3"
    assert found["raises"].reason == "a call: RuntimeError: CUDA error"
    # One for the first two and the third; then one behind each that ended.
    assert gpu.starts == 4
    assert told[0] == "cuda good                passed   4 cases  1.000 ms, PyTorch 3.000 ms (3.00x): a call"
    assert told[1] == "cuda wrong               FAILED  a call: error 1.0e-01"
    assert not result.ok
    assert "2 families passed, 4 failed: PyTorch runs those" in str(result)
    assert "triton: not checked: switched off" in str(result)


def test_a_hang_is_stopped_and_named(gpu, monkeypatch):
    monkeypatch.setattr(run, "_FAMILY_SECONDS", 3.0)
    gpu.families("hangs", "good")
    # A quarter of the time is one family's.
    result = ao.selfcheck(seconds=16)
    found = result.findings["cuda"]
    assert found["hangs"].reason == "hangs 2x5x13x12: did not end within 4 s, and was stopped"
    assert found["good"].ok
    assert gpu.starts == 2


def test_the_end_of_all_time_is_no_verdict(gpu):
    gpu.families("good", "hangs", "also good")
    result = ao.selfcheck(seconds=6)
    assert list(result.findings["cuda"]) == ["good"]
    assert result.left == ["cuda hangs", "cuda also good"]
    assert "no time for 2 families (cuda hangs, cuda also good)" in str(result)
    assert result.ok


def test_a_device_that_does_not_start_is_said(gpu):
    gpu.answers(begin="raise RuntimeError('CUDA driver initialization failed')")
    result = ao.selfcheck()
    assert not result.ok
    assert result.problems["cuda"] == (
        "the process ended with status 1: RuntimeError: CUDA driver initialization failed"
    )
    assert not result.files


def test_a_library_that_does_not_run_there_is_said_once(gpu):
    gpu.answers(runs=False)
    result = ao.selfcheck()
    assert result.problems["cuda"] == "a trivial kernel failed on cuda:0: out of order"
    assert gpu.starts == 1


def test_verdicts_are_kept_and_decide(gpu, monkeypatch):
    monkeypatch.setattr(backends, "_able", lambda op, device, dtype: "cuda")
    where = torch.device("cuda", 0)
    gpu.families("max_pool", "wrong")
    assert backends.choose("max_pool", where, torch.float32) == "aten"
    (file,) = ao.selfcheck().files
    assert backends.choose("max_pool", where, torch.float32) == "cuda"
    assert file.name == f"nvidia-h100-torch-{'.'.join(torch.__version__.split('.')[:2])}-selfcheck.json"
    rows = {row["family"]: row for row in json.loads(file.read_text())["calls"]}
    assert rows["max_pool"]["rates"] == [{"what": "a call", "ours": 1e-3, "aten": 3e-3, "call": None}]
    assert (rows["wrong"]["ok"], rows["wrong"]["reason"]) == (False, "a call: error 1.0e-01")
    assert {"backend", "gpu", "capability", "driver", "torch", "library"} <= rows["wrong"].keys()
    verdicts.forget()
    assert backends.choose("max_pool", where, torch.float32) == "cuda"
    assert verdicts.known("cuda", "cuda:0")["max_pool"].rates == (verdicts.Rate("a call", 1e-3, 3e-3),)


def test_a_folder_that_cannot_be_written_costs_the_file_alone(gpu, monkeypatch, tmp_path):
    (tmp_path / "plans").write_text("a file where the folder would be")
    gpu.families("max_pool")
    result = ao.selfcheck()
    assert result.ok
    assert result.files == []
    assert "kept for this process alone: cannot write" in str(result)
    assert verdicts.known("cuda", "cuda:0")["max_pool"].ok


def test_an_emulated_gpu_leaves_no_file(gpu, monkeypatch, tmp_path):
    gpu.name = "H100 EMULATED"
    monkeypatch.delenv("ATROUSOPS_PLANS")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    result = ao.selfcheck()
    assert result.ok
    assert result.files == []
    assert "H100 EMULATED is no GPU, and its verdicts are no GPU's" in str(result)
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize(("name", "hangs"), [("NVIDIA H100", True), ("H100 EMULATED", False)])
def test_only_hardware_hangs(gpu, name, hangs):
    """A family that takes an emulated device long has the time that is left, whose end is no verdict."""
    gpu.name = name

    class Slow:
        def ready(self, limit):
            pass

        def ask(self, question, limit):
            if question["family"]:
                raise Ended(f"did not end within {limit:.0f} s", True)
            return {"ok": True}

        def stop(self):
            pass

    result = run.Selfcheck("cuda:0", name)
    run._run(result, Slow(), 1000, print)
    reasons = [finding.reason for finding in result.findings.get("cuda", {}).values()]
    assert reasons == (["did not end within 250 s"] if hangs else [])
    assert result.left == ([] if hangs else ["cuda good"])


def test_a_failed_operator_without_other_kernels_is_named(gpu):
    passed = verdicts.Finding(True, "")
    wrong = verdicts.Finding(False, "error")
    result = run.Selfcheck("cuda:0", "NVIDIA H100", {"cuda": {"max_pool": passed, "mean_field": wrong}})
    assert 'mean_field has no other kernels: its calls raise, but with atrousops.backend("reference")' in str(result)


def test_ensure_checks_once_where_nothing_is_known(gpu):
    told = []
    for _ in range(2):
        run.ensure(torch.device("cuda"), told.append)
    assert gpu.starts == 1
    assert told[0] == "our cuda kernels have not been checked on NVIDIA H100: selfcheck, 60 s at most"
    assert "1 families passed, 0 failed" in told
    # In another process there is a file.
    run._tried.clear()
    verdicts.forget()
    run.ensure(torch.device("cuda"), told.append)
    run.ensure(torch.device("cpu"), told.append)
    assert gpu.starts == 1


def test_ensure_leaves_a_forced_backend_and_a_check_that_failed_alone(gpu):
    with ao.backend("aten"):
        run.ensure(torch.device("cuda"))
    assert gpu.starts == 0
    gpu.answers(begin="sys.exit(1)")
    for _ in range(2):
        run.ensure(torch.device("cuda"), lambda line: None)
    assert gpu.starts == 1


def test_autotune_and_bench_check_first(monkeypatch, tmp_path):
    asked = []
    monkeypatch.setattr(autotune, "ensure", asked.append)
    with torch.no_grad():
        ao.autotune(lambda x: x + 1, torch.zeros(1), budget=0)
    assert asked == [torch.device("cpu")]
    monkeypatch.setattr(run, "ensure", asked.append)
    measured = []
    monkeypatch.setattr(bench, "run", lambda *args, **kwargs: measured.append(list(asked)) or cli.sys.exit(5))
    with pytest.raises(SystemExit, match="5"):
        cli.main(["bench", "--device", "cpu", "--quick", "-o", str(tmp_path)])
    assert measured == [[torch.device("cpu")] * 2]


def test_autotune_does_not_measure_what_has_not_passed(monkeypatch):
    monkeypatch.setattr(choice, "unproved", lambda call, kernel, device: f"{call.kind} {kernel} failed its check")
    with torch.no_grad():
        layer = ao.AtrousConv2d(8, 16, 3, padding=4, dilation=4)
        tuning = ao.autotune(layer, torch.randn(1, 8, 24, 24), budget=0)
    assert not tuning.times


def test_the_true_process_checks_the_cpu(monkeypatch, capsys):
    every = registry.families
    monkeypatch.setattr(
        registry, "families", lambda *of: {name: every(*of)[name] for name in ("max_pool", "mean_field")}
    )
    assert cli.main(["selfcheck", "--device", "cpu"]) == 0
    out = capsys.readouterr().out
    assert "cpu max_pool             passed   8 cases\n" in out
    assert "2 families passed, 0 failed\nnothing is kept: the CPU's kernels run without a verdict\n" in out


@pytest.mark.parametrize(
    ("arguments", "error", "said"),
    [
        ({"device": "cuda:7"}, ArgumentError, "device must be a GPU of this machine; got cuda:7, and PyTorch sees"),
        ({"device": "meta"}, ArgumentError, "device must be one of cpu, cuda, xpu; got meta"),
        ({"device": "nonsense"}, ArgumentTypeError, "device must be a device such as"),
        ({"device": "cpu", "seconds": 0}, ArgumentError, "seconds must be a positive number; got 0"),
    ],
)
def test_bad_arguments(arguments, error, said):
    with pytest.raises(error, match=said):
        ao.selfcheck(**arguments)


def test_the_process_is_asked_nothing_before_it_is_there():
    with pytest.raises(Ended, match="no process is running"):
        Worker([sys.executable]).ask({}, 1)


def test_the_process_has_this_package_and_no_forced_backend(monkeypatch):
    monkeypatch.setenv("ATROUSOPS_BACKEND", "reference")
    monkeypatch.setenv("PYTHONPATH", "elsewhere")
    environment = _environment()
    assert "ATROUSOPS_BACKEND" not in environment
    assert environment["PYTHONPATH"].split(":")[1] == "elsewhere"
