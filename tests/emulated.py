"""The CUDA engine's real source on the CPU, by the machine of tests/emulation: built once for each state of the sources."""

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

import torch

from fastdecode import cuda

ROOT = Path(__file__).parent.parent
COMMON = ["-std=c++17", "-fno-math-errno", "-Wall", "-Wextra", "-Wno-unknown-pragmas"]
MACHINE = ("tests/emulation/launch.cpp", "tests/emulation/machine.cpp")


def compiler() -> list[str]:
    return shlex.split(os.environ.get("CXX", "g++"))


def build(tree: Path, flags: list[str], files: dict[str, list[str]], link: list[str], target: str) -> Path:
    """Compiles files of a tree (each with flags of its own) side by side and links them, unless that was done before."""
    key = hashlib.sha256(repr((compiler(), flags, files, link, sys.version)).encode())
    for folder in ("csrc", "tests/emulation", "tests/fuzz"):
        for path in sorted((tree / folder).rglob("*")):
            if path.suffix in {".h", ".inl", ".cuh", ".cpp"}:
                key.update(path.read_bytes())
    built = tree / "build" / "emulation" / key.hexdigest()[:16] / target
    if built.exists():
        return built
    built.parent.mkdir(parents=True, exist_ok=True)

    def compiled(item: tuple[str, list[str]]) -> str:
        name, own = item
        made = built.parent / (Path(name).stem + ".o")
        _run(
            [
                *compiler(),
                *COMMON,
                *flags,
                f"-I{tree / 'csrc'}",
                f"-I{tree / 'tests/emulation'}",
                *own,
                "-c",
                str(tree / name),
                "-o",
                str(made),
            ]
        )
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

    python = [f"-I{pybind11.get_include()}", f"-I{sysconfig.get_paths()['include']}"]
    files = {
        "csrc/bindings.cpp": ["-DFD_MODULE=_emulated", "-DFD_CUDA=1", "-DFD_EMULATED=1", *python],
        **{name: [] for name in MACHINE},
    }
    built = build(ROOT, ["-O2", "-fPIC", "-fvisibility=hidden"], files, ["-shared"], "_emulated.so")
    loader = importlib.machinery.ExtensionFileLoader("_emulated", str(built))
    spec = importlib.util.spec_from_file_location("_emulated", built, loader=loader)
    assert spec
    found = importlib.util.module_from_spec(spec)
    loader.exec_module(found)
    return found


class Engine(cuda.Engine):
    """The CUDA engine with `ranks` blocks for each row. `resident=False`: on a device where no row fits into shared memory."""

    def __init__(self, ranks: int, resident: bool = True):
        super().__init__(module())
        self.where = (0 if resident else 1, 0, ranks)

    def _where(self, logits: torch.Tensor) -> tuple[int, int, int]:
        return self.where


def check(tree: Path, flags: list[str]) -> subprocess.CompletedProcess:
    """Builds tests/emulation/check.cpp of a tree and runs it."""
    program = build(tree, flags, {name: [] for name in ("tests/emulation/check.cpp", *MACHINE)}, flags, "check")
    return subprocess.run([program], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=600)
