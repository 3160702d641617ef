"""The Triton engine: rows of logits to masked logits, or to tokens and statistics. This file: what its kernels share, and measure.

What      The four verbs on a packed plan: measure (`measure_kernel`), search (search.py), narrow (`rows_kernel` of narrow.py)
          and draw (draw.py); then the outputs (outputs.py): masked logits, statistics, the n best.
Contract  logits [B, V] with any row stride; `out` may be the logits; ties stay or go together; a row with a NaN or nothing
          above -inf is flagged; tokens of +inf share all mass (the row becomes 0 there and -inf elsewhere). Field by field
          the meaning of a cut is that of csrc/cut.h.
Idea      1. measure: one read of the row leaves of each group of 256 ids its maximum, its count and, at the temperatures
          that are needed later, its mass and moment relative to that maximum. 2. search: all that a cut can do is narrow an
          interval of logits; a floor is a closed form, and the edge of a prefix is bracketed by integer keys that sort as the
          logits (or typicalities) do: three pivots a pass, adding up what lies at or above each. Once the bracket holds few
          tokens they are gathered and looked at one by one. 3. narrow: the interval shrinks. Every pass visits only groups
          whose maximum reaches it. 4. draw: two levels, as csrc/philox.h says, from the groups' masses.
Who       measure and write: one program for every slice of a row, so that few long rows fill a GPU too; the others: one program
          a row, or for each temperature of a row that is sampled at several: measure writes what they need from its one read. A tile is 16 groups; a warp holds whole groups, so that their sums need no shared memory.
Numbers   y = (x - base) / (T ln 2) and 2^y in float32, added up in float32 inside a group and in float64 across groups, always in
          the same order: answers do not depend on the batch, the slices or the launch. Moments are in units of log2.
Random    Triton's own Philox at the coordinates (seed, step, stream; group or token id); -log(v) in float64.
Cost      one read of the row from memory; then, for a prefix that keeps few tokens, one to three passes over few groups; for one
          that keeps thousands, three to nine passes over the row by one program. Not measured yet: no GPU was at hand.
Limits    2^31 tokens a row. One program does a row's search: a flat row alone on a GPU leaves most of it idle.
"""

from __future__ import annotations

import inspect
from typing import Any, NamedTuple

import triton
import triton.language as tl

from ... import philox, record, rules

GROUP = tl.constexpr(philox.GROUP_SIZE)
TILE = tl.constexpr(16)  # groups that a pass holds at once
HALF_TILE = tl.constexpr(
    8
)  # the same in `gather`: there each token has an address, and a tile would not fit in registers
LANES = tl.constexpr(32)  # of a warp
SPAN = tl.constexpr(1024)  # groups whose maxima are held at once
LOWEST = tl.constexpr(-3.4028234663852886e38)  # the smallest finite logit: -inf never survives
LN2 = tl.constexpr(0.6931471805599453)
NO_KEY = tl.constexpr(-(2**31))  # below the key of every logit
LAST_KEY = tl.constexpr(2**31 - 1)

OK, NAN, EMPTY = tl.constexpr(record.OK), tl.constexpr(record.NAN), tl.constexpr(record.EMPTY)
FLOOR, PREFIX, DRAW = tl.constexpr(rules.FLOOR), tl.constexpr(rules.PREFIX), tl.constexpr(rules.DRAW)
BY_LOGIT = tl.constexpr(rules.BY_LOGIT)
COUNT, MASS, SURPRISAL = tl.constexpr(rules.COUNT), tl.constexpr(rules.MASS), tl.constexpr(rules.SURPRISAL)
STOP_AFTER = tl.constexpr(rules.STOP_AFTER)
SLACK, CERTAIN = tl.constexpr(rules.SLACK), tl.constexpr(rules.CERTAIN)
MASKED, MASKED_FLOAT16 = tl.constexpr(rules.MASKED), tl.constexpr(rules.MASKED_FLOAT16)
FIELDS = tl.constexpr(len(rules.FIELDS))
(KIND_AT, ORDER_AT, MEASURE_AT, STOP_AT, TEMPERATURE_AT, NEED_AT, WITHIN_AT, KEEP_AT, LSE_AT, SD_AT, P2_AT, OFFSET_AT, OFFSET_H_AT) = (
    tl.constexpr(place) for place in range(len(rules.FIELDS))
)  # fmt: skip

