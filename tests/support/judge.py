"""What the reference says about an input and a plan, computed once, and whether an engine's answer agrees with it.

Masks must be equal but for tokens within a stated distance of an edge. A chain is judged cut by cut, each on what the engine
itself left before it, so that a permitted difference in one cut is not held against the next.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache

import torch

import fastdecode as fd
from fastdecode import dispatch
from fastdecode.engines import reference
from fastdecode.record import STATISTICS, Draw, Wanted
from fastdecode.verify.masks import FIELD, follow
from tests.support.cases import INPUTS, PLANS
from tests.support.tolerance import ENTROPY_NATS, LEAD, NATS, NATS_RELATIVE, PROBABILITY

SEED, STEP, SAMPLES, TOP = 20_26, 3, 3, 2


@dataclass(frozen=True)
class Verdict:
    """The reference's answers for one plan on logits [B, V]."""

    logits: torch.Tensor
    plan: fd.Plan
    limit: int
    keep: torch.Tensor  # bool [B, V]
    status: torch.Tensor
    found: dict[str, torch.Tensor]  # the fields of Sample
    lead: torch.Tensor  # [B, samples]: by how much each token won

    @property
    def cuts(self) -> torch.Tensor:
        return self.plan.packed(torch.device("cpu"))

    def values(self, filter_value: float = -math.inf) -> torch.Tensor:
        """What `truncate` must write: x / T, divided in float32 and rounded once; the largest number of the type where it would be
        an infinity, and x is none."""
        temperature = self.cuts[:, -1, FIELD["temperature"]][:, None]
        scaled = self.logits.float() / torch.where(temperature == 0, 1.0, temperature)
        largest = torch.finfo(self.logits.dtype).max
        scaled = torch.where(self.logits.isinf(), scaled, scaled.clamp(-largest, largest))
        keep = self.keep | (self.status == fd.STATUS_NAN)[:, None]
        return torch.where(keep, scaled, filter_value).to(self.logits.dtype)


def judge(logits: torch.Tensor, plan: fd.Plan, limit: int | None = None, samples: int = SAMPLES, **where) -> Verdict:
    """Ask the reference; `where` may set seed, step, streams, and the logprobs_of to report."""
    limit = logits.shape[1] if limit is None else limit
    ids = torch.arange(len(logits))[:, None] * 7 % limit
    wanted = Wanted(frozenset(STATISTICS), min(TOP, limit), where.pop("logprobs_of", ids))
    draw = Draw(where.get("seed", SEED), where.get("step", STEP), where.get("streams"), samples, limit)
    rows = reference.survivors(logits, plan.packed(torch.device("cpu")), limit)
    tokens, lead = reference.draw_tokens(rows, draw)
    found = {"tokens": tokens, **reference.statistics(rows, tokens, wanted)}
    return Verdict(logits, plan, limit, rows.keep, rows.status, found, lead)


@cache
def verdict(input_name: str, plan_name: str, dtype: torch.dtype = torch.float32) -> Verdict:
    logits = INPUTS[input_name].logits().to(dtype)
    return judge(logits, PLANS[plan_name].make(len(logits)))


def kept_by(x: torch.Tensor, *rules: fd.Rule) -> torch.Tensor:
    """What the engine in use keeps of rows without a NaN."""
    return ~fd.truncate(x, fd.plan(*rules), filter_value=math.nan).isnan()


# ---- masks ---------------------------------------------------------------------------------------------------------


