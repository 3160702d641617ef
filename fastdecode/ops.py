"""The public functions: check the arguments, choose an engine, call it. The checks are in arguments.py."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, TypeVar, overload

import numpy as np
import torch

from . import arguments, dispatch, torch_ops
from .plan import Plan, PlanLike, as_plan, plan
from .record import Sample, Statistics

_SOFTMAX = plan()

Array = np.ndarray[Any, Any]
Half = TypeVar("Half", np.float32, np.float16)
Coordinates = int | Sequence[int] | Array | torch.Tensor  # a number, or one for each row


@overload
def truncate(
    logits: torch.Tensor,
    plan: PlanLike,
    *,
    out: torch.Tensor | None = None,
    filter_value: float = -math.inf,
    vocab_limit: int | None = None,
) -> torch.Tensor: ...
@overload
def truncate(
    logits: np.ndarray[Any, np.dtype[Half]],
    plan: PlanLike,
    *,
    out: np.ndarray[Any, np.dtype[Half]] | None = None,
    filter_value: float = -math.inf,
    vocab_limit: int | None = None,
) -> np.ndarray[Any, np.dtype[Half]]: ...
def truncate(
    logits: torch.Tensor | Array,
    plan: PlanLike | None = None,
    *,
    out: torch.Tensor | Array | None = None,
    filter_value: float = -math.inf,
    vocab_limit: int | None = None,
    **unknown: Any,
) -> torch.Tensor | Array:
    """Masked logits: survivors of the plan hold x / T, all other tokens `filter_value`.

    Args:
        logits: [B, V] or [V]; float32, float16 or bfloat16, any row stride; for a numpy array the answer is one.
        plan: made with `fastdecode.plan`, or a rule, or a list of rules; per-row parameters must hold B values.
        out: the tensor to write, of the same shape, dtype and device; `out=logits` works in place. Its elements must not overlap,
            and it must not overlap logits in part. Default: a new tensor.
        filter_value: the value of removed tokens.
        vocab_limit: ids >= vocab_limit are removed.

    Returns:
        `out`, or a tensor like `logits`. A row of temperature 0 keeps its largest logit, undivided. A row with a NaN comes
        back as x / T, so that the NaN stays visible.

    Raises:
        TypeError, ValueError: an argument is not as described; nothing was written.
    """
    if unknown:
        arguments.refuse_unknown(truncate, unknown)
    if isinstance(logits, np.ndarray):
        target = None if out is None else arguments.from_numpy("out", out)
        masked = _truncate(arguments.from_numpy("logits", logits), plan, target, filter_value, vocab_limit)
        return masked.numpy() if out is None else out
    return _truncate(logits, plan, out, filter_value, vocab_limit)


def _truncate(logits: torch.Tensor, plan: Any, out: Any, filter_value: float, vocab_limit: int | None) -> torch.Tensor:
    rows = arguments.rows(logits)
    cuts = arguments.cuts(plan if type(plan) is Plan else as_plan(plan), rows)
    vocab = rows.shape[1]
    limit = vocab if vocab_limit is None else arguments.count("vocab_limit", vocab_limit, 1, vocab)
    if out is not None:
        arguments.check_out(out, logits)
    if arguments.traced(rows) or (rows.requires_grad and torch.is_grad_enabled()):
        masked = torch_ops.truncate(rows, cuts, float(filter_value), limit).view(logits.shape)
        return masked if out is None else out.copy_(masked)
    if arguments.unseen_calls:
        arguments.look_for_probabilities(rows)
    target = torch.empty_like(rows, memory_format=torch.contiguous_format) if out is None else out.view(rows.shape)
    direct = target if target.stride(-1) == 1 else torch.empty_like(rows)
    dispatch.engine_for(rows.device).truncate(rows, cuts, direct, float(filter_value), limit)
    if direct is not target:
        target.copy_(direct)
    return target.view(logits.shape) if out is None else out


@overload
def sample(
    logits: torch.Tensor,
    plan: PlanLike | None = None,
    *,
    seed: Coordinates | None = None,
    step: Coordinates = 0,
    streams: Coordinates | None = None,
    num_samples: int | None = None,
    vocab_limit: int | None = None,
    stats: Statistics = False,
    top_logprobs: int = 0,
    logprobs_of: torch.Tensor | Array | None = None,
    check: bool = False,
) -> Sample[torch.Tensor]: ...
@overload
def sample(
    logits: Array,
    plan: PlanLike | None = None,
    *,
    seed: Coordinates | None = None,
    step: Coordinates = 0,
    streams: Coordinates | None = None,
    num_samples: int | None = None,
    vocab_limit: int | None = None,
    stats: Statistics = False,
    top_logprobs: int = 0,
    logprobs_of: torch.Tensor | Array | None = None,
    check: bool = False,
) -> Sample[Array]: ...
def sample(
    logits: torch.Tensor | Array,
    plan: PlanLike | None = None,
    *,
    seed: Coordinates | None = None,
    step: Coordinates = 0,
    streams: Coordinates | None = None,
    num_samples: int | None = None,
    vocab_limit: int | None = None,
    stats: Statistics = False,
    top_logprobs: int = 0,
    logprobs_of: torch.Tensor | Array | None = None,
    check: bool = False,
    **unknown: Any,
) -> Sample[torch.Tensor] | Sample[Array]:
    """Draw a token for each row from its survivors' renormalised distribution.

    The draw depends on (seed, step, stream, token id) alone: a row draws the same token alone, in any batch and on any
    device. Give each position of a sequence its own `step` and each sequence its own stream.

    Args:
        logits: [B, V] or [V]; float32, float16 or bfloat16, any row stride; for a numpy array the answer is one.
        plan: made with `fastdecode.plan`, or a rule, or a list of rules; None is the plain softmax.
        seed: 64-bit number, or one for each row: a list, or int64 [B]. None draws one from torch's default generator, so
            `torch.manual_seed` controls it.
        step: decoding position in [0, 2^32), or one for each row.
        streams: request id in [0, 2^40), or one for each row. Default: 0 .. B-1. For ids of 64 bits, and for texts, see
            `fastdecode.seed_and_streams`.
        num_samples: number of tokens to draw from each row, with replacement; tokens are then [B, num_samples].
        vocab_limit: ids >= vocab_limit do not exist (padded vocabularies).
        stats: True for all, or some of "raw_logprobs", "entropy", "kept_mass", "max_prob", "margin".
        top_logprobs: number of largest log-probabilities to return, with their ids, at temperature 1 and before any rule.
        logprobs_of: int64 [B, n] (or [n] for logits [V]): return the log-probabilities of these ids, at temperature 1 and before any rule.
        check: raise if a row cannot be sampled, instead of returning -1 for it. Costs a synchronisation on a GPU.

    Returns:
        A `Sample`; its docstring gives shapes and meanings.

    Raises:
        TypeError, ValueError: an argument is not as described.
        ValueError: `check=True` and a row holds a NaN or nothing to sample; the message names the rows.
    """
    if unknown:
        arguments.refuse_unknown(sample, unknown)
    if isinstance(logits, np.ndarray):
        return _to_numpy(sample(
            arguments.from_numpy("logits", logits), plan, seed=seed, step=step, streams=streams, num_samples=num_samples,
            vocab_limit=vocab_limit, stats=stats, top_logprobs=top_logprobs, logprobs_of=logprobs_of, check=check,
        ))  # fmt: skip
    rows = arguments.rows(logits)
    chain = _SOFTMAX if plan is None else plan if type(plan) is Plan else as_plan(plan)
    cuts = arguments.cuts(chain, rows)
    draw = arguments.draw(rows, seed, step, streams, num_samples, vocab_limit)
    plain = stats is False and not top_logprobs and logprobs_of is None
    wanted = arguments.NOTHING if plain else arguments.wanted(stats, top_logprobs, logprobs_of, rows, draw.vocab_limit)
    if arguments.traced(rows):
        outputs = torch_ops.sample(rows, cuts, draw, wanted)
    else:
        if arguments.unseen_calls:
            arguments.look_for_probabilities(rows)
        outputs = dispatch.engine_for(rows.device).sample(
            rows.detach() if rows.requires_grad else rows, cuts, draw, wanted
        )
    if check:
        arguments.raise_if_flagged(outputs["status"])
    if logits.ndim == 1:
        outputs = {name: value.squeeze(0) for name, value in outputs.items()}
    return Sample(**outputs)


@overload
def sample_temperatures(
    logits: torch.Tensor,
    temperatures: Sequence[float] | Array | torch.Tensor,
    plan: PlanLike | None = None,
    *,
    num_samples: int = 1,
    seed: Coordinates | None = None,
    step: Coordinates = 0,
    streams: Coordinates | None = None,
    vocab_limit: int | None = None,
    stats: Statistics = False,
    check: bool = False,
) -> Sample[torch.Tensor]: ...
@overload
def sample_temperatures(
    logits: Array,
    temperatures: Sequence[float] | Array | torch.Tensor,
    plan: PlanLike | None = None,
    *,
    num_samples: int = 1,
    seed: Coordinates | None = None,
    step: Coordinates = 0,
    streams: Coordinates | None = None,
    vocab_limit: int | None = None,
    stats: Statistics = False,
    check: bool = False,
) -> Sample[Array]: ...
def sample_temperatures(
    logits: torch.Tensor | Array,
    temperatures: Sequence[float] | Array | torch.Tensor,
    plan: PlanLike | None = None,
    *,
    num_samples: int = 1,
    seed: Coordinates | None = None,
    step: Coordinates = 0,
    streams: Coordinates | None = None,
    vocab_limit: int | None = None,
    stats: Statistics = False,
    check: bool = False,
    **unknown: Any,
) -> Sample[torch.Tensor] | Sample[Array]:
    """Draw tokens from each row at several temperatures, with one read of the row.

    At temperature t it draws what `sample(logits, plan(temperature(t), *rules), ...)` with the same seed, step, streams and
    num_samples draws: all temperatures share their noise, so only the temperature makes their tokens differ. For
    independent draws (test-time scaling), repeat the rows with streams of their own and give the plan a temperature for each.

    Args:
        logits: as in `sample`.
        temperatures: T numbers >= 0, or a tensor [B, T] with those of each row. 0 is greedy.
        plan: the rules that follow the temperature; None is the plain softmax.
        num_samples: tokens at each temperature, with replacement.
        seed, step, streams, vocab_limit, stats, check: as in `sample`.

    Returns:
        A `Sample` with one dimension more: tokens, logprobs and raw_logprobs are [B, T, num_samples], the others [B, T].

    Raises:
        TypeError, ValueError: as in `sample`.
    """
    if unknown:
        arguments.refuse_unknown(sample_temperatures, unknown)
    if isinstance(logits, np.ndarray):
        return _to_numpy(sample_temperatures(
            arguments.from_numpy("logits", logits), temperatures, plan, num_samples=num_samples, seed=seed, step=step,
            streams=streams, vocab_limit=vocab_limit, stats=stats, check=check,
        ))  # fmt: skip
    rows = arguments.rows(logits)
    chain = _SOFTMAX if plan is None else as_plan(plan)
    cuts = arguments.cuts_at(chain, temperatures, rows)
    draw = arguments.draw(rows, seed, step, streams, 1 if num_samples is None else num_samples, vocab_limit)
    plain = stats is False
    wanted = arguments.NOTHING if plain else arguments.wanted(stats, 0, None, rows, draw.vocab_limit)
    if arguments.traced(rows):
        outputs = torch_ops.sample_temperatures(rows, cuts, draw, wanted)
    else:
        if arguments.unseen_calls:
            arguments.look_for_probabilities(rows)
        outputs = dispatch.engine_for(rows.device).sample_temperatures(
            rows.detach() if rows.requires_grad else rows, cuts, draw, wanted
        )
    if check:
        arguments.raise_if_flagged(outputs["status"][:, 0])
    if logits.ndim == 1:
        outputs = {name: value.squeeze(0) for name, value in outputs.items()}
    return Sample(**outputs)


def _to_numpy(answer: Sample[torch.Tensor]) -> Sample[Array]:
    values: list[Any] = [getattr(answer, name) for name in Sample.__slots__]
    values = [None if value is None else value.numpy() for value in values]
    return Sample(*values)
