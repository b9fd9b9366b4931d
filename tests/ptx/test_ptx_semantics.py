"""Two sets of semantics, written apart, for what an instruction does: csrc/cuda/arch's emulation of the source, and the
machine's, which runs nvcc's PTX of the same kernel. They agree on random operands, bit for bit."""

from collections.abc import Callable

import host_cuda
import ptx_build
import ptx_launch
import pytest
import torch

PROBLEM = host_cuda.problem() or ptx_build.problem()
pytestmark = pytest.mark.skipif(PROBLEM is not None, reason=str(PROBLEM))
BF16, HALF, FLOAT = torch.bfloat16, torch.float16, torch.float32


def whole(*shape: int, seed: int, most: int = 8) -> torch.Tensor:
    """Whole numbers: every sum of products is exact in fp32, whatever its order."""
    return torch.randint(-most, most + 1, shape, generator=torch.Generator().manual_seed(seed))


def random_int(low: int, high: int, seed: int) -> int:
    return int(torch.randint(low, high, (), generator=torch.Generator().manual_seed(seed)))


def assert_equal(run: Callable[[], torch.Tensor]) -> None:
    """From source and from PTX."""
    host_cuda.load()
    from_source = run()
    with ptx_launch.ptx():
        from_ptx = run()
    assert torch.equal(from_source.view(torch.uint8), from_ptx.view(torch.uint8))
    assert from_source.count_nonzero() > 0


def ops():
    return torch.ops.atrousops_host_cuda


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("transposed", [False, True])
def test_ldmatrix(seed, transposed):
    rows = whole(32, 8, seed=seed, most=32000).to(torch.int16)

    def run():
        got = torch.zeros(32, 4, dtype=torch.int32)
        ops().test_ldmatrix(rows, got, transposed)
        return got

    assert_equal(run)


def test_stmatrix():
    registers = whole(32, 4, seed=0, most=2**30).to(torch.int32)

    def run():
        got = torch.zeros(256, dtype=torch.int16)
        ops().test_stmatrix(registers, got)
        return got

    assert_equal(run)


@pytest.mark.parametrize("half", [False, True])
def test_pairs(half):
    """NaN is left out: PTX has one of its own for 16 bits."""
    x = torch.randn(32, 2, generator=torch.Generator().manual_seed(0)) * 10.0 ** torch.arange(-16, 16).view(32, 1)
    x[0], x[1] = torch.tensor([0.0, -0.0]), torch.tensor([torch.inf, -torch.inf])

    def run():
        pairs, values = torch.zeros(32, 2, dtype=torch.int32), torch.zeros(32, 2)
        ops().test_pairs(x, pairs, values, half)
        return torch.cat([pairs, values.view(torch.int32)], 1)

    assert_equal(run)


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("along", [False, True])
@pytest.mark.parametrize(("dtype", "split"), [(BF16, False), (HALF, False), (FLOAT, False), (FLOAT, True)])
def test_mma(dtype, split, along, seed):
    k = 64 // dtype.itemsize
    shape = (32, k) if along else (k, 32)
    a, b = (whole(*shape, seed=2 * seed + i).to(dtype) for i in (0, 1))

    def run():
        c = torch.zeros(32, 32)
        ops().test_product(a, b, c, along, split)
        return c

    assert_equal(run)


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("dtype", [torch.int8, torch.float8_e4m3fn])
def test_mma_of_8_bits(dtype, seed):
    """Of int8 all numbers, of float8 what has few bits: sums are exact."""
    a, b = (whole(32, 64, seed=2 * seed + i, most=127 if dtype == torch.int8 else 16).to(dtype) for i in (0, 1))

    def run():
        c = torch.zeros(32, 32, dtype=torch.int32 if dtype == torch.int8 else torch.float32)
        ops().test_product(a, b, c, True, False)
        return c

    assert_equal(run)


