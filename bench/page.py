"""docs/results.md, the page that shows what was measured: each writer has its place there, between two markers."""

from __future__ import annotations

import os
from pathlib import Path

from . import ROOT

PAGE = ROOT / "docs" / "results.md"


def markers(name: str, command: str) -> tuple[str, str]:
    """The two lines that enclose what this command writes."""
    return f"<!-- {name}: from here on written by `{command}` -->", f"<!-- {name}: until here -->"


def write(section: str, enclosing: tuple[str, str], path: Path = PAGE) -> None:
    """Put the section between its markers."""
    start, end = enclosing
    text = path.read_text(encoding="utf-8")
    if text.count(start) != 1 or text.count(end) != 1:
        raise SystemExit(f"{path.name} must hold each of the two markers once: {start} and {end}")
    before, rest = text.split(start)
    path.write_text(f"{before}{start}\n\n{section}\n\n{end}{rest.split(end)[1]}", encoding="utf-8")


def link(path: Path) -> str:
    """To a file, from the page."""
    inside = path.is_relative_to(ROOT)
    return Path(os.path.relpath(path, PAGE.parent)).as_posix() if inside else path.as_posix()
