"""What the Triton engine writes beside tokens: masked logits, statistics, the best tokens of a row. See measure.py."""

from __future__ import annotations

import triton
import triton.language as tl

# isort: off
from .measure import (
    ALIVE_AT, AT_DRAW, AT_ONE, BY_LOGIT, COUNT, FIELDS, GROUP, GROUP_FLOATS, GROUP_INTS, HI_AT, LN2, LO_AT, LOWEST,
    MASS_AT, MAX_AT, OVERFLOW_AT, ROW_NUMBERS, SPAN, STATUS_AT, STOP_AFTER, TEMPERATURE_AT, TILE, TOKEN_AT, as_float,
    float_of, kernel, list_groups, listed, merge, plan_of, row_of, scale_of, start_of, tokens_at, without_inf,
)  # fmt: skip
from .search import running_count, search

OK, NAN = tl.constexpr(0), tl.constexpr(1)

# What statistics_kernel is asked for, as bits.
ENTROPY, KEPT_MASS, MAX_PROB, MARGIN, RAW_LOGPROBS, LOGPROBS_OF = (tl.constexpr(1 << i) for i in range(6))


@kernel
def write_kernel(
    logits_ptr, row_stride: tl.int64, vocab: tl.int32, limit: tl.int32, cuts_ptr, cuts_stride: tl.int64, n_cuts: tl.int32,
    numbers_ptr, out_ptr, out_stride: tl.int64, filter_value: tl.float32, VEC: tl.constexpr,
):  # fmt: skip
    """x / T where a token survives, rounded once; `out` may be the logits: every token is read and written by one thread."""
    row = tl.program_id(0).to(tl.int64)
    row_ptr = start_of(logits_ptr, row * row_stride, VEC)
    out_ptr = start_of(out_ptr, row * out_stride, VEC)
    numbers_ptr += row * ROW_NUMBERS
    lo, hi = tl.load(numbers_ptr + LO_AT).to(tl.float32), tl.load(numbers_ptr + HI_AT).to(tl.float32)
    token = tl.load(numbers_ptr + TOKEN_AT).to(tl.int32)
    status = tl.load(numbers_ptr + STATUS_AT)
    limit = tl.where(status == OK, limit, 0)
    overflow = tl.load(numbers_ptr + OVERFLOW_AT) != 0
    t = tl.load(cuts_ptr + row * cuts_stride + (n_cuts - 1) * FIELDS + TEMPERATURE_AT)
    greedy = t == 0
    t = tl.where(greedy, 1.0, t)
    for tile in range(tl.program_id(1), tl.cdiv(vocab, TILE * GROUP), tl.num_programs(1)):
        ids = tile * TILE * GROUP + tl.arange(0, TILE * GROUP)
        there = ids // VEC * VEC < vocab
        x = as_float(tl.load(row_ptr + ids, there, other=0.0))
        as_row = without_inf(x, overflow)
        stays = tl.where(greedy, ids == token, (as_row >= lo) & (as_row <= hi) & (ids < limit))
        divided = tl.div_rn(x, t + tl.zeros_like(x))
        # An infinity that the type cannot help would be a NaN in the next softmax.
        most = largest_of(out_ptr.dtype.element_ty)
        held = tl.where(divided > most, most, tl.where(divided < -most, -most, divided))
        divided = tl.where(tl.abs(x) < float("inf"), held, divided)
        answer = tl.where(stays, divided, filter_value)
        answer = tl.where(status == NAN, divided, answer)  # so that the NaN stays visible
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
    """Rounded to the nearest, ties to even, as a GPU does it; the interpreter's own conversion cuts off."""
    bits = x.to(tl.int32, bitcast=True)
    rounded = tl.where(x == x, bits + 0x7FFF + ((bits >> 16) & 1), bits)
    return (rounded >> 16).to(tl.int16).to(tl.bfloat16, bitcast=True)


