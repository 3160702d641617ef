"""The Triton engine's soft tokens: the twin of csrc/mixture.h. See launch.py.

What      `soften_kernel`: weights, ln pi, noise and density of a few candidates, the largest weight first. `embed_kernel`: the weighted
          sum of rows of an embedding table.
Contract  csrc/mixture.h. An id that has no row in the table makes its row NaN: a check would wait for the GPU.
Idea      all candidates of a row at once; a candidate's place is the number of those before it, counted in a loop.
Who       one program a row; embeddings: one for some columns of a row.
Numbers   float64 to the end; embeddings are float32 sums, rounded once; of one token, a copy.
Random    Triton's own Philox at (seed, step, stream of the use; token id).
Cost      one launch each, nothing waits; two compilations for each dtype. Not measured yet: no GPU was at hand.
Limits    1024 candidates; reference_soft.py mixes more, and all Dirichlet mixtures: the gamma quantile is two loops, a series and a
          fraction, whose length differs between candidates.
"""

from __future__ import annotations

import struct
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl

from ... import philox
from ...record import NOISES, Draw, Mixing
from ...rules import FIELDS as NAMES
from .. import reference_soft
from .draw import coordinate_of, exponentials
from .measure import FIELDS, OK, REQUESTS, TEMPERATURE_AT, as_float, kernel
from .outputs import as_bf16

assert NAMES[TEMPERATURE_AT.value] == "temperature"
NONE, GUMBEL, _, MULTI = (tl.constexpr(place) for place in range(len(NOISES)))
GUMBEL_STREAM = tl.constexpr(philox.SOFT_GUMBEL << (philox.STREAM_BITS + philox.SAMPLE_BITS))
COLUMNS = tl.constexpr(512)
_SIZES = (32, 1024)  # of the candidates that a kernel is compiled for


class Made(NamedTuple):
    """Where the answers go: fresh tensors, see measure.py."""

    ids_ptr: Any
    weights_ptr: Any
    tokens_ptr: Any
    log_pi_ptr: Any
    noise_ptr: Any
    logprobs_ptr: Any


