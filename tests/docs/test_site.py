"""The documentation as a site: it builds without a warning, runs its notebooks, and leaves no public name out."""

import os
import re
import subprocess
import sys

import pages

import atrousops as ao
from atrousops import data, metrics, models

REFERENCE = pages.ROOT / "docs" / "reference"
NOTEBOOKS = sorted((pages.ROOT / "docs" / "notebooks").glob("*.py"))


def described() -> list[str]:
    """What the reference's pages have, as dotted names."""
    return [name for path in REFERENCE.glob("*.md") for name in re.findall(r"^::: (\S+)$", path.read_text(), re.M)]


def test_reference_has_every_public_name_once():
    names = described()
    assert sorted(names) == sorted(set(names))
    for module in (ao.functional, ao.nn, models, data, metrics):
        assert {f"{module.__name__}.{name}" for name in module.__all__} <= {*names}
    tools = {*ao.__all__} - {*ao.nn.__all__, "__version__", "functional", "nn"}
    assert tools <= {name.rsplit(".", 1)[1] for name in names}


def test_site_builds_without_a_warning(tmp_path):
    """From the sources alone, in a place of its own; notebooks on one thread, as other tests have the others."""
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    variables = {**os.environ, "NO_MKDOCS_2_WARNING": "1", "OMP_NUM_THREADS": "1"}
    run = subprocess.run(command, cwd=pages.ROOT, env=variables, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert "WARNING" not in run.stderr
    for script in NOTEBOOKS:
        page = (tmp_path / "notebooks" / f"{script.stem}.html").read_text()
        shown = re.findall(rf'src="({script.stem}_\d+\.png)"', page)
        assert len(shown) >= 4
        assert all((tmp_path / "notebooks" / name).stat().st_size > 5000 for name in shown)
    anchors = ""
    for path in (tmp_path / "reference").glob("*.html"):
        text = path.read_text()
        anchors += text
        # Asterisks and lines of docstrings that Markdown took for its own.
        prose = re.sub(r"<(pre|code).*?</\1>", "", text[text.index("<article") : text.index("</article>")], flags=re.S)
        assert not re.findall(r"<(?:em|blockquote)>.*", prose), path.name
    assert [name for name in described() if f'id="{name}"' not in anchors] == []
