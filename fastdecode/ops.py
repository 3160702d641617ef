"""The public functions: check the arguments, choose an engine, call it. All errors about arguments are raised here."""

from __future__ import annotations

import functools
import math
import numbers
from collections.abc import Callable, Sequence
from typing import Any, overload

import numpy as np
import torch

from . import dispatch, library
from .plan import Plan, plan
from .record import EMPTY, NAN, STATISTICS, Draw, Sample, Wanted

_SOFTMAX = plan()
_DTYPES = (torch.float32, torch.float16, torch.bfloat16)


@overload
def truncate(
    logits: torch.Tensor,
    plan: Plan,
    *,
    out: torch.Tensor | None = None,
    filter_value: float = -math.inf,
    vocab_limit: int | None = None,
) -> torch.Tensor: ...
@overload
def truncate(
    logits: np.ndarray,
    plan: Plan,
    *,
    out: np.ndarray | None = None,
    filter_value: float = -math.inf,
    vocab_limit: int | None = None,
) -> np.ndarray: ...
def truncate(
    logits: torch.Tensor | np.ndarray,
    plan: Plan,
    *,
    out: torch.Tensor | np.ndarray | None = None,
    filter_value: float = -math.inf,
    vocab_limit: int | None = None,
) -> torch.Tensor | np.ndarray:
    """Masked logits: survivors of the plan hold x / T, all other tokens `filter_value`.

    Args:
        logits: [B, V] or [V]; float32, float16 or bfloat16, any row stride; numpy arrays are answered with numpy.
        plan: made with `fastdecode.plan`; per-row parameters must hold B values.
        out: where to write, same shape, dtype and device; `out=logits` works in place. Default: a new tensor.
        filter_value: what removed tokens hold.
        vocab_limit: ids >= vocab_limit are removed, whatever their logits are.

    Returns:
        `out`, or a tensor like `logits`. A row of temperature 0 keeps its largest logit, undivided. A row with a NaN comes
        back as x / T, so that the NaN stays visible.

    Raises:
        TypeError, ValueError: an argument is not as described; nothing was written.
    """
    if isinstance(logits, np.ndarray):
        target = None if out is None else _from_numpy("out", out)
        masked = _truncate(_from_numpy("logits", logits), plan, target, filter_value, vocab_limit)
        return masked.numpy() if out is None else out
    return _truncate(logits, plan, out, filter_value, vocab_limit)


def _truncate(logits: torch.Tensor, plan: Plan, out: Any, filter_value: float, vocab_limit: int | None) -> torch.Tensor:
    rows = _rows(logits)
    (batch, vocab), device = rows.shape, rows.device
    cuts = _cuts(plan, batch, device)
    limit = vocab if vocab_limit is None else _count("vocab_limit", vocab_limit, 1, vocab)
    if out is not None:
        _check_out(out, logits)
    if _traced(rows) or (rows.requires_grad and torch.is_grad_enabled()):
        masked = library.truncate(rows, cuts, float(filter_value), limit).view(logits.shape)
        return masked if out is None else out.copy_(masked)
    target = torch.empty_like(rows, memory_format=torch.contiguous_format) if out is None else out.view(rows.shape)
    direct = target if target.stride(-1) == 1 else torch.empty_like(rows)
    dispatch.engine_for(device).truncate(rows, cuts, direct, float(filter_value), limit)
    if direct is not target:
        target.copy_(direct)
    return target.view(logits.shape) if out is None else out


