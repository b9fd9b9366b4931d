"""Imports look downwards: the levels are those in CONTRIBUTING.md."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "atrousops"
FILES = sorted(p for p in PACKAGE.rglob("*.py"))


def levels() -> dict[str, int]:
    """The number of each level by the names of its folders and files, from the top."""
    text = (ROOT / "CONTRIBUTING.md").read_text().partition("| level |")[2].partition("\n\n")[0]
    rows = [re.findall(r"`(\w+)`", line.split("|")[1]) for line in text.splitlines() if line.startswith("| `")]
    return {name: i for i, names in enumerate(rows) for name in names}


def module_of(path: Path) -> list[str]:
    return list(path.relative_to(ROOT).with_suffix("").parts)


def folder_of(module: list[str]) -> str:
    """The folder, or the file for what lies in the root."""
    name = module[1] if len(module) > 1 else "__init__"
    return name if (PACKAGE / name).is_dir() or (PACKAGE / f"{name}.py").exists() else "__init__"


def imported(path: Path) -> set[tuple[str, ...]]:
    """The modules of this package that a file imports, in whatever place."""
    tree = ast.parse(path.read_text())
    for_types = {
        id(node)
        for block in ast.walk(tree)
        if isinstance(block, ast.If) and ast.unparse(block.test) == "TYPE_CHECKING"
        for node in ast.walk(block)
    }
    found = set()
    for node in ast.walk(tree):
        if id(node) in for_types:
            continue
        if isinstance(node, ast.Import):
            found |= {tuple(alias.name.split(".")) for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: relative import"
            found |= {(*(node.module or "").split("."), alias.name) for alias in node.names}
    return {name for name in found if name[0] == "atrousops"}


def test_every_folder_has_a_level():
    folders = {p.stem for p in PACKAGE.glob("*.py")} | {p.parent.name for p in PACKAGE.glob("*/__init__.py")}
    assert folders == levels().keys()


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_look_downwards(path):
    level = levels()
    mine = folder_of(module_of(path))
    for name in imported(path):
        other = folder_of(list(name))
        assert (
            other == mine
            or level[other] > level[mine]
            or {mine, other} == {"__main__", "cli"}
            or (level[other] == level[mine] == level["__init__"])
        ), f"{path.relative_to(ROOT)} is on the level of {mine} and imports {'.'.join(name)}"


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_underscored_files_stay_in_their_folder(path):
    for name in imported(path):
        for depth, part in enumerate(name[1:], 1):
            private = part.startswith("_") and not part.startswith("__") and depth < len(name)
            is_file = (ROOT.joinpath(*name[: depth + 1])).with_suffix(".py").exists()
            if private and is_file:
                assert name[:depth] == tuple(module_of(path)[:-1]), f"{path.relative_to(ROOT)} imports {'.'.join(name)}"
