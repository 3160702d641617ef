"""Results as lines of JSON. Each is written by one call and flushed to the disk, so that a process killed at any time leaves whole
lines, and several processes may write to one file.
"""

from __future__ import annotations

import json
import os
from pathlib import Path


def append(path: Path, record: dict) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    try:
        os.write(file, (json.dumps(record) + "\n").encode())
        os.fsync(file)
    finally:
        os.close(file)


def read(path: Path) -> list[dict]:
    """What was written so far; nothing where there is no file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []
