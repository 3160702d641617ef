"""How many tokens a sampler by rejection looks at (FlashInfer's, "dual pivot"): simulated, because it depends on what is drawn.

A round scans the row up to the token that it draws among those above `low`, then sums up what lies above two pivots: the token's own
probability, and the middle between it and `high`. The token is taken if little enough lies above it; otherwise the pivots become new
bounds.
"""

from __future__ import annotations

import numpy as np
import torch


def tokens(probabilities: torch.Tensor, rule: str, limit: float, seed: int) -> list[float]:
    """Tokens seen in each pass of a kernel, over all rounds, for one row: in the order in which the passes stand in it."""
    p, draws = probabilities.double().numpy(), np.random.default_rng(seed)
    if rule == "none":
        return [_scanned(p, draws)]
    if rule == "min_p":
        return [len(p), len(p), _scanned(np.where(p >= limit * p.max(), p, 0), draws)]
    weights = p if rule == "top_p" else np.ones(len(p))
    scanned = rounds = 0.0
    low, high = 0.0, 1.0
    while low < high:
        rounds += 1
        allowed = np.where(p > low, p, 0)
        end = _scanned(allowed, draws)
        scanned += end
        pivots = p[int(end) - 1], (p[int(end) - 1] + high) / 2
        above = [weights[p > pivot].sum() for pivot in pivots]
        if above[0] < limit:
            break
        if above[1] < limit:
            low, high = pivots
        else:
            low = pivots[1]
    return [scanned, rounds * len(p)]


def _scanned(weights: np.ndarray, draws: np.random.Generator) -> float:
    """Up to the token that is drawn by its weight."""
    sums = np.cumsum(weights)
    return float(min(len(weights) - 1, np.searchsorted(sums, draws.random() * sums[-1], side="right")) + 1)
