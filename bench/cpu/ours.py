"""fastdecode as candidates: the public functions, and the same C++ calls without the Python around them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

import fastdecode as fd
from fastdecode import _native
from fastdecode.engines import cpu

SEED, STEP = 20_26, 3

Call = Callable[[], object]


class _Recorder:
    """Stands for the extension while the arguments of one call are noted."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, tuple]] = []

    def __getattr__(self, name: str) -> Any:
        made = getattr(_native, name)

        def call(*args: object) -> object:
            self.calls.append((name, args))
            return made(*args)

        return call


def raw(call: Call, threads: int | None = None) -> Call:
    """What `call`, which must end in one call of the CPU engine, asks of the extension: the same addresses, no checks.

    The function that comes back writes into the answer of this first call, which is the first thing it returns.
    """
    cpu._native = recorder = _Recorder()
    try:
        answer = call()
    finally:
        cpu._native = _native
    ((name, args),) = recorder.calls
    if threads is not None:
        args = (*args[:-1], threads)
    function = getattr(_native, name)

    def again() -> tuple:
        function(*args)
        return answer, call  # their tensors live as long as this function: the addresses stay valid

    return again


def sample(plan: fd.Plan) -> Callable[[torch.Tensor], Call]:
    """`fd.sample` as a user calls it."""
    return lambda x: lambda: fd.sample(x, plan, seed=SEED, step=STEP)


def sample_engine(plan: fd.Plan, threads: int | None = None) -> Callable[[torch.Tensor], Call]:
    """The C++ time of it, and one pybind11 call."""
    return lambda x: raw(sample(plan)(x), threads)


def truncate(plan: fd.Plan) -> Callable[[torch.Tensor], Call]:
    """`fd.truncate` into a new tensor, as transformers' warpers do it."""
    return lambda x: lambda: fd.truncate(x, plan)


def truncate_out(plan: fd.Plan) -> Callable[[torch.Tensor], Call]:
    """`fd.truncate` into a tensor that is there already."""

    def bind(x: torch.Tensor) -> Call:
        out = torch.empty_like(x)
        return lambda: fd.truncate(x, plan, out=out)

    return bind


def truncate_engine(plan: fd.Plan, threads: int | None = None) -> Callable[[torch.Tensor], Call]:
    """The C++ time of it."""
    return lambda x: raw(truncate_out(plan)(x), threads)


# ---- ceilings: float32, one thread ----------------------------------------------------------------------------------

NATIVE_CEILINGS = hasattr(_native, "read_once") and hasattr(_native, "exp_pass")


def read_once(x: torch.Tensor) -> Call:
    """The largest element: one read of all rows and nothing else."""
    assert x.dtype == torch.float32, "the C++ reads floats"
    if not NATIVE_CEILINGS:
        return lambda: torch.max(x)
    address, count = x.data_ptr(), x.numel()

    def call() -> object:
        return _native.read_once(address, count), x  # x: the address stays valid

    return call


def exp_pass(x: torch.Tensor) -> Call:
    """The largest element of each row and the sum of exp(x - max): what every rule that looks at probabilities needs."""
    assert x.dtype == torch.float32, "the C++ reads floats"
    if not NATIVE_CEILINGS:
        return lambda: torch.logsumexp(x, 1)
    addresses, vocab = [row.data_ptr() for row in x], x.shape[1]

    def call() -> object:
        return [_native.exp_pass(address, vocab) for address in addresses], x

    return call


def copy_once(x: torch.Tensor) -> Call:
    """One read and one write of all rows: no mask in new memory takes less."""
    out = torch.empty_like(x)
    return lambda: out.copy_(x)
