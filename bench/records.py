"""Results as they were written, and how to find one."""

from __future__ import annotations

import json
import subprocess
from dataclasses import dataclass
from pathlib import Path

from . import RESULTS, machine
from .cpu.grid import V_MAIN

# The pictures, by the ends of their names, and what they show.
PLOTS = {
    "sizes": "Time from logits to token against the size of the vocabulary, logarithmic axes",
    "reads": "The engine's time for each rule, in reads of the row; dots are the slowest rows",
    "peers": "How many times longer the peers take than the engine, logarithmic axis",
}


@dataclass(frozen=True)
class Results:
    """The lines of one file."""

    path: Path
    records: list[dict]

    def all(self, **fields: object) -> list[dict]:
        return [r for r in self.records if all(r.get(name) == value for name, value in fields.items())]

    def one(self, **fields: object) -> dict | None:
        """The first case of these fields; those not given are the main case's: real rows, V = 128256, B = 1, float32, one thread."""
        usual: dict[str, object] = {
            "rows": "real",
            "V": V_MAIN,
            "B": 1,
            "dtype": "float32",
            "T": 1.0,
            "threads": 1,
            "what": "token",
        }
        found = self.all(**{**usual, **fields})
        return found[0] if found else None

    def plot(self, name: str) -> Path:
        return self.path.with_name(f"{self.path.stem}-{name}.png")

    @property
    def tables(self) -> Path:
        return self.path.with_suffix(".md")


def read(path: Path) -> Results:
    return Results(path, [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()])


def newest() -> Path:
    """The results that were written last."""
    found = sorted(RESULTS.glob("cpu-*.jsonl"))
    if not found:
        raise SystemExit(f"there are no results in {RESULTS}; run: make bench")
    return max(found, key=_written)


def _written(path: Path) -> float:
    """When a file got its content: in a clone the file's own time is that of the checkout, so a committed file counts by its commit."""
    try:
        if not machine.git("status", "--porcelain", "--", str(path)):
            return float(machine.git("log", "-1", "--format=%ct", "--", str(path)) or 0)
    except (OSError, subprocess.CalledProcessError):
        pass  # no repository: a source distribution keeps the times
    return path.stat().st_mtime


def others_busy(records: list[dict]) -> float | None:
    """How much of the machine other programs used, the mean over the cases."""
    known = [r["others_busy"] for r in records if r.get("others_busy") is not None]
    return sum(known) / len(known) if known else None


def share(value: float | None) -> str:
    return "an unknown part" if value is None else f"{value:.0%}"
