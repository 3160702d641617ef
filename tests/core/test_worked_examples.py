"""Here numbers worked out on paper, and counts on the real rows from independent code, judge the reference: small distributions,
long ones, ties, chains.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

import fastdecode as fd
from fastdecode import dispatch
from tests.support.cases import INPUTS, REAL
from tests.support.judge import kept_by
from tests.support.tolerance import FOUR_DIGITS, ONE_DIGIT_MEAN, WHOLE_MEAN
from tests.support.transcriptions import entropy, softmax


@pytest.fixture(autouse=True)
def _reference():
    with dispatch.use("reference"):
        yield


def kept_tokens(p, *rules: fd.Rule) -> set[int]:
    """Which tokens of a distribution are kept; the tokens count from 1, from the most probable."""
    return {int(i) + 1 for i in kept_by(torch.tensor([p]).log(), *rules)[0].nonzero()}


def untied(p: list[float]) -> list[float]:
    """The same to five digits, without ties: the table takes tied tokens one by one."""
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
def test_top_h_of_the_table(p, whole, entropies, paper, hf):
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
    """p_i ~ 1 / i over 128256 tokens; as counted by independent code."""
    zipf = [1 / i for i in range(1, 128257)]
    counts = [len(kept_tokens(zipf, fd.top_h(a, variant=v))) for a in (0.4, 0.8) for v in ("paper", "hf")]
    assert counts == [53, 10, 8231, 52]


@pytest.mark.parametrize("variant, means", [("paper", (4.4, 19.9, 75)), ("hf", (4.0, 8.5, 13))], ids=["paper", "hf"])
def test_top_h_keeps_so_many_of_the_real_rows(variant, means):
    for t, mean in zip((1.0, 1.5, 2.0), means):
        kept = kept_by(REAL.logits(), fd.temperature(t), fd.top_h(0.4, variant=variant)).sum(1).double().mean().item()
        assert abs(kept - mean) <= (WHOLE_MEAN if isinstance(mean, int) else ONE_DIGIT_MEAN)


@pytest.mark.parametrize("mass, kept", [(0.2, {2}), (0.4, {2, 1}), (0.9, {2, 1, 3}), (0.95, {2, 1, 3, 4})])
def test_typical(mass, kept):
    assert kept_tokens([0.5, 0.25, 0.15, 0.07, 0.03], fd.typical_p(mass)) == kept


def test_min_p_and_temperature():
    x = torch.tensor([[5.0, 4.0, 3.0, 1.0, 0.0, -2.0]])
    for t, kept in ((0.5, 2), (1.0, 3), (2.0, 4), (4.0, 6)):
        assert kept_by(x, fd.temperature(t), fd.min_p(0.1)).sum() == kept
        assert kept_by(x, fd.min_p(0.1**t)).sum() == kept
        assert kept_by(x, fd.min_p(0.1), fd.temperature(t)).sum() == 3


def test_a_need_that_is_met_exactly_on_paper_is_met():
    assert kept_tokens([0.5, 0.3, 0.2], fd.top_p(0.8)) == {1, 2}  # transformers: 3, by rounding
    assert kept_tokens([0.5, 0.25, 0.25], fd.min_p(0.5)) == {1, 2, 3}
    assert kept_tokens([0.5, 0.25, 0.125, 0.125], fd.epsilon_cutoff(0.125)) == {1, 2, 3, 4}


def test_top_n_sigma_does_not_depend_on_temperature_and_sees_through_holes():
    x = INPUTS["holes"].logits()
    kept = kept_by(x, fd.top_n_sigma(1.0))
    assert torch.equal(kept, kept_by(x, fd.temperature(3.0), fd.top_n_sigma(1.0)))
    assert 0 < kept.sum() < (x > -math.inf).sum()


def test_a_chain_runs_from_left_to_right():
    """By hand: each rule on the renormalised survivors of those before it, at the temperature so far."""
    p = [0.4, 0.3, 0.2, 0.1]
    assert kept_tokens(p, fd.top_k(2), fd.top_p(0.5)) == {1}  # 0.4 of 0.7 is 0.57
    assert kept_tokens(p, fd.top_p(0.5), fd.top_k(2)) == {1, 2}
    assert kept_tokens(p, fd.min_p(0.6), fd.temperature(9.0)) == {1, 2}
    assert kept_tokens(p, fd.temperature(9.0), fd.min_p(0.6)) == {1, 2, 3, 4}
    assert kept_tokens([0.5, 0.25, 0.15, 0.07, 0.03], fd.typical_p(0.2), fd.min_p(0.9)) == {2}  # the maximum is gone
    assert kept_tokens([0.5, 0.25, 0.15, 0.07, 0.03], fd.typical_p(0.2), fd.temperature(0)) == {2}
