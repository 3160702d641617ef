"""Markdown pages as the tests read them: code that is run, what it prints, links, tables.

python tests/support/pages.py docs/rules.md    runs the page's code, and writes what it printed into the page
"""

from __future__ import annotations

import contextlib
import io
import re
import sys
from pathlib import Path
from typing import Any, NamedTuple

_BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


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


def filled(page: str) -> str:
    """The page with its Python run, from top to bottom in one namespace, and in each block of `text` what the Python before it
    printed. Code whose output nobody shows runs all the same."""
    names: dict[str, Any] = {"__name__": "page"}
    printed = io.StringIO()

    def replace(found: re.Match) -> str:
        nonlocal printed
        block = Block(*found.groups())
        if block.language == "python":
            printed = io.StringIO()
            with contextlib.redirect_stdout(printed):
                exec(compile(block.text, f"python at offset {found.start()}", "exec"), names)
        elif block.language == "text":
            return f"```text\n{printed.getvalue()}```"
        return found.group(0)

    return _BLOCK.sub(replace, page)


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
        path = Path(name)
        path.write_text(filled(path.read_text(encoding="utf-8")), encoding="utf-8")
