"""What MkDocs asks of this project: links that leave docs/, parts of the README, and the notebooks as pages."""

import os
import posixpath
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOKS = sorted((ROOT / "docs" / "notebooks").glob("*.py"))
LINK = re.compile(r"\[((?:[^\[\]]|!\[[^\]]*\])*)\]\(([^)#\s:]+)(#[^)\s]*)?\)")
PART = re.compile(r"^<!-- README: (.+) -->$", re.MULTILINE)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds what pages link to outside of docs/, and what the notebooks say and draw."""
    for path in linked([page.src_uri for page in files.documentation_pages()]):
        files.append(File.generated(config, place(path), abs_src_path=str(ROOT / path)))
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, str(Path(__file__).with_name("notebook.py")), folder, *map(str, NOTEBOOKS)]
        paths = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
        variables = {**os.environ, "MPLBACKEND": "agg", "PYTHONPATH": paths}
        run = subprocess.run(command, env=variables, capture_output=True, text=True)
        if run.returncode:
            raise PluginError(f"a notebook failed:\n{run.stderr}")
        for made in sorted(Path(folder).iterdir()):
            files.append(File.generated(config, f"notebooks/{made.name}", content=made.read_bytes()))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Puts in parts of the README, and makes links those of the site."""
    here = page.file.src_uri
    source = here.removeprefix("source/") if here.startswith("source/") else f"docs/{here}"
    # A notebook's page links as its script does.
    text = PART.sub(lambda match: moved(part(match[1]), "README.md", here), moved(markdown, source, here))
    if not text.strip():
        raise PluginError(f"{here} is empty")
    return text


def part(heading: str) -> str:
    """What stands below a heading of the README; of its first, the title's, without what is below the second."""
    text = (ROOT / "README.md").read_text()
    match = re.search(rf"^#+ {re.escape(heading)}\n(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL)
    if match is None:
        raise PluginError(f"the README has no heading {heading!r}")
    return match[1].strip()


def place(path: str) -> str:
    """Where a file of the repository is in the site."""
    if path.startswith("docs/notebooks/"):
        return path.removeprefix("docs/").replace(".py", ".md")
    return path.removeprefix("docs/") if path.startswith("docs/") else f"source/{path}"


def targets(markdown: str, source: str) -> Iterator[tuple[re.Match[str], str]]:
    """The links of a text to what is in the repository, and their paths in it."""
    for match in LINK.finditer(markdown):
        path = posixpath.normpath(posixpath.join(posixpath.dirname(source), match[2]))
        if not path.startswith("..") and (ROOT / path).exists():
            yield match, path


def moved(markdown: str, source: str, here: str) -> str:
    """The text of `source` with links as they are in the page `here` of the site; what is a folder has no page."""
    for match, path in targets(markdown, source):
        if (ROOT / path).is_dir():
            markdown = markdown.replace(match[0], match[1])
        else:
            link = posixpath.relpath(place(path), posixpath.dirname(here) or ".")
            markdown = markdown.replace(match[0], f"[{match[1]}]({link}{match[3] or ''})")
    return markdown


def linked(pages: list[str]) -> list[str]:
    """Files outside of docs/ that pages link to, and those that they link to in turn, as paths in the repository."""
    found: dict[str, None] = {}
    waiting = [*(f"docs/{page}" for page in pages), "README.md"]
    while waiting:
        source = waiting.pop()
        if not source.endswith(".md") or not (ROOT / source).exists():
            continue
        for _, path in targets((ROOT / source).read_text(), source):
            if not path.startswith("docs/") and (ROOT / path).is_file() and path not in found:
                found[path] = None
                waiting.append(path)
    return list(found)
