"""TMA's host body: boxes worked out element by element from the PTX manual's words and its swizzle tables."""

import itertools
import re

import host_cuda
import pytest
import torch

pytestmark = pytest.mark.skipif(host_cuda.problem() is not None, reason=str(host_cuda.problem()))

FAULTS = ["none", "no_wait", "wrong_parity", "misaligned", "no_fence", "ends_early", "overwritten_early"]
FAULTS += ["read_back_early", "waits_for_too_few"]
# Where the manual's tables put the 16-byte chunks of consecutive 128-byte lines, which begin again after the last line.
SWIZZLES = {
    0: ["01234567"],
    1: ["01234567", "10325476"],
    2: ["01234567", "10325476", "23016745", "32107654"],
    3: ["01234567", "10325476", "23016745", "32107654", "45670123", "54761032", "67452301", "76543210"],
}


def swizzle(linear: torch.Tensor, mode: int) -> torch.Tensor:
    """Bytes as they lie, from bytes in order; whole lines of 128."""
    lines = linear.view(-1, 8, 16).clone()
    for i, line in enumerate(linear.view(-1, 8, 16)):
        table = SWIZZLES[mode][i % len(SWIZZLES[mode])]
        for chunk, place in enumerate(table):
            lines[i, int(place)] = line[chunk]
    return lines.flatten()


def box_of(x: torch.Tensor, at: list[int], box: list[int], steps: list[int]) -> torch.Tensor:
    """The box, dimension 0 fastest; x has the innermost dimension last, the other arguments have it first."""
    out = []
    ranges = [range(a, a + b, s) for a, b, s in zip(at, box, steps)][::-1]
    for place in itertools.product(*ranges):
        inside = all(0 <= i < n for i, n in zip(place, x.shape))
        out.append(x[place] if inside else torch.zeros((), dtype=x.dtype))
    return torch.stack(out)


def geometry(x: torch.Tensor) -> tuple[list[int], list[int]]:
    return list(x.shape)[::-1], [s * x.element_size() for s in x.stride()][::-1]


def load(x, at, box, steps=None, mode=0, tf32=False, expected=None, fault="none") -> torch.Tensor:
    """Shared memory's bytes."""
    host_cuda.load()
    steps = steps or [1] * len(box)
    extents = [box[0], *(-(-b // s) for b, s in zip(box[1:], steps[1:]))]
    size = x.element_size() * torch.Size(extents).numel()
    out = torch.zeros(size, dtype=torch.uint8)
    args = (*geometry(x), box, steps, at, mode, tf32, size if expected is None else expected, FAULTS.index(fault), out)
    torch.ops.atrousops_host_cuda.test_tma_load(x, *args)
    return out


def numbers(*shape: int, dtype=torch.bfloat16) -> torch.Tensor:
    """Every element another one, none of them 0."""
    n = torch.Size(shape).numel()
    words = torch.arange(1, n + 1, dtype=torch.int16 if dtype.itemsize == 2 else torch.int32)
    return words.view(dtype).view(shape)


# Shape (innermost last); coordinates, box and element strides (innermost first); swizzle.
CASES = {
    "2-D, one line a row": ((20, 64), [0, 3], [64, 16], [1, 1], 3),
    "3-D weights: one tap, rows beyond the last": ((9, 5, 64), [0, 2, 4], [64, 1, 8], [1, 1, 1], 3),
    "4-D, begins outside, 64-byte lines": ((2, 5, 6, 32), [0, -1, -2, 0], [32, 4, 4, 1], [1] * 4, 2),
    "4-D, hangs over on every side": ((2, 3, 3, 72), [64, -1, -1, -1], [64, 5, 5, 4], [1] * 4, 3),
    "4-D, strided: every second pixel": ((1, 9, 9, 64), [0, -1, -1, 0], [64, 8, 8, 1], [1, 2, 2, 1], 3),
    "4-D, strided by 3, extents rounded up": ((1, 9, 9, 16), [0, 1, 0, 0], [16, 7, 8, 2], [1, 3, 2, 1], 1),
    "5-D, volume": ((2, 3, 4, 4, 32), [0, 1, -1, -1, 1], [32, 4, 2, 4, 1], [1] * 5, 2),
    "5-D, 32-byte lines": ((1, 2, 4, 4, 16), [0, 0, 0, 0, 0], [16, 4, 4, 1, 1], [1] * 5, 1),
    "no swizzle, channels that are no whole line": ((4, 8, 24), [8, 0, 0], [24, 4, 4], [1] * 3, 0),
    "wholly outside": ((4, 4, 64), [0, -9, 0], [64, 4, 4], [1] * 3, 3),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_load(case, dtype):
    shape, at, box, steps, mode = CASES[case]
    x = numbers(*shape, dtype=dtype)
    right = box_of(x, at, box, steps)
    assert torch.equal(load(x, at, box, steps, mode), swizzle(right.view(torch.uint8), mode))
    assert case == "wholly outside" or right.view(torch.int16).any()


def test_load_of_fp32_and_of_a_view():
    x = numbers(4, 6, 64, dtype=torch.float32)[:, 1:5, :32]
    right = box_of(x, [0, -1, 1], [32, 4, 4], [1] * 3)
    assert torch.equal(load(x, [0, -1, 1], [32, 4, 4], mode=3), swizzle(right.view(torch.uint8), 3))


def test_tf32_is_rounded_to_nearest_even():
    ulp = 2.0**-10
    x = torch.tensor([1 + ulp / 2, 1 + 3 * ulp / 2, 1 + 0.51 * ulp, float("inf")]).repeat(8, 8)
    got = load(x, [0, 0], [32, 8], mode=0, tf32=True).view(torch.float32)[:4]
    assert got.tolist() == [1, 1 + 2 * ulp, 1 + ulp, float("inf")]


def test_data_must_be_waited_for():
    x = numbers(8, 64)
    assert (load(x, [0, 0], [64, 8], mode=3, fault="no_wait") == 255).all()


def test_another_swizzle_is_another_layout():
    x = numbers(8, 64)
    assert not torch.equal(load(x, [0, 0], [64, 8], mode=3), load(x, [0, 0], [64, 8], mode=0))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"expected": 1023}, "0 of 1 arrivals and -1 bytes to come"),
        ({"expected": 2048}, "0 of 1 arrivals and 1024 bytes to come"),
        ({"fault": "wrong_parity"}, "no thread can go on: .* for parity 1 of mbarrier .* is in phase 1"),
        ({"fault": "misaligned"}, "with this swizzle shared memory has to be aligned to 1024 bytes"),
        ({"fault": "misaligned", "mode": 0}, "with this swizzle shared memory has to be aligned to 128 bytes"),
        ({"fault": "no_fence"}, "no fence.mbarrier_init after the mbarrier.init"),
        ({"box": [32, 8]}, "the box has 64 bytes along dimension 0, but this swizzle takes rows of 128"),
        ({"box": [4, 8], "mode": 0}, "the box has 8 bytes along dimension 0; a multiple of 16"),
        ({"box": [64, 257]}, "dimension 1: a box of 257; 1 to 256 will do"),
        ({"steps": [1, 9]}, "dimension 1: an element stride of 9; 1 to 8 will do"),
        ({"x": numbers(8, 65)[:, :64]}, "dimension 1: a stride of 130 bytes; a multiple of 16 below 2\\^40 will do"),
        ({"x": numbers(8, 72)[:, 1:65]}, "the tensor's address is not a multiple of 16"),
    ],
)
def test_rules(arguments, words):
    given = {"x": numbers(8, 64), "at": [0, 0], "box": [64, 8], "mode": 3} | arguments
    with pytest.raises(RuntimeError, match=words):
        load(**given)


