"""transformers' own warpers on fastdecode's engines, any plan as one processor, and a processor that draws the token itself.

Every processor takes `(input_ids, scores)`, does not look at `input_ids`, and reads scores [B, V] (float32 as transformers
passes them, or float16 or bfloat16; any row stride; logits or log-probabilities; any device). It answers with a new tensor of
the same shape and dtype: transformers hands out the tensor it passed as `outputs.logits`, so writing there would corrupt it.

The warpers keep the tokens that transformers 5.23 keeps, except where tokens with exactly equal logits straddle the edge:
here they stay or go together, so that the answer does not depend on a sort. They also answer where transformers' do not: a
row with a NaN comes back unmasked instead of raising (top-h, eta), and +inf leaves the +inf tokens instead of NaN. A rule
that transformers lacks needs no class: `FusedLogitsProcessor(fastdecode.plan(fastdecode.top_a(0.2)))`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from transformers.generation import logits_process as theirs

from .. import rules
from ..ops import sample, truncate
from ..plan import Plan, PlanLike, as_plan, plan
from ..record import Sample, Statistics


def fresh_seed() -> int:
    """64 bits from torch's default generator, so that `torch.manual_seed` rules them."""
    return int(torch.randint(-(2**63), 2**63 - 1, (1,), device="cpu"))


def single(scores: torch.Tensor) -> torch.Tensor:
    """Scores as our functions take them.

    They take no float64, since a row twice as long in memory draws no better. transformers makes float32 of the logits of a float64
    model, but lets processors return float64; both come in here.
    """
    return scores.float() if scores.dtype == torch.float64 else scores


class _NoTopH(theirs.LogitsProcessor):
    """In place of transformers' class where it has none (4.57)."""

    def __init__(self, top_h: float, filter_value: float = -math.inf):
        self.top_h, self.filter_value = top_h, filter_value


_TheirTopH: Any = getattr(theirs, "TopHLogitsWarper", _NoTopH)

# What transformers' warpers mean, read off their attributes; `stages.py` reads foreign objects with it, and the classes below
# themselves. `+` and `int` make a number of the True that transformers accepts.
RULES: dict[type, Callable[[Any, rules.Variant], rules.Rule]] = {
    theirs.TemperatureLogitsWarper: lambda w, _: rules.temperature(w.temperature),
    _TheirTopH: lambda w, variant: rules.top_h(float(w.top_h), variant),
    theirs.TopKLogitsWarper: lambda w, _: rules.top_k(+w.top_k),
    theirs.TopPLogitsWarper: lambda w, _: rules.top_p(w.top_p, _keep(w)) if w.top_p != 0 else rules.top_k(_keep(w)),
    theirs.MinPLogitsWarper: lambda w, _: rules.min_p(float(w.min_p), _keep(w)),
    theirs.TypicalLogitsWarper: lambda w, _: rules.typical_p(w.mass, _keep(w)),
    theirs.EpsilonLogitsWarper: lambda w, _: rules.epsilon_cutoff(w.epsilon, _keep(w)),
    theirs.EtaLogitsWarper: lambda w, _: rules.eta_cutoff(
        float(w.epsilon), _keep(w)
    ),  # there a tensor, here read back once
}


def _keep(warper: Any) -> int:
    return int(warper.min_tokens_to_keep)


# The warpers derive from transformers' classes: the constructor checks, the attributes and `isinstance` in user code are then
# transformers' own, and only `__call__` is replaced.


class _Masker(theirs.LogitsProcessor):
    """Removes what its plan cuts. The plan is made once: to change a parameter, make a new object."""

    supports_continuous_batching = True  # a row's answer depends on nothing but its scores
    plan: Plan
    filter_value: float = -math.inf

    def _read(self, kind: type, variant: rules.Variant = "hf") -> None:
        self.plan = plan(RULES[kind](self, variant))

    # transformers inspects this signature at every step, and refuses a third parameter even if it has a default.
    def __call__(self, input_ids: torch.LongTensor, scores: torch.Tensor) -> torch.Tensor:
        return truncate(single(scores), self.plan, filter_value=self.filter_value).to(scores.dtype)


class TemperatureLogitsWarper(_Masker, theirs.TemperatureLogitsWarper):
    """scores / temperature; nothing is removed. Equal to transformers' class, which also takes an infinite temperature."""

    def __init__(self, temperature: float):
        super().__init__(temperature)
        self._read(theirs.TemperatureLogitsWarper)


