"""Does the engine answer right on this device? Every rule over batches, vocabularies, types, layouts and clusters, by check.py: masks,
tokens and all statistics. A line for each; what was found wrong is told with the judge's words.
"""

from __future__ import annotations

import argparse
import itertools
import math
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from fastdecode import dispatch
from fastdecode.engines import cuda
from tests.support.cases import CHAINS, LAYOUTS, PLANS, TYPICAL, ordinary
from tests.support.tolerance import EDGE_FEW, EDGE_TOKENS, LEAD_ROWS

from .. import stand_in
from ..check import check_engine
from ..lines import append
from ..measure import first_line

BATCHES, DTYPES, RANKS = (3, 1, 64, 300), (torch.float32, torch.bfloat16, torch.float16), (0, 1, 2, 4, 8)
VOCABULARIES = (128256, 50257, 257, 1, 151936, 262144)  # 50257 and 257: most rows begin at an odd address
RULES = tuple(case.name for case in (*TYPICAL, *CHAINS[:3]))  # every rule once; none, and the chains that are used most
LARGE = 4_000_000  # logits from which on a shape gets a share of the rules, and clusters in turn
SHARE = 4


@dataclass(frozen=True)
class Case:
    engine: str
    B: int
    V: int
    dtype: torch.dtype
    plan: str
    ranks: int = 0  # 0: as many blocks as the launcher takes
    layout: str = ""

    def logits(self) -> torch.Tensor:
        x = ordinary(min(self.B, 8), self.V, self.V).repeat(-(-self.B // 8), 1)[: self.B].to(self.dtype)
        return LAYOUTS[self.layout](x) if self.layout else x

    def record(self) -> dict:
        return {**self.__dict__, "dtype": str(self.dtype)[6:]}


def grid(dry: bool) -> Iterator[Case]:
    """The most valuable first: whole shapes by the engine as it is, then odd layouts, then each size of a cluster."""
    batches, vocabularies, rules = (BATCHES[:2], (257, 1), RULES[::4]) if dry else (BATCHES, VOCABULARIES, RULES)
    shapes = list(itertools.product(batches, vocabularies, DTYPES))
    shapes.sort(key=lambda s: (s[0] * s[1] > LARGE, s[0] == 1))
    for engine in ("cuda", "triton"):
        for turn, (batch, vocab, dtype) in enumerate(shapes):
            share = SHARE if batch * vocab > LARGE else 1
            yield from (Case(engine, batch, vocab, dtype, plan) for plan in rules[turn % share :: share])
        for layout, dtype, (turn, plan) in itertools.product(("misaligned", "padded"), DTYPES, enumerate(rules)):
            yield Case(engine, 3, 257 if dry or turn % 2 else 50257, dtype, plan, layout=layout)
    turns = itertools.cycle(RANKS[1:])
    for batch, vocab, dtype in shapes:
        for plan in rules:
            large = batch * vocab > LARGE // 10
            yield from (Case("cuda", batch, vocab, dtype, plan, n) for n in ([next(turns)] if large else RANKS[1:]))


class Smoke:
    def __init__(self, out: Path):
        self.out = out
        self.bad = self.done = self.kept = self.draws = self.edge = self.lost = 0
        self.made: tuple = ()

    def check(self, case: Case) -> bool:
        """False: the device can no longer be trusted."""
        if case.engine not in dispatch.ENGINES:
            return True
        key = (case.B, case.V, case.dtype, case.layout)
        if self.made != key:
            self.made, self.x = key, case.logits()
        record = case.record()
        try:
            found = check_engine(self.engine(case), self.x, PLANS[case.plan].make(case.B), masks=True)
            record |= found
            self.edge, self.lost = self.edge + found["edge_tokens"], self.lost + found["lost_draws"]
            self.kept, self.draws = self.kept + found["kept"], self.draws + found["draws"]
        except AssertionError as error:
            record["wrong"] = first_line(error)
        except Exception as error:
            record["failed"] = f"{type(error).__name__}: {first_line(error)}"
        self.done += 1
        self.bad += "wrong" in record or "failed" in record
        append(self.out, record)
        return "CUDA error" not in record.get("failed", "")

    @staticmethod
    def engine(case: Case) -> str | dispatch.Engine:
        if not case.ranks:
            return case.engine
        from fastdecode import _native

        return cuda.Engine(_native, case.ranks)

    def finish(self) -> bool:
        """By the tolerances of the suite for all cases together: what may differ is rare."""
        fine = self.edge <= EDGE_FEW + EDGE_TOKENS * self.kept and self.lost <= LEAD_ROWS * self.draws
        append(self.out, {"cases": self.done, "bad": self.bad, "edge_tokens": self.edge, "kept": self.kept,
                          "lost_draws": self.lost, "draws": self.draws, **({} if fine else {"wrong": "more differs than may"})})  # fmt: skip
        return fine and not self.bad


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m bench.gpu.lease.smoke", description="Does the engine answer right here?"
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--until", type=float, default=math.inf, help="in seconds of time.time()")
    options = parser.parse_args(arguments)
    dry = stand_in.dry_run()
    there = [name for name in ("cuda", "triton") if name in dispatch.ENGINES]
    for name in sorted({"cuda", "triton"} - set(there)):
        append(options.out, {"engine": name, "missing": dispatch.MISSING.get(name, "")})
    smoke, stopped = Smoke(options.out), ""
    for case in grid(dry):
        if time.time() > options.until:
            stopped = ", time was up"
            append(options.out, {"stopped": "time was up"})
            break
        if not smoke.check(case):
            stopped = ", stopped by an error of the device"
            break
    fine = smoke.finish()
    print(f"{smoke.done} cases of {' and '.join(there) or 'no engine'}, {smoke.bad} bad{stopped}")
    return int(not fine or "cuda" not in there)


if __name__ == "__main__":
    sys.exit(main())
