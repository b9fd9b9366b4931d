import pytest
import torch

import atrousops.functional as A
from atrousops import _library, reference

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("channels_last", [False, True])
def test_matches_reference(dtype, channels_last, backend):
    tiny = torch.finfo(dtype).smallest_normal
    # One subnormal, the smallest normal, signed zero, NaN and infinities among ordinary values.
    x = torch.randn(2, 3, 5, 7, dtype=dtype)
    x.view(-1)[:7] = torch.tensor([tiny / 2, tiny, -tiny / 2, -0.0, float("nan"), float("inf"), -tiny], dtype=dtype)
    if channels_last:
        x = x.to(memory_format=torch.channels_last)
    before = x.clone()
    y = A.flush_subnormals(x)
    torch.testing.assert_close(y, reference.flush_subnormals(x), rtol=0, atol=0, equal_nan=True)
    assert y.is_contiguous(memory_format=torch.channels_last) == channels_last
    torch.testing.assert_close(x, before, rtol=0, atol=0, equal_nan=True)


def test_offset_pointers(backend):
    """Packs of 16 bytes begin anywhere but at their boundary; the last one is not full."""
    for dtype in DTYPES:
        x = torch.randn(1000).to(dtype)
        x[::3] = torch.finfo(dtype).smallest_normal / 2
        for begin in range(5):
            y = A.flush_subnormals(x[begin:])
            torch.testing.assert_close(y, reference.flush_subnormals(x[begin:]), rtol=0, atol=0)


@pytest.mark.skipif(not _library.has_operators, reason="the CPU library is not built")
@pytest.mark.parametrize("dtype", DTYPES)
def test_has_subnormals(dtype):
    has = torch.ops.atrousops.has_subnormals
    tiny, x = torch.finfo(dtype).smallest_normal, torch.randn(1000).to(dtype)
    # Neighbours of a subnormal on every side: they are none.
    x[:6] = torch.tensor([0.0, -0.0, tiny, -tiny, float("nan"), float("inf")], dtype=dtype)
    assert not has(x, 1)
    for place in (0, 63, 64, 999):
        y = x.clone()
        y[place] = -tiny / 2
        assert has(y, 1)
    assert not has(y, 16)  # of sixteen blocks the first is looked at
    assert has(y[::3], 1)  # 999 is one of them
    assert not has(y[::2], 1)
    torch.library.opcheck(has.default, (x, 1))


def test_opcheck(backend):
    torch.library.opcheck(torch.ops.atrousops.flush_subnormals.default, (torch.randn(3, 4, requires_grad=True),))


def test_rejects_integers():
    with pytest.raises(TypeError, match="input must be float64"):
        A.flush_subnormals(torch.arange(3))
