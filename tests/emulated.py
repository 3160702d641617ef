"""The CUDA engine's real source on the CPU: builds tests/emulation (README there: emulation.h) once for each state of the sources."""

from __future__ import annotations

import hashlib
import importlib.machinery
import importlib.util
import os
import shlex
import subprocess
import sys
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

from fastdecode import cuda

ROOT = Path(__file__).parent.parent
HERE = Path(__file__).parent / "emulation"
FLAGS = ["-std=c++17", "-O2", "-g0", "-fPIC", "-fvisibility=hidden", "-fno-math-errno", "-Wall", "-Wextra", "-Wno-unknown-pragmas"]

# The blocks that work on a row. Every size runs; the whole conformance suite runs on the first two, see conftest.py.
RANKS = (1, 4, 2, 8, 16)


def compiler() -> list[str]:
    return shlex.split(os.environ.get("CXX", "g++"))


def sources() -> list[Path]:
    return sorted(
        path for folder in (ROOT / "csrc", HERE) for path in folder.rglob("*") if path.suffix in {".h", ".cuh", ".cpp"}
    )


def build(folder: Path, flags: list[str], files: dict[str, list[str]], link: list[str], target: str) -> Path:
    """Compiles files (each with flags of its own) side by side and links them, unless that was done before."""
    key = hashlib.sha256(repr((compiler(), flags, files, link, sys.version)).encode())
    for path in sources():
        key.update(path.read_bytes())
    built = folder / key.hexdigest()[:16] / target
    if built.exists():
        return built
    built.parent.mkdir(parents=True, exist_ok=True)

    def compiled(item: tuple[str, list[str]]) -> str:
        name, own = item
        made = built.parent / (Path(name).stem + ".o")
        _run([*compiler(), *flags, *own, "-c", str(ROOT / name), "-o", str(made)])
        return str(made)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        objects = list(pool.map(compiled, files.items()))
    unfinished = built.with_suffix(f".{os.getpid()}")  # another process may be at it too
    _run([*compiler(), *flags, *objects, *link, "-o", str(unfinished)])
    unfinished.rename(built)
    return built


def _run(command: list[str]) -> None:
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode:
        raise RuntimeError(f"{shlex.join(command)}\n{done.stdout}")


@cache
def module():
    """The compiled module, with `truncate_cuda` and `sample_cuda` that take addresses of the CPU."""
    import pybind11

    includes = [f"-I{ROOT / 'csrc'}", f"-I{HERE}"]
    python = [f"-I{pybind11.get_include()}", f"-I{sysconfig.get_paths()['include']}"]
    files = {
        "csrc/bindings.cpp": ["-DFD_MODULE=_emulated", "-DFD_CUDA=1", "-DFD_EMULATED=1", *python],
        "tests/emulation/launch.cpp": [],
        "tests/emulation/machine.cpp": [],
    }
    built = build(ROOT / "build" / "emulation", [*FLAGS, *includes], files, ["-shared"], "_emulated.so")
    loader = importlib.machinery.ExtensionFileLoader("_emulated", str(built))
    spec = importlib.util.spec_from_file_location("_emulated", built, loader=loader)
    assert spec
    found = importlib.util.module_from_spec(spec)
    loader.exec_module(found)
    return found


def engine(ranks: int) -> cuda.Engine:
    return cuda.Engine(module(), ranks)
