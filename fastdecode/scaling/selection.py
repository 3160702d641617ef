"""From samples to answers: voting, pruning and resampling after the model has written. numpy alone, and scipy for RPC's fit.

An *answer* is what was extracted from a text, anything hashable; equal answers are one. None says that a text gave no answer:
it never wins, but it counts among the samples. Shares are of all samples (or of all their weight), so they sum to 1 only if
every sample has an answer. Wherever two answers tie, the one that came first wins.

A number for a sample may be -inf, the worst, but neither NaN nor +inf. Counts are whole numbers. Anything else raises a ValueError.
"""

from __future__ import annotations

import math
import numbers
import reprlib
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

import numpy as np

from .answers import last_answer as last_answer
from .weibull import ln_weibull, weibull_mixture

Answer = Hashable
Floats = Sequence[float] | np.ndarray
Counts = int | Sequence[int] | np.ndarray


@dataclass(frozen=True)
class Vote:
    """The result of a vote: the winner (None if no sample has an answer), its share, and the share of every answer."""

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
        mean_logprobs: the mean log-probability of its tokens, in nats; -inf is a weight of 0. If all weights are 0, all
            samples count alike.
    """
    return _vote(answers, _logs("mean_logprobs", mean_logprobs, len(answers)))


def perplexity_consistency(
    answers: Sequence[Answer | None], logprobs: Floats, paths: Sequence[Hashable] | None = None
) -> Vote:
    """PC of RPC (arXiv 2510.15444): p(y) = sum over the *set* R of sampled paths of 1[g(t) = y] p(t | x), divided by the same
    sum over all answers.

    Args:
        answers: one for each sample.
        logprobs: ln p(t | x), -inf for a probability of 0. The paper's formula takes the whole sequence's; the authors' code takes the mean over the tokens.
        paths: identify the samples (texts, or tuples of tokens): a path with the same answer counts once, with the
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
    different x no fit is possible, and all stay.

    Raises:
        ImportError: scipy is not installed.
        ValueError: a number is NaN or +inf, or its exponential is not finite.
    """
    logs = _logs("mean_logprobs", mean_logprobs, len(mean_logprobs))
    with np.errstate(over="ignore"):
        x = np.exp(logs)
    if np.isinf(x).any():
        raise ValueError(f"mean_logprobs must be logarithms of probabilities, at most 0; got {logs.max():g}.")
    if len(np.unique(x)) < 2:
        return np.ones(len(x), dtype=bool)
    w, k1, l1, k2, l2 = weibull_mixture(x)
    one, two = math.log(w) + ln_weibull(x, k1, l1), math.log1p(-w) + ln_weibull(x, k2, l2)
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


def best_of_majority(
    answers: Sequence[Answer | None], rewards: Floats, k: int = 1, alpha: float = 0.015
) -> list[Answer]:
    """Best-of-Majority (arXiv 2510.03199): of Y = {y : count(y) / N >= alpha}, the k answers of highest reward, best first.

    The reward of an answer is the mean over its samples. If Y is empty, it is all answers, which the paper leaves open; alpha = 0
    is best-of-N. Ties: the larger count, then the first.

    Args:
        answers: one for each of the N samples.
        rewards: of each sample; an answer with a reward of -inf among its samples comes last.
        k: number of answers to return, >= 1; fewer if Y holds fewer.
        alpha: the smallest share of an answer, in [0, 1]. The paper's experiments: 0.003 to 0.015.
    """
    given = _logs("rewards", rewards, len(answers))
    _whole("k", k, 1)
    _inside("alpha", alpha, 0.0, 1.0)
    members: dict[Answer, list[float]] = {}
    for answer, reward in zip(answers, given):
        if answer is not None:
            members.setdefault(answer, []).append(float(reward))
    frequent = {y: each for y, each in members.items() if len(each) / len(answers) >= alpha} or members
    ordered = sorted(frequent, key=lambda y: (_mean(frequent[y]), len(frequent[y])), reverse=True)
    return ordered[:k]


def _mean(rewards: list[float]) -> Fraction | float:
    """Exact, so that rounding does not break ties and no sum overflows."""
    return -math.inf if -math.inf in rewards else sum(map(Fraction, rewards), Fraction()) / len(rewards)


def pass_at_k(samples: Counts, correct: Counts, k: Counts) -> float:
    """The unbiased chance that one of k samples is correct (arXiv 2107.03374, and 2407.21787, "Large Language Monkeys"):
    the mean over problems of 1 - C(n - c, k) / C(n, k), computed as 1 - prod_{i = n-c+1}^{n} (1 - k / i), or with k and c
    exchanged, which is the same and shorter if k < c.

    Each argument is a whole number for all problems, or a sequence with one for each problem; if all three are numbers there is
    one problem.

    Args:
        samples: n >= 1, drawn for a problem.
        correct: c in [0, n], those of them that are correct.
        k: in [1, n].

    Returns:
        The mean chance, in [0, 1].
    """
    counts = {"samples": _counts("samples", samples), "correct": _counts("correct", correct), "k": _counts("k", k)}
    sizes = {name: len(each) for name, each in counts.items() if isinstance(each, list)}
    if len(set(sizes.values())) > 1 or 0 in sizes.values():
        got = ", ".join(f"{size} in {name}" for name, size in sizes.items())
        raise ValueError(f"sequences must hold one count for each problem, at least one and all as many; got {got}.")
    problems = max(sizes.values(), default=1)
    columns = [each if isinstance(each, list) else [each] * problems for each in counts.values()]
    chances = []
    for place, (n, c, of) in enumerate(zip(*columns)):
        where = f" of problem {place}" if problems > 1 else ""
        _whole("samples" + where, n, 1, 2**53)
        _whole("correct" + where, c, 0, n)
        _whole("k" + where, of, 1, n)
        few, many = sorted((of, c))
        none = 0.0 if n - c < of else float(np.prod(1.0 - many / np.arange(n - few + 1, n + 1, dtype=np.float64)))
        chances.append(1.0 - none)
    return math.fsum(chances) / problems


def particle_log_weights(rewards: Floats) -> np.ndarray:
    """ln(r / (1 - r)) of process rewards r in [0, 1] (arXiv 2502.01618), r kept 1e-7 away from both ends; of the same shape."""
    r = _floats("rewards", rewards)
    if not ((r >= 0) & (r <= 1)).all():
        raise ValueError(
            f"rewards must lie in [0, 1]; got {r[~((r >= 0) & (r <= 1))].flat[0]:g}. A sigmoid makes such of logits."
        )
    r = np.clip(r, 1e-7, 1 - 1e-7)
    return np.log(r) - np.log1p(-r)


def resample(
    log_weights: Floats,
    n: int | None = None,
    *,
    method: str = "multinomial",
    temperature: float = 1.0,
    seed: int | np.random.Generator | None = None,
) -> np.ndarray:
    """The particles that survive (arXiv 2502.01618): n indices drawn with theta = softmax(log_weights / temperature).

    "multinomial", the paper's: n independent draws. "systematic": the particles at the points (u + i) / n, i = 0 .. n-1, of the
    cumulated theta, with one u in [0, 1); particle j then comes floor(n theta_j) or ceil(n theta_j) times.

    Args:
        log_weights: one for each particle, in nats; -inf is a weight of 0 and never drawn. At least one is above -inf.
        n: number of draws, >= 0. Default: the number of particles.
        method: "multinomial" or "systematic".
        temperature: > 0; infinity draws all particles above -inf alike.
        seed: a number, or a numpy generator.

    Returns:
        int64 [n], indices of particles.
    """
    logs = _logs("log_weights", log_weights, len(log_weights))
    if method not in ("multinomial", "systematic"):
        raise ValueError(f"method must be 'multinomial' or 'systematic'; got {method!r}.")
    _inside("temperature", temperature, 0.0, math.inf, "(]")
    if len(logs) == 0 or logs.max() == -math.inf:
        raise ValueError("log_weights must hold one that is above -inf; there is no particle to draw.")
    count = len(logs) if n is None else _whole("n", n, 0)
    generator = np.random.default_rng(seed)
    points = (
        generator.random(count) if method == "multinomial" else (generator.random() + np.arange(count)) / max(count, 1)
    )
    with np.errstate(over="ignore"):  # the weight of a log far below the largest is 0
        scaled = np.divide(logs - logs.max(), temperature, out=np.full(len(logs), -math.inf), where=logs > -math.inf)
    weights = np.exp(scaled)
    cumulated = np.cumsum(weights)
    # A point lies below 1, so side="right" finds a particle with weight, except where rounding moves the point to the end.
    places = np.searchsorted(cumulated, points * cumulated[-1], side="right")
    return np.minimum(places, np.flatnonzero(weights)[-1])


def hedged_pool(n: int = 5, temperature: float = 0.8) -> list[float]:
    """The temperatures of a hedged pool (arXiv 2506.20544): one greedy sample and n - 1 at one moderate temperature, 0.7 to 0.9.

    Use a plan with `fastdecode.min_p`, the paper's hedging of single tokens; at temperature 0 it changes nothing.

    Args:
        n: samples, >= 1.
        temperature: of all but the first; finite, >= 0.
    """
    others = _inside("temperature", temperature, 0.0, math.inf, "[)")
    return [0.0] + [others] * (_whole("n", n, 1) - 1)


def minimum_bayes_risk(utilities: Sequence[Sequence[float]] | np.ndarray) -> int:
    """X-MBR over a pool (arXiv 2506.20544): argmax_y mean_e u(y, e); the index of y. Ties: the first.

    Args:
        utilities: [N, N + M]: u of each of the N candidates against all evidence, which is the pool itself and M cross-lingual
            samples that cannot be chosen; plain MBR with M = 0. -inf rules a candidate out, unless all are.
    """
    u = _floats("utilities", utilities)
    if u.ndim != 2 or u.shape[0] == 0 or u.shape[1] < u.shape[0]:
        raise ValueError(f"utilities must be [N, N + M] with N >= 1; got shape {list(u.shape)}.")
    _no_nan("utilities", u)
    small = np.ldexp(u, -u.shape[1].bit_length())  # exact, and no sum overflows
    return int(np.argmax([math.fsum(row) for row in small]))


@dataclass(frozen=True)
class Agreement:
    """The result of `temperature_agreement`; `answer` is the top answer of most temperatures."""

    easy: bool  # the samples agree: no more are needed
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
        intra, cross: shares in [0, 1].
    """
    _inside("intra", intra, 0.0, 1.0)
    _inside("cross", cross, 0.0, 1.0)
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
    with np.errstate(over="ignore"):  # the weight of a log far below the largest is 0
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
    logs = _floats(name, values)
    if logs.shape != (n,):
        raise ValueError(f"{name} must hold one number for each sample ({n}); got shape {list(logs.shape)}.")
    _no_nan(f"{name} must hold one number for each sample ({n}), and they", logs)
    return logs


