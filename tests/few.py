"""A pytest plugin: pytest -p few --few N keeps N of the tests that are left of each file, far apart in their order."""

from itertools import groupby

import pytest


def pytest_addoption(parser):
    parser.addoption("--few", type=int, default=0, metavar="N", help="so many tests of each file (0: all)")


@pytest.hookimpl(wrapper=True, tryfirst=True)  # after -m, and what conftest.py leaves out
def pytest_collection_modifyitems(config, items):
    yield
    most = config.getoption("few")
    if most <= 0:
        return
    kept = []
    for _, of_file in groupby(items, key=lambda item: item.path):
        tests = list(of_file)
        kept += tests if len(tests) <= most else [tests[i * len(tests) // most] for i in range(most)]
    config.hook.pytest_deselected(items=[item for item in items if item not in kept])
    items[:] = kept
