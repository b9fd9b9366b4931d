"""Where Triton's interpreter cannot run the kernels, a run says why and leaves them out."""

import interpreted
import pytest


@pytest.mark.parametrize(
    ("triton", "numpy", "runs"),
    [("3.6.0", "2.4.6", False), ("3.6.0", "2.3.5", True), ("3.8.0", "2.4.6", True), ("3.6.0+git1", "2.10.0", False)],
)
def test_an_interpreter_too_old_for_numpy_is_named(triton, numpy, runs):
    said = interpreted.too_new(triton, numpy)
    assert said is None if runs else "pip install 'numpy<2.4'" in said
