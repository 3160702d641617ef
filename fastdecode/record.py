"""The inputs of an engine other than the logits and the plan, and its outputs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, Literal, get_args

import torch

if TYPE_CHECKING:
    from typing_extensions import TypeVar

    Array = TypeVar("Array", default=torch.Tensor)  # or a numpy array
else:
    from typing import TypeVar

    Array = TypeVar("Array")

# Sample.status
OK = 0
NAN = 1  # the row holds a NaN
EMPTY = 2  # the row has nothing to sample: every logit is -inf

Noise = Literal["none", "gumbel", "dirichlet", "multi"]  # of soft tokens
NOISES: tuple[Noise, ...] = get_args(Noise)  # the index of a name is its code in the engines

Statistic = Literal["raw_logprobs", "entropy", "kept_mass", "max_prob", "margin"]
STATISTICS: tuple[Statistic, ...] = get_args(Statistic)
Statistics = bool | Statistic | Sequence[Statistic]  # those that a caller wants: all, none, one or several


@dataclass(slots=True, eq=False)  # not frozen: a frozen one takes four times as long to make
class Draw:
    """The coordinates of the draws: each of seed, step, streams is one number for all rows or an int64 [B] tensor."""

    seed: int | torch.Tensor
    step: int | torch.Tensor
    streams: torch.Tensor | None  # None: 0 .. B-1
    num_samples: int
    vocab_limit: int
    flat: bool = False  # one sample: outputs of shape [B, num_samples] lose the second dimension

    def columns(self, batch: int, device: torch.device) -> list[torch.Tensor]:
        """seed, step and streams as int64 [B] tensors on `device`."""
        streams = torch.arange(batch, device=device) if self.streams is None else self.streams
        return [_as_int64(t).to(device).expand(batch) for t in (self.seed, self.step, streams)]


def drop_samples(outputs: dict[str, torch.Tensor], draw: Draw) -> dict[str, torch.Tensor]:
    """Outputs of an engine for [B, 1] samples, without the second dimension if `draw.flat`."""
    if draw.flat:
        for name in ("tokens", "logprobs", "raw_logprobs"):
            if name in outputs:
                outputs[name] = outputs[name].squeeze(1)
    return outputs


def sample_one_by_one(
    sample: Callable[..., dict[str, torch.Tensor]], logits: torch.Tensor, cuts: torch.Tensor, draw: Draw, wanted: Wanted
) -> dict[str, torch.Tensor]:
    """`sample_temperatures` by a call of `sample` for each temperature."""
    outputs = [sample(logits, each.contiguous(), draw, wanted) for each in cuts.unbind(1)]
    return {name: torch.stack([one[name] for one in outputs], dim=1) for name in outputs[0]}


def _as_int64(value: int | torch.Tensor) -> torch.Tensor:
    return value if isinstance(value, torch.Tensor) else torch.tensor([value], dtype=torch.int64, device="cpu")


@dataclass(slots=True, eq=False)  # not frozen: a frozen one takes four times as long to make
class Wanted:
    """The optional statistics to compute; the others cost nothing."""

    stats: frozenset[str] = frozenset()  # a subset of STATISTICS
    top_logprobs: int = 0
    logprobs_of: torch.Tensor | None = None  # int64 [B, n]
    ids_alone: bool = False  # top_ids are enough: an engine may leave top_logprobs out

    def fields(self) -> tuple[str, ...]:
        """The names of all tensors that `sample` of an engine returns, in the order of `Sample`."""
        names = ("tokens", "logprobs", "kept", "status", *(s for s in STATISTICS if s in self.stats))
        names += ("top_logprobs", "top_ids") if self.top_logprobs else ()
        return names + (("logprobs_of",) if self.logprobs_of is not None else ())


@dataclass(slots=True, eq=False)
class Mixing:
    """How candidates are mixed into soft tokens: see soft.py."""

    noise: str  # one of NOISES
    strength: float  # gumbel: the scale of the noise; dirichlet: gamma
    tau: float | torch.Tensor = 1.0  # gumbel: a number, or float64 [B]
    soft_rows: torch.Tensor | None = None  # bool [B]; None: all
    straight_through: bool = False


@dataclass(slots=True, eq=False)  # not frozen: a frozen one takes four times as long to make
class Sample(Generic[Array]):
    """Drawn tokens and their statistics. Log-probabilities and entropies are in nats, float32.

    The fields are tensors; for a numpy array of logits they are numpy arrays.

    With `num_samples=n`, tokens, logprobs and raw_logprobs are [B, n], otherwise [B]; for logits [V] the batch dimension is
    gone everywhere. Fields that were not asked for are None. Type checkers also see `Any`, so that a field that was asked for
    needs no test for None. In a row whose status is not 0, tokens and ids are -1, kept is 0 and all other fields are NaN.
    """

    tokens: Array  # int64
    logprobs: Array  # ln q(token): the distribution sampled from, after temperature and truncation
    kept: Array  # int64 [B]: the number of tokens that survived the plan
    status: Array  # uint8 [B]: 0 = fine, STATUS_NAN, STATUS_EMPTY
    raw_logprobs: Array | Any = None  # ln p(token) at temperature 1, before any rule
    entropy: Array | Any = None  # [B]: of the full vocabulary, after temperature, before truncation
    kept_mass: Array | Any = None  # [B]: the survivors' share of that same distribution
    max_prob: Array | Any = None  # [B]: its largest probability
    margin: Array | Any = None  # [B]: its largest less its second largest probability
    top_logprobs: Array | Any = None  # [B, n]: the n largest ln p at temperature 1, before any rule, largest first
    top_ids: Array | Any = None  # int64 [B, n]: their ids; lower id first on ties
    logprobs_of: Array | Any = None  # [B, n]: ln p of the ids asked for, at temperature 1, before any rule
