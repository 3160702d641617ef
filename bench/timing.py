"""Times of several candidates on the same rows, taken in turn, so that what slows the machine down slows all of them down.

In every round, for each input, each candidate is timed for `repeats` calls, and the round's sample is the mean of those. `repeats` is
calibrated so that a sample lasts long enough for the clock: one call where it lasts 5 microseconds. An input's time is the median of
its samples: one interrupted round does not make a slow row, and a row that is slow stays one.

Logits are new at every step of a model, so a call must not find the row of the call before: a processor learns the branches of a row
by heart, tens of thousands of them, and guesses each right when the row comes again at once. Therefore TOGETHER inputs take turns, and
the unmeasured call before each sample is on another one of them; then the input is read once, as logits that were just written lie in a
cache. Calls that take longer than WARM_NS get neither, as what a candidate left behind is nothing beside them.
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
TOGETHER = 4  # no more, so that what they write stays in the last cache as well
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
    collecting = gc.isenabled()
    gc.disable()
    try:
        for first in range(0, len(inputs), TOGETHER):
            some = inputs[first : first + TOGETHER]
            bound = {c.name: [_Bound(c, rows) for rows in some[: max(0, c.rows - first)]] for c in candidates}
            for name, each in bound.items():
                if name not in repeats:
                    repeats[name] = _calibrate(each[0].call, sample_ns)
            for turn in range(rounds):
                for place in range(len(some)):
                    for name, each in bound.items():
                        if place < len(each) and (turn < FEWEST or each[place].used <= budget_ms * 1e6):
                            each[place].take(turn, repeats[name], before=each[place - 1].call)
            for name, each in bound.items():
                found[name].samples += [one.samples for one in each]
    finally:
        if collecting:
            gc.enable()
    return found


class _Bound:
    """A candidate made ready for one input."""

    def __init__(self, candidate: Candidate, rows: torch.Tensor) -> None:
        self.given = candidate.prepare(rows)
        self.call = candidate.bind(self.given)
        self.used = 0
        self.samples: list[float] = []

    def take(self, turn: int, repeats: int, before: Callable[[], object]) -> None:
        """One sample, after a call `before` on another input."""
        kept: object = None
        if repeats > 1 or turn == 0 or self.used < turn * WARM_NS:
            kept = before()
            self.given.amax()
        start = perf_counter_ns()
        for _ in range(repeats):
            kept = self.call()
        taken = perf_counter_ns() - start
        del kept
        self.used += taken
        self.samples.append(taken / repeats / 1000 / len(self.given))


def _calibrate(call: Callable[[], object], sample_ns: int) -> int:
    best = math.inf
    for _ in range(3):
        start = perf_counter_ns()
        call()
        best = min(best, perf_counter_ns() - start)
        if best > sample_ns:
            return 1
    return max(1, math.ceil(sample_ns / best))
