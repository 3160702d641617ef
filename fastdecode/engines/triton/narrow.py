"""The Triton engine's narrow and draw: one program runs the cuts of one row. See measure.py."""

from __future__ import annotations

import triton
import triton.language as tl

# isort: off
from .measure import (
    ALIVE_AT, AT_FIRST, BY_LOGIT, COUNT, DRAW, FIELDS, FLOOR, GROUP, GROUP_FLOATS, GROUP_INTS, GROUP_STREAM, HI_AT,
    KEEP_AT, KIND_AT, LANES, LAST_KEY, LN2, LO_AT, LOWEST, LSE_AT, MASKED, MASKED_FLOAT16, MASS_AT, MAX_AT,
    MEASURE_AT, NEED_AT, NO_KEY, OFFSET_AT, OFFSET_H_AT, ORDER_AT, OVERFLOW_AT, P2_AT, PREFIX, REQUESTS, ROW_NUMBERS,
    SAMPLE_STREAM, SD_AT, SLACK, SPAN, STATUS_AT, STOP_AFTER, STOP_AT, SURVIVING, TEMPERATURE_AT, TILE, TOKEN_AT,
    TOKEN_STREAM, WITHIN_AT, as_float, float_of, kernel, key_of, list_groups, listed, lowest_of_lanes, merge, plan_of,
    round_up, row_of, scale_of, scaled, spread, start_of, survivor_sums, tokens_at, typicality, wants_sums,
    without_inf,
)  # fmt: skip
from .search import needed, search

OK, NAN, EMPTY = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2)