class TopHLogitsWarper(_Masker, _TheirTopH):  # type: ignore[misc]  # a class all the same
    """Top-H: keep the most probable tokens while their entropy stays within `top_h` times the entropy of the row.

    `variant="hf"`, the default, is transformers' rule: both entropies are taken over the 100 largest logits, and that of the
    prefix is its share of the sum -p ln p. `variant="paper"` is the rule of the paper (arXiv 2509.02510, alpha = top_h): the
    whole vocabulary, and the prefix renormalised. They differ on most rows.

    Where tied tokens would overshoot the bound together, transformers keeps as many of them as fit, and this class none, or
    all if they are the largest. `top_h=1` keeps the whole prefix here; in transformers rounding may lose its last tokens.
    """

    def __init__(self, top_h: float, filter_value: float = -math.inf, *, variant: rules.Variant = "hf"):
        super().__init__(top_h, filter_value)
        self._read(_TheirTopH, variant)


class TopKLogitsWarper(_Masker, theirs.TopKLogitsWarper):
    """Keep the max(top_k, min_tokens_to_keep) largest logits and all that tie with the last of them, as transformers does."""

    def __init__(self, top_k: int, filter_value: float = -math.inf, min_tokens_to_keep: int = 1):
        super().__init__(top_k, filter_value, min_tokens_to_keep)
        self._read(theirs.TopKLogitsWarper)


class TopPLogitsWarper(_Masker, theirs.TopPLogitsWarper):
    """Keep the most probable tokens until their mass reaches `top_p`, the crossing token included (arXiv 1904.09751).

    `top_p=0` keeps min_tokens_to_keep tokens, `top_p=1` all. Tokens that tie with the crossing one, or with the last of
    min_tokens_to_keep, stay; transformers cuts between them, in the order in which a sort happened to leave them. At
    `top_p=1` transformers removes tokens whose float32 probability is 0.
    """

    def __init__(self, top_p: float, filter_value: float = -math.inf, min_tokens_to_keep: int = 1):
        super().__init__(top_p, filter_value, min_tokens_to_keep)
        self._read(theirs.TopPLogitsWarper)


class MinPLogitsWarper(_Masker, theirs.MinPLogitsWarper):
    """Keep tokens at least `min_p` times as probable as the most probable one (arXiv 2407.01082).

    Tokens that tie with the last of min_tokens_to_keep stay; transformers picks among them.
    """

    def __init__(self, min_p: float, filter_value: float = -math.inf, min_tokens_to_keep: int = 1):
        super().__init__(min_p, filter_value, min_tokens_to_keep)
        self._read(theirs.MinPLogitsWarper)


class TypicalLogitsWarper(_Masker, theirs.TypicalLogitsWarper):
    """Keep the tokens whose surprisal -ln p (nats) is nearest to the entropy until their mass reaches `mass` (arXiv 2202.00666).

    The crossing token and those as typical as it stay, as in transformers; so do those that tie with the last of
    min_tokens_to_keep, among which transformers picks.
    """

    def __init__(self, mass: float = 0.9, filter_value: float = -math.inf, min_tokens_to_keep: int = 1):
        super().__init__(mass, filter_value, min_tokens_to_keep)
        self._read(theirs.TypicalLogitsWarper)


class EpsilonLogitsWarper(_Masker, theirs.EpsilonLogitsWarper):
    """Keep tokens of probability at least `epsilon`, and the min_tokens_to_keep largest with their ties (arXiv 2210.15191)."""

    def __init__(self, epsilon: float, filter_value: float = -math.inf, min_tokens_to_keep: int = 1):
        super().__init__(epsilon, filter_value, min_tokens_to_keep)
        self._read(theirs.EpsilonLogitsWarper)


class EtaLogitsWarper(_Masker, theirs.EtaLogitsWarper):
    """Keep tokens of probability at least min(epsilon, sqrt(epsilon) * exp(-H)), H the entropy in nats (arXiv 2210.15191).

    The min_tokens_to_keep largest stay with their ties. `device` is where transformers keeps its copy of epsilon; scores may
    be on any device here.
    """

    def __init__(
        self, epsilon: float, filter_value: float = -math.inf, min_tokens_to_keep: int = 1, device: str = "cpu"
    ):
        super().__init__(epsilon, filter_value, min_tokens_to_keep, device)
        self._read(theirs.EtaLogitsWarper)


