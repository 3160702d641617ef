"""From samples to answers: voting, pruning and resampling after the model has written. numpy alone, and scipy for RPC's fit.

An *answer* is what was extracted from a text, anything hashable; equal answers are one. None says that a text gave no answer:
it never wins, but it counts among the samples. Shares are of all samples (or of all their weight), so they sum to 1 only if
every sample has an answer. Wherever two answers tie, the one that came first wins.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from .answers import last_answer as last_answer

Answer = Hashable
Floats = Sequence[float] | np.ndarray
TINY = 1e-12  # a Weibull density may be infinite at 0: smaller probabilities are fitted as if they were this


@dataclass(frozen=True)
class Vote:
    """What was voted: the winner (None: there was no answer at all), its share, and the share of every answer."""

    answer: Answer | None
    share: float
    shares: dict[Answer, float] = field(default_factory=dict)


def majority_vote(answers: Sequence[Answer | None]) -> Vote:
    """Self-consistency (arXiv 2203.11171): argmax_y count(y) / N.

    Args:
        answers: one for each of the N samples.
    """
    return _vote(answers, np.zeros(len(answers)))


def perplexity_vote(answers: Sequence[Answer | None], mean_logprobs: Floats) -> Vote:
    """The length-normalised weighted sum of arXiv 2203.11171: argmax_y sum_{i: a_i = y} w_i / sum_i w_i, with
    w_i = exp(1/L_i sum_t ln p(token_t)), which is one over the perplexity of sample i. Copies count each time.

    Args:
        answers: one for each sample.
        mean_logprobs: the mean log-probability of its tokens; -inf is a weight of 0. If all weigh nothing, all weigh the same.
    """
    return _vote(answers, _logs("mean_logprobs", mean_logprobs, len(answers)))


def perplexity_consistency(
    answers: Sequence[Answer | None], logprobs: Floats, paths: Sequence[Hashable] | None = None
) -> Vote:
    """PC of RPC (arXiv 2510.15444): p(y) = sum over the *set* R of sampled paths of 1[g(t) = y] p(t | x), divided by the same
    sum over all answers.

    Args:
        answers: one for each sample.
        logprobs: ln p(t | x). The paper's formula takes the whole sequence's; the authors' code takes the mean over the tokens.
        paths: what tells the samples apart (texts, or tuples of tokens): a path with the same answer counts once, with the
            probability of its first copy. None: all differ.
    """
    given = _logs("logprobs", logprobs, len(answers))
    if paths is None:
        return _vote(answers, given)
    _same_length("paths", paths, len(answers))
    first = {(answer, path): i for i, (answer, path) in reversed([*enumerate(zip(answers, paths))])}
    kept = sorted(first.values())
    return _vote([answers[i] for i in kept], given[kept])


def reasoning_pruning(mean_logprobs: Floats) -> np.ndarray:
    """RP of RPC (arXiv 2510.15444): which paths to keep, as a bool array.

    Two Weibull densities f(x; k, l) = (k / l) (x / l)^(k-1) exp(-(x / l)^k) are fitted to the x_i = exp(mean_logprobs_i) of one
    problem by maximum likelihood: start (w, k1, l1, k2, l2) = (0.5, 1, 1, 1.5, 2), w in [0.2, 0.8], the others >= 0.01, as in the
    authors' code. The component with the larger mean l Gamma(1 + 1/k) is the high one. A path stays if
    w_high f_high(x) >= w_low f_low(x), that is P_high >= 0.5, or if x is at least the mean of all x. With fewer than two
    different x there is nothing to fit, and all stay.

    Raises:
        ImportError: scipy is not installed.
    """
    x = np.exp(_logs("mean_logprobs", mean_logprobs, len(mean_logprobs)))
    if len(np.unique(x)) < 2:
        return np.ones(len(x), dtype=bool)
    w, k1, l1, k2, l2 = weibull_mixture(x)
    one, two = math.log(w) + _ln_weibull(x, k1, l1), math.log1p(-w) + _ln_weibull(x, k2, l2)
    first_is_high = l1 * math.gamma(1 + 1 / k1) >= l2 * math.gamma(1 + 1 / k2)
    high, low = (one, two) if first_is_high else (two, one)
    return (high >= low) | (x >= x.mean())


def rpc(answers: Sequence[Answer | None], mean_logprobs: Floats, paths: Sequence[Hashable] | None = None) -> Vote:
    """RPC (arXiv 2510.15444): `reasoning_pruning`, then `perplexity_consistency` of what it keeps.

    Args:
        answers, paths: see `perplexity_consistency`.
        mean_logprobs: the mean log-probability of each sample's tokens, as in the authors' code. The pruning works on it: whole
            sequences have probabilities too small for the fit's bounds.

    Raises:
        ImportError: scipy is not installed.
    """
    logs = _logs("mean_logprobs", mean_logprobs, len(answers))
    kept = np.flatnonzero(reasoning_pruning(logs)).tolist()
    paths = None if paths is None else [paths[i] for i in kept]
    return perplexity_consistency([answers[i] for i in kept], logs[kept], paths)


def weibull_mixture(x: np.ndarray) -> tuple[float, float, float, float, float]:
    """(w, k1, l1, k2, l2) of greatest likelihood for w f(x; k1, l1) + (1 - w) f(x; k2, l2); see `reasoning_pruning`.

    Raises:
        ImportError: scipy is not installed.
    """
    try:
        from scipy.optimize import minimize
    except ImportError as error:
        raise ImportError("RPC fits with scipy, which is not installed: pip install scipy.") from error

    def surprise(parameters: np.ndarray) -> float:
        w, k1, l1, k2, l2 = parameters
        each = np.logaddexp(math.log(w) + _ln_weibull(x, k1, l1), math.log1p(-w) + _ln_weibull(x, k2, l2))
        return -float(each.sum())

    positive = (0.01, None)
    found = minimize(surprise, (0.5, 1.0, 1.0, 1.5, 2.0), bounds=[(0.2, 0.8), *[positive] * 4], method="L-BFGS-B")
    return tuple(map(float, found.x))  # type: ignore[return-value]


def _ln_weibull(x: np.ndarray, k: float, scale: float) -> np.ndarray:
    ratio = np.log(np.maximum(x, TINY)) - math.log(scale)
    with np.errstate(over="ignore"):  # far in the tail the density is 0
        return math.log(k / scale) + (k - 1) * ratio - np.exp(k * ratio)


def best_of_majority(
    answers: Sequence[Answer | None], rewards: Floats, k: int = 1, alpha: float = 0.015
) -> list[Answer]:
    """Best-of-Majority (arXiv 2510.03199): of Y = {y : count(y) / N >= alpha}, the k answers of highest reward, best first.

    The reward of an answer is the mean over its samples. If Y is empty, it is all answers, which the paper leaves open; alpha = 0
    is best-of-N. Ties: the larger count, then the first.

    Args:
        answers: one for each of the N samples.
        rewards: of each sample.
        k: how many; fewer come back if Y holds fewer.
        alpha: the smallest share of an answer. The paper's experiments: 0.003 to 0.015.
    """
    given = np.asarray(rewards, dtype=np.float64)
    _same_length("rewards", rewards, len(answers))
    if k < 1:
        raise ValueError(f"k must be a whole number >= 1; got {k!r}.")
    members: dict[Answer, list[float]] = {}
    for answer, reward in zip(answers, given):
        if answer is not None:
            members.setdefault(answer, []).append(float(reward))
    frequent = {y: each for y, each in members.items() if len(each) / len(answers) >= alpha} or members
    ordered = sorted(
        frequent, key=lambda y: (math.fsum(frequent[y]) / len(frequent[y]), len(frequent[y])), reverse=True
    )
    return ordered[:k]


def pass_at_k(samples: int, correct: int | Sequence[int] | np.ndarray, k: int) -> float:
    """The unbiased chance that one of k samples is correct (arXiv 2107.03374, and 2407.21787, "Large Language Monkeys"):
    the mean over problems of 1 - C(n - c, k) / C(n, k), computed as 1 - prod_{i = n-c+1}^{n} (1 - k / i).

    Args:
        samples: n, drawn for each problem.
        correct: c of one problem, or of each.
        k: at most n.
    """
    if not 1 <= k <= samples:
        raise ValueError(f"k must lie in [1, {samples}], the number of samples; got {k!r}.")
    counts = np.atleast_1d(np.asarray(correct))
    if counts.size == 0 or (counts < 0).any() or (counts > samples).any():
        raise ValueError(f"correct must hold counts in [0, {samples}], at least one; got {correct!r}.")

    def of(c: int) -> float:
        if samples - c < k:
            return 1.0
        return 1.0 - float(np.prod(1.0 - k / np.arange(samples - c + 1, samples + 1)))

    return float(np.mean([of(int(c)) for c in counts]))


def particle_log_weights(rewards: Floats) -> np.ndarray:
    """ln(r / (1 - r)) of process rewards r in [0, 1] (arXiv 2502.01618), r kept 1e-7 away from both ends."""
    r = np.clip(np.asarray(rewards, dtype=np.float64), 1e-7, 1 - 1e-7)
    return np.log(r) - np.log1p(-r)


def resample(
    log_weights: Floats,
    n: int | None = None,
    *,
    method: str = "multinomial",
    temperature: float = 1.0,
    seed: int | np.random.Generator | None = None,
) -> np.ndarray:
    """Which particles live on (arXiv 2502.01618): n indices drawn with theta = softmax(log_weights / temperature).

    "multinomial", the paper's: n independent draws. "systematic": the particles at the points (u + i) / n, i = 0 .. n-1, of the
    cumulated theta, with one u in [0, 1); particle j then comes floor(n theta_j) or ceil(n theta_j) times.

    Args:
        log_weights: one for each particle; -inf is never drawn.
        n: default: as many as there are.
        method: "multinomial" or "systematic".
        temperature: > 0.
        seed: a number, or a numpy generator to go on with.
    """
    logs = _logs("log_weights", log_weights, len(log_weights))
    if method not in ("multinomial", "systematic"):
        raise ValueError(f"method must be 'multinomial' or 'systematic'; got {method!r}.")
    if not temperature > 0:
        raise ValueError(f"temperature must be above 0; got {temperature!r}.")
    if len(logs) == 0 or logs.max() == -math.inf:
        raise ValueError("log_weights must hold one that is above -inf; there is no particle to draw.")
    count = len(logs) if n is None else n
    generator = np.random.default_rng(seed)
    points = (
        generator.random(count) if method == "multinomial" else (generator.random() + np.arange(count)) / max(count, 1)
    )
    cumulated = np.cumsum(np.exp((logs - logs.max()) / temperature))
    # A point lies below 1, so `right` never goes to a particle without weight; rounding may push it to the very end.
    found = np.searchsorted(cumulated, points * cumulated[-1], side="right")
    return np.minimum(found, np.flatnonzero(logs > -math.inf)[-1])


def hedged_pool(n: int = 5, temperature: float = 0.8) -> list[float]:
    """The temperatures of a hedged pool (arXiv 2506.20544): one greedy sample and n - 1 at one moderate temperature, 0.7 to 0.9.

    Use a plan with `fastdecode.min_p`, the paper's hedging of single tokens; at temperature 0 it changes nothing.
    """
    if n < 1:
        raise ValueError(f"a pool needs at least one sample; got n={n!r}.")
    return [0.0] + [temperature] * (n - 1)


def minimum_bayes_risk(utilities: Sequence[Sequence[float]] | np.ndarray) -> int:
    """X-MBR over a pool (arXiv 2506.20544): argmax_y mean_e u(y, e); the index of y. Ties: the first.

    Args:
        utilities: [N, N + M]: u of each of the N candidates against all evidence, which is the pool itself and M cross-lingual
            samples that cannot be chosen; plain MBR with M = 0.
    """
    u = np.asarray(utilities, dtype=np.float64)
    if u.ndim != 2 or u.shape[0] == 0 or u.shape[1] < u.shape[0]:
        raise ValueError(f"utilities must be [N, N + M] with N >= 1; got shape {list(u.shape)}.")
    return int(u.mean(axis=1).argmax())


@dataclass(frozen=True)
class Agreement:
    """What `temperature_agreement` found; `answer` is the one most temperatures have on top."""

    easy: bool  # all is agreed: no more samples are needed
    answer: Answer | None
    shares: tuple[float, ...]  # the majority share at each temperature
    cross: float  # the share of temperatures whose top answer is `answer`


def temperature_agreement(
    answers: Sequence[Sequence[Answer | None]], intra: float = 0.8, cross: float = 1.0
) -> Agreement:
    """The early exit of multi-temperature voting (arXiv 2510.02611).

    At each temperature T the majority has share c_T = max_y count_T(y) / n_T. The problem is easy if c_T >= intra at every
    temperature, and the share of temperatures that have the same answer on top is >= cross.

    Args:
        answers: for each temperature, those of its samples.
    """
    if not answers or not all(len(each) for each in answers):
        raise ValueError("answers must hold at least one temperature, and at least one sample of each.")
    votes = [majority_vote(each) for each in answers]
    across = majority_vote([vote.answer for vote in votes])
    confident = all(vote.share >= intra for vote in votes)
    shares = tuple(vote.share for vote in votes)
    return Agreement(confident and across.share >= cross, across.answer, shares, across.share)


def _vote(answers: Sequence[Answer | None], logs: np.ndarray) -> Vote:
    """argmax of the summed exp(logs) of each answer, as shares of the whole sum."""
    if len(answers) == 0:
        return Vote(None, 0.0)
    largest = logs.max()
    weights = np.ones(len(logs)) if largest == -math.inf else np.exp(logs - largest)
    sums: dict[Answer, list[float]] = {}
    for answer, weight in zip(answers, weights):
        if answer is not None:
            sums.setdefault(answer, []).append(float(weight))
    total = math.fsum(weights)  # exact: the order of the samples does not decide a tie
    shares = {answer: math.fsum(each) / total for answer, each in sums.items()}
    best = max(shares, key=lambda answer: shares[answer], default=None)
    return Vote(best, 0.0 if best is None else shares[best], shares)


def _logs(name: str, values: Floats, n: int) -> np.ndarray:
    logs = np.asarray(values, dtype=np.float64)
    if logs.shape != (n,) or np.isnan(logs).any() or (logs == math.inf).any():
        raise ValueError(
            f"{name} must hold one number for each sample ({n}), none of them NaN or +inf; got {values!r}."
        )
    return logs


def _same_length(name: str, values: Sequence[Any] | np.ndarray, n: int) -> None:
    if len(values) != n:
        raise ValueError(f"{name} must hold one value for each sample ({n}); got {len(values)}.")
