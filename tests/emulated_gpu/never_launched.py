"""Lists the kernels that no process of an emulated run launched: python never_launched.py FOLDER."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path


def main() -> None:
    counts: dict[str, int] = {}
    for report in Path(sys.argv[1]).glob("*.tsv"):
        for line in report.read_text().splitlines():
            name, _, count = line.partition("\t")
            counts[name] = counts.get(name, 0) + int(count)
    never = sorted(name for name, count in counts.items() if count == 0)
    print(f"{len(counts) - len(never)} of {len(counts)} kernels were launched; never:")
    print(subprocess.run(["c++filt"], input="\n".join(never), capture_output=True, text=True).stdout)


if __name__ == "__main__":
    main()
