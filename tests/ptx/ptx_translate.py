"""PTX to C++: one function a kernel, in the interface of machine/ptx.h."""

from __future__ import annotations

import re
from collections.abc import Callable

from ptx_parse import Kernel, Statement, Unknown, size_of, split

TYPES = {
    **{f"s{n}": f"int{n}_t" for n in (8, 16, 32, 64)},
    **{f"{k}{n}": f"uint{n}_t" for k in "ub" for n in (8, 16, 32, 64)},
    "f32": "float",
    "f64": "double",
    "pred": "bool",
}
FIRST_SHARED = 1024
COMPARISONS = {
    **{"eq": "x == y", "ne": "x != y", "lt": "x < y", "le": "x <= y", "gt": "x > y", "ge": "x >= y"},
    # Unordered: true where one of them is NaN.
    **{"equ": "!(x < y || x > y)", "neu": "!(x == y)", "ltu": "!(x >= y)", "leu": "!(x > y)", "gtu": "!(x <= y)"},
    **{"geu": "!(x < y)", "nan": "x != x || y != y", "num": "x == x && y == y"},
}
SIMPLE = {"add": "+", "sub": "-", "mul": "*", "and": "&", "or": "|", "xor": "^"}
ROUNDINGS = {"rzi": "std::trunc", "rmi": "std::floor", "rpi": "std::ceil", "rni": "std::nearbyint"}
ATOMICS = {
    **{"add": "old + x", "max": "x > old ? x : old", "min": "x < old ? x : old"},
    **{"or": "old | x", "and": "old & x", "exch": "x"},
}
OPERANDS = {kind: f"ptx::Operand::{kind}" for kind in ("f16", "bf16", "tf32", "s8", "e4m3")}
# Ordered by one fiber that runs at a time.
NOTHING = ("prefetch", "membar", "fence.acq_rel", "fence.sc")


