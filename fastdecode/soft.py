"""Soft tokens: instead of one token, a mixture of a few, to be fed to a model as the weighted sum of their embeddings.

A plan leaves survivors; their `top_m` largest, renormalised, are pi; a mixture y of them is made (arXiv 2505.15778, 2508.03440,
2505.23648):

    none       y = pi
    gumbel     y = softmax((ln pi + scale * g) / tau)       g Gumbel(0, 1): with scale 1 the largest y is a draw from pi
    dirichlet  y ~ Dir(gamma * pi)
    multi      y = the shares of k draws with replacement   from all survivors: the tokens of `fastdecode.sample(num_samples=k)`

The engine that runs the plan finds the candidates, in the one call that also draws tokens and measures the entropy; what is left
are [B, M] numbers, which are float64 torch on any device and can be differentiated by autograd. Only where the candidates are
not the row's largest logits (a typicality cut, or `top_m=None`) is the row sorted.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

import torch

from . import dispatch, ops, philox, reference
from .gamma import log_gamma
from .plan import Plan, plan
from .record import OK, Draw, Wanted
from .rules import BY_LOGIT, FIELDS

NOISES = ("none", "gumbel", "dirichlet", "multi")

_SOFTMAX = plan()
_LEAST_SHARE = 1e-100  # of pi in a concentration: its weight is 0 all the same, and its logarithm stays finite


@dataclass(slots=True, eq=False)
class SoftTokens:
    """Mixtures of tokens, the largest weight first. Floats are float32 (float64 for float64 logits), and nats.

    M is the widest mixture; in narrower ones ids are -1 and weights 0. An ordinary row has the one token of `fastdecode.sample`, of
    weight 1. In a row whose status is not 0, ids and tokens are -1, kept is 0 and the floats are NaN. For logits [V] the batch
    dimension is gone everywhere. `weights`, `log_pi` and `logprobs` carry gradients.
    """

    ids: torch.Tensor  # int64 [B, M]
    weights: torch.Tensor  # [B, M]
    tokens: torch.Tensor  # int64 [B]: the id of the largest weight
    entropy: torch.Tensor  # [B]: of the full vocabulary, after temperature, before truncation, without noise
    kept: torch.Tensor  # int64 [B]: how many tokens survived the plan
    status: torch.Tensor  # uint8 [B]: as in `Sample`
    soft: torch.Tensor  # bool [B]: False in ordinary rows
    log_pi: torch.Tensor  # [B, M]: ln pi; for multi and in ordinary rows ln of the share among all survivors
    noise: torch.Tensor  # [B, M]: gumbel: g; dirichlet: ln y, which does not underflow; multi: how often drawn; else 0
    logprobs: torch.Tensor  # [B]: see `soft_logprobs`
    how: tuple[str, float]  # the kind of noise, and its scale or gamma


def soft_tokens(
    logits: torch.Tensor,
    plan: Plan | None = None,
    *,
    noise: str = "gumbel",
    tau: float | torch.Tensor = 0.5,
    top_m: int | None = 5,
    gamma: float = 4.0,
    k: int = 3,
    scale: float = 1.0,
    seed: int | torch.Tensor | None = None,
    step: int | torch.Tensor = 0,
    streams: int | torch.Tensor | None = None,
    soft_rows: torch.Tensor | None = None,
    straight_through: bool = False,
    vocab_limit: int | None = None,
    check: bool = False,
) -> SoftTokens:
    """A mixture of tokens for each row; the top of this file has the formulas.

    Gradients flow from the weights to the logits (and tau), at fixed noise and fixed candidates. Ties at the edge of `top_m` go
    to the lower ids.

    Args:
        logits: [B, V] or [V]; float32, float16, bfloat16, or float64, which always runs on the reference.
        plan: made with `fastdecode.plan`; None is the plain softmax.
        noise: "none", "gumbel", "dirichlet" or "multi".
        tau: for gumbel; above 0, a number or one for each row, [B]. Near 0 the mixtures become single tokens.
        top_m: how many survivors take part; None: all. Not for multi, which draws from all.
        gamma: for dirichlet: the concentration, above 0. Larger is nearer to pi.
        k: for multi: how many draws.
        scale: for gumbel: a factor on the noise, above 0.
        seed, step, streams: as in `fastdecode.sample`. The noise shares no word with the tokens drawn there.
        soft_rows: bool [B]; rows that are False draw one token, the one `fastdecode.sample` draws. Default: all are soft.
        straight_through: the weights are 1 for the largest and 0 for the others; their gradients are those of the mixture.
        vocab_limit: ids >= vocab_limit do not exist.
        check: raise if a row cannot be sampled. Costs a synchronisation on a GPU.

    Raises:
        TypeError, ValueError: an argument is not as described, or `check=True` and a row holds a NaN or nothing to sample.
    """
    rows = _rows(logits)
    (batch, vocab), device = rows.shape, rows.device
    plan = _SOFTMAX if plan is None else plan
    cuts = ops._cuts(plan, batch, device)
    limit = vocab if vocab_limit is None else ops._count("vocab_limit", vocab_limit, 1, vocab)
    if noise not in NOISES:
        raise ValueError(f"noise must be one of {', '.join(NOISES)}; got {noise!r}.")
    if straight_through and noise == "multi":
        raise ValueError("straight_through needs weights with a gradient, and multi has none; use logprobs instead.")
    width = None if top_m is None else min(ops._count("top_m", top_m, 1, 2**31), limit)
    how = (noise, _positive("scale", scale) if noise == "gumbel" else _positive("gamma", gamma))
    column = _column("tau", tau, batch, device)
    is_soft = _soft_rows(soft_rows, batch, device)
    draw = Draw(
        ops._fresh_seed(rows) if seed is None else ops._coordinate("seed", seed, batch, -(2**63), 2**64, device),
        ops._coordinate("step", step, batch, 0, 2**32, device),
        None if streams is None else ops._streams(streams, batch, device),
        ops._count("k", k, 1, 2**8) if noise == "multi" else 1,
        limit,
    )
    engine = reference if rows.dtype == torch.float64 else dispatch.engine_for(device)
    by_logit = width is not None and all(cut.order == BY_LOGIT for cut in plan.cuts)
    wanted = Wanted(frozenset(["entropy"]), width if by_logit and width and noise != "multi" else 0)
    found = engine.sample(rows.detach(), cuts, draw, wanted)
    if check:
        ops._raise_if_flagged(found["status"])

    # Candidates [B, M], -1 where there is none, and what is special about multi: how often each was drawn.
    if noise == "multi":
        ids, times = _distinct(found["tokens"])
    else:
        ids = found["top_ids"] if wanted.top_logprobs else _largest(engine, rows.detach(), cuts, width, limit, found)
        ids = torch.where(torch.arange(ids.shape[1], device=device) < found["kept"][:, None], ids, -1)
        times = torch.zeros(ids.shape, dtype=torch.float64, device=device)
    one = torch.where(torch.arange(ids.shape[1], device=device) == 0, found["tokens"][:, :1], -1)
    ids = torch.where(is_soft[:, None], ids, one)
    real = ids >= 0

    overall_for = "all" if noise == "multi" else "nobody" if soft_rows is None else "ordinary"
    log_pi = _log_pi(engine, rows, cuts, ids, limit, is_soft, overall_for, found)
    drawn, score = _scores(engine, how, log_pi, real, times, column, ids, draw)
    weights = times / draw.num_samples if noise == "multi" else score.masked_fill(~real, -math.inf).softmax(1)
    weights = torch.where(is_soft[:, None], weights, real.double())
    order = score.detach().masked_fill(~real, -math.inf).argsort(dim=1, descending=True, stable=True)
    ids, weights, log_pi, drawn = (part.gather(1, order) for part in (ids, weights, log_pi, drawn))
    drawn = torch.where(is_soft[:, None], drawn, 0.0)
    if straight_through:
        hard = torch.where(torch.arange(ids.shape[1], device=device) == 0, 1.0, 0.0).double()
        weights = hard + (weights - weights.detach())

    ok = found["status"] == OK
    dtype = torch.float64 if rows.dtype == torch.float64 else torch.float32

    def finish(value: torch.Tensor) -> torch.Tensor:  # NaN in flagged rows
        return torch.where(ok if value.ndim == 1 else ok[:, None], value, math.nan).to(dtype)

    soft = SoftTokens(
        ids, finish(weights), ids[:, 0], finish(found["entropy"]), found["kept"], found["status"], is_soft,
        finish(log_pi), finish(drawn), finish(_density(how, ids, weights, log_pi, log_pi, drawn, is_soft)), how,
    )  # fmt: skip
    return soft if logits.ndim == 2 else _each(soft, lambda value: value.squeeze(0))


def soft_logprobs(
    logits: torch.Tensor, soft: SoftTokens, plan: Plan | None = None, *, vocab_limit: int | None = None
) -> torch.Tensor:
    """[B]: how likely these logits make recorded soft tokens, in nats; differentiable in the logits.

    What policy gradients need: the ratio of two policies is exp(soft_logprobs(new logits, soft) - soft.logprobs).

        gumbel     sum_i -e_i - exp(-e_i) - ln scale,  e_i = (ln pi_old + scale * g - ln pi) / scale
        dirichlet  the logarithm of the density of Dir(gamma * pi) at y
        multi      the mean of ln pi over the k draws: the ratio is the k-th root of the product of ratios
        none       0
        ordinary   ln pi(token)

    For gumbel and dirichlet pi is renormalised over the recorded candidates; for multi and ordinary rows, over the plan's
    survivors: a token that does not survive gives -inf.
    """
    rows = _rows(logits)
    cuts = ops._cuts(_SOFTMAX if plan is None else plan, len(rows), rows.device)
    limit = rows.shape[1] if vocab_limit is None else ops._count("vocab_limit", vocab_limit, 1, rows.shape[1])
    record = soft if soft.ids.ndim == 2 else _each(soft, lambda value: value.unsqueeze(0))
    if record.ids.shape[0] != len(rows):
        raise ValueError(f"soft must hold one mixture per row of logits ({len(rows)}); got {record.ids.shape[0]}.")
    engine = reference if rows.dtype == torch.float64 else dispatch.engine_for(rows.device)
    overall_for = "all" if record.how[0] == "multi" else "ordinary"
    log_pi = _log_pi(engine, rows, cuts, record.ids, limit, record.soft, overall_for, None)
    old = record.log_pi.detach().double()
    value = _density(
        record.how, record.ids, record.weights.detach().double(), log_pi, old, record.noise.double(), record.soft
    )
    value = torch.where(record.status == OK, value, math.nan).to(record.weights.dtype)
    return value if logits.ndim == 2 else value.squeeze(0)


# ---- candidates ------------------------------------------------------------------------------------------------------


def _largest(engine, rows, cuts, width: int | None, limit: int, found) -> torch.Tensor:
    """The ids of the largest survivors, lower ids first on ties, from a sort of the whole row."""
    keep = _keep(engine, rows, cuts, limit)
    most = int(found["kept"].max()) if width is None and len(rows) else width
    order = torch.where(keep, rows, -math.inf).sort(dim=1, descending=True, stable=True).indices
    return order[:, : max(1, most or 1)]


def _keep(engine, rows, cuts, limit: int) -> torch.Tensor:
    masked = torch.empty_like(rows, memory_format=torch.contiguous_format)
    engine.truncate(rows, cuts, masked, -math.inf, limit)
    return masked > -math.inf


def _distinct(tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The distinct tokens of [B, k] draws, each where it was drawn first and -1 elsewhere, and how often."""
    same = tokens[:, :, None] == tokens[:, None, :]
    first = ~same.tril(-1).any(2) & (tokens >= 0)
    return torch.where(first, tokens, -1), torch.where(first, same.sum(2), 0).double()


