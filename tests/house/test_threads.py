"""Operators called from several Python threads at once give the bits that they give alone."""

from concurrent.futures import ThreadPoolExecutor

import samples
import torch


def test_concurrent_calls_give_the_same_bits():
    alone = samples.all_results()
    # Layers seed the global generator to draw their weights, so only functions run side by side.
    names = [name for name in samples.FUNCTIONS if name in alone] * 6
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(samples.call, names))
    for name, result in zip(names, results):
        assert all(torch.equal(a, b) for a, b in zip(result, alone[name], strict=True)), name
