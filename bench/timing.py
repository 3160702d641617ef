"""Times of several candidates on the same rows, taken in turn, so that what slows the machine down slows all of them down.

In every round, for each input, each candidate is timed for `repeats` calls, and the round's sample is the mean of those. `repeats` is
calibrated so that a sample lasts long enough for the clock: one call where it lasts 5 microseconds. An input's time is the median of its samples:
one interrupted round does not make a slow row, and a row that is slow stays one.

Logits are new at every step of a model, so a call must not find them where it has just been: a processor learns the branches of a row
by heart, tens of thousands of them, and guesses each right when the same row comes again. Therefore one round goes through all inputs before the
next begins, and the unmeasured call before each sample is on another input; then the input is read once, as logits that were just
written lie in a cache. Calls that take longer than WARM_NS get neither, as what a candidate left behind is nothing beside them.
"""

from __future__ import annotations

import gc
import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from time import perf_counter_ns

import torch

SAMPLE_NS = 5_000  # a sample lasts at least so long; the clock resolves some 50 ns
# With several threads: a core that was idle while one thread was timed takes some milliseconds to reach its speed, and the
# scheduler as long to give each thread its own. A model that runs between two calls keeps its cores awake.
THREADED_SAMPLE_NS = 10_000_000
WARM_NS = 5_000_000
FEWEST = 2  # rounds of a candidate that has used up its time


@dataclass(frozen=True)
class Candidate:
    """Something to time. `bind` prepares it for logits [B, V] and returns the call that is timed."""

    name: str
    bind: Callable[[torch.Tensor], Callable[[], object]]
    rows: int = 10**9  # time it on the first so many rows only
    prepare: Callable[[torch.Tensor], torch.Tensor] = lambda logits: logits  # what it is given: not timed


@dataclass
class Timing:
    """Microseconds per row of logits: `samples[i]` are those of the i-th input, one for each round."""

    samples: list[list[float]] = field(default_factory=list)

    @property
    def per_input(self) -> list[float]:
        return [statistics.median(s) for s in self.samples]

    @property
    def spread_over(self) -> list[float]:
        """Medians of the inputs; where there is one input only (a batch), its samples."""
        return self.per_input if len(self.samples) > 1 else self.samples[0]

    @property
    def median(self) -> float:
        return statistics.median(self.spread_over)

    def summary(self) -> dict[str, float | int | None]:
        values = sorted(self.spread_over)
        return {
            "median": round(self.median, 3),
            "p10": round(quantile(values, 0.1), 3),
            "p90": round(quantile(values, 0.9), 3),
            "min": round(min(map(min, self.samples)), 3),
            "slowest_row": round(max(values), 3) if len(self.samples) > 1 else None,
            "inputs": len(self.samples),
            "rounds": len(self.samples[0]),
        }


def quantile(ordered: Sequence[float], share: float) -> float:
    """Of sorted values, interpolated."""
    place = share * (len(ordered) - 1)
    low = math.floor(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)


def measure(
    candidates: Sequence[Candidate],
    inputs: Sequence[torch.Tensor],
    rounds: int,
    budget_ms: float = 10.0,
    sample_ns: int = SAMPLE_NS,
) -> dict[str, Timing]:
    """Time every candidate on every input [B, V]; one that has taken `budget_ms` on an input sits out its later rounds.

    Whoever binds a candidate makes sure that its result is looked at afterwards: work whose result nobody reads may be
    skipped by a lazy library. Here the last result of each call is kept until the next one.
    """
    found = {c.name: Timing() for c in candidates}
    repeats: dict[str, int] = {}
    kept: object = None
    collecting = gc.isenabled()
    gc.disable()
    try:
        given = {c.name: [c.prepare(rows) for rows in inputs[: c.rows]] for c in candidates}
        calls = {c.name: [c.bind(rows) for rows in given[c.name]] for c in candidates}
        used = {name: [0] * len(bound) for name, bound in calls.items()}
        for name, bound in calls.items():
            repeats[name] = _calibrate(bound[0], sample_ns)
            found[name].samples = [[] for _ in bound]
        for turn in range(rounds):
            for place, rows in enumerate(inputs):
                for name, bound in calls.items():
                    if place >= len(bound) or (turn >= FEWEST and used[name][place] > budget_ms * 1e6):
                        continue
                    n, call = repeats[name], bound[place]
                    if n > 1 or turn == 0 or used[name][place] < turn * WARM_NS:
                        kept = bound[place - 1]()
                        given[name][place].amax()
                    start = perf_counter_ns()
                    for _ in range(n):
                        kept = call()
                    taken = perf_counter_ns() - start
                    used[name][place] += taken
                    found[name].samples[place].append(taken / n / 1000 / len(rows))
    finally:
        if collecting:
            gc.enable()
    del kept
    return found


def _calibrate(call: Callable[[], object], sample_ns: int) -> int:
    best = math.inf
    for _ in range(3):
        start = perf_counter_ns()
        call()
        best = min(best, perf_counter_ns() - start)
        if best > sample_ns:
            return 1
    return max(1, math.ceil(sample_ns / best))