def sample(
    logits: torch.Tensor | np.ndarray,
    plan: Plan | None = None,
    *,
    seed: int | torch.Tensor | None = None,
    step: int | torch.Tensor = 0,
    streams: int | torch.Tensor | None = None,
    num_samples: int | None = None,
    vocab_limit: int | None = None,
    stats: bool | tuple[str, ...] = False,
    top_logprobs: int = 0,
    logprobs_of: torch.Tensor | None = None,
    check: bool = False,
) -> Sample:
    """Draw a token for each row from its survivors' renormalised distribution.

    The draw depends on (seed, step, stream, token id) alone: a row draws the same token alone, in any batch and on any
    device. Give each position of a sequence its own `step` and each sequence its own stream.

    Args:
        logits: [B, V] or [V]; float32, float16 or bfloat16, any row stride; numpy arrays are answered with numpy.
        plan: made with `fastdecode.plan`; None is the plain softmax.
        seed: 64-bit number, or int64 [B]. None draws one from torch's default generator, so `torch.manual_seed` rules it.
        step: decoding position in [0, 2^32), or int64 [B].
        streams: request id in [0, 2^40) for each row, int64 [B]. Default: 0 .. B-1.
        num_samples: draw so many tokens from each row, with replacement; tokens are then [B, num_samples].
        vocab_limit: ids >= vocab_limit do not exist (padded vocabularies).
        stats: True for all, or some of "raw_logprobs", "entropy", "kept_mass", "max_prob", "margin".
        top_logprobs: return the so many largest log-probabilities and their ids, at temperature 1 and before any rule.
        logprobs_of: int64 [B, n] (or [n] for logits [V]): return the log-probabilities of these ids, likewise.
        check: raise if a row cannot be sampled, instead of answering -1 for it. Costs a synchronisation on a GPU.

    Returns:
        A `Sample`; its docstring gives shapes and meanings.

    Raises:
        TypeError, ValueError: an argument is not as described.
        ValueError: `check=True` and a row holds a NaN or nothing that could be sampled; the message names the rows.
    """
    if isinstance(logits, np.ndarray):
        ids = torch.from_numpy(logprobs_of) if isinstance(logprobs_of, np.ndarray) else logprobs_of
        return _to_numpy(sample(
            _from_numpy("logits", logits), plan, seed=_tensor(seed), step=_tensor(step), streams=_tensor(streams),
            num_samples=num_samples, vocab_limit=vocab_limit, stats=stats, top_logprobs=top_logprobs, logprobs_of=ids, check=check,
        ))  # fmt: skip
    rows = _rows(logits)
    device = rows.device
    cuts = _cuts(_SOFTMAX if plan is None else plan, rows.shape[0], device)
    draw = _draw(rows, seed, step, streams, num_samples, vocab_limit)
    plain = stats is False and not top_logprobs and logprobs_of is None
    wanted = _NOTHING if plain else _wanted(stats, top_logprobs, logprobs_of, rows, draw.vocab_limit)
    if _traced(rows):
        found = library.sample(rows, cuts, draw, wanted)
    else:
        found = dispatch.engine_for(device).sample(rows.detach() if rows.requires_grad else rows, cuts, draw, wanted)
    if check:
        _raise_if_flagged(found["status"])
    if logits.ndim == 1:
        found = {name: value.squeeze(0) for name, value in found.items()}
    return Sample(**found)


