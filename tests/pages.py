"""The code blocks of Markdown pages, and how they run: a page's in order, in one namespace, in a folder of its own."""

import contextlib
import importlib.util
import io
import re
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import own
import skimage.data
import yaml
from PIL import Image

from atrousops import cli
from atrousops.engine import config

ROOT = Path(__file__).resolve().parents[1]
PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")))
KINDS = ("python", "sh", "yaml", "toml", "text")
FENCE = re.compile(r"^(?:<!-- not run: (.*?) -->\n)?(```+)([^\n]*)\n(.*?)^\2 *$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Block:
    """A code block: where it is, its language, and why it is not run, if it is not."""

    page: str
    line: int
    kind: str
    text: str
    reason: str = ""

    @property
    def runs(self) -> bool:
        """Without a reason, or where it was a package that is here."""
        package = re.fullmatch(r"needs (\w+)", self.reason)
        return not self.reason or bool(package and importlib.util.find_spec(package[1]))

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def blocks(path: Path) -> list[Block]:
    """Of one page, in order."""
    text = path.read_text()
    page = str(path.relative_to(ROOT))
    return [
        Block(page, text.count("\n", 0, match.start(2)) + 1, match[3], match[4], match[1] or "")
        for match in FENCE.finditer(text)
    ]


def furnish(folder: Path) -> None:
    """What pages speak of: cells/images with cells/masks, 255 being a cell; new, two images without masks; a photo."""
    own.write(folder / "cells", mask=lambda discs: 255 * discs.astype(np.uint8))
    own.write(folder, "new/{}.png", "unused/{}.png", ("one", "two"))
    Image.fromarray(skimage.data.astronaut()).resize((96, 96)).save(folder / "photo.jpg")


def run(block: Block, there: dict[str, Any]) -> list[str]:
    """Runs a block; what each line of a shell printed."""
    if block.kind == "python":
        exec(compile("\n" * block.line + block.text, block.page, "exec"), there)
    elif block.kind == "sh":
        return [typed(line) for line in block.text.splitlines()]
    elif block.kind == "yaml":
        recipe(yaml.safe_load(block.text))
    return []


def recipe(part: dict[str, Any]) -> config.Config:
    """A part of a recipe, read as if it stood in a whole one."""
    whole = {"model": {"name": "enet"}, "data": {"name": "camvid"}, "schedule": {"steps": 1}}
    return config.parse({**whole, **part})


def typed(line: str) -> str:
    """Runs a line of a shell, which may send what is printed to a file."""
    words = shlex.split(line, comments=True)
    target = None
    if ">" in words:
        *words, _, target = words
    assert words[0] == "atrousops", line
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        code = cli.main(words[1:])
    assert code == 0, line
    if target is not None:
        Path(target).write_text(printed.getvalue())
    return printed.getvalue()
