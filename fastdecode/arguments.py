"""Every check of an argument, except those of a rule's parameters (rules.py) and of plans (plan.py).

An error is one sentence: what was expected, what was passed, and what to do. It is raised before anything is written.
"""

from __future__ import annotations

import difflib
import inspect
import math
import numbers
import sys
import warnings
from collections.abc import Callable, Sequence
from types import FrameType
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np
import torch

from .record import EMPTY, NAN, STATISTICS, Draw, Wanted

if TYPE_CHECKING:
    from .plan import Plan

SEED, STEP, STREAM = (-(2**63), 2**64), (0, 2**32), (0, 2**40)  # each [low, high)

_DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def described(value: Any) -> str:
    """`value` for the end of a message: on one line, and short."""
    if isinstance(value, torch.Tensor):
        return f"a {value.dtype} tensor of shape {list(value.shape)}"
    if isinstance(value, np.ndarray):
        return f"a numpy array of {value.dtype}, shape {list(value.shape)}"
    shown = " ".join(repr(value).split())
    return shown if len(shown) <= 100 else shown[:97] + "..."


def traced(rows: torch.Tensor) -> bool:
    """Does torch record operations (compile, export, fake tensors)? Then the registered operators are called."""
    return torch.compiler.is_compiling() or type(rows) not in (torch.Tensor, torch.nn.Parameter)


# ---- logits ----------------------------------------------------------------------------------------------------------


def rows(logits: Any, exact: bool = False) -> torch.Tensor:
    """[B, V] with unit inner stride; `exact`: also float64, with any stride."""
    if not isinstance(logits, torch.Tensor):
        raise TypeError(f"logits must be a torch.Tensor or a numpy array; got {type(logits).__name__}.")
    wide = exact and logits.dtype == torch.float64
    if logits.dtype not in _DTYPES and not wide:
        floats = "float32, float16, bfloat16 or float64" if exact else "float32, float16 or bfloat16"
        raise TypeError(f"logits must be {floats}; got {logits.dtype}: convert them with .float().")
    if logits.ndim not in (1, 2) or logits.shape[-1] == 0:
        remedy = ": logits[:, -1] is the last position of each sequence" if logits.ndim == 3 else ""
        raise ValueError(f"logits must be [B, V] or [V] with V >= 1; got shape {list(logits.shape)}{remedy}.")
    x = logits if logits.ndim == 2 else logits.unsqueeze(0)
    return x if wide or x.is_contiguous() or x.stride(1) == 1 or x.shape[1] == 1 else x.contiguous()


def from_numpy(name: str, array: Any) -> torch.Tensor:
    """A tensor on the array's memory; a copy of logits that torch cannot view."""
    if not isinstance(array, np.ndarray):
        raise TypeError(f"{name} must be a numpy array where logits are one; got {type(array).__name__}.")
    if array.dtype not in (np.float32, np.float16):
        remedy = "np.empty_like(logits) makes one" if name == "out" else f"convert with {name}.astype(np.float32)"
        raise TypeError(f"{name} must be a float32 or float16 numpy array; got {array.dtype}: {remedy}.")
    if not array.flags.writeable or any(stride < 0 or stride % array.itemsize for stride in array.strides):
        if name == "out":
            raise ValueError("out must be a writeable numpy array with ordinary strides; pass a fresh array.")
        array = array.copy()
    return torch.from_numpy(array)


unseen_calls = 3  # the first calls of a process check whether logits are probabilities; later calls pay nothing for it


def look_for_probabilities(rows: torch.Tensor) -> None:
    """Warn, once in a process, if its first logits are probabilities: their softmax is nearly flat, and nothing else would show it."""
    global unseen_calls
    unseen_calls -= 1
    if rows.device.type != "cpu" or rows.shape[1] == 1 or not len(rows) or bool((rows < 0).any()):
        return
    sums = rows.detach().double().sum(1)
    if bool(((sums - 1).abs() < 2**-9).all()):  # float16 and bfloat16 round each term
        unseen_calls = 0
        depth = 1
        frame: FrameType | None = sys._getframe()
        while frame is not None and frame.f_globals.get("__name__", "").split(".")[0] == __package__:
            depth, frame = depth + 1, frame.f_back
        warnings.warn(
            "logits should be scores before the softmax, and these look like probabilities (none is negative, and each row "
            "sums to 1): pass the model's logits, or probabilities.log().",
            stacklevel=depth,
        )