def sample_temperatures(
    logits: torch.Tensor | np.ndarray,
    temperatures: Sequence[float] | torch.Tensor,
    plan: Plan | None = None,
    *,
    num_samples: int = 1,
    seed: int | torch.Tensor | None = None,
    step: int | torch.Tensor = 0,
    streams: int | torch.Tensor | None = None,
    vocab_limit: int | None = None,
    stats: bool | tuple[str, ...] = False,
    check: bool = False,
) -> Sample:
    """Draw tokens from each row at several temperatures, from one look at the row.

    At temperature t it draws what `sample(logits, plan(temperature(t), *rules), ...)` with the same seed, step, streams and
    num_samples draws: all temperatures share their noise, so their tokens differ because of the temperature alone. For
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
    if isinstance(logits, np.ndarray):
        return _to_numpy(sample_temperatures(
            _from_numpy("logits", logits), _tensor(temperatures), plan, num_samples=num_samples, seed=_tensor(seed),
            step=_tensor(step), streams=_tensor(streams), vocab_limit=vocab_limit, stats=stats, check=check,
        ))  # fmt: skip
    rows = _rows(logits)
    cuts = _cuts_at(_SOFTMAX if plan is None else plan, temperatures, len(rows), rows.device)
    draw = _draw(rows, seed, step, streams, 1 if num_samples is None else num_samples, vocab_limit)
    wanted = _NOTHING if stats is False else _wanted(stats, 0, None, rows, draw.vocab_limit)
    if _traced(rows):
        found = _one_by_one(library.sample, rows, cuts, draw, wanted)
    else:
        engine = dispatch.engine_for(rows.device)
        together = getattr(engine, "sample_temperatures", None) or functools.partial(_one_by_one, engine.sample)
        found = together(rows.detach() if rows.requires_grad else rows, cuts, draw, wanted)
    if check:
        _raise_if_flagged(found["status"][:, 0])
    if logits.ndim == 1:
        found = {name: value.squeeze(0) for name, value in found.items()}
    return Sample(**found)


def _one_by_one(
    sample_rows: Callable[..., Any], rows: torch.Tensor, cuts: torch.Tensor, draw: Draw, wanted: Wanted
) -> dict[str, torch.Tensor]:
    """`sample_temperatures` of an engine that has none: it reads the rows once for each temperature."""
    found = [sample_rows(rows, each.contiguous(), draw, wanted) for each in cuts.unbind(1)]
    return {name: torch.stack([one[name] for one in found], dim=1) for name in found[0]}


# ---- checks --------------------------------------------------------------------------------------------------------


def _traced(rows: torch.Tensor) -> bool:
    """True where torch records operations (compile, export, fake tensors): there the registered operators are called."""
    return torch.compiler.is_compiling() or type(rows) not in (torch.Tensor, torch.nn.Parameter)


def _rows(logits: torch.Tensor) -> torch.Tensor:
    if not isinstance(logits, torch.Tensor):
        raise TypeError(f"logits must be a torch.Tensor or a numpy array; got {type(logits).__name__}.")
    if logits.dtype not in _DTYPES:
        raise TypeError(f"logits must be float32, float16 or bfloat16; got {logits.dtype}: convert them with .float().")
    if logits.ndim not in (1, 2) or logits.shape[-1] == 0:
        raise ValueError(f"logits must be [B, V] or [V] with V >= 1; got shape {list(logits.shape)}.")
    rows = logits if logits.ndim == 2 else logits.unsqueeze(0)
    return rows if rows.is_contiguous() or rows.stride(1) == 1 or rows.shape[1] == 1 else rows.contiguous()


def _from_numpy(name: str, array: Any) -> torch.Tensor:
    if not isinstance(array, np.ndarray) or array.dtype not in (np.float32, np.float16):
        raise TypeError(
            f"{name} must be a float32 or float16 numpy array; got {getattr(array, 'dtype', type(array).__name__)}."
        )
    if not array.flags.writeable or any(stride < 0 or stride % array.itemsize for stride in array.strides):
        if name == "out":
            raise ValueError("out must be a writeable numpy array with ordinary strides; pass a fresh array.")
        array = array.copy()
    return torch.from_numpy(array)


def _to_numpy(answer: Sample) -> Sample:
    values: list[Any] = [getattr(answer, name) for name in Sample.__slots__]
    values = [None if value is None else value.numpy() for value in values]
    return Sample(*values)


def _tensor(value: Any) -> Any:
    return torch.from_numpy(value) if isinstance(value, np.ndarray) else value


def _cuts(plan: Plan, batch: int, device: torch.device) -> torch.Tensor:
    if not isinstance(plan, Plan):
        raise TypeError(f"plan must be made with fastdecode.plan(...); got {plan!r}.")
    if plan.rows is not None and plan.rows != batch:
        raise ValueError(
            f"the plan's per-row parameters must have one value per row of logits ({batch}); got {plan.rows}."
        )
    return plan.packed(device)


def _cuts_at(plan: Plan, temperatures: Any, batch: int, device: torch.device) -> torch.Tensor:
    """[B or 1, T, number of cuts, number of fields]"""
    _cuts(plan, batch, device)  # its message names the plan as it was given
    temperatures = _tensor(temperatures)
    if isinstance(temperatures, torch.Tensor) and temperatures.shape[:-1] == (batch,) and temperatures.numel():
        return plan.packed_at(temperatures, device)
    given = temperatures.tolist() if isinstance(temperatures, torch.Tensor) else temperatures
    if isinstance(given, Sequence) and len(given) and _are_numbers(given):
        return plan.packed_at(tuple(given), device)
    got = f"shape {list(temperatures.shape)}" if isinstance(temperatures, torch.Tensor) else repr(temperatures)
    raise ValueError(f"temperatures must hold one or more numbers >= 0, [T] or for each row [{batch}, T]; got {got}.")


def _are_numbers(given: Sequence[Any]) -> bool:
    # The usual types quickly: a number's abstract class takes its time to say yes.
    return {*map(type, given)} <= {float, int} or all(isinstance(t, numbers.Real) for t in given)


def _draw(
    rows: torch.Tensor, seed: Any, step: Any, streams: Any, num_samples: int | None, vocab_limit: int | None
) -> Draw:
    (batch, vocab), device = rows.shape, rows.device
    return Draw(
        _fresh_seed(rows) if seed is None else _coordinate("seed", seed, batch, -(2**63), 2**64, device),
        _coordinate("step", step, batch, 0, 2**32, device),
        None if streams is None else _streams(streams, batch, device),
        1 if num_samples is None else _count("num_samples", num_samples, 1, 2**16),
        vocab if vocab_limit is None else _count("vocab_limit", vocab_limit, 1, vocab),
        num_samples is None,
    )


def _count(name: str, value: int, low: int, high: int) -> int:
    if not isinstance(value, numbers.Integral) or isinstance(value, bool) or not low <= int(value) <= high:
        raise ValueError(f"{name} must be a whole number in [{low}, {high}]; got {value!r}.")
    return int(value)


def _coordinate(name: str, value: Any, batch: int, low: int, high: int, device: torch.device) -> int | torch.Tensor:
    """A number, reduced to a signed 64-bit one, or an int64 [B] tensor on `device`."""
    if type(value) is int and low <= value < 2**63 and value < high:  # the usual case, quickly
        return value
    if isinstance(value, numbers.Integral) and not isinstance(value, bool) and low <= int(value) < high:
        return int(value) - 2**64 if int(value) >= 2**63 else int(value)
    if isinstance(value, torch.Tensor) and value.dtype == torch.int64 and value.shape in ((batch,), (1,), ()):
        return value.to(device).expand(batch)
    got = f"{value.dtype} of shape {list(value.shape)}" if isinstance(value, torch.Tensor) else repr(value)
    raise ValueError(
        f"{name} must be a whole number in [{low}, {high}) or an int64 tensor of shape [{batch}]; got {got}."
    )


def _streams(streams: Any, batch: int, device: torch.device) -> torch.Tensor:
    checked = _coordinate("streams", streams, batch, 0, 2**40, device)
    if not isinstance(checked, torch.Tensor):
        checked = torch.full((batch,), checked, device=device)
    return checked


def _fresh_seed(rows: torch.Tensor) -> int | torch.Tensor:
    drawn = torch.randint(-(2**63), 2**63 - 1, (1,), device="cpu")
    return drawn.to(rows.device).expand(rows.shape[0]) if _traced(rows) else int(drawn)


def _wanted(stats: Any, top_logprobs: int, logprobs_of: Any, rows: torch.Tensor, limit: int) -> Wanted:
    names = STATISTICS if stats is True else (stats,) if isinstance(stats, str) else tuple(stats or ())
    unknown = [name for name in names if name not in STATISTICS]
    if unknown:
        raise ValueError(f"stats must be True, False or some of {', '.join(STATISTICS)}; got {unknown[0]!r}.")
    top = _count("top_logprobs", top_logprobs, 0, limit)
    if logprobs_of is not None:
        shape = list(rows.shape[:1])
        if not isinstance(logprobs_of, torch.Tensor) or logprobs_of.dtype != torch.int64:
            raise TypeError(
                f"logprobs_of must be an int64 tensor; got {getattr(logprobs_of, 'dtype', type(logprobs_of).__name__)}."
            )
        logprobs_of = logprobs_of.unsqueeze(0) if logprobs_of.ndim == 1 and shape == [1] else logprobs_of
        if logprobs_of.ndim != 2 or logprobs_of.shape[0] != shape[0]:
            raise ValueError(f"logprobs_of must be [B, n] with B = {shape[0]}; got shape {list(logprobs_of.shape)}.")
        logprobs_of = logprobs_of.to(rows.device).contiguous()
        if (
            logprobs_of.device.type == "cpu"
            and not _traced(rows)
            and bool(((logprobs_of < 0) | (logprobs_of >= limit)).any())
        ):
            raise ValueError(f"logprobs_of must hold token ids in [0, {limit}); got one outside.")
    return Wanted(frozenset(names), top, logprobs_of)


_NOTHING = Wanted()


def _check_out(out: torch.Tensor, logits: torch.Tensor) -> None:
    if not isinstance(out, torch.Tensor):
        raise TypeError(f"out must be a torch.Tensor; got {type(out).__name__}.")
    if (out.shape, out.dtype, out.device) != (logits.shape, logits.dtype, logits.device):
        expected = f"{logits.dtype} {list(logits.shape)} on {logits.device}"
        raise ValueError(f"out must be like logits, {expected}; got {out.dtype} {list(out.shape)} on {out.device}.")
    if logits.requires_grad and torch.is_grad_enabled():
        raise ValueError("out cannot be used with logits that require a gradient; leave it out, or detach the logits.")


def _raise_if_flagged(status: torch.Tensor) -> None:
    flagged = status.nonzero().flatten().tolist()
    if flagged:
        named = [f"{row} ({'NaN' if int(status[row]) == NAN else 'all -inf'})" for row in flagged[:8]]
        more = f" and {len(flagged) - 8} more" if len(flagged) > 8 else ""
        raise ValueError(
            f"every row of logits must hold a finite logit and no NaN; rows that do not: {', '.join(named)}{more}."
        )


assert EMPTY == 2 and NAN == 1  # the two codes the message above tells apart
