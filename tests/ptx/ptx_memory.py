"""Instructions of memory, of warps and blocks, and of tensor cores."""

from __future__ import annotations

from ptx_parse import Unknown, size_of
from ptx_translate import ATOMICS, OPERANDS, TYPES, Translation, instruction


def space(f: list[str], load: bool) -> str:
    """The function of the machine that gives the bytes."""
    known = {"volatile", "relaxed", "gpu", "nc", "v2", "v4", "global", "shared", "shared::cluster", "param"}
    if other := set(f[1:-1]) - known:
        raise Unknown(f"modifier {sorted(other)}")
    direction = "load" if load else "store"
    if "shared" in f:
        return f"shared_{direction}"
    if "shared::cluster" in f:
        return f"cluster_{direction}"
    if "global" in f or {"relaxed", "gpu"} <= set(f):
        return "global_at"
    raise Unknown("a generic address")


@instruction("ld")
def _load(t: Translation, f: list[str], o: list[str]) -> str:
    kind, size, into = TYPES[f[-1]], size_of(f[-1]), t.vector(o[0])
    number, address, offset = t.address(o[1])
    if f[1] == "param":
        if number is None:
            start = f"const char* const p = reinterpret_cast<const char*>({address}); "
        elif offset + size * len(into) > t.kernel.parameters[number].bytes:
            raise Unknown("an offset outside the parameter")
        else:
            start = f"const char* const p = static_cast<const char*>(args[{number}]) + {offset}; "
    else:
        wait = "ptx::let_others_run(); " if f[1] in ("relaxed", "volatile") else ""
        start = f"{wait}const char* const p = ptx::{space(f, True)}({address}, {size * len(into)}, {t.line}); "
    return start + " ".join(t.set(v, f"ptx::load<{kind}>(p + {size * i})") for i, v in enumerate(into))


@instruction("st")
def _store(t: Translation, f: list[str], o: list[str]) -> str:
    kind, size, values = TYPES[f[-1]], size_of(f[-1]), t.vector(o[1])
    start = f"char* const p = ptx::{space(f, False)}({t.address(o[0])[1]}, {size * len(values)}, {t.line}); "
    return start + " ".join(f"ptx::store<{kind}>(p + {size * i}, {t.value(v, kind)});" for i, v in enumerate(values))


@instruction("st.async")
def _store_async(t: Translation, f: list[str], o: list[str]) -> str:
    if f[2:] != ["weak", "shared::cluster", "mbarrier::complete_tx::bytes", "v4", "b32"]:
        raise Unknown("modifiers")
    values = ", ".join(t.value(v, "uint32_t") for v in t.vector(o[1]))
    return (
        f"const uint32_t v[] = {{{values}}}; ptx::store_async({t.address(o[0])[1]}, v, {t.address(o[2])[1]}, {t.line});"
    )


@instruction("atom")
def _atomic(t: Translation, f: list[str], o: list[str]) -> str:
    kind = TYPES[f[-1]]
    where = {"global": "global_at", "shared": "shared_store"}[f[1]]
    if len(f) != 4:
        raise Unknown("modifiers")
    return (
        f"char* const p = ptx::{where}({t.address(o[1])[1]}, {size_of(f[-1])}, {t.line}); "
        f"const {kind} old = ptx::load<{kind}>(p), x = {t.value(o[2], kind)}; "
        f"ptx::store<{kind}>(p, {ATOMICS[f[2]]}); " + t.set(o[0], "old")
    )


@instruction("bar.sync", "barrier.sync")
def _barrier(t: Translation, f: list[str], o: list[str]) -> str:
    threads = t.value(o[1], "int32_t") if len(o) > 1 else "0"
    return f"ptx::barrier({t.value(o[0], 'int32_t')}, {threads}, false, {t.line});"


@instruction("bar.red.or")
def _barrier_or(t: Translation, f: list[str], o: list[str]) -> str:
    return t.set(o[0], f"ptx::barrier({t.value(o[1], 'int32_t')}, 0, {t.value(o[2], 'bool')}, {t.line}) != 0")


@instruction("bar.warp.sync")
def _sync_warp(t: Translation, f: list[str], o: list[str]) -> str:
    return f"ptx::sync_warp({t.value(o[0], 'uint32_t')}, {t.line});"


@instruction("nanosleep")
def _sleep(t: Translation, f: list[str], o: list[str]) -> str:
    return "ptx::let_others_run();"


@instruction("shfl.sync")
def _shuffle(t: Translation, f: list[str], o: list[str]) -> str:
    if f[2] not in ("idx", "up", "down", "bfly") or f[3:] != ["b32"]:
        raise Unknown("modifiers")
    operands = ", ".join(t.value(v, "uint32_t") for v in o[1:5])
    into, *inside = o[0].split("|")
    found = f"const auto r = ptx::shuffle(ptx::Shuffle::{f[2]}, {operands}, {t.line}); "
    return found + t.set(into, "r.first") + "".join(f" {t.register(p)} = r.second;" for p in inside)


