"""The fit of two Weibull densities that RPC prunes by. numpy, and scipy for the minimum."""

from __future__ import annotations

import math
import reprlib

import numpy as np

TINY = 1e-12  # a Weibull density may be infinite at 0: smaller probabilities are fitted as if they were this


def weibull_mixture(x: np.ndarray) -> tuple[float, float, float, float, float]:
    """(w, k1, l1, k2, l2) of greatest likelihood for w f(x; k1, l1) + (1 - w) f(x; k2, l2); see `reasoning_pruning`.

    Args:
        x: [N] finite numbers >= 0, N >= 1.

    Raises:
        ImportError: scipy is not installed.
    """
    x = np.asarray(x, dtype=np.float64)
    if x.ndim != 1 or len(x) == 0 or not (np.isfinite(x) & (x >= 0)).all():
        raise ValueError(
            f"x must hold finite numbers >= 0 in one dimension, at least one; got {reprlib.repr(x.tolist())}."
        )
    try:
        from scipy.optimize import minimize
    except ImportError as error:
        raise ImportError("RPC fits with scipy, which is not installed: pip install scipy.") from error

    def surprise(parameters: np.ndarray) -> float:
        w, k1, l1, k2, l2 = parameters
        each = np.logaddexp(math.log(w) + ln_weibull(x, k1, l1), math.log1p(-w) + ln_weibull(x, k2, l2))
        return -float(each.sum())

    positive = (0.01, None)
    fit = minimize(surprise, (0.5, 1.0, 1.0, 1.5, 2.0), bounds=[(0.2, 0.8), *[positive] * 4], method="L-BFGS-B")
    return tuple(map(float, fit.x))  # type: ignore[return-value]


def ln_weibull(x: np.ndarray, k: float, scale: float) -> np.ndarray:
    ratio = np.log(np.maximum(x, TINY)) - math.log(scale)
    with np.errstate(over="ignore"):  # far in the tail the density is 0
        return math.log(k / scale) + (k - 1) * ratio - np.exp(k * ratio)
