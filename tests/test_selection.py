"""From samples to answers, against cases computed by hand."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from tolerance import FITTED, SHARE

from fastdecode import selection as sel

INF = math.inf
LN = math.log


def near(a, b) -> bool:
    return bool((np.abs(np.subtract(a, b)) <= SHARE).all())


# ---- votes -----------------------------------------------------------------------------------------------------------


def test_majority():
    vote = sel.majority_vote(["4", "5", "5", None, "4", "5"])
    assert vote.answer == "5" and vote.share == 0.5
    assert near(vote.shares["4"], 2 / 6) and set(vote.shares) == {"4", "5"}


@pytest.mark.parametrize(
    ("answers", "winner", "share"),
    [
        (["a", "b", "c"], "a", 1 / 3),  # all distinct: the first
        (["b", "a", "a", "b"], "b", 1 / 2),  # a tie: the first
        (["x"], "x", 1.0),
        ([None, None, "y"], "y", 1 / 3),  # None is no candidate, but a sample
        ([None], None, 0.0),
        ([], None, 0.0),
    ],
)
def test_majority_at_the_edges(answers, winner, share):
    vote = sel.majority_vote(answers)
    assert vote.answer == winner and near(vote.share, share)


def test_perplexity_weighs_a_sample_by_its_mean_probability():
    # weights 0.9, 0.3, 0.3, 0.2: one likely sample beats two unlikely ones, and copies add up
    vote = sel.perplexity_vote(["a", "b", "b", "c"], [LN(0.9), LN(0.3), LN(0.3), LN(0.2)])
    assert vote.answer == "a" and near(vote.share, 0.9 / 1.7) and near(vote.shares["b"], 0.6 / 1.7)


def test_probabilities_below_every_float_and_of_zero():
    far = -2000.0  # exp(-2000) is 0 in float64: only ratios can be told
    vote = sel.perplexity_vote(["a", "b", "b"], [far + LN(3), far, far])
    assert vote.answer == "a" and near(vote.share, 0.6)
    vote = sel.perplexity_vote(["a", "a", "b"], [-INF, -INF, far])
    assert vote.answer == "b" and vote.share == 1.0 and vote.shares["a"] == 0.0
    vote = sel.perplexity_vote(["a", "b", "b"], [-INF] * 3)  # nothing known: a majority vote
    assert vote.answer == "b" and near(vote.share, 2 / 3)


def test_consistency_counts_a_path_once():
    answers, logs = ["a", "a", "a", "b"], [LN(0.2), LN(0.2), LN(0.1), LN(0.4)]
    assert sel.perplexity_vote(answers, logs).answer == "a"
    vote = sel.perplexity_consistency(answers, logs, ["one", "one", "two", "three"])
    assert vote.answer == "b" and near(vote.share, 0.4 / 0.7) and near(vote.shares["a"], 0.3 / 0.7)
    assert near(sel.perplexity_consistency(answers, logs).shares["a"], 0.5 / 0.9)  # told nothing: all differ


def test_a_path_counts_with_the_probability_of_its_first_copy():
    vote = sel.perplexity_consistency(["a", "a", "b"], [LN(0.2), LN(0.7), LN(0.3)], ["one", "one", "two"])
    assert vote.answer == "b" and near(vote.share, 0.6)


@pytest.mark.parametrize("bad", [[0.0], [0.0, math.nan], [0.0, INF], [[0.0, 0.0]]])
def test_logprobs_that_are_none(bad):
    for vote in (sel.perplexity_vote, sel.perplexity_consistency, sel.rpc):
        with pytest.raises(ValueError, match=r"logprobs must hold one number for each sample \(2\)"):
            vote(["a", "b"], bad)
    with pytest.raises(ValueError, match="paths"):
        sel.perplexity_consistency(["a"], [0.0], ["one", "two"])


# ---- RPC -------------------------------------------------------------------------------------------------------------


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


def test_a_probability_of_zero_can_be_fitted():
    pytest.importorskip("scipy")
    kept = sel.reasoning_pruning([-INF, LN(0.5), LN(0.6), LN(0.55), -INF])
    assert kept[1:4].all()


# ---- Best-of-Majority ------------------------------------------------------------------------------------------------


def test_best_of_majority():
    answers = ["a"] * 5 + ["b"] * 4 + ["c"] + [None] * 2
    rewards = [0.5, 0.5, 0.5, 0.5, 0.0] + [0.6, 0.6, 0.3, 0.3] + [0.99] + [5.0] * 2
    assert sel.best_of_majority(answers, rewards, alpha=0.0) == ["c"]  # best of N
    assert sel.best_of_majority(answers, rewards, alpha=0.1) == ["b"]  # mean 0.45 against 0.4
    assert sel.best_of_majority(answers, rewards, 2, alpha=4 / 12) == ["b", "a"]  # a share equal to alpha is enough
    assert sel.best_of_majority(answers, rewards, 9, alpha=0.4) == ["a"]
    assert sel.best_of_majority(answers, rewards, 9, alpha=0.9) == ["c", "b", "a"]  # nobody is that frequent: all
    assert sel.best_of_majority([None], [1.0]) == []


def test_best_of_majority_ties():
    assert sel.best_of_majority(["a", "b", "b"], [0.5] * 3, 2, 0.0) == ["b", "a"]
    assert sel.best_of_majority(["a", "b"], [0.5] * 2, 2, 0.0) == ["a", "b"]


# ---- pass@k ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("n", "c", "k"), [(n, c, k) for n in (1, 2, 5, 9) for c in range(n + 1) for k in range(1, n + 1)]
)
def test_pass_at_k_counts_the_subsets(n, c, k):
    subsets = list(itertools.combinations(range(n), k))
    share = sum(any(i < c for i in subset) for subset in subsets) / len(subsets)
    assert near(sel.pass_at_k(n, c, k), share)


def test_pass_at_k_of_many_problems_and_large_counts():
    assert near(sel.pass_at_k(4, [0, 1, 4], 2), (0 + 0.5 + 1) / 3)
    assert near(sel.pass_at_k(10_000, 1, 100), 0.01)  # C(10000, 100) is no float
    for bad in ((4, 5, 1), (4, -1, 1), (4, 1, 5), (4, 1, 0), (4, [], 1)):
        with pytest.raises(ValueError, match="must"):
            sel.pass_at_k(*bad)


# ---- particles -------------------------------------------------------------------------------------------------------


def test_particle_weights():
    assert near(sel.particle_log_weights([0.5, 0.8]), [0.0, LN(4)])
    assert np.isfinite(sel.particle_log_weights([0.0, 1.0])).all()


@pytest.mark.parametrize("method", ["multinomial", "systematic"])
def test_resampling_is_unbiased_and_draws_nothing_of_weight_zero(method):
    logs = [-3000 + LN(0.5), -INF, -3000 + LN(0.2), -3000 + LN(0.3), -INF]
    generator = np.random.default_rng(1)
    drawn = np.concatenate([sel.resample(logs, 4, method=method, seed=generator) for _ in range(2000)])
    share = np.bincount(drawn, minlength=5) / len(drawn)
    assert share[1] == share[4] == 0
    # five standard deviations of independent draws; systematic ones vary less
    assert (np.abs(share - [0.5, 0, 0.2, 0.3, 0]) < 5 * math.sqrt(0.25 / len(drawn))).all()


def test_systematic_counts_differ_by_less_than_one():
    theta = np.array([0.43, 0.07, 0.2, 0.3])
    for seed in range(50):
        counts = np.bincount(sel.resample(np.log(theta), 10, method="systematic", seed=seed), minlength=4)
        assert (counts >= np.floor(10 * theta)).all() and (counts <= np.ceil(10 * theta)).all()


def test_the_temperature_of_resampling():
    logs = [0.0, LN(3)]
    sharp = sel.resample(logs, 4000, temperature=0.25, seed=0).mean()  # 81 to 1
    flat = sel.resample(logs, 4000, temperature=1e6, seed=0).mean()
    assert sharp > 0.97 and abs(flat - 0.5) < 0.05


@pytest.mark.parametrize("method", ["multinomial", "systematic"])
def test_a_uniform_number_of_zero_is_no_reason_to_draw_weight_zero(method, monkeypatch):
    zero = type("Zero", (), {"random": lambda self, n=None: 0.0 if n is None else np.zeros(n)})()
    monkeypatch.setattr(np.random, "default_rng", lambda seed: zero)
    assert sel.resample([-INF, 0.0], 1, method=method).tolist() == [1]


def test_resampling_at_the_edges():
    assert sel.resample([-5.0], 3).tolist() == [0, 0, 0]
    assert sel.resample([-1.0, -2.0], 0).tolist() == []
    assert len(sel.resample([-1.0, -2.0, -3.0])) == 3
    assert sel.resample([0.0, 0.0], 9, seed=3).tolist() == sel.resample([0.0, 0.0], 9, seed=3).tolist()
    with pytest.raises(ValueError, match="above -inf"):
        sel.resample([-INF, -INF])
    with pytest.raises(ValueError, match="method"):
        sel.resample([0.0], method="stratified")
    with pytest.raises(ValueError, match="temperature"):
        sel.resample([0.0], temperature=0.0)


# ---- pools, and agreement across temperatures ------------------------------------------------------------------------


def test_a_hedged_pool():
    assert sel.hedged_pool() == [0.0, 0.8, 0.8, 0.8, 0.8]
    assert sel.hedged_pool(1) == [0.0]
    with pytest.raises(ValueError, match="at least one"):
        sel.hedged_pool(0)


def test_minimum_bayes_risk():
    pool = [[1, 0.1, 0.1], [0.1, 1, 0.8], [0.1, 0.7, 1]]  # means 0.4, 0.633, 0.6
    assert sel.minimum_bayes_risk(pool) == 1
    assert sel.minimum_bayes_risk([[*row, cross] for row, cross in zip(pool, (0.2, 0.0, 0.9))]) == 2
    assert sel.minimum_bayes_risk([[0.3]]) == 0
    assert sel.minimum_bayes_risk([[0.5, 0.5], [0.5, 0.5]]) == 0
    with pytest.raises(ValueError, match="utilities"):
        sel.minimum_bayes_risk([[1.0], [1.0]])


def test_agreement():
    found = sel.temperature_agreement([["7", "7", "7", "7", "8"], ["7"] * 5])
    assert found.easy and found.answer == "7" and found.shares == (0.8, 1.0) and found.cross == 1.0  # 0.8 is enough
    found = sel.temperature_agreement([["7", "7", "7", None, "8"], ["7"] * 5])
    assert not found.easy and found.shares == (0.6, 1.0)
    found = sel.temperature_agreement([["7"] * 3, ["8"] * 3, ["7"] * 3])  # each is sure, and they disagree
    assert not found.easy and found.answer == "7" and near(found.cross, 2 / 3)
    assert sel.temperature_agreement([["7"] * 3, ["8"] * 3, ["7"] * 3], cross=0.6).easy
    assert not sel.temperature_agreement([[None], [None]]).easy  # agreed on nothing
    with pytest.raises(ValueError, match="at least one"):
        sel.temperature_agreement([["7"], []])
