"""The way that a warp takes through compiled code, and how long it is on it.

The way through a loop is the one that meets most of some instructions (the exponentials of a pass, say) and is otherwise the
shortest: what is rare (an infinity, an odd row, a slow division) lies on longer ones. So no address and no decision stands here,
and another compiler or another engine is read the same way.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from .constants import LATENCY, OTHER_LATENCY, TAKEN_BRANCH
from .sass import NO_BARRIER, Code, Instruction

# What a path is drawn to: how much an instruction is worth.
Worth = Callable[[Instruction], int]

_LEAVES = ("EXIT", "RET", "BRX")


def meets(*names: str, avoids: Sequence[str] = ()) -> Worth:
    """Worth 1 for instructions of these names, -1 for those to be avoided."""
    return lambda instruction: (instruction.name in names) - (instruction.name in avoids)


def way(code: Code, first: int, last: int, worth: Worth) -> list[Instruction]:
    """From instruction `first` to `last`, to a branch back to `first` or out of the function, without any other branch back."""
    instructions = code.instructions
    # By place: the best way there so far, as (worth, -instructions, where from).
    best: dict[int, tuple[int, int, int]] = {first: (0, 0, -1)}
    ends: list[int] = []
    for place in range(first, last + 1):
        if place not in best:
            continue
        here = instructions[place]
        value, length, _ = best[place]
        score = (value + worth(here), length - 1)
        nexts = []
        is_branch = here.name in ("BRA", *_LEAVES)
        if not is_branch or is_conditional(here):
            nexts.append(place + 1)
        if here.name == "BRA" and here.target in code.labels:
            goal = code.labels[here.target]
            if goal > place:
                nexts.append(goal)
            elif goal == first:
                ends.append(place)
        if place == last or (here.name == "RET" and not here.is_predicated):
            ends.append(place)
        for goal in nexts:
            if goal <= last and (*score, place) > best.get(goal, (-(1 << 30), 0, 0)):
                best[goal] = (*score, place)
    if not ends:
        return []
    place = max(ends, key=lambda end: (best[end][0] + worth(instructions[end]), best[end][1]))
    found = []
    while place >= 0:
        found.append(instructions[place])
        place = best[place][2]
    return found[::-1]


def is_conditional(instruction: Instruction) -> bool:
    """A branch may have a condition before it or, as BRA.DIV and BRA.U, among its operands."""
    return instruction.is_predicated or instruction.opcode != "BRA" or "," in instruction.text


def cycles(path: Sequence[Instruction], memory: int) -> int:
    """How long one warp alone takes for a path, if loads from memory take `memory` cycles."""
    time, ready = 0, [0] * 8
    for place, instruction in enumerate(path):
        for barrier in range(6):
            if instruction.waits >> barrier & 1:
                time = max(time, ready[barrier])
        is_load = instruction.name in ("LD", "LDG")
        latency = memory if is_load else LATENCY.get(instruction.name, OTHER_LATENCY)
        if instruction.sets != NO_BARRIER:
            ready[instruction.sets] = max(ready[instruction.sets], time + latency)
        if instruction.frees != NO_BARRIER:  # its operands are read long before a load is back
            ready[instruction.frees] = max(ready[instruction.frees], time + min(latency, OTHER_LATENCY * 2))
        time += max(1, instruction.stall)
        jumps = place + 1 < len(path) and path[place + 1].address != instruction.address + 16
        time += TAKEN_BRANCH if jumps else 0
    return max(time, *ready[:6])
