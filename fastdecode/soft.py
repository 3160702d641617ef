"""Soft tokens: a mixture of a few tokens instead of one, fed to a model as the weighted sum of their embeddings.

A plan leaves survivors; their `top_m` largest, renormalised, are pi; a mixture y of them is made (arXiv 2505.15778, 2508.03440,
2505.23648):

    none       y = pi
    gumbel     y = softmax((ln pi + scale * g) / tau)       g Gumbel(0, 1): with scale 1 the largest y is a draw from pi
    dirichlet  y ~ Dir(gamma * pi)
    multi      y = the shares of k draws with replacement   from all survivors: the tokens of `fastdecode.sample(num_samples=k)`

One call of the engine draws tokens, measures the entropy and finds the candidates; a second call mixes them. For gradients and for
float64 logits reference_soft.py mixes them in torch; it defines the meaning. The row is sorted only if the candidates are not its
largest logits (a typicality cut, or `top_m=None`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any, NoReturn

import numpy as np
import torch

from . import arguments, dispatch
from .arguments import described
from .engines import reference, reference_soft
from .ops import Coordinates
from .plan import PlanLike, as_plan, plan
from .record import NOISES, OK, Mixing, Noise, Wanted
from .rules import BY_LOGIT, Values, plain

_SOFTMAX = plan()
_ENTROPY = frozenset(["entropy"])


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
    kept: torch.Tensor  # int64 [B]: the number of tokens that survived the plan
    status: torch.Tensor  # uint8 [B]: as in `Sample`
    soft: torch.Tensor  # bool [B]: False in ordinary rows
    log_pi: torch.Tensor  # [B, M]: ln pi; for multi and in ordinary rows ln of the share of all survivors
    noise: torch.Tensor  # [B, M]: gumbel: g; dirichlet: ln y, which does not underflow; multi: how often drawn; else 0
    logprobs: torch.Tensor  # [B]: see `soft_logprobs`
    how: tuple[Noise, float]  # the kind of noise, and its scale or gamma


def soft_tokens(
    logits: torch.Tensor,
    plan: PlanLike | None = None,
    *,
    noise: Noise = "gumbel",
    tau: Values = 0.5,
    top_m: int | None = 5,
    gamma: float = 4.0,
    k: int = 3,
    scale: float = 1.0,
    seed: Coordinates | None = None,
    step: Coordinates = 0,
    streams: Coordinates | None = None,
    soft_rows: torch.Tensor | Sequence[bool] | None = None,
    straight_through: bool = False,
    vocab_limit: int | None = None,
    check: bool = False,
    **unknown: NoReturn,
) -> SoftTokens:
    """Make a mixture of tokens for each row, by the formulas at the top of this file.

    Gradients flow from the weights to the logits (and tau), at fixed noise and fixed candidates. Ties at the edge of `top_m` go
    to the lower ids.

    Args:
        logits: [B, V] or [V]; float32, float16, bfloat16, or float64, which always runs on the reference.
        plan: made with `fastdecode.plan`, or a rule, or a list of rules; None is the plain softmax.
        noise: "none", "gumbel", "dirichlet" or "multi".
        tau: for gumbel; above 0, a number or one for each row. Near 0 the mixtures become single tokens.
        top_m: number of survivors in the mixture; None: all. Does not apply to multi, which draws from all.
        gamma: for dirichlet: the concentration, above 0. Larger is nearer to pi.
        k: for multi: the number of draws.
        scale: for gumbel: a factor on the noise, above 0.
        seed, step, streams: as in `fastdecode.sample`. The noise shares no random word with the tokens drawn there.
        soft_rows: bool [B]; rows that are False draw one token, the one `fastdecode.sample` draws. Default: all are soft.
        straight_through: the largest weight is 1 and the others are 0; gradients are those of the mixture.
        vocab_limit: ids >= vocab_limit do not exist.
        check: raise if a row cannot be sampled. Costs a synchronisation on a GPU.

    Raises:
        TypeError, ValueError: an argument is not as described, or `check=True` and a row holds a NaN or nothing to sample.
    """
    if unknown:
        arguments.refuse_unknown(soft_tokens, unknown)
    rows = _rows(logits)
    (batch, vocab), device = rows.shape, rows.device
    chain = _SOFTMAX if plan is None else as_plan(plan)
    cuts = arguments.cuts(chain, rows)
    limit = vocab if vocab_limit is None else arguments.count("vocab_limit", vocab_limit, 1, vocab)
    if noise not in NOISES:
        raise ValueError(f"noise must be one of {', '.join(NOISES)}; got {described(noise)}.")
    if straight_through and noise == "multi":
        raise ValueError("straight_through needs weights with a gradient, and multi has none; use logprobs instead.")
    width = None if top_m is None else min(arguments.count("top_m", top_m, 1, 2**31), limit)
    strength = _positive("scale", scale) if noise == "gumbel" else _positive("gamma", gamma)
    taus, some = _tau(tau, batch, device), _soft_rows(soft_rows, batch, device)
    mixing = Mixing(noise, strength, taus, some, straight_through)
    times = arguments.count("k", k, 1, 2**8) if noise == "multi" else 1
    draw = arguments.draw(rows, seed, step, streams, times, limit)
    exact = rows.dtype == torch.float64
    gradient = torch.is_grad_enabled() and rows.requires_grad
    engine = reference if exact else dispatch.engine_for(device)
    values = rows.detach() if rows.requires_grad else rows
    if arguments.unseen_calls:
        arguments.look_for_probabilities(values)

    by_logit = width is not None and all(cut.order == BY_LOGIT for cut in chain.cuts)
    top = width if by_logit and width and noise != "multi" else 0
    sampled = engine.sample(values, cuts, draw, Wanted(_ENTROPY, top, None, True))
    if check:
        arguments.raise_if_flagged(sampled["status"])
    if noise == "multi":
        candidates = sampled["tokens"]
    else:
        candidates = sampled["top_ids"] if by_logit else _largest(engine, values, cuts, width, limit, sampled)
    if exact or gradient or (isinstance(taus, torch.Tensor) and taus.requires_grad and torch.is_grad_enabled()):
        overall = (exact or gradient) and (noise == "multi" or some is not None)
        keep = _keep(engine, values, cuts, limit) if overall else None
        mixed = reference_soft.soften(rows, cuts, candidates, draw, mixing, sampled, keep, engine.uniforms)
    else:
        mixed = engine.soften(values, cuts, candidates, draw, mixing, sampled)
    if some is None:
        some = torch.ones(batch, dtype=torch.bool, device=device)
    entropy = sampled["entropy"].double() if exact else sampled["entropy"]
    soft = SoftTokens(
        mixed["ids"], mixed["weights"], mixed["tokens"], entropy, sampled["kept"], sampled["status"], some, mixed["log_pi"],
        mixed["noise"], mixed["logprobs"], (noise, strength),
    )  # fmt: skip
    return soft if logits.ndim == 2 else _each(soft, lambda value: value.squeeze(0))


def soft_logprobs(
    logits: torch.Tensor,
    soft: SoftTokens,
    plan: PlanLike | None = None,
    *,
    vocab_limit: int | None = None,
    **unknown: NoReturn,
) -> torch.Tensor:
    """[B]: the log-density of recorded soft tokens under these logits, in nats; differentiable in the logits.

    For policy gradients: the ratio of two policies is exp(soft_logprobs(new logits, soft) - soft.logprobs).

        gumbel     sum_i -e_i - exp(-e_i) - ln scale,  e_i = (ln pi_old + scale * g - ln pi) / scale
        dirichlet  the logarithm of the density of Dir(gamma * pi) at y
        multi      the mean of ln pi over the k draws: the ratio is the k-th root of the product of ratios
        none       0
        ordinary   ln pi(token)

    For gumbel and dirichlet pi is renormalised over the recorded candidates; for multi and ordinary rows, over the plan's
    survivors: a token that does not survive gives -inf.
    """
    if unknown:
        arguments.refuse_unknown(soft_logprobs, unknown)
    rows = _rows(logits)
    cuts = arguments.cuts(_SOFTMAX if plan is None else as_plan(plan), rows)
    limit = rows.shape[1] if vocab_limit is None else arguments.count("vocab_limit", vocab_limit, 1, rows.shape[1])
    record = soft if soft.ids.ndim == 2 else _each(soft, lambda value: value.unsqueeze(0))
    if record.ids.shape[0] != len(rows):
        raise ValueError(f"soft must hold one mixture per row of logits ({len(rows)}); got {record.ids.shape[0]}.")
    engine = reference if rows.dtype == torch.float64 else dispatch.engine_for(rows.device)
    keep = _keep(engine, rows.detach(), cuts, limit)
    log_pi = reference_soft.log_pi_of(rows, cuts, record.ids, record.how[0], record.soft, keep)
    old = record.log_pi.detach().double()
    value = reference_soft.density(
        *record.how, record.ids, record.weights.detach().double(), log_pi, old, record.noise.double(), record.soft
    )
    value = torch.where(record.status == OK, value, math.nan).to(record.weights.dtype)
    return value if logits.ndim == 2 else value.squeeze(0)


# ---- candidates ------------------------------------------------------------------------------------------------------


def _largest(engine, rows, cuts, width: int | None, limit: int, sampled) -> torch.Tensor:
    """The ids of the largest survivors, lower ids first on ties, from a sort of the whole row."""
    keep = _keep(engine, rows, cuts, limit)
    most = int(sampled["kept"].max()) if width is None and len(rows) else width
    order = torch.where(keep, rows, -math.inf).sort(dim=1, descending=True, stable=True).indices
    return order[:, : max(1, most or 1)].contiguous()


def _keep(engine, rows, cuts, limit: int) -> torch.Tensor:
    masked = torch.empty_like(rows, memory_format=torch.contiguous_format)
    engine.truncate(rows, cuts, masked, -math.inf, limit)
    return masked > -math.inf


# ---- checks ----------------------------------------------------------------------------------------------------------


def _rows(logits: Any) -> torch.Tensor:
    if not isinstance(logits, torch.Tensor):
        raise TypeError(f"logits must be a torch.Tensor; got {type(logits).__name__}: pass torch.from_numpy(logits).")
    return arguments.rows(logits, exact=True)


def _positive(name: str, value: Any) -> float:
    value = plain(value)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < math.inf:
        raise ValueError(f"{name} must be a number above 0; got {described(value)}.")
    return float(value)


def _tau(tau: Any, batch: int, device: torch.device) -> float | torch.Tensor:
    """A number above 0, or float64 [B]. A tensor on a GPU is not read back."""
    value = tau if isinstance(tau, torch.Tensor) else plain(tau)  # a 0-d tensor may carry a gradient
    if not isinstance(value, torch.Tensor):
        return _positive("tau", value)
    if not value.is_floating_point() or value.shape not in ((batch,), ()):
        raise ValueError(
            f"tau must be a number above 0, or one for each row: a list or a float tensor of shape [{batch}]; got {described(tau)}."
        )
    if value.device.type == "cpu" and not bool(((value > 0) & (value < math.inf)).all()):
        raise ValueError(f"tau must be above 0 in every row; got {value.detach().min().item():g}.")
    return value.to(device).double().expand(batch)


def _soft_rows(soft_rows: Any, batch: int, device: torch.device) -> torch.Tensor | None:
    if soft_rows is None:
        return None
    flags = soft_rows
    if isinstance(soft_rows, (list, tuple, np.ndarray)) and all(
        isinstance(flag, (bool, np.bool_)) for flag in soft_rows
    ):
        flags = torch.tensor([bool(flag) for flag in soft_rows], dtype=torch.bool, device="cpu")
    if not isinstance(flags, torch.Tensor) or flags.dtype != torch.bool or flags.shape != (batch,):
        raise ValueError(f"soft_rows must be a bool tensor of shape [{batch}]; got {described(soft_rows)}.")
    return flags.to(device).contiguous()


def _each(soft: SoftTokens, change: Callable[[torch.Tensor], torch.Tensor]) -> SoftTokens:
    values: list[Any] = [getattr(soft, field.name) for field in fields(soft)]
    values = [change(value) if isinstance(value, torch.Tensor) else value for value in values]
    return SoftTokens(*values)