@instruction("vote")
def _vote(t: Translation, f: list[str], o: list[str]) -> str:
    kind = next(k for k in f[1:] if k != "sync")
    name = {"ballot": "ballot", "all": "vote_all", "any": "vote_any"}[kind]
    return t.set(o[0], f"ptx::{name}({t.value(o[1], 'bool')}, {t.value(o[2], 'uint32_t')}, {t.line})")


@instruction("redux.sync.add")
def _reduce(t: Translation, f: list[str], o: list[str]) -> str:
    return t.set(o[0], f"ptx::reduce_add({t.value(o[1], 'uint32_t')}, {t.value(o[2], 'uint32_t')}, {t.line})")


@instruction("elect.sync")
def _elect(t: Translation, f: list[str], o: list[str]) -> str:
    sink, chosen = o[0].split("|")
    if sink != "_":
        raise Unknown("the elected lane's number")
    return f"{t.register(chosen)} = ptx::elect({t.value(o[1], 'uint32_t')}, {t.line});"


@instruction("cp.async.ca", "cp.async.cg")
def _copy(t: Translation, f: list[str], o: list[str]) -> str:
    if f[3:] not in (["shared", "global"], ["shared", "global", "L2::128B"]):
        raise Unknown("modifiers")
    size = t.value(o[2], "int32_t")
    source = t.value(o[3], "int32_t") if len(o) > 3 else size
    return f"ptx::cp_async({t.address(o[0])[1]}, {t.address(o[1])[1]}, {size}, {source}, {t.line});"


@instruction("cp.async.commit_group")
def _commit(t: Translation, f: list[str], o: list[str]) -> str:
    return "ptx::cp_async_commit();"


@instruction("cp.async.wait_group")
def _wait(t: Translation, f: list[str], o: list[str]) -> str:
    return f"ptx::cp_async_wait({t.value(o[0], 'int32_t')});"


@instruction("ldmatrix")
def _load_matrix(t: Translation, f: list[str], o: list[str]) -> str:
    into = t.vector(o[0])
    if f[1:4] != ["sync", "aligned", "m8n8"] or f[4] != f"x{len(into)}" or f[-2:] != ["shared", "b16"]:
        raise Unknown("modifiers")
    transposed = str("trans" in f).lower()
    call = f"uint32_t q[4]; ptx::ldmatrix(q, {t.address(o[1])[1]}, {len(into)}, {transposed}, {t.line}); "
    return call + " ".join(t.set(v, f"q[{i}]") for i, v in enumerate(into))


@instruction("stmatrix")
def _store_matrix(t: Translation, f: list[str], o: list[str]) -> str:
    if f[1:] != ["sync", "aligned", "m8n8", "x4", "shared", "b16"]:
        raise Unknown("modifiers")
    words = ", ".join(t.value(v, "uint32_t") for v in t.vector(o[1]))
    return f"const uint32_t q[4] = {{{words}}}; ptx::stmatrix(q, {t.address(o[0])[1]}, {t.line});"


MMA_SHAPES = {"tf32": "m16n8k8", "f16": "m16n8k16", "bf16": "m16n8k16", "s8": "m16n8k32", "e4m3": "m16n8k32"}


@instruction("mma")
def _mma(t: Translation, f: list[str], o: list[str]) -> str:
    kind, sums = f[7], f[6]
    expected = [MMA_SHAPES.get(kind), "row", "col", "s32" if kind == "s8" else "f32", kind, kind, sums]
    if f[3:] != expected:
        raise Unknown("modifiers")
    d, a, b, c = (t.vector(v) for v in o)
    number = "int32_t" if kind == "s8" else "float"
    lists = [
        (f"{number} c[4]", c, number),
        ("const uint32_t a[4]", a, "uint32_t"),
        ("const uint32_t b[2]", b, "uint32_t"),
    ]
    made = " ".join(f"{name} = {{{', '.join(t.value(v, k) for v in vs)}}};" for name, vs, k in lists)
    call = f"{made} ptx::mma({OPERANDS[kind]}, c, a, b, {t.line}); "
    return call + " ".join(t.set(v, f"c[{i}]") for i, v in enumerate(d))


@instruction("barrier.cluster.arrive", "barrier.cluster.wait")
def _cluster_barrier(t: Translation, f: list[str], o: list[str]) -> str:
    return f"ptx::cluster_{f[2]}({t.line});"


@instruction("mapa.shared::cluster")
def _map(t: Translation, f: list[str], o: list[str]) -> str:
    return t.set(o[0], f"ptx::mapa({t.value(o[1], 'uint32_t')}, {t.value(o[2], 'uint32_t')}, {t.line})")


@instruction("mbarrier.init")
def _init(t: Translation, f: list[str], o: list[str]) -> str:
    return f"ptx::mbarrier_init({t.address(o[0])[1]}, {t.value(o[1], 'uint32_t')}, {t.line});"


