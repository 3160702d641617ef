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

from fastdecode.engines import cuda
from tests import ROOT

BUILT = ROOT / "build" / "emulation"
COMMON = ["-std=c++17", "-fno-math-errno", "-Wall", "-Wextra", "-Wno-unknown-pragmas"]
MACHINE = ("tests/emulation/launch.cpp", "tests/emulation/machine.cpp")


def compiler() -> list[str]:
    return shlex.split(os.environ.get("CXX", "g++"))


def build(tree: Path, flags: list[str], files: dict[str, list[str]], link: list[str], target: str) -> Path:
    """Compiles files of a tree (each with flags of its own) side by side and links them, unless that was done before.

    An object is known by its flags and by all that it was compiled from: trees that differ in one file share those of the others.
    """

    def compiled(item: tuple[str, list[str]]) -> str:
        name, own = item
        command = [*compiler(), *COMMON, *flags, f"-I{tree / 'csrc'}", f"-I{tree / 'tests/emulation'}", *own]
        sources = _run([*command, "-MM", str(tree / name)]).partition(":")[2].replace("\\\n", " ").split()
        key = hashlib.sha256(repr((compiler(), COMMON, flags, own, sys.version)).encode())
        for source in sources:
            key.update(Path(source).read_bytes())
        made = BUILT / f"{Path(name).stem}-{key.hexdigest()[:16]}.o"
        if not made.exists():
            unfinished = made.with_suffix(f".{os.getpid()}.o")  # another process may be at it too
            _run([*command, "-c", str(tree / name), "-o", str(unfinished)])
            unfinished.rename(made)
        return str(made)

    BUILT.mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        objects = list(pool.map(compiled, files.items()))
    built = BUILT / (hashlib.sha256(repr((objects, link)).encode()).hexdigest()[:16] + target)
    if not built.exists():
        unfinished = built.with_suffix(f".{os.getpid()}")
        _run([*compiler(), *flags, *objects, *link, "-o", str(unfinished)])
        unfinished.rename(built)
    return built


def _run(command: list[str]) -> str:
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode:
        raise RuntimeError(f"{shlex.join(command)}\n{done.stdout}")
    return done.stdout


@cache
def module(tree: Path = ROOT, counted: bool = False):
    """The compiled module, with `truncate_cuda` and `sample_cuda` that take addresses of the CPU. `counted`: it launches as many
    threads as a device does, and counts what they do: tests/emulation/emulation.h, bench/gpu/model/counts.py."""
    import pybind11

    python = [f"-I{pybind11.get_include()}", f"-I{sysconfig.get_paths()['include']}"]
    files = {
        "csrc/bindings.cpp": ["-DFD_MODULE=_emulated", "-DFD_CUDA=1", "-DFD_EMULATED=1", *python],
        **{name: ["-DFD_COUNTED=1"] if counted else [] for name in MACHINE},
    }
    built = build(tree, ["-O2", "-fPIC", "-fvisibility=hidden"], files, ["-shared"], "_emulated.so")
    name = f"{built.stem}._emulated"  # pybind11 gives what it has already loaded by a name
    loader = importlib.machinery.ExtensionFileLoader(name, str(built))
    spec = importlib.util.spec_from_file_location(name, built, loader=loader)
    assert spec
    found = importlib.util.module_from_spec(spec)
    loader.exec_module(found)
    return found


ROOMY, CRAMPED, REAL = range(3)  # the devices of tests/emulation/launch.cpp


class Engine(cuda.Engine):
    """The CUDA engine with `ranks` blocks for each row, on an emulated device.

    Args:
        ranks: blocks for each row; 0: as many as the launcher takes on this device.
        device: ROOMY, with few threads; CRAMPED: no row fits into shared memory; REAL: an H100's sizes, 256 threads a block.
        tree: where the sources lie.
        counted: barriers, visits of groups and other events of each launch are counted.
    """

    def __init__(self, ranks: int, device: int = ROOMY, tree: Path = ROOT, counted: bool = False):
        super().__init__(module(tree, counted), ranks)
        self.device = device

    def _where(self, logits: torch.Tensor) -> tuple[int, int, int]:
        return self.device, 0, self.ranks


def check(tree: Path, flags: list[str]) -> subprocess.CompletedProcess:
    """Builds tests/emulation/check.cpp of a tree and runs it."""
    program = build(tree, flags, {name: [] for name in ("tests/emulation/check.cpp", *MACHINE)}, flags, "check")
    return subprocess.run([program], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=600)
