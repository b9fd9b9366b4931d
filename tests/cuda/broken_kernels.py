"""Real kernels with one line changed: compiled anew, linked with the rest of the host_cuda library as it was built."""

from __future__ import annotations

import json
import shlex
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

import host_cuda
import torch

CSRC = host_cuda.ROOT / "csrc"
# One tile of each tensor-core kernel is enough here, and compiles in a fraction of the time.
ONE_TILE = """
#include "cuda/platform.h"
#include "cuda/conv_mma_launch.cuh"
#include "cuda/conv_mma_weight_launch.cuh"
namespace atrousops::cuda {
void conv_mma_f16(const ConvMmaLaunch& l, Stream stream) {
  conv_mma_start<Mma16<Half>, MmaSmall, true, true>(l, stream);
}
void conv_mma_weight_f16(const ConvMmaWeightLaunch& l, Stream stream) {
  conv_mma_weight_start<Mma16<Half>, MmaTile<64, 64, 32, 32, 4, 3>, true>(l, stream);
}
}
"""
ONE_WGMMA_TILE = """
#include "cuda/platform.h"
#include "cuda/conv_wgmma.cuh"
namespace atrousops::cuda {
void conv_wgmma_f16(const ConvWgmmaLaunch& l, Stream stream) {
  using Tile = WgmmaTile<Half, 128, 64, arch::Major::k, arch::Major::k, 5>;
  const Launch where{l.blocks, Tile::kThreads, ConvWgmma<Tile>::shared_bytes()};
  launch<conv_wgmma_kernel<Tile>>(where, stream, l.table, l.maps, l.args);
}
}
"""


@dataclass(frozen=True)
class Fault:
    """What is changed in which file of csrc/cuda, which .cu then has to be compiled, the tests that must see it, and
    what they say: wrong numbers, or what the emulation of an instruction complains of.
    """

    file: str
    sound: str
    broken: str
    compiled: str
    path: str
    select: str
    extra: dict[str, str] = field(default_factory=dict)
    says: str = "AssertionError|Tensor-likes are not"

    def sources(self) -> dict[str, str]:
        """Files that stand before those of csrc/cuda."""
        text = (CSRC / "cuda" / self.file).read_text()
        assert not self.sound or text.count(self.sound) == 1, (
            f"csrc/cuda/{self.file} has changed: {self.sound!r} should be there once"
        )
        return self.extra | {self.file: text.replace(self.sound, self.broken)}


def commands() -> tuple[Path, list[dict]]:
    """The folder of the build, and how its host_cuda objects were compiled."""
    folder = host_cuda.library_path().parent
    entries = json.loads((folder / "compile_commands.json").read_text())
    return folder, [entry for entry in entries if "atrousops_host_cuda.dir" in entry["command"]]


def build(fault: Fault, to: Path) -> Path:
    """The library with this fault in it."""
    (to / "cuda").mkdir(parents=True)
    for name, text in fault.sources().items():
        (to / "cuda" / name).write_text(text)
    folder, entries = commands()
    objects = {Path(entry["file"]).name: compiled(entry["command"]) for entry in entries}
    (entry,) = (entry for entry in entries if Path(entry["file"]).name == f"{fault.compiled}.cpp")
    compiler, *rest = shlex.split(entry["command"])
    changed = str(to / "changed.o")
    rest[rest.index("-o") + 1] = changed
    # Its own folder comes first among those that are searched, and the last -O counts.
    command = [compiler, "-I", str(to), *rest, "-O1", "-g0"]
    subprocess.run(command, cwd=entry["directory"], check=True, capture_output=True, text=True)
    objects[Path(entry["file"]).name] = changed
    return link(folder, compiler, list(objects.values()), to / "changed.so")


def compiled(command: str) -> str:
    """The object that a compiler command writes."""
    words = shlex.split(command)
    return words[words.index("-o") + 1]


def link(folder: Path, compiler: str, objects: list[str], library: Path) -> Path:
    """A shared library of these objects, as CMake links its own; torch is in the process before it is loaded."""
    torch_lib = Path(torch.__file__).parent / "lib"
    command = [compiler, "-shared", "-o", library, *objects, folder / "libatrousops_core.a", f"-L{torch_lib}"]
    subprocess.run([*command, "-ltorch_cpu"], cwd=folder, check=True, capture_output=True, text=True)
    return library