# ---- numbers ---------------------------------------------------------------------------------------------------------


def _log_pi(engine, rows, cuts, ids, limit: int, is_soft, overall_for: str, found) -> torch.Tensor:
    """ln pi of the candidates, 0 where there is none: among themselves, or overall, among all survivors, for "nobody",
    "ordinary" rows or "all"; `found` is what the engine has told about the tokens it drew."""
    temperature = cuts[:, -1, FIELDS.index("temperature")].double()[:, None]
    temperature = torch.where(temperature == 0, 1.0, temperature)
    real = ids >= 0
    among = _relative(rows.gather(1, ids.clamp(min=0)), real).div(temperature).log_softmax(1)
    if overall_for == "nobody":
        return torch.where(real, among, 0.0)
    known = found is not None and rows.dtype != torch.float64 and not (rows.requires_grad and torch.is_grad_enabled())
    if known and found is not None:
        logprobs = found[
            "logprobs"
        ].double()  # for "all" the candidates are the tokens; ordinary rows have one, the first
        overall = logprobs if overall_for == "all" else logprobs[:, :1].expand_as(among)
    else:
        keep = _keep(engine, rows.detach(), cuts, limit)
        overall = _relative(rows, keep).div(temperature).log_softmax(1).gather(1, ids.clamp(min=0))
    overall_here = ~is_soft[:, None] | (overall_for == "all")
    return torch.where(real, torch.where(overall_here, overall, among), 0.0)