@kernel
def rows_kernel(
    logits_ptr, row_stride: tl.int64, limit: tl.int32, cuts_ptr, cuts_stride: tl.int64, n_cuts: tl.int32,
    floats_ptr, ints_ptr, groups: tl.int32, plans: tl.int32, numbers_ptr,
    seed_ptr, seed: tl.int64, seed_stride: tl.int64, step_ptr, step: tl.int64, step_stride: tl.int64,
    stream_ptr, stream: tl.int64, stream_stride: tl.int64, num_samples: tl.int32, tokens_ptr, logprobs_ptr, kept_ptr, status_ptr,
    VEC: tl.constexpr, DRAWS: tl.constexpr,
):  # fmt: skip
    """2. search and 3. narrow: every cut of the plan; then, if DRAWS, 4. draw: else the pointers and numbers for it are None."""
    row = tl.program_id(0).to(tl.int64)  # of the answers: a row of logits has `plans` of them
    given = row // plans
    row_ptr = start_of(logits_ptr, given * row_stride, VEC)
    cuts_ptr = plan_of(cuts_ptr, cuts_stride, n_cuts, given, row % plans)
    floats_ptr += row * row_of(GROUP_FLOATS, groups)
    ints_ptr += row * row_of(GROUP_INTS, groups)
    numbers_ptr += row * ROW_NUMBERS
    max, alive, overflow, status = open_row(floats_ptr, ints_ptr, groups)

    # The survivors: the tokens of [lo, hi]. What is known of them holds for one interval and one scale.
    lo = tl.full((), LOWEST, tl.float32)
    hi = tl.full((), float("inf"), tl.float32)
    top = max  # the largest survivor
    n = alive
    mass, moment = tl.full((), 0.0, tl.float64), tl.full((), 0.0, tl.float64)
    known_lo, known_hi, known_top, known_c = lo, hi, top, tl.full((), 0.0, tl.float32)
    first_c = tl.where(wants_sums(cuts_ptr), scale_of(tl.load(cuts_ptr + TEMPERATURE_AT)), 0.0)
    temperature = tl.load(cuts_ptr + (n_cuts - 1) * FIELDS + TEMPERATURE_AT)
    for place in range(tl.where(status == OK, n_cuts, 0)):
        cut_ptr = cuts_ptr + place * FIELDS
        kind = tl.load(cut_ptr + KIND_AT).to(tl.int32)
        t = tl.load(cut_ptr + TEMPERATURE_AT)
        c = scale_of(t)
        order, measure = tl.load(cut_ptr + ORDER_AT).to(tl.int32), tl.load(cut_ptr + MEASURE_AT).to(tl.int32)
        need, within, keep = tl.load(cut_ptr + NEED_AT), tl.load(cut_ptr + WITHIN_AT), tl.load(cut_ptr + KEEP_AT)
        walks = (kind == PREFIX) & ((need < float("inf")) | (within < float("inf")))
        counted = (known_lo == lo) & (known_hi == hi)
        known = counted & (known_c == c) & (known_top == top)
        wanted = tl.where(kind == PREFIX, walks & wants_sums(cut_ptr), wants_sums(cut_ptr)) & (known == 0)
        wanted |= (walks | (keep > 1)) & (counted == 0)
        wanted &= (t != 0) & ((kind != DRAW) | DRAWS)  # a greedy row has nothing left to cut
        if wanted:
            if (lo == LOWEST) & (hi == float("inf")) & (c == first_c):
                mass, moment = merge(floats_ptr, groups, max, AT_FIRST, c, True)
            else:
                n_listed = list_groups(floats_ptr, ints_ptr, groups, lo)
                n, mass, moment = survivor_sums(
                    row_ptr, floats_ptr, ints_ptr, groups, n_listed, limit, overflow, lo, hi, top, c, VEC
                )
            known_lo, known_hi, known_top, known_c = lo, hi, top, c

        # What survives the cut are the keys at or above `kept_key`; the first group of a walk always does.
        stop = tl.load(cut_ptr + STOP_AT).to(tl.int32)
        cuts = (t != 0) & ((kind == FLOOR) | (walks & (need < float("inf"))))
        kept_key = tl.where(order == BY_LOGIT, key_of(top), LAST_KEY)
        if cuts & (kind == FLOOR):
            kept_key = key_of(floor_edge(
                row_ptr, floats_ptr, ints_ptr, groups, limit, overflow, cut_ptr, lo, hi, top, t, c, mass, moment, VEC
            ))  # fmt: skip
        whole_mass, whole_moment = mass, moment
        centre = tl.where(mass > 0, moment / tl.where(mass > 0, mass, 1.0), 0.0).to(tl.float32)
        # Up to three walks: how far `within` reaches, how many must be kept, and the one that the cut is about.
        for walk in range(3):
            run = cuts & (kind == PREFIX)
            by, quantity, how, goal = order, measure, stop, need
            if walk == 0:
                run = walks & (within < n) & (t != 0)
                by, quantity, how, goal = order * 0, measure * 0, stop * 0, within
            elif walk == 1:
                run = cuts & ((keep > 1) | ((kind == PREFIX) & (stop != STOP_AFTER) & (order != BY_LOGIT)))
                quantity, how, goal = measure * 0, stop * 0, keep
            if run:
                whole = tl.where(quantity == COUNT, n.to(tl.float64), whole_mass)
                target = needed(quantity, how, goal, whole_mass, whole_moment)
                rank = tl.where(quantity == COUNT, goal, 64.0)
                key = search(
                    row_ptr, floats_ptr, ints_ptr, groups, limit, overflow, lo, hi, top, c, centre, by, quantity, how, target, rank,
                    whole, whole_mass, whole_moment, VEC,
                )  # fmt: skip
                if walk > 0:
                    kept_key = tl.minimum(kept_key, tl.where((how != STOP_AFTER) & (key > NO_KEY), key + 1, key))
                else:
                    # Only the `within` largest exist for this cut; of a straddling group of ties, its share.
                    boundary = float_of(key)
                    lo = tl.maximum(lo, boundary)
                    next = float_of(key + 1)
                    n_listed = list_groups(floats_ptr, ints_ptr, groups, next)
                    above, above_mass, above_moment = survivor_sums(
                        row_ptr, floats_ptr, ints_ptr, groups, n_listed, limit, overflow, next, hi, top, c, VEC
                    )
                    y = scaled(boundary, top, c)
                    tied = (within.to(tl.float64) - above) * tl.exp2(y)
                    whole_mass, whole_moment = above_mass + tied, above_moment + tied * y
                    known_lo = hi  # neither the sums nor the count are those of the survivors
                    known_c = c * 0

        # 3. narrow
        if cuts & (kept_key > NO_KEY):
            if (kind == PREFIX) & (order != BY_LOGIT):
                lo, hi = extent(
                    row_ptr, floats_ptr, ints_ptr, groups, limit, overflow, lo, hi, top, c, centre, kept_key, VEC
                )
                top = hi
            else:
                lo = tl.maximum(lo, float_of(kept_key))

    # A greedy row takes its largest logit, the lowest id on ties.
    n_listed = list_groups(floats_ptr, ints_ptr, groups, lo)
    greedy_token = tl.full((), -1, tl.int32)
    if (status == OK) & (temperature == 0):
        greedy_token = first_of(row_ptr, ints_ptr, groups, n_listed, limit, overflow, top, VEC)
    if DRAWS:
        # No finite plan leaves no mass. But nobody has looked at parameters on a GPU, and what is drawn is a token of the row, or none.
        drawn = (temperature == 0) | (mass > 0)
        status = tl.where((status == OK) & (drawn == 0), EMPTY, status)
    kept_mass = mass * tl.exp((top - max).to(tl.float64) / tl.maximum(temperature, 1e-38))
    tl.store(numbers_ptr + LO_AT, lo.to(tl.float64))
    tl.store(numbers_ptr + HI_AT, hi.to(tl.float64))
    tl.store(numbers_ptr + TOKEN_AT, greedy_token.to(tl.float64))
    tl.store(numbers_ptr + MASS_AT, tl.where(temperature == 0, 1.0, kept_mass))
    tl.store(numbers_ptr + MAX_AT, max.to(tl.float64))
    tl.store(numbers_ptr + STATUS_AT, status.to(tl.float64))
    tl.store(numbers_ptr + OVERFLOW_AT, overflow.to(tl.float64))
    tl.store(numbers_ptr + ALIVE_AT, alive.to(tl.float64))
    if DRAWS:
        tl.store(status_ptr + row, status.to(tl.uint8))
        kept = tl.where(temperature == 0, 1, n).to(tl.int64)
        tl.store(kept_ptr + row, tl.where(status == OK, kept, 0))
        seed = tl.load(seed_ptr + given * seed_stride, seed_stride >= 0, other=seed)
        step = tl.load(step_ptr + given * step_stride, step_stride >= 0, other=step)
        stream = tl.load(stream_ptr + given * stream_stride, stream_stride >= 0, other=given + stream)
        for sample in range(num_samples):
            token = greedy_token.to(tl.int64)
            logprob = tl.where(status == OK, 0.0, float("nan")).to(tl.float32)
            if (status == OK) & (temperature != 0):
                token, x = draw(
                    row_ptr, floats_ptr, ints_ptr, groups, n_listed, limit, overflow, lo, hi, top, scale_of(temperature), seed, step, stream, sample, VEC
                )  # fmt: skip
                logprob = ((x.to(tl.float64) - top) / temperature - tl.log(mass)).to(tl.float32)
            tl.store(tokens_ptr + row * num_samples + sample, token)
            tl.store(logprobs_ptr + row * num_samples + sample, logprob)