# ---- plans -----------------------------------------------------------------------------------------------------------


def cuts(plan: Plan, rows: torch.Tensor) -> torch.Tensor:
    """[B or 1, number of cuts, number of fields]"""
    if plan.rows is not None and plan.rows != rows.shape[0]:
        raise ValueError(
            f"the plan's per-row parameters must have one value per row of logits ({rows.shape[0]}); got {plan.rows}."
        )
    return plan.packed(rows.device)


def cuts_at(plan: Plan, temperatures: Any, rows: torch.Tensor) -> torch.Tensor:
    """[B or 1, T, number of cuts, number of fields]"""
    cuts(plan, rows)  # its message refers to the plan as the caller passed it
    batch, device = rows.shape[0], rows.device
    if isinstance(temperatures, np.ndarray):
        temperatures = torch.from_numpy(temperatures)
    if isinstance(temperatures, torch.Tensor) and temperatures.shape[:-1] == (batch,) and temperatures.numel():
        return plan.packed_at(temperatures, device)
    values = temperatures.tolist() if isinstance(temperatures, torch.Tensor) else temperatures
    if isinstance(values, Sequence) and len(values) and _are_numbers(values):
        return plan.packed_at(tuple(values), device)
    raise ValueError(
        f"temperatures must hold one or more numbers >= 0, [T] or for each row [{batch}, T]; got {described(temperatures)}."
    )


def _are_numbers(values: Sequence[Any]) -> bool:
    # The usual types first: isinstance with an abstract class is slow.
    return {*map(type, values)} <= {float, int} or all(isinstance(t, numbers.Real) for t in values)


# ---- the coordinates of a draw ---------------------------------------------------------------------------------------


def draw(rows: torch.Tensor, seed: Any, step: Any, streams: Any, num_samples: int | None, limit: int | None) -> Draw:
    (batch, vocab), device = rows.shape, rows.device
    return Draw(
        _fresh_seed(rows) if seed is None else coordinate("seed", seed, batch, SEED, device),
        coordinate("step", step, batch, STEP, device),
        None if streams is None else _streams(streams, batch, device),
        1 if num_samples is None else count("num_samples", num_samples, 1, 2**16),
        vocab if limit is None else count("vocab_limit", limit, 1, vocab),
        num_samples is None,
    )


def count(name: str, value: Any, low: int, high: int) -> int:
    if not isinstance(value, numbers.Integral) or isinstance(value, bool) or not low <= int(value) <= high:
        raise ValueError(f"{name} must be a whole number in [{low}, {high}]; got {described(value)}.")
    return int(value)


def coordinate(
    name: str, value: Any, batch: int | None, interval: tuple[int, int], device: torch.device
) -> int | torch.Tensor:
    """A number, reduced to a signed 64-bit one, or int64 [B] on `device`; without a batch, of any length.

    A tensor on a GPU is not read back to check its range: that would cost a device synchronisation.
    """
    low, high = interval
    if type(value) is int and low <= value < 2**63 and value < high:  # the usual case, without slow checks
        return value
    if isinstance(value, numbers.Integral) and not isinstance(value, bool) and low <= int(value) < high:
        return _signed(int(value))
    column = _column(value)
    if column is None or (column.ndim > 1 if batch is None else column.shape not in ((batch,), (1,), ())):
        raise ValueError(f"{_expected(name, batch, low, high)}; got {described(value)}{_remedy(name, value)}.")
    least = _outside(value, column, low, high)
    if least is not None:
        kind = (
            "tensor" if isinstance(value, torch.Tensor) else "numpy array" if isinstance(value, np.ndarray) else "list"
        )
        raise ValueError(f"{_expected(name, batch, low, high)}; got a {kind} with {least}{_remedy(name, least)}.")
    return column.to(device) if batch is None else column.to(device).expand(batch)


def _signed(number: int) -> int:
    return number - 2**64 if number >= 2**63 else number


