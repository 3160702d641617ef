"""The budget of the CUDA engine's redesign, line by line: what the machine code and the emulation say now, and what it may be.

Where a GPU's time is meant, it is PREDICTED; the host's time is Python's part alone, measured on this CPU, without the launch.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from . import cost, engine, host
from .calls import VOCAB, Call, counted, predicted

NAMES = ("none", "min_p .05", "top_k 50", "top_p .95", "typical .9", "top_h .4")
KINDS = ("real", "T = 2", "flat", "peaked")
DTYPES = ("float32", "bfloat16")
LARGE = (64, 256)  # batches
ODD_VOCAB = 50257


@dataclass(frozen=True)
class Line:
    what: str
    today: tuple[float, ...]
    budget: tuple[float, ...]

    @property
    def is_met(self) -> bool:
        return all(found <= allowed for found, allowed in zip(self.today, self.budget, strict=True))


def lines(fat: Path) -> Iterator[Line]:
    yield from _of_code(fat)
    yield from _of_counts()
    yield from _of_times(fat)


def host_line() -> Line:
    return Line("host time of fd.sample without its launch, us, measured on this CPU", (host.time_of_a_call(),), (8,))


def _of_code(fat: Path) -> Iterator[Line]:
    costs, sites = cost.costs(fat), cost.sites(fat)
    openings = costs.opening, costs.bare_opening
    yield Line("opening pass, warp instructions a group of 256 tokens: with sums / without",
               tuple(each.instructions for each in openings), (120, 64))  # fmt: skip
    yield Line(
        "... latency of 4 groups, cycles: with sums / without", tuple(4 * each.cycles for each in openings), (1700, 900)
    )
    yield Line(
        "fences of device scope in the row kernels: sites / instructions",
        (sites.fences, sites.fence_instructions),
        (0, 0),
    )
    yield Line("loads and stores of local memory in the row kernels: all / in loops over tokens",
               (sites.local, sites.local_in_loops), (40, 0))  # fmt: skip
    yield Line("the draw, cycles, all survive", (costs.draw.cycles,), (1800,))


def _of_counts() -> Iterator[Line]:
    waits = tuple(max(counted(Call(name, kind)).cluster_barriers for kind in KINDS) for name in NAMES)
    yield Line(f"waits for the cluster, worst of {', '.join(KINDS)} rows: {_list(NAMES)}", waits, (3, 3, 4, 5, 5, 5))
    barriers = [Call("min_p .05"), Call("top_k 50"), Call("top_p .95"), Call("top_p .95", "flat")]
    yield Line("block barriers: min_p / top_k / top_p real / flat",
               tuple(counted(call).block_barriers for call in barriers), (8, 16, 24, 28))  # fmt: skip
    calls = [Call("top_p .95", kind) for kind in KINDS[:3]]
    visits = tuple(counted(call).visits(call.vocab, call.dtype, call.shape) for call in calls)
    yield Line(f"visits of groups, top_p {_list(KINDS[:3])} (63 groups a block)", visits, (80, 160, 160))


def _of_times(fat: Path) -> Iterator[Line]:
    def us(call: Call) -> float:
        return predicted(fat, call).us

    def worst(names: Iterable[str], dtype: str, over_kind: str = "") -> float:
        """Of large batches: time over one read, or of flat rows over real ones."""
        calls = [Call(name, "real", dtype, batch) for name, batch in itertools.product(names, LARGE)]
        if over_kind:
            return max(us(_with(call, kind=over_kind)) / us(call) for call in calls)
        return max(us(call) / call.one_read for call in calls)

    openings = [(cost.costs(fat, dtype, False), cost.costs(fat, dtype)) for dtype in DTYPES]
    yield Line("odd rows over even ones, opening pass alone, cycles with sums / without, fp32; bf16",
               tuple(getattr(odd, part).cycles / getattr(even, part).cycles for odd, even in openings for part in ("opening", "bare_opening")),
               (1.15,) * 4)  # fmt: skip
    odd = [[Call(name, "real", dtype, batch, ODD_VOCAB) for name, batch in itertools.product(("none", "top_p .95"), (1, *LARGE))]
           for dtype in DTYPES]  # fmt: skip
    yield Line(f"... whole call, V = {ODD_VOCAB}, none and top_p, B = 1, 64, 256: fp32 / bf16",
               tuple(max(us(_with(call, aligned=False)) / us(call) for call in calls) for calls in odd), (1.15, 1.15))  # fmt: skip

    def a_token(dtype: str, vocab: int) -> float:
        calls = [Call(name, "real", dtype, batch) for name, batch in itertools.product(("none", "top_p .95"), LARGE)]
        return max(us(_with(call, vocab=vocab)) / vocab / (us(call) / VOCAB) for call in calls)

    yield Line(f"time per token over that at V = {VOCAB}, none and top_p, B >= 64: V = 151936 fp32 / 262144 bf16",
               (a_token("float32", 151936), a_token("bfloat16", 262144)), (1.1, 1.1))  # fmt: skip
    yield Line(
        f"predicted us, B = 1, in a graph: {_list(NAMES)}",
        tuple(us(Call(name)) for name in NAMES),
        (8, 8, 12, 12, 12, 12),
    )
    yield Line("predicted B >= 64, time over one read, none and min_p: fp32 / bf16",
               tuple(worst(NAMES[:2], dtype) for dtype in DTYPES), (1.5, 2))  # fmt: skip
    yield Line(
        "... top_p, typical, top_h, real rows: fp32 / bf16",
        tuple(worst(NAMES[3:], dtype) for dtype in DTYPES),
        (2.5, 3.5),
    )
    yield Line(
        "... flat rows over real ones, all plans: fp32 / bf16",
        tuple(worst(NAMES, dtype, "flat") for dtype in DTYPES),
        (1.3, 1.3),
    )
    copies = [[Call(name, "real", dtype, batch, writes=True) for name, batch in itertools.product(("none", "min_p .05"), LARGE)]
              for dtype in DTYPES]  # fmt: skip
    yield Line("truncate, predicted copies of the logits, none and min_p, B >= 64: fp32 / bf16",
               tuple(max(us(call) / (2 * call.one_read) for call in calls) for calls in copies), (1.3, 1.3))  # fmt: skip


def _with(call: Call, **changes: object) -> Call:
    return Call(**{**vars(call), **changes})  # type: ignore[arg-type]


def _list(names: Iterable[str]) -> str:
    return " / ".join(name.split(" .")[0].split(" 50")[0] for name in names)


def table(lines: Iterable[Line]) -> list[str]:
    rows = [
        f"| {line.what} | {_numbers(line.today)} | {_numbers(line.budget, '<= ')} | {'met' if line.is_met else 'over'} |"
        for line in lines
    ]
    return [f"| {engine.ARCHITECTURE}, V = {VOCAB} | today | budget | |", "|---|---:|---:|---|", *rows]


def _numbers(numbers: Iterable[float], sign: str = "") -> str:
    return sign + " / ".join(f"{x:.2f}".rstrip("0").rstrip(".") if x < 10 else f"{x:.0f}" for x in numbers)
