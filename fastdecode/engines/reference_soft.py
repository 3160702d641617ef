"""The reference of soft tokens, in float64 torch on any device, differentiable: weights from candidates and noise, and their density.
An engine fuses these operations into one kernel (csrc/mixture.h, triton/soft.py).
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch

from .. import philox
from ..record import OK, Draw, Mixing
from ..rules import FIELDS
from .gamma import log_gamma

_LEAST_SHARE = 1e-100  # of pi in a concentration: its weight is still 0, and its logarithm is finite

Uniforms = Callable[[int, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


def soften(
    logits: torch.Tensor,
    cuts: torch.Tensor,
    candidates: torch.Tensor,
    draw: Draw,
    mixing: Mixing,
    sampled: dict[str, torch.Tensor],
    keep: torch.Tensor | None = None,
    uniforms: Uniforms = philox.uniforms,
) -> dict[str, torch.Tensor]:
    """See `dispatch.Engine`. Weights, log_pi and logprobs carry gradients of the logits and of tau.

    Args:
        keep: the survivors, bool [B, V]; needed for an overall ln pi with a gradient or in float64.
        uniforms: `philox.uniforms`, or a faster function with the same results.
    """
    device = logits.device
    if mixing.noise == "multi":
        ids, times = _distinct(sampled["tokens"])
    else:
        ids = torch.where(torch.arange(candidates.shape[1], device=device) < sampled["kept"][:, None], candidates, -1)
        times = torch.zeros(ids.shape, dtype=torch.float64, device=device)
    first = torch.arange(ids.shape[1], device=device) == 0
    if mixing.soft_rows is not None:
        ids = torch.where(mixing.soft_rows[:, None], ids, torch.where(first, sampled["tokens"][:, :1], -1))
    real = ids >= 0

    overall = mixing.noise == "multi" or mixing.soft_rows is not None
    if keep is None and overall:  # of the drawn tokens; an ordinary row has one, the first
        known = sampled["logprobs"].double()
        known = known if mixing.noise == "multi" else known[:, :1].expand(ids.shape)
    else:
        known = None
    log_pi = log_pi_of(logits, cuts, ids, mixing.noise, mixing.soft_rows, keep, known)
    drawn, key = _keys(mixing, log_pi, real, times, ids, draw, uniforms)
    if mixing.noise == "multi":
        weights = times / draw.num_samples
    else:
        # Less the largest before the division by tau, which may be arbitrarily small.
        weights = (_less_largest(key, real) / _tau(mixing)).masked_fill(~real, -math.inf).softmax(1)
    weights = _in_soft_rows(mixing.soft_rows, weights, real.double())
    drawn = _in_soft_rows(mixing.soft_rows, torch.where(real, drawn, 0.0), torch.zeros_like(drawn))
    order = key.detach().masked_fill(~real, -math.inf).argsort(dim=1, descending=True, stable=True)
    ids, weights, log_pi, drawn = (part.gather(1, order) for part in (ids, weights, log_pi, drawn))
    likely = density(mixing.noise, mixing.strength, ids, weights, log_pi, log_pi, drawn, mixing.soft_rows)
    if mixing.straight_through:
        weights = first.double() + (weights - weights.detach())

    ok = sampled["status"] == OK
    dtype = torch.float64 if logits.dtype == torch.float64 else torch.float32

    def finish(value: torch.Tensor) -> torch.Tensor:  # NaN in flagged rows
        return torch.where(ok if value.ndim == 1 else ok[:, None], value, math.nan).to(dtype)

    return {
        "ids": ids, "weights": finish(weights), "tokens": ids[:, 0], "log_pi": finish(log_pi), "noise": finish(drawn),
        "logprobs": finish(likely),
    }  # fmt: skip


def embed(ids: torch.Tensor, weights: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
    """See `dispatch.Engine`; for a table of any type and strides, and weights of the type that sums run in."""
    looked_up = table[ids.clamp(min=0)]
    w = weights[..., None]
    mixed = torch.where((ids >= 0)[..., None], w * looked_up, w).sum(1).to(table.dtype)
    alone = (weights[:, 0] == 1) & (weights[:, 1:] == 0).all(1)
    return torch.where(alone[:, None], looked_up[:, 0], mixed)


def _distinct(tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The distinct tokens of [B, k] draws, each where it was drawn first and -1 elsewhere, and how often."""
    same = tokens[:, :, None] == tokens[:, None, :]
    first = ~same.tril(-1).any(2) & (tokens >= 0)
    return torch.where(first, tokens, -1), torch.where(first, same.sum(2), 0).double()


