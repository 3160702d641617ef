"""Which engine runs a call: the only place that decides, and the only reader of environment variables.

FASTDECODE_BACKEND=reference|cpu|cuda|triton  use this engine, or fail; unset: the fastest one that can run on the logits' device
FASTDECODE_CPU=baseline|avx2|avx512    the instruction set of the cpu engine; unset: the best one this machine has
FASTDECODE_REQUIRE=cpu,...             engines that the tests require: a missing one fails its tests instead of skipping them
TRITON_INTERPRET=1                     Triton's own: the triton engine then runs on CPU tensors, slowly
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from typing import Protocol

import torch

from .engines import reference
from .record import Draw, Mixing, Wanted


class Engine(Protocol):
    """What every engine provides. ops.py has checked the arguments: 2-D logits with unit inner stride, on one device."""

    def truncate(
        self, logits: torch.Tensor, cuts: torch.Tensor, out: torch.Tensor, filter_value: float, vocab_limit: int
    ) -> None: ...

    def sample(
        self, logits: torch.Tensor, cuts: torch.Tensor, draw: Draw, wanted: Wanted
    ) -> dict[str, torch.Tensor]: ...

    def sample_temperatures(
        self, logits: torch.Tensor, cuts: torch.Tensor, draw: Draw, wanted: Wanted
    ) -> dict[str, torch.Tensor]:
        """`sample` for cuts [B or 1, T, ...]: what is [B] there is [B, T], and tokens are [B, T, num_samples]."""

    def soften(
        self,
        logits: torch.Tensor,
        cuts: torch.Tensor,
        candidates: torch.Tensor,
        draw: Draw,
        mixing: Mixing,
        sampled: dict[str, torch.Tensor],
    ) -> dict[str, torch.Tensor]:
        """Soft tokens (soft.py) of candidates [B, M], contiguous: the plan's survivors first, the largest of them first; for multi
        the drawn tokens. `sampled`: the outputs of `sample`. Fields: ids, weights, tokens, log_pi, noise, logprobs of `SoftTokens`."""

    def embed(self, ids: torch.Tensor, weights: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
        """`soft_embedding` of contiguous ids and float32 weights [B, M], for a table of float32, float16 or bfloat16."""

    def uniforms(
        self, use: int, ids: torch.Tensor, seed: torch.Tensor, step: torch.Tensor, streams: torch.Tensor
    ) -> torch.Tensor:
        """`philox.uniforms`, which an engine may compute faster but not otherwise."""

    def targets(self) -> Sequence[str | None]:
        """The instruction sets that this machine can run, the best one last; None: the engine has no choice."""


ENGINES: dict[str, Engine] = {"reference": reference}
MISSING: dict[str, str] = {}  # engines that cannot run here, and why
_unusable = ""  # the reason why every call must fail

try:
    from .engines import cpu

    ENGINES["cpu"] = cpu
    cpu.use_target(os.environ.get("FASTDECODE_CPU"))
except ValueError as error:  # the first call raises it: the import, which the doctor needs too, must not fail
    _unusable = f"FASTDECODE_CPU: {error}"
except ImportError as error:
    MISSING["cpu"] = f"the compiled extension is not there ({error}); reinstall fastdecode with a C++17 compiler"

try:
    from .engines import cuda

    ENGINES["cuda"] = cuda.load()
except ImportError as error:
    MISSING["cuda"] = str(error)

# The engines that can run on a device type, the fastest first. Those after the reference run only on request.
PREFERENCE: dict[str, tuple[str, ...]] = {"cpu": ("cpu", "reference"), "cuda": ("cuda", "triton", "reference")}

# Imported only where it can run: the import takes as long as the rest of the package.
_interpreting = os.environ.get("TRITON_INTERPRET", "").lower() in ("1", "true", "yes", "on", "y")
if not _interpreting and not torch.cuda.device_count():
    MISSING["triton"] = "torch sees no GPU here (TRITON_INTERPRET=1 runs it on the CPU, slowly, for tests)"
else:
    try:
        from .engines.triton import launch

        ENGINES["triton"] = launch
        if _interpreting:
            PREFERENCE["cpu"] += ("triton",)
    except ImportError as error:
        MISSING["triton"] = f"Triton is not there ({error}); it comes with torch for Linux, or: pip install triton"

_forced: str | None = os.environ.get("FASTDECODE_BACKEND") or None


def engine_for(device: torch.device) -> Engine:
    """The engine for logits on `device`.

    Raises:
        RuntimeError: the engine that was asked for is unknown, is not there, or cannot run on this device; FASTDECODE_CPU names
            an instruction set that is not there.
    """
    if _unusable:
        raise RuntimeError(_unusable)
    if _forced is None:
        for name in PREFERENCE.get(device.type, ()):
            if name in ENGINES:
                return ENGINES[name]
        return reference
    if _forced not in ENGINES:
        why = MISSING.get(_forced, f"known engines: {', '.join(sorted({*ENGINES, *MISSING}))}")
        raise RuntimeError(f"the engine {_forced!r} was asked for and cannot be used: {why}.")
    if _forced != "reference" and _forced not in PREFERENCE.get(device.type, ()):
        raise RuntimeError(
            f"the engine {_forced!r} was asked for and cannot run on {device}; unset FASTDECODE_BACKEND."
        )
    return ENGINES[_forced]


def required() -> set[str]:
    """The engines that the tests may not skip."""
    return set(filter(None, os.environ.get("FASTDECODE_REQUIRE", "cpu").split(",")))


@contextlib.contextmanager
def use(name: str | None) -> Iterator[None]:
    """Run the calls inside with this engine, as FASTDECODE_BACKEND would; None: choose as usual. Not for threads."""
    global _forced
    before, _forced = _forced, name
    try:
        yield
    finally:
        _forced = before
