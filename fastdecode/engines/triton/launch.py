"""The Triton engine: every GPU that Triton compiles for, with no compiler at build time; and the CPU, slowly, in Triton's
interpreter. This file allocates and launches; the kernels are in measure.py, narrow.py, outputs.py and soft.py.

No call waits for the GPU, and nothing is compiled again for another batch, length or value: only for another dtype or another
alignment of the rows.
"""

from __future__ import annotations

import functools
import math

import torch

from ...philox import uniforms as uniforms
from ...record import Draw, Mixing, Wanted, drop_samples
from . import soft as triton_soft
from .draw import Drawn
from .measure import AT_DRAW, AT_ONE, GROUP, GROUP_FLOATS, GROUP_INTS, ROW_NUMBERS, TILE, Memory, measure_kernel
from .narrow import rows_kernel
from .outputs import (  # fmt: skip
    ENTROPY,
    KEPT_MASS,
    LOGPROBS_OF,
    MARGIN,
    MAX_PROB,
    RAW_LOGPROBS,
    Best,
    Statistics,
    best_kernel,
    statistics_kernel,
    write_kernel,
)
from .soft import embed as embed

# A tile of 16 groups is two groups for each warp and 16 logits for each thread. Without fusion a GPU rounds as the interpreter does.
_LAUNCH = {"num_warps": 8, "enable_fp_fusion": False}

_BITS = {
    "entropy": ENTROPY.value, "kept_mass": KEPT_MASS.value, "max_prob": MAX_PROB.value, "margin": MARGIN.value,
    "raw_logprobs": RAW_LOGPROBS.value, "logprobs_of": LOGPROBS_OF.value,
}  # fmt: skip


