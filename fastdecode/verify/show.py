"""Progress and the summary: with rich where it is installed, else plain lines."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator, Sequence

from .finding import Check, Finding, Line, Tick

VERDICTS = {True: "right", False: "WRONG", None: "not run"}


def progress(asked: Sequence[Check], answer: Callable[[Check, Tick], Finding]) -> list[Line]:
    """Run the checks in turn, and show the progress."""
    lines = []
    with _bar() as advance:
        for place, check in enumerate(asked):
            start = time.perf_counter()

            def tick(share: float, check: Check = check, place: int = place) -> None:
                advance(check.name, (place + min(share, 1.0)) / len(asked))

            tick(0.0)
            finding = answer(check, tick)
            lines.append((check.name, finding, time.perf_counter() - start))
        advance("done", 1.0)
    return lines


@contextlib.contextmanager
def _bar() -> Iterator[Callable[[str, float], None]]:
    try:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
    except ImportError:
        seen: set[str] = set()

        def line(name: str, share: float) -> None:
            if name not in seen:
                seen.add(name)
                print(f"{share:4.0%}  {name}", file=sys.stderr, flush=True)

        yield line
        return
    columns = (
        BarColumn(20),
        TextColumn("{task.percentage:3.0f} %"),
        TimeElapsedColumn(),
        TextColumn("{task.description}"),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as shown:
        task = shown.add_task("", total=1.0)
        yield lambda name, share: shown.update(task, description=name, completed=share)


def summary(lines: Sequence[Line]) -> None:
    """The findings as a table."""
    try:
        from rich.console import Console
        from rich.table import Table
    except ImportError:
        for name, finding, seconds in lines:
            finds = f"; would find: {finding.finds}" if finding.finds else ""
            print(f"{VERDICTS[finding.right]:<8} {name} ({seconds:.1f} s): {finding.seen}{finds}")
        return
    console = Console()
    if not console.is_terminal:
        console.width = 150  # a log has no width of its own
    table = Table(box=None, pad_edge=False)
    for title in ("check", "verdict", "seen", "would find", "s"):
        table.add_column(title, no_wrap=title in ("check", "verdict"), justify="right" if title == "s" else "left")
    styles = {True: "green", False: "bold red", None: "dim"}
    for name, finding, seconds in lines:
        style = styles[finding.right]
        table.add_row(
            name, f"[{style}]{VERDICTS[finding.right]}", _plain(finding.seen), _plain(finding.finds), f"{seconds:.1f}"
        )
    console.print(table)


def _plain(text: str) -> str:
    return text.replace("[", "\\[")
