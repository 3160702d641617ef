"""The cases, the most valuable first: where time runs out, what was left is what matters least."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from ..rows import KINDS, V_MAIN, rows
from .candidates import RULES

DISTINCT = 64  # rows; a larger batch repeats them
BATCHES = (1, 64, 8, 256, 128, 512)
FLOAT32, BFLOAT16 = torch.float32, torch.bfloat16


@dataclass(frozen=True)
class Case:
    """Logits [B, V] and a rule. `converted`: a peer is given float32, and does not pay for making it."""

    rule: str
    V: int = V_MAIN
    kind: str = "real"
    dtype: torch.dtype = FLOAT32
    B: int = 1
    T: float = 1.0
    converted: bool = False

    def logits(self) -> torch.Tensor:
        """On the CPU."""
        distinct = rows(self.kind, self.V, DISTINCT).to(self.dtype)
        return distinct.repeat(-(-self.B // DISTINCT), 1)[: self.B].contiguous()

    @property
    def input(self) -> tuple:
        """Cases of the same input have the same logits."""
        return self.V, self.kind, self.dtype, self.B, self.converted

    def record(self) -> dict:
        """The fields of its line."""
        return {
            "rule": self.rule, "T": self.T, "rows": self.kind, "B": self.B, "V": self.V, "dtype": str(self.dtype)[6:],
            "converted": self.converted,
        }  # fmt: skip


def cases(peer: bool) -> list[Case]:
    """Of an engine here or of a peer, without repetition."""
    return list(dict.fromkeys(case for tier in _tiers() for case in tier if peer or not case.converted))


def _tiers() -> Iterator[Iterator[Case]]:
    def over(V=(V_MAIN,), kinds=("real",), dtypes=(FLOAT32,), batches=BATCHES, temperatures=(1.0,), converted=(False,)):
        # The rule varies fastest: its cases share an input.
        for v, kind, dtype, b, t, c, rule in itertools.product(
            V, kinds, dtypes, batches, temperatures, converted, RULES
        ):
            yield Case(rule, v, kind, dtype, b, t, c)

    others = tuple(kind for kind in KINDS if kind != "real")
    yield over(batches=BATCHES[:4])
    yield over(dtypes=(BFLOAT16,), batches=BATCHES[:4])
    yield over(dtypes=(BFLOAT16,), batches=(64, 1), converted=(True,))
    yield over(kinds=others, batches=(64, 1))
    yield over(dtypes=(FLOAT32, BFLOAT16), batches=BATCHES[4:])
    yield over(V=(262144, 32000), batches=(1, 64))
    yield over(temperatures=(2.0,), batches=(1, 64))
    yield over(V=(32000, V_MAIN, 151936, 262144), kinds=KINDS, dtypes=(FLOAT32, BFLOAT16), temperatures=(1.0, 2.0))


def few(peer: bool) -> list[Case]:
    """For a dry run: every kind of case once, tiny. Of a peer, every rule and every way to be given logits: torch.compile takes
    seconds for each."""
    rules = [Case(rule, 1000) for rule in RULES]
    converted = [Case("top_p", 1000, "real", BFLOAT16, 64, converted=also) for also in (False, True)]
    if peer:
        return [*rules, Case("top_p", 500, "flat", FLOAT32, 2, 2.0), *converted]
    large = [Case(rule, 1000, "real", BFLOAT16, 64) for rule in RULES]
    kinds = [Case("top_p", 500, kind, FLOAT32, 2, 2.0) for kind in KINDS]
    return [*rules, *large, *kinds]