# Of each group, float32: its maximum; at three temperatures (the first cut's, the draw's, 1) its mass, less the 1 of the
# maximum, and its moment relative to it; and its mass among the survivors, relative to the largest survivor. And int32: its count; a list of groups.
GROUP_FLOATS, OWN, SURVIVING = tl.constexpr(8), tl.constexpr(1), tl.constexpr(7)
GROUP_INTS = tl.constexpr(2)
AT_FIRST, AT_DRAW, AT_ONE = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2)


# Bundles: named tuples, which Triton takes apart when it compiles. An argument of a kernel is one only if all its parts are fresh
# tensors: Triton compiles again for another value of a number in a tuple, and for another alignment of a tensor.


class Memory(NamedTuple):
    """What the kernels of a call leave for each other: GROUP_FLOATS and GROUP_INTS of each group, ROW_NUMBERS of each row."""

    floats_ptr: Any
    ints_ptr: Any
    numbers_ptr: Any


class Row(NamedTuple):
    logits_ptr: Any
    floats_ptr: Any
    ints_ptr: Any
    groups: Any
    limit: Any  # of the ids
    overflow: Any  # does it hold +inf?


class Survivors(NamedTuple):
    """The tokens of [lo, hi]; `top` is the largest, and y = (x - top) * c."""

    lo: Any
    hi: Any
    top: Any
    c: Any


class Numbers(NamedTuple):
    """What rows_kernel says of a row to the kernels after it, in float64."""

    lo: Any  # of the survivors
    hi: Any
    token: Any  # of a greedy row
    mass: Any  # of the survivors, relative to the row's largest logit
    max_: Any
    status: Any
    overflow: Any
    alive: Any  # tokens above -inf


class Sums(NamedTuple):
    """Of 1, 2^y and y 2^y over tokens."""

    n: Any
    mass: Any
    moment: Any


ROW_NUMBERS = tl.constexpr(len(Numbers._fields))

# A stream is use << 56 | sample << 40 | request id.
TOKEN_STREAM, GROUP_STREAM = (
    tl.constexpr(use << (philox.STREAM_BITS + philox.SAMPLE_BITS)) for use in (philox.TOKEN, philox.GROUP)
)
SAMPLE_STREAM, REQUESTS = tl.constexpr(1 << philox.STREAM_BITS), tl.constexpr((1 << philox.STREAM_BITS) - 1)


def kernel(function):
    """`triton.jit` that compiles once for all values and addresses: it specialises on constexprs alone."""
    parameters = inspect.signature(function).parameters.values()
    return triton.jit(function, do_not_specialize=[p.name for p in parameters if p.annotation != "tl.constexpr"])


# ---- loads and numbers ---------------------------------------------------------------------------------------------


