"""Every code block of the README and of docs/ runs, or says why not."""

from pathlib import Path

import numpy as np
import pages
import pytest
import torch

from atrousops.dispatch import choice, measured

ALL = [block for path in pages.PAGES for block in pages.blocks(path)]
# They have tests of their own, which look at more.
ELSEWHERE = {
    "docs/own-data.md": "tests/cli/test_own_data.py",
    "docs/prediction.md": "tests/cli/test_prediction_page.py",
}
RUNNING = sorted({block.page for block in ALL if block.kind in ("python", "sh", "yaml")} - {*ELSEWHERE})
LEFT_OUT = [block for block in ALL if block.reason]


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """A folder to work in; what a page measures is forgotten."""
    pages.furnish(tmp_path)
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    measured.forget()
    choice.forget()


def test_tests_of_their_own():
    there = {page: test for page, test in ELSEWHERE.items() if (pages.ROOT / page).exists()}
    assert there
    assert all((pages.ROOT / test).exists() for test in there.values())


@pytest.mark.parametrize("page", [str(path.relative_to(pages.ROOT)) for path in pages.PAGES])
def test_every_fence_is_a_block_of_a_known_language(page):
    """One without a language, or behind spaces, would not run."""
    text = (pages.ROOT / page).read_text()
    found = pages.blocks(pages.ROOT / page)
    assert sum(line.lstrip().startswith("```") for line in text.splitlines()) == 2 * len(found)
    assert text.count("<!-- not run") == sum(bool(block.reason) for block in found)
    assert {block.kind for block in found} <= {*pages.KINDS}


@pytest.mark.parametrize("block", LEFT_OUT, ids=[f"{block} {block.reason}" for block in LEFT_OUT])
def test_what_is_not_run_needs_something(block):
    assert block.reason.startswith("needs ")
    if block.kind == "python":
        compile(block.text, block.page, "exec")


@pytest.mark.parametrize("page", RUNNING)
def test_blocks_run_in_order(page):
    there = {"__name__": page}
    for block in pages.blocks(pages.ROOT / page):
        if block.runs:
            pages.run(block, there)


def test_the_crf_of_the_page_equals_pydensecrf():
    """Against what pydensecrf answered; 1e-5 is what the page's own comparison allows."""
    stored = np.load(Path(__file__).parents[1] / "data" / "pydensecrf.npz")
    there: dict = {}
    for block in pages.blocks(pages.ROOT / "docs" / "crf.md"):
        if "import atrousops" in block.text or "def dense_crf" in block.text:
            pages.run(block, there)
    q = there["dense_crf"](stored["image"], stored["unary"])
    assert np.abs(q - stored["steps_5"]).max() < 1e-5
    labels = torch.randint(3, (2, 4, 5))
    (block,) = [b for b in pages.blocks(pages.ROOT / "docs" / "crf.md") if "def scores_of_labels" in b.text]
    exec(block.text.split("\n\n\n")[0], there)
    scores = there["scores_of_labels"](labels, 3)
    assert torch.equal(scores.argmax(1), labels)
    torch.testing.assert_close(scores.exp().sum(1), torch.ones(2, 4, 5))
