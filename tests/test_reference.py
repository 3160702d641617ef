"""Here transformers' own warpers, hand-written transcriptions of the papers (transcriptions.py) and SPEC.md's worked
examples judge the reference. The reference judges every engine in test_conformance.py.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from cases import CHAINS, HOSTILE, INDISTINGUISHABLE, INPUTS, REAL, ROWS, SINGLE, SIZES, ordinary
from tolerance import (
    EXACT_EDGE,
    EXACT_EDGE_TOKENS,
    FLOAT32_EDGE,
    FLOAT32_EDGE_TOKENS,
    FOUR_DIGITS,
    ONE_DIGIT_MEAN,
    PROBABILITY,
    WHOLE_MEAN,
)
from transcriptions import BY_NAME, entropy, softmax
from transformers_twins import has_twin, keeps, warp

import fastdecode as fd
from fastdecode import dispatch


@pytest.fixture(autouse=True)
def _reference():
    with dispatch.use("reference"):
        yield


def kept_by(x: torch.Tensor, *rules: fd.Rule) -> torch.Tensor:
    """What fd.truncate keeps; the logits must be finite or -inf."""
    return fd.truncate(x, fd.plan(*rules)) > -math.inf


# transformers in float32 takes p = 1 - 1e-9 for 1 and its surprisal for 0, so it knows the entropy of such a row to a few per cent.
LEAST_ENTROPY = 0.05

FINITE = [i for i in (*HOSTILE, *SIZES[:8]) if i.name not in ("nan", "+inf", "all -inf")]


def synthetic() -> list[torch.Tensor]:
    batch = torch.cat([i.logits() for i in FINITE if i.logits().shape[1] == 1000 and i.name not in INDISTINGUISHABLE])
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


# ---- SPEC.md's worked examples -------------------------------------------------------------------------------------


def kept_tokens(p, *rules: fd.Rule) -> set[int]:
    """Which tokens of a distribution are kept; the tokens count from 1, as SPEC.md does."""
    return {int(i) + 1 for i in kept_by(torch.tensor([p]).log(), *rules)[0].nonzero()}


def untied(p: list[float]) -> list[float]:
    """The same to five digits, without ties: SPEC.md's tables take tied tokens one by one."""
    return [value * (1 - 1e-6 * i) for i, value in enumerate(p)]


FIVE = [0.80, 0.075, 0.05, 0.05, 0.025]
SIX = [0.23, 0.23, 0.21, 0.16, 0.12, 0.05]
ZIPF = [i**-1.5 for i in range(1, 32001)]


@pytest.mark.parametrize(
    "p, whole, entropies, paper, hf",
    [
        (FIVE, 0.7646, (0, 0.2925, 0.4870), 2, (1,)),
        (SIX, 1.7012, (0, 0.6931, 1.0977), 1, (2,)),
        ([1 / 8] * 8, 2.0794, (0, 0.6931, 1.0986), 2, (3,)),
        ([1 / 100] * 100, 4.6052, (0, 0.6931, 1.0986), 6, (39, 40)),  # 40 of 100 meets 0.4 exactly: rounding decides
        (ZIPF, 3.1438, (0, 0.5743, 0.8786), 5, (4,)),
    ],
    ids=["five", "six", "uniform 8", "uniform 100", "i^-1.5"],
)
def test_top_h_of_the_table_in_section_1_4(p, whole, entropies, paper, hf):
    exact, log_exact = softmax(np.log(np.array(p)))
    assert abs(entropy(exact, log_exact) - whole) < FOUR_DIGITS
    for k, value in enumerate(entropies, 1):
        assert abs(entropy(*softmax(np.log(np.array(p[:k])))) - value) < FOUR_DIGITS
    assert kept_tokens(untied(p), fd.top_h(0.4)) == set(range(1, paper + 1))
    assert kept_tokens(untied(p), fd.top_h(0.4, variant="hf")) in [set(range(1, k + 1)) for k in hf]


def test_ties_of_that_table_stay_or_go_together():
    assert kept_tokens(SIX, fd.top_h(0.4)) == {1, 2}  # the maximum's group always stays
    assert kept_tokens([1 / 8] * 8, fd.top_h(0.4)) == set(range(1, 9))
    assert kept_tokens([0.5, 0.2, 0.2, 0.1], fd.top_h(0.6)) == {
        1
    }  # 0.5, 0.2 has H 0.60, 0.5, 0.2, 0.2 has 0.995: budget 0.732
    assert kept_tokens(untied([0.5, 0.2, 0.2, 0.1]), fd.top_h(0.6)) == {1, 2}
    assert kept_tokens([0.5, 0.2, 0.2, 0.1], fd.top_p(0.6)) == {1, 2, 3}
    assert kept_tokens([0.4, 0.2, 0.2, 0.1, 0.1], fd.top_k(2)) == {1, 2, 3}


