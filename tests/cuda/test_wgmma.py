"""wgmma's host body: operands laid out line by line as the PTX manual draws its canonical layouts."""

import host_cuda
import pytest
import torch
from test_tma import swizzle

pytestmark = pytest.mark.skipif(host_cuda.problem() is not None, reason=str(host_cuda.problem()))

TYPES = [torch.bfloat16, torch.float16, torch.float32, torch.int8, torch.float8_e4m3fn]
BYTES = TYPES[3:]
FAULTS = ["none", "no_fence", "no_proxy_fence", "no_wait", "waits_for_too_few", "overwritten_early"]
FAULTS += ["sum_written_early", "three_warps", "warps_differ", "never_waits", "fence_once", "no_line_start"]


def image(x: torch.Tensor, across: bool, mode: int) -> tuple[torch.Tensor, list[int]]:
    """An operand (rows of M or N by K) in shared memory, and [leading, stride, swizzle, step, block, steps of a block].

    `across`: elements along M or N lie side by side, not those along K.
    """
    lines = x.T if across else x
    size = x.element_size()
    # Boxes of all lines, each line a span long; without a swizzle 16 bytes long.
    span = 16 << mode
    box = lines.shape[0] * span
    boxes = lines.unflatten(1, (-1, span // size)).transpose(0, 1).contiguous()
    raw = boxes.flatten().view(torch.uint8)
    if mode:
        raw = swizzle(raw, mode)
    depth = 32 // size  # of a call, along K
    if not across:
        # Lines are rows of M or N: two chunks of 16 bytes along K are a call's.
        fields = [box, 128] if mode == 0 else [16, 8 * span]
        return raw, [*fields, mode, 32, box if mode else 2 * box, max(1, span // 32)]
    # Lines are k: a call takes 16 of them, from every box.
    fields = [128, box] if mode == 0 else [box, 8 * span]
    return raw, [*fields, mode, 0, depth * span, 1]


def fragment_words(x: torch.Tensor) -> torch.Tensor:
    """A (64, K) as the words of 128 threads in registers, one step of 32 bytes after the other."""
    thread, i = torch.arange(128)[:, None], torch.arange(4)
    row = 16 * (thread // 32) + thread % 32 // 4 + 8 * (i % 2)
    steps = x.contiguous().view(torch.int32).split(8, 1)
    # A step's row is 8 words, of which a thread has every fourth.
    return torch.cat([step[row, thread % 4 + 4 * (i // 2)].flatten() for step in steps]).view(torch.uint8)


def matrix(out: torch.Tensor, n: int) -> torch.Tensor:
    """D (64, N) from 128 threads' registers, by the manual's inverse map."""
    row, column = torch.arange(64)[:, None], torch.arange(n)
    thread = 32 * (row // 16) + 4 * (row % 8) + column // 2 % 4
    return out[thread, 4 * (column // 8) + 2 * (row // 8 % 2) + column % 2]


def numbers(rows: int, depth: int, dtype: torch.dtype, most: int) -> torch.Tensor:
    """Different neighbours in every direction; products and their sums are exact in fp32."""
    return (torch.arange(rows * depth).view(rows, depth) * 37 % (2 * most + 1) - most).to(dtype)


def product(dtype, n, depth=64, across=(False, False), modes=(3, 3), registers=False, start=0.0, fault="none"):
    """What the kernel makes of it, and A B^T + start."""
    host_cuda.load()
    # Whole numbers up to 16 are exact in e4m3, and sums of fewer than 14 bits.
    most = 8 if dtype == torch.float8_e4m3fn else 100
    a, b = numbers(64, depth, dtype, most), numbers(n, depth, dtype, most - 3)
    raw_a, fields_a = (fragment_words(a), [0] * 5 + [1]) if registers else image(a, across[0], modes[0])
    raw_b, fields_b = image(b, across[1], modes[1])
    sum_type = torch.int32 if dtype == torch.int8 else torch.float32
    out = torch.full((128, n // 2), -1 if dtype == torch.int8 else torch.nan, dtype=sum_type)
    steps = depth * a.element_size() // 32
    args = (TYPES.index(dtype), n, *across, registers, steps, start, FAULTS.index(fault), out)
    torch.ops.atrousops_host_cuda.test_wgmma(raw_a, fields_a, raw_b, fields_b, *args)
    return matrix(out, n), (a.double() @ b.double().T + start).to(sum_type)


# Type, width and what else of `product`.
PRODUCTS = {
    "fp16": (torch.float16, 64, {}),
    "sums that go on from what is there": (torch.bfloat16, 64, {"start": 5.0}),
    "one step": (torch.bfloat16, 64, {"depth": 16, "modes": (1, 1)}),
    "A from registers": (torch.bfloat16, 64, {"registers": True}),
    "A from registers, wide": (torch.bfloat16, 256, {"registers": True}),
    "A from registers, B across": (torch.bfloat16, 64, {"registers": True, "across": (False, True)}),
    "A from registers in fp16": (torch.float16, 64, {"registers": True, "across": (False, True)}),
    "A from registers in tf32": (torch.float32, 64, {"registers": True}),
    **{f"{n} columns": (torch.bfloat16, n, {}) for n in (32, 64, 96, 128, 192, 256)},
    **{
        f"{n} columns of {dtype}, swizzle {m}": (dtype, n, {"depth": 128, "modes": (m, 3 - m)})
        for dtype in BYTES
        for n in (64, 128)
        for m in range(4)
    },
    "256 columns of int8": (torch.int8, 256, {"depth": 128}),
    **{f"{n} columns in tf32, swizzle {m}": (torch.float32, n, {"modes": (m, m)}) for n in (64, 256) for m in range(4)},
}


@pytest.mark.parametrize("name", PRODUCTS)
def test_product(name):
    dtype, n, options = PRODUCTS[name]
    assert torch.equal(*product(dtype, n, **options))


@pytest.mark.parametrize("dtype", BYTES)
def test_products_of_bytes(dtype):
    """Sums that go on from what is there, and one step of 32."""
    assert torch.equal(*product(dtype, 64, depth=128, start=-5.0))
    assert torch.equal(*product(dtype, 64, depth=32, modes=(1, 1)))


def test_sums_of_int8_wrap_around():
    ours, _ = product(torch.int8, 64, depth=128, start=2.0**31 - 128)
    a, b = numbers(64, 128, torch.int8, 100), numbers(64, 128, torch.int8, 97)
    sums = a.long() @ b.long().T + 2**31 - 128
    assert (sums >= 2**31).any()
    assert torch.equal(ours, ((sums + 2**31) % 2**32 - 2**31).int())


def test_sums_of_e4m3_keep_14_bits():
    """256 * 32 = 2^13: half is below the last bit, and cut off; so is it where that product was there before."""
    ones = torch.zeros(64, 64)
    ones[:, [0, 33]] = 0.5
    for first in (0, 1):
        a = ones.clone()
        a[:, first] = 256
        b = torch.ones(64, 64)
        b[:, first] = 32
        raw, fields = zip(*(image(t.to(torch.float8_e4m3fn), False, 2) for t in (a, b)))
        out = torch.full((128, 32), torch.nan)
        torch.ops.atrousops_host_cuda.test_wgmma(
            raw[0], fields[0], raw[1], fields[1], 4, 64, False, False, False, 2, 0.0, 0, out
        )
        assert (out == 2**13).all()


@pytest.mark.parametrize("across", [(False, False), (False, True), (True, False), (True, True)])
@pytest.mark.parametrize("mode", [0, 1, 2, 3])
def test_layouts(across, mode):
    for options in ({"modes": (mode, 3 - mode)}, {"modes": (mode, mode), "depth": 32 if mode < 3 else 128}):
        assert torch.equal(*product(torch.bfloat16, 64, across=across, **options))


@pytest.mark.parametrize("mode", [0, 1, 2, 3])
def test_wide_operands_across(mode):
    assert torch.equal(*product(torch.bfloat16, 256, across=(False, True), modes=(3, mode)))
    assert torch.equal(*product(torch.bfloat16, 128, across=(False, True), modes=(mode, mode)))
    assert torch.equal(*product(torch.bfloat16, 128, across=(True, True), modes=(3, mode)))
    assert torch.equal(*product(torch.float16, 128, across=(True, True), modes=(mode, 3)))


def test_a_swizzle_that_the_descriptor_does_not_name_is_another_matrix():
    host_cuda.load()
    a, b = numbers(64, 64, torch.bfloat16, 100), numbers(64, 64, torch.bfloat16, 97)
    raw_a, fields = image(a, False, 3)
    raw_b, _ = image(b, False, 0)
    out = torch.full((128, 32), torch.nan)
    torch.ops.atrousops_host_cuda.test_wgmma(raw_a, fields, raw_b, fields, 0, 64, False, False, False, 4, 0.0, 0, out)
    assert not torch.equal(matrix(out, 64), (a.double() @ b.double().T).float())


@pytest.mark.parametrize("fault", ["no_wait", "waits_for_too_few"])
def test_sums_must_be_waited_for(fault):
    assert product(torch.bfloat16, 64, fault=fault)[0].isnan().all()


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("no_fence", "no wgmma.fence since these sums were last waited for"),
        ("fence_once", "no wgmma.fence since these sums were last waited for"),
        ("no_proxy_fence", "wgmma: shared memory that it reads was stored to, and no fence.proxy.async followed"),
        ("overwritten_early", "an operand was overwritten while a product was under way"),
        ("sum_written_early", "a sum was written while its product was under way"),
        ("three_warps", "not all four warps of a warpgroup made the same calls"),
        ("warps_differ", "the warps of a warpgroup call with different operands"),
        ("never_waits", "the block ended with products under way that nobody waited for"),
        ("no_line_start", "an operand begins in the midst of a swizzle pattern"),
    ],
)
def test_faults_are_found(fault, words):
    with pytest.raises(RuntimeError, match=words):
        product(torch.bfloat16, 64, fault=fault)
    assert torch.equal(*product(torch.bfloat16, 64))


# Tiles at shared address 1024, worked by hand: swizzle, leading, stride, bytes to go on; the descriptor.
DESCRIPTORS = [
    (3, 16, 1024, 0, 0x4000004000010040),
    (3, 16, 1024, 96, 0x4000004000010046),
    (2, 16, 512, 0, 0x8000002000010040),
    (1, 16, 256, 2048, 0xC0000010000100C0),
    (0, 1024, 128, 0, 0x0000000800400040),
    (3, 8192, 1024, 2048, 0x40000040020000C0),
    (0, 128, 1024, 256, 0x0000004000080050),
]


@pytest.mark.parametrize(("mode", "leading", "stride", "advance", "right"), DESCRIPTORS)
def test_descriptors(mode, leading, stride, advance, right):
    host_cuda.load()
    out = torch.zeros(3, dtype=torch.int64)
    torch.ops.atrousops_host_cuda.test_wgmma_descriptor(mode, leading, stride, advance, 64, out)
    assert out[0].item() % 2**64 == right
    if mode == 3:
        assert out[1].item() == 0x4000004000010040
        assert out[2].item() == 0x4000004002000040
