"""transformers' own warpers for the rules of a plan, and what they keep: the first judge of the reference."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from transformers import generation as hf

import fastdecode as fd


@dataclass(frozen=True)
class Twin:
    """A warper class of one parameter. `keeps_more`: +1 if a larger parameter keeps more tokens, -1 if fewer, 0 if exact."""

    warper: Callable[..., hf.LogitsProcessor]
    keeps_more: int
    most: float = 1.0  # the largest parameter the class takes


BELOW_ONE = 1.0 - 2.0**-40

TWINS = {
    "temperature": Twin(hf.TemperatureLogitsWarper, 0),
    "top_h": Twin(hf.TopHLogitsWarper, 1),
    "top_k": Twin(hf.TopKLogitsWarper, 0),
    "top_p": Twin(hf.TopPLogitsWarper, 1),
    "min_p": Twin(hf.MinPLogitsWarper, -1),
    "typical_p": Twin(hf.TypicalLogitsWarper, 1, BELOW_ONE),
    "epsilon_cutoff": Twin(hf.EpsilonLogitsWarper, -1, BELOW_ONE),
    "eta_cutoff": Twin(hf.EtaLogitsWarper, -1, BELOW_ONE),
}


def has_twin(rule: fd.Rule) -> bool:
    """True if transformers has this rule with these arguments."""
    if rule.name == "top_h" and dict(rule.options).get("variant") != "hf":
        return False
    if rule.name not in TWINS or isinstance(rule.arguments[0], torch.Tensor):
        return False
    return not (rule.name == "temperature" and rule.arguments[0] == 0)


def warp(rule: fd.Rule, scores: torch.Tensor, distance: float = 0.0) -> torch.Tensor:
    """What transformers makes of the scores. `distance`: move the parameter by so large a share of it, > 0 to keep more."""
    twin = TWINS[rule.name]
    options = {name: value for name, value in rule.options if name != "variant"}
    value = rule.arguments[0]
    if twin.keeps_more:
        value = min(value * (1 + twin.keeps_more * distance), twin.most)
    elif rule.name == "temperature":
        value = float(value)
    return twin.warper(value, **options)(None, scores)


def keeps(rule: fd.Rule, scores: torch.Tensor, distance: float = 0.0) -> tuple[torch.Tensor, torch.Tensor]:
    """The fewest and the most tokens that agree with transformers if ties go together: it may split a tied group that
    crosses, of which Top-H then keeps none (unless it is the maximum's) and every other rule all.
    """
    kept = warp(rule, scores, distance) > -torch.inf
    whole, touched = by_ties(scores, kept)
    if rule.name != "top_h":
        return touched, touched
    return whole | (scores == scores.amax(1, keepdim=True)), touched


def by_ties(scores: torch.Tensor, kept: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The tokens whose whole group of ties is kept, and those of which some member is."""
    ordered, order = scores.sort(dim=1)
    new = torch.ones_like(kept)
    new[:, 1:] = ordered[:, 1:] != ordered[:, :-1]
    group = torch.zeros_like(order).scatter(1, order, new.cumsum(1) - 1)
    count = torch.zeros_like(order).scatter_add(1, group, kept.long()).gather(1, group)
    size = torch.zeros_like(order).scatter_add(1, group, torch.ones_like(group)).gather(1, group)
    return (count == size) & kept, (count > 0) & (scores > -torch.inf)
