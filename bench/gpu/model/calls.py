"""A call as the model sees it: the machine code's costs, the emulation's counts and the device put together."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path

import torch

import fastdecode as fd
from bench.plans import RULES
from bench.rows import rows

from . import constants, cost, counts, engine
from .predict import Prediction, bytes_of, predict

VOCAB = 128256
RULES_OF = {case.name: case.rules for case in RULES}


@dataclass(frozen=True)
class Call:
    """`kind`: rows of bench/rows.py, or "T = 2", which are real ones at that temperature. `aligned`: rows start on 16 bytes.
    `writes`: masked logits instead of a token."""

    plan: str = "none"
    kind: str = "real"
    dtype: str = "float32"
    batch: int = 1
    vocab: int = VOCAB
    aligned: bool = True
    writes: bool = False

    @property
    def shape(self) -> counts.Shape:
        return counts.shape(constants.H100, self.dtype, self.batch, self.vocab)

    @property
    def one_read(self) -> float:
        """Microseconds."""
        return self.batch * self.vocab * bytes_of(self.dtype) / constants.H100.read


@functools.cache
def _rows(kind: str, vocab: int, dtype: str) -> torch.Tensor:
    """Four of them, or two: enough, because what is counted differs little from row to row."""
    x = rows("real", vocab, 64)[::16] if kind in ("real", "T = 2") else rows(kind, vocab, 2)
    return x.to(getattr(torch, dtype)).contiguous()


@functools.cache
def _counted(plan: str, kind: str, dtype: str, vocab: int, ranks: int, writes: bool) -> counts.Counts:
    rules = (*([fd.temperature(2.0)] if kind == "T = 2" else []), *RULES_OF[plan])
    return counts.of_rows(_rows(kind, vocab, dtype), rules, ranks, writes)


def counted(call: Call) -> counts.Counts:
    return _counted(call.plan, call.kind, call.dtype, call.vocab, call.shape.ranks, call.writes)


def predicted(fat: Path, call: Call) -> Prediction:
    sums = call.plan in engine.OPENS_WITH_SUMS and not (call.writes and call.plan == "none")
    return predict(
        constants.H100, cost.costs(fat, call.dtype, call.aligned), counted(call), call.shape, call.batch, call.vocab, call.dtype,
        sums=sums, fenced=cost.sites(fat).fenced, writes=call.writes,
    )  # fmt: skip
