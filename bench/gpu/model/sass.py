"""Compiled GPU code as data: the instructions of a cubin with what the assembler wrote into each about waiting, and its loops.

nvdisasm and cuobjdump come with CUDA; where they are not on PATH, Triton's package brings both.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path

_INSTRUCTION = re.compile(r"^\s+/\*([0-9a-f]{4,})\*/\s+(.*?)\s*;\s*/\* 0x([0-9a-f]{16}) \*/")
_SECOND_HALF = re.compile(r"^\s+/\* 0x([0-9a-f]{16}) \*/")
_LABEL = re.compile(r"^(\S+):\s*$")
_LINE = re.compile(r'File "([^"]+)", line (\d+)')
_OPCODE = re.compile(r"^(?:@!?U?P\w+\s+)?(\S+)")
_TARGET = re.compile(r"`\((.+?)\)")
NO_BARRIER = 7


@dataclass
class Instruction:
    """`stall`: cycles until the next one may issue. `sets`, `frees`: the scoreboard it counts down when its result is there, when
    its operands are read; `waits`: the scoreboards it waits for, as bits."""

    address: int
    text: str
    stall: int
    sets: int
    frees: int
    waits: int
    lines: tuple[tuple[str, int], ...] = ()  # its source, and the lines that this was inlined at

    @cached_property
    def opcode(self) -> str:
        """With its modifiers, as in LDG.E.128."""
        found = _OPCODE.match(self.text)
        assert found
        return found[1]

    @cached_property
    def name(self) -> str:
        return self.opcode.split(".")[0]

    @property
    def is_predicated(self) -> bool:
        return self.text.startswith("@")

    @cached_property
    def target(self) -> str | None:
        """The label that it may go to."""
        found = _TARGET.search(self.text) if self.name in ("BRA", "CALL", "BSSY", "WARPSYNC") else None
        return found[1] if found else None


@dataclass
class Code:
    """A kernel, or a function that is called and not inlined."""

    name: str
    instructions: list[Instruction] = field(default_factory=list)
    labels: dict[str, int] = field(default_factory=dict)  # the place in `instructions`

    def count(self, *names: str) -> int:
        return sum(instruction.name in names for instruction in self.instructions)

    @cached_property
    def loops(self) -> list[tuple[int, int]]:
        """First and last instruction of each loop, the smallest first: a branch back, and all between."""
        found = set()
        for place, instruction in enumerate(self.instructions):
            start = self.labels.get(instruction.target or "") if instruction.name == "BRA" else None
            # Every kernel ends in a branch to itself, which never runs.
            if start is not None and start < place:
                found.add((start, place))
        return sorted(found, key=lambda loop: loop[1] - loop[0])

    def loop_around(self, place: int) -> tuple[int, int] | None:
        return next((loop for loop in self.loops if loop[0] <= place <= loop[1]), None)


def tool(name: str) -> str:
    """The path of nvdisasm or cuobjdump."""
    found = shutil.which(name)
    triton = find_spec("triton")
    if not found and triton and triton.origin:
        found = shutil.which(name, path=str(Path(triton.origin).parent / "backends/nvidia/bin"))
    if not found:
        raise FileNotFoundError(
            f"{name} must be on PATH or in Triton's package, and is in neither; install CUDA or Triton."
        )
    return found


def cubin_of(fat: Path, architecture: str, folder: Path) -> Path:
    """The machine code for one architecture, such as sm_90, taken out of an object or a shared library into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    run([tool("cuobjdump"), "-xelf", architecture, str(fat.resolve())], cwd=folder)
    found = sorted(folder.glob(f"*.{architecture}.cubin")) + sorted(folder.glob(f"*.{architecture}a.cubin"))
    if not found:
        raise FileNotFoundError(
            f"{fat} must hold code for {architecture} and does not; build it with TORCH_CUDA_ARCH_LIST."
        )
    return found[0]


def read(cubin: Path, lines: bool = False) -> dict[str, Code]:
    """All code of a cubin by name; `lines`: with the source lines, where it was compiled with them."""
    return {
        code.name: code
        for code in parsed(run([tool("nvdisasm"), "-hex", "-c", *(["-gi"] if lines else []), str(cubin)]))
    }


def parsed(listing: str) -> Iterator[Code]:
    code, lines, lines_are_new = Code(""), list[tuple[str, int]](), True
    rows = iter(listing.splitlines())
    for row in rows:
        if row.lstrip().startswith("//##"):
            lines = [] if lines_are_new else lines
            lines_are_new = False
            where = _LINE.search(row)
            if where:
                lines.append((where[1], int(where[2])))
        elif instruction := _INSTRUCTION.match(row):
            second = _SECOND_HALF.match(next(rows))
            assert second, f"nvdisasm prints an instruction in two rows; got {row}"
            address, text, bits = int(instruction[1], 16), instruction[2], int(second[1], 16) >> 41
            control = (bits & 15, bits >> 5 & 7, bits >> 8 & 7, bits >> 11 & 63)
            code.instructions.append(Instruction(address, text, *control, tuple(lines)))
            lines_are_new = True
        elif label := _LABEL.match(row):
            if label[1].startswith(".L_"):
                code.labels[label[1]] = len(code.instructions)
            elif not label[1].startswith("."):
                if code.instructions:
                    yield code
                code = Code(label[1])
    if code.instructions:
        yield code


def run(command: list[str], cwd: Path | None = None) -> str:
    done = subprocess.run(command, cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed: {done.stdout}")
    return done.stdout