class Translation:
    """A kernel on its way to C++."""

    def __init__(self, kernel: Kernel, file: str, covered: bool = False) -> None:
        """`covered`: the byte ptx_hits[line - kernel.line] tells whether a line was reached."""
        self.kernel, self.file, self.covered = kernel, file, covered
        self.parameters = {p.name: i for i, p in enumerate(kernel.parameters)}
        self.async_proxy = bool(re.search(r"\bwgmma\.mma_async|\bcp\.async\.bulk", kernel.body))
        self.shared: dict[str, int] = {}
        self.scopes: list[tuple[int, set[str]]] = []
        self.scope_count = self.line = 0
        self.declared: list[str] = []
        self.code: list[str] = []

    # Operands.

    def register(self, name: str) -> str:
        plain = name.replace("%", "").replace("$", "D")
        for number, names in reversed(self.scopes):
            if plain in names:
                return f"{plain}_s{number}"
        return plain

    def value(self, operand: str, kind: str | None = None) -> str:
        """An operand as a C++ expression of the type `kind`."""
        o = operand.strip()
        if m := re.fullmatch(r"0[fF]([0-9a-fA-F]{8})", o):
            expression = f"std::bit_cast<float>(0x{m[1]}u)"
        elif m := re.fullmatch(r"0[dD]([0-9a-fA-F]{16})", o):
            expression = f"std::bit_cast<double>(0x{m[1]}ull)"
        elif re.fullmatch(r"-?(\d+|0x[0-9a-fA-F]+)U?", o):
            return self.literal(int(o.rstrip("U"), 0), kind)
        elif m := re.fullmatch(r"%((?:n?tid|n?ctaid|laneid|lanemask_\w+|cluster_\w+|globaltimer_hi)(?:\.[xyz])?)", o):
            expression = f"ptx::sreg_{m[1].replace('.', '_')}()"
        elif o in self.shared:
            expression = f"uint64_t{{{self.shared[o]}}}"
        elif o in self.kernel.variables:
            expression = f'ptx::variable("{o}")'
        elif o in self.parameters:
            expression = f"reinterpret_cast<uint64_t>(args[{self.parameters[o]}])"
        elif re.fullmatch(r"[%\w$]+", o) and not o.startswith("_Z"):
            expression = self.register(o)
        else:
            raise Unknown(f"operand {o}")
        return f"ptx::as<{kind}>({expression})" if kind else expression

    @staticmethod
    def literal(number: int, kind: str | None) -> str:
        if kind == "bool":
            return "true" if number else "false"
        if kind in ("float", "double"):
            raise Unknown(f"the integer {number} as {kind}")
        return f"static_cast<{kind or 'uint64_t'}>({number & (2**64 - 1)}ull)"

    def address(self, operand: str) -> tuple[int | None, str, int]:
        """A parameter's number or None, an expression, an offset."""
        m = re.fullmatch(r"\[\s*([^\]+]+?)\s*(?:\+\s*(-?\d+))?\s*\]", operand)
        if not m:
            raise Unknown(f"address {operand}")
        offset = int(m[2] or 0)
        if m[1] in self.parameters:
            return self.parameters[m[1]], "", offset
        base = self.value(m[1])
        return None, f"uint64_t{{{base}}} + ({offset}ll)" if offset else f"uint64_t{{{base}}}", offset

    @staticmethod
    def vector(operand: str) -> list[str]:
        return split(operand.strip()[1:-1]) if operand.startswith("{") else [operand]

    def set(self, target: str, expression: str) -> str:
        return f"{expression};" if target == "_" else f"ptx::set({self.register(target)}, {expression});"

    # Statements.

    def declare(self, text: str) -> bool:
        if m := re.fullmatch(r"\.reg \.(\w+) (.*)", text):
            for name in split(m[2]):
                kind = TYPES[m[1]]
                if r := re.fullmatch(r"%(\w+)<(\d+)>", name):
                    self.declared += [f"{kind} {r[1]}{i};" for i in range(int(r[2]))]
                    continue
                plain = name.replace("%", "")
                if self.scopes:
                    self.scopes[-1][1].add(plain)
                    plain += f"_s{self.scopes[-1][0]}"
                self.declared.append(f"{kind} {plain};")
            return True
        return text.startswith(".pragma") or bool(re.match(r"\.shared ", text))

    def statement(self, s: Statement) -> None:
        self.line = s.line
        if s.text == "{":
            self.scope_count += 1
            self.scopes.append((self.scope_count, set()))
        elif s.text == "}":
            self.scopes.pop()
        elif s.text.startswith("LABEL "):
            self.code.append(f"{self.register(s.text[6:])}:;")
        elif s.text and not self.declare(s.text):
            m = re.fullmatch(r"(?:@(!?)([%\w]+)\s+)?([a-z][\w.:]*)\s*(.*)", s.text)
            if not m:
                raise Unknown(f"{self.file}:{s.line}: {s.text[:60]}")
            guard = f"if ({m[1]}{self.register(m[2])}) " if m[2] else ""
            try:
                body = self.instruction(m[3], split(m[4]))
            except (Unknown, KeyError, IndexError) as e:
                raise Unknown(f"{self.file}:{s.line}: {m[3]} is not translated ({e})") from e
            hit = f"ptx_hits[{s.line - self.kernel.line}] = 1; " if self.covered else ""
            self.code.append(f"{hit}{guard}{{ {body} }}")

    def instruction(self, op: str, o: list[str]) -> str:
        f = op.split(".")
        if op.startswith(NOTHING):
            return ""
        for key in (".".join(f[:3]), ".".join(f[:2]), f[0]):
            if key in INSTRUCTIONS:
                return INSTRUCTIONS[key](self, f, o)
        raise Unknown("an instruction without semantics")

    def shared_arrays(self) -> tuple[int, int]:
        """Gives shared arrays their addresses; where static ones end and dynamic memory begins."""
        end = FIRST_SHARED
        for align, name, count in re.findall(
            r"^\s*\.shared \.align (\d+) \.b8 (\w+)\[(\d+)\];", self.kernel.body, re.M
        ):
            self.shared[name] = -(-end // int(align)) * int(align)
            end = self.shared[name] + int(count)
        dynamic = -(-end // 1024) * 1024
        self.shared |= dict.fromkeys(self.kernel.dynamic, dynamic)
        return end, dynamic

    def translated(self) -> str:
        end, dynamic = self.shared_arrays()
        for s in self.kernel.statements():
            self.statement(s)
        k = self.kernel
        sizes = ", ".join(str(p.bytes) for p in k.parameters)
        return "\n".join(
            [
                '#include "ptx.h"',
                *([f'extern "C" {{ PTX_API char ptx_hits[{k.body.count(chr(10)) + 2}]; }}'] if self.covered else []),
                f'extern "C" PTX_API void ptx_{k.name}(void* const* args) {{',
                *self.declared,
                *self.code,
                "}",
                f"static const unsigned sizes[] = {{{sizes or 0}}};",
                f'static const KernelEntry entry{{"{k.name}", ptx_{k.name}, {end}, {dynamic}, {len(k.parameters)},'
                f' sizes, {k.max_threads}, "{self.file}", {str(self.async_proxy).lower()}}};',
                'extern "C" PTX_API const KernelEntry* ptx_entry() { return &entry; }',
                "static const int added = ptx_add(&entry);",
                "",
            ]
        )


Instruction = Callable[[Translation, list[str], list[str]], str]
INSTRUCTIONS: dict[str, Instruction] = {}


def instruction(*names: str) -> Callable[[Instruction], Instruction]:
    def add(f: Instruction) -> Instruction:
        INSTRUCTIONS.update(dict.fromkeys(names, f))
        return f

    return add


def unsigned(kind: str) -> str:
    return "u" + kind if kind.startswith("int") else kind


def wider(kind: str) -> str:
    return TYPES[f"{kind[0]}{2 * int(kind[1:])}"]


def forbid(f: list[str], *known: str) -> None:
    """Modifiers that have no place here change the meaning."""
    if other := set(f[1:-1]) - set(known):
        raise Unknown(f"modifier {sorted(other)}")


@instruction("ret", "exit")
def _return(t: Translation, f: list[str], o: list[str]) -> str:
    return "return;"


@instruction("trap")
def _trap(t: Translation, f: list[str], o: list[str]) -> str:
    return f"ptx::trap({t.line});"


@instruction("bra")
def _branch(t: Translation, f: list[str], o: list[str]) -> str:
    return f"goto {t.register(o[0])};"


@instruction(*SIMPLE)
def _arithmetic(t: Translation, f: list[str], o: list[str]) -> str:
    forbid(f, "lo", "hi", "wide", "rn", "rz")
    name, kind = f[0], TYPES[f[-1]]
    x, y = t.value(o[1], kind), t.value(o[2], kind)
    if "wide" in f:
        return t.set(o[0], f"static_cast<{wider(f[-1])}>({x}) * static_cast<{wider(f[-1])}>({y})")
    if "hi" in f:
        return t.set(o[0], f"ptx::mul_hi<{kind}>({x}, {y})")
    if "rz" in f:
        if name != "add":
            raise Unknown("rz")
        return t.set(o[0], f"ptx::add_rz<{kind}>({x}, {y})")
    same = unsigned(kind)
    return t.set(o[0], f"static_cast<{same}>({t.value(o[1], same)} {SIMPLE[name]} {t.value(o[2], same)})")


@instruction("div", "rem", "min", "max")
def _function(t: Translation, f: list[str], o: list[str]) -> str:
    forbid(f, "rn")
    kind = TYPES[f[-1]]
    return t.set(o[0], f"ptx::{f[0]}<{kind}>({t.value(o[1], kind)}, {t.value(o[2], kind)})")


@instruction("cvt.rn.bf16x2", "cvt.rn.f16x2", "cvt.rn.relu")
def _pair(t: Translation, f: list[str], o: list[str]) -> str:
    *_, kind, source = f
    if source != "f32":
        raise Unknown("modifiers")
    clamp = "ptx::relu" if "relu" in f else ""
    high, low = (f"{clamp}({t.value(each, 'float')})" for each in o[1:3])
    return t.set(o[0], f"ptx::to_{kind}({high}, {low})")


@instruction("mad")
def _multiply_add(t: Translation, f: list[str], o: list[str]) -> str:
    forbid(f, "lo")
    kind = unsigned(TYPES[f[-1]])
    x, y, z = (t.value(v, kind) for v in o[1:4])
    return t.set(o[0], f"static_cast<{kind}>({x} * {y} + {z})")


@instruction("fma")
def _fused(t: Translation, f: list[str], o: list[str]) -> str:
    forbid(f, "rn", "rm")
    kind = TYPES[f[-1]]
    x = ", ".join(t.value(v, kind) for v in o[1:4])
    return t.set(o[0], f"ptx::fma_rm<{kind}>({x})" if "rm" in f else f"std::fma({x})")


@instruction("neg", "abs", "not", "rcp", "ex2", "popc", "clz", "brev")
def _unary(t: Translation, f: list[str], o: list[str]) -> str:
    kind = unsigned(TYPES[f[-1]])
    x = t.value(o[1], kind)
    if f[0] == "ex2":
        forbid(f, "approx", "ftz")
        return t.set(o[0], f"ptx::flushed(std::exp2(ptx::flushed({x})))")
    forbid(f, "rn")
    forms = {
        "neg": f"static_cast<{kind}>(-{x})",
        "abs": f"std::fabs({x})",
        "not": f"static_cast<{kind}>({'!' if kind == 'bool' else '~'}{x})",
        "rcp": f"1 / {x}",
        "popc": f"std::popcount({x})",
        "clz": f"std::countl_zero({x})",
        "brev": f"ptx::brev({x})",
    }
    return t.set(o[0], forms[f[0]])


@instruction("copysign")
def _copysign(t: Translation, f: list[str], o: list[str]) -> str:
    kind = TYPES[f[-1]]
    return t.set(o[0], f"std::copysign({t.value(o[2], kind)}, {t.value(o[1], kind)})")


@instruction("shl", "shr")
def _shift(t: Translation, f: list[str], o: list[str]) -> str:
    kind = TYPES[f[-1]]
    return t.set(o[0], f"ptx::{f[0]}<{kind}>({t.value(o[1], kind)}, {t.value(o[2], 'uint32_t')})")


@instruction("bfi")
def _insert(t: Translation, f: list[str], o: list[str]) -> str:
    kind = f"uint{f[-1][1:]}_t"
    place = ", ".join(t.value(v, "uint32_t") for v in o[3:])
    return t.set(o[0], f"ptx::bfi<{kind}>({t.value(o[1], kind)}, {t.value(o[2], kind)}, {place})")


@instruction("prmt", "bmsk")
def _bits(t: Translation, f: list[str], o: list[str]) -> str:
    if f[-1] != "b32" or (f[0] == "bmsk") != ("clamp" in f):
        raise Unknown("modifiers")
    name = "bmsk_clamp" if f[0] == "bmsk" else f[0]
    return t.set(o[0], f"ptx::{name}({', '.join(t.value(v, 'uint32_t') for v in o[1:])})")


@instruction("setp")
def _compare(t: Translation, f: list[str], o: list[str]) -> str:
    if len(f) != 3:
        raise Unknown("modifiers")
    kind = TYPES[f[-1]]
    test = "x < y || x > y" if f[1] == "ne" and kind in ("float", "double") else COMPARISONS[f[1]]
    return f"const {kind} x = {t.value(o[1], kind)}, y = {t.value(o[2], kind)}; {t.register(o[0])} = {test};"


@instruction("selp")
def _select(t: Translation, f: list[str], o: list[str]) -> str:
    kind = TYPES[f[-1]]
    return t.set(o[0], f"{t.value(o[3], 'bool')} ? {t.value(o[1], kind)} : {t.value(o[2], kind)}")


@instruction("mov")
def _move(t: Translation, f: list[str], o: list[str]) -> str:
    kind = TYPES[f[-1]]
    into, parts = t.vector(o[0]), t.vector(o[1])
    if len(into) == 1 and len(parts) == 1:
        return t.set(o[0], t.value(o[1], kind))
    n = max(len(into), len(parts))
    bits = 8 * size_of(f[-1]) // n
    part = f"uint{bits}_t"
    if len(parts) == n:
        joined = " | ".join(f"static_cast<{kind}>({t.value(p, part)}) << {bits * i}" for i, p in enumerate(parts))
        return t.set(o[0], joined)
    pieces = (t.set(p, f"static_cast<{part}>(x >> {bits * i})") for i, p in enumerate(into))
    return f"const {kind} x = {t.value(o[1], kind)}; " + " ".join(pieces)


@instruction("cvt")
def _convert(t: Translation, f: list[str], o: list[str]) -> str:
    to, source = f[-2], f[-1]
    if to == "tf32":
        if f != ["cvt", "rna", "tf32", "f32"]:
            raise Unknown("rounding")
        return t.set(o[0], f"ptx::to_tf32({t.value(o[1], 'float')})")
    if source in ("f16", "bf16"):
        value = f"ptx::{'half' if source == 'f16' else 'bf16'}_value({t.value(o[1], 'uint16_t')})"
    else:
        value = t.value(o[1], TYPES[source])
    for modifier in f[1:-2]:
        if modifier in ROUNDINGS:
            value = f"{ROUNDINGS[modifier]}({value})"
        elif modifier == "sat":
            value = f"ptx::saturate({value})"
        elif modifier != "rn":
            raise Unknown(modifier)
    if to in ("f16", "bf16"):
        return t.set(o[0], f"ptx::to_{to}({value})")
    if "f" in source and to[0] in "su":
        return t.set(o[0], f"ptx::to_int<{TYPES[to]}>({value})")
    return t.set(o[0], f"static_cast<{TYPES[to]}>({value})")


@instruction("cvta")
def _to_address(t: Translation, f: list[str], o: list[str]) -> str:
    if f not in (["cvta", "to", "global", "u64"], ["cvta", "param", "u64"]):
        raise Unknown("an address space that has no generic addresses here")
    return t.set(o[0], t.value(o[1], "uint64_t"))


import ptx_memory  # noqa: E402, F401 - adds its instructions
