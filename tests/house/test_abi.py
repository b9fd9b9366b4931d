"""The operator libraries ask torch for nothing but its stable C functions, so that one build serves many versions."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

LIBRARIES = Path(__file__).resolve().parents[2] / "atrousops" / "lib"


def listed(name: str, which: str) -> list[str]:
    """The lines of nm about a library's symbols: "--undefined-only" or "--defined-only"."""
    library = LIBRARIES / f"libatrousops_{name}.so"
    if not library.exists():
        pytest.skip(f"{library.name} is not built")
    nm = shutil.which("nm")
    if nm is None:
        pytest.skip("no nm (binutils)")
    found = subprocess.run([nm, "-DC", which, library], check=True, capture_output=True, text=True)
    return found.stdout.splitlines()


@pytest.mark.parametrize("name", ["cpu", "cuda"])
def test_no_torch_symbol_but_the_stable_ones(name):
    symbols = [line.split(None, 1)[1].split("@")[0] for line in listed(name, "--undefined-only")]
    assert any(s.startswith("aoti_torch_") for s in symbols)
    # In C++ a namespace would be part of the symbol; what the stable ABI has begins with aoti_torch_ or torch_.
    assert not [s for s in symbols if re.search(r"\b(at|c10|torch|caffe2|torch_aoti|aoti)::", s)]
    assert not [s for s in symbols if re.match(r"(at|c10|caffe2|THP)[A-Z_]", s)]


@pytest.mark.parametrize("name", ["cpu", "cuda"])
def test_nothing_of_ours_is_in_sight(name):
    """Two libraries of one process, of two versions or with the same CUB, must not take each other's functions."""
    symbols = [line.split(None, 2)[2] for line in listed(name, "--defined-only")]
    assert [s for s in symbols if re.match(r"(typeinfo \w+ |vtable )?(for )?(atrousops|cub|thrust|cuda)::", s)] == []
    asked = [s for s in symbols if s.startswith("atrousops_")]
    assert len(asked) == {"cpu": 1, "cuda": 3}[name], asked
