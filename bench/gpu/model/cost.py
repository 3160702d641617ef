"""What the compiled CUDA engine costs: sites and ways that are read from its machine code, nothing of it run."""

from __future__ import annotations

import functools
import itertools
import statistics
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bench import ROOT

from . import engine, sass
from .constants import MEMORY
from .paths import Worth, cycles, meets, way

Codes = dict[str, list[sass.Code]]

NEARLY = 0.8  # a compiler may put the end of a function before its loops, which then seem to lie in one around them


@dataclass(frozen=True)
class Way:
    """Of one warp: instructions, and cycles if it were alone."""

    instructions: float
    cycles: float

    def __truediv__(self, n: float) -> Way:
        return Way(self.instructions / n, self.cycles / n)


@dataclass(frozen=True)
class Costs:
    """For rows of one type. A group has 256 tokens."""

    opening: Way  # of a group, with sums
    bare_opening: Way  # without
    visit: Way  # of a group that is looked at again, mean of the passes
    skipped: Way  # of a group that such a pass leaves out, because it can hold no survivor
    between_barriers: Way  # of the code from one block barrier to the next, median of all sites
    draw: Way  # of one token: the winning group, the winning token
    writing: Way  # of a group of masked logits


@dataclass(frozen=True)
class Sites:
    """In all row kernels."""

    fences: int  # of device scope,
    fence_instructions: int  # and all that the compiler puts beside them
    cluster_waits: int
    local: int  # loads and stores of local memory,
    local_in_loops: int  # those in a loop over tokens

    @property
    def fenced(self) -> float:
        """The share of waits for the cluster that are fences of device scope, as far as sites tell."""
        return min(1.0, self.fences / max(1, self.cluster_waits))


def built() -> Path | None:
    """The object that setup.py compiled last, if it compiled any."""
    found = sorted(ROOT.glob("build/objects-cuda-*/launch.o"), key=lambda path: path.stat().st_mtime)
    return found[-1] if found else None


@functools.cache
def _all_code(fat: Path) -> dict[str, sass.Code]:
    if fat.suffix == ".cubin":
        return sass.read(fat)
    with tempfile.TemporaryDirectory() as folder:
        return sass.read(sass.cubin_of(fat, engine.ARCHITECTURE, Path(folder)))


def kernel(fat: Path, name: str) -> Codes:
    """A kernel and the functions that it calls, by what the source calls them; a template is there once an instance."""
    codes = _all_code(fat)
    prefix = next((each for each in codes if f"{len(name)}{name}" in each and not each.startswith("$")), None)
    if prefix is None:
        raise ValueError(f"{fat} must hold the kernel {name}, and does not; see bench/gpu/model/engine.py.")
    found: Codes = {name: [codes[prefix]]}
    for full, code in codes.items():
        if full.startswith(f"${prefix}$"):
            found.setdefault(_plain(full[len(prefix) + 2 :].split("4cuda", 1)[-1]), []).append(code)
    return found


def _plain(mangled: str) -> str:
    """open_once of 9open_onceERNS1_4TeamEf, and of 9open_onceILb1EEvRNS1_4TeamE."""
    digits = "".join(itertools.takewhile(str.isdigit, mangled))
    return mangled[len(digits) : len(digits) + int(digits)] if digits else mangled


def _named(codes: Codes, names: Sequence[str]) -> list[sass.Code]:
    found = [code for name in names for code in codes.get(name, [])]
    if not found:
        raise ValueError(
            f"One of the functions {', '.join(names)} must be in the machine code, and none is; see bench/gpu/model/engine.py."
        )
    return found


# ---- ways ------------------------------------------------------------------------------------------------------------


def row_way(dtype: str, exponentials: int, opening: bool = False, aligned: bool = True) -> Worth:
    """Worth of an instruction on a way that moves rows of a type: in the opening loop from memory, in others from where they are
    held. `exponentials`: 1 if it has many, -1 if it has none."""
    others = [mark for name, marks in engine.UNPACKS.items() if name != dtype for mark in marks]
    moves = (*engine.STORES, *(engine.OPENING_LOADS if opening else engine.HELD_LOADS))

    def worth(instruction: sass.Instruction) -> int:
        name, text = instruction.name, instruction.text
        if name == "MUFU":
            return 4 * exponentials
        if name == "REDUX":
            return 1
        if ".128" in instruction.opcode and name in moves:
            if any(each in text for each in engine.SECOND_CHUNK):
                return 1 if dtype == "float32" else -(not instruction.is_predicated)
            # Other things than rows come from shared memory, too.
            return int(name not in engine.HELD_LOADS or opening)
        if opening and name in engine.NOT_COPIED:
            return -4
        if opening and name in engine.OPENING_LOADS and any(each in text for each in engine.SHIFTED):
            return -4 if aligned else 4
        if ".64" in instruction.opcode and name in engine.OPENING_LOADS and opening:
            return int(dtype != "float32")
        if ".128" in instruction.opcode and name in engine.OPENING_LOADS:
            return -1
        if name == "SHF" and opening:
            return -1 if aligned else 1
        if any(mark in text for mark in engine.UNPACKS[dtype]):
            return 1
        return -any(mark in text for mark in others)

    return worth


