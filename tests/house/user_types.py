"""`make lint`: what mypy --strict and pyright say to a user. They read user_code.py, and the Python of the README.

python -m tests.house.user_types
"""

from __future__ import annotations

import ast
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from tests import ROOT
from tests.support import pages

USER_CODE = Path(__file__).parent / "user_code.py"

# transformers 5.24 types `generate` so that pyright cannot call it on what its own `from_pretrained` returns.
UNTYPED = ("model = AutoModelForCausalLM", "model: Any = AutoModelForCausalLM")

PYRIGHT = {
    "extraPaths": [str(ROOT)],
    "pythonVersion": "3.10",
    "typeCheckingMode": "standard",
    "reportUnnecessaryTypeIgnoreComment": True,  # so that it, too, must see the mistakes of user_code.py
    "reportPossiblyUnboundVariable": False,  # the README uses after a loop what the loop made
}


def programs() -> dict[str, str]:
    """By file name. A block of the README that lacks names goes on with the program that has the most of them."""
    made = {"user_code.py": USER_CODE.read_text(encoding="utf-8")}
    blocks = pages.blocks((ROOT / "README.md").read_text(encoding="utf-8"), "python")
    assert blocks, "the README has no Python"
    for number, block in enumerate(blocks):
        own, wanted = names(block)
        shared = {name: len(names(text)[0] & (wanted - own)) for name, text in made.items() if name != "user_code.py"}
        before = max(shared, key=lambda name: shared[name], default="")
        made[f"readme_{number}.py"] = (made[before] + "\n" if shared.get(before) else "") + block
    return made


def names(program: str) -> tuple[set[str], set[str]]:
    """Those it makes, and those it reads."""
    nodes = list(ast.walk(ast.parse(program)))
    imported = {
        (a.asname or a.name).split(".")[0]
        for n in nodes
        if isinstance(n, (ast.Import, ast.ImportFrom))
        for a in n.names
    }
    stored = {n.id for n in nodes if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
    return imported | stored, {n.id for n in nodes if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Load)}


def complaints(tool: str, folder: Path) -> str:
    """What the tool says about the programs, "" if nothing."""
    for name, text in programs().items():
        if tool == "pyright":
            text = "from typing import Any\n" + text.replace(*UNTYPED) if name != "user_code.py" else text
        (folder / name).write_text(text, encoding="utf-8")
    if tool == "mypy":
        arguments = ["--config-file", str(ROOT / "pyproject.toml"), *map(str, sorted(folder.glob("*.py")))]
    else:
        (folder / "pyrightconfig.json").write_text(json.dumps(PYRIGHT), encoding="utf-8")
        arguments = ["-p", str(folder), "--pythonpath", sys.executable]
    told = subprocess.run([sys.executable, "-m", tool, *arguments], cwd=ROOT, capture_output=True, text=True)
    return told.stdout + told.stderr if told.returncode else ""


def main() -> int:
    found = ""
    for tool in ("mypy", "pyright"):
        with tempfile.TemporaryDirectory() as folder:
            found += complaints(tool, Path(folder))
    print(found or "mypy and pyright have no complaint about user_code.py and the README's Python.")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
