"""The Triton engine's other outputs: masked logits, statistics, the best tokens of a row. See measure.py."""

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl

# isort: off
from .measure import (
    AT_DRAW, AT_ONE, BY_LOGIT, COUNT, FIELDS, GROUP, LN2, LOWEST, NAN, OK, SPAN, STOP_AFTER, Sums, Survivors,
    TEMPERATURE_AT, TILE, as_float, float_of, kernel, list_groups, listed, merge, plan_of, read_numbers, row_of,
    scale_of, start_of, tokens_at, without_inf,
)  # fmt: skip
from .search import Prefix, running_count, search

# What statistics_kernel is asked for, as bits.
ENTROPY, KEPT_MASS, MAX_PROB, MARGIN, RAW_LOGPROBS, LOGPROBS_OF = (tl.constexpr(1 << i) for i in range(6))


# Where answers go: fresh tensors, see measure.py.


class Statistics(NamedTuple):
    entropy_ptr: Any
    kept_mass_ptr: Any
    max_prob_ptr: Any
    margin_ptr: Any
    raw_logprobs_ptr: Any
    logprobs_of_ptr: Any


class Best(NamedTuple):
    logits_ptr: Any
    logprobs_ptr: Any
    ids_ptr: Any


@kernel
def write_kernel(
    logits_ptr, row_stride: tl.int64, vocab: tl.int32, limit: tl.int32, cuts_ptr, cuts_stride: tl.int64, n_cuts: tl.int32,
    memory, out_ptr, out_stride: tl.int64, filter_value: tl.float32, VEC: tl.constexpr,
):  # fmt: skip
    """x / T where a token survives, rounded once; `out` may be the logits: every token is read and written by one thread."""
    number = tl.program_id(0).to(tl.int64)
    row_ptr = start_of(logits_ptr, number * row_stride, VEC)
    out_ptr = start_of(out_ptr, number * out_stride, VEC)
    numbers = read_numbers(memory, number)
    limit = tl.where(numbers.status == OK, limit, 0)
    t = tl.load(cuts_ptr + number * cuts_stride + (n_cuts - 1) * FIELDS + TEMPERATURE_AT)
    greedy = t == 0
    t = tl.where(greedy, 1.0, t)
    for tile in range(tl.program_id(1), tl.cdiv(vocab, TILE * GROUP), tl.num_programs(1)):
        ids = tile * TILE * GROUP + tl.arange(0, TILE * GROUP)
        there = ids // VEC * VEC < vocab
        x = as_float(tl.load(row_ptr + ids, there, other=0.0))
        as_row = without_inf(x, numbers.overflow)
        stays = tl.where(greedy, ids == numbers.token, (as_row >= numbers.lo) & (as_row <= numbers.hi) & (ids < limit))
        divided = tl.div_rn(x, t + tl.zeros_like(x))
        # An infinity from rounding would be a NaN in the next softmax.
        most = largest_of(out_ptr.dtype.element_ty)
        held = tl.where(divided > most, most, tl.where(divided < -most, -most, divided))
        divided = tl.where(tl.abs(x) < float("inf"), held, divided)
        answer = tl.where(stays, divided, filter_value)
        answer = tl.where(numbers.status == NAN, divided, answer)  # so that the NaN stays visible
        if out_ptr.dtype.element_ty == tl.bfloat16:
            tl.store(out_ptr + ids, as_bf16(answer), there)
        else:
            tl.store(out_ptr + ids, answer.to(out_ptr.dtype.element_ty), there)


@triton.jit
def largest_of(dtype: tl.constexpr):
    """The largest number of a type."""
    return (
        65504.0 if dtype == tl.float16 else (3.3895313892515355e38 if dtype == tl.bfloat16 else 3.4028234663852886e38)
    )


@triton.jit
def as_bf16(x):
    """Rounded to the nearest, ties to even, as a GPU does it; the interpreter's own conversion truncates."""
    bits = x.to(tl.int32, bitcast=True)
    rounded = tl.where(x == x, bits + 0x7FFF + ((bits >> 16) & 1), bits)
    return (rounded >> 16).to(tl.int16).to(tl.bfloat16, bitcast=True)