def log_pi_of(
    rows: torch.Tensor,
    cuts: torch.Tensor,
    ids: torch.Tensor,
    noise: str,
    soft_rows: torch.Tensor | None,
    keep: torch.Tensor | None,
    known: torch.Tensor | None = None,
) -> torch.Tensor:
    """ln pi of the candidates, 0 where there is no candidate. pi is normalised over the candidates; for multi and in ordinary rows, over
    the survivors `keep`. `known`: the latter, if it was measured before."""
    temperature = cuts[:, -1, FIELDS.index("temperature")].double()[:, None]
    temperature = torch.where(temperature == 0, 1.0, temperature)
    real = ids >= 0
    if noise == "multi" or soft_rows is not None:
        if known is not None:
            overall = known
        else:
            assert keep is not None
            overall = _relative(rows, keep).div(temperature).log_softmax(1).gather(1, ids.clamp(min=0))
        if noise == "multi":
            return torch.where(real, overall, 0.0)
    among = _relative(rows.gather(1, ids.clamp(min=0)), real).div(temperature).log_softmax(1)
    if soft_rows is not None:
        among = torch.where(soft_rows[:, None], among, overall)
    return torch.where(real, among, 0.0)


def _relative(x: torch.Tensor, keep: torch.Tensor) -> torch.Tensor:
    """x less the largest kept, in float64, -inf where not kept; +inf beside +inf is 0."""
    x = torch.where(x == math.inf, 0.0, x.double())
    return _less_largest(x.masked_fill(~keep, -math.inf), keep)


def _less_largest(x: torch.Tensor, real: torch.Tensor) -> torch.Tensor:
    top = x.detach().masked_fill(~real, -math.inf).amax(1, keepdim=True)
    return x - torch.where(top > -math.inf, top, 0.0)


def _keys(
    mixing: Mixing, log_pi: torch.Tensor, real: torch.Tensor, times: torch.Tensor, ids: torch.Tensor, draw: Draw, uniforms: Uniforms
) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
    """The noise, and the key: weights are the softmax of key / tau (multi: in its order)."""
    if mixing.noise == "none":
        return times, log_pi
    if mixing.noise == "multi":
        return times, times
    columns = draw.columns(len(ids), ids.device)
    if mixing.noise == "gumbel":
        g = -torch.log(-torch.log(uniforms(philox.SOFT_GUMBEL, ids.clamp(min=0), *columns)))
        return g, log_pi + mixing.strength * g
    u, v = (uniforms(use, ids.clamp(min=0), *columns) for use in (philox.SOFT_GAMMA, philox.SOFT_BOOST))
    concentration = _concentration(log_pi, real, mixing.strength)
    log_y = log_gamma(concentration, u, v).masked_fill(~real, -math.inf).log_softmax(1)
    log_y = torch.where(real, log_y, 0.0)
    return log_y.detach(), log_y


def _concentration(log_pi: torch.Tensor, real: torch.Tensor, gamma: float) -> torch.Tensor:
    return torch.where(real, log_pi.exp().clamp(min=_LEAST_SHARE) * gamma, 1.0)


def _tau(mixing: Mixing) -> float | torch.Tensor:
    if mixing.noise != "gumbel":
        return 1.0
    return mixing.tau[:, None] if isinstance(mixing.tau, torch.Tensor) else mixing.tau


def density(
    noise: str,
    strength: float,
    ids: torch.Tensor,
    weights: torch.Tensor,
    log_pi: torch.Tensor,
    old: torch.Tensor,
    drawn: torch.Tensor,
    soft_rows: torch.Tensor | None,
) -> torch.Tensor:
    """See `soft_logprobs`. `old`: the ln pi that the noise was added to. `drawn` is a constant here."""
    real = ids >= 0
    ordinary = log_pi[:, 0]
    if noise == "none":
        value = torch.zeros_like(ordinary)
    elif noise == "multi":
        value = torch.where(real, weights.detach() * log_pi, 0.0).sum(1)
    elif noise == "gumbel":
        e = drawn + (old.detach() - log_pi) / strength
        value = torch.where(real, -e - torch.exp(-e) - math.log(strength), 0.0).sum(1)
    else:
        a = _concentration(log_pi, real, strength)
        terms = torch.where(real, (a - 1) * drawn - torch.lgamma(a), 0.0).sum(1)
        value = terms + torch.lgamma(torch.where(real, a, 0.0).sum(1))
    return _in_soft_rows(soft_rows, value, ordinary)


def _in_soft_rows(soft_rows: torch.Tensor | None, value: torch.Tensor, ordinary: torch.Tensor) -> torch.Tensor:
    if soft_rows is None:
        return value
    return torch.where(soft_rows if value.ndim == 1 else soft_rows[:, None], value, ordinary)
