"""The Triton engine's draw: tokens of one row, by the two levels of csrc/philox.h. See measure.py."""

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl

# isort: off
from .measure import (
    GROUP, GROUP_STREAM, LAST_KEY, REQUESTS, SAMPLE_STREAM, SPAN, SURVIVING, TILE, TOKEN_STREAM, as_float, listed,
    scaled, tokens_at, without_inf,
)  # fmt: skip


class Drawn(NamedTuple):
    """Where the answers of a draw go. All are fresh tensors: see measure.py."""

    tokens_ptr: Any
    logprobs_ptr: Any
    kept_ptr: Any
    status_ptr: Any


@triton.jit
def coordinate_of(values_ptr, value, stride, number):
    """A row's own seed, step or stream; with stride -1 it is `value`."""
    return tl.load(values_ptr + number * stride, stride >= 0, other=value)


@triton.jit
def exponentials(seed, step, stream, index):
    """-log(v) at coordinates, in float64: mass / -log(v) has the order of log mass + Gumbel noise."""
    quad = (index >> 2).to(tl.uint32)
    zero = quad * 0
    w0, w1, w2, w3 = tl.philox(
        seed, quad, zero + step.to(tl.uint32), zero + stream.to(tl.uint32), zero + (stream >> 32).to(tl.uint32)
    )
    lane = index & 3
    word = tl.where(lane == 0, w0, tl.where(lane == 1, w1, tl.where(lane == 2, w2, w3)))
    v = ((~word).to(tl.float64) + 0.5) * 2.3283064365386963e-10
    return -tl.log(v)


@triton.jit
def draw(row, n_listed, survivors, seed, step, request, sample, VEC: tl.constexpr):
    """A token and its logit: the winning group of 256 ids, then the winner inside it; the lowest id wins a tie."""
    stream = tl.full((), SAMPLE_STREAM, tl.int64) * sample | (request & REQUESTS)
    best = tl.full((), -1.0, tl.float64)
    winner = tl.full((), 0, tl.int32)
    for start in range(0, n_listed, SPAN):
        group, valid = listed(row, start, n_listed, SPAN)
        mass = tl.load(row.floats_ptr + SURVIVING * row.groups + group, valid, other=0.0)
        score = tl.where(mass > 0, mass.to(tl.float64) / exponentials(seed, step, stream | GROUP_STREAM, group), -1.0)
        largest = tl.max(score, 0)
        first = tl.min(tl.where(score == largest, group, LAST_KEY), 0)
        winner = tl.where(largest > best, first, winner)
        best = tl.maximum(largest, best)

    ids = winner * GROUP + tl.arange(0, GROUP)
    x = without_inf(as_float(tl.load(row.logits_ptr + ids, ids < row.limit, other=-float("inf"))), row.overflow)
    y = scaled(x, survivors.top, survivors.c)
    score = tl.exp2(y).to(tl.float64) / exponentials(seed, step, stream | TOKEN_STREAM, ids)
    score = tl.where((x >= survivors.lo) & (x <= survivors.hi), score, -1.0)
    token = tl.min(tl.where(score == tl.max(score, 0), ids, LAST_KEY), 0)
    return token.to(tl.int64), tl.max(tl.where(ids == token, x, -float("inf")), 0)


@triton.jit
def first_of(row, n_listed, wanted, VEC: tl.constexpr):
    """The lowest id whose logit is `wanted`."""
    first = tl.full((), LAST_KEY, tl.int32)
    for start in range(0, n_listed, TILE):
        group, valid = listed(row, start, n_listed, TILE)
        x = tokens_at(row, group, valid, VEC)
        ids = group[:, None] * GROUP + tl.arange(0, GROUP)[None, :]
        first = tl.minimum(first, tl.min(tl.min(tl.where(x == wanted, ids, LAST_KEY), 1), 0))
    return first