def _column(value: Any) -> torch.Tensor | None:
    """An int64 tensor of whole numbers, modulo 2^64; None if they are not whole numbers."""
    if isinstance(value, torch.Tensor):
        return value if value.dtype == torch.int64 else None
    if isinstance(value, np.ndarray):
        return torch.from_numpy(value.astype(np.int64)) if value.dtype.kind in "iu" else None
    if isinstance(value, (list, tuple)) and all(
        isinstance(n, numbers.Integral) and not isinstance(n, bool) for n in value
    ):
        whole = [int(n) % 2**64 for n in value]
        return torch.tensor([_signed(n) for n in whole], dtype=torch.int64, device="cpu")
    return None


def _outside(value: Any, column: torch.Tensor, low: int, high: int) -> int | None:
    """A number outside [low, high), or None."""
    if isinstance(value, (list, tuple)):
        return next((int(n) for n in value if not low <= int(n) < high), None)
    if (low, high) == SEED or not column.numel() or column.device.type != "cpu" or traced(column):
        return None
    least, largest = map(int, torch.aminmax(column))  # two numbers: much faster than a comparison for each row
    if low <= least and largest < high:
        return None
    worst = least if least < low else largest
    return worst % 2**64 if isinstance(value, np.ndarray) and value.dtype == np.uint64 else worst


def _expected(name: str, batch: int | None, low: int, high: int) -> str:
    number = "a 64-bit whole number" if (low, high) == SEED else f"a whole number in [{low}, {high})"
    each = "" if batch is None else f" of shape [{batch}]"
    return f"{name} must be {number}, or one for each row: a list or an int64 tensor{each}"


def _remedy(name: str, value: Any) -> str:
    if name == "streams" and isinstance(value, (int, str, bytes, list, tuple)):
        return ": seed, streams = fastdecode.seed_and_streams(seed, ids) takes ids of 64 bits, and texts"
    return ""


def _streams(streams: Any, batch: int, device: torch.device) -> torch.Tensor:
    checked = coordinate("streams", streams, batch, STREAM, device)
    if not isinstance(checked, torch.Tensor):
        checked = torch.full((batch,), checked, device=device)
    return checked


def _fresh_seed(rows: torch.Tensor) -> int | torch.Tensor:
    drawn = torch.randint(-(2**63), 2**63 - 1, (1,), device="cpu")
    return drawn.to(rows.device).expand(rows.shape[0]) if traced(rows) else int(drawn)


# ---- statistics and outputs ------------------------------------------------------------------------------------------

NOTHING = Wanted()


def wanted(stats: Any, top_logprobs: int, logprobs_of: Any, rows: torch.Tensor, limit: int) -> Wanted:
    names = stats
    if isinstance(stats, (bool, str)) or stats is None:
        names = STATISTICS if stats is True else (stats,) if stats else ()
    known = isinstance(names, (tuple, list, set, frozenset))
    unknown = [name for name in names if name not in STATISTICS] if known else [stats]
    if unknown:
        raise ValueError(f"stats must be True, False or some of {', '.join(STATISTICS)}; got {described(unknown[0])}.")
    top = count("top_logprobs", top_logprobs, 0, limit)
    if logprobs_of is not None:
        logprobs_of = _ids("logprobs_of", logprobs_of, rows, limit)
    return Wanted(frozenset(names), top, logprobs_of)


def _ids(name: str, ids: Any, rows: torch.Tensor, limit: int) -> torch.Tensor:
    batch = rows.shape[0]
    if isinstance(ids, np.ndarray):
        ids = torch.from_numpy(ids)
    if not isinstance(ids, torch.Tensor) or ids.dtype != torch.int64:
        raise TypeError(f"{name} must be an int64 tensor; got {getattr(ids, 'dtype', type(ids).__name__)}.")
    ids = ids.unsqueeze(0) if ids.ndim == 1 and batch == 1 else ids
    if ids.ndim != 2 or ids.shape[0] != batch:
        raise ValueError(f"{name} must be [B, n] with B = {batch}; got shape {list(ids.shape)}.")
    ids = ids.to(rows.device).contiguous()
    if ids.device.type == "cpu" and not traced(rows) and bool(((ids < 0) | (ids >= limit)).any()):
        raise ValueError(f"{name} must hold token ids in [0, {limit}); got one outside.")
    return ids