def _relative(x: torch.Tensor, keep: torch.Tensor) -> torch.Tensor:
    """x less the largest kept, in float64, -inf where not kept; +inf beside +inf is 0."""
    x = torch.where(x == math.inf, 0.0, x.double())
    x = x.masked_fill(~keep, -math.inf)
    top = x.detach().amax(1, keepdim=True)
    return x - torch.where(top > -math.inf, top, 0.0)


def _scores(engine, how, log_pi, real, times, tau, ids, draw: Draw) -> tuple[torch.Tensor, torch.Tensor]:
    """The noise, and the score: weights are its softmax (multi: in its order)."""
    kind, strength = how
    if kind == "none":
        return times, log_pi
    if kind == "multi":
        return times, times
    columns = draw.columns(len(ids), ids.device)
    uniforms = getattr(engine, "uniforms", philox.uniforms)  # compiled, where the engine is

    if kind == "gumbel":
        g = -torch.log(-torch.log(uniforms(philox.SOFT_GUMBEL, ids.clamp(min=0), *columns)))
        return g, (log_pi + strength * g) / tau
    concentration = torch.where(real, log_pi.exp().clamp(min=_LEAST_SHARE) * strength, 1.0)
    u, v = (uniforms(use, ids.clamp(min=0), *columns) for use in (philox.SOFT_GAMMA, philox.SOFT_BOOST))
    log_y = log_gamma(concentration, u, v).masked_fill(~real, -math.inf).log_softmax(1)
    log_y = torch.where(real, log_y, 0.0)
    return log_y.detach(), log_y