@kernel
def statistics_kernel(
    logits_ptr, row_stride: tl.int64, limit: tl.int32, cuts_ptr, cuts_stride: tl.int64, n_cuts: tl.int32,
    floats_ptr, ints_ptr, groups: tl.int32, plans: tl.int32, numbers_ptr, asked: tl.int32,
    entropy_ptr, kept_mass_ptr, max_prob_ptr, margin_ptr, tokens_ptr, raw_logprobs_ptr, num_samples: tl.int32,
    ids_ptr, logprobs_of_ptr, num_ids: tl.int32, VEC: tl.constexpr,
):  # fmt: skip
    """`asked`: which, as bits; the other pointers are not looked at."""
    row = tl.program_id(0).to(tl.int64)  # of the answers: a row of logits has `plans` of them
    row_ptr = start_of(logits_ptr, row // plans * row_stride, VEC)
    cuts_ptr = plan_of(cuts_ptr, cuts_stride, n_cuts, row // plans, row % plans)
    floats_ptr += row * row_of(GROUP_FLOATS, groups)
    ints_ptr += row * row_of(GROUP_INTS, groups)
    numbers_ptr += row * ROW_NUMBERS
    max = tl.load(numbers_ptr + MAX_AT).to(tl.float32)
    overflow = tl.load(numbers_ptr + OVERFLOW_AT) != 0
    fine = tl.load(numbers_ptr + STATUS_AT) == OK
    nan = tl.full((), float("nan"), tl.float32)

    # The distribution after temperature and before truncation; a greedy row's is one token.
    t = tl.load(cuts_ptr + (n_cuts - 1) * FIELDS + TEMPERATURE_AT)
    mass, moment, second = tl.full((), 1.0, tl.float64), tl.full((), 0.0, tl.float64), tl.full((), 0.0, tl.float64)
    if fine & (t != 0) & ((asked & (ENTROPY | KEPT_MASS | MAX_PROB | MARGIN)) != 0):
        mass, moment = merge(floats_ptr, groups, max, AT_DRAW, scale_of(t), False)
        if asked & MARGIN:
            next = runner_up(row_ptr, floats_ptr, ints_ptr, groups, limit, overflow, max, VEC)
            second = tl.exp((next.to(tl.float64) - max) / t)
    if asked & ENTROPY:
        tl.store(entropy_ptr + row, tl.where(fine, tl.log(mass) - LN2 * moment / mass, nan).to(tl.float32))
    if asked & KEPT_MASS:
        kept = tl.minimum(tl.load(numbers_ptr + MASS_AT) / mass, 1.0)
        tl.store(kept_mass_ptr + row, tl.where(fine, kept, nan).to(tl.float32))
    if asked & MAX_PROB:
        tl.store(max_prob_ptr + row, tl.where(fine, 1 / mass, nan).to(tl.float32))
    if asked & MARGIN:
        tl.store(margin_ptr + row, tl.where(fine, (1 - second) / mass, nan).to(tl.float32))

    # The distribution at temperature 1, before any rule.
    if asked & (RAW_LOGPROBS | LOGPROBS_OF):
        ln_mass = ln_mass_at_one(floats_ptr, groups, max)
        if asked & RAW_LOGPROBS:
            log_p_of(row_ptr, tokens_ptr, raw_logprobs_ptr, row, num_samples, limit, overflow, max, ln_mass, fine)
        if asked & LOGPROBS_OF:
            log_p_of(row_ptr, ids_ptr, logprobs_of_ptr, row, num_ids, limit, overflow, max, ln_mass, fine)


@triton.jit
def ln_mass_at_one(floats_ptr, groups, max):
    mass, _ = merge(floats_ptr, groups, max, AT_ONE, scale_of(tl.full((), 1.0, tl.float32)), False)
    return tl.log(mass)


@triton.jit
def log_p_of(row_ptr, ids_ptr, to_ptr, row, n, limit, overflow, max, ln_mass, fine):
    """ln p of n ids of a row; an id outside [0, limit) has none."""
    for start in range(0, n, GROUP):
        place = start + tl.arange(0, GROUP)
        ids = tl.load(ids_ptr + row * n + place, place < n, other=-1)
        there = (ids >= 0) & (ids < limit)
        x = without_inf(as_float(tl.load(row_ptr + ids, there, other=-float("inf"))), overflow)
        log_p = tl.where(fine, x.to(tl.float64) - max - ln_mass, float("nan"))
        tl.store(to_ptr + row * n + place, log_p.to(tl.float32), place < n)


@triton.jit
def runner_up(row_ptr, floats_ptr, ints_ptr, groups, limit, overflow, max, VEC: tl.constexpr):
    """The second largest logit of the row."""
    n_listed = list_groups(floats_ptr, ints_ptr, groups, max)
    maxima = tl.full((), 0, tl.int32)
    second = tl.full((), -float("inf"), tl.float32)
    for start in range(0, groups, SPAN):
        group = start + tl.arange(0, SPAN)
        top = tl.load(floats_ptr + group, group < groups, other=-float("inf"))
        second = tl.maximum(second, tl.max(tl.where(top < max, top, -float("inf")), 0))
    for start in range(0, n_listed, TILE):
        group, valid = listed(ints_ptr, groups, start, n_listed, TILE)
        x = tokens_at(row_ptr, group, valid, limit, overflow, VEC)
        maxima += tl.sum(tl.sum((x == max).to(tl.int32), 1), 0)
        second = tl.maximum(second, tl.max(tl.max(tl.where(x < max, x, -float("inf")), 1), 0))
    return tl.where(maxima > 1, max, second)


@kernel
def best_kernel(
    logits_ptr, row_stride: tl.int64, limit: tl.int32, floats_ptr, ints_ptr, groups: tl.int32, numbers_ptr,
    best_ptr, logprobs_ptr, ids_ptr, n: tl.int32, VEC: tl.constexpr,
):  # fmt: skip
    """The n largest logits, the lowest ids of those that tie, with ln p at temperature 1: in the order of their ids."""
    row = tl.program_id(0).to(tl.int64)
    row_ptr = start_of(logits_ptr, row * row_stride, VEC)
    floats_ptr += row * row_of(GROUP_FLOATS, groups)
    ints_ptr += row * row_of(GROUP_INTS, groups)
    numbers_ptr += row * ROW_NUMBERS
    max = tl.load(numbers_ptr + MAX_AT).to(tl.float32)
    alive = tl.load(numbers_ptr + ALIVE_AT)
    overflow = tl.load(numbers_ptr + OVERFLOW_AT) != 0
    fine = tl.load(numbers_ptr + STATUS_AT) == OK

    bound = tl.full((), -float("inf"), tl.float32)  # where fewer tokens lie above -inf, some of those at -inf follow
    if fine & (alive >= n):
        whole = tl.full((), 1.0, tl.float64)  # no sum of masses is asked for
        key = search(
            row_ptr, floats_ptr, ints_ptr, groups, limit, overflow, tl.full((), LOWEST, tl.float32), max, max,
            tl.full((), 1.0, tl.float32), tl.full((), 0.0, tl.float32), n * 0 + BY_LOGIT, n * 0 + COUNT, n * 0 + STOP_AFTER,
            n.to(tl.float64), n.to(tl.float32), alive, whole, whole, VEC,
        )  # fmt: skip
        bound = float_of(key)
    ln_mass = tl.full((), 0.0, tl.float64)
    above = tl.full((), 0, tl.int32)
    if fine:
        ln_mass = ln_mass_at_one(floats_ptr, groups, max)
        above = count_above(row_ptr, floats_ptr, ints_ptr, groups, limit, overflow, bound, VEC)
    ties_left = n - above
    filled = tl.full((), 0, tl.int32)
    n_listed = list_groups(floats_ptr, ints_ptr, groups, bound)
    for start in range(0, tl.where(fine, n_listed, 0), TILE):
        group, valid = listed(ints_ptr, groups, start, n_listed, TILE)
        x = tokens_at(row_ptr, group, valid, limit, overflow, VEC)
        ids = group[:, None] * GROUP + tl.arange(0, GROUP)[None, :]
        ties = (x == bound) & valid[:, None] & (ids < limit)
        chosen = (x > bound) | (ties & (running_count(ties) <= ties_left))
        place = filled + running_count(chosen) - 1
        tl.store(ids_ptr + row * n + place, ids.to(tl.int64), chosen)
        tl.store(best_ptr + row * n + place, x, chosen)
        filled += tl.sum(tl.sum(chosen.to(tl.int32), 1), 0)
        ties_left -= tl.sum(tl.sum(ties.to(tl.int32), 1), 0)
    tl.debug_barrier()  # logits that one thread wrote are read by another
    known = tl.where(fine, n, 0)
    for start in range(0, n, GROUP):
        place = start + tl.arange(0, GROUP)
        x = tl.load(best_ptr + row * n + place, place < known, other=0.0)
        log_p = tl.where(fine, x.to(tl.float64) - max - ln_mass, float("nan"))
        tl.store(logprobs_ptr + row * n + place, log_p.to(tl.float32), place < n)
        tl.store(best_ptr + row * n + place, x, place < n)
        tl.store(ids_ptr + row * n + place, tl.full((GROUP,), -1, tl.int64), (place >= known) & (place < n))


@triton.jit
def count_above(row_ptr, floats_ptr, ints_ptr, groups, limit, overflow, bound, VEC: tl.constexpr):
    n_listed = list_groups(floats_ptr, ints_ptr, groups, tl.maximum(bound, LOWEST))
    above = tl.full((), 0, tl.int32)
    for start in range(0, n_listed, TILE):
        group, valid = listed(ints_ptr, groups, start, n_listed, TILE)
        x = tokens_at(row_ptr, group, valid, limit, overflow, VEC)
        above += tl.sum(tl.sum((x > bound).to(tl.int32), 1), 0)
    return above
