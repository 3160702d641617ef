"""Gamma random numbers as a smooth function of their concentration. There is no rejection: a fixed pair of uniforms gives a number
that can be differentiated. A concentration so small that the number underflows is not a special case.

    G(a) = Q(u; a + 1) * v^(1/a)      u, v uniform in (0, 1); Q the quantile function of Gamma(a + 1, 1)

With the second factor, Q is needed only at shapes above 1, where it is well behaved. Everything is in logarithms, because G(1e-3) is
below 1e-300 half of the time. dQ/da at fixed u is -(dP/da) / density, which is also the gradient of every expectation.
"""

from __future__ import annotations

import torch

_STEPS = 40  # the largest number of Newton steps; 8 are usual
_CONVERGED = 4e-16  # a step in ln x; a number stops at a smaller one, so that it does not depend on its neighbours
_DIFFERENCE = 1e-3  # of a; the error of the five-point rule is its fourth power, near the rounding of the difference


class _LogGamma(torch.autograd.Function):
    @staticmethod
    def forward(ctx, a, u, v):
        log_q = _log_quantile(a + 1, u)
        ctx.save_for_backward(a, u, v, log_q)
        return log_q + v.log() / a

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
        a, u, v, log_q = ctx.saved_tensors
        x, shape = log_q.exp(), a + 1
        # The smaller tail keeps its digits. The derivatives of the two tails differ in sign alone.
        low = _slope(torch.special.gammainc, shape, x)
        by_shape = torch.where(u < 0.5, low, -_slope(torch.special.gammaincc, shape, x))
        density = torch.exp(shape * log_q - x - torch.lgamma(shape))  # of ln Q
        return grad * (-by_shape / density - v.log() / a**2), None, None


def log_gamma(a: torch.Tensor, u: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """ln G(a) for concentrations a > 0 and uniforms u, v in (0, 1), float64; differentiable in a, at fixed u and v."""
    return _LogGamma.apply(a, u, v)


def _slope(tail, shape: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """The derivative by the shape."""
    h = _DIFFERENCE
    near, far = (tail(shape + n * h, x) - tail(shape - n * h, x) for n in (1, 2))
    return (8 * near - far) / (12 * h)


def _log_quantile(shape: torch.Tensor, u: torch.Tensor) -> torch.Tensor:
    """ln x with P(shape, x) = u, for shapes >= 1: Newton in ln x, inside a bracket that shrinks."""
    upper = u > 0.5
    lgamma = torch.lgamma(shape)
    # P(shape, x) <= x^shape / Gamma(shape + 1) bounds x below; above, the bound holds for every u <= 1 - 2^-33.
    low = (u.log() + torch.lgamma(shape + 1)) / shape
    high = torch.maximum(low, (2 * shape + 50).log())
    log_x = torch.maximum(low, shape.log())
    done = torch.zeros_like(log_x, dtype=torch.bool)
    for _ in range(_STEPS):
        x = log_x.exp()
        excess = torch.where(upper, (1 - u) - torch.special.gammaincc(shape, x), torch.special.gammainc(shape, x) - u)
        high, low = torch.where(excess > 0, log_x, high), torch.where(excess > 0, low, log_x)
        moved = log_x - excess / torch.exp(shape * log_x - x - lgamma)
        moved = torch.where((moved >= low) & (moved <= high), moved, (low + high) / 2)
        log_x, done = torch.where(done, log_x, moved), done | ((moved - log_x).abs() <= _CONVERGED * (1 + log_x.abs()))
        if log_x.device.type == "cpu" and bool(done.all()):  # on a GPU the test costs more than the steps
            break
    return log_x
