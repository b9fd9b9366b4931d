"""Faults put into PTX, one at a time, at a place drawn with a seed."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator

from ptx_parse import Kernel

# A kind gives the places where it can be put: begin, end, and what stands there then.
Edit = tuple[int, int, str]
KINDS: dict[str, Callable[[str], Iterator[Edit]]] = {}


def kind(f: Callable[[str], Iterator[Edit]]) -> Callable[[str], Iterator[Edit]]:
    KINDS[f.__name__.replace("_", " ")] = f
    return f


def replace(body: str, pattern: str, new: Callable[[re.Match[str]], str]) -> Iterator[Edit]:
    for m in re.finditer(pattern, body, re.M):
        yield m.start(), m.end(), new(m)


@kind
def operands_exchanged(body: str) -> Iterator[Edit]:
    """Of a matrix product: its two registers of B, or the descriptors of A and B."""
    yield from replace(body, r"(\bmma\.sync[^;]*\}, \{[^}]*\}, \{)(%r\d+), (%r\d+)", lambda m: f"{m[1]}{m[3]}, {m[2]}")
    yield from replace(body, r"(wgmma\.mma_async[^;]*\}, )(%rd\d+), (%rd\d+)", lambda m: f"{m[1]}{m[3]}, {m[2]}")


@kind
def registers_exchanged(body: str) -> Iterator[Edit]:
    """Of a difference, a choice, or a product's factor and what is added to it."""
    yield from replace(body, r"(\b(?:sub|selp)\.\w+ \s*%\w+, )(%\w+), (%\w+)", lambda m: f"{m[1]}{m[3]}, {m[2]}")
    pattern = r"(\b(?:mad\.lo|fma\.rn)\.\w+ \s*%\w+, %\w+, )(%\w+), (%\w+)"
    yield from replace(body, pattern, lambda m: f"{m[1]}{m[3]}, {m[2]}")


@kind
def load_one_element_off(body: str) -> Iterator[Edit]:
    pattern = r"(\bld\.(?:global|shared)(?:\.nc)?\.[a-z](\d+) \s*%\w+, \[%r\w+)(\+\d+)?\]"
    yield from replace(body, pattern, lambda m: f"{m[1]}+{int(m[3] or 0) + int(m[2]) // 8}]")


@kind
def store_one_element_off(body: str) -> Iterator[Edit]:
    pattern = r"(\bst\.(?:global|shared)\.[a-z](\d+) \s*\[%r\w+)(\+\d+)?\]"
    yield from replace(body, pattern, lambda m: f"{m[1]}+{int(m[3] or 0) + int(m[2]) // 8}]")


@kind
def comparison_negated(body: str) -> Iterator[Edit]:
    opposite = {"eq": "ne", "ne": "eq", "lt": "ge", "ge": "lt", "gt": "le", "le": "gt"}
    yield from replace(body, r"\bsetp\.(eq|ne|lt|ge|gt|le)(\.[su]\d+)", lambda m: f"setp.{opposite[m[1]]}{m[2]}")


@kind
def branch_negated(body: str) -> Iterator[Edit]:
    yield from replace(body, r"@(!?)(%p\d+) bra", lambda m: f"@{'' if m[1] else '!'}{m[2]} bra")


@kind
def addends_exchanged_for_a_difference(body: str) -> Iterator[Edit]:
    yield from replace(body, r"\badd\.(f32|f64|s32|s64)\b", lambda m: f"sub.{m[1]}")


@kind
def barrier_removed(body: str) -> Iterator[Edit]:
    yield from replace(body, r"\bbar\.sync\s+0;", lambda m: "")


@kind
def wait_removed(body: str) -> Iterator[Edit]:
    yield from replace(body, r"\b(?:cp\.async\.wait_group|wgmma\.wait_group\.sync\.aligned)\s+\d+;", lambda m: "")
    yield from replace(body, r"\bmbarrier\.try_wait\.\S+ (\w+), [^;]*;", lambda m: f"setp.eq.s32 {m[1]}, 0, 0;")


@kind
def wait_for_one_group_less(body: str) -> Iterator[Edit]:
    pattern = r"\b(cp\.async\.wait_group|wgmma\.wait_group\.sync\.aligned)\s+(\d+);"
    yield from replace(body, pattern, lambda m: f"{m[1]} {int(m[2]) + 1};")


@kind
def fence_removed(body: str) -> Iterator[Edit]:
    pattern = r"\b(?:fence\.proxy\.async|fence\.mbarrier_init|wgmma\.fence)[^;]*;"
    yield from replace(body, pattern, lambda m: "")


@kind
def parity_flipped(body: str) -> Iterator[Edit]:
    pattern = r"(\bmbarrier\.try_wait\.\S+ \w+, \[%r\d+\], )(%r\d+);"
    yield from replace(body, pattern, lambda m: f".reg .b32 mutated; xor.b32 mutated, {m[2]}, 1; {m[1]}mutated;")


@kind
def descriptor_bit_changed(body: str) -> Iterator[Edit]:
    """Of the swizzle's two bits, the lower one; of the stride, its least; of the start, that of 32 bytes."""
    for bit in (62, 32, 1):
        yield from replace(
            body, r"(\bor\.b64 \s*%rd\d+, %rd\d+, )(46\d{17});", lambda m, bit=bit: f"{m[1]}{int(m[2]) ^ 1 << bit};"
        )


@kind
def bytes_expected_changed(body: str) -> Iterator[Edit]:
    pattern = r"(\bmbarrier\.arrive\.expect_tx\S* _, \[%r\d+\], )(%r\d+);"
    yield from replace(body, pattern, lambda m: f"{{ .reg .b32 mutated; add.s32 mutated, {m[2]}, 16; {m[1]}mutated; }}")


@kind
def coordinates_exchanged(body: str) -> Iterator[Edit]:
    pattern = r"(\bcp\.async\.bulk\.tensor[^;]*, \{%r\d+, )(%r\d+), (%r\d+)"
    yield from replace(body, pattern, lambda m: f"{m[1]}{m[3]}, {m[2]}")


@kind
def matrix_transposed(body: str) -> Iterator[Edit]:
    yield from replace(
        body, r"(\bldmatrix\.sync\.aligned\.m8n8\.x4)(\.trans)?", lambda m: m[1] + ("" if m[2] else ".trans")
    )


@kind
def copy_shortened(body: str) -> Iterator[Edit]:
    pattern = r"(\bcp\.async\.c[ag]\.shared\.global[^;]*, )(16|8|4), %r\d+;"
    yield from replace(body, pattern, lambda m: f"{m[1]}{m[2]}, 0;")


def mutated(kernel: Kernel, what: str, seed: int, reached: bytes) -> tuple[Kernel, str]:
    """The kernel with one fault, and where: the line, what stood there and what stands there now.

    Args:
        kernel: what the check launches.
        what: one of KINDS.
        seed: chooses among its places.
        reached: whether the check reaches each line of the body.
    """
    places = [p for p in KINDS[what](kernel.body) if reached[kernel.body.count("\n", 0, p[0])]]
    if not places:
        raise LookupError(f"{kernel.name} has no place for: {what}")
    begin, end, new = random.Random(f"{what} {seed}").choice(places)
    old, line = kernel.body[begin:end], kernel.line + kernel.body.count("\n", 0, begin)
    changed = Kernel(
        kernel.name,
        kernel.parameters,
        kernel.max_threads,
        kernel.body[:begin] + new + kernel.body[end:],
        kernel.line,
        kernel.dynamic,
    )
    return changed, f"line {line}: {' '.join(old.split())[-60:]} -> {' '.join(new.split())[-70:]}"
