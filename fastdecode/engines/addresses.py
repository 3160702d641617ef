"""Tensors to the addresses, strides and sizes that the compiled engines take. The caller keeps the tensors alive.

A call passes a tuple of numbers for each group, and last where to run: the threads, or a device and a stream. csrc/calls.h spells the
same groups in C++. `check` compares the names of both sides when an engine is loaded: two numbers swapped on one side would make an
address of a size.
"""

from __future__ import annotations

from typing import Any

import torch

from ..record import NOISES, STATISTICS, Draw, Mixing
from ..rules import FIELDS

CODE = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}

Numbers = tuple[int, ...]
Coordinate = tuple[int, int, int]
Softening = tuple[Numbers, Coordinate, Coordinate, tuple[int, int], tuple[float, ...], Numbers, Numbers]

# The numbers of each group, in order.
ROWS = ("logits", "dtype", "rows", "vocab", "row_stride", "vocab_limit", "cuts", "plans", "cuts_of_plan")
OUTPUT = ("out", "row_stride", "filter_value")
COORDINATE = ("number", "address", "stride")
STREAMS = ("address", "stride")
DRAWN = ("temperatures", "num_samples", "tokens", "logprobs", "kept", "status")
STATISTIC = (*STATISTICS, "top", "top_logprobs", "top_ids", "ids_per_row", "ids", "logprobs_of")
NOISE = ("noise", "strength", "tau", "taus", "tau_stride", "soft_rows", "straight")
SAMPLED = ("width", "candidates", "num_samples", "tokens", "logprobs", "kept", "status")
MIXTURE = ("ids", "weights", "tokens", "log_pi", "noise", "logprobs")
TABLE = ("table", "dtype", "vocab", "columns", "row_stride")
EMBEDDED = ("rows", "width", "ids", "weights", "out")


def _named(**groups: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(f"{group}.{number}" for group, numbers in groups.items() for number in numbers)


_DRAW = {"rows": ROWS, "seed": COORDINATE, "step": COORDINATE, "streams": STREAMS}
ARGUMENTS = {
    "cut": FIELDS,
    "truncate": _named(rows=ROWS, output=OUTPUT),
    "sample": _named(**_DRAW, drawn=DRAWN, statistics=STATISTIC),
    "soften": _named(**_DRAW, noise=NOISE, sampled=SAMPLED, mixture=MIXTURE),
    "embed": _named(table=TABLE, mixture=EMBEDDED),
}


def check(compiled: Any) -> None:
    """Compare the argument names of a compiled module with those above.

    Raises:
        ImportError: they differ: the module was compiled from other sources.
    """
    taken = {"cut": compiled.fields()} | getattr(compiled, "arguments", dict)()  # an older build has no such function
    for function, names in ARGUMENTS.items():
        other = tuple(taken.get(function, ()))
        if other != names:
            here = next(
                (i for i, pair in enumerate(zip(names, other)) if pair[0] != pair[1]), min(len(names), len(other))
            )
            passed, expected = (f"{one[here]!r}" if here < len(one) else "nothing" for one in (names, other))
            raise ImportError(
                f"the compiled extension takes {expected} where number {here} of {function!r} is {passed}: it was built from"
                " other sources; build it again"
            )


def rows_of(logits: torch.Tensor, cuts: torch.Tensor, vocab_limit: int) -> Numbers:
    """ROWS: logits and plans: [B or 1, number of cuts, ...], or with several temperatures [B or 1, T, number of cuts, ...]."""
    batch, vocab = logits.shape
    shape = cuts.shape
    return (
        logits.data_ptr(), CODE[logits.dtype], batch, vocab, logits.stride()[0], vocab_limit, cuts.data_ptr(), shape[0], shape[-2]
    )  # fmt: skip


def coordinate(value: int | torch.Tensor) -> Coordinate:
    """COORDINATE: a number; or the address and stride of one number for each row."""
    if isinstance(value, int):  # first, because isinstance with torch.Tensor is slow
        return value, 0, 0
    return 0, value.data_ptr(), value.stride(0)


def streams_of(draw: Draw) -> tuple[int, int]:
    """STREAMS: null for 0 .. B-1."""
    return (0, 0) if draw.streams is None else (draw.streams.data_ptr(), draw.streams.stride(0))


def softening(
    logits: torch.Tensor, cuts: torch.Tensor, candidates: torch.Tensor, draw: Draw, mixing: Mixing, sampled: dict[str, torch.Tensor]
) -> tuple[dict[str, torch.Tensor], Softening]:  # fmt: skip
    """Empty outputs for `soften` of an engine, and its groups of numbers."""
    shape, device = candidates.shape, logits.device
    made = {
        "ids": torch.empty(shape, dtype=torch.int64, device=device), "weights": torch.empty(shape, dtype=torch.float32, device=device),
        "tokens": torch.empty(shape[:1], dtype=torch.int64, device=device), "log_pi": torch.empty(shape, dtype=torch.float32, device=device),
        "noise": torch.empty(shape, dtype=torch.float32, device=device), "logprobs": torch.empty(shape[:1], dtype=torch.float32, device=device),
    }  # fmt: skip
    tau: tuple[float, int, int] = (mixing.tau, 0, 0) if isinstance(mixing.tau, (int, float)) else (0.0, 0, 0)
    if isinstance(mixing.tau, torch.Tensor):
        tau = (0.0, mixing.tau.data_ptr(), mixing.tau.stride(0))
    soft_rows = 0 if mixing.soft_rows is None else mixing.soft_rows.data_ptr()
    return made, (
        rows_of(logits, cuts, draw.vocab_limit), coordinate(draw.seed), coordinate(draw.step), streams_of(draw),
        (NOISES.index(mixing.noise), mixing.strength, *tau, soft_rows, mixing.straight_through),
        (shape[1], candidates.data_ptr(), draw.num_samples, *(sampled[name].data_ptr() for name in SAMPLED[3:])),
        tuple(made[name].data_ptr() for name in MIXTURE),
    )  # fmt: skip


def embedding(
    ids: torch.Tensor, weights: torch.Tensor, table: torch.Tensor
) -> tuple[torch.Tensor, tuple[Numbers, Numbers]]:
    """An empty output for `embed` of an engine, and its groups of numbers."""
    out = torch.empty(len(ids), table.shape[1], dtype=table.dtype, device=table.device)
    return out, (
        (table.data_ptr(), CODE[table.dtype], *table.shape, table.stride(0)),
        (*ids.shape, ids.data_ptr(), weights.data_ptr(), out.data_ptr()),
    )
