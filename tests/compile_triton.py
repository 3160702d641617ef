"""Compiles the Triton engine's kernels for a GPU that is not there, by calling the engine with launches left out, and prints how
many there are after each round of calls. Run by test_triton.py in a process of its own: python compile_triton.py cuda:90 [bfloat16]
"""

from __future__ import annotations

import sys

import torch
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction

import fastdecode as fd
from fastdecode import dispatch, triton_engine

backend, architecture = sys.argv[1].split(":")
TARGET = GPUTarget(
    backend, int(architecture) if architecture.isdigit() else architecture, 64 if backend == "hip" else 32
)


class NoGpu:
    """What Triton asks the driver of a GPU before it compiles."""

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, _device: int) -> int:
        return 0

    def get_current_target(self) -> GPUTarget:
        return TARGET


KERNELS = (
    triton_engine.measure_kernel, triton_engine.rows_kernel, triton_engine.write_kernel, triton_engine.statistics_kernel, triton_engine.best_kernel,
)  # fmt: skip


def count() -> int:
    return sum(len(kernel.device_caches[0][0]) for kernel in KERNELS)


def call(batch: int, vocab: int, dtype: torch.dtype, offset: int = 0, **options) -> None:
    x = torch.zeros(batch * vocab + offset, dtype=dtype)[offset:].view(batch, vocab)
    fd.truncate(x, options.pop("truncate", fd.plan()), filter_value=options.pop("filter_value", 0.0))
    fd.sample(
        x, **{"seed": 1, "stats": True, "top_logprobs": 2, "logprobs_of": torch.zeros(batch, 1).long(), **options}
    )


driver.set_active(NoGpu())
run = JITFunction.run
JITFunction.run = lambda self, *arguments, **options: run(self, *arguments, **{**options, "warmup": True})
dispatch.ENGINES["triton"] = triton_engine
dispatch.PREFERENCE["cpu"] += ("triton",)

with dispatch.use("triton"):
    call(1, 1000, getattr(torch, sys.argv[2] if len(sys.argv) > 2 else "float32"))
    print(count())
    if len(sys.argv) > 2:
        sys.exit()
    rows = torch.arange(1, 10)
    for batch in (1, 2, 3, 7, 16, 33):
        for vocab in (4, 16, 1000, 1004, 128256):
            call(batch, vocab, torch.float32, seed=2**63 + batch, step=2**32 - 1, num_samples=batch, top_logprobs=1)
    call(9, 1008, torch.float32, seed=rows, step=rows, streams=rows, filter_value=-1e4)
    call(8, 1008, torch.float32, seed=rows[1:], step=rows[1:], streams=rows[1:], vocab_limit=16)  # at another alignment
    call(
        4,
        1008,
        torch.float32,
        stats=("margin",),
        top_logprobs=1,
        plan=fd.plan(fd.top_k(5), fd.typical_p(0.5), fd.temperature(2.0)),
    )
    call(
        4,
        1008,
        torch.float32,
        truncate=fd.plan(fd.top_p(rows[:4] / 10), fd.temperature(rows[:4] / 10)),
        filter_value=float("nan"),
    )
    fd.sample_temperatures(
        torch.zeros(3, 1008), (0.5, 0.0, 2.0), fd.plan(fd.top_p(0.5)), num_samples=2, seed=1, stats=True
    )
    print(count())
    call(2, 1001, torch.float32)
    call(2, 1000, torch.float32, offset=1)
    print(count())
