"""Markdown pages as the tests read them: code that is run, what it prints and draws, links, tables.

python -m tests.support.pages docs/rules.md    runs the page's code, writes what it printed into the page, and its pictures beside it
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import re
import sys
from pathlib import Path
from typing import Any, NamedTuple

_BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_PICTURE = re.compile(r"\s*!\[[^\]]*\]\((\w+\.png)\)")  # right below a block of code that makes a `figure`


class Block(NamedTuple):
    """A fenced block: its language ("" without one) and its text."""

    language: str
    text: str


def blocks(page: str, language: str) -> list[str]:
    """The texts of the fenced blocks in this language."""
    return [text for found, text in _BLOCK.findall(page) if found == language]


def commands(page: str) -> list[str]:
    """The lines of the blocks without a language, less their comments."""
    return [line.partition("#")[0].strip() for block in blocks(page, "") for line in block.splitlines()]


def filled(page: str, figures: dict[str, Any] | None = None) -> str:
    """The page with its Python run, from top to bottom in one namespace, and in each block of `text` what the Python before it
    printed. Code without such a block runs too. `figures` gets the `figure` of code with a picture below it, by the
    picture's file name."""
    names: dict[str, Any] = {"__name__": "page"}
    printed = io.StringIO()

    def replace(found: re.Match) -> str:
        nonlocal printed
        block = Block(*found.groups())
        if block.language == "python":
            printed = io.StringIO()
            with contextlib.redirect_stdout(printed):
                exec(compile(block.text, f"python at offset {found.start()}", "exec"), names)
            picture = _PICTURE.match(page, found.end())
            if picture and figures is not None:
                figures[picture[1]] = names["figure"]
        elif block.language == "text":
            return f"```text\n{printed.getvalue()}```"
        return found.group(0)

    return _BLOCK.sub(replace, page)


def shown(figure: Any) -> str:
    """A digest of what a figure says: its texts and its short lines, to four digits. Fonts and pixels do not count, so another
    matplotlib has the same."""
    from matplotlib.lines import Line2D
    from matplotlib.text import Text

    texts = [text.get_text() for text in figure.findobj(Text)]
    lines = [line.get_xydata() for line in figure.findobj(Line2D)]
    points = [f"{x:.4g}" for line in lines if line is not None and len(line) <= 2 for x in line.ravel().tolist()]
    return hashlib.sha256(json.dumps([sorted(texts), sorted(points)]).encode()).hexdigest()


def links(page: str) -> list[str]:
    """The targets of links and pictures."""
    return re.findall(r"\]\(([^)\s]+)\)", _BLOCK.sub("", page))


def anchors(page: str) -> set[str]:
    """What #links may point to: headings, as GitHub spells them."""
    headings = re.findall(r"^#+ (.*)$", _BLOCK.sub("", page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def table_rows(page: str, heading: str) -> list[list[str]]:
    """The cells of the table under a heading of the second level."""
    section = page.split(f"## {heading}\n")[1].split("\n## ")[0]
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in section.splitlines() if line.startswith("|")
    ]
    return rows[2:]


if __name__ == "__main__":
    for name in sys.argv[1:]:
        path, figures = Path(name), {}
        path.write_text(filled(path.read_text(encoding="utf-8"), figures), encoding="utf-8")
        for picture, figure in figures.items():
            figure.savefig(path.with_name(picture), dpi=100, metadata={"Software": None, "Description": shown(figure)})
