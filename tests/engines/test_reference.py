"""Here transformers' own warpers and hand-written transcriptions of the papers (transcriptions.py) judge the reference, as the
numbers in test_worked_examples.py do. The reference judges every engine in test_conformance.py.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pytest
import torch

import fastdecode as fd
from fastdecode import dispatch
from tests.support.cases import CHAINS, HOSTILE, INDISTINGUISHABLE, INPUTS, REAL, ROWS, SINGLE, SIZES, ordinary
from tests.support.judge import kept_by
from tests.support.tolerance import (
    EXACT_EDGE,
    EXACT_EDGE_TOKENS,
    FLOAT32_EDGE,
    FLOAT32_EDGE_TOKENS,
    LEAST_ENTROPY,
    PROBABILITY,
)
from tests.support.transcriptions import BY_NAME, entropy, softmax
from tests.support.transformers_twins import has_twin, keeps, warp


@pytest.fixture(autouse=True)
def _reference():
    with dispatch.use("reference"):
        yield


# Divided by a temperature below 1 in float32, as transformers does, these become infinite.
OVERFLOWS = ("all at the lowest float", "both ends of float")

FINITE = [i for i in (*HOSTILE, *SIZES[:8]) if i.name not in ("nan", "+inf", "all -inf")]


def synthetic() -> list[torch.Tensor]:
    batch = torch.cat(
        [i.logits() for i in FINITE if i.logits().shape[1] == 1000 and i.name not in (*INDISTINGUISHABLE, *OVERFLOWS)]
    )
    return [batch, *(INPUTS[name].logits() for name in ("V=257", "V=33")), ordinary(3, 5000, 5)]


# ---- transformers --------------------------------------------------------------------------------------------------


@dataclass
class Count:
    """Tokens x steps: kept, removed, and judged differently although no tie is involved."""

    kept: int = 0
    removed: int = 0
    near: int = 0


def judge(x: torch.Tensor, rules: tuple[fd.Rule, ...], counts: dict[torch.dtype, Count]) -> None:
    """Run rule after rule on the reference's survivors; every step must agree with transformers' step on them, in each dtype.

    A difference that a parameter moved by the distance of tolerance.py does not explain fails at once.
    """
    scores, before = {dtype: x.to(dtype) for dtype in counts}, x > -math.inf
    for place, rule in enumerate(rules):
        if rule.name == "temperature":
            scores = {dtype: warp(rule, s) for dtype, s in scores.items()}
            continue
        after = kept_by(x, *rules[: place + 1])
        assert after.any(1).all() and (before | ~after).all()
        for dtype, s in scores.items():
            counts[dtype].near += judge_step(rule, s, after)
            counts[dtype].kept += int(after.sum())
            counts[dtype].removed += int((before & ~after).sum())
            scores[dtype] = s.masked_fill(~after, -math.inf)
        before = after


def judge_step(rule: fd.Rule, scores: torch.Tensor, after: torch.Tensor) -> int:
    """How many tokens transformers judges differently, all of them near the edge."""
    wrong = ((warp(rule, scores) > -math.inf) != after).any(1)
    if rule.name == "top_h" and scores.dtype == torch.float32:
        wrong &= torch.distributions.Categorical(logits=scores.double()).entropy() > LEAST_ENTROPY
    if not wrong.any():
        return 0
    scores, after = scores[wrong], after[wrong]
    distance = EXACT_EDGE if scores.dtype == torch.float64 else FLOAT32_EDGE
    low, high = keeps(rule, scores)
    differ = (low & ~after) | (after & ~high)
    low, _ = keeps(rule, scores, -distance)
    _, high = keeps(rule, scores, distance)
    far = ((low & ~after) | (after & ~high)).nonzero()
    assert not len(far), f"{rule!r}: row {int(wrong.nonzero()[far[0, 0]])} differs at tokens {far[:5, 1].tolist()}"
    return int(differ.sum())


def assert_few(counts: dict[torch.dtype, Count], removes: bool = True) -> None:
    for dtype, count in counts.items():
        share = EXACT_EDGE_TOKENS if dtype == torch.float64 else FLOAT32_EDGE_TOKENS
        assert count.near <= share * count.kept, (dtype, count)
        assert (count.removed > 0) == removes


TWIN_CASES = [c for c in (*SINGLE, *CHAINS) if c.make(1).rules and all(map(has_twin, c.make(1).rules))]


@pytest.mark.parametrize("case", TWIN_CASES, ids=lambda c: c.name)
def test_transformers_judges_synthetic_rows(case):
    rules = case.make(1).rules
    counts = {torch.float64: Count(), torch.float32: Count()}
    for x in synthetic():
        judge(x, rules, counts)
    assert_few(counts, case.removes)


REAL_CASES = [
    (r.typical(), t)
    for r in ROWS
    if r.values and has_twin(r.typical())
    for t in (1.0, 1.5)
    if r.rule is not fd.temperature
]


@pytest.mark.parametrize("rule, t", REAL_CASES, ids=lambda v: str(v))
def test_transformers_judges_real_rows(rule, t):
    counts = {torch.float64: Count()}
    judge(REAL.logits() if t == 1.0 else REAL.logits()[::4], (fd.temperature(t), rule), counts)
    assert_few(counts)


@pytest.mark.parametrize("rule, t", REAL_CASES[1::2], ids=lambda v: str(v))
def test_transformers_judges_real_rows_rounded_to_bfloat16(rule, t):
    counts = {torch.float32: Count()}
    judge(REAL.logits()[1::4].bfloat16().float(), (fd.temperature(t), rule), counts)
    assert_few(counts)


def test_values_are_those_of_transformers_bit_for_bit():
    for x in synthetic():
        for t in (0.3, 0.7, 1.3, 2.0):
            rules = (fd.temperature(t), fd.min_p(0.01))
            ours, theirs = fd.truncate(x, fd.plan(*rules)), warp(rules[1], warp(rules[0], x))
            both = (ours > -math.inf) & (theirs > -math.inf)
            assert both.any() and torch.equal(ours[both], theirs[both])


# ---- transcriptions ------------------------------------------------------------------------------------------------


def tempered(x: torch.Tensor, t: float) -> np.ndarray:
    return x.double().numpy() / float(np.float32(t))


TRANSCRIBED = [(row, value) for row in ROWS if row.rule is not fd.temperature for value in (row.values or (None,))]


@pytest.mark.parametrize("row, value", TRANSCRIBED, ids=lambda v: getattr(v, "name", str(v)))
def test_transcriptions_judge(row, value):
    assert row.name in BY_NAME, f"{row.name} has no definition in BY_NAME of tests/support/transcriptions.py."
    margins_of, rule = BY_NAME[row.name], row(*([] if value is None else [value]))
    given = [] if value is None else [value]
    kept = removed = near = 0
    rows = [(i.logits(), t) for i in FINITE if i.name not in INDISTINGUISHABLE for t in (1.0, 1.7)]
    for x, t in [*rows, (REAL.logits()[5::16], 1.0), (REAL.logits()[7::32], 2.0)]:
        masks = kept_by(x, fd.temperature(t), rule).numpy()
        for logits, mask in zip(tempered(x, t), masks):
            margins = margins_of(logits, *given)
            differ = mask != (margins >= 0)
            far = differ & (np.abs(margins) > EXACT_EDGE)
            assert not far.any(), f"T={t}: tokens {far.nonzero()[0][:5]}, margins {margins[far][:5]}"
            kept, removed, near = kept + mask.sum(), removed + (~mask).sum(), near + differ.sum()
    assert kept > 0 and removed > 0
    assert near <= EXACT_EDGE_TOKENS * kept, f"{near} tokens near the edge of {kept} kept"


# ---- what a sample says about its rows ---------------------------------------------------------------------------------


def test_statistics_by_plain_arithmetic():
    """Each field of `Sample` from its definition, one row at a time."""
    t, mass = 1.7, 0.8
    ids = torch.tensor([[3, 0, 32]]).expand(4, 3)
    rules = (fd.temperature(t), fd.top_p(mass))
    s = fd.sample(
        INPUTS["V=33"].logits(), fd.plan(*rules), seed=1, num_samples=5, stats=True, top_logprobs=4, logprobs_of=ids
    )
    for row, logits in enumerate(INPUTS["V=33"].logits()):
        p, log_p = softmax(tempered(logits, t))
        raw = softmax(tempered(logits, 1.0))[1]
        kept = BY_NAME["top_p"](tempered(logits, t), mass) >= 0
        drawn, best = s.tokens[row].numpy(), np.argsort(-raw)
        assert kept[drawn].all() and s.kept[row] == kept.sum() and 1 < kept.sum() < 33
        for name, want in {
            "logprobs": log_p[drawn] - math.log(p[kept].sum()),
            "raw_logprobs": raw[drawn],
            "entropy": entropy(p, log_p),
            "kept_mass": p[kept].sum(),
            "max_prob": p.max(),
            "margin": np.sort(p)[-1] - np.sort(p)[-2],
            "top_logprobs": raw[best[:4]],
            "logprobs_of": raw[[3, 0, 32]],
        }.items():
            assert np.abs(getattr(s, name)[row].double().numpy() - want).max() < PROBABILITY, name
        assert s.top_ids[row].tolist() == best[:4].tolist()
    assert s.status.tolist() == [0] * 4


def test_rows_that_are_not_ordinary():
    """NaN, nothing, +inf, greedy, and a limit, by their definitions."""
    inf, nan = math.inf, math.nan
    x = torch.tensor(
        [[1.0, nan, 2, 0], [-inf] * 4, [0, inf, 5, inf], [nan, 1, inf, 2], [2.0, 3, 3, 1], [-inf, 0, -inf, -inf]]
    )
    s = fd.sample(x, seed=1, num_samples=200, stats=True)
    assert s.status.tolist() == [fd.STATUS_NAN, fd.STATUS_EMPTY, 0, fd.STATUS_NAN, 0, 0]
    assert s.kept.tolist() == [0, 0, 2, 0, 4, 1]
    drawn = [set(row) for row in s.tokens.tolist()]
    assert drawn == [{-1}, {-1}, {1, 3}, {-1}, {0, 1, 2, 3}, {1}]
    assert (s.entropy[2], s.max_prob[2], s.margin[2]) == (torch.tensor(2.0).log(), 0.5, 0)
    assert s.entropy[[0, 1, 3]].isnan().all() and s.entropy[5] == 0 and (s.logprobs[5] == 0).all()

    greedy = fd.sample(x, fd.plan(fd.temperature(0)), seed=1, num_samples=3, stats=True)
    assert [set(row) for row in greedy.tokens.tolist()] == [{-1}, {-1}, {1}, {-1}, {1}, {1}]
    assert greedy.kept.tolist() == [0, 0, 1, 0, 1, 1] and (greedy.logprobs[[2, 4, 5]] == 0).all()
    assert greedy.entropy[4] == 0 and greedy.kept_mass[4] == 1 and greedy.max_prob[4] == 1 and greedy.margin[4] == 1

    for value in (
        torch.finfo(torch.float32).min,
        torch.finfo(torch.float32).max,
        -1e4,
        1e20,
    ):  # ln 4 is nothing beside 1e20
        equal = fd.sample(torch.full((1, 4), value), seed=1, num_samples=200, stats=True)
        assert set(equal.tokens[0].tolist()) == {0, 1, 2, 3} and (equal.entropy == torch.tensor(4.0).log()).all()
        assert (equal.raw_logprobs == equal.logprobs).all() and (equal.logprobs == -torch.tensor(4.0).log()).all()

    limited = fd.sample(x, seed=1, num_samples=200, vocab_limit=1)
    assert limited.status.tolist() == [0, fd.STATUS_EMPTY, 0, fd.STATUS_NAN, 0, fd.STATUS_EMPTY]
    assert set(limited.tokens.flatten().tolist()) == {0, -1}

    masked = fd.truncate(x, fd.plan(fd.temperature(2.0), fd.top_k(2)), filter_value=-9.0)
    kept = torch.tensor(
        [[0.5, nan, 1, 0], [-9] * 4, [-9, inf, -9, inf], [nan, 0.5, inf, 1], [-9, 1.5, 1.5, -9], [-9, 0, -9, -9]]
    )
    assert torch.equal(masked.nan_to_num(nan=7.0), kept.nan_to_num(nan=7.0))
