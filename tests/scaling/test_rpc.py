"""RPC: the fit of two Weibull densities, what it prunes, and the vote after it."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from fastdecode.scaling import selection as sel
from tests.support.tolerance import FITTED, SHARE

INF = math.inf
LN = math.log


def near(a, b) -> bool:
    return bool((np.abs(np.subtract(a, b)) <= SHARE).all())


def ln_likelihood(x, w, k1, l1, k2, l2):
    def density(k, l):  # noqa: E741
        return (k / l) * (x / l) ** (k - 1) * np.exp(-((x / l) ** k))

    return float(np.log(w * density(k1, l1) + (1 - w) * density(k2, l2)).sum())


def two_clouds():
    """Probabilities around 0.8 and around 0.3."""
    pytest.importorskip("scipy")
    generator = np.random.default_rng(0)
    return np.concatenate([0.8 + 0.02 * generator.standard_normal(30), 0.3 + 0.02 * generator.standard_normal(30)])


def test_the_fit_is_a_maximum_of_the_likelihood():
    x = two_clouds()
    found = sel.weibull_mixture(x)
    best = ln_likelihood(x, *found)
    assert best > ln_likelihood(x, 0.5, 1.0, 1.0, 1.5, 2.0) + 30  # far above where it started
    for i, factor in itertools.product(range(5), (0.97, 1.03)):
        moved = list(found)
        moved[i] *= factor
        if 0.2 <= moved[0] <= 0.8:
            assert ln_likelihood(x, *moved) <= best + FITTED
    w, k1, l1, k2, l2 = found
    assert {round(l1, 1), round(l2, 1)} == {0.3, 0.8} and 0.4 < w < 0.6 and min(k1, k2) > 5


def test_pruning_parts_the_clouds():
    x = two_clouds()
    assert sel.reasoning_pruning(np.log(x)).tolist() == [True] * 30 + [False] * 30
    assert sel.reasoning_pruning(np.log(x[::-1])).tolist() == [False] * 30 + [True] * 30


def test_pruning_keeps_what_is_above_the_mean(monkeypatch):
    """The truncated mean: even where the mixture says low. Here a made-up mixture calls everything low."""
    monkeypatch.setattr(sel, "weibull_mixture", lambda x: (0.2, 5.0, 100.0, 1.0, 0.5))
    assert sel.reasoning_pruning(np.log([0.1, 0.2, 0.9])).tolist() == [False, False, True]  # the mean is 0.4
    # and one that calls everything high, written the other way round
    monkeypatch.setattr(sel, "weibull_mixture", lambda x: (0.5, 9.0, 0.001, 2.0, 0.5))
    assert sel.reasoning_pruning(np.log([0.1, 0.2, 0.9])).tolist() == [True, True, True]


def test_rpc_is_pruning_and_then_consistency():
    x = two_clouds()
    answers = ["right"] * 20 + ["other"] * 10 + ["wrong"] * 30
    assert sel.majority_vote(answers).answer == "wrong"
    vote = sel.rpc(answers, np.log(x))
    assert vote.answer == "right" and near(vote.share, x[:20].sum() / x[:30].sum()) and "wrong" not in vote.shares
    paths = ["the same"] * 20 + [str(i) for i in range(40)]
    assert sel.rpc(answers, np.log(x), paths).answer == "other"


def test_nothing_to_fit():
    assert sel.reasoning_pruning([-1.0]).tolist() == [True]
    assert sel.reasoning_pruning([-1.0] * 4).tolist() == [True] * 4
    assert sel.reasoning_pruning([]).tolist() == []
    assert sel.rpc(["a"], [-INF]).answer == "a"


def test_what_cannot_be_fitted_is_refused():
    for bad in ([-1.0, math.nan], [-1.0, INF], [-1.0, 800.0], [[-1.0]]):
        with pytest.raises(ValueError, match="mean_logprobs must"):
            sel.reasoning_pruning(bad)
    for bad in ([0.5, math.nan], [0.5, INF], [0.5, -0.1], [], [[0.5]]):
        with pytest.raises(ValueError, match="x must hold finite numbers >= 0"):
            sel.weibull_mixture(np.array(bad))


def test_a_probability_of_zero_can_be_fitted():
    pytest.importorskip("scipy")
    kept = sel.reasoning_pruning([-INF, LN(0.5), LN(0.6), LN(0.55), -INF])
    assert kept[1:4].all()
