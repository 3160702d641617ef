"""What a `LogitsProcessorList` does, in as few steps as possible: warpers become plans, other processors stay as they are.

A warper is recognised by its exact type, transformers' or ours, and its parameters are read off it: a subclass may do anything,
so it stays. Consecutive warpers become one plan. The order is never changed.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from transformers.generation import logits_process as theirs

from ..ops import truncate
from ..plan import Plan, plan
from ..rules import Rule, Variant
from . import warpers

Processor = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]

OURS = {value for value in vars(warpers).values() if isinstance(value, type) and issubclass(value, warpers._Masker)}


@dataclass
class Stages:
    """`before` runs on the scores; then `last` truncates, and the token is drawn from what it leaves."""

    before: list[Plan | Processor]
    last: Plan
    normalize: Processor | None  # a final log-softmax: it shifts a row as a whole, so the draw does not need it

    @property
    def rewrites(self) -> bool:
        """Does anything run before the last plan? Then the scores have to be copied first, as transformers does."""
        return bool(self.before)

    def scores(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """What the last plan starts from. Writes into `scores`, which must be the caller's own float32 copy."""
        for stage in self.before:
            scores = truncate(warpers.single(scores), stage) if isinstance(stage, Plan) else stage(input_ids, scores)
        return scores

    def processed(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """What transformers would return as `scores`: `scores` after the last plan."""
        masked = truncate(warpers.single(scores), self.last) if self.last.rules else scores
        return masked if self.normalize is None else self.normalize(input_ids, masked)


def read(processors: list[Processor], top_h_variant: Variant = "hf") -> Stages:
    """The stages of a list of processors.

    Args:
        processors: transformers' `LogitsProcessorList`, or any list.
        top_h_variant: what transformers' own Top-H warper shall mean, see `fastdecode.top_h`.

    Raises:
        TypeError: a plan or a rule is among them.
    """
    refuse_plans(processors)
    if type(processors) not in (theirs.LogitsProcessorList, list):  # its __call__ may do anything
        return Stages([processors], plan(), None)  # type: ignore[list-item]
    rest = list(processors)
    normalize = rest.pop() if rest and type(rest[-1]) is theirs.LogitNormalization else None
    stages: list[Plan | Processor] = []
    for processor in rest:
        found = plan_of(processor, top_h_variant)
        if found is None:
            stages.append(processor)
        elif stages and isinstance(stages[-1], Plan):
            stages[-1] = stages[-1] + found
        else:
            stages.append(found)
    last = stages.pop() if stages and isinstance(stages[-1], Plan) else plan()
    assert isinstance(last, Plan)
    return Stages(stages, last, normalize)


def refuse_plans(processors: object) -> None:
    """A plan is no processor, though it does what some do."""
    for thing in processors if isinstance(processors, (list, tuple)) else [processors]:
        if isinstance(thing, (Plan, Rule)):
            made = repr(thing) if isinstance(thing, Plan) else f"plan({thing!r})"
            raise TypeError(
                f"logits_processor takes processors; got {thing!r}: pass "
                f"logits_processor=[fastdecode.hf.FusedLogitsProcessor(fastdecode.{made})] instead."
            )


def plan_of(processor: Processor, top_h_variant: Variant = "hf") -> Plan | None:
    """The plan that a processor runs, or None if it is not a warper that is known to do so and nothing else."""
    if getattr(processor, "filter_value", -math.inf) != -math.inf:
        return None  # what it removes stays in the race
    if type(processor) in OURS:
        return processor.plan  # type: ignore[attr-defined]
    rule = warpers.RULES.get(type(processor))
    if rule is None or getattr(processor, "top_n", 100) != 100:
        return None
    try:
        return plan(rule(processor, top_h_variant))
    except ValueError:
        return None  # transformers accepts more, such as an infinite temperature, and knows what it means by it
