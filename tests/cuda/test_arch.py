"""The instruction wrappers' host bodies against what the PTX manual says, with a distinct value in every element."""

import host_cuda
import pytest
import torch

pytestmark = pytest.mark.skipif(host_cuda.problem() is not None, reason=str(host_cuda.problem()))


@pytest.fixture
def ops():
    host_cuda.load()
    return torch.ops.atrousops_host_cuda


def test_ldmatrix(ops):
    rows = torch.arange(256, dtype=torch.int16)
    got = torch.empty(32, 4, dtype=torch.int32)
    matrices = rows.view(4, 8, 8)
    for transposed in (False, True):
        ops.test_ldmatrix(rows, got, transposed)
        for lane in range(32):
            for j, m in enumerate(matrices):
                source = m.T if transposed else m
                low, high = source[lane // 4, 2 * (lane % 4) : 2 * (lane % 4) + 2].tolist()
                assert got[lane, j] == low | high << 16


def test_stmatrix_stores_what_ldmatrix_loads(ops):
    rows = torch.arange(256, dtype=torch.int16)
    registers = torch.zeros(32, 4, dtype=torch.int32)
    for lane in range(32):
        for j, m in enumerate(rows.view(4, 8, 8)):
            low, high = m[lane // 4, 2 * (lane % 4) : 2 * (lane % 4) + 2].tolist()
            registers[lane, j] = low | high << 16
    stored = torch.full((256,), -1, dtype=torch.int16)
    ops.test_stmatrix(registers, stored)
    assert torch.equal(stored, rows)


# Ties to even, both zeros, what rounds to a zero or to infinity, and what is no number.
CORNERS = [1 + 2.0**-9, 1 + 3 * 2.0**-9, 1 + 2.0**-12, -(1 + 3 * 2.0**-12), 0.0, -0.0, -1e-30, -1e-44, 3.4e38, -7e4]
CORNERS += [float("inf"), -float("inf"), float("nan"), -float("nan"), 65519.0, -1.5]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_pairs(ops, dtype):
    x = torch.tensor(CORNERS).repeat(4).view(32, 2)
    x[16:] = x[16:].flip(1)
    pairs, values = torch.zeros(32, 2, dtype=torch.int32), torch.zeros(32, 2)
    ops.test_pairs(x, pairs, values, dtype == torch.float16)
    right = x.to(dtype)
    made, at_least_zero = pairs.view(dtype).view(32, 2, 2).unbind(1)
    for got, wanted in ((made, right), (values, right.float()), (at_least_zero, right.relu())):
        assert torch.equal(got.isnan(), wanted.isnan())
        assert torch.equal(got.nan_to_num(), wanted.nan_to_num())
    assert torch.equal(made.signbit() & ~right.isnan(), right.signbit() & ~right.isnan())
    assert not (at_least_zero.signbit() & ~right.isnan()).any(), "+0 of negative numbers and of -0"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("along", [True, False], ids=["along", "across"])
@pytest.mark.parametrize("split", [False, True])
def test_product(ops, dtype, along, split):
    depth = 16 if dtype == torch.float32 else 32
    # 32 * depth different numbers, exact in 16 bits and in tf32; their products' sums are exact in fp32.
    a, b = torch.randperm(32 * depth).view(32, depth) % 211 - 100, torch.randperm(32 * depth).view(depth, 32) % 199 - 90
    a, b = a.to(dtype), b.to(dtype)
    c = torch.full((32, 32), torch.nan)
    ops.test_product(*((a, b.T.contiguous()) if along else (a.T.contiguous(), b)), c, along, split)
    assert torch.equal(c.double(), a.double() @ b.double())


@pytest.mark.parametrize("dtype", [torch.int8, torch.float8_e4m3fn])
def test_product_of_8_bits(ops, dtype):
    """Of int8 all numbers, of float8 powers of two, with sums that fp32 holds."""
    a, b = torch.randint(-128, 128, (32, 64)), torch.randint(-128, 128, (64, 32))
    if dtype != torch.int8:
        a, b = (t.sign() * 2.0 ** (t % 11 - 5) for t in (a, b))
    a, b = a.to(dtype), b.to(dtype)
    c = torch.full((32, 32), -1, dtype=torch.int32 if dtype == torch.int8 else torch.float32)
    ops.test_product(a, b.T.contiguous(), c, True, False)
    assert torch.equal(c.double(), a.double() @ b.double())


def one_product(ops, x: float, y: float, split: bool) -> float:
    a, b, c = torch.zeros(32, 16), torch.zeros(32, 16), torch.empty(32, 32)
    a[5, 3], b[9, 3] = x, y
    ops.test_product(a, b, c, True, split)
    assert c[6, 9] == 0
    return c[5, 9].item()


def test_tf32_rounds_and_split_does_not(ops):
    x, y = 1 + 2.0**-11 + 2.0**-20, 1 - 2.0**-12
    assert one_product(ops, x, 1.0, False) == 1 + 2.0**-10
    assert abs(one_product(ops, x, y, True) - x * y) <= 2.0**-22


@pytest.mark.parametrize("x", [float("inf"), -float("inf"), float("nan"), 3.4e38, -3.4028e38])
def test_split_products_of_what_is_not_finite_or_rounds_to_infinity(ops, x):
    for y in (1.0, 0.5, 1.3):
        got, right = one_product(ops, x, y, True), (torch.tensor(x) * torch.tensor(y)).item()
        assert got == pytest.approx(right, rel=1e-6, nan_ok=True)


@pytest.mark.parametrize("size", [4, 8, 16])
def test_cp_async_lands_with_its_group_and_fills_with_zero(ops, size):
    source = torch.arange(1, 4 * size + 1, dtype=torch.int8)
    for valid in (size, size // 2, 0):
        right = source.view(4, size).clone()
        right[:, valid:] = 0
        seen = torch.empty(4 * size, dtype=torch.int8)
        ops.test_cp_async(source, seen, size, 4, 0, valid)
        assert torch.equal(seen.view(4, size), right)
        ops.test_cp_async(source, seen, size, 4, 1, valid)
        assert torch.equal(seen.view(4, size)[:3], right[:3])
        assert (seen.view(4, size)[3] == -1).all(), "seen before it was waited for"
