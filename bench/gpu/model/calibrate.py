"""The model read against kernels whose times are published: FlashInfer's samplers, from machine code that is compiled here.

Not part of the project and never committed: `pip download --no-deps flashinfer-python==0.6.18.post1 apache-tvm-ffi nvidia-curand`,
unpack, then `nvcc -std=c++17 -O3 -use_fast_math -cubin -arch=sm_90a -I(flashinfer/data/include, flashinfer/data/csrc, tvm_ffi/include,
the folder of curand_kernel.h) flashinfer/data/csrc/sampling.cu`, which takes minutes. Then `python -m bench.gpu.model --peer sampling.cubin`.

Each of these kernels has one block of 1024 threads a row and goes through the row in steps of 1024 vectors, with barriers in each
step. How many times it goes through the row depends on what it draws, so one time through is predicted, and how many times the
published figure would be.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from . import sass
from .constants import GRAPH_KERNEL, MEMORY, Device
from .paths import cycles, meets, way

THREADS = 1024
FLOATS_A_LOAD = 4


@dataclass(frozen=True)
class Published:
    """As FlashInfer's repository gives it, on a GPU that it does not name; see PERFORMANCE.md 4 of the project's notes."""

    what: str
    kernel: str  # part of the mangled name
    rows: int
    vocab: int
    us: float


PUBLISHED = (
    Published("sampling_from_probs", "SamplingFromProbKernel", 64, 128256, 42.8),
    Published("min_p_sampling_from_probs, .05", "MinPSamplingFromProbKernel", 32, 128256, 41.8),
    Published("top_p_sampling_from_probs, .95", "TopPSamplingFromProbKernel", 32, 128256, 71.7),
    Published("top_k_sampling_from_probs, 100", "TopKSamplingFromProbKernel", 32, 128256, 498.0),
)


@dataclass(frozen=True)
class Once:
    """One time through the row, predicted."""

    published: Published
    instructions: int  # of a warp, a step
    vector: int  # floats of a thread, a step
    us: float


def once(device: Device, code: sass.Code, published: Published) -> Once:
    best = None
    # Innermost loops alone: the rounds of a rejection sampler are loops around several times through the row.
    loads = [place for place, each in enumerate(code.instructions) if each.name == "LDG" and ".128" in each.opcode]
    for first, last in {loop for place in loads if (loop := code.loop_around(place))}:
        path = way(code, first, last, meets("LDG"))
        vector = sum(FLOATS_A_LOAD * each.opcode.count(".128") for each in path if each.name == "LDG")
        if vector and (best is None or len(path) / vector > len(best[1]) / best[0]):
            best = (vector, path)
    if best is None:
        raise ValueError(
            f"{code.name} must have a loop that loads 16 bytes at a time, and none was found; see bench/gpu/model/calibrate.py."
        )
    vector, path = best
    steps = math.ceil(published.vocab / (THREADS * vector))
    issued = len(path) * THREADS / 32 / device.schedulers
    sharing = math.ceil(published.rows / device.multiprocessors)
    us = steps * max(cycles(path, MEMORY), sharing * issued) / device.clock
    return Once(published, len(path), vector, GRAPH_KERNEL + us)


def read(device: Device, cubin: Path) -> list[Once]:
    codes = sass.read(cubin)
    found = []
    for published in PUBLISHED:
        # Blocks of 1024 threads, vectors of 4, deterministic: what is called for float32 and a V that 4 divides.
        start, chosen = f"{len(published.kernel)}{published.kernel}ILj{THREADS}E", f"ELj{FLOATS_A_LOAD}ELb1E"
        tries = [
            once(device, code, published)
            for name, code in sorted(codes.items())
            if start in name and chosen in name and not name.startswith("$")
        ]
        if tries:
            found.append(max(tries, key=lambda each: (each.vector, each.us)))
    return found
