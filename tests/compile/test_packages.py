"""Wheel and sdist of this checkout: what is in them, and that the wheel works where there is no compiler."""

import os
import re
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
READS_LIBRARY = False
BUILT = ROOT / "build" / f"cp{sys.version_info.major}{sys.version_info.minor}"


def sources(*folders):
    """Every file that is not made."""
    for folder in folders:
        for path in (ROOT / folder).rglob("*"):
            if path.is_file() and path.suffix not in (".so", ".pyc"):
                yield path.relative_to(ROOT).as_posix()


def test_sdist_has_all_that_a_build_needs(tmp_path):
    # A list of files that an earlier build left in egg-info would go in as well.
    commands = ["egg_info", "--egg-base", tmp_path, "sdist", "--dist-dir", tmp_path]
    subprocess.run([sys.executable, "setup.py", *commands], cwd=ROOT, check=True, capture_output=True)
    (path,) = tmp_path.glob("atrousops-*.tar.gz")
    with tarfile.open(path) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    wanted = {"CMakeLists.txt", "pyproject.toml", "setup.py", "constraints.txt", "Makefile", "LICENSE", "README.md"}
    assert not {*wanted, *sources("atrousops", "csrc")} - names
    assert not [name for name in names if name.endswith((".so", ".pyc"))]


def wheel(folder, **environment):
    """Of this checkout, with the objects that its build left, as it was configured."""
    if not (BUILT / "CMakeCache.txt").exists():
        pytest.skip("the libraries are another checkout's")
    cuda = re.search(r"^ATROUSOPS_CUDA:STRING=(.*)$", (BUILT / "CMakeCache.txt").read_text(), re.MULTILINE)
    command = [sys.executable, "-m", "pip", "wheel", "--no-build-isolation", "--no-deps", "-w", folder, ROOT]
    env = {**os.environ, "ATROUSOPS_CUDA": cuda[1] if cuda else "AUTO", **environment}
    subprocess.run(command, check=True, capture_output=True, env=env)
    (path,) = folder.glob("atrousops-*.whl")
    return path


def test_wheel_works_without_a_compiler(tmp_path):
    path = wheel(tmp_path, ATROUSOPS_LOCAL_VERSION="cu130")
    assert path.name.startswith("atrousops-0.1.0+cu130-cp3")
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
    made = {name.removeprefix("atrousops/") for name in names if name.endswith(".so")}
    needed = {f"_C{sysconfig.get_config_var('EXT_SUFFIX')}", "lib/libatrousops_cpu.so"}
    assert needed <= made <= {*needed, "lib/libatrousops_cuda.so"}
    assert {*sources("atrousops")} <= {*names}

    # A clean environment with a torch, and nothing else of this one's: an editable install is not seen through a path.
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "env"], check=True)
    python = tmp_path / "env" / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-deps", "--no-index", path]
    subprocess.run(pip, check=True, capture_output=True)
    (packages,) = (tmp_path / "env").glob("lib/python*/site-packages")
    (packages / "torch.pth").write_text(sysconfig.get_path("purelib") + "\n")
    env = {"PATH": str(python.parent), "CC": "/bin/false", "CXX": "/bin/false", "OMP_NUM_THREADS": "1"}
    smoke = [python, ROOT / "tests" / "compile" / "smoke.py"]
    done = subprocess.run(smoke, cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert f"from {packages}/atrousops" in done.stdout