@dataclass(frozen=True)
class _Loop:
    code: sass.Code
    first: int
    last: int
    path: list[sass.Instruction]


def _best_loop(codes: Sequence[sass.Code], worth: Worth, nearly: float = NEARLY) -> _Loop:
    """Of all loops, the shortest of those whose ways are worth most, give or take what stands around such a loop in another one."""
    loops = [_Loop(code, first, last, way(code, first, last, worth)) for code in codes for first, last in code.loops]
    worths = [sum(map(worth, loop.path)) for loop in loops]
    most = max(worths, default=0)
    near = [loop for loop, value in zip(loops, worths, strict=True) if value >= nearly * most]
    found = min(near, key=lambda loop: len(loop.path)) if most > 0 else None
    if not found:
        names = ", ".join(code.name for code in codes)
        raise ValueError(f"{names} must have a loop over groups, and none was found; see bench/gpu/model/engine.py.")
    return found


def _of(path: Sequence[sass.Instruction]) -> Way:
    return Way(len(path), cycles(path, MEMORY))


def _longest(code: sass.Code, worth: Worth) -> list[sass.Instruction]:
    """A function from its start to its end, on the way that is worth most."""
    return way(code, 0, len(code.instructions) - 1, worth)


def _between_barriers(code: sass.Code) -> list[Way]:
    places = [place for place, instruction in enumerate(code.instructions) if instruction.name == "BAR"]
    paths = [way(code, first, last, meets()) for first, last in itertools.pairwise(places)]
    return [_of(path) for path in paths if path]


def _mean(ways: Sequence[Way]) -> Way:
    return Way(statistics.mean(each.instructions for each in ways), statistics.mean(each.cycles for each in ways))


@functools.cache
def costs(fat: Path, dtype: str = "float32", aligned: bool = True) -> Costs:
    codes = kernel(fat, "sample_kernel")

    def opening(exponentials: int) -> Way:
        # Its loads must be on the way: so no more is given away than one of them is worth.
        path = _best_loop(_named(codes, engine.OPENING), row_way(dtype, exponentials, True, aligned), 0.96).path
        return _of(path) / engine.GROUPS_A_STEP

    visits = [(_best_loop(_named(codes, [name]), row_way(dtype, 1)), groups) for name, groups in engine.VISITS.items()]
    draws = [_longest(_named(codes, [name])[0], meets("MUFU", "SHFL")) for name in engine.DRAW]
    between = [each for instances in codes.values() for code in instances for each in _between_barriers(code)]
    writing = _named(kernel(fat, "truncate_kernel"), engine.WRITING)
    return Costs(
        opening=opening(1),
        bare_opening=opening(-1),
        visit=_mean([_of(loop.path) / groups for loop, groups in visits]),
        skipped=_mean([_of(way(loop.code, loop.first, loop.last, meets())) / groups for loop, groups in visits]),
        between_barriers=Way(
            statistics.median(each.instructions for each in between), statistics.median(each.cycles for each in between)
        ),
        draw=Way(sum(map(len, draws)), sum(cycles(path, MEMORY) for path in draws)),
        writing=_of(_best_loop(writing, row_way(dtype, -1)).path),
    )


# ---- sites -----------------------------------------------------------------------------------------------------------


@functools.cache
def sites(fat: Path, names: tuple[str, ...] = engine.ROW_KERNELS) -> Sites:
    codes = [code for name in names for instances in kernel(fat, name).values() for code in instances]
    every = [instruction for code in codes for instruction in code.instructions]
    fences = sum(instruction.opcode in engine.FENCE for instruction in every)
    beside = sum(instruction.opcode.startswith(engine.BESIDE_A_FENCE) for instruction in every)
    local = sum(instruction.name in ("LDL", "STL") for instruction in every)
    waits = sum(instruction.opcode.startswith(engine.CLUSTER_WAITS) for instruction in every)
    return Sites(fences, fences + beside, waits, local, sum(_local_in_loops(code) for code in codes))


def _local_in_loops(code: sass.Code) -> int:
    """Loads and stores of local memory in the smallest loops that move row data."""
    moves = (*engine.OPENING_LOADS, *engine.HELD_LOADS)
    places = [k for k, each in enumerate(code.instructions) if each.name in moves and ".128" in each.opcode]
    inside = {place for k in places if (loop := code.loop_around(k)) for place in range(loop[0], loop[1] + 1)}
    return sum(code.instructions[place].name in ("LDL", "STL") for place in inside)
