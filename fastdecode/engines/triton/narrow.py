"""The Triton engine's narrow: one program runs the cuts of one row, then draws. See measure.py."""

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl

# isort: off
from .draw import coordinate_of, draw, first_of
from .measure import (
    AT_FIRST, BY_LOGIT, COUNT, DRAW, EMPTY, FIELDS, FLOOR, KEEP_AT, KIND_AT, LANES, LAST_KEY, LN2, LOWEST, LSE_AT,
    MASKED, MASKED_FLOAT16, MEASURE_AT, NAN, NEED_AT, NO_KEY, Numbers, OFFSET_AT, OFFSET_H_AT, OK, ORDER_AT, P2_AT,
    PREFIX, Row, SD_AT, SLACK, SPAN, STOP_AFTER, STOP_AT, Sums, Survivors, TEMPERATURE_AT, TILE, WITHIN_AT,
    float_of, kernel, key_of, list_groups, listed, lowest_of_lanes, merge, plan_of, round_up, row_of, scale_of,
    scaled, survivor_sums, tokens_at, typicality, wants_sums, write_numbers,
)  # fmt: skip
from .search import Prefix, needed, search


class Cut(NamedTuple):
    """What a cut's fields say of its walk; `walks`: it has one."""

    kind: Any
    order: Any
    measure: Any
    stop: Any
    need: Any
    within: Any
    keep: Any
    walks: Any


@kernel
def rows_kernel(
    logits_ptr, row_stride: tl.int64, limit: tl.int32, cuts_ptr, cuts_stride: tl.int64, n_cuts: tl.int32,
    memory, groups: tl.int32, plans: tl.int32, seed_ptr, seed: tl.int64, seed_stride: tl.int64,
    step_ptr, step: tl.int64, step_stride: tl.int64, stream_ptr, stream: tl.int64, stream_stride: tl.int64,
    num_samples: tl.int32, drawn, VEC: tl.constexpr, DRAWS: tl.constexpr,
):  # fmt: skip
    """2. search and 3. narrow: every cut of the plan; then, if DRAWS, 4. draw. Without it the arguments of the draw are None."""
    number = tl.program_id(0).to(tl.int64)  # of the row of answers: a row of logits has `plans` of them
    source = number // plans
    cuts_ptr = plan_of(cuts_ptr, cuts_stride, n_cuts, source, number % plans)
    row, max_, alive, status = open_row(
        row_of(logits_ptr, row_stride, limit, memory, groups, number, plans, False, VEC)
    )
    survivors, sums = run_cuts(row, max_, alive, cuts_ptr, tl.where(status == OK, n_cuts, 0), DRAWS, VEC)

    # A greedy row takes its largest logit, the lowest id on ties.
    temperature = tl.load(cuts_ptr + (n_cuts - 1) * FIELDS + TEMPERATURE_AT)
    n_listed = list_groups(row, survivors.lo)
    greedy_token = tl.full((), -1, tl.int32)
    if (status == OK) & (temperature == 0):
        greedy_token = first_of(row, n_listed, survivors.top, VEC)
    if DRAWS:
        # A finite plan always leaves mass. But parameters on a GPU are not checked, and only a token of the row may be drawn.
        drawable = (temperature == 0) | (sums.mass > 0)
        status = tl.where((status == OK) & (drawable == 0), EMPTY, status)
    kept_mass = sums.mass * tl.exp((survivors.top - max_).to(tl.float64) / tl.maximum(temperature, 1e-38))
    mass = tl.where(temperature == 0, 1.0, kept_mass)
    write_numbers(
        memory, number, Numbers(survivors.lo, survivors.hi, greedy_token, mass, max_, status, row.overflow, alive)
    )
    if DRAWS:
        tl.store(drawn.status_ptr + number, status.to(tl.uint8))
        kept = tl.where(temperature == 0, 1, sums.n).to(tl.int64)
        tl.store(drawn.kept_ptr + number, tl.where(status == OK, kept, 0))
        seed = coordinate_of(seed_ptr, seed, seed_stride, source)
        step = coordinate_of(step_ptr, step, step_stride, source)
        stream = coordinate_of(stream_ptr, source + stream, stream_stride, source)
        for sample in range(num_samples):
            token = greedy_token.to(tl.int64)
            logprob = tl.where(status == OK, 0.0, float("nan")).to(tl.float32)
            if (status == OK) & (temperature != 0):
                token, x = draw(row, n_listed, survivors, seed, step, stream, sample, VEC)
                logprob = ((x.to(tl.float64) - survivors.top) / temperature - tl.log(sums.mass)).to(tl.float32)
            tl.store(drawn.tokens_ptr + number * num_samples + sample, token)
            tl.store(drawn.logprobs_ptr + number * num_samples + sample, logprob)


