"""Microseconds of a call on the device.

Cold: the inputs take turns, and together they are several times as large as the L2 cache, so that each is read from memory. Logits
of a model were just written by it and lie in the cache as far as they fit, so that a user's time lies between cold and hot. Hot: one
input over and over. Both are replayed from a CUDA graph, so that what the host does costs nothing; a call that cannot be captured is
timed as it is, host and all, and the record says so.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence

import torch

from .candidates import Call

ROUNDS, LEAST_MS = 7, 2.0  # a round lasts at least so long
BEYOND = 3  # sizes of the L2 cache that cold inputs are
HOT_CALLS = 20


class CannotCapture(RuntimeError):
    """This call waits for the device, or does something else that a graph may not. The process may be spoiled for further calls."""


def copies(x: torch.Tensor, l2_bytes: int) -> list[torch.Tensor]:
    """Enough of them to be cold."""
    return [x, *(x.clone() for _ in range(max(1, BEYOND * l2_bytes // (x.numel() * x.element_size()))))]


def microseconds(call: Call, inputs: Sequence[torch.Tensor], graph: bool = True) -> float:
    """The median over rounds of the mean time of a call; the inputs take turns.

    Raises:
        CannotCapture: it was to be captured, and could not be.
    """
    for x in inputs[:2]:
        call(x)
    torch.cuda.synchronize()
    run = captured(call, inputs) if graph else lambda: [call(x) for x in inputs]
    once = _milliseconds(run, 1)
    repeats = max(1, int(LEAST_MS / max(once, 1e-3)))
    samples = [_milliseconds(run, repeats) for _ in range(ROUNDS)]
    return statistics.median(samples) * 1000 / (repeats * len(inputs))


def captured(call: Call, inputs: Sequence[torch.Tensor]):
    """One replay is one call on each of the inputs."""
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph):
            for x in inputs:
                call(x)
    except RuntimeError as error:
        raise CannotCapture(str(error)) from error
    return graph.replay


def _milliseconds(run, repeats: int) -> float:
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    for _ in range(repeats):
        run()
    end.record()
    end.synchronize()
    return start.elapsed_time(end)


def copy_bandwidth(size: int = 2**30) -> float:
    """Bytes a microsecond, read and written by a large copy: what a kernel that reads can hope for."""
    source = torch.empty(size, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    return 2 * size / microseconds(lambda x: target.copy_(x), [source])
