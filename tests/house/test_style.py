"""Files under 400 lines, functions under 60, no path of anybody's machine."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("atrousops", "csrc", "tests", "benchmarks", "docs")
SOURCES = sorted(p for f in FOLDERS for p in (ROOT / f).rglob("*") if p.suffix in (".py", ".cpp", ".h"))
ids = [str(p.relative_to(ROOT)) for p in SOURCES]


def python_functions(text: str):
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            # The docstring tells the caller, not the reader of the code.
            doc = node.body[0] if ast.get_docstring(node) is not None else None
            yield node.name, node.end_lineno - node.lineno + 1 - (doc.end_lineno - doc.lineno + 1 if doc else 0)


def cpp_functions(text: str):
    """What a lone brace at the start of a line closes; namespaces and types close with more than that."""
    start, name = 0, ""
    for i, line in enumerate(text.splitlines()):
        if re.match(r"[\w\[]", line):
            start, name = i, line
        elif line == "}":
            yield name, i - start + 1


def test_no_two_files_of_tests_bear_one_name():
    names = [p.name for p in (ROOT / "tests").rglob("test_*.py")]
    assert sorted(names) == sorted(set(names))


@pytest.mark.parametrize("path", SOURCES, ids=ids)
def test_sizes(path):
    text = path.read_text()
    assert text.count("\n") <= 400
    functions = python_functions(text) if path.suffix == ".py" else cpp_functions(text)
    long = [(name, length) for name, length in functions if length > 60]
    assert not long


@pytest.mark.parametrize("path", SOURCES, ids=ids)
def test_no_path_of_a_machine(path):
    homes = "|".join(("home", "root", "Users", "work", "mnt"))
    assert not re.search(rf"""["'\s(]/({homes})/""", path.read_text())
