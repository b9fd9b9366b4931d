"""Faults put into PTX, one at a time, at a place drawn with a seed."""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from dataclasses import replace

from ptx_parse import Kernel

# A begin, an end, and what stands there then.
Edit = tuple[int, int, str]
# A pattern, and what stands in place of a match.
Rule = tuple[str, Callable[[re.Match[str]], str]]
_OPPOSITE = {"eq": "ne", "ne": "eq", "lt": "ge", "ge": "lt", "gt": "le", "le": "gt"}


def _exchanged(m: re.Match[str]) -> str:
    return f"{m[1]}{m[3]}, {m[2]}"


def _one_off(m: re.Match[str]) -> str:
    return f"{m[1]}+{int(m[3] or 0) + int(m[2]) // 8}]"


KINDS: dict[str, list[Rule]] = {
    # Of a matrix product: its two registers of B, or the descriptors of A and B.
    "operands exchanged": [
        (r"(\bmma\.sync[^;]*\}, \{[^}]*\}, \{)(%r\d+), (%r\d+)", _exchanged),
        (r"(wgmma\.mma_async[^;]*\}, )(%rd\d+), (%rd\d+)", _exchanged),
    ],
    # Of a difference, a choice, or a product's factor and what is added to it.
    "registers exchanged": [
        (r"(\b(?:sub|selp)\.\w+ \s*%\w+, )(%\w+), (%\w+)", _exchanged),
        (r"(\b(?:mad\.lo|fma\.rn)\.\w+ \s*%\w+, %\w+, )(%\w+), (%\w+)", _exchanged),
    ],
    "load one element off": [
        (r"(\bld\.(?:global|shared)(?:\.nc)?\.[a-z](\d+) \s*%\w+, \[%r\w+)(\+\d+)?\]", _one_off),
    ],
    "store one element off": [(r"(\bst\.(?:global|shared)\.[a-z](\d+) \s*\[%r\w+)(\+\d+)?\]", _one_off)],
    "comparison negated": [
        (r"\bsetp\.(eq|ne|lt|ge|gt|le)(\.[su]\d+)", lambda m: f"setp.{_OPPOSITE[m[1]]}{m[2]}"),
    ],
    "branch negated": [(r"@(!?)(%p\d+) bra", lambda m: f"@{'' if m[1] else '!'}{m[2]} bra")],
    "addends exchanged for a difference": [(r"\badd\.(f32|f64|s32|s64)\b", lambda m: f"sub.{m[1]}")],
    "barrier removed": [(r"\bbar\.sync\s+0;", lambda m: "")],
    "wait removed": [
        (r"\b(?:cp\.async\.wait_group|wgmma\.wait_group\.sync\.aligned)\s+\d+;", lambda m: ""),
        (r"\bmbarrier\.try_wait\.\S+ (\w+), [^;]*;", lambda m: f"setp.eq.s32 {m[1]}, 0, 0;"),
    ],
    "wait for one group less": [
        (
            r"\b(cp\.async\.wait_group|wgmma\.wait_group\.sync\.aligned)\s+(\d+);",
            lambda m: f"{m[1]} {int(m[2]) + 1};",
        ),
    ],
    "fence removed": [(r"\b(?:fence\.proxy\.async|fence\.mbarrier_init|wgmma\.fence)[^;]*;", lambda m: "")],
    "parity flipped": [
        (
            r"(\bmbarrier\.try_wait\.\S+ \w+, \[%r\d+\], )(%r\d+);",
            lambda m: f".reg .b32 mutated; xor.b32 mutated, {m[2]}, 1; {m[1]}mutated;",
        ),
    ],
    # Of the swizzle's two bits, the lower one; of the stride, its least; of the start, that of 32 bytes.
    "descriptor bit changed": [
        (r"(\bor\.b64 \s*%rd\d+, %rd\d+, )(46\d{17});", lambda m, bit=bit: f"{m[1]}{int(m[2]) ^ 1 << bit};")
        for bit in (62, 32, 1)
    ],
    "bytes expected changed": [
        (
            r"(\bmbarrier\.arrive\.expect_tx\S* _, \[%r\d+\], )(%r\d+);",
            lambda m: f"{{ .reg .b32 mutated; add.s32 mutated, {m[2]}, 16; {m[1]}mutated; }}",
        ),
    ],
    "coordinates exchanged": [(r"(\bcp\.async\.bulk\.tensor[^;]*, \{%r\d+, )(%r\d+), (%r\d+)", _exchanged)],
    "matrix transposed": [
        (r"(\bldmatrix\.sync\.aligned\.m8n8\.x4)(\.trans)?", lambda m: m[1] + ("" if m[2] else ".trans")),
    ],
    "copy shortened": [
        (r"(\bcp\.async\.c[ag]\.shared\.global[^;]*, )(16|8|4), %r\d+;", lambda m: f"{m[1]}{m[2]}, 0;"),
    ],
}


def edits(what: str, body: str) -> list[Edit]:
    """The places where a kind of fault can be put."""
    return [(m.start(), m.end(), new(m)) for pattern, new in KINDS[what] for m in re.finditer(pattern, body, re.M)]


def mutated(kernel: Kernel, what: str, seed: int, reached: bytes) -> tuple[Kernel, str]:
    """The kernel with one fault, and where: the line, what stood there and what stands there now.

    Args:
        kernel: what the check launches.
        what: one of KINDS.
        seed: chooses among its places.
        reached: whether the check reaches each line of the body.
    """
    places = [p for p in edits(what, kernel.body) if reached[kernel.body.count("\n", 0, p[0])]]
    if not places:
        raise LookupError(f"{kernel.name} has no place for: {what}")
    begin, end, new = random.Random(f"{what} {seed}").choice(places)
    old, line = kernel.body[begin:end], kernel.line + kernel.body.count("\n", 0, begin)
    changed = replace(kernel, body=kernel.body[:begin] + new + kernel.body[end:])
    return changed, f"line {line}: {' '.join(old.split())[-60:]} -> {' '.join(new.split())[-70:]}"