def check_out(out: Any, logits: torch.Tensor) -> None:
    """Threads write the rows of `out`: its elements must have distinct addresses, and none of them that of another logit."""
    if not isinstance(out, torch.Tensor):
        raise TypeError(f"out must be a torch.Tensor; got {type(out).__name__}.")
    if (out.shape, out.dtype, out.device) != (logits.shape, logits.dtype, logits.device):
        expected = f"{logits.dtype} {list(logits.shape)} on {logits.device}"
        raise ValueError(f"out must be like logits, {expected}; got {out.dtype} {list(out.shape)} on {out.device}.")
    if torch.is_grad_enabled() and logits.requires_grad:
        raise ValueError("out cannot be used with logits that require a gradient; leave it out, or detach the logits.")
    if torch.is_grad_enabled() and out.requires_grad:
        raise ValueError("out must not require a gradient, as writing into it is not recorded; pass out.detach().")
    if traced(logits) or out.device.type == "meta" or not out.numel():
        return
    if _meets_itself(out):
        raise ValueError(
            f"out must have a place of its own for each element; got strides {list(out.stride())} for shape "
            f"{list(out.shape)}: pass out.clone()."
        )
    if not _is_same_memory(out, logits) and _share_memory(out, logits):
        raise ValueError(
            "out must be the very memory of logits, or none of it; got a tensor that overlaps logits in part: pass "
            "torch.empty_like(logits), or out=logits."
        )


def _meets_itself(x: torch.Tensor) -> bool:
    """i s + j t is the same for two elements (i, j) of [B, V] if t / gcd rows lie as far apart as s / gcd columns."""
    if x.is_contiguous():
        return False
    (n, s), (m, t) = ((1, 0), *zip(x.shape, x.stride()))[-2:]
    common = math.gcd(s, t) or 1
    return (n > 1 and s == 0) or (m > 1 and t == 0) or (0 < t // common < n and 0 < s // common < m)


def _is_same_memory(a: torch.Tensor, b: torch.Tensor) -> bool:
    strides = zip(a.shape, a.stride(), b.stride())
    return a.data_ptr() == b.data_ptr() and all(s == t or n == 1 for n, s, t in strides)


def _share_memory(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Exactly: windows of one buffer may interleave without touching."""
    most_work = 10**7  # of the search for a common address; if it ends without an answer, assume that there is one
    try:
        return np.shares_memory(_Memory(a), _Memory(b), max_work=most_work)  # type: ignore[arg-type]  # numpy's stub knows two numbers
    except getattr(np, "exceptions", np).TooHardError:  # numpy 1 has it at the top level
        return True


class _Memory:
    """The memory of a tensor on any device, described to numpy, which looks at addresses alone."""

    def __init__(self, x: torch.Tensor):
        size = x.element_size()
        self.__array_interface__ = {
            "data": (x.data_ptr(), True),
            "shape": tuple(x.shape),
            "strides": tuple(stride * size for stride in x.stride()),
            "typestr": f"|V{size}",
            "version": 3,
        }


# ---- the rest --------------------------------------------------------------------------------------------------------


def refuse_unknown(function: Callable[..., Any], unknown: dict[str, Any]) -> NoReturn:
    """Raises for arguments that the function does not have. The message turns rules among them into a plan."""
    from .rules import RULES

    name = function.__name__
    rules = [rule.__name__ for rule in RULES if rule.__name__ in unknown]
    if rules:
        made = ", ".join(f"fastdecode.{rule}({described(unknown[rule])})" for rule in rules)
        got = ", ".join(f"{rule}=" for rule in rules)
        raise TypeError(f"{name}() takes rules as a plan; got {got}: pass plan=fastdecode.plan({made}).")
    wrong = next(iter(unknown))
    known = [p for p in inspect.signature(function).parameters if p != "unknown"]
    close = difflib.get_close_matches(wrong, known, n=1)
    remedy = f"pass {close[0]}= instead" if close else f"it takes {', '.join(known)}"
    raise TypeError(f"{name}() has no argument {wrong}=: {remedy}.")


def raise_if_flagged(status: torch.Tensor) -> None:
    flagged = status.nonzero().flatten().tolist()
    if flagged:
        named = [f"{row} ({'NaN' if int(status[row]) == NAN else 'all -inf'})" for row in flagged[:8]]
        more = f" and {len(flagged) - 8} more" if len(flagged) > 8 else ""
        raise ValueError(
            f"every row of logits must hold a finite logit and no NaN; rows that do not: {', '.join(named)}{more}."
        )


assert EMPTY == 2 and NAN == 1  # the two codes the message above tells apart