@instruction("mbarrier.arrive")
def _arrive(t: Translation, f: list[str], o: list[str]) -> str:
    if o[0] != "_":
        raise Unknown("the state that an arrival returns")
    address, operand = t.address(o[1])[1], t.value(o[2], "uint32_t") if len(o) > 2 else "1"
    if "expect_tx" not in f:
        return f"ptx::mbarrier_arrive({address}, {operand}, {t.line});"
    expect = f"ptx::mbarrier_expect({address}, {operand}, {t.line});"
    return f"{expect} ptx::mbarrier_arrive({address}, 1, {t.line});"


@instruction("mbarrier.expect_tx")
def _expect(t: Translation, f: list[str], o: list[str]) -> str:
    return f"ptx::mbarrier_expect({t.address(o[0])[1]}, {t.value(o[1], 'uint32_t')}, {t.line});"


@instruction("mbarrier.try_wait")
def _try_wait(t: Translation, f: list[str], o: list[str]) -> str:
    if "parity" not in f:
        raise Unknown("a wait for a state")
    call = f"ptx::mbarrier_try_wait({t.address(o[1])[1]}, {t.value(o[2], 'uint32_t')}, {t.line})"
    return f"{t.register(o[0])} = {call};"


@instruction("fence.mbarrier_init")
def _fence_init(t: Translation, f: list[str], o: list[str]) -> str:
    return f"ptx::fence_mbarrier_init({t.line});"


@instruction("fence.proxy.async")
def _fence_proxy(t: Translation, f: list[str], o: list[str]) -> str:
    return f"ptx::fence_proxy_async({t.line});"


@instruction("cp.async.bulk")
def _bulk(t: Translation, f: list[str], o: list[str]) -> str:
    rank = int(f[4][0])
    loads = ["shared::cluster", "global", "tile", "mbarrier::complete_tx::bytes"]
    if f[3] != "tensor" or f[5:] not in (loads, [*loads, "multicast::cluster"]):
        raise Unknown("modifiers")
    tensor, at = o[1][1:-1].split(",", 1)
    places = ", ".join(t.value(v, "int32_t") for v in t.vector(at.strip()))
    blocks = t.value(o[3], "uint16_t") if len(o) > 3 else "0"
    call = f"{t.address(o[0])[1]}, {t.value(tensor, 'uint64_t')}, at, {t.address(o[2])[1]}, {blocks}, {t.line}"
    return f"const int32_t at[] = {{{places}}}; ptx::tma_load({rank}, {call});"


@instruction("setmaxnreg")
def _registers(t: Translation, f: list[str], o: list[str]) -> str:
    if int(o[0]) % 8 or not 24 <= int(o[0]) <= 256:
        raise Unknown("a number of registers that it does not take")
    return f"ptx::set_registers({t.line});"


@instruction("wgmma.fence", "wgmma.commit_group")
def _wgmma_order(t: Translation, f: list[str], o: list[str]) -> str:
    return f"ptx::wgmma_{f[1].split('_')[0]}({t.line});"


@instruction("wgmma.wait_group")
def _wgmma_wait(t: Translation, f: list[str], o: list[str]) -> str:
    return f"ptx::wgmma_wait({t.value(o[0], 'int32_t')}, {t.line});"


@instruction("wgmma.mma_async")
def _wgmma(t: Translation, f: list[str], o: list[str]) -> str:
    n, depth = (int(v) for v in f[4][len("m64n") :].split("k"))
    kind, d, in_registers = f[6], t.vector(o[0]), o[1].startswith("{")
    depths = {"tf32": 8, "f16": 16, "bf16": 16, "s8": 32, "e4m3": 32}
    transposes = 0 if depths[kind] != 16 else 1 if in_registers else 2
    if f[5] != ("s32" if kind == "s8" else "f32") or f[7] != kind or len(d) != n // 2 or depth != depths[kind]:
        raise Unknown("modifiers")
    if len(o) != (4 if kind == "s8" else 6 + transposes) or (in_registers and depth == 32):
        raise Unknown("operands")
    signs = o[4:6] or ["1", "1"]
    major = [*(["0"] if in_registers else []), *o[6:], "0", "0"]
    a = "0" if in_registers else t.value(o[1], "uint64_t")
    registers = "nullptr"
    start = f"void* const d[] = {{{', '.join('&' + t.register(v) for v in d)}}}; "
    if in_registers:
        start += f"const uint32_t a[4] = {{{', '.join(t.value(v, 'uint32_t') for v in t.vector(o[1]))}}}; "
        registers = "a"
    call = (
        f"{OPERANDS[kind]}, {n}, {t.value(o[3], 'bool')}, {int(signs[0])}, {int(signs[1])}, "
        f"{t.value(major[0], 'bool')}, {t.value(major[1], 'bool')}, {a}, {t.value(o[2], 'uint64_t')}, {registers}"
    )
    return f"{start}ptx::wgmma({{{call}}}, d, {t.line});"