def same(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Equal, or both NaN."""
    return (a == b) | (a.isnan() & b.isnan())


def check_values(of: Verdict, got: torch.Tensor, filter_value: float = -math.inf) -> int:
    """`got` is what the engine wrote: right bit for bit where the masks agree. Returns how many tokens lie at an edge."""
    want = of.values(filter_value)
    assert got.shape == want.shape and got.dtype == want.dtype
    wrong = ~same(got, want).all(1)
    if not wrong.any():
        return 0
    assert not wrong[of.status != fd.STATUS_OK].any(), f"flagged rows differ: {wrong.nonzero().flatten().tolist()}"
    rows = wrong.nonzero().flatten()
    kept = explained_by_edges(of, rows)
    differ = kept != of.keep[rows]
    again = torch.where(
        kept, Verdict.values(_with(of, rows, kept), filter_value), torch.tensor(filter_value).to(got.dtype)
    )
    assert same(got[rows], again).all(), f"values differ in rows {rows.tolist()}"
    return int(differ.sum())


def _with(of: Verdict, rows: torch.Tensor, keep: torch.Tensor) -> Verdict:
    plan = of.plan if of.plan.rows is None else _RowsOf(of.plan, rows)
    return Verdict(of.logits[rows], plan, of.limit, keep, of.status[rows], {}, of.lead[rows])


class _RowsOf:
    """Some rows of a plan."""

    def __init__(self, plan: fd.Plan, rows: torch.Tensor):
        self.cuts = plan.packed(torch.device("cpu"))[rows]

    def packed(self, _device: torch.device) -> torch.Tensor:
        return self.cuts


def engine_keeps(logits: torch.Tensor, cuts: torch.Tensor, limit: int) -> torch.Tensor:
    """What the engine in use keeps."""
    out = torch.empty_like(logits)
    dispatch.engine_for(logits.device).truncate(logits, cuts, out, math.nan, limit)
    return ~out.isnan()


def explained_by_edges(of: Verdict, rows: torch.Tensor) -> torch.Tensor:
    """The engine's masks of these rows, each cut of which agrees with the reference's but for tokens at its edge."""
    x = of.logits[rows]
    cuts = of.cuts[rows] if len(of.cuts) > 1 else of.cuts.expand(len(rows), -1, -1)
    kept, complaint = follow(x, cuts, of.limit, engine_keeps)
    assert not complaint, f"{complaint}, of {of.plan!r} in rows {rows.tolist()}"
    return kept


# ---- samples -------------------------------------------------------------------------------------------------------


def check_sample(of: Verdict, got: fd.Sample, kept: torch.Tensor | None = None) -> tuple[int, int]:
    """Every field of `got`; `kept`: the engine's masks, if they may differ. Returns draws that may differ, and draws."""
    want = of.found
    usable = torch.ones(len(of.logits), dtype=torch.bool)
    if kept is not None:
        usable = (kept == of.keep).all(1) | (of.status != fd.STATUS_OK)
        counts = torch.where(of.status == fd.STATUS_OK, kept.sum(1), 0)
        assert torch.equal(got.kept, counts), "sample and truncate keep different numbers of tokens"
    else:
        assert torch.equal(got.kept, want["kept"])
    assert torch.equal(got.status, want["status"]) and got.status.dtype == torch.uint8
    assert got.tokens.shape == want["tokens"].shape and got.tokens.dtype == torch.int64
    assert ((got.tokens == -1) == (of.status != fd.STATUS_OK)[:, None]).all() and (got.tokens < of.limit).all()

    differ = (got.tokens != want["tokens"]) & usable[:, None]
    lost = differ & ~(of.lead < LEAD)
    assert not lost.any(), f"tokens differ at {lost.nonzero()[:5].tolist()}, leads {of.lead[lost][:5].tolist()}"
    agree = ~differ & usable[:, None]
    for name in ("logprobs", "raw_logprobs"):
        check_close(name, getattr(got, name)[agree], want[name][agree], NATS, NATS_RELATIVE)
    for name in ("top_logprobs", "logprobs_of"):
        check_close(name, getattr(got, name), want[name], NATS, NATS_RELATIVE)
    assert torch.equal(got.top_ids, want["top_ids"])
    check_close("entropy", got.entropy, want["entropy"], ENTROPY_NATS)
    check_close("kept_mass", got.kept_mass[usable], want["kept_mass"][usable], PROBABILITY)
    check_close("max_prob", got.max_prob, want["max_prob"], PROBABILITY)
    check_close("margin", got.margin, want["margin"], PROBABILITY)
    return int(differ.sum()), differ.numel()


def check_close(name: str, got: torch.Tensor, want: torch.Tensor, absolute: float, relative: float = 0.0) -> None:
    assert got.shape == want.shape and got.dtype == torch.float32, f"{name}: {got.dtype} {list(got.shape)}"
    off = (got.double() - want.double()).abs()
    bad = ~((off <= absolute + relative * want.double().abs()) | same(got, want))
    assert not bad.any(), (
        f"{name}: {got[bad][:5].tolist()} for {want[bad][:5].tolist()} at {bad.nonzero()[:5].tolist()}"
    )
