"""The goals for the CPU, and whether the results reach them. V = 128256, float32, real rows (stand-ins), one thread, B = 1.

A token is held against one read of the row. A mask has to be written as well, so it is held against one copy of it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from ..records import Results
from .grid import MAIN


@dataclass(frozen=True)
class Goal:
    """One figure and its bound."""

    what: str
    bound: float
    at_most: bool
    measured: float | None  # None: this run has no such case
    remark: str = ""

    @property
    def reached(self) -> str:
        if self.measured is None:
            return "not measured"
        return "yes" if (self.measured <= self.bound if self.at_most else self.measured >= self.bound) else "no"

    @property
    def wanted(self) -> str:
        return f"{'at most' if self.at_most else 'at least'} {self.bound:g}"


SEARCHING = ("none", "top_p .95", "typical .9", "top_h .4")
OVER_HF = {"none": 100, "min_p .05": 300, "top_p .95": 300, "typical .9": 300, "top_h .4": 100}


def goals(results: Results) -> Iterator[Goal]:
    def field(name: str, **where: object) -> float | None:
        record = results.one(**where)
        return None if record is None else record[name]

    for rule, bound in (("min_p .05", 1.5), ("top_k 50", 2.0), *((rule, 6.5) for rule in SEARCHING)):
        yield Goal(f"{rule}, T=1: time / one read", bound, True, field("ratio_to_read", rule=rule))
    for rule in SEARCHING:
        yield Goal(f"{rule}, T=2: time / one read", 12, True, field("ratio_to_read", rule=rule, T=2.0))
        slowest = field("slowest_row_ratio_to_read", rule=rule, T=2.0)
        yield Goal(f"{rule}, T=2: slowest row / one read", 40, True, slowest)
    masks = [r for r in SEARCHING if r != "none"]  # a mask of every finite logit is a copy
    for rule, bound in (("min_p .05", 1.5), ("top_k 50", 2.0), *((rule, 6.5) for rule in masks)):
        yield Goal(f"{rule}, T=1, mask: time / one copy", bound, True, field("ratio_to_copy", rule=rule, what="mask"))
    for rule in masks:
        yield Goal(
            f"{rule}, T=2, mask: time / one copy", 12, True, field("ratio_to_copy", rule=rule, T=2.0, what="mask")
        )
        slowest = field("slowest_row_ratio_to_copy", rule=rule, T=2.0, what="mask")
        yield Goal(f"{rule}, T=2, mask: slowest row / one copy", 40, True, slowest)
    for rule, bound in OVER_HF.items():
        record = results.one(rule=rule) or {"peers_over_engine": {}, "peers_over_call": {}}
        call = record["peers_over_call"].get("hf")
        yield Goal(
            f"{rule}, T=1: transformers' step / engine", bound, False, record["peers_over_engine"].get("hf"),
            f"{_number(call)} over `fd.sample`" if call else "",
        )  # fmt: skip
    yield _worst("llama.cpp / engine, all shared rules, T=1", 10, _llama(results), "llama.cpp is not installed")
    yield _worst(
        "bfloat16: float32 time / bfloat16 time",
        1,
        _compared(results, "engine, float32", dtype="bfloat16", B=1, what="token"),
    )
    two = [
        pair
        for batch in (8, 32)
        for pair in _compared(results, "engine, 1 thread", B=batch, dtype="float32", V=128256, what="token")
    ]
    yield _worst("two threads, B >= 8: one thread's time / two threads'", 1.7, two)
    yield Goal("Python overhead of `fd.sample` at B=1, µs", 12, True, field("overhead_us", what="overhead"))


def _llama(results: Results) -> list[tuple[float, str]]:
    cases = [
        r for r in results.all(V=128256, B=1, T=1.0, what="token", rows="real", dtype="float32") if r["threads"] == 1
    ]
    return [(r["peers_over_engine"]["llama.cpp"], r["rule"]) for r in cases if "llama.cpp" in r["peers_over_engine"]]


def _compared(results: Results, with_name: str, **where: object) -> list[tuple[float, str]]:
    """The ratio of another way to call the engine to the usual one, for the main rules."""
    return [
        (r["peers_over_engine"][with_name], f"{r['rule']}, T={r['T']:g}, B={r['B']}")
        for r in results.all(rows="real", **where)
        if with_name in r["peers_over_engine"] and r["rule"] in MAIN
    ]


def _worst(what: str, bound: float, found: list[tuple[float, str]], otherwise: str = "") -> Goal:
    """The smallest of some ratios, and where it was."""
    if not found:
        return Goal(what, bound, False, None, otherwise)
    worst, where = min(found)
    return Goal(what, bound, False, worst, f"the least of {len(found)}: {where}")


def _number(value: float) -> str:
    return f"{value:.3g}" if value < 100 else f"{value:.0f}"