@triton.jit
def open_row(floats_ptr, ints_ptr, groups):
    """The row's largest logit, its tokens above -inf, whether it held +inf, and its status; +inf is dealt with from here on."""
    max = tl.full((), -float("inf"), tl.float32)
    alive = tl.full((), 0, tl.int32)
    nans = tl.full((), 0, tl.int32)
    for start in range(0, groups, SPAN):
        group = start + tl.arange(0, SPAN)
        top = tl.load(floats_ptr + group, group < groups, other=-float("inf"))
        nans += tl.sum((top != top).to(tl.int32), 0)
        max = tl.maximum(max, tl.max(tl.where(top == top, top, -float("inf")), 0))
    overflow = max == float("inf")
    for start in range(0, groups, SPAN):
        group = start + tl.arange(0, SPAN)
        top = tl.load(floats_ptr + group, group < groups, other=-float("inf"))
        top = tl.where(overflow, tl.where(top == float("inf"), 0.0, -float("inf")), top)
        alive += tl.sum(tl.where(top > -float("inf"), tl.load(ints_ptr + group, group < groups, other=0), 0), 0)
        if overflow:
            tl.store(floats_ptr + group, top, group < groups)
    tl.debug_barrier()
    status = tl.where(nans > 0, NAN, tl.where(alive == 0, EMPTY, OK))
    return tl.where(overflow, 0.0, max), alive, overflow, status


@triton.jit
def floor_edge(
    row_ptr, floats_ptr, ints_ptr, groups, limit, overflow, cut_ptr, lo, hi, top, t, c, mass, moment, VEC: tl.constexpr
):
    """The smallest logit that a floor keeps; never above the largest survivor."""
    w_lse, w_sd, w_p2 = tl.load(cut_ptr + LSE_AT), tl.load(cut_ptr + SD_AT), tl.load(cut_ptr + P2_AT)
    offset_h = tl.load(cut_ptr + OFFSET_H_AT)
    edge = tl.load(cut_ptr + OFFSET_AT).to(tl.float64)
    if offset_h < float("inf"):
        entropy = tl.log(mass) - LN2 * moment / mass
        edge = tl.minimum(edge, offset_h - entropy)
    if w_lse != 0:
        edge += w_lse * tl.log(mass)
    if (w_sd != 0) | (w_p2 != 0):
        # First the mean, in units in which no sum of logits overflows; then the squares around it. A row that holds
        # a logit of 1e38 keeps such units: beside that, what vanishes in them is nothing.
        n_listed = list_groups(floats_ptr, ints_ptr, groups, lo)
        masked = MASKED_FLOAT16 if row_ptr.dtype.element_ty == tl.float16 else MASKED
        counted_lo = tl.where(top > masked, tl.maximum(lo, float_of(key_of(tl.full((), masked, tl.float32)) + 1)), lo)
        centre = top
        unit = tl.full((), 2.0**-70, tl.float32)
        total, squares, mass2 = tl.full((), 0.0, tl.float64), tl.full((), 0.0, tl.float64), tl.full((), 0.0, tl.float64)
        count = tl.full((), 0.0, tl.float64)
        for look in range(2):
            count, total, squares, mass2 = spread(
                row_ptr, ints_ptr, groups, n_listed, limit, overflow, counted_lo, hi, top, c, centre, unit, VEC
            )
            if look == 0:
                mean = total / count / unit
                unit = tl.where(mean > -1e12, 1.0, unit)
                centre = (top + mean).to(tl.float32)
        variance = tl.maximum(squares - total * total / count, 0.0) / tl.maximum(count - 1, 1.0)
        if w_sd != 0:
            edge += w_sd * (tl.sqrt(variance) / unit / t)
        if w_p2 != 0:
            edge += w_p2 * (tl.log(mass2) - 2 * tl.log(mass))
    return round_up(top + t * tl.minimum(edge - SLACK, 0.0))