class _Rows:
    """Logits and cuts as kernel arguments, and the memory that the kernels share."""

    def __init__(self, logits: torch.Tensor, cuts: torch.Tensor, limit: int, plans: int = 1):
        batch, self.vocab = logits.shape
        self.answers = batch * plans
        groups = -(-limit // GROUP.value)
        self.vec = _vector(logits)
        self.logits = (logits, logits.stride(0), limit)
        self.cuts = (cuts, cuts.stride(0) if len(cuts) > 1 else 0, cuts.shape[1] // plans)
        each, device = self.answers, logits.device
        floats = torch.empty(each * (GROUP_FLOATS.value * groups + GROUP.value), dtype=torch.float32, device=device)
        ints = torch.empty(each * (GROUP_INTS.value * groups + GROUP.value), dtype=torch.int32, device=device)
        numbers = torch.empty(each * ROW_NUMBERS.value, dtype=torch.float64, device=device)
        self.memory = Memory(floats, ints, numbers)
        self.groups = groups
        self.plans = plans
        self.batch = batch
        self.slices = slices(batch, limit, processors(logits.device))

    def measure(self, asked: int) -> None:
        grid = (self.batch, self.slices)
        measure_kernel[grid](*self.logits, *self.cuts, self.memory, self.groups, self.plans, asked, self.vec, **_LAUNCH)

    def run(self, *draws) -> None:
        """`draws`: coordinates, number of samples, and where they go; none: only the cuts are run."""
        rows_kernel[(self.answers,)](
            *self.logits, *self.cuts, self.memory, self.groups, self.plans, *(draws or (None,) * 11), self.vec, bool(draws), **_LAUNCH
        )  # fmt: skip


def truncate(
    logits: torch.Tensor, cuts: torch.Tensor, out: torch.Tensor, filter_value: float, vocab_limit: int
) -> None:
    """See `dispatch.Engine`."""
    if not len(logits):
        return
    with torch.cuda.device_of(logits):
        rows = _Rows(logits, cuts, vocab_limit)
        rows.measure(0)
        rows.run()
        write_kernel[(rows.batch, rows.slices)](
            logits, logits.stride(0), rows.vocab, vocab_limit, *rows.cuts, rows.memory, out, out.stride(0), filter_value,
            min(rows.vec, _vector(out)), **_LAUNCH,
        )  # fmt: skip


def sample(logits: torch.Tensor, cuts: torch.Tensor, draw: Draw, wanted: Wanted) -> dict[str, torch.Tensor]:
    """See `dispatch.Engine`."""
    return drop_samples(_sample(logits, cuts, (len(logits),), draw, wanted), draw)


def sample_temperatures(
    logits: torch.Tensor, cuts: torch.Tensor, draw: Draw, wanted: Wanted
) -> dict[str, torch.Tensor]:
    """`sample` for cuts [B or 1, T, ...]: what is [B] there is [B, T]. One kernel reads the rows, for all temperatures."""
    plans, temperatures = cuts.shape[:2]
    flat = cuts.reshape(plans, -1, cuts.shape[-1])
    return _sample(logits, flat, (len(logits), temperatures), draw, wanted)


def _sample(
    logits: torch.Tensor, cuts: torch.Tensor, rows_of: tuple[int, ...], draw: Draw, wanted: Wanted
) -> dict[str, torch.Tensor]:
    n, device = draw.num_samples, logits.device
    outputs = {
        "tokens": torch.empty(*rows_of, n, dtype=torch.int64, device=device),
        "logprobs": torch.empty(*rows_of, n, dtype=torch.float32, device=device),
        "kept": torch.empty(rows_of, dtype=torch.int64, device=device),
        "status": torch.empty(rows_of, dtype=torch.uint8, device=device),
    }
    for name in wanted.stats:
        outputs[name] = torch.empty(
            (*rows_of, n) if name == "raw_logprobs" else rows_of, dtype=torch.float32, device=device
        )
    ids = wanted.logprobs_of
    if ids is not None:
        outputs["logprobs_of"] = torch.empty(ids.shape, dtype=torch.float32, device=device)
    if wanted.top_logprobs:
        outputs["top_logprobs"] = torch.empty(*rows_of, wanted.top_logprobs, dtype=torch.float32, device=device)
        outputs["top_ids"] = torch.empty(*rows_of, wanted.top_logprobs, dtype=torch.int64, device=device)
    if not len(logits):
        return outputs

    asked = sum(bit for name, bit in _BITS.items() if name in outputs)
    with torch.cuda.device_of(logits):
        rows = _Rows(logits, cuts, draw.vocab_limit, math.prod(rows_of[1:]))
        at_one = asked & (RAW_LOGPROBS.value | LOGPROBS_OF.value) or wanted.top_logprobs
        rows.measure((1 << AT_ONE.value if at_one else 0) | (1 << AT_DRAW.value if asked else 0))
        rows.run(
            *_coordinates(draw, outputs),
            n,
            Drawn(*(outputs[name] for name in ("tokens", "logprobs", "kept", "status"))),
        )
        if asked:
            unused = rows.memory.floats_ptr  # of the same type, so that the kernel is not compiled again
            statistics = Statistics(*(outputs.get(field.removesuffix("_ptr"), unused) for field in Statistics._fields))
            statistics_kernel[(rows.answers,)](
                *rows.logits, *rows.cuts, rows.memory, rows.groups, rows.plans, asked, statistics, outputs["tokens"], n,
                outputs["tokens"] if ids is None else ids, 0 if ids is None else ids.shape[1], rows.vec, **_LAUNCH,
            )  # fmt: skip
        if wanted.top_logprobs:
            best = torch.empty_like(outputs["top_logprobs"])
            best_kernel[(rows.batch,)](
                *rows.logits, rows.memory, rows.groups, Best(best, outputs["top_logprobs"], outputs["top_ids"]), wanted.top_logprobs,
                rows.vec, **_LAUNCH,
            )  # fmt: skip
            # By logit: log-probabilities of different logits may be one float. Stable, so that the lower id comes first.
            order = best.sort(dim=1, descending=True, stable=True).indices
            for name in ("top_logprobs", "top_ids"):
                outputs[name] = outputs[name].gather(1, order)
    return outputs


def soften(
    logits: torch.Tensor, cuts: torch.Tensor, candidates: torch.Tensor, draw: Draw, mixing: Mixing, sampled: dict[str, torch.Tensor]
) -> dict[str, torch.Tensor]:  # fmt: skip
    """See `dispatch.Engine`."""
    return triton_soft.soften(logits, cuts, candidates, draw, mixing, sampled, _coordinates(draw, sampled))


def targets() -> list[None]:
    """See `dispatch.Engine`."""
    return [None]


def slices(batch: int, limit: int, processors: int) -> int:
    """The number of programs for a row, in kernels that can share one: two for each processor in all, at most one a tile."""
    return max(1, min(-(-limit // (TILE.value * GROUP.value)), -(-2 * processors // batch)))


@functools.cache
def processors(device: torch.device) -> int:
    """The number of a GPU's multiprocessors; one in the interpreter."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1


def _vector(rows: torch.Tensor) -> int:
    """The number of neighbouring logits in one load: 16 bytes of them if all rows start and end at a multiple of 16 bytes."""
    size = rows.element_size()
    even = all(n * size % 16 == 0 for n in (rows.shape[1], rows.stride(0))) and rows.data_ptr() % 16 == 0
    return 16 // size if even else 1


def _coordinates(draw: Draw, outputs: dict[str, torch.Tensor]) -> tuple:
    """Seed, step and stream of the rows as kernel arguments."""
    return (*_coordinate(draw.seed, outputs), *_coordinate(draw.step, outputs), *_coordinate(draw.streams, outputs))


def _coordinate(value: int | torch.Tensor | None, outputs: dict[str, torch.Tensor]) -> tuple[torch.Tensor, int, int]:
    """Where to read a number of each row, or, with stride -1, the number for all; no streams are 0, 1, 2, ..."""
    if isinstance(value, torch.Tensor):
        return value, 0, value.stride(0)
    return outputs["tokens"], value or 0, -1
