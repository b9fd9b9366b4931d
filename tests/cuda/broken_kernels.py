"""Real kernels with one line changed: compiled anew, linked with the rest of the host_cuda library as it was built."""

from __future__ import annotations

import json
import shlex
import subprocess
from dataclasses import dataclass
from pathlib import Path

import host_cuda
import torch

CSRC = host_cuda.ROOT / "csrc"


@dataclass(frozen=True)
class Fault:
    """What is changed in which file of csrc/cuda, which .cu then has to be compiled, and the tests that must see it."""

    file: str
    sound: str
    broken: str
    compiled: str
    path: str
    select: str

    def changed(self) -> str:
        """The file's text, which stands before that of csrc/cuda."""
        text = (CSRC / "cuda" / self.file).read_text()
        assert not self.sound or text.count(self.sound) == 1, (
            f"csrc/cuda/{self.file} has changed: {self.sound!r} should be there once"
        )
        return text.replace(self.sound, self.broken)


def commands() -> tuple[Path, list[dict]]:
    """The folder of the build, and how its host_cuda objects were compiled."""
    folder = host_cuda.library_path().parent
    entries = json.loads((folder / "compile_commands.json").read_text())
    return folder, [entry for entry in entries if "atrousops_host_cuda.dir" in entry["command"]]


def build(fault: Fault, to: Path) -> Path:
    """The library with this fault in it."""
    (to / "cuda").mkdir(parents=True)
    (to / "cuda" / fault.file).write_text(fault.changed())
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
