"""Runs scripts in jupytext's percent format and writes each as a Markdown page: text, code, what it prints and draws.

python docs/tools/notebook.py FOLDER SCRIPT...
"""

import contextlib
import io
import os
import re
import sys
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt

CELL = re.compile(r"^# %%(.*)\n", re.MULTILINE)


def cells(text: str) -> list[tuple[bool, str]]:
    """Whether a cell is Markdown, and what is in it."""
    _, *parts = CELL.split(text)
    found = []
    for kind, body in zip(parts[::2], parts[1::2]):
        is_text = kind.strip() == "[markdown]"
        found.append((is_text, re.sub(r"^# ?", "", body, flags=re.MULTILINE).strip() if is_text else body.strip()))
    return found


def page(script: Path, folder: Path) -> str:
    """Runs the cells in one namespace; the figures of a cell are files in the folder."""
    there = {"__name__": "__main__"}
    lines: list[str] = []
    pictures = 0
    for is_text, body in cells(script.read_text()):
        if is_text:
            lines += [body, ""]
            continue
        lines += ["```python", body, "```", ""]
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile(body, str(script), "exec"), there)
        if printed.getvalue().strip():
            lines += ["```text", printed.getvalue().strip(), "```", ""]
        for number in plt.get_fignums():
            pictures += 1
            name = f"{script.stem}_{pictures}.png"
            plt.figure(number).savefig(folder / name, dpi=90, bbox_inches="tight")
            titles = ", ".join(axis.get_title() for axis in plt.figure(number).axes if axis.get_title())
            lines += [f"![{titles}]({name})", ""]
        plt.close("all")
    return "\n".join(lines)


def main() -> None:
    """Each script runs in an empty folder of its own."""
    folder, *scripts = (Path(argument).resolve() for argument in sys.argv[1:])
    for script in scripts:
        with tempfile.TemporaryDirectory() as work:
            os.chdir(work)
            text = page(script, folder)
            os.chdir(folder)
        (folder / f"{script.stem}.md").write_text(text)


if __name__ == "__main__":
    main()
