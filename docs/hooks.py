"""For mkdocs: the site holds the README, the pages of docs/, and the files that they link to, at the paths of the repository.

mkdocs wants all files of a site in one folder. Here pages link to files of the repository, and the same page has to read well
on a code host; so the site is laid out as the repository is.
"""

from __future__ import annotations

import os
from pathlib import Path

from mkdocs.structure.files import File, Files

from tests.support import pages

ROOT = Path(__file__).resolve().parent.parent
STYLE = "docs/site.css"


def on_files(files: Files, config) -> Files:
    """mkdocs found docs/ alone; links are followed from there, and from README.md."""
    theme = [file for file in files if Path(file.abs_src_path).parts[: len(ROOT.parts) + 1] != (*ROOT.parts, "docs")]
    todo = ["README.md", "CHANGELOG.md", STYLE, *(f"docs/{path.name}" for path in sorted((ROOT / "docs").glob("*.md")))]
    found: list[str] = []
    while todo:
        path = todo.pop()
        if path in found or not (ROOT / path).is_file():  # mkdocs complains about a link to what is not there
            continue
        found.append(path)
        if path.endswith(".md"):
            text = (ROOT / path).read_text(encoding="utf-8")
            links = [link.partition("#")[0] for link in pages.links(text) if "://" not in link]
            todo += [os.path.normpath(os.path.join(os.path.dirname(path), link)) for link in links if link]
    own = [File(path, str(ROOT), config.site_dir, config.use_directory_urls) for path in sorted(found)]
    return Files([*theme, *own])
