"""Every sampling rule, once: a rule is a short list of cuts, or a temperature.

A *cut* looks at the survivors of the cuts before it (renormalised) and narrows an interval of logits. With
`d = (x - max) / T` over the survivors, `lnZ = ln sum exp(d)`, `H` their entropy in nats, `sd` their sample standard
deviation (of x / T) and `p2 = sum p^2`, there are two kinds:

    floor    keep d >= w_lse * lnZ + w_sd * sd + w_p2 * ln p2 + min(offset, offset_h - H)
    prefix   walk the tokens in an `order` (by logit, or by typicality |-ln p - H|), adding up a `measure`,
             and stop where it meets the `need`

The maximum (for a typicality prefix: the most typical token) always survives, and so do all tokens that tie with it:
tokens with exactly equal logits stay or go together. A need or a floor that is met to within `SLACK` counts as met, so
that prefixes which are exact on paper (0.5 + 0.3 against 0.8) do not depend on the last bit of a sum.

The engines run these records and never see a rule's name. To add a rule, write one function here and one row in
`tests/support/cases.py`.
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal, NoReturn, get_args

import numpy as np
import torch

from .arguments import described

FLOOR, PREFIX, DRAW = 0, 1, 2  # kind; DRAW closes a packed plan and holds the temperature of the draw alone
BY_LOGIT, BY_TYPICALITY = 0, 1  # order
COUNT, MASS, SURPRISAL, ENTROPY = 0, 1, 2, 3  # measure
STOP_AFTER, STOP_BEFORE = 0, 1  # is the token that meets the need kept?

SLACK = 1e-6  # one part in a million: the rounding of one float32 logit of ordinary size
CERTAIN = 1e-10  # nats: below this entropy, all tokens but the largest hold less than 4e-12 of the mass: no noise can make them win
COLDEST, HOTTEST = 2.0**-126, 2.0**120  # temperatures below the first act as 0, above the second as the second

FLOAT32_MAX = torch.finfo(torch.float32).max

# Many programs mask a logit with the lowest number of its type instead of -inf, and float32 logits may have been bfloat16 then. A
# logit at or below these (of a float16 row, of any other) counts as masked where logits themselves are added up.
MASKED_FLOAT16, MASKED = torch.finfo(torch.float16).min, torch.finfo(torch.bfloat16).min

Parameter = float | torch.Tensor  # in a cut
Values = (  # of a rule's parameter, as a caller may give them: one number, or one for each row
    float | np.floating[Any] | np.integer[Any] | Sequence[float] | np.ndarray[Any, Any] | torch.Tensor
)
Variant = Literal["paper", "hf"]  # of top_h


@dataclass(frozen=True, eq=False)
class Cut:
    """One narrowing of the survivors; the same fields, in the same order, as `struct Cut` in csrc/cut.h.

    The four fields that give the cut its shape are plain numbers; the others are numbers or [B] float32 tensors.
    """

    kind: int
    order: int = BY_LOGIT
    measure: int = COUNT
    stop: int = STOP_AFTER
    temperature: Parameter = 1.0  # filled in by the plan: the product of the temperatures before this cut
    need: Parameter = math.inf  # tokens, share of the mass, or share of the survivors' entropy; inf: off
    within: Parameter = math.inf  # a prefix measures and keeps at most the `within` largest logits
    keep: Parameter = 1.0  # the smallest number of tokens to keep (all survivors, if fewer)
    w_lse: Parameter = 0.0
    w_sd: Parameter = 0.0
    w_p2: Parameter = 0.0
    offset: Parameter = 0.0  # nats; -inf: off
    offset_h: Parameter = math.inf  # nats; inf: the floor does not look at the entropy

    def is_off(self) -> bool:
        """True if this cut keeps everything in every row."""
        switch, off = (self.offset, -math.inf) if self.kind == FLOOR else (self.need, math.inf)
        unlimited = self.kind == FLOOR or _is(self.within, math.inf)
        return unlimited and _is(switch, off)


FIELDS = tuple(field.name for field in fields(Cut))


@dataclass(frozen=True, eq=False)
class Rule:
    """A name and arguments for `repr`, and their meaning: cuts, or one temperature.

    Rules are equal if they have the same name, options and values. Comparing values for each row reads them back from a GPU.
    """

    name: str
    arguments: tuple[Any, ...]
    options: tuple[Any, ...] = ()
    cuts: tuple[Cut, ...] = ()
    temperature: Parameter | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "arguments", tuple(map(plain, self.arguments)))

    def __repr__(self) -> str:
        shown = [_show(a) for a in self.arguments] + [f"{k}={_show(v)}" for k, v in self.options]
        return f"{self.name}({', '.join(shown)})"

    def _values(self) -> list[Parameter | None]:
        return [self.temperature, *(value for cut in self.cuts for value in vars(cut).values())]

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Rule):
            return NotImplemented
        ours, theirs = self._values(), other._values()
        alike = (self.name, self.options, len(ours)) == (other.name, other.options, len(theirs))
        return alike and all(map(_equal, ours, theirs))

    def __hash__(self) -> int:
        values = [len(value) if isinstance(value, torch.Tensor) else value for value in self._values()]
        return hash((self.name, self.options, *values))

    def __call__(self, *_: object, **__: object) -> NoReturn:
        """Raises: a rule is not a function of logits. The message names the functions that are."""
        raise TypeError(
            "a rule cannot be called: call fastdecode.truncate(logits, plan) or fastdecode.sample(logits, plan); in "
            "logits_processor=[...], pass fastdecode.hf.FusedLogitsProcessor(fastdecode.plan(rule))."
        )


def temperature(t: Values) -> Rule:
    """Divide the logits by `t` from here on.

    Args:
        t: in [0, 3.4e38], or one for each row. 0 makes the row greedy: its largest surviving logit, lowest id on ties, no noise.
            So does a temperature (the product, if there are several) below 2^-126 = 1.2e-38, whose reciprocal float32
            cannot hold; above 2^120 = 1.3e36 it acts as 2^120.
    """
    return Rule("temperature", (t,), temperature=_checked("temperature", t, 0.0, FLOAT32_MAX, "[]"))


def top_k(k: Values, min_tokens_to_keep: int = 1) -> Rule:
    """Keep the `k` largest logits, and every token that ties with the k-th.

    So `top_k(1)` keeps every token that ties for the maximum, and draws among them. `temperature(0)` is greedy: it takes the
    lowest id of them.

    Args:
        k: whole number >= 0, or one for each row; 0 switches the rule off.
        min_tokens_to_keep: the smallest number of tokens to keep.
    """
    need = _off_at(_checked("top_k", k, 0, math.inf, "[)", whole=True, off=0), 0.0, math.inf)
    cut = Cut(PREFIX, measure=COUNT, need=need, keep=_keep(min_tokens_to_keep))
    return Rule("top_k", (k,), _option(min_tokens_to_keep), (cut,))


def top_p(p: Values, min_tokens_to_keep: int = 1) -> Rule:
    """Keep the smallest set of most probable tokens whose mass reaches `p`; the token that crosses is kept (arXiv 1904.09751).

    Args:
        p: in (0, 1], or one for each row; 1 switches the rule off.
        min_tokens_to_keep: the smallest number of tokens to keep.
    """
    need = _off_at(_checked("top_p", p, 0.0, 1.0, "(]", off=1), 1.0, math.inf)
    cut = Cut(PREFIX, measure=MASS, need=need, keep=_keep(min_tokens_to_keep))
    return Rule("top_p", (p,), _option(min_tokens_to_keep), (cut,))


def min_p(p: Values, min_tokens_to_keep: int = 1) -> Rule:
    """Keep tokens at least `p` times as probable as the most probable one (arXiv 2407.01082).

    Args:
        p: in [0, 1], or one for each row; 0 switches the rule off. Usual values: 0.05 to 0.1.
        min_tokens_to_keep: the smallest number of tokens to keep.
    """
    offset = _log(_checked("min_p", p, 0.0, 1.0, "[]", off=0))
    return Rule(
        "min_p", (p,), _option(min_tokens_to_keep), (Cut(FLOOR, offset=offset, keep=_keep(min_tokens_to_keep)),)
    )


def typical_p(mass: Values, min_tokens_to_keep: int = 1) -> Rule:
    """Locally typical sampling: keep the tokens whose surprisal is nearest to the entropy until their mass reaches `mass`.

    The token that crosses is kept; the most probable token may go (arXiv 2202.00666).

    Args:
        mass: in (0, 1], or one for each row; 1 switches the rule off.
        min_tokens_to_keep: the smallest number of tokens to keep, the most typical ones.
    """
    need = _off_at(_checked("typical_p", mass, 0.0, 1.0, "(]", off=1), 1.0, math.inf)
    cut = Cut(PREFIX, order=BY_TYPICALITY, measure=MASS, need=need, keep=_keep(min_tokens_to_keep))
    return Rule("typical_p", (mass,), _option(min_tokens_to_keep), (cut,))


def top_h(alpha: Values, variant: Variant = "paper") -> Rule:
    """Top-H: keep the longest prefix of most probable tokens whose entropy stays within a share of the whole (arXiv 2509.02510).

    `variant="paper"`: H(q) <= alpha * H(p), with q the renormalised prefix and p all survivors.
    `variant="hf"`: transformers' rule: p is the 100 largest logits, renormalised, and the prefix is measured by its share
    of the sum -p ln p, without renormalising it. The two differ on most rows. The token that would exceed the bound is left
    out, and with it the tokens that tie with it; the largest logit always stays. It stays alone in a row whose entropy is
    below 1e-10: the others hold too little mass to be drawn.

    Args:
        alpha: in (0, 1], or one for each row. Usual value: 0.4. 1 switches the paper's rule off.
    """
    if variant not in get_args(Variant):
        raise ValueError(f"top_h's variant must be 'paper' or 'hf'; got {described(variant)}.")
    need = _checked("top_h", alpha, 0.0, 1.0, "(]", off=1 if variant == "paper" else None)
    if variant == "paper":
        cut = Cut(PREFIX, measure=ENTROPY, stop=STOP_BEFORE, need=_off_at(need, 1.0, math.inf))
    else:
        cut = Cut(PREFIX, measure=SURPRISAL, stop=STOP_BEFORE, need=need, within=100.0)
    return Rule("top_h", (alpha,), () if variant == "paper" else (("variant", variant),), (cut,))


def epsilon_cutoff(e: Values, min_tokens_to_keep: int = 1) -> Rule:
    """Keep tokens of probability at least `e` (arXiv 2210.15191).

    Args:
        e: in [0, 1), or one for each row; 0 switches the rule off. Usual values: 3e-4 to 9e-4.
        min_tokens_to_keep: the smallest number of tokens to keep.
    """
    offset = _log(_checked("epsilon_cutoff", e, 0.0, 1.0, "[)", off=0))
    cut = Cut(FLOOR, w_lse=1.0, offset=offset, keep=_keep(min_tokens_to_keep))
    return Rule("epsilon_cutoff", (e,), _option(min_tokens_to_keep), (cut,))


def eta_cutoff(e: Values, min_tokens_to_keep: int = 1) -> Rule:
    """Keep tokens of probability at least min(e, sqrt(e) * exp(-H)), H the entropy in nats (arXiv 2210.15191).

    Args:
        e: in [0, 1), or one for each row; 0 switches the rule off. Usual values: 3e-4 to 4e-3.
        min_tokens_to_keep: the smallest number of tokens to keep.
    """
    offset = _log(_checked("eta_cutoff", e, 0.0, 1.0, "[)", off=0))
    cut = Cut(FLOOR, w_lse=1.0, offset=offset, offset_h=offset / 2, keep=_keep(min_tokens_to_keep))
    return Rule("eta_cutoff", (e,), _option(min_tokens_to_keep), (cut,))


def top_n_sigma(n: Values) -> Rule:
    """Keep logits within `n` standard deviations of the largest (arXiv 2411.07641).

    The standard deviation is the sample one (n - 1) over the survivors' finite logits, so a mask of -inf does not switch the
    rule off. Nor does a mask of the lowest number of the logits' type (of bfloat16, for float32): such logits are not counted,
    unless all of them are.

    Args:
        n: number > 0, or one for each row; inf switches the rule off. Usual value: 1.
    """
    checked = _checked("top_n_sigma", n, 0.0, math.inf, "(]", off=math.inf)
    # inf * 0 would be NaN in a row of equal logits, so the offset switches the rule off, as in other floors.
    cut = Cut(FLOOR, w_sd=-_off_at(checked, math.inf, 0.0), offset=_where(checked, math.inf, -math.inf, 0.0))
    return Rule("top_n_sigma", (n,), cuts=(cut,))


def top_a(a: Values) -> Rule:
    """Keep tokens of probability at least `a` times the square of the largest probability.

    Args:
        a: in [0, 1], or one for each row; 0 switches the rule off. Usual value: 0.2.
    """
    return Rule("top_a", (a,), cuts=(Cut(FLOOR, w_lse=-1.0, offset=_log(_checked("top_a", a, 0.0, 1.0, "[]", off=0))),))


def p_less() -> Rule:
    """Keep tokens of probability at least sum p^2, the chance that two draws agree (arXiv 2509.23234). No parameter."""
    return Rule("p_less", (), cuts=(Cut(FLOOR, w_lse=1.0, w_p2=1.0),))


RULES = (temperature, top_h, top_k, top_p, min_p, typical_p, epsilon_cutoff, eta_cutoff, top_n_sigma, top_a, p_less)


# ---- parameters ----------------------------------------------------------------------------------------------------


def _checked(
    name: str, value: Any, low: float, high: float, ends: str, whole: bool = False, off: float | None = None
) -> Parameter:
    """`value` as a float or a [B] float32 tensor, inside the interval whose ends are open or closed as `ends` says. The value
    that switches the rule `off` is allowed even if it is infinite.

    A tensor on a GPU is not read back to check its range: that would cost a device synchronisation.
    """
    number = "a whole number" if whole else "a number"
    closed = "]" if off == math.inf else ")"
    interval = f"{ends[0]}{low:g}, {high:g}{ends[1]}" if high < math.inf else f"{ends[0]}{low:g}, inf{closed}"
    switch = "" if off is None else f" ({off:g} is off)"
    expected = f"{name} must be {number} in {interval}{switch}, or one for each row: a list, or a 1-D tensor or array"
    values = plain(value)
    checked: Parameter
    probe: torch.Tensor | None
    if isinstance(values, numbers.Real) and not isinstance(values, bool):
        number_given = _as_float(values)
        probe = torch.tensor([number_given], dtype=torch.float64, device="cpu")
        checked = math.inf if number_given > FLOAT32_MAX else number_given  # as the packed float32 has it
    elif (
        isinstance(values, torch.Tensor) and values.ndim == 1 and values.dtype != torch.bool and not values.is_complex()
    ):
        checked = values.detach().to(torch.float32, copy=True)
        probe = values.detach().double() if values.device.type == "cpu" else None
    else:
        raise ValueError(f"{expected}; got {described(value)}{_if_logits(value)}.")
    if probe is not None:
        inside = (probe >= low if ends[0] == "[" else probe > low) & (probe <= high if ends[1] == "]" else probe < high)
        inside &= torch.isfinite(probe) if off is None else torch.isfinite(probe) | (probe == off)
        if whole:
            inside &= probe == probe.round()
        if not bool(inside.all()):
            outside = probe[~inside][0].item()
            got = described(values) if isinstance(checked, float) else f"a {_kind(value)} with {outside:g}"
            raise ValueError(f"{expected}; got {got}.")
    return checked


def _as_float(value: Any) -> float:
    try:
        return float(value)
    except OverflowError:  # a whole number of 400 digits
        return math.inf if value > 0 else -math.inf


def plain(value: Any) -> Any:
    """A single number as a Python number, one number for each row as a tensor, anything else unchanged."""
    if isinstance(value, (torch.Tensor, np.ndarray, np.generic)) and value.ndim == 0:
        return value.item()
    if isinstance(value, np.ndarray) and value.ndim == 1 and value.dtype.kind in "iuf":
        return torch.from_numpy(value.astype(np.float64))
    if isinstance(value, (list, tuple)):
        values = [plain(each) for each in value]
        if all(isinstance(each, numbers.Real) and not isinstance(each, bool) for each in values):
            return torch.tensor([_as_float(each) for each in values], dtype=torch.float64, device="cpu")
    return value


def _kind(value: Any) -> str:
    return "tensor" if isinstance(value, torch.Tensor) else "numpy array" if isinstance(value, np.ndarray) else "list"


def _if_logits(value: Any) -> str:
    if isinstance(value, (torch.Tensor, np.ndarray)) and value.ndim > 1:
        return (
            ": to apply the rule to logits, call fastdecode.truncate(logits, plan) or fastdecode.sample(logits, plan)"
        )
    return ""


def _keep(min_tokens_to_keep: int) -> float:
    whole = isinstance(min_tokens_to_keep, numbers.Integral) and not isinstance(min_tokens_to_keep, bool)
    if not whole or min_tokens_to_keep < 1:
        raise ValueError(f"min_tokens_to_keep must be a whole number >= 1; got {described(min_tokens_to_keep)}.")
    return float(min_tokens_to_keep)


def _option(min_tokens_to_keep: int) -> tuple[tuple[str, int], ...]:
    return () if min_tokens_to_keep == 1 else (("min_tokens_to_keep", plain(min_tokens_to_keep)),)


def _log(p: Parameter) -> Parameter:
    if isinstance(p, torch.Tensor):
        return p.log()
    return math.log(p) if p > 0 else -math.inf


def _off_at(value: Parameter, off: float, then: float) -> Parameter:
    return _where(value, off, then, value)


def _where(value: Parameter, number: float, then: float, otherwise: Parameter) -> Parameter:
    """`then` where the value is this number, and elsewhere `otherwise`."""
    if isinstance(value, torch.Tensor):
        return torch.where(value == number, then, otherwise).to(value.dtype)
    return then if value == number else otherwise


def _equal(a: Parameter | None, b: Parameter | None) -> bool:
    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        return torch.equal(a.cpu(), b.cpu())
    return not isinstance(a, torch.Tensor) and not isinstance(b, torch.Tensor) and a == b


def _is(value: Parameter, number: float) -> bool:
    return not isinstance(value, torch.Tensor) and value == number


def _show(argument: Any) -> str:
    if isinstance(argument, torch.Tensor):
        return f"<{len(argument)} values>"
    return repr(argument)