def test_top_h_keeps_everything_at_1():
    assert kept_tokens([0.6, 0.2, 0.1, 0.05, 0.05], fd.top_h(1.0)) == {1, 2, 3, 4, 5}
    assert kept_tokens([0.6, 0.2, 0.1, 0.05, 0.05], fd.top_h(1.0, variant="hf")) == {
        1,
        2,
        3,
        4,
        5,
    }  # transformers: 4 of 5
    assert kept_tokens(untied(ZIPF), fd.top_h(1.0, variant="hf")) == set(range(1, 101))


def test_top_h_on_zipf_rows():
    """CONTRACTS.md 1.1, fact 9."""
    zipf = [1 / i for i in range(1, 128257)]
    counts = [len(kept_tokens(zipf, fd.top_h(a, variant=v))) for a in (0.4, 0.8) for v in ("paper", "hf")]
    assert counts == [53, 10, 8231, 52]


@pytest.mark.parametrize("variant, means", [("paper", (4.4, 19.9, 75)), ("hf", (4.0, 8.5, 13))], ids=["paper", "hf"])
def test_top_h_keeps_so_many_of_the_real_rows(variant, means):
    for t, mean in zip((1.0, 1.5, 2.0), means):
        kept = kept_by(REAL.logits(), fd.temperature(t), fd.top_h(0.4, variant=variant)).sum(1).double().mean().item()
        assert abs(kept - mean) <= (WHOLE_MEAN if isinstance(mean, int) else ONE_DIGIT_MEAN)


@pytest.mark.parametrize("mass, kept", [(0.2, {2}), (0.4, {2, 1}), (0.9, {2, 1, 3}), (0.95, {2, 1, 3, 4})])
def test_typical_of_section_2(mass, kept):
    assert kept_tokens([0.5, 0.25, 0.15, 0.07, 0.03], fd.typical(mass)) == kept


def test_min_p_and_temperature_of_section_3():
    x = torch.tensor([[5.0, 4.0, 3.0, 1.0, 0.0, -2.0]])
    for t, kept in ((0.5, 2), (1.0, 3), (2.0, 4), (4.0, 6)):
        assert kept_by(x, fd.temperature(t), fd.min_p(0.1)).sum() == kept
        assert kept_by(x, fd.min_p(0.1**t)).sum() == kept
        assert kept_by(x, fd.min_p(0.1), fd.temperature(t)).sum() == 3


def test_a_need_that_is_met_exactly_on_paper_is_met():
    assert kept_tokens([0.5, 0.3, 0.2], fd.top_p(0.8)) == {1, 2}  # transformers: 3, by rounding
    assert kept_tokens([0.5, 0.25, 0.25], fd.min_p(0.5)) == {1, 2, 3}
    assert kept_tokens([0.5, 0.25, 0.125, 0.125], fd.epsilon(0.125)) == {1, 2, 3, 4}


def test_top_n_sigma_does_not_depend_on_temperature_and_sees_through_holes():
    x = INPUTS["holes"].logits()
    kept = kept_by(x, fd.top_n_sigma(1.0))
    assert torch.equal(kept, kept_by(x, fd.temperature(3.0), fd.top_n_sigma(1.0)))
    assert 0 < kept.sum() < (x > -math.inf).sum()


# ---- what a sample says about its rows ---------------------------------------------------------------------------------


def test_statistics_by_plain_arithmetic():
    """Each field of `Sample` from its definition in DESIGN.md 3, one row at a time."""
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
    """NaN, nothing, +inf, greedy, and a limit, by their definitions in DESIGN.md 2."""
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

    limited = fd.sample(x, seed=1, num_samples=200, vocab_limit=1)
    assert limited.status.tolist() == [0, fd.STATUS_EMPTY, 0, fd.STATUS_NAN, 0, fd.STATUS_EMPTY]
    assert set(limited.tokens.flatten().tolist()) == {0, -1}

    masked = fd.truncate(x, fd.plan(fd.temperature(2.0), fd.top_k(2)), filter_value=-9.0)
    kept = torch.tensor(
        [[0.5, nan, 1, 0], [-9] * 4, [-9, inf, -9, inf], [nan, 0.5, inf, 1], [-9, 1.5, 1.5, -9], [-9, 0, -9, -9]]
    )
    assert torch.equal(masked.nan_to_num(nan=7.0), kept.nan_to_num(nan=7.0))


def test_a_chain_runs_from_left_to_right():
    """By hand: each rule on the renormalised survivors of those before it, at the temperature so far."""
    p = [0.4, 0.3, 0.2, 0.1]
    assert kept_tokens(p, fd.top_k(2), fd.top_p(0.5)) == {1}  # 0.4 of 0.7 is 0.57
    assert kept_tokens(p, fd.top_p(0.5), fd.top_k(2)) == {1, 2}
    assert kept_tokens(p, fd.min_p(0.6), fd.temperature(9.0)) == {1, 2}
    assert kept_tokens(p, fd.temperature(9.0), fd.min_p(0.6)) == {1, 2, 3, 4}
    assert kept_tokens([0.5, 0.25, 0.15, 0.07, 0.03], fd.typical(0.2), fd.min_p(0.9)) == {2}  # the maximum is gone
    assert kept_tokens([0.5, 0.25, 0.15, 0.07, 0.03], fd.typical(0.2), fd.temperature(0)) == {2}