@triton.jit
def run_cuts(row, max_, alive, cuts_ptr, n_cuts, DRAWS: tl.constexpr, VEC: tl.constexpr):
    """What survives all cuts, at the last cut's scale, and the sums over it."""
    zero = tl.full((), 0.0, tl.float32)
    survivors = Survivors(tl.full((), LOWEST, tl.float32), tl.full((), float("inf"), tl.float32), max_, zero)
    sums = Sums(alive, tl.full((), 0.0, tl.float64), tl.full((), 0.0, tl.float64))
    known = survivors
    first_c = tl.where(wants_sums(cuts_ptr), scale_of(tl.load(cuts_ptr + TEMPERATURE_AT)), 0.0)
    for place in range(n_cuts):
        survivors, sums, known = run_cut(
            row, max_, cuts_ptr + place * FIELDS, survivors, sums, known, first_c, DRAWS, VEC
        )
    return survivors, sums


@triton.jit
def run_cut(row, max_, cut_ptr, survivors, sums, known, first_c, DRAWS: tl.constexpr, VEC: tl.constexpr):
    """What survives a cut. `known`: the survivors, and the scale, that `sums` belong to; `first_c`: the scale that measure used."""
    t = tl.load(cut_ptr + TEMPERATURE_AT)
    survivors = Survivors(survivors.lo, survivors.hi, survivors.top, scale_of(t))
    cut = read_cut(cut_ptr)
    if needs_sums(cut, cut_ptr, survivors, known) & (t != 0) & ((cut.kind != DRAW) | DRAWS):
        if (survivors.lo == LOWEST) & (survivors.hi == float("inf")) & (survivors.c == first_c):
            mass, moment = merge(row, max_, AT_FIRST, survivors.c, True)
            sums = Sums(sums.n, mass, moment)
        else:
            sums = survivor_sums(row, list_groups(row, survivors.lo), survivors, VEC)
        known = survivors

    # What survives the cut are the keys at or above `kept_key`; the first group of a walk always does.
    cuts = (t != 0) & (
        (cut.kind == FLOOR) | (cut.walks & (cut.need < float("inf")))
    )  # a greedy row has nothing left to cut
    kept_key = tl.where(cut.order == BY_LOGIT, key_of(survivors.top), LAST_KEY)
    if cuts & (cut.kind == FLOOR):
        kept_key = key_of(floor_edge(row, cut_ptr, survivors, sums, VEC))
    centre = tl.where(sums.mass > 0, sums.moment / tl.where(sums.mass > 0, sums.mass, 1.0), 0.0).to(tl.float32)
    survivors, known, kept_key = walk_cut(row, cut, cuts, t, centre, survivors, sums, known, kept_key, VEC)

    # 3. narrow
    lo, hi, top = survivors.lo, survivors.hi, survivors.top
    if cuts & (kept_key > NO_KEY):
        if (cut.kind == PREFIX) & (cut.order != BY_LOGIT):
            lo, hi = extent(row, survivors, centre, kept_key, VEC)
            top = hi
        else:
            lo = tl.maximum(lo, float_of(kept_key))
    return Survivors(lo, hi, top, survivors.c), sums, known


@triton.jit
def read_cut(cut_ptr):
    kind = tl.load(cut_ptr + KIND_AT).to(tl.int32)
    order, measure = tl.load(cut_ptr + ORDER_AT).to(tl.int32), tl.load(cut_ptr + MEASURE_AT).to(tl.int32)
    stop = tl.load(cut_ptr + STOP_AT).to(tl.int32)
    need, within, keep = tl.load(cut_ptr + NEED_AT), tl.load(cut_ptr + WITHIN_AT), tl.load(cut_ptr + KEEP_AT)
    walks = (kind == PREFIX) & ((need < float("inf")) | (within < float("inf")))
    return Cut(kind, order, measure, stop, need, within, keep, walks)


@triton.jit
def needs_sums(cut, cut_ptr, survivors, known):
    """Must the survivors be added up for this cut?"""
    counted = (known.lo == survivors.lo) & (known.hi == survivors.hi)
    summed = counted & (known.c == survivors.c) & (known.top == survivors.top)
    needs = tl.where(cut.kind == PREFIX, cut.walks & wants_sums(cut_ptr), wants_sums(cut_ptr)) & (summed == 0)
    return needs | ((cut.walks | (cut.keep > 1)) & (counted == 0))


