"""PTX as text: its kernels, and their statements with the lines where they stand."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field


class Unknown(Exception):
    """PTX that the translator does not know."""


@dataclass(frozen=True)
class Parameter:
    """A kernel's parameter and its size in bytes."""

    name: str
    bytes: int


@dataclass(frozen=True)
class Statement:
    """An instruction, a declaration, a label, "{" or "}"."""

    text: str
    line: int


@dataclass
class Kernel:
    """One `.entry`; `dynamic` and `variables`: the file's dynamic shared memory and its variables in global memory."""

    name: str
    parameters: list[Parameter]
    max_threads: int
    body: str
    line: int
    dynamic: list[str] = field(default_factory=list)
    variables: frozenset[str] = frozenset()

    def statements(self) -> Iterator[Statement]:
        yield from statements(self.body, self.line)


def size_of(kind: str) -> int:
    """The bytes of ".u64" and the like."""
    return int(re.sub(r"\D", "", kind)) // 8


def split(text: str) -> list[str]:
    """Operands, which commas separate outside of braces and brackets."""
    out, depth, current = [], 0, ""
    for c in text:
        depth += c in "{["
        depth -= c in "}]"
        if c == "," and depth == 0:
            out.append(current.strip())
            current = ""
        else:
            current += c
    return [*out, current.strip()] if current.strip() else out


def statements(body: str, line: int) -> Iterator[Statement]:
    """A brace at a statement's beginning is a scope, elsewhere it holds a vector."""
    body = re.sub(r"^([ \t]*)([$\w]+):", r"\1LABEL \2;", body, flags=re.M)
    current, depth, begin = "", 0, line
    for c in body:
        if not current.strip():
            begin = line
        if c == "\n":
            line += 1
        if c in "{}" and depth == 0 and (c == "}" or not current.strip()):
            yield Statement(c, begin)
            current = ""
            continue
        depth += c == "{"
        depth -= c == "}"
        if c == ";" and depth == 0:
            yield Statement(" ".join(current.split()), begin)
            current = ""
        else:
            current += c
    if current.strip():
        raise Unknown(f"line {begin}: {current.strip()[:60]}")


BRACE = re.compile(r"[{}]")
ENTRY = re.compile(r"\.entry (\w+)\(([^)]*)\)([^{]*)\n\{", re.S)


def closing(text: str, begin: int) -> int:
    """Where the brace stands that closes the one before `begin`: inline assembly may have one at a line's beginning."""
    depth = 1
    for m in BRACE.finditer(text, begin):
        depth += 1 if m[0] == "{" else -1
        if depth == 0:
            return m.start()
    raise Unknown("a brace that nothing closes")


def parameters(text: str) -> Iterator[Parameter]:
    for declared in split(text):
        m = re.fullmatch(r"\.param\s+(?:\.align \d+\s+)?\.(\w+)\s+(\w+)(?:\[(\d+)\])?", declared)
        if not m:
            raise Unknown(f"a parameter: {declared}")
        yield Parameter(m[2], size_of(m[1]) * int(m[3] or 1))


def kernels(text: str) -> list[Kernel]:
    """All kernels of a PTX file. Comments are dropped, lines stay where they are."""
    text = re.sub(r"//[^\n]*", "", text)
    dynamic = re.findall(r"^\.extern \.shared \.align \d+ \.b8 (\w+)\[\];", text, re.M)
    variables = frozenset(re.findall(r"^(?:\.visible )?\.global [^;=]*?(\w+)(?:\[\d+\])?;", text, re.M))
    if re.search(r"^\.(?:visible )?\.?func", text, re.M):
        raise Unknown("a function that was not inlined")
    found = []
    for m in ENTRY.finditer(text):
        threads = re.search(r"\.maxntid (\d+), (\d+), (\d+)", m[3])
        most = int(threads[1]) * int(threads[2]) * int(threads[3]) if threads else 0
        line = text.count("\n", 0, m.end()) + 1
        body = text[m.end() : closing(text, m.end())].removesuffix("\n")
        found.append(Kernel(m[1], list(parameters(m[2])), most, body, line, dynamic, variables))
    if len(found) != len(re.findall(r"\.entry ", text)):
        raise Unknown("a kernel whose form is not known")
    return found
