"""What the compiled CUDA engine costs: sites and ways that are read from its machine code, nothing of it run."""

from __future__ import annotations

import functools
import itertools
import statistics
import tempfile
from dataclasses import dataclass
from pathlib import Path

from bench import ROOT

from . import sass
from .constants import MEMORY
from .paths import Worth, cycles, meets, way

ARCHITECTURE = "sm_90"
AHEAD = 4  # groups that the opening pass has in flight: kAhead in csrc/cuda/measure.cuh
PASSES = ("pass_of_sums", "pass_of_keys", "guess", "list_keys")  # they look at groups that are held already
FENCE = "MEMBAR.ALL.GPU"


@dataclass(frozen=True)
class Way:
    """Of one warp: instructions, and cycles if it were alone."""

    instructions: float
    cycles: float


@dataclass(frozen=True)
class Costs:
    opening: Way  # of a group of 256 tokens, with sums
    visit: Way  # of a group that is looked at again, mean of the passes
    between_barriers: Way  # of the code from one block barrier to the next, median of all sites
    draw: Way  # of one token: the winning group, the winning token
    fences: int  # of device scope, sites in sample_kernel


def built() -> Path | None:
    """The object that setup.py compiled last, if it compiled any."""
    found = sorted(ROOT.glob("build/objects-cuda-*/launch.o"), key=lambda path: path.stat().st_mtime)
    return found[-1] if found else None


def kernel(fat: Path, name: str = "sample_kernel") -> dict[str, sass.Code]:
    """A kernel and the functions that it calls, by what the source calls them."""
    with tempfile.TemporaryDirectory() as folder:
        codes = sass.read(sass.cubin_of(fat, ARCHITECTURE, Path(folder)))
    prefix = next(each for each in codes if f"{len(name)}{name}" in each and not each.startswith("$"))
    found = {name: codes[prefix]}
    for full, code in codes.items():
        if full.startswith(f"${prefix}$"):
            found[_plain(full.rsplit("cuda", 1)[-1])] = code
    return found


def _plain(mangled: str) -> str:
    """open_once of 9open_onceERNS1_4TeamEf."""
    digits = "".join(c for c in mangled[:3] if c.isdigit())
    return mangled[len(digits) : len(digits) + int(digits)] if digits else mangled


@functools.cache
def costs(fat: Path) -> Costs:
    codes = kernel(fat)
    every = [instruction for code in codes.values() for instruction in code.instructions]
    opening = _best_loop(codes["open_once"], meets("MUFU", "REDUX", "LD"))
    visits = [_best_loop(codes[name], meets("MUFU"), holds="LD") for name in PASSES]
    groups = [whole(codes["winning_group"]), whole(codes["winning_token"])]
    between = [way_between for code in codes.values() for way_between in _between_barriers(code)]
    return Costs(
        Way(opening.instructions / AHEAD, opening.cycles / AHEAD),
        Way(*(statistics.mean(getattr(each, what) for each in visits) for what in ("instructions", "cycles"))),
        Way(*(statistics.median(getattr(each, what) for each in between) for what in ("instructions", "cycles"))),
        Way(*(sum(getattr(each, what) for each in groups) for what in ("instructions", "cycles"))),
        sum(instruction.opcode == FENCE for instruction in every),
    )


def _best_loop(code: sass.Code, worth: Worth, holds: str = "") -> Way:
    """Of the loops that hold an instruction, the one whose way is worth most."""
    ways = []
    for first, last in code.loops:
        path = way(code, first, last, worth)
        if path and (not holds or any(each.name == holds for each in code.instructions[first : last + 1])):
            ways.append((sum(map(worth, path)), -len(path), cycles(path, MEMORY)))
    if not ways:
        raise ValueError(f"{code.name} must have a loop over groups, and none was found; see bench/gpu/model/cost.py.")
    _, length, time = max(ways)
    return Way(-length, time)


def whole(code: sass.Code) -> Way:
    """A function from its start to its end, on the way that computes most."""
    path = way(code, 0, len(code.instructions) - 1, meets("MUFU", "SHFL"))
    return Way(len(path), cycles(path, MEMORY))


def _between_barriers(code: sass.Code) -> list[Way]:
    places = [place for place, instruction in enumerate(code.instructions) if instruction.name == "BAR"]
    paths = [way(code, first, last, meets()) for first, last in itertools.pairwise(places)]
    return [Way(len(path), cycles(path, MEMORY)) for path in paths if path]
