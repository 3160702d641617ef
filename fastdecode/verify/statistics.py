"""The statistics of `verify`: G-tests of binned draws, exact binomial tests, and what each would have found.

Levels: all statistical tests of a run together raise a false alarm with probability ALARM at most (Bonferroni), and "finds" is
the smallest fault that a test finds with probability POWER.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

try:
    from scipy import stats
    from scipy.optimize import brentq
except ImportError as error:
    raise ImportError("verify needs scipy, which is not installed: pip install scipy.") from error

ALARM = 1e-6  # probability that a right sampler fails, over a whole run
TESTS = 24  # no run makes more statistical tests than this
LEVEL = ALARM / TESTS
POWER = 0.999
LEAST = 50  # expected draws in a bin; with these, G follows the chi-square law out to LEVEL


class Bins(NamedTuple):
    """Tokens put together into bins that a test can count."""

    of: np.ndarray  # [V]: the bin of a token; -1 where its probability is 0
    mass: np.ndarray  # [bins]

    def counts(self, tokens: np.ndarray) -> np.ndarray | None:
        """The number of tokens in each bin; None if a token of probability 0 was drawn."""
        bins = self.of[tokens]
        return None if bins.size and bins.min() < 0 else np.bincount(bins, minlength=len(self.mass))

    def put(self, q: np.ndarray) -> np.ndarray:
        """The masses of these bins under another distribution."""
        inside = self.of >= 0
        return np.bincount(self.of[inside], q[inside], len(self.mass))


def bins(p: np.ndarray, order: np.ndarray, draws: int) -> Bins:
    """Bins of neighbours in `order`: of a 64th of the mass, finer towards the end, and never fewer than LEAST draws expected."""
    order = order[p[order] > 0]
    reached = np.concatenate([[0.0], np.cumsum(p[order])])
    starts, total = [0], reached[-1]
    while True:
        here = reached[starts[-1]]
        need = max(LEAST / draws, min(1 / 64, (total - here) / 8))
        end = int(np.searchsorted(reached, here + need, side="left"))
        if end >= len(order) or total - reached[end] < LEAST / draws:
            break
        starts.append(end)
    of = np.full(len(p), -1)
    of[order] = np.repeat(np.arange(len(starts)), np.diff([*starts, len(order)]))
    return Bins(of, np.diff([*reached[starts], total]) / total)


def g_test(counts: np.ndarray, mass: np.ndarray) -> float:
    """The p-value of counts against the masses of their bins."""
    if len(mass) < 2:
        return 1.0
    return float(stats.power_divergence(counts, mass * counts.sum(), lambda_="log-likelihood").pvalue)


def binomial_test(count: int, draws: int, p: float) -> float:
    """The two-sided p-value of a count."""
    return float(min(1.0, 2 * min(stats.binom.cdf(count, draws, p), stats.binom.sf(count - 1, draws, p))))


def needed(bins: int) -> float:
    """The noncentrality at which a G-test over this number of bins fails with probability POWER."""
    if bins < 2:
        return np.inf
    edge = stats.chi2.isf(LEVEL, bins - 1)
    return brentq(lambda distance: stats.ncx2.sf(edge, bins - 1, distance) - POWER, 1e-3, 1e5)


def smallest(fault: Callable[[float], np.ndarray], into: list[Bins], draws: int, largest: float = 1.0) -> float | None:
    """The smallest fault that one of the binnings finds; None if they miss even the largest. `fault` maps a size to q."""
    limits = [needed(len(b.mass)) for b in into]

    def found(size: float) -> bool:
        q = fault(size)
        return any(distance(b.put(q), b.mass, draws) >= limit for b, limit in zip(into, limits))

    low, high = 0.0, largest
    if not found(high):
        return None
    for _ in range(18):
        middle = (low + high) / 2
        low, high = (low, middle) if found(middle) else (middle, high)
    return high


def distance(q: np.ndarray, mass: np.ndarray, draws: int) -> float:
    """The noncentrality of G for draws from q: 2 n KL(q || mass)."""
    return float(2 * draws * np.sum(np.where(q > 0, q * np.log(np.where(q > 0, q, 1.0) / mass), 0.0)))


def binomial_power(draws: int, p: float, instead: float) -> float:
    """The probability that the binomial test of p fails if the true probability is `instead`."""
    low, high = stats.binom.ppf(LEVEL / 2, draws, p), stats.binom.isf(LEVEL / 2, draws, p)
    return float(stats.binom.cdf(low - 1, draws, instead) + stats.binom.sf(high, draws, instead))


def thinner(draws: int, p: float) -> float:
    """The smallest lost share of p that is found with probability POWER."""
    return brentq(lambda lost: binomial_power(draws, p, p * (1 - lost)) - POWER, 0.0, 1.0, xtol=1e-3)


def unseen(draws: int) -> float:
    """The rate at which an event shows in this number of draws with probability POWER."""
    return float(-np.log1p(-POWER) / draws)
