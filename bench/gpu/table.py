"""The results to read: `python -m bench.gpu.table build/gpu-bench.jsonl`."""

from __future__ import annotations

import sys
from pathlib import Path

from .lines import read
from .roster import NO_TIME

CASE = ("rows", "V", "dtype", "converted", "B", "T", "rule")
DRY_RUN = "A DRY RUN: no GPU was there, and the times mean nothing.\n"


def table(records: list[dict]) -> str:
    """Microseconds a call, cold then hot, a column for each candidate. "*": no graph could be captured. What has no time is told
    below: wrong answers, errors, who is missing."""
    timed = [r for r in records if "us_cold" in r]
    whos = list(dict.fromkeys(r["who"] for r in timed))
    lines: dict[tuple, dict[str, str]] = {}
    for r in timed:
        line = lines.setdefault(tuple(r[name] for name in CASE), {"one read": f"{r['one_read_us']:.1f}"})
        line[r["who"]] = f"{r['us_cold']:.1f} {r['us_hot']:.1f}{'' if r['graph'] else '*'}"
    columns = ["one read", *whos]
    width = max(map(len, columns)) + 2
    text = "".join(f"{name:>{width}}" for name in columns)
    text = f"{'microseconds, cold and hot':62}{text}\n"
    for case, line in lines.items():
        text += f"{_name(case):62}" + "".join(f"{line.get(name, '-'):>{width}}" for name in columns) + "\n"
    for r in records:
        for kind in NO_TIME:
            if kind in r:
                case = _name(tuple(r[name] for name in CASE)) if "rows" in r else r.get("rule", "")
                text += f"{kind}: {r['who']}{case and f', {case}'}: {r[kind]}\n"
    return (DRY_RUN if any(r.get("dry_run") for r in records) else "") + text


def _name(case: tuple) -> str:
    rows, vocab, dtype, converted, batch, temperature, rule = case
    given = f"{dtype}{' given as float32' if converted else ''}"
    return f"{rows} {vocab} {given} B={batch} T={temperature:g} {rule}"


if __name__ == "__main__":
    print(table(read(Path(sys.argv[1]))))
