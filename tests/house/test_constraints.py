"""The releases in constraints.txt can be installed on every Python that they are named for."""

from importlib.metadata import PackageNotFoundError, metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

PINS = [Requirement(line) for line in (Path(__file__).parents[2] / "constraints.txt").read_text().split("\n") if line]


@pytest.mark.parametrize("version", ["3.10.0", "3.11.0", "3.11.5", "3.12.0", "3.13.0", "3.14.0"])
def test_each_release_serves_the_first_python_of_its_range(version):
    """pip looks for minutes where none does: one release began at 3.11.5, and Debian 12 has 3.11.2."""
    python = {"python_version": version.rpartition(".")[0], "python_full_version": version}
    wrong = {}
    for pin in PINS:
        if pin.marker is not None and not pin.marker.evaluate(python):
            continue
        try:
            found = metadata(pin.name)
        except PackageNotFoundError:
            continue
        if found["Version"] in pin.specifier and version not in SpecifierSet(found["Requires-Python"] or ""):
            wrong[str(pin)] = found["Requires-Python"]
    assert wrong == {}
