"""Microseconds of a call, predicted: +-35 % at best. No number from here is a measurement.

A row's time is the sum of what its blocks do one after the other; rows that run side by side share a multiprocessor's four
schedulers and the memory; what does not fit side by side comes in waves.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from .constants import CLUSTER_BARRIER, DEVICE_FENCE, GRAPH_KERNEL, MEMORY_IDLE, Device
from .cost import Costs
from .counts import Counts, Shape

GROUP = 256
RESERVED = 1 << 10  # bytes of shared memory that a block costs beside its own


@dataclass(frozen=True)
class Prediction:
    """Microseconds: the whole call, and of one row by what it does."""

    us: float
    waves: int
    parts: dict[str, float]


def predict(
    device: Device, costs: Costs, counts: Counts, shape: Shape, rows: int, vocab: int, dtype: str
) -> Prediction:
    size = 4 if dtype == "float32" else 2
    loads = size * GROUP // (16 * 32)  # of a group, by a warp, 16 bytes a lane
    groups = math.ceil(math.ceil(vocab / GROUP) / shape.ranks)
    visits = max(0.0, counts.shared_loads / loads)
    if not shape.resident:
        visits += max(0.0, counts.memory_loads / loads - groups)
    warps = shape.warps
    parts = {
        "start": 2 * MEMORY_IDLE,
        "opening": math.ceil(groups / warps) * costs.opening.cycles,
        "visits": visits / warps * costs.visit.cycles,
        "block barriers": counts.block_barriers * costs.between_barriers.cycles,
        "cluster barriers": counts.cluster_barriers * (CLUSTER_BARRIER + DEVICE_FENCE if shape.ranks > 1 else 0),
        "draw": costs.draw.cycles,
    }
    issued = groups * costs.opening.instructions + visits * costs.visit.instructions
    issued += warps * counts.block_barriers * costs.between_barriers.instructions + costs.draw.instructions

    blocks = max(1, min(2, (device.shared_bytes + RESERVED) // (shape.shared_bytes + RESERVED)))
    side_by_side = max(1, device.multiprocessors * blocks // shape.ranks)
    waves = math.ceil(rows / side_by_side)
    busy = min(rows, side_by_side)
    sharing = max(1.0, busy * shape.ranks / device.multiprocessors)
    row = sum(parts.values())
    at_once = max(row, sharing * issued / device.schedulers) / device.clock
    from_memory = busy * vocab * size / device.read
    us = GRAPH_KERNEL + waves * max(at_once, from_memory)
    return Prediction(us, waves, {name: time / device.clock for name, time in parts.items()})