@triton.jit
def extent(row_ptr, floats_ptr, ints_ptr, groups, limit, overflow, lo, hi, top, c, centre, kept_key, VEC: tl.constexpr):
    """The least and the largest logit of the survivors at or above a key of the typicality order."""
    least = tl.full((TILE, LANES), float("inf"), tl.float32)
    most = tl.full((TILE, LANES), float("inf"), tl.float32)  # the least -x
    n_listed = list_groups(floats_ptr, ints_ptr, groups, lo)
    for start in range(0, n_listed, TILE):
        group, valid = listed(ints_ptr, groups, start, n_listed, TILE)
        x = tokens_at(row_ptr, group, valid, limit, overflow, VEC)
        stays = (x >= lo) & (x <= hi) & (key_of(typicality(x, top, c, centre)) >= kept_key)
        least = tl.minimum(least, lowest_of_lanes(tl.where(stays, x, float("inf")), VEC))
        most = tl.minimum(most, lowest_of_lanes(tl.where(stays, -x, float("inf")), VEC))
    return tl.min(tl.min(least, 1), 0), -tl.min(tl.min(most, 1), 0)


@triton.jit
def first_of(row_ptr, ints_ptr, groups, n_listed, limit, overflow, wanted, VEC: tl.constexpr):
    """The lowest id whose logit is `wanted`."""
    first = tl.full((), LAST_KEY, tl.int32)
    for start in range(0, n_listed, TILE):
        group, valid = listed(ints_ptr, groups, start, n_listed, TILE)
        x = tokens_at(row_ptr, group, valid, limit, overflow, VEC)
        ids = group[:, None] * GROUP + tl.arange(0, GROUP)[None, :]
        first = tl.minimum(first, tl.min(tl.min(tl.where(x == wanted, ids, LAST_KEY), 1), 0))
    return first


# ---- 4. draw -------------------------------------------------------------------------------------------------------


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
def draw(
    row_ptr, floats_ptr, ints_ptr, groups, n_listed, limit, overflow, lo, hi, top, c, seed, step, request, sample, VEC: tl.constexpr
):  # fmt: skip
    """A token and its logit: the winning group of 256 ids, then the winner inside it; the lowest id wins a tie."""
    stream = tl.full((), SAMPLE_STREAM, tl.int64) * sample | (request & REQUESTS)
    best = tl.full((), -1.0, tl.float64)
    winner = tl.full((), 0, tl.int32)
    for start in range(0, n_listed, SPAN):
        group, valid = listed(ints_ptr, groups, start, n_listed, SPAN)
        mass = tl.load(floats_ptr + SURVIVING * groups + group, valid, other=0.0)
        score = tl.where(mass > 0, mass.to(tl.float64) / exponentials(seed, step, stream | GROUP_STREAM, group), -1.0)
        largest = tl.max(score, 0)
        first = tl.min(tl.where(score == largest, group, LAST_KEY), 0)
        winner = tl.where(largest > best, first, winner)
        best = tl.maximum(largest, best)

    lane = tl.arange(0, GROUP)
    ids = winner * GROUP + lane
    x = without_inf(as_float(tl.load(row_ptr + ids, ids < limit, other=-float("inf"))), overflow)
    score = tl.exp2(scaled(x, top, c)).to(tl.float64) / exponentials(seed, step, stream | TOKEN_STREAM, ids)
    score = tl.where((x >= lo) & (x <= hi), score, -1.0)
    token = tl.min(tl.where(score == tl.max(score, 0), ids, LAST_KEY), 0)
    return token.to(tl.int64), tl.max(tl.where(ids == token, x, -float("inf")), 0)