class TopNSigmaLogitsWarper(_Masker):
    """Keep logits within `n` standard deviations of the largest (arXiv 2411.07641). transformers has no such class.

    The standard deviation is the sample one over the finite scores: tokens masked with -inf do not count.
    """

    def __init__(self, n: float, filter_value: float = -math.inf):
        self.plan = plan(rules.top_n_sigma(n))
        self.filter_value = filter_value


class FusedLogitsProcessor(_Masker):
    """A whole plan, with its temperature, in one pass over the scores.

    transformers runs processors that it is given *before* its own temperature, top-k and top-p, and with `do_sample=True` it
    adds top_k=50 unless told otherwise, or whatever the model's generation_config.json says. Switch those off in the call,
    or they come on top of the plan:

        plan = fd.plan(fd.temperature(1.5), fd.top_h(0.4))
        model.generate(**inputs, do_sample=True, temperature=1.0, top_k=0, top_p=1.0,
                       logits_processor=[FusedLogitsProcessor(plan)])

    A generation_config that sets min_p, typical_p, top_h, epsilon_cutoff or eta_cutoff needs the same treatment with None.

    Args:
        plan: made with `fastdecode.plan`, or a rule, or a list of rules. Per-row parameters hold one value per row of scores: batch * num_beams of them.
            For beam sampling give the rules min_tokens_to_keep=2 or more (the number of eos tokens + 1).
        filter_value: what removed tokens hold; tokens that were -inf already count as removed.
    """

    def __init__(self, plan: PlanLike, filter_value: float = -math.inf):
        self.plan = as_plan(plan)
        self.filter_value = filter_value

    @property
    def supports_continuous_batching(self) -> bool:  # type: ignore[override]
        """Only without per-row parameters: the rows of a continuous batch come and go."""
        return self.plan.rows is None


class SamplerLogitsProcessor(theirs.LogitsProcessor):
    """Draws the tokens itself, with `fastdecode.sample`, and leaves `generate()` no choice but to emit them.

    For `do_sample=False`, one beam and no assistant: the scores that come back hold 0 for the drawn token and -inf for the
    rest, and transformers takes the argmax. The draws depend on the seed, the row and the number of calls since `reset()`
    alone: the same seed gives the same text, and a row the same text in every batch where it has the same index. A row that
    cannot be sampled (a NaN, or no finite score) is passed on unchanged.

        sampler = SamplerLogitsProcessor(fd.plan(fd.temperature(1.5), fd.top_h(0.4)), seed=7, stats=True)
        model.generate(**inputs, do_sample=False, logits_processor=[sampler])
        entropies = torch.stack([step.entropy for step in sampler.samples], dim=1)  # [B, generated tokens]

    Put it last in the list: later processors would see its answer, and not scores. One object serves one `generate()` at a
    time; call `reset()` between two, or the second goes on where the first ended.

    Args:
        plan: made with `fastdecode.plan`, or a rule, or a list of rules; None is the plain softmax.
        seed: 64-bit number, or int64 [B]. None draws one here from torch's default generator.
        stats: as in `fastdecode.sample`.

    Attributes:
        samples: one `fastdecode.Sample` for each step. Rows that have ended are drawn too; transformers pads their tokens.
    """

    supports_continuous_batching = False  # the row of a request and its number of tokens change from step to step
    samples: list[Sample]

    def __init__(self, plan: PlanLike | None, seed: int | torch.Tensor | None = None, stats: Statistics = False):
        self.plan = None if plan is None else as_plan(plan)
        self.seed = fresh_seed() if seed is None else seed
        self.stats = stats
        self.reset()

    def reset(self) -> None:
        """Forget all steps: the next call draws the first token again."""
        self.samples = []

    def __call__(self, input_ids: torch.LongTensor, scores: torch.Tensor) -> torch.Tensor:
        drawn = sample(single(scores), self.plan, seed=self.seed, step=len(self.samples), stats=self.stats)
        self.samples.append(drawn)
        token = drawn.tokens.unsqueeze(1)
        only = torch.full_like(scores, -math.inf).scatter_(1, token.clamp(min=0), 0.0)
        return torch.where(token >= 0, only, scores)
