"""From samples to answers, against cases computed by hand."""

from __future__ import annotations

import itertools
import math
import warnings
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from fastdecode.scaling import selection as sel
from tests.support.tolerance import SHARE

INF = math.inf
LN = math.log
COMMON = settings(derandomize=True, deadline=None, max_examples=200)


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


@pytest.mark.parametrize("bad", [[math.nan, 1, 2], [INF, 1, 2], [1, 2, None], [1, 2], [[1, 2, 3]], ["x", 1, 2]])
def test_best_of_majority_takes_no_reward_that_is_none(bad):
    with pytest.raises(ValueError, match="rewards must hold"):
        sel.best_of_majority(["a", "b", "c"], bad)


def test_what_is_said_names_the_number():
    with pytest.raises(ValueError, match=r"one number for each sample \(3\).*not NaN; got nan at 1\. Leave"):
        sel.best_of_majority(["a", "b", "c"], [1, math.nan, 2])
    with pytest.raises(ValueError, match=r"utilities must be below infinity and not NaN; got nan at \(0, 1\)"):
        sel.minimum_bayes_risk([[1, math.nan], [1, 1]])


def test_best_of_majority_counts_and_shares():
    for k in (0, -1, 2.5, True, math.nan):
        with pytest.raises(ValueError, match="k must be a whole number >= 1"):
            sel.best_of_majority(["a"], [1.0], k)
    for alpha in (-0.1, 1.1, math.nan, INF, None):
        with pytest.raises(ValueError, match=r"alpha must be a number in \[0, 1\]"):
            sel.best_of_majority(["a"], [1.0], alpha=alpha)


def test_the_worst_reward_and_the_largest():
    assert sel.best_of_majority(["a", "b", "b", "c"], [-INF, -9.0, -INF, -99.0], 3, 0.0) == ["c", "b", "a"]
    assert sel.best_of_majority(["a", "a", "b", "b"], [1e308, 1e308, 1.7e308, 1e308], alpha=0.0) == [
        "b"
    ]  # sums overflow


def test_rounding_decides_between_no_equal_means():
    assert math.fsum([0.7] * 3) / 3 < 0.7
    assert sel.best_of_majority(["b", "a", "a", "a"], [0.7] * 4, 2, 0.0) == ["a", "b"]  # equal means: the larger count


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


def test_pass_at_k_of_problems_with_counts_of_their_own():
    alone = [sel.pass_at_k(n, c, k) for n, c, k in ((10, 3, 5), (20, 3, 5), (5, 0, 2))]
    assert near(sel.pass_at_k([10, 20], 3, 5), sum(alone[:2]) / 2)
    assert near(sel.pass_at_k((10, 20, 5), np.array([3, 3, 0]), [5, 5, 2]), sum(alone) / 3)
    assert near(sel.pass_at_k(10, 3, [5, 5]), alone[0])
    assert near(sel.pass_at_k(np.int64(10), np.array(3), np.array([1, 5])), (0.3 + alone[0]) / 2)
    assert near(sel.pass_at_k([10], [3], [5]), alone[0])


@pytest.mark.parametrize(
    "bad",
    [
        *[(n, 1, 1) for n in (0, -1, 2.5, True, math.nan, INF, None, "4", [4, 2.5], [4, True], [4, 0], np.array([4.0]))],
        *[(4, c, 1) for c in (2.5, True, math.nan, [1, math.nan], [True, False], np.array([True]), [[1, 2]], {1: 2})],
        *[(4, 1, k) for k in (2.5, True, math.nan, INF, [1, 5], [1, 0], [1, 1.0], np.array([1.0, 2.0]))],
        *[([4, 2], [1, 3], 1), ([4, 2], 1, 3), ([4, 2], [1], 1), ([4, 2], [1, 1], [1, 1, 1]), ([], [], 1), (10**400, 1, 1)],
    ],
    ids=str,
)  # fmt: skip
def test_pass_at_k_takes_whole_numbers_only(bad):
    with pytest.raises(ValueError, match="must"):
        sel.pass_at_k(*bad)


def test_pass_at_k_names_the_problem():
    with pytest.raises(ValueError, match=r"k of problem 1 must be a whole number in \[1, 2\]; got 3"):
        sel.pass_at_k([4, 2], 1, 3)
    with pytest.raises(ValueError, match="got 2 in samples, 1 in correct"):
        sel.pass_at_k([4, 2], [1], 1)


@COMMON
@given(st.lists(st.tuples(st.integers(1, 40), st.integers(0, 40), st.integers(1, 40)), min_size=1, max_size=5))
def test_pass_at_k_is_the_mean_of_the_exact_chances(problems):
    columns = [(n, min(c, n), min(k, n)) for n, c, k in problems]
    exact = [1 - Fraction(math.comb(n - c, k), math.comb(n, k)) for n, c, k in columns]
    n, c, k = ([*column] for column in zip(*columns))
    assert near(sel.pass_at_k(n, c, k), float(sum(exact) / len(exact)))