@triton.jit
def walk_cut(row, cut, cuts, t, centre, survivors, sums, known, kept_key, VEC: tl.constexpr):
    """The key down to which a cut keeps: up to three walks. One loop, so that `search` is compiled once."""
    lo, known_lo, known_c, mass, moment = survivors.lo, known.lo, known.c, sums.mass, sums.moment
    for walk in range(3):
        run = cuts & (cut.kind == PREFIX)
        order, measure, stop, goal = cut.order, cut.measure, cut.stop, cut.need
        if walk == 0:  # how far `within` reaches
            run = cut.walks & (cut.within < sums.n) & (t != 0)
            order, measure, stop, goal = order * 0, measure * 0, stop * 0, cut.within
        elif walk == 1:  # how many tokens must be kept
            run = cuts & ((cut.keep > 1) | ((cut.kind == PREFIX) & (stop != STOP_AFTER) & (order != BY_LOGIT)))
            measure, stop, goal = measure * 0, stop * 0, cut.keep
        if run:
            now = Survivors(lo, survivors.hi, survivors.top, survivors.c)
            need = needed(measure, stop, goal, mass, moment)
            prefix = Prefix(order, centre, measure, stop, need, tl.where(measure == COUNT, goal, 64.0))
            key = search(row, now, prefix, Sums(sums.n, mass, moment), VEC)
            if walk > 0:
                kept_key = tl.minimum(kept_key, tl.where((stop != STOP_AFTER) & (key > NO_KEY), key + 1, key))
            else:
                lo, mass, moment = keep_within(row, key, cut.within, now, VEC)
                known_lo = survivors.hi  # neither the sums nor the count are those of the survivors
                known_c = known_c * 0
    survivors = Survivors(lo, survivors.hi, survivors.top, survivors.c)
    return survivors, Survivors(known_lo, known.hi, known.top, known_c), kept_key


@triton.jit
def keep_within(row, key, within, survivors, VEC: tl.constexpr):
    """Only the `within` largest exist for a cut: its lowest logit, and mass and moment with a share of the ties that straddle."""
    boundary = float_of(key)
    above = Survivors(float_of(key + 1), survivors.hi, survivors.top, survivors.c)
    sums = survivor_sums(row, list_groups(row, above.lo), above, VEC)
    y = scaled(boundary, survivors.top, survivors.c)
    tied = (within.to(tl.float64) - sums.n) * tl.exp2(y)
    return tl.maximum(survivors.lo, boundary), sums.mass + tied, sums.moment + tied * y


@triton.jit
def open_row(row):
    """The row, in which +inf is replaced from here on, its largest logit, the number of its tokens above -inf, and its status."""
    floats_ptr, ints_ptr, groups = row.floats_ptr, row.ints_ptr, row.groups
    max_ = tl.full((), -float("inf"), tl.float32)
    alive = tl.full((), 0, tl.int32)
    nans = tl.full((), 0, tl.int32)
    for start in range(0, groups, SPAN):
        group = start + tl.arange(0, SPAN)
        top = tl.load(floats_ptr + group, group < groups, other=-float("inf"))
        nans += tl.sum((top != top).to(tl.int32), 0)
        max_ = tl.maximum(max_, tl.max(tl.where(top == top, top, -float("inf")), 0))
    overflow = max_ == float("inf")
    for start in range(0, groups, SPAN):
        group = start + tl.arange(0, SPAN)
        top = tl.load(floats_ptr + group, group < groups, other=-float("inf"))
        top = tl.where(overflow, tl.where(top == float("inf"), 0.0, -float("inf")), top)
        alive += tl.sum(tl.where(top > -float("inf"), tl.load(ints_ptr + group, group < groups, other=0), 0), 0)
        if overflow:
            tl.store(floats_ptr + group, top, group < groups)
    tl.debug_barrier()
    status = tl.where(nans > 0, NAN, tl.where(alive == 0, EMPTY, OK))
    row = Row(row.logits_ptr, floats_ptr, ints_ptr, groups, row.limit, overflow)
    return row, tl.where(overflow, 0.0, max_), alive, status


