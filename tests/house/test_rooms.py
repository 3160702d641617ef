"""Here the source is judged by the order of the house, as far as a machine can tell: who may know what, how long a file is."""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from fastdecode.rules import RULES
from tests import ROOT

OURS = ("fastdecode", "csrc", "tests", "bench", "examples")
LONGEST = 400

PYTHON = sorted((ROOT / "fastdecode").rglob("*.py"))
NATIVE = sorted(p for p in (ROOT / "csrc").rglob("*") if p.is_file())
SOURCES = sorted(
    p for room in OURS for p in (ROOT / room).rglob("*") if p.suffix in {".py", ".h", ".cpp", ".inl", ".cu", ".cuh"}
)  # fmt: skip
ENGINES = [p for p in PYTHON if ROOT / "fastdecode" / "engines" in p.parents] + [p for p in NATIVE if p.suffix != ".md"]

# A temperature is a field of every cut; the other rules are unknown to whoever runs cuts.
NAMES = [rule.__name__ for rule in RULES if rule.__name__ != "temperature"]


def spellings(rule: str) -> list[str]:
    """top_k, topk, top-k, TopK, kTopK."""
    parts = rule.split("_")
    camel = "".join(part.capitalize() for part in parts)
    return [rule, "".join(parts), "-".join(parts), f"k?{camel}"]


def words_of(path: Path) -> str:
    """The text of a file; of Python only what is not a call of torch's own `topk`."""
    return re.sub(r"\.topk\(", "(", path.read_text())


def test_there_is_something_to_look_at():
    assert {p.name for p in PYTHON} >= {"rules.py", "reference.py", "dispatch.py", "cpu.py", "launch.py"}
    assert {p.name for p in NATIVE} >= {"cut.h", "philox.h", "bindings.cpp"}
    assert re.search(rf"\b({'|'.join(spellings('min_p'))})\b", "case kMinP:")


@pytest.mark.parametrize("path", ENGINES, ids=lambda p: p.name)
def test_engines_run_cuts_and_know_no_rule(path):
    """Whole words only: `typicality` is the name of an order, `Eta` is no part of `Beta`."""
    for rule in NAMES:
        found = re.search(rf"\b({'|'.join(spellings(rule))})\b", words_of(path))
        assert found is None, f"{path.name} knows the rule {rule}: {found.group(0)!r}"


@pytest.mark.parametrize("path", PYTHON, ids=lambda p: p.name)
def test_only_dispatch_reads_the_environment(path):
    if path.name != "dispatch.py":
        assert not re.search(r"\b(os\.environ|getenv|from os import|environb)\b", path.read_text())


