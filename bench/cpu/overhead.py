"""Where the microseconds of a Python call go that the C++ code does not need: `fd.sample` taken apart, layer by layer.

Three calls with the same arguments are timed in turn: `fd.sample`; the engine's Python function, as `fd.sample` calls it; and the
C++ code, as that function calls it. What lies between them is split once more by timing two pieces alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch

import fastdecode as fd
from fastdecode.engines import cpu
from fastdecode.record import Sample

from .. import rows
from ..timing import Candidate, measure
from . import ours

SHORT = 64  # a row so short that the C++ time is next to nothing
SAMPLE_NS = 150_000  # call after call, as the row is not what is measured
PASSES = 5  # each takes a second, and a machine that is slow for a second would double what it shows: the median counts

Bind = Callable[[torch.Tensor], Callable[[], object]]


def _engine_function(whole: Bind) -> Bind:
    """The call of `cpu.sample` that `fd.sample` makes."""

    def bind(x: torch.Tensor) -> Callable[[], object]:
        calls: list[tuple] = []
        right = cpu.sample

        def noted(*args):
            calls.append(args)
            return right(*args)

        cpu.sample = noted
        try:
            whole(x)()
        finally:
            cpu.sample = right
        (args,) = calls
        return lambda: right(*args)

    return bind


def _outputs(engine_function: Bind) -> Bind:
    """The allocation of the engine's output tensors."""

    def bind(x: torch.Tensor) -> Callable[[], object]:
        made = [(tuple(t.shape), t.dtype) for t in engine_function(x)().values()]
        return lambda: [torch.empty(shape, dtype=dtype) for shape, dtype in made]

    return bind


def _answer(engine_function: Bind) -> Bind:
    """The object that the user gets."""

    def bind(x: torch.Tensor) -> Callable[[], object]:
        found = engine_function(x)()
        return lambda: Sample(**found)

    return bind


def measure_overhead(vocab: int) -> Iterator[dict]:
    """Records: of a short row, where the parts show best, and of a row of `vocab`."""
    for size in (SHORT, vocab):
        passes = [_measure(size) for _ in range(PASSES)]
        yield sorted(passes, key=lambda record: record["overhead_us"])[PASSES // 2]


def _measure(size: int) -> dict:
    torch.set_num_threads(1)
    plan = fd.plan(fd.min_p(0.05))
    whole = ours.sample(plan)
    function = _engine_function(whole)
    candidates = [
        Candidate("fd.sample", whole),
        Candidate("native.sample", function),
        Candidate("engine", ours.sample_engine(plan)),
        Candidate("outputs", _outputs(function)),
        Candidate("answer", _answer(function)),
        Candidate("one pybind11 call", lambda _: cpu._native.target),
    ]
    given = rows.rows("real", size, 4)
    timings = measure(candidates, [given[i : i + 1] for i in range(4)], rounds=31, sample_ns=SAMPLE_NS)
    us = {name: timing.median for name, timing in timings.items()}
    parts = {
        "checks, choice of the engine": us["fd.sample"] - us["native.sample"] - us["answer"],
        "Sample object": us["answer"],
        "output tensors": us["outputs"],
        "addresses, call": us["native.sample"] - us["engine"] - us["outputs"],
    }
    return {
        "what": "overhead", "rule": "min_p .05", "rows": "real", "V": size, "B": 1, "dtype": "float32", "T": 1.0, "threads": 1,
        "overhead_us": round(us["fd.sample"] - us["engine"], 3), "parts_us": {name: round(part, 3) for name, part in parts.items()},
        "us_per_row": {name: timing.summary() for name, timing in timings.items()},
    }  # fmt: skip


def line(record: dict) -> str:
    parts = ", ".join(f"{name} {us:.2f}" for name, us in record["parts_us"].items())
    whole, engine = record["us_per_row"]["fd.sample"]["median"], record["us_per_row"]["engine"]["median"]
    return f"Python overhead at V={record['V']}: fd.sample {whole:.2f} us, engine {engine:.2f}, between them {record['overhead_us']:.2f}: {parts}"
