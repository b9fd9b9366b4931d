"""The translator: every kernel of the library, and what it does with what it does not know."""

import ctypes

import ptx_build
import pytest
import torch
from ptx_parse import Unknown, kernels
from ptx_translate import Translation

pytestmark = pytest.mark.skipif(ptx_build.problem() is not None, reason=str(ptx_build.problem()))

ENTRY = ".visible .entry k(\n\t.param .u64 k_param_0\n)\n{{\n\t.reg .b32 %r<9>;\n\t.reg .b64 %rd<9>;\n{}\n}}\n"


def translated(body: str) -> str:
    (kernel,) = kernels(ENTRY.format(body))
    return Translation(kernel, "k.ptx").translated()


def test_every_kernel_is_translated():
    known = ptx_build.all_kernels()
    assert len(known) > 250
    for file, kernel in known.values():
        assert f"ptx_{kernel.name}(void* const* args)" in Translation(kernel, file).translated()


def test_a_kernel_ends_where_its_brace_does():
    """CUB's inline assembly closes a scope at a line's beginning, and what follows is the kernel's too."""
    (kernel,) = kernels(ENTRY.format("\t{\n    .reg .pred p;\n}\n\tmov.u32 %r1, 7;\n\tret;"))
    assert kernel.body.endswith("ret;")
    assert "%r1, 7" in kernel.body


@pytest.mark.parametrize(
    "body",
    [
        "\ttcgen05.fence::before_thread_sync;",
        "\tsin.approx.f32 %r1, %r2;",
        "\tadd.sat.s32 %r1, %r2, %r3;",
        "\tld.shared.v2.weak.u32 {%r1, %r2}, [%r3];",
        "\tcp.async.bulk.commit_group;",
        "\tld.param.u32 %r1, [k_param_0+8];",
    ],
)
def test_what_is_unknown_is_named(body):
    name = body.split()[0].rstrip(";")
    with pytest.raises(Unknown, match=rf"k\.ptx:7: {name}"):
        translated(body)


def run(body: str, value: int) -> int:
    """One thread: %r1 is the argument's first word, and what %r2 holds at the end is returned."""
    text = translated(
        f"\tld.param.u64 %rd1, [k_param_0];\n\tld.global.u32 %r1, [%rd1];\n{body}\n\tst.global.u32 [%rd1], %r2;\n\tret;"
    )
    (kernel,) = kernels(ENTRY.format(""))
    made = ptx_build.compiled_text(text)
    ptx_build.add(made)
    words = torch.tensor([value, 0], dtype=torch.int64)
    pointer = ctypes.c_uint64(words.data_ptr())
    args = (ctypes.c_void_p * 1)(ctypes.addressof(pointer))
    machine = ptx_build.machine()
    one = ptx_build.Dim3(1, 1, 1)
    assert machine.ptx_execute(kernel.name.encode(), one, one, 0, 1, args) == 0, machine.ptx_error()
    return int(words[0]) & 0xFFFFFFFF


@pytest.mark.parametrize(
    ("body", "value", "right"),
    [
        ("\tbmsk.clamp.b32 %r2, %r1, 3;", 4, 0x70),
        ("\tbmsk.clamp.b32 %r2, %r1, 9;", 30, 0xC0000000),
        ("\tbrev.b32 %r2, %r1;", 1, 0x80000000),
        ("\tshl.b32 %r2, %r1, 32;", 1, 0),
        ("\tshr.s32 %r2, %r1, 40;", 0x80000000, 0xFFFFFFFF),
        ("\tdiv.s32 %r2, %r1, -1;", 0x80000000, 0x80000000),
        ("\tprmt.b32 %r2, %r1, 0, 0x0123;", 0x11223344, 0x44332211),
        ("\tbfi.b32 %r2, %r1, 0, 6, 26;", 0xFFFFFFFF, 0xFFFFFFC0),
        ("\tmul.hi.s32 %r2, %r1, 1431655766;", 9, 3),
        ("\tclz.b32 %r2, %r1;", 1, 31),
        ("\tcvt.rna.tf32.f32 %r2, 0f3F801000;", 0, 0x3F802000),
        # The first operand is the high half; 1, -1, -0 and NaN.
        ("\tcvt.rn.relu.bf16x2.f32 %r2, 0f3F800000, 0fBF800000;", 0, 0x3F800000),
        ("\tcvt.rn.relu.bf16x2.f32 %r2, 0f80000000, 0f7FC00000;", 0, 0x00007FFF),
        ("\tcvt.rn.relu.f16x2.f32 %r2, 0fBF800000, 0f3F800000;", 0, 0x00003C00),
        ("\tcvt.rn.bf16x2.f32 %r2, 0fBF800000, 0f3F800000;", 0, 0xBF803F80),
    ],
)
def test_arithmetic(body, value, right):
    assert run(body, value) == right
