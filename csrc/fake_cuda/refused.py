"""Writes a function that fails by name for everything that torch asks of libcudart and that is not written here.

python refused.py SOURCES_FOLDER TORCH_LIB_FOLDER > refused.cpp
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

TEMPLATE = """FAKE_CUDA_API cudaError_t {name}() {{ return fake_cuda::refuse("{name}"); }}"""
HEADER = """#include <cstdio>

#include <driver_types.h>
#define FAKE_CUDA_API extern "C" __attribute__((visibility("default")))
namespace fake_cuda {
static cudaError_t refuse(const char* name) {
  std::fprintf(stderr, "emulated CUDA: %s is not written\\n", name);
  return cudaErrorNotSupported;
}
}  // namespace fake_cuda"""


def written(sources: Path) -> set[str]:
    """The functions that the sources define."""
    text = "\n".join(p.read_text() for p in sorted(sources.glob("*.cpp")))
    return set(re.findall(r"^FAKE_CUDA_API [^(;]*?\b(_*cuda\w+)\(", text, re.MULTILINE))


def asked_for(libraries: Path) -> set[str]:
    """The functions of libcudart that torch's libraries import."""
    found: set[str] = set()
    for library in sorted(libraries.glob("*.so*")):
        out = subprocess.run(["nm", "-D", "--undefined-only", library], capture_output=True, text=True)
        found |= set(re.findall(r" U (_*cuda\w+)@libcudart", out.stdout))
    return found


def main() -> None:
    missing = sorted(asked_for(Path(sys.argv[2])) - written(Path(sys.argv[1])))
    print("\n".join([HEADER, *(TEMPLATE.format(name=name) for name in missing)]))


if __name__ == "__main__":
    main()