@pytest.mark.parametrize("size", [4, 8, 16])
@pytest.mark.parametrize("pending", [0, 1])
def test_cp_async(size, pending):
    """The copy that was not waited for is poison in both."""
    data = whole(64, seed=size, most=127).to(torch.int8).view(torch.uint8)

    def run():
        seen = torch.zeros(3 * size, dtype=torch.uint8)
        ops().test_cp_async(data, seen, size, 3, pending, size // 2)
        return seen

    assert_equal(run)


@pytest.mark.parametrize("mode", [0, 1, 2, 3])
@pytest.mark.parametrize("seed", range(4))
def test_tma_boxes(mode, seed):
    """Anywhere on and around the tensor, with steps."""
    rank = 2 + seed % 4
    sizes = [24, 5, 4, 3, 2][:rank]
    x = whole(*sizes[::-1], seed=seed, most=30000).to(torch.int16).view(BF16)
    box = [8 << mode, 4, 3, 2, 2][:rank]
    steps = [1, *(random_int(1, 3, 7 * seed + d) for d in range(1, rank))]
    at = [random_int(-3, sizes[d], 31 * seed + d) for d in range(rank)]
    extents = [box[0], *(-(-b // s) for b, s in zip(box[1:], steps[1:], strict=True))]
    size = 2 * torch.Size(extents).numel()
    strides = [2 * s for s in x.stride()][::-1]

    def run():
        # A byte that no box leaves as it is, so that an empty box shows too.
        out = torch.full((size + 1,), 77, dtype=torch.uint8)
        args = (sizes, strides, box, steps, at, mode, False, size, 0, out[:size])
        ops().test_tma_load(x, *args)
        return out

    assert_equal(run)


def test_tma_rounds_to_tf32():
    x = torch.randn(8, 32, generator=torch.Generator().manual_seed(0))

    def run():
        out = torch.zeros(8 * 128, dtype=torch.uint8)
        ops().test_tma_load(x, [32, 8], [4, 128], [32, 8], [1, 1], [0, 0], 3, True, 1024, 0, out)
        return out

    assert_equal(run)


# type (0 bf16, 1 fp16, 2 tf32, 3 int8, 4 e4m3), columns, whether A and B lie across K, A from registers.
CALLS = [(0, n, False, False, False) for n in (32, 64, 96, 128, 192, 256)]
CALLS += [(0, 64, False, True, False), (0, 256, False, True, False), (0, 64, True, False, False)]
CALLS += [(0, 64, True, True, False), (0, 128, True, True, False), (0, 64, False, False, True)]
CALLS += [(0, 64, False, True, True), (1, 64, False, False, False), (1, 128, True, True, False)]
CALLS += [(2, 64, False, False, False), (2, 256, False, False, False), (2, 64, False, False, True)]
CALLS += [(kind, n, False, False, False) for kind in (3, 4) for n in (64, 128)] + [(3, 256, False, False, False)]


@pytest.mark.parametrize("mode", [0, 1, 2, 3])
@pytest.mark.parametrize(("kind", "n", "a_across", "b_across", "registers"), CALLS)
def test_wgmma_and_its_descriptors(kind, n, a_across, b_across, registers, mode):
    """Random leading and stride offsets over random memory: wherever a descriptor leads, both read the same."""
    dtype = (BF16, HALF, FLOAT, torch.int8, torch.float8_e4m3fn)[kind]
    seed = 100 * n + 10 * kind + mode
    raw = [whole(64 << 10, seed=seed + i).to(dtype).view(torch.uint8)[: 64 << 10] for i in (0, 1)]
    if registers:
        raw[0] = raw[0][: 2 * 128 * 16]

    def fields(i: int) -> list[int]:
        # The farthest element: 32 groups of rows, or 16 of lines, by the largest offset, stays within the memory.
        leading, stride = (16 * random_int(1, 96, seed + 7 * i + j) for j in (1, 2))
        # Each step begins at a pattern's beginning.
        return [leading, stride, mode, 0, 1024, 1]

    def run():
        out = torch.full((128, n // 2), -1, dtype=torch.int32 if kind == 3 else FLOAT)
        a = [0] * 5 + [1] if registers else fields(0)
        args = (kind, n, a_across, b_across, registers, 2, 3.0, 0, out)
        ops().test_wgmma(raw[0], a, raw[1], fields(1), *args)
        return out

    assert_equal(run)
