"""Whether an answer is right. The CPU engine, which the tests have judged by the reference, is asked for the same rows. Where an
engine's answer differs from it, those rows go to the reference and the judge of the tests, with the tolerances of the tests.

A peer draws with random numbers of its own: each of its tokens must be one that the rule keeps.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields

import torch

import fastdecode as fd
from fastdecode import dispatch
from fastdecode.record import Sample
from tests.conftest import OnDevice, stand_in
from tests.support import judge
from tests.support.tolerance import ENTROPY_NATS, NATS, NATS_RELATIVE, PROBABILITY

CLOSE = {
    "logprobs": NATS, "raw_logprobs": NATS, "top_logprobs": NATS, "logprobs_of": NATS, "entropy": ENTROPY_NATS,
    "kept_mass": PROBABILITY, "max_prob": PROBABILITY, "margin": PROBABILITY,
}  # fmt: skip
WHERE = {"seed": judge.SEED, "step": judge.STEP}


@dataclass(frozen=True)
class Answer:
    """What an engine says about logits: masked values (None: not asked for) and a sample with all statistics."""

    masked: torch.Tensor | None
    sample: Sample

    def of_rows(self, rows: torch.Tensor) -> Answer:
        values = {field.name: getattr(self.sample, field.name)[rows] for field in fields(Sample)}
        return Answer(None if self.masked is None else self.masked[rows], Sample(**values))


@contextmanager
def asked(engine: str | dispatch.Engine) -> Iterator[None]:
    """Calls inside go to this engine of the GPU, for logits on the CPU."""
    name = engine if isinstance(engine, str) else "cuda"
    with stand_in(name, OnDevice(dispatch.ENGINES[name] if engine == name else engine, "cuda")), dispatch.use(name):
        yield


def answer(x: torch.Tensor, plan: fd.Plan, masks: bool) -> Answer:
    """Of the engine in use."""
    ids = torch.arange(len(x))[:, None] * 7 % x.shape[1]
    top = min(judge.TOP, x.shape[1])
    sample = fd.sample(x, plan, num_samples=judge.SAMPLES, stats=True, top_logprobs=top, logprobs_of=ids, **WHERE)
    return Answer(fd.truncate(x, plan) if masks else None, sample)


def differing(got: Answer, want: Answer) -> torch.Tensor:
    """The rows of two answers that the tolerances of the tests do not cover."""
    bad = torch.zeros(len(want.sample.kept), dtype=torch.bool)
    for field in fields(Sample):
        a, b = getattr(got.sample, field.name), getattr(want.sample, field.name)
        close = judge.same(a, b)
        if field.name in CLOSE:
            slack = CLOSE[field.name] + (NATS_RELATIVE if CLOSE[field.name] == NATS else 0) * b.abs()
            close |= (a - b).abs() <= slack
        bad |= ~close.flatten(1).all(1) if close.ndim > 1 else ~close
    if want.masked is not None and not torch.equal(got.masked, want.masked):
        bad |= ~judge.same(got.masked, want.masked).all(1)
    return bad.nonzero().flatten()


def check_engine(engine: str | dispatch.Engine, x: torch.Tensor, plan: fd.Plan, masks: bool) -> dict[str, int]:
    """Raises AssertionError if an engine's answer on logits (on the CPU) is wrong. Returns what was compared, how many rows the
    reference had to judge, and in those the tokens at an edge and the draws without a lead, which may differ."""
    with dispatch.use("cpu"):
        want = answer(x, plan, masks)
    with asked(engine):
        got = answer(x, plan, masks)
        rows = differing(got, want)
        found = {
            "rows": len(x), "judged": len(rows), "edge_tokens": 0, "lost_draws": 0, "kept": int(want.sample.kept.sum()),
            "draws": want.sample.tokens.numel(),
        }  # fmt: skip
        for row in rows:  # one by one: float64 sorts of many rows take much memory
            edge, lost = judged(x, plan, got, row[None])
            found["edge_tokens"] += edge
            found["lost_draws"] += lost
    return found


def judged(x: torch.Tensor, plan: fd.Plan, got: Answer, rows: torch.Tensor) -> tuple[int, int]:
    """Some rows of an answer, by the reference. What was answered is judged, not asked for once more."""
    some, mine = x[rows], got.of_rows(rows)
    ids = rows[:, None] * 7 % x.shape[1]
    of = judge.judge(some, plan, streams=rows, logprobs_of=ids)
    kept = judge.engine_keeps(some, of.cuts, of.limit)
    edge = judge.check_values(of, mine.masked) if mine.masked is not None else int((kept != of.keep).sum())
    lost, _ = judge.check_sample(of, mine.sample, kept if edge else of.keep)
    return edge, lost


def check_peer(tokens: torch.Tensor, distinct: torch.Tensor, plan: fd.Plan) -> None:
    """Raises AssertionError if a token is no id, or one that the rule removes. Row i is row i % n of the distinct logits [n, V]."""
    ids = tokens.cpu().long().flatten()
    assert ((ids >= 0) & (ids < distinct.shape[1])).all(), f"no token ids: {ids[:5].tolist()}"
    with dispatch.use("cpu"):
        kept = fd.truncate(distinct, plan) > -torch.inf
    outside = ~kept[torch.arange(len(ids)) % len(distinct), ids]
    assert not outside.any(), f"{int(outside.sum())} of {len(ids)} tokens are not among those that {plan!r} keeps"
