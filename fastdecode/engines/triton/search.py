"""The Triton engine's search: at which key the walk of a prefix stops. See measure.py."""

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl

# isort: off
from .measure import (
    BY_LOGIT, CERTAIN, COUNT, GROUP, GROUP_FLOATS, GROUP_INTS, HALF_TILE, LANES, LAST_KEY, LN2, LOWEST, MASS, NO_KEY,
    SLACK, SPAN, STOP_AFTER, SURPRISAL, TILE, beside_top, float_of, key_of, list_groups, listed, lowest_of_lanes,
    scaled, tokens_at, typicality,
)  # fmt: skip


class Prefix(NamedTuple):
    """A walk: through the survivors by `order`, until what `measure` adds up meets `need`, as `stop` says."""

    order: Any
    centre: Any  # of the typicality order
    measure: Any
    stop: Any
    need: Any  # with its slack
    rank: Any  # a guess of how many tokens the walk passes


@triton.jit
def measured(measure, part, moment, whole_mass, whole_moment):
    """What a prefix has added up to; `part` is its count or its mass."""
    value = part
    if measure > MASS:
        if measure == SURPRISAL:
            value = (part * tl.log(whole_mass) - LN2 * moment) / whole_mass
        else:
            value = tl.log(part) - LN2 * moment / part
    return value


@triton.jit
def needed(measure, stop, need, whole_mass, whole_moment):
    """What it must reach, slack included."""
    slack = tl.where(stop == STOP_AFTER, 1.0 - SLACK, 1.0 + SLACK).to(tl.float64)
    value = need.to(tl.float64)
    if measure == MASS:
        value = value * whole_mass * slack
    elif measure > MASS:
        entropy = tl.log(whole_mass) - LN2 * whole_moment / whole_mass
        value = tl.where(entropy < CERTAIN, -float("inf"), value * entropy * slack)
    return value


@triton.jit
def meets(stop, so_far, need):
    return tl.where(stop == STOP_AFTER, so_far >= need, so_far > need)


@triton.jit
def bound_by_groups(row, rank, lo, top):
    """A logit that the maxima of `rank` groups or a few more reach; `lo` where fewer groups reach it."""
    floats_ptr, groups = row.floats_ptr, row.groups
    high = top
    low = lo
    least = top
    reached = 0.0
    for start in range(0, groups, SPAN):
        group = start + tl.arange(0, SPAN)
        value = tl.load(floats_ptr + group, group < groups, other=-float("inf"))
        least = tl.minimum(least, tl.min(tl.where(value >= lo, value, top), 0))
        reached += tl.sum((value >= lo).to(tl.float32), 0)
    if reached >= rank:
        low = least
        for _ in range(12):
            middle = low * 0.5 + high * 0.5
            reached = 0.0
            for start in range(0, groups, SPAN):
                group = start + tl.arange(0, SPAN)
                value = tl.load(floats_ptr + group, group < groups, other=-float("inf"))
                reached += tl.sum((value >= middle).to(tl.float32), 0)
            low = tl.where(reached >= rank, middle, low)
            high = tl.where(reached >= rank, high, middle)
    return low


@triton.jit
def sums_at_pivots(row, n_listed, survivors, prefix, p0, p1, p2, VEC: tl.constexpr):
    """Counts or masses, and moments, of the survivors at or above each of three keys p0 <= p1 <= p2, and the least key at or above
    each."""
    order, measure = prefix.order, prefix.measure
    part0, part1, part2 = tl.zeros((TILE,), tl.float64), tl.zeros((TILE,), tl.float64), tl.zeros((TILE,), tl.float64)
    moment0, moment1, moment2 = (
        tl.zeros((TILE,), tl.float64),
        tl.zeros((TILE,), tl.float64),
        tl.zeros((TILE,), tl.float64),
    )
    # Tokens of weight 1 are at or above every pivot. Where an entropy is wanted they are added up apart: float32 would lose the rest.
    tops = tl.zeros((TILE,), tl.float64)
    least0 = tl.full((TILE, LANES), LAST_KEY, tl.int32)
    least1 = least0
    least2 = least0
    for start in range(0, n_listed, TILE):
        group, valid = listed(row, start, n_listed, TILE)
        x = tokens_at(row, group, valid, VEC)
        y = scaled(x, survivors.top, survivors.c)
        key = key_among(x, survivors, prefix)
        w = tl.where(measure == COUNT, 1.0, tl.exp2(y))
        if (measure > MASS) & (order == BY_LOGIT):
            tops += tl.sum(tl.where((key > NO_KEY) & (y == 0.0), w, 0.0), 1).to(tl.float64)
            w = tl.where(y == 0.0, 0.0, w)
        part0 += tl.sum(tl.where(key >= p0, w, 0.0), 1).to(tl.float64)
        part1 += tl.sum(tl.where(key >= p1, w, 0.0), 1).to(tl.float64)
        part2 += tl.sum(tl.where(key >= p2, w, 0.0), 1).to(tl.float64)
        if measure > MASS:
            moment0 += tl.sum(tl.where(key >= p0, w * y, 0.0), 1).to(tl.float64)
            moment1 += tl.sum(tl.where(key >= p1, w * y, 0.0), 1).to(tl.float64)
            moment2 += tl.sum(tl.where(key >= p2, w * y, 0.0), 1).to(tl.float64)
        least0 = tl.minimum(least0, lowest_of_lanes(tl.where(key >= p0, key, LAST_KEY), VEC))
        least1 = tl.minimum(least1, lowest_of_lanes(tl.where(key >= p1, key, LAST_KEY), VEC))
        least2 = tl.minimum(least2, lowest_of_lanes(tl.where(key >= p2, key, LAST_KEY), VEC))
    parts = tl.sum(part0 + tops, 0), tl.sum(part1 + tops, 0), tl.sum(part2 + tops, 0)
    moments = tl.sum(moment0, 0), tl.sum(moment1, 0), tl.sum(moment2, 0)
    return parts, moments, (tl.min(tl.min(least0, 1), 0), tl.min(tl.min(least1, 1), 0), tl.min(tl.min(least2, 1), 0))