# ---- particles -------------------------------------------------------------------------------------------------------


def test_particle_weights():
    assert near(sel.particle_log_weights([0.5, 0.8]), [0.0, LN(4)])
    assert np.isfinite(sel.particle_log_weights([0.0, 1.0])).all()
    assert sel.particle_log_weights([[0.5], [0.5]]).shape == (2, 1)
    for bad in ([0.5, math.nan], [INF], [-INF], [-0.1], [1.1], [None], ["x"], [[0.5], [0.5, 0.5]]):
        with pytest.raises(ValueError, match="rewards must"):
            sel.particle_log_weights(bad)


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
    for temperature in (0.0, -1.0, math.nan, -INF, None, True):
        with pytest.raises(ValueError, match=r"temperature must be a number in \(0, inf\]"):
            sel.resample([0.0], temperature=temperature)
    for n in (-1, 2.5, True, math.nan):
        with pytest.raises(ValueError, match="n must be a whole number >= 0"):
            sel.resample([0.0], n)
    for logs in ([0.0, math.nan], [0.0, INF], [[0.0]], [], ["x"]):
        with pytest.raises(ValueError, match="log_weights must hold"):
            sel.resample(logs)


@pytest.mark.parametrize("method", ["multinomial", "systematic"])
def test_an_infinite_temperature_draws_what_has_weight_alike(method):
    drawn = sel.resample([-5.0, -INF, 700.0, -INF], 4000, method=method, temperature=INF, seed=0)
    assert set(drawn.tolist()) == {0, 2} and abs((drawn == 0).mean() - 0.5) < 0.05


@COMMON
@given(
    st.lists(st.floats(allow_nan=False, allow_infinity=False) | st.just(-INF), min_size=1, max_size=9),
    st.floats(0, exclude_min=True),
    st.sampled_from(("multinomial", "systematic")),
    st.integers(0, 9),
)
def test_resampling_draws_particles_with_weight_whatever_the_numbers(logs, temperature, method, seed):
    assume(max(logs) > -INF)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        drawn = sel.resample(logs, 7, method=method, temperature=temperature, seed=seed)
    assert len(drawn) == 7 and all(logs[i] > -INF for i in drawn)


# ---- pools, and agreement across temperatures ------------------------------------------------------------------------


def test_a_hedged_pool():
    assert sel.hedged_pool() == [0.0, 0.8, 0.8, 0.8, 0.8]
    assert sel.hedged_pool(1) == [0.0]
    assert sel.hedged_pool(3, 0) == [0.0, 0.0, 0.0]
    for n in (0, -1, 2.5, True, math.nan, "3"):
        with pytest.raises(ValueError, match="n must be a whole number >= 1; got"):
            sel.hedged_pool(n)
    for temperature in (-1, math.nan, INF, None, True, "0.8"):
        with pytest.raises(ValueError, match=r"temperature must be a number in \[0, inf\); got"):
            sel.hedged_pool(3, temperature)


def test_minimum_bayes_risk():
    pool = [[1, 0.1, 0.1], [0.1, 1, 0.8], [0.1, 0.7, 1]]  # means 0.4, 0.633, 0.6
    assert sel.minimum_bayes_risk(pool) == 1
    assert sel.minimum_bayes_risk([[*row, cross] for row, cross in zip(pool, (0.2, 0.0, 0.9))]) == 2
    assert sel.minimum_bayes_risk([[0.3]]) == 0
    assert sel.minimum_bayes_risk([[0.5, 0.5], [0.5, 0.5]]) == 0
    assert sel.minimum_bayes_risk([[-INF, 1.0], [0.0, -9.0]]) == 1  # ruled out
    assert sel.minimum_bayes_risk([[-INF, 1.0], [0.0, -INF]]) == 0
    assert sel.minimum_bayes_risk([[1e308, 1e308], [1.7e308, 1e308]]) == 1  # sums overflow
    assert sel.minimum_bayes_risk([[1e-320, 0.0], [2e-320, 0.0]]) == 1
    for bad in (
        [[1.0], [1.0]],
        [],
        [1.0],
        [[math.nan, 1.0], [1.0, 1.0]],
        [[INF, 0.0], [0.0, 0.0]],
        [[None]],
        [[1, 1], [1]],
    ):
        with pytest.raises(ValueError, match="utilities"):
            sel.minimum_bayes_risk(bad)


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
    for bad in (math.nan, -0.1, 1.1, INF, None):
        with pytest.raises(ValueError, match=r"intra must be a number in \[0, 1\]"):
            sel.temperature_agreement([["7"]], intra=bad)
        with pytest.raises(ValueError, match=r"cross must be a number in \[0, 1\]"):
            sel.temperature_agreement([["7"]], cross=bad)