@pytest.mark.parametrize("path", PYTHON, ids=lambda p: p.name)
def test_an_engine_has_what_its_protocol_names(path):
    """mypy compares the engines with `dispatch.Engine`; a look-up by name would pass it by."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") in ("getattr", "hasattr"):
            looked_at = ast.unparse(node.args[0])
            assert "engine" not in looked_at.lower(), f"line {node.lineno} asks {looked_at} for a name"


@pytest.mark.parametrize("path", PYTHON, ids=lambda p: p.name)
def test_only_hf_knows_transformers(path):
    """The package hf; the command line, which needs a model, may import it inside a function."""
    if path.parent == ROOT / "fastdecode" / "hf":
        return
    for node in ast.walk(ast.parse(path.read_text())):
        modules = (
            [a.name for a in node.names]
            if isinstance(node, ast.Import)
            else [node.module or ""]
            if isinstance(node, ast.ImportFrom)
            else []
        )
        if any(module.split(".")[0] == "transformers" for module in modules):
            assert path.parent.name == "cli" and node.col_offset > 0, f"line {node.lineno} imports transformers"


@pytest.mark.parametrize("path", NATIVE, ids=lambda p: p.name)
def test_native_code_knows_no_torch(path):
    assert not re.search(r"#\s*include\s*<(torch|ATen|c10)|\b(at|c10)::|\btorch::|TORCH_LIBRARY", path.read_text())


@pytest.mark.parametrize("path", NATIVE, ids=lambda p: p.name)
def test_only_the_bindings_know_pybind11(path):
    if path.name != "bindings.cpp":
        assert "pybind11" not in path.read_text()


def test_no_number_is_a_tolerance_but_in_tolerance():
    """No literal for atol, rtol, abs or rel in a comparison, and no pytest.approx, which hides one."""
    for path in sorted((ROOT / "tests").rglob("*.py")):
        if path.name == "tolerance.py":
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Call):
                continue
            name = getattr(node.func, "attr", getattr(node.func, "id", ""))
            assert name != "approx", f"{path.name}:{node.lineno} hides a tolerance"
            for keyword in node.keywords:
                is_tolerance = keyword.arg in ("atol", "rtol", "abs_tol", "rel_tol", "tol")
                assert not (is_tolerance and isinstance(keyword.value, ast.Constant)), (
                    f"{path.name}:{node.lineno} holds a tolerance"
                )


def test_every_tolerance_says_why():
    """A comment on the line or above it."""
    lines = (ROOT / "tests" / "support" / "tolerance.py").read_text().splitlines()
    for place, line in enumerate(lines):
        if re.match(r"[A-Z_0-9]+ = ", line):
            above = place - 1
            while re.match(r"[A-Z_0-9]+ = ", lines[above]):
                above -= 1
            assert "#" in line or lines[above].startswith("#"), line


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_no_file_is_too_long(path):
    count = len(path.read_text().splitlines())
    assert count <= LONGEST, f"{count} lines; the idea of a file fits on {LONGEST}"


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_names_say_what_is_inside(path):
    assert not {"utils", "util", "helpers", "helper", "common", "misc"} & set(re.split(r"[_\W]", path.stem))


HEADERS = sorted(p for p in NATIVE if p.suffix in {".h", ".inl", ".cuh"})
# The CUDA files need nvcc or the emulation, which compiles them.
ALONE = [p for p in HEADERS if p.suffix != ".cuh" and p.parent.name != "cuda"]


@pytest.mark.parametrize("path", HEADERS, ids=lambda p: p.name)
def test_a_header_is_read_once(path):
    assert re.search(r"^#pragma once$", path.read_text(), re.MULTILINE)


@pytest.mark.parametrize("path", [p for p in NATIVE if p.suffix == ".h"], ids=lambda p: p.name)
def test_a_header_means_the_same_everywhere(path):
    """What is compiled for each instruction set is an .inl."""
    text = path.read_text()
    assert "FD_TARGET" not in text and not re.search(r"#\s*include .*\.inl", text)


@pytest.mark.skipif(not shutil.which("c++"), reason="there is no C++ compiler")
@pytest.mark.parametrize("path", ALONE, ids=lambda p: p.name)
def test_a_header_compiles_alone(path):
    """It includes what it uses, so an editor understands it; an .inl then has the default target."""
    flags = (ROOT / "csrc" / "compile_flags.txt").read_text().split()
    # -w: gcc warns of `#pragma once` in the file that it is given.
    command = ["c++", *flags, "-w", "-fsyntax-only", str(path)]
    done = subprocess.run(command, cwd=ROOT / "csrc", capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_file_that_is_named_is_there():
    """In a comment, a message or a command, by its whole path from the root."""
    not_ours = {"csrc/edge.h", "docs/PAGE.md", "tests/generation/test_logits_process.py"}  # made up; transformers'
    missing = []
    for path in [*SOURCES, *(ROOT / "docs").glob("*.md"), ROOT / "Makefile", ROOT / "pyproject.toml"]:
        for name in re.findall(
            rf"(?<![\w/.-])(?:{'|'.join(OURS)}|docs)(?:/\w+)+\.(?:py|h|inl|cpp|cu|cuh|md)\b", path.read_text()
        ):
            if name not in not_ours and not (ROOT / name).is_file():
                missing.append(f"{path.relative_to(ROOT)} names {name}")
    assert missing == []
