"""An installed package works: a convolution forward and backward, and the dense CRF, against fp64 and the reference.

Run by the Python of a clean environment, with no compiler: it needs nothing but the package and torch.
"""

import torch
from torch.nn import functional as F

import atrousops as ao
from atrousops.dispatch import libraries


def convolution() -> None:
    """Within twice the error that PyTorch makes in fp32."""
    draw = torch.Generator().manual_seed(0)
    shapes = {"input": (2, 8, 33, 29), "weight": (6, 8, 3, 3), "bias": (6,)}
    tensors = {name: torch.randn(shape, generator=draw, dtype=torch.float64) for name, shape in shapes.items()}
    answers = {}
    for name, conv, dtype in (
        ("exact", F.conv2d, torch.float64),
        ("pytorch", F.conv2d, torch.float32),
        ("ours", ao.functional.conv2d, torch.float32),
    ):
        leaves = [t.to(dtype).requires_grad_() for t in tensors.values()]
        with ao.backend("cpu" if name == "ours" else None):
            y = conv(*leaves, padding=4, dilation=4)
            answers[name] = [y, *torch.autograd.grad(y.square().sum(), leaves)]
    for exact, theirs, ours in zip(answers["exact"], answers["pytorch"], answers["ours"], strict=True):
        error, bound = ((t.double() - exact).abs().max() for t in (ours, theirs))
        assert error <= 2 * bound, (tuple(exact.shape), float(error), float(bound))


def crf() -> None:
    """Ten steps of mean field, held to the readable definition in fp64."""
    draw = torch.Generator().manual_seed(1)
    scores = torch.randn(1, 3, 24, 20, generator=draw, dtype=torch.float64)
    image = 255 * torch.rand(1, 3, 24, 20, generator=draw, dtype=torch.float64)
    layer = ao.DenseCRF().double()
    found = layer(scores, image)
    with ao.backend("reference"):
        expected = layer(scores, image)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


if __name__ == "__main__":
    problems = {part.name: part.problem for part in libraries.parts if part.name in ("cpu", "_C")}
    assert not any(problems.values()), problems
    convolution()
    crf()
    print(f"atrousops {ao.__version__} from {ao.__file__} under torch {torch.__version__}")
