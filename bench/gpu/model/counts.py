"""What one row makes the CUDA engine do, counted by the emulation at the shape that a device would be given."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import cache

import torch

import fastdecode as fd
from fastdecode import dispatch
from tests.conftest import stand_in
from tests.support import emulated

from .constants import Device
from .engine import CHUNK, LOADS_A_GROUP, OPENS_IN_SHARED

GROUP = 256  # tokens that a warp has at once
_DTYPES = {"float32": 0, "float16": 1, "bfloat16": 2}  # as csrc/args.h numbers them


@dataclass(frozen=True)
class Shape:
    ranks: int
    threads: int
    resident: bool
    shared_bytes: int

    @property
    def warps(self) -> int:
        return self.threads // 32


@dataclass(frozen=True)
class Counts:
    """Of a row's first block, for one row; in the order of `Count` in tests/emulation/emulation.h. Loads are of 16 bytes a lane,
    and a warp's counts once; atomics and addresses in other blocks are those of single threads."""

    warp_waits: float
    block_barriers: float
    cluster_barriers: float
    memory_loads: float
    shared_loads: float
    atomics: float
    remotes: float

    def visits(self, vocab: int, dtype: str, shape: Shape) -> float:
        """How often a group of 256 tokens is looked at again."""
        loads = LOADS_A_GROUP
        groups = math.ceil(math.ceil(vocab / GROUP) / (shape.ranks * CHUNK)) * CHUNK
        again = self.shared_loads / loads + (0 if shape.resident else self.memory_loads / loads)
        return max(0.0, again - (groups if OPENS_IN_SHARED or not shape.resident else 0))


def shape(device: Device, dtype: str, rows: int, vocab: int) -> Shape:
    """What the launcher would choose there."""
    asked = (device.multiprocessors, device.shared_bytes, device.max_ranks, _DTYPES[dtype], rows, vocab)
    return Shape(*emulated.module(counted=True).cuda_shape(*asked))


@cache
def _library() -> ctypes.CDLL:
    return ctypes.CDLL(emulated.module(counted=True).__file__)


def of_rows(rows: torch.Tensor, rules: Sequence[fd.Rule], ranks: int, truncates: bool = False) -> Counts:
    """For a sample with these rules, or masked logits; the mean of the rows."""
    engine = emulated.Engine(ranks, emulated.REAL, counted=True)
    numbers = (ctypes.c_long * len(fields(Counts)))()
    _library().fd_take_counts(numbers)
    with stand_in("cuda", engine), dispatch.use("cuda"):
        if truncates:
            fd.truncate(rows, fd.plan(*rules))
        else:
            fd.sample(rows, fd.plan(*rules), seed=1)
    _library().fd_take_counts(numbers)
    return Counts(*(number / len(rows) for number in numbers))