@kernel
def soften_kernel(
    logits_ptr, row_stride: tl.int64, cuts_ptr, cuts_stride: tl.int64, n_cuts: tl.int32,
    seed_ptr, seed: tl.int64, seed_stride: tl.int64, step_ptr, step: tl.int64, step_stride: tl.int64,
    stream_ptr, stream: tl.int64, stream_stride: tl.int64,
    noise: tl.int32, strength_bits: tl.int64, tau_bits: tl.int64, taus_ptr, tau_stride: tl.int64,
    soft_rows_ptr, all_soft: tl.int32, straight: tl.int32, width: tl.int32, candidates_ptr, num_samples: tl.int32,
    tokens_ptr, token_logprobs_ptr, kept_ptr, status_ptr,
    made, SIZE: tl.constexpr,
):  # fmt: skip
    """Doubles come as their bits: as numbers they would be rounded to float32. tau_stride -1: one tau for all rows."""
    row = tl.program_id(0).to(tl.int64)
    place = tl.arange(0, SIZE)
    there = place < width
    fine = tl.load(status_ptr + row) == OK
    soft = (all_soft != 0) | (tl.load(soft_rows_ptr + row) != 0)
    strength = as_double(strength_bits)
    tau = tl.where(noise == GUMBEL, as_double(tau_bits), 1.0)
    if (tau_stride >= 0) & (noise == GUMBEL):
        tau = tl.load(taus_ptr + row * tau_stride)

    # Candidates. An ordinary row has one: the token that was drawn.
    n = tl.minimum(tl.load(kept_ptr + row), width.to(tl.int64)).to(tl.int32)
    n = tl.where(fine, tl.where(soft, tl.where(noise == MULTI, width, n), 1), 0)
    real = place < n
    ids = tl.load(tl.where(soft, candidates_ptr + row * width, tokens_ptr + row * num_samples) + place, real, other=-1)
    drawn = tl.zeros((SIZE,), tl.float64)
    known = (noise == MULTI) | (soft == 0)
    log_pi = tl.load(token_logprobs_ptr + row * num_samples + place, place < tl.where(known, n, 0), other=0.0)
    log_pi = log_pi.to(tl.float64)
    if known:
        if soft:
            drawn, real = count_draws(ids, place, real, n)
        key = tl.where(real, drawn, -float("inf"))
    else:
        t = tl.load(cuts_ptr + row * cuts_stride + (n_cuts - 1) * FIELDS + TEMPERATURE_AT).to(tl.float64)
        x = as_float(tl.load(logits_ptr + row * row_stride + ids, real, other=0.0)).to(tl.float64)
        x = tl.where(x == float("inf"), 0.0, x)  # such tokens share all mass
        x = tl.where(real, x - tl.max(tl.where(real, x, -float("inf")), 0), -float("inf")) / tl.where(t == 0, 1.0, t)
        log_pi = x - tl.log(tl.sum(tl.exp(x), 0))
        if noise == GUMBEL:
            seed = coordinate_of(seed_ptr, seed, seed_stride, row)
            step = coordinate_of(step_ptr, step, step_stride, row)
            stream = coordinate_of(stream_ptr, row + stream, stream_stride, row)
            e = exponentials(seed, step, stream & REQUESTS | GUMBEL_STREAM, ids)
            drawn = tl.where(real, -tl.log(e), 0.0)
        key = tl.where(real, log_pi + tl.where(noise == GUMBEL, strength, 0.0) * drawn, -float("inf"))

    before = ranks_of(key, place, width, SIZE)
    y = tl.where(real, tl.exp((key - tl.max(key, 0)) / tau), 0.0)
    y = tl.where(known, tl.where(soft, drawn / num_samples, 1.0), y / tl.sum(y, 0))
    density = tl.full((), 0.0, tl.float64)
    if known:
        density = tl.sum(tl.where(real, y * log_pi, 0.0), 0)
    elif noise == GUMBEL:
        density = tl.sum(tl.where(real, -drawn - tl.exp(-drawn) - tl.log(strength), 0.0), 0)

    to = row * width + before
    nan = tl.full((), float("nan"), tl.float64)
    if (straight != 0) & soft:
        y = tl.where(before == 0, 1.0, 0.0).to(tl.float64)
    tl.store(made.ids_ptr + to, tl.where(real, ids, -1), there)
    tl.store(made.weights_ptr + to, tl.where(fine, tl.where(real, y, 0.0), nan).to(tl.float32), there)
    tl.store(made.log_pi_ptr + to, tl.where(fine, tl.where(real, log_pi, 0.0), nan).to(tl.float32), there)
    tl.store(made.noise_ptr + to, tl.where(fine, tl.where(real, drawn, 0.0), nan).to(tl.float32), there)
    tl.store(made.logprobs_ptr + row, tl.where(fine, density, nan).to(tl.float32))
    tl.store(made.tokens_ptr + row, tl.where(fine, tl.sum(tl.where(there & (before == 0), ids, 0), 0), -1))


@triton.jit
def count_draws(ids, place, real, n):
    """How often each of n drawn tokens was drawn, and which places hold a token for the first time."""
    count = tl.zeros_like(place).to(tl.float64)
    again = place < 0
    for j in range(n):
        same = ids == tl.sum(tl.where(place == j, ids, 0), 0)
        count += tl.where(same, 1.0, 0.0)
        again |= same & (j < place)
    return count, real & (again == 0)


@triton.jit
def ranks_of(key, place, width, SIZE: tl.constexpr):
    """The number of keys before each: larger ones, and equal ones at lower places."""
    before = tl.zeros((SIZE,), tl.int32)
    for j in range(width):
        other = tl.sum(tl.where(place == j, key, 0.0), 0)
        before += ((other > key) | ((other == key) & (j < place))).to(tl.int32)
    return before


@triton.jit
def as_double(bits):
    return (tl.full((), 0, tl.int64) + bits).to(tl.float64, bitcast=True)


