"""Microseconds of a call, predicted: +-35 % at best. No number from here is a measurement.

A row's time is the sum of what its blocks do one after the other; rows that run side by side share a multiprocessor's four
schedulers and the memory; what does not fit side by side comes in waves.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from .constants import CLUSTER_BARRIER, COPY, DEVICE_FENCE, GRAPH_KERNEL, MEMORY_IDLE, Device
from .cost import Costs
from .counts import GROUP, Counts, Shape
from .engine import CHUNK, FIXED_WAITS

RESERVED = 1 << 10  # bytes of shared memory that a block costs beside its own


@dataclass(frozen=True)
class Prediction:
    """Microseconds: the whole call, and of one row by what it does."""

    us: float
    waves: int
    parts: dict[str, float]


def bytes_of(dtype: str) -> int:
    return 4 if dtype == "float32" else 2


def predict(
    device: Device,
    costs: Costs,
    counts: Counts,
    shape: Shape,
    rows: int,
    vocab: int,
    dtype: str,
    *,
    sums: bool = True,
    fenced: float = 1,
    writes: bool = False,
) -> Prediction:
    """`sums`: they come out of the read. `fenced`: the share of waits for the cluster that are fences of device scope. `writes`: masked
    logits and no token."""
    size = bytes_of(dtype)
    groups = math.ceil(math.ceil(vocab / GROUP) / (shape.ranks * CHUNK)) * CHUNK
    visits = counts.visits(vocab, dtype, shape)
    written = groups if writes else 0
    visits = max(0.0, visits - written)
    skipped = max(0.0, (counts.cluster_barriers - FIXED_WAITS) * groups - visits)
    warps = shape.warps
    opening = costs.opening if sums else costs.bare_opening
    parts = {
        "start": 2 * MEMORY_IDLE,
        "opening": max(math.ceil(groups / warps) * opening.cycles, MEMORY_IDLE + groups * GROUP * size / COPY),
        "visits": visits / warps * costs.visit.cycles,
        "skipped groups": skipped / warps * costs.skipped.cycles,
        "block barriers": counts.block_barriers * costs.between_barriers.cycles,
        "cluster barriers": counts.cluster_barriers
        * (CLUSTER_BARRIER + DEVICE_FENCE * fenced if shape.ranks > 1 else 0),
        "draw": 0 if writes else costs.draw.cycles,
        "writing": math.ceil(written / warps) * costs.writing.cycles,
    }
    issued = groups * opening.instructions + visits * costs.visit.instructions + skipped * costs.skipped.instructions
    issued += warps * counts.block_barriers * costs.between_barriers.instructions
    issued += written * costs.writing.instructions if writes else costs.draw.instructions

    blocks = max(1, min(2, (device.shared_bytes + RESERVED) // (shape.shared_bytes + RESERVED)))
    side_by_side = max(1, device.multiprocessors * blocks // shape.ranks)
    waves = math.ceil(rows / side_by_side)
    busy = min(rows, side_by_side)
    sharing = max(1.0, busy * shape.ranks / device.multiprocessors)
    row = sum(parts.values())
    at_once = max(row, sharing * issued / device.schedulers) / device.clock
    from_memory = busy * vocab * size * (2 if writes else 1) / device.read
    us = GRAPH_KERNEL + waves * max(at_once, from_memory)
    return Prediction(us, waves, {name: time / device.clock for name, time in parts.items()})
