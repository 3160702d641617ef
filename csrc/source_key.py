"""The key of this source: what an extension is made of, whatever machine compiles it. setup.py writes it into the extension as its
build id, and `python -m bench.gpu.lease` reads it there before it trusts an extension that came from another machine.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

HERE = Path(__file__).parent
SUFFIXES = {".h", ".cpp", ".inl", ".cu", ".cuh"}


def source_key() -> str:
    """40 hexadecimal digits, the usual length of a build id: a hash of every source file and of setup.py, which has the flags."""
    key = hashlib.sha256()
    for path in sorted(HERE.rglob("*")):
        if path.suffix in SUFFIXES:
            key.update(path.relative_to(HERE).as_posix().encode() + b"\0" + path.read_bytes())
    key.update((HERE.parent / "setup.py").read_bytes())
    return key.hexdigest()[:40]


def holds_key(extension: Path) -> bool:
    """Was this file compiled from this source? True only if it says so: in its build id."""
    note = b"GNU\0" + bytes.fromhex(source_key())  # the owner's name and the id, as they stand in an ELF note
    return note in extension.read_bytes()