def store(shape, at, box, mode=0, fault="none") -> tuple[torch.Tensor, torch.Tensor, int]:
    """The tensor, what it should be, and what the thread saw of its first byte."""
    host_cuda.load()
    out, right = torch.zeros(shape, dtype=torch.bfloat16), torch.zeros(shape, dtype=torch.bfloat16)
    x = numbers(*box[::-1])
    for place in itertools.product(*(range(b) for b in box[::-1])):
        to = tuple(p + a for p, a in zip(place, at[::-1]))
        if all(i < n for i, n in zip(to, shape)):
            right[to] = x[place]
    seen = torch.zeros(1, dtype=torch.uint8)
    raw = swizzle(x.flatten().view(torch.uint8), mode)
    args = (*geometry(out), box, at, mode, FAULTS.index(fault), out, seen)
    torch.ops.atrousops_host_cuda.test_tma_store(raw, *args)
    return out, right, int(seen)


@pytest.mark.parametrize(
    ("shape", "at", "box", "mode"),
    [
        ((16, 64), [0, 0], [64, 16], 3),
        ((3, 5, 48), [32, 2, 1], [32, 4, 4], 2),
        ((2, 3, 4, 16), [0, 1, 0, 1], [16, 4, 4, 2], 1),
        ((2, 2, 3, 4, 40), [24, 0, 0, 1, 0], [32, 2, 2, 2, 2], 0),
    ],
)
def test_store_drops_what_hangs_over(shape, at, box, mode):
    out, right, _ = store(shape, at, box, mode)
    assert torch.equal(out.view(torch.int16), right.view(torch.int16))


def test_stored_data_is_there_when_waited_for():
    assert store((16, 64), [0, 0], [64, 16])[2] == 1
    assert store((16, 64), [0, 0], [64, 16], fault="read_back_early")[2] == 0


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("no_fence", "was stored to, and no fence.proxy.async followed"),
        ("ends_early", "the block ended before its bulk stores had read its shared memory"),
        ("overwritten_early", "shared memory was overwritten before the store had read it"),
        ("waits_for_too_few", "shared memory was overwritten before the store had read it"),
        ("misaligned", "has to be aligned to 1024 bytes"),
    ],
)
def test_faults_of_stores_are_found(fault, words):
    with pytest.raises(RuntimeError, match=words) as error:
        store((16, 64), [0, 0], [64, 16], mode=3, fault=fault)
    assert re.search("store_kernel<2>", str(error.value))


def test_a_store_begins_inside():
    with pytest.raises(RuntimeError, match="begins at no negative coordinate"):
        store((16, 64), [0, -1], [64, 16])