@triton.jit
def tokens_at(row, group, valid, VEC: tl.constexpr):
    """The logits [n, GROUP] of n groups as float32, -inf where there is none.

    Loaded as [parts, n, WIDTH]: Triton assigns tokens to a warp's lanes first, then to warps along the axis before. So a warp
    holds whole groups, whatever VEC is, and sums over a group never leave it; as [n, GROUP] the warps would share each group of
    an odd row. Reordering the axes moves nothing between threads.
    The mask is the same for VEC neighbours, which is what lets them travel in one load; it never reaches past the row's end.
    """
    WIDTH: tl.constexpr = LANES * VEC
    first = (group * GROUP)[None, :, None]
    part = tl.arange(0, GROUP // WIDTH)[:, None, None] * WIDTH
    lane = tl.arange(0, WIDTH)[None, None, :]
    ids = first + part + lane
    there = valid[None, :, None] & (ids // VEC * VEC < row.limit)
    x = as_float(tl.load(row.logits_ptr + first + lane + part, there, other=-float("inf")))
    x = without_inf(tl.where(ids < row.limit, x, -float("inf")), row.overflow)
    return tl.reshape(tl.permute(x, (1, 0, 2)), (group.shape[0], GROUP))


@triton.jit
def lowest_of_lanes(x, VEC: tl.constexpr):
    """[n, GROUP] as tokens_at orders it to [n, LANES]: the least logit of each lane, so that an accumulator takes few registers."""
    own = tl.reshape(x, (x.shape[0], GROUP // (LANES * VEC), LANES, VEC))
    return tl.min(tl.min(own, 3), 1)


@triton.jit
def as_float(x):
    """Exact, also for bfloat16 subnormals, which the interpreter's own conversion gets wrong."""
    if x.dtype == tl.bfloat16:
        x = (x.to(tl.int16, bitcast=True).to(tl.int32) << 16).to(tl.float32, bitcast=True)
    return x.to(tl.float32)


@triton.jit
def without_inf(x, overflow):
    """In a row that holds +inf: 0 there and -inf elsewhere."""
    return tl.where(overflow, tl.where(x == float("inf"), 0.0, -float("inf")), x)


@triton.jit
def scale_of(temperature):
    """1 / (T ln 2), finite also where T is next to nothing."""
    scale = 1.0 / (tl.maximum(temperature.to(tl.float64), 1e-38) * LN2)
    return tl.minimum(scale, 3e38).to(tl.float32)


@triton.jit
def scaled(x, base, c):
    """y of a logit, at least -125: 2^-125 cannot change a sum that is at least 1."""
    return tl.maximum((x - base) * c, -125.0)


@triton.jit
def key_of(x):
    """An integer that sorts as the float does; 0 and -0 are one."""
    bits = x.to(tl.int32, bitcast=True)
    return tl.where(x == 0.0, 0, bits ^ ((bits >> 31) & 0x7FFFFFFF))


@triton.jit
def float_of(key):
    return (key ^ ((key >> 31) & 0x7FFFFFFF)).to(tl.float32, bitcast=True)


@triton.jit
def round_up(edge):
    """The smallest float32 >= edge."""
    f = edge.to(tl.float32)
    return tl.where(f.to(tl.float64) < edge, float_of(key_of(f) + 1), f)


@triton.jit
def typicality(x, base, c, centre):
    """-|y - centre|, without the lower bound of `scaled`, which would tie all far tokens."""
    return tl.maximum(-tl.abs((x - base) * c - centre), LOWEST)


@triton.jit
def wants_sums(cut_ptr):
    """Does this cut need the mass or the moment of the survivors?"""
    kind = tl.load(cut_ptr + KIND_AT).to(tl.int32)
    looks = (
        (tl.load(cut_ptr + LSE_AT) != 0)
        | (tl.load(cut_ptr + P2_AT) != 0)
        | (tl.load(cut_ptr + OFFSET_H_AT) < float("inf"))
    )
    walks = (tl.load(cut_ptr + MEASURE_AT).to(tl.int32) != COUNT) | (
        tl.load(cut_ptr + ORDER_AT).to(tl.int32) != BY_LOGIT
    )
    return tl.where(kind == FLOOR, looks, (kind == DRAW) | walks)


# ---- 1. measure ----------------------------------------------------------------------------------------------------


@kernel
def measure_kernel(
    logits_ptr, row_stride: tl.int64, limit: tl.int32, cuts_ptr, cuts_stride: tl.int64, n_cuts: tl.int32,
    memory, groups: tl.int32, plans: tl.int32, asked: tl.int32, VEC: tl.constexpr,
):  # fmt: skip
    """Count, maximum and sums of each group of a slice of a row, for each of the row's plans. `asked`: the temperatures to sum at, as bits;
    the plan decides on AT_FIRST."""
    number = tl.program_id(0).to(tl.int64)
    row = row_of(logits_ptr, row_stride, limit, memory, groups, number, 1, False, VEC)
    for tile in range(tl.program_id(1), tl.cdiv(groups, TILE), tl.num_programs(1)):
        group = tile * TILE + tl.arange(0, TILE)
        valid = group < groups
        x = tokens_at(row, group, valid, VEC)
        top = tl.max(x, 1)
        counted = tl.where((top == float("inf"))[:, None], x == float("inf"), x > -float("inf"))
        is_nan = tl.max((x != x).to(tl.int32), 1) > 0
        n = tl.sum(counted.to(tl.int32), 1)
        for plan in range(plans):
            cut_ptr = plan_of(cuts_ptr, cuts_stride, n_cuts, number, plan)
            to_ptr = memory.floats_ptr + (number * plans + plan) * words_of(GROUP_FLOATS, groups) + group
            tl.store(to_ptr, tl.where(is_nan, float("nan"), top), valid)
            tl.store(memory.ints_ptr + (number * plans + plan) * words_of(GROUP_INTS, groups) + group, n, valid)
            wanted = asked | wants_sums(cut_ptr).to(tl.int32)  # bit AT_FIRST
            first_c = scale_of(tl.load(cut_ptr + TEMPERATURE_AT))
            draw_c = scale_of(tl.load(cut_ptr + (n_cuts - 1) * FIELDS + TEMPERATURE_AT))
            for at in tl.static_range(3):
                if (wanted >> at) & 1:
                    c = first_c if at == 0 else (draw_c if at == 1 else scale_of(tl.full((), 1.0, tl.float32)))
                    y = tl.where(x == top[:, None], 0.0, scaled(x, top[:, None], c))
                    w = tl.where(x > -float("inf"), tl.exp2(y), 0.0)
                    rest, tops = beside_top(w, y)
                    own_ptr = to_ptr + (OWN + 2 * at) * groups
                    tl.store(own_ptr, rest + (tops - 1.0), valid)
                    tl.store(own_ptr + groups, tl.sum(w * y, 1), valid)


@triton.jit
def plan_of(cuts_ptr, cuts_stride, n_cuts, number, plan):
    """The first cut of one of a row's plans. A row has a plan for each temperature that it is sampled at."""
    return cuts_ptr + number * cuts_stride + plan * n_cuts * FIELDS


@triton.jit
def beside_top(w, y):
    """Sums over each group without the tokens of weight 1, and the number of these. A float32 sum above 1 loses a mass of 1e-8, and the
    entropy of a peaked row consists of such masses."""
    return tl.sum(tl.where(y == 0.0, 0.0, w), 1), tl.sum(tl.where(y == 0.0, w, 0.0), 1)


@triton.jit
def words_of(fields: tl.constexpr, groups):
    """The memory of a row: `fields` for each group, and a list of few tokens."""
    return fields * groups + GROUP


@triton.jit
def row_of(logits_ptr, row_stride, limit, memory, groups, number, plans, overflow, VEC: tl.constexpr):
    """A row of answers; a row of logits has `plans` of them."""
    return Row(
        start_of(logits_ptr, number // plans * row_stride, VEC), memory.floats_ptr + number * words_of(GROUP_FLOATS, groups),
        memory.ints_ptr + number * words_of(GROUP_INTS, groups), groups, limit, overflow,
    )  # fmt: skip


@triton.jit
def start_of(logits_ptr, offset, VEC: tl.constexpr):
    """The start of a row, and its alignment for the compiler."""
    row_ptr = logits_ptr + tl.multiple_of(offset, VEC)
    return tl.multiple_of(row_ptr, 16) if VEC > 1 else row_ptr


@triton.jit
def write_numbers(memory, number, numbers):
    for at in tl.static_range(ROW_NUMBERS):
        tl.store(memory.numbers_ptr + number * ROW_NUMBERS + at, numbers[at].to(tl.float64))


@triton.jit
def read_numbers(memory, number):
    """What is not used is not loaded."""
    at_ptr = memory.numbers_ptr + number * ROW_NUMBERS
    lo, hi, token, mass = tl.load(at_ptr), tl.load(at_ptr + 1), tl.load(at_ptr + 2), tl.load(at_ptr + 3)
    max_, status, overflow, alive = tl.load(at_ptr + 4), tl.load(at_ptr + 5), tl.load(at_ptr + 6), tl.load(at_ptr + 7)
    return Numbers(
        lo.to(tl.float32), hi.to(tl.float32), token.to(tl.int32), mass, max_.to(tl.float32), status, overflow != 0, alive
    )  # fmt: skip


@triton.jit
def merge(row, max_, at, c, keep: tl.constexpr):
    """Mass and moment of a whole row relative to its maximum, from those of its groups; `keep`: leave their masses for the draw."""
    floats_ptr, groups = row.floats_ptr, row.groups
    mass = tl.zeros((), tl.float64)
    moment = tl.zeros((), tl.float64)
    for start in range(0, groups, SPAN):
        group = start + tl.arange(0, SPAN)
        top = tl.load(floats_ptr + group, group < groups, other=-float("inf"))
        own_ptr = floats_ptr + (OWN + 2 * at) * groups + group
        own = tl.load(own_ptr, top > -float("inf"), other=0.0)
        shift = scaled(top, max_, c)
        factor = tl.exp2(shift)
        own_moment = tl.load(own_ptr + groups, top > -float("inf"), other=0.0)
        factor = tl.where(top > -float("inf"), factor, 0.0)
        mass += tl.sum(factor.to(tl.float64) + (own * factor).to(tl.float64), 0)
        moment += tl.sum(((own_moment + own * shift) * factor).to(tl.float64) + (shift * factor).to(tl.float64), 0)
        if keep:
            tl.store(floats_ptr + SURVIVING * groups + group, factor + own * factor, group < groups)
    return mass, moment


@triton.jit
def list_groups(row, lo):
    """Lists the groups whose maximum reaches `lo`, ascending, and returns their number."""
    groups = row.groups
    tl.debug_barrier()  # every thread has read the last list
    n = 0
    for start in range(0, groups, SPAN):
        group = start + tl.arange(0, SPAN)
        reaches = (tl.load(row.floats_ptr + group, group < groups, other=-float("inf")) >= lo) & (group < groups)
        place = n + tl.cumsum(reaches.to(tl.int32), 0) - 1
        tl.store(row.ints_ptr + groups + place, group, reaches)
        n += tl.sum(reaches.to(tl.int32), 0)
    tl.debug_barrier()
    return n


@triton.jit
def listed(row, start, n, SIZE: tl.constexpr):
    """SIZE groups of the list of n, and which of them exist."""
    place = start + tl.arange(0, SIZE)
    return tl.load(row.ints_ptr + row.groups + place, place < n, other=0), place < n


@triton.jit
def survivor_sums(row, n_listed, survivors, VEC: tl.constexpr):
    """Sums over the survivors in the listed groups; leaves the groups' masses for the draw."""
    n = tl.zeros((TILE,), tl.int32)
    mass = tl.zeros((TILE,), tl.float64)
    moment = tl.zeros((TILE,), tl.float64)
    for start in range(0, n_listed, TILE):
        group, valid = listed(row, start, n_listed, TILE)
        x = tokens_at(row, group, valid, VEC)
        inside = (x >= survivors.lo) & (x <= survivors.hi)
        y = scaled(x, survivors.top, survivors.c)
        w = tl.where(inside, tl.exp2(y), 0.0)
        rest, tops = beside_top(w, y)
        tl.store(row.floats_ptr + SURVIVING * row.groups + group, rest + tops, valid)
        n += tl.sum(inside.to(tl.int32), 1)
        mass += rest.to(tl.float64) + tops.to(tl.float64)
        moment += tl.sum(w * y, 1).to(tl.float64)
    return Sums(tl.sum(n, 0), tl.sum(mass, 0), tl.sum(moment, 0))
