"""What the host does for one call of `fd.sample` with the CUDA engine, in Python: all but the launch, which no machine without a GPU
can time. The compiled module is replaced by one that returns at once."""

from __future__ import annotations

import time
from types import SimpleNamespace

import torch

import fastdecode as fd
from fastdecode import _native, dispatch
from fastdecode.engines import cuda
from tests.conftest import stand_in

CALLS, PASSES = 500, 7


class _WithoutLaunch(cuda.Engine):
    def __init__(self) -> None:
        super().__init__(
            SimpleNamespace(sample_cuda=lambda *numbers: None, fields=_native.fields, arguments=_native.arguments)
        )

    def _where(self, logits: torch.Tensor) -> tuple[int, int, int]:
        return 0, 0, 0


def time_of_a_call() -> float:
    """Microseconds, of the fastest of a few passes: measured on this CPU, beside whatever else it does."""
    x, plan, taken = torch.zeros(1, 64), fd.plan(fd.top_p(0.95)), []
    with stand_in("cuda", _WithoutLaunch()), dispatch.use("cuda"):
        for _ in range(PASSES):
            start = time.perf_counter()
            for step in range(CALLS):
                fd.sample(x, plan, seed=1, step=step)
            taken.append((time.perf_counter() - start) / CALLS * 1e6)
    return min(taken)
