"""A GPU that is not there, for a dry run: the code of this folder and the tests marked `gpu` run as they are, on the CPU.

    FASTDECODE_GPU_DRY=1 python -m bench.gpu.measure ...    programs for a GPU begin with `dry_run()`
    python -m pytest -p bench.gpu.stand_in ...              tests get it as a plugin

Tensors that are sent to "cuda" are copied on the CPU; the CPU engine answers for the engines of a GPU; a graph notes the calls of its
capture and repeats them; events say that one millisecond has passed, always. So a dry run shows that everything runs to its end, and
says nothing about a GPU.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any, ClassVar

import torch
from torch.overrides import TorchFunctionMode

from fastdecode import dispatch
from fastdecode.engines import cuda

NAME = "stand-in, no GPU"
PROPERTIES = SimpleNamespace(name=NAME, multi_processor_count=2, L2_cache_size=2**14, total_memory=2**26)


def dry_run() -> bool:
    """Was a dry run asked for? Then the stand-in is in place after this call."""
    if os.environ.get("FASTDECODE_GPU_DRY") != "1":
        return False
    install()
    return True


def install() -> None:
    """Once; for the rest of the process."""
    if MODE.there:
        return
    MODE.there = True
    MODE.__enter__()
    for name, value in {
        "is_available": lambda: True, "device_count": lambda: 1, "current_device": lambda: 0, "synchronize": lambda *_: None,
        "get_device_properties": lambda *_: PROPERTIES, "get_device_capability": lambda *_: (0, 0), "_sleep": lambda _: None,
        "Event": Event, "Stream": Stream, "stream": contextlib.nullcontext, "CUDAGraph": Graph, "graph": capture,
        "_compile_kernel": lambda *_, **__: lambda **__: None,
    }.items():  # fmt: skip
        setattr(torch.cuda, name, value)
    torch.compile = lambda function, **_: function
    cuda.Engine = OfCpu  # type: ignore[misc, assignment]
    if "cpu" in dispatch.ENGINES:  # else nothing is compiled yet
        for name in ("triton", "cuda"):
            dispatch.ENGINES[name] = OfCpu()
            dispatch.PREFERENCE["cpu"] = (name, *dispatch.PREFERENCE["cpu"])


class Placing(TorchFunctionMode):
    """Tensors for "cuda" lie on the CPU. While a graph is captured, every operation is noted."""

    there = False
    noted: list[Callable[[], object]] | None = None
    before: ClassVar[list[tuple[torch.Tensor, torch.Tensor]]] = []  # what the capture changed in place

    def __torch_function__(self, function: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        if function is torch.device:
            return function(*args, **(kwargs or {}))
        given, named = [_placed(a) for a in args], {name: _placed(a) for name, a in (kwargs or {}).items()}
        if self.noted is not None and given and isinstance(given[0], torch.Tensor) and function.__name__.endswith("_"):
            self.before.append((given[0], given[0].clone()))
        result = function(*given, **named)
        crosses = function is torch.Tensor.cpu or any(
            a is not b for a, b in zip((*args, *(kwargs or {}).values()), (*given, *named.values()))
        )
        if crosses and isinstance(result, torch.Tensor) and given and result is given[0]:
            result = result.clone()  # another device would have given a copy
        if self.noted is not None and isinstance(result, torch.Tensor):
            self.noted.append(lambda: _overwrite(result, function(*given, **named)))
        return result


MODE = Placing()


def _placed(value: Any) -> Any:
    names_gpu = isinstance(value, (str, torch.device)) and str(value).split(":")[0] == "cuda"
    return torch.device("cpu") if names_gpu else value


def _overwrite(old: Any, new: Any) -> None:
    """What a replayed graph does: its outputs lie where they lay."""
    if isinstance(old, dict):
        for name in old:
            _overwrite(old[name], new[name])
    elif isinstance(old, torch.Tensor) and old.data_ptr() != new.data_ptr():
        old.copy_(new)


class OfCpu:
    """The CPU engine by the name of a GPU's; how many blocks it would take is not asked."""

    def __init__(self, compiled: object = None, ranks: int = 0):
        self.ranks = ranks

    def targets(self) -> list[None]:
        return [None]

    def __getattr__(self, name: str) -> Callable[..., Any]:
        if name not in ("truncate", "sample", "sample_temperatures", "soften", "embed", "uniforms"):
            raise AttributeError(name)
        function = getattr(dispatch.ENGINES["cpu"], name)

        def call(x: torch.Tensor, *arguments: Any) -> Any:
            if x.shape[1] > 2**20:
                raise RuntimeError("the stand-in takes rows of up to 1048576 tokens, as the CUDA engine does")
            noted, MODE.noted = MODE.noted, None
            found = function(x, *arguments)
            MODE.noted = noted
            if noted is not None:
                noted.append(lambda: _overwrite(found, function(x, *arguments)))
            return found

        return call


class Graph:
    def __init__(self) -> None:
        self.calls: list[Callable[[], object]] = []

    def replay(self) -> None:
        for call in self.calls:
            call()


@contextlib.contextmanager
def capture(graph: Graph) -> Iterator[None]:
    """What is captured does not run before the first replay."""
    MODE.noted = graph.calls
    try:
        yield
    finally:
        MODE.noted = None
        while MODE.before:
            changed, before = MODE.before.pop()
            changed.copy_(before)


class Event:
    def __init__(self, enable_timing: bool = False) -> None: ...
    def record(self) -> None: ...
    def synchronize(self) -> None: ...
    def elapsed_time(self, _: Event) -> float:
        return 1.0


class Stream:
    def __init__(self, _: object = None) -> None: ...
    def synchronize(self) -> None: ...


def pytest_addoption(parser: object) -> None:
    """As a plugin: called before the first conftest is loaded."""
    install()