@triton.jit
def floor_edge(row, cut_ptr, survivors, sums, VEC: tl.constexpr):
    """The smallest logit that a floor keeps; never above the largest survivor."""
    t, top = tl.load(cut_ptr + TEMPERATURE_AT), survivors.top
    w_lse, w_sd, w_p2 = tl.load(cut_ptr + LSE_AT), tl.load(cut_ptr + SD_AT), tl.load(cut_ptr + P2_AT)
    offset_h = tl.load(cut_ptr + OFFSET_H_AT)
    edge = tl.load(cut_ptr + OFFSET_AT).to(tl.float64)
    if offset_h < float("inf"):
        entropy = tl.log(sums.mass) - LN2 * sums.moment / sums.mass
        edge = tl.minimum(edge, offset_h - entropy)
    if w_lse != 0:
        edge += w_lse * tl.log(sums.mass)
    if (w_sd != 0) | (w_p2 != 0):
        # First the mean, in units in which no sum of logits overflows; then the squares around it. A row that holds a logit of
        # 1e38 keeps these units: what underflows in them cannot change its deviation.
        n_listed = list_groups(row, survivors.lo)
        masked = MASKED_FLOAT16 if row.logits_ptr.dtype.element_ty == tl.float16 else MASKED
        unmasked = tl.maximum(survivors.lo, float_of(key_of(tl.full((), masked, tl.float32)) + 1))
        counted = Survivors(tl.where(top > masked, unmasked, survivors.lo), survivors.hi, top, survivors.c)
        centre = top
        unit = tl.full((), 2.0**-70, tl.float32)
        total, squares, mass2 = tl.full((), 0.0, tl.float64), tl.full((), 0.0, tl.float64), tl.full((), 0.0, tl.float64)
        count = tl.full((), 0.0, tl.float64)
        for look in range(2):
            count, total, squares, mass2 = spread(row, n_listed, counted, centre, unit, VEC)
            if look == 0:
                mean = total / count / unit
                unit = tl.where(mean > -1e12, 1.0, unit)
                centre = (top + mean).to(tl.float32)
        variance = tl.maximum(squares - total * total / count, 0.0) / tl.maximum(count - 1, 1.0)
        if w_sd != 0:
            edge += w_sd * (tl.sqrt(variance) / unit / t)
        if w_p2 != 0:
            edge += w_p2 * (tl.log(mass2) - 2 * tl.log(sums.mass))
    return round_up(top + t * tl.minimum(edge - SLACK, 0.0))


@triton.jit
def spread(row, n_listed, survivors, centre, unit, VEC: tl.constexpr):
    """The number of survivors, and the sums of e = (x - centre) * unit, of its square, and of 4^y."""
    n = tl.zeros((TILE,), tl.int32)
    total = tl.zeros((TILE,), tl.float64)
    squares = tl.zeros((TILE,), tl.float64)
    mass2 = tl.zeros((TILE,), tl.float64)
    for start in range(0, n_listed, TILE):
        group, valid = listed(row, start, n_listed, TILE)
        x = tokens_at(row, group, valid, VEC)
        inside = (x >= survivors.lo) & (x <= survivors.hi)
        e = tl.where(inside, x * unit - centre * unit, 0.0)
        w = tl.where(inside, tl.exp2(scaled(x, survivors.top, survivors.c)), 0.0)
        n += tl.sum(inside.to(tl.int32), 1)
        total += tl.sum(e, 1).to(tl.float64)
        squares += tl.sum(e * e, 1).to(tl.float64)
        mass2 += tl.sum(w * w, 1).to(tl.float64)
    return tl.sum(n, 0).to(tl.float64), tl.sum(total, 0), tl.sum(squares, 0), tl.sum(mass2, 0)


@triton.jit
def extent(row, survivors, centre, kept_key, VEC: tl.constexpr):
    """The least and the largest logit of the survivors at or above a key of the typicality order."""
    least = tl.full((TILE, LANES), float("inf"), tl.float32)
    most = tl.full((TILE, LANES), float("inf"), tl.float32)  # the least -x
    n_listed = list_groups(row, survivors.lo)
    for start in range(0, n_listed, TILE):
        group, valid = listed(row, start, n_listed, TILE)
        x = tokens_at(row, group, valid, VEC)
        key = key_of(typicality(x, survivors.top, survivors.c, centre))
        stays = (x >= survivors.lo) & (x <= survivors.hi) & (key >= kept_key)
        least = tl.minimum(least, lowest_of_lanes(tl.where(stays, x, float("inf")), VEC))
        most = tl.minimum(most, lowest_of_lanes(tl.where(stays, -x, float("inf")), VEC))
    return tl.min(tl.min(least, 1), 0), -tl.min(tl.min(most, 1), 0)