@kernel
def embed_kernel(
    table_ptr, vocab: tl.int64, columns: tl.int64, row_stride: tl.int64, width: tl.int32, ids_ptr, weights_ptr, out_ptr
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    there = column < columns
    ids_ptr += row * width
    weights_ptr += row * width
    alone = (tl.load(ids_ptr) >= 0) & (tl.load(weights_ptr) == 1)
    for m in range(1, width):
        alone &= tl.load(weights_ptr + m) == 0
    sums = tl.zeros((COLUMNS,), tl.float32)
    for m in range(tl.where(alone, 1, width)):
        id, weight = tl.load(ids_ptr + m), tl.load(weights_ptr + m)
        readable = tl.where((id >= 0) & (id < vocab), columns, 0)
        part = weight * as_float(tl.load(table_ptr + id * row_stride + column, column < readable, other=float("nan")))
        part = tl.where(id < 0, weight, part)
        sums = tl.where(m == 0, part, sums + part)  # -0 stays -0 in a mixture of one
    to = out_ptr + row * columns + column
    if out_ptr.dtype.element_ty == tl.bfloat16:
        tl.store(to, as_bf16(sums), there)
    else:
        tl.store(to, sums.to(out_ptr.dtype.element_ty), there)


def _bits(x: float) -> int:
    return struct.unpack("q", struct.pack("d", x))[0]


def soften(
    logits: torch.Tensor, cuts: torch.Tensor, candidates: torch.Tensor, draw: Draw, mixing: Mixing, sampled: dict[str, torch.Tensor],
    coordinates: tuple,
) -> dict[str, torch.Tensor]:  # fmt: skip
    """See `dispatch.Engine`; `coordinates` as launch.py makes them."""
    (batch, width), device = candidates.shape, logits.device
    if mixing.noise == "dirichlet" or width > _SIZES[-1]:
        return reference_soft.soften(logits, cuts, candidates, draw, mixing, sampled)
    floats = {
        name: torch.empty(batch, width, dtype=torch.float32, device=device) for name in ("weights", "log_pi", "noise")
    }
    made = {
        "ids": torch.empty(batch, width, dtype=torch.int64, device=device), **floats,
        "tokens": torch.empty(batch, dtype=torch.int64, device=device), "logprobs": torch.empty(batch, dtype=torch.float32, device=device),
    }  # fmt: skip
    if not batch:
        return made
    if isinstance(mixing.tau, torch.Tensor):
        tau: tuple = (0, mixing.tau, mixing.tau.stride(0))
    else:
        tau = (_bits(mixing.tau), torch.empty(1, dtype=torch.float64, device=device), -1)
    rows = sampled["status"] if mixing.soft_rows is None else mixing.soft_rows.view(torch.uint8)
    with torch.cuda.device_of(logits):
        soften_kernel[(batch,)](
            logits, logits.stride(0), cuts, cuts.stride(0) if len(cuts) > 1 else 0, cuts.shape[1], *coordinates,
            NOISES.index(mixing.noise), _bits(mixing.strength), *tau, rows, int(mixing.soft_rows is None), int(mixing.straight_through), width,
            candidates, draw.num_samples, *(sampled[name] for name in ("tokens", "logprobs", "kept", "status")),
            Made(*(made[field.removesuffix("_ptr")] for field in Made._fields)),
            SIZE=_SIZES[0] if width <= _SIZES[0] else _SIZES[1], num_warps=1 if width <= _SIZES[0] else 4, enable_fp_fusion=False,
        )  # fmt: skip
    return made


def embed(ids: torch.Tensor, weights: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
    """See `dispatch.Engine`. An id that has no row in the table makes its row NaN."""
    (rows, width), (vocab, columns) = ids.shape, table.shape
    out = torch.empty(rows, columns, dtype=table.dtype, device=table.device)
    if out.numel():
        with torch.cuda.device_of(table):
            embed_kernel[(rows, triton.cdiv(columns, COLUMNS.value))](
                table, vocab, columns, table.stride(0), width, ids, weights, out, num_warps=4, enable_fp_fusion=False
            )  # fmt: skip
    return out