def _density(how, ids, weights, log_pi, old, drawn, is_soft) -> torch.Tensor:
    """See `soft_logprobs`; `old` is the ln pi that the noise was added to. What was drawn is a constant here."""
    kind, strength = how
    real = ids >= 0
    ordinary = log_pi[:, 0]
    if kind == "none":
        value = torch.zeros_like(ordinary)
    elif kind == "multi":
        value = torch.where(real, weights.detach() * log_pi, 0.0).sum(1)
    elif kind == "gumbel":
        e = (old.detach() + strength * drawn - log_pi) / strength
        value = torch.where(real, -e - torch.exp(-e) - math.log(strength), 0.0).sum(1)
    else:
        a = torch.where(real, log_pi.exp().clamp(min=_LEAST_SHARE) * strength, 1.0)
        terms = torch.where(real, (a - 1) * drawn - torch.lgamma(a), 0.0).sum(1)
        value = terms + torch.lgamma(torch.where(real, a, 0.0).sum(1))
    return torch.where(is_soft, value, ordinary)


# ---- checks ----------------------------------------------------------------------------------------------------------


def _rows(logits) -> torch.Tensor:
    if (
        isinstance(logits, torch.Tensor)
        and logits.dtype == torch.float64
        and logits.ndim in (1, 2)
        and logits.shape[-1]
    ):
        return logits if logits.ndim == 2 else logits.unsqueeze(0)
    if not isinstance(logits, torch.Tensor):
        raise TypeError(f"logits must be a torch.Tensor; got {type(logits).__name__}: pass torch.from_numpy(logits).")
    return ops._rows(logits)


def _positive(name: str, value: float) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < math.inf:
        raise ValueError(f"{name} must be a number above 0; got {value!r}.")
    return float(value)


def _column(name: str, value: float | torch.Tensor, batch: int, device: torch.device) -> torch.Tensor:
    """One number above 0 for each row, float64 [B or 1, 1]. A tensor on a GPU is not read back."""
    if not isinstance(value, torch.Tensor):
        return torch.full((1, 1), _positive(name, value), dtype=torch.float64, device=device)
    if not value.is_floating_point() or value.shape not in ((batch,), ()):
        raise ValueError(
            f"{name} must be a number above 0, or a float tensor of shape [{batch}]; got {described(value)}."
        )
    if value.device.type == "cpu" and not bool(((value > 0) & (value < math.inf)).all()):
        raise ValueError(f"{name} must be above 0 in every row; got {value.detach().min().item():g}.")
    return value.to(device).double().expand(batch)[:, None]


def _soft_rows(given, batch: int, device: torch.device) -> torch.Tensor:
    if given is None:
        return torch.ones(batch, dtype=torch.bool, device=device)
    if not isinstance(given, torch.Tensor) or given.dtype != torch.bool or given.shape != (batch,):
        raise ValueError(f"soft_rows must be a bool tensor of shape [{batch}]; got {described(given)}.")
    return given.to(device)


def described(value) -> str:
    return f"{value.dtype} of shape {list(value.shape)}" if isinstance(value, torch.Tensor) else repr(value)


def _each(soft: SoftTokens, change: Callable[[torch.Tensor], torch.Tensor]) -> SoftTokens:
    values: list[Any] = [getattr(soft, field.name) for field in fields(soft)]
    values = [change(value) if isinstance(value, torch.Tensor) else value for value in values]
    return SoftTokens(*values)