@kernel
def statistics_kernel(
    logits_ptr, row_stride: tl.int64, limit: tl.int32, cuts_ptr, cuts_stride: tl.int64, n_cuts: tl.int32,
    memory, groups: tl.int32, plans: tl.int32, asked: tl.int32, to, tokens_ptr, num_samples: tl.int32,
    ids_ptr, num_ids: tl.int32, VEC: tl.constexpr,
):  # fmt: skip
    """`asked`: which statistics, as bits. Nothing is written to the other fields of `to`."""
    number = tl.program_id(0).to(tl.int64)  # of the row of answers: a row of logits has `plans` of them
    cuts_ptr = plan_of(cuts_ptr, cuts_stride, n_cuts, number // plans, number % plans)
    numbers = read_numbers(memory, number)
    row = row_of(logits_ptr, row_stride, limit, memory, groups, number, plans, numbers.overflow, VEC)
    fine = numbers.status == OK
    nan = tl.full((), float("nan"), tl.float32)

    # The distribution after temperature and before truncation; a greedy row's is one token.
    t = tl.load(cuts_ptr + (n_cuts - 1) * FIELDS + TEMPERATURE_AT)
    mass, moment, second = tl.full((), 1.0, tl.float64), tl.full((), 0.0, tl.float64), tl.full((), 0.0, tl.float64)
    if fine & (t != 0) & ((asked & (ENTROPY | KEPT_MASS | MAX_PROB | MARGIN)) != 0):
        mass, moment = merge(row, numbers.max_, AT_DRAW, scale_of(t), False)
        if asked & MARGIN:
            next = runner_up(row, numbers.max_, VEC)
            second = tl.exp((next.to(tl.float64) - numbers.max_) / t)
    if asked & ENTROPY:
        tl.store(to.entropy_ptr + number, tl.where(fine, tl.log(mass) - LN2 * moment / mass, nan).to(tl.float32))
    if asked & KEPT_MASS:
        kept = tl.minimum(numbers.mass / mass, 1.0)
        tl.store(to.kept_mass_ptr + number, tl.where(fine, kept, nan).to(tl.float32))
    if asked & MAX_PROB:
        tl.store(to.max_prob_ptr + number, tl.where(fine, 1 / mass, nan).to(tl.float32))
    if asked & MARGIN:
        tl.store(to.margin_ptr + number, tl.where(fine, (1 - second) / mass, nan).to(tl.float32))

    # The distribution at temperature 1, before any rule.
    if asked & (RAW_LOGPROBS | LOGPROBS_OF):
        ln_mass = ln_mass_at_one(row, numbers.max_)
        if asked & RAW_LOGPROBS:
            log_p_of(row, number, numbers, ln_mass, tokens_ptr, num_samples, to.raw_logprobs_ptr)
        if asked & LOGPROBS_OF:
            log_p_of(row, number, numbers, ln_mass, ids_ptr, num_ids, to.logprobs_of_ptr)


@triton.jit
def ln_mass_at_one(row, max_):
    mass, _ = merge(row, max_, AT_ONE, scale_of(tl.full((), 1.0, tl.float32)), False)
    return tl.log(mass)


@triton.jit
def log_p_of(row, number, numbers, ln_mass, ids_ptr, n, to_ptr):
    """ln p of n ids of a row; an id outside [0, limit) has none."""
    for start in range(0, n, GROUP):
        place = start + tl.arange(0, GROUP)
        ids = tl.load(ids_ptr + number * n + place, place < n, other=-1)
        there = (ids >= 0) & (ids < row.limit)
        x = without_inf(as_float(tl.load(row.logits_ptr + ids, there, other=-float("inf"))), row.overflow)
        log_p = tl.where(numbers.status == OK, x.to(tl.float64) - numbers.max_ - ln_mass, float("nan"))
        tl.store(to_ptr + number * n + place, log_p.to(tl.float32), place < n)


@triton.jit
def runner_up(row, max_, VEC: tl.constexpr):
    """The second largest logit of the row."""
    n_listed = list_groups(row, max_)
    maxima = tl.full((), 0, tl.int32)
    second = tl.full((), -float("inf"), tl.float32)
    for start in range(0, row.groups, SPAN):
        group = start + tl.arange(0, SPAN)
        top = tl.load(row.floats_ptr + group, group < row.groups, other=-float("inf"))
        second = tl.maximum(second, tl.max(tl.where(top < max_, top, -float("inf")), 0))
    for start in range(0, n_listed, TILE):
        group, valid = listed(row, start, n_listed, TILE)
        x = tokens_at(row, group, valid, VEC)
        maxima += tl.sum(tl.sum((x == max_).to(tl.int32), 1), 0)
        second = tl.maximum(second, tl.max(tl.max(tl.where(x < max_, x, -float("inf")), 1), 0))
    return tl.where(maxima > 1, max_, second)


@kernel
def best_kernel(
    logits_ptr, row_stride: tl.int64, limit: tl.int32, memory, groups: tl.int32, to, n: tl.int32, VEC: tl.constexpr,
):  # fmt: skip
    """The n largest logits, the lowest ids of those that tie, with ln p at temperature 1: in the order of their ids."""
    number = tl.program_id(0).to(tl.int64)
    numbers = read_numbers(memory, number)
    row = row_of(logits_ptr, row_stride, limit, memory, groups, number, 1, numbers.overflow, VEC)
    max_, fine = numbers.max_, numbers.status == OK

    bound = tl.full((), -float("inf"), tl.float32)  # where fewer tokens lie above -inf, some of those at -inf follow
    if fine & (numbers.alive >= n):
        one = tl.full((), 1.0, tl.float64)  # no sum of masses is asked for
        every = Survivors(tl.full((), LOWEST, tl.float32), max_, max_, tl.full((), 1.0, tl.float32))
        prefix = Prefix(
            n * 0 + BY_LOGIT, tl.full((), 0.0, tl.float32), n * 0 + COUNT, n * 0 + STOP_AFTER, n.to(tl.float64), n.to(tl.float32)
        )  # fmt: skip
        bound = float_of(search(row, every, prefix, Sums(numbers.alive, one, one), VEC))
    ln_mass = tl.full((), 0.0, tl.float64)
    above = tl.full((), 0, tl.int32)
    if fine:
        ln_mass = ln_mass_at_one(row, max_)
        above = count_above(row, bound, VEC)
    ties_left = n - above
    filled = tl.full((), 0, tl.int32)
    n_listed = list_groups(row, bound)
    for start in range(0, tl.where(fine, n_listed, 0), TILE):
        group, valid = listed(row, start, n_listed, TILE)
        x = tokens_at(row, group, valid, VEC)
        ids = group[:, None] * GROUP + tl.arange(0, GROUP)[None, :]
        ties = (x == bound) & valid[:, None] & (ids < limit)
        chosen = (x > bound) | (ties & (running_count(ties) <= ties_left))
        place = filled + running_count(chosen) - 1
        tl.store(to.ids_ptr + number * n + place, ids.to(tl.int64), chosen)
        tl.store(to.logits_ptr + number * n + place, x, chosen)
        filled += tl.sum(tl.sum(chosen.to(tl.int32), 1), 0)
        ties_left -= tl.sum(tl.sum(ties.to(tl.int32), 1), 0)
    tl.debug_barrier()  # logits that one thread wrote are read by another
    known = tl.where(fine, n, 0)
    for start in range(0, n, GROUP):
        place = start + tl.arange(0, GROUP)
        x = tl.load(to.logits_ptr + number * n + place, place < known, other=0.0)
        log_p = tl.where(fine, x.to(tl.float64) - max_ - ln_mass, float("nan"))
        tl.store(to.logprobs_ptr + number * n + place, log_p.to(tl.float32), place < n)
        tl.store(to.logits_ptr + number * n + place, x, place < n)
        tl.store(to.ids_ptr + number * n + place, tl.full((GROUP,), -1, tl.int64), (place >= known) & (place < n))


@triton.jit
def count_above(row, bound, VEC: tl.constexpr):
    n_listed = list_groups(row, tl.maximum(bound, LOWEST))
    above = tl.full((), 0, tl.int32)
    for start in range(0, n_listed, TILE):
        group, valid = listed(row, start, n_listed, TILE)
        x = tokens_at(row, group, valid, VEC)
        above += tl.sum(tl.sum((x > bound).to(tl.int32), 1), 0)
    return above