def _floats(name: str, values: Any) -> np.ndarray:
    try:
        return np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError):
        raise ValueError(f"{name} must hold numbers, and rows of one length; got {reprlib.repr(values)}.") from None


def _no_nan(what: str, values: np.ndarray) -> None:
    wrong = np.argwhere(np.isnan(values) | (values == math.inf))
    if len(wrong):
        place = tuple(wrong[0].tolist())
        index = place[0] if len(place) == 1 else place
        raise ValueError(
            f"{what} must be below infinity and not NaN; got {values[place]} at {index}. Leave that sample out."
        )


def _whole(name: str, value: Any, low: int, high: int | None = None) -> int:
    whole = isinstance(value, numbers.Integral) and not isinstance(value, bool)
    if not whole or value < low or (high is not None and value > high):
        interval = f">= {low}" if high is None else f"in [{low}, {high}]"
        raise ValueError(f"{name} must be a whole number {interval}; got {value!r}.")
    return int(value)


def _counts(name: str, values: Any) -> Any:
    """A number as it is, or a list, whose members are not checked."""
    listed = values.tolist() if hasattr(values, "tolist") else values
    if isinstance(listed, (str, bytes)) or not isinstance(listed, Sequence):
        return listed
    return list(listed)


def _inside(name: str, value: Any, low: float, high: float, ends: str = "[]") -> float:
    real = isinstance(value, numbers.Real) and not isinstance(value, bool)
    above = real and (value >= low if ends[0] == "[" else value > low)
    if not above or not (value <= high if ends[1] == "]" else value < high):
        raise ValueError(f"{name} must be a number in {ends[0]}{low:g}, {high:g}{ends[1]}; got {value!r}.")
    return float(value)


def _same_length(name: str, values: Sequence[Any] | np.ndarray, n: int) -> None:
    if len(values) != n:
        raise ValueError(f"{name} must hold one value for each sample ({n}); got {len(values)}.")