@triton.jit
def key_among(x, survivors, prefix):
    """What the walk goes by: the key of a survivor, NO_KEY for other tokens."""
    key = key_of(tl.where(prefix.order == BY_LOGIT, x, typicality(x, survivors.top, survivors.c, prefix.centre)))
    return tl.where((x >= survivors.lo) & (x <= survivors.hi), key, NO_KEY)


@triton.jit
def reach_of(key, survivors, prefix):
    """A logit that the maximum of a group reaches if the group holds a survivor at or above `key`."""
    centre = prefix.centre
    distance = float_of(key).to(tl.float64)
    # The margin of 1e-4 covers the rounding of y; rounding the result to the nearest float never passes a logit.
    nearest = survivors.top + (centre + distance - 1e-4 * (1 - distance + tl.abs(centre))) / survivors.c
    return tl.maximum(tl.where(prefix.order == BY_LOGIT, distance, nearest).to(tl.float32), survivors.lo)


@triton.jit
def pivots_of(row, survivors, prefix, look, k_lo, below, share):
    """Three keys inside the bracket, ascending.

    The first look goes near the top, the second spreads out. Then they alternate: around the place where a straight line between the
    ends of the bracket meets the need (`share` of the way down), and spread out, one of them just above the lower end, where many
    tokens may tie.
    """
    order, top, c = prefix.order, survivors.top, survivors.c
    first = float_of(k_lo)
    last = float_of(below - 1)
    q0 = first * (share + 0.0625) + last * (0.9375 - share)
    q1 = first * share + last * (1 - share)
    q2 = first * (share - 0.0625) + last * (1.0625 - share)
    if look < 2:
        if order != BY_LOGIT:
            q0, q1, q2 = tl.full((), -8.0, tl.float32), tl.full((), -2.0, tl.float32), tl.full((), -0.5, tl.float32)
            q1, q2 = tl.where(look == 0, q1, q0 * 4), tl.where(look == 0, q2, q0 * 2)
        elif look == 0:
            q0 = bound_by_groups(row, prefix.rank, survivors.lo, top)
            q1 = q0 * 0.5 + last * 0.5
            q2 = q0 * 0.25 + last * 0.75
        else:
            q0, q1, q2 = top - 24.0 / c, top - 8.0 / c, top - 2.0 / c
    elif look % 2 == 1:
        q1 = first * 0.625 + last * 0.375
        q2 = first * 0.25 + last * 0.75
    p0, p1, p2 = key_of(q0), key_of(q1), key_of(q2)
    if ((look > 1) | (order != BY_LOGIT)) & (look % 2 == 1):
        p0 = k_lo + 1
        if look > 8:  # keys rather than logits, so that every search ends
            third = ((below.to(tl.int64) - k_lo) // 3).to(tl.int32)
            p1, p2 = k_lo + third, below - third
    p0 = tl.minimum(tl.maximum(p0, k_lo + 1), below - 1)
    p1 = tl.minimum(tl.maximum(p1, p0), below - 1)
    p2 = tl.minimum(tl.maximum(p2, p1), below - 1)
    return p0, p1, p2


@triton.jit
def search(row, survivors, prefix, whole, VEC: tl.constexpr):
    """The key of the group of ties at which the walk stops; NO_KEY if it does not.

    `whole`: the sums of all survivors. The walk stops in [k_lo, below): at or above k_lo the need is met, at or above `below` it is
    not. Passes narrow that until it holds few tokens, which are then looked at one by one, or one key, however many tokens tie there.
    """
    order, measure, stop, need = prefix.order, prefix.measure, prefix.stop, prefix.need
    k_lo = tl.where(order == BY_LOGIT, key_of(survivors.lo), key_of(tl.full((), LOWEST, tl.float32)))
    below = tl.where(order == BY_LOGIT, key_of(survivors.top), 0) + 1
    all_of = tl.where(measure == COUNT, whole.n.to(tl.float64), whole.mass)
    at_lo = measured(measure, all_of, whole.moment, whole.mass, whole.moment)
    stops = meets(stop, at_lo, need)
    at_below, part_lo, part_below, moment_below = at_lo * 0, all_of, all_of * 0, all_of * 0
    few = stops & False
    look = 0
    while stops & (k_lo + 1 < below) & (few == 0):
        share = tl.minimum(tl.maximum((need - at_below) / (at_lo - at_below), 0.0), 1.0).to(tl.float32)
        p0, p1, p2 = pivots_of(row, survivors, prefix, look, k_lo, below, share)
        n_listed = list_groups(row, reach_of(p0, survivors, prefix))
        parts, moments, least = sums_at_pivots(row, n_listed, survivors, prefix, p0, p1, p2, VEC)
        at0 = measured(measure, parts[0], moments[0], whole.mass, whole.moment)
        at1 = measured(measure, parts[1], moments[1], whole.mass, whole.moment)
        at2 = measured(measure, parts[2], moments[2], whole.mass, whole.moment)
        if meets(stop, at2, need):
            k_lo, at_lo, part_lo = tl.maximum(p2, least[2]), at2, parts[2]  # no key lies between
        elif meets(stop, at1, need):
            k_lo, at_lo, part_lo = tl.maximum(p1, least[1]), at1, parts[1]
            below, at_below, part_below, moment_below = p2, at2, parts[2], moments[2]
        elif meets(stop, at0, need):
            k_lo, at_lo, part_lo = tl.maximum(p0, least[0]), at0, parts[0]
            below, at_below, part_below, moment_below = p1, at1, parts[1], moments[1]
        else:
            below, at_below, part_below, moment_below = p0, at0, parts[0], moments[0]
        # No token of the bracket weighs less than one at its lower end.
        typical = tl.maximum(prefix.centre + float_of(k_lo), -125.0)
        lightest = tl.where(order == BY_LOGIT, scaled(float_of(k_lo), survivors.top, survivors.c), typical)
        lightest = tl.where(measure == COUNT, 1.0, tl.exp2(lightest))
        few = part_lo - part_below < lightest * (GROUP - 1)
        look += 1
    if few & (k_lo + 1 < below):
        n_listed = list_groups(row, reach_of(k_lo, survivors, prefix))
        n = gather(row, n_listed, survivors, prefix, k_lo, below, VEC)
        k_lo = tl.maximum(k_lo, walk(row, n, prefix, part_below, moment_below, whole))
    return tl.where(stops, k_lo, NO_KEY)


@triton.jit
def gather(row, n_listed, survivors, prefix, k_lo, below, VEC: tl.constexpr):
    """Lists keys and y of the survivors with keys in [k_lo, below), and returns their number."""
    n = 0
    for start in range(0, n_listed, HALF_TILE):
        group, valid = listed(row, start, n_listed, HALF_TILE)
        x = tokens_at(row, group, valid, VEC)
        key = key_among(x, survivors, prefix)
        among = (key >= k_lo) & (key < below)
        place = tl.where(among, n + running_count(among) - 1, GROUP)
        y = scaled(x, survivors.top, survivors.c)
        tl.store(row.ints_ptr + GROUP_INTS * row.groups + place, key, place < GROUP)
        tl.store(row.floats_ptr + GROUP_FLOATS * row.groups + place, y, place < GROUP)
        n += tl.sum(tl.sum(among.to(tl.int32), 1), 0)
    tl.debug_barrier()
    return tl.minimum(n, GROUP)


@triton.jit
def running_count(among):
    """For each of the tokens [n, GROUP], the number of marked ones up to it, itself included."""
    marks = among.to(tl.int32)
    counts = tl.sum(marks, 1)
    return (tl.cumsum(counts, 0) - counts)[:, None] + tl.cumsum(marks, 1)


@triton.jit
def walk(row, n, prefix, before, moment_before, whole):
    """The largest of n listed keys at or above which the need is met; `before`: the sums above all of them."""
    lane = tl.arange(0, GROUP)
    key = tl.load(row.ints_ptr + GROUP_INTS * row.groups + lane, lane < n, other=NO_KEY)
    y = tl.load(row.floats_ptr + GROUP_FLOATS * row.groups + lane, lane < n, other=0.0)
    w = tl.where(prefix.measure == COUNT, 1.0, tl.exp2(y))
    largest = tl.full((TILE,), NO_KEY, tl.int32)
    for start in range(0, n, TILE):
        place = start + tl.arange(0, TILE)
        pivot = tl.load(row.ints_ptr + GROUP_INTS * row.groups + place, place < n, other=LAST_KEY)
        above = key[None, :] >= pivot[:, None]
        rest, tops = beside_top(tl.where(above, w[None, :], 0.0), y[None, :])
        part = before + rest.to(tl.float64) + tops.to(tl.float64)
        moment = moment_before + tl.sum(tl.where(above, (w * y)[None, :], 0.0), 1).to(tl.float64)
        met = meets(prefix.stop, measured(prefix.measure, part, moment, whole.mass, whole.moment), prefix.need)
        largest = tl.maximum(largest, tl.where(met & (place < n), pivot, NO_KEY))
    return tl.max(largest, 0)
