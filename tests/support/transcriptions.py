"""The rules as their papers print them: one row at a time, plain loops, float64, written from the papers' formulas without a
look at the reference.

Each function takes the logits of one row (after temperature) and returns a margin for each token: positive, the rule keeps
it; negative, it goes; the size says by how much, in nats for a threshold and as a share of the need for a prefix. Tokens
with equal logits are one group here, as fastdecode promises; `math.inf` marks what a rule keeps always.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

PAST = -0.01  # a prefix is not followed further once it is past its need by one per cent


def softmax(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """p and ln p."""
    finite = x > -math.inf
    top = x[finite].max()
    log_p = x - top - math.log(np.exp(x[finite] - top).sum())
    return np.exp(log_p), log_p


def entropy(p: np.ndarray, log_p: np.ndarray) -> float:
    return -sum(float(a) * float(b) for a, b in zip(p, log_p) if a > 0)


def groups(key: np.ndarray) -> Iterator[np.ndarray]:
    """Places of equal keys, the smallest key first; keys of inf are left out."""
    order = np.argsort(key, kind="stable")
    start = 0
    while start < len(order) and key[order[start]] < math.inf:
        end = start
        while end < len(order) and key[order[end]] == key[order[start]]:
            end += 1
        yield order[start:end]
        start = end


def nothing_kept(x: np.ndarray) -> np.ndarray:
    return np.full(len(x), -math.inf)


# ---- prefixes ------------------------------------------------------------------------------------------------------


def top_h(x: np.ndarray, alpha: float) -> np.ndarray:
    """Algorithms 1 and 2 of arXiv 2509.02510: add tokens while H(q) <= alpha * H(p)."""
    p, log_p = softmax(x)
    budget = alpha * entropy(p, log_p)
    margin = nothing_kept(x)
    gamma = h = 0.0
    for place, group in enumerate(groups(-x)):
        for i in group:
            gamma += p[i]
            h += p[i] * log_p[i] if p[i] > 0 else 0.0
        if place == 0:
            margin[group] = math.inf
            continue
        margin[group] = (budget - (math.log(gamma) - h / gamma)) / budget
        if margin[group[0]] < PAST:
            break
    return margin


def top_h_hf(x: np.ndarray, alpha: float) -> np.ndarray:
    """transformers' rule: r = the 100 largest, renormalised; keep while the running sum of -r ln r <= alpha * H(r).

    A group of ties that straddles the 100th place counts for the members inside, and stays or goes as one.
    """
    best = np.sort(x)[::-1][:100]
    r, log_r = softmax(best)
    budget = alpha * entropy(r, log_r)
    margin = nothing_kept(x)
    reached = 0.0
    for place, group in enumerate(groups(-best)):
        tied = x == best[group[0]]
        for i in group:
            reached -= r[i] * log_r[i] if r[i] > 0 else 0.0
        if place == 0:
            margin[tied] = math.inf
            continue
        margin[tied] = (budget - reached) / budget
        if margin[tied][0] < PAST:
            break
    return margin


def _until_mass(x: np.ndarray, key: np.ndarray, mass: float) -> np.ndarray:
    """Walk by key; a group stays if the mass before it has not reached the need: the one that crosses is kept."""
    p, _ = softmax(x)
    margin = nothing_kept(x)
    before = 0.0
    for group in groups(key):
        margin[group] = (mass - before) / mass if before > 0 else math.inf
        if margin[group[0]] < PAST:
            break
        before += p[group].sum()
    return margin


def top_p(x: np.ndarray, mass: float) -> np.ndarray:
    return _until_mass(x, -x, mass)


def typical_p(x: np.ndarray, mass: float) -> np.ndarray:
    """arXiv 2202.00666: walk by |-ln p - H|."""
    p, log_p = softmax(x)
    return _until_mass(x, np.abs(-log_p - entropy(p, log_p)), mass)


def top_k(x: np.ndarray, k: float) -> np.ndarray:
    kth = np.sort(x)[::-1][min(int(k), len(x)) - 1]
    return np.where((x >= kth) & (x > -math.inf), math.inf, -math.inf)


# ---- thresholds ----------------------------------------------------------------------------------------------------


def _at_least(x: np.ndarray, log_p: np.ndarray, log_threshold: float) -> np.ndarray:
    return np.where(x == x.max(), math.inf, log_p - log_threshold)


def min_p(x: np.ndarray, base: float) -> np.ndarray:
    log_p = softmax(x)[1]
    return _at_least(x, log_p, math.log(base) + log_p.max())


def epsilon_cutoff(x: np.ndarray, e: float) -> np.ndarray:
    return _at_least(x, softmax(x)[1], math.log(e))


def eta_cutoff(x: np.ndarray, e: float) -> np.ndarray:
    p, log_p = softmax(x)
    return _at_least(x, log_p, math.log(min(e, math.sqrt(e) * math.exp(-entropy(p, log_p)))))


def top_a(x: np.ndarray, a: float) -> np.ndarray:
    p, log_p = softmax(x)
    return _at_least(x, log_p, math.log(a * p.max() ** 2))


def p_less(x: np.ndarray) -> np.ndarray:
    p, log_p = softmax(x)
    return _at_least(x, log_p, math.log(sum(float(a) ** 2 for a in p)))


def top_n_sigma(x: np.ndarray, n: float) -> np.ndarray:
    """arXiv 2411.07641, the standard deviation over finite logits, with n - 1; the lowest numbers of float32 and
    bfloat16, here divided by a temperature below 3, are masks."""
    finite = x[x > -1e38]
    deviation = math.sqrt(((finite - finite.mean()) ** 2).sum() / (len(finite) - 1)) if len(finite) > 1 else 0.0
    return np.where(x == x.max(), math.inf, x - (x.max() - n * deviation))


BY_NAME = {
    "top_h": top_h, "top_h[hf]": top_h_hf, "top_p": top_p, "typical_p": typical_p, "top_k": top_k, "min_p": min_p,
    "epsilon_cutoff": epsilon_cutoff, "eta_cutoff": eta_cutoff, "top_a": top_a, "p_less": p_less, "top_n_sigma": top_n_sigma,
}  # fmt: skip
