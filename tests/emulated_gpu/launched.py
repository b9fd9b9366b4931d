"""Which kernels the processes of an emulated run launched: python launched.py FOLDER

It fails if a kernel was never launched that never_launched.txt beside this does not list, or if that
list has one which was launched or is gone: it can only become shorter.
"""

from __future__ import annotations

import fnmatch
import subprocess
import sys
from collections import Counter
from collections.abc import Collection
from pathlib import Path

LIST = Path(__file__).with_name("never_launched.txt")


def counts(folder: Path) -> Counter[str]:
    """Launches of each kernel by its readable name, from the files that emulation.py wrote."""
    by_name: Counter[str] = Counter()
    for report in folder.glob("*.tsv"):
        for line in report.read_text().splitlines():
            name, _, count = line.partition("\t")
            by_name[name] += int(count)
    done = subprocess.run(["c++filt"], input="\n".join(by_name), capture_output=True, text=True, check=True)
    return Counter(dict(zip(done.stdout.splitlines(), by_name.values(), strict=True)))


def listed() -> dict[str, str]:
    """Patterns of kernels that need not be launched, each with the reason before it."""
    found, reason = {}, ""
    for line in LIST.read_text().splitlines():
        if line.startswith("#"):
            reason = line[1:].strip()
        elif line.strip():
            found[line.strip()] = reason
    return found


def problems(never: Collection[str], patterns: dict[str, str], everything: Collection[str]) -> list[str]:
    """What is wrong with a whole run that left these out."""
    told = [f"never launched: {name}" for name in never if not any(fnmatch.fnmatchcase(name, p) for p in patterns)]
    for pattern, reason in patterns.items():
        matches = fnmatch.filter(everything, pattern)
        if not reason:
            told.append(f"{LIST.name}: {pattern} has no reason before it")
        if not matches:
            told.append(f"{LIST.name}: there is no kernel {pattern}; remove the line")
        needless = [name for name in matches if name not in never]
        told += [f"{LIST.name}: {name} was launched; narrow or remove {pattern}" for name in needless]
    return told


def main() -> int:
    found = counts(Path(sys.argv[1]))
    never = sorted(name for name, count in found.items() if count == 0)
    print(f"EMULATED: {len(found) - len(never)} of {len(found)} kernels were launched")
    told = problems(never, listed(), list(found))
    print("\n".join(told))
    return int(bool(told))


if __name__ == "__main__":
    sys.exit(main())
