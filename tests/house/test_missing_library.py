"""Without its compiled libraries the package imports, says why they are missing, and gives the same results."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import samples
import torch

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = """
import sys, torch, samples
from atrousops.dispatch import libraries
assert not libraries.has_operators
print(libraries.cpu.problem)
torch.save(samples.all_results(), sys.argv[1])
"""


def run_without(package_folder: Path, output: Path, **environment: str) -> str:
    """Runs every sample in a process of its own; returns why the CPU library is missing there."""
    path = os.pathsep.join([str(package_folder), str(ROOT / "tests")])
    env = os.environ | {"PYTHONPATH": path} | environment
    command = [sys.executable, "-c", SCRIPT, str(output)]
    done = subprocess.run(command, env=env, cwd=output.parent, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def assert_same_results(output: Path) -> None:
    expected, got = samples.all_results(), torch.load(output)
    assert expected.keys() == got.keys()
    for name, results in expected.items():
        for ours, fallback in zip(results, got[name], strict=True):
            torch.testing.assert_close(ours, fallback, rtol=1e-4, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}")


def test_switched_off(tmp_path):
    reason = run_without(ROOT, tmp_path / "results.pt", ATROUSOPS_LIBRARY="none")
    assert "switched off by ATROUSOPS_LIBRARY=none" in reason
    assert_same_results(tmp_path / "results.pt")


def test_corrupt(tmp_path):
    skip = shutil.ignore_patterns("__pycache__", "weights", "lib")
    shutil.copytree(ROOT / "atrousops", tmp_path / "atrousops", ignore=skip)
    (tmp_path / "atrousops" / "lib").mkdir()
    (tmp_path / "atrousops" / "lib" / "libatrousops_cpu.so").write_bytes(b"not a library")
    reason = run_without(tmp_path, tmp_path / "results.pt")
    assert "did not load" in reason
    assert_same_results(tmp_path / "results.pt")


def test_older_than_the_python_files(tmp_path):
    shutil.copytree(ROOT / "atrousops", tmp_path / "atrousops", ignore=shutil.ignore_patterns("__pycache__", "weights"))
    path = tmp_path / "atrousops" / "dispatch" / "schemas.inc"
    path.write_text(path.read_text().replace('\n)"', '\nyet_to_come() -> ()\n)"'))
    reason = run_without(tmp_path, tmp_path / "results.pt")
    assert "older than the Python files, without yet_to_come: build it again" in reason
    assert_same_results(tmp_path / "results.pt")
