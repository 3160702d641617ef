"""Is a mask right? It must be the reference's, except for tokens within the tolerances of `tolerance.py` of an edge.

A chain is judged cut by cut. Each cut is judged on the survivors that the engine itself left, so that a permitted difference in one
cut does not count against the next.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch

from ..engines import reference
from ..rules import BY_TYPICALITY, COUNT, DRAW, ENTROPY, FIELDS, FLOOR, SURPRISAL, Cut
from .tolerance import EDGE, ENTROPY_EDGE, KEY

FIELD = {name: place for place, name in enumerate(FIELDS)}

Keeps = Callable[[torch.Tensor, torch.Tensor, int], torch.Tensor]  # logits, cuts, vocab_limit -> the engine's mask


def follow(x: torch.Tensor, cuts: torch.Tensor, limit: int, keeps: Keeps) -> tuple[torch.Tensor, str]:
    """The engine's masks of rows without a NaN, and what is wrong with them; "" if edges explain every difference.

    Args:
        x: logits [B, V]. cuts: a packed plan of B rows. keeps: asks the engine.
    """
    before = (x > -math.inf) & (torch.arange(x.shape[1]) < limit)
    if (x == math.inf).any():
        before &= (x == math.inf) | ~(x == math.inf).any(1, keepdim=True)
    plain = torch.tensor([float(v) for v in vars(Cut(DRAW)).values()]).expand(len(x), 1, -1)
    for place in range(cuts.shape[1] - 1):
        after = keeps(x, torch.cat([cuts[:, : place + 1], plain], 1).contiguous(), limit)
        low, high = bracket(torch.where(before, x, -math.inf), cuts[:, place], plain)
        far = (low & ~after) | (after & ~high)
        greedy = cuts[:, place, FIELD["temperature"]] == 0
        far = torch.where(greedy[:, None], after != before, far)
        if far.any():
            shown = far.nonzero()[:5].tolist()
            return after, f"cut {place}: {int(far.sum())} (row, token) far from the edge, such as {shown}"
        before = after
    whole = keeps(x, cuts.contiguous(), limit)
    first = torch.where(before, x, -math.inf).argmax(1, keepdim=True)
    greedy = cuts[:, -1, FIELD["temperature"]] == 0
    expected = torch.where(greedy[:, None], torch.arange(x.shape[1]) == first, before)
    return whole, "" if torch.equal(whole, expected) else "the plan keeps other tokens than its cuts one by one"


def bracket(x: torch.Tensor, cut: torch.Tensor, plain: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The fewest and the most tokens that a cut [B, fields] may keep. Survivors are the tokens of x above -inf."""
    is_floor, is_count = int(cut[0, FIELD["kind"]]) == FLOOR, int(cut[0, FIELD["measure"]]) == COUNT
    d = x.double() / cut[:, FIELD["temperature"], None].double()
    d = d - d.amax(1, keepdim=True)
    p = d.softmax(1)
    mean = torch.where(p > 0, p * d, 0.0).sum(1, keepdim=True)
    distance = torch.full((len(x),), EDGE, dtype=torch.float64)
    if int(cut[0, FIELD["measure"]]) in (SURPRISAL, ENTROPY):
        distance += ENTROPY_EDGE / (d.logsumexp(1) - mean[:, 0]).clamp(min=1e-300)
    found = []
    for sign in (-1, 1):
        moved = cut.double().clone()
        if not is_floor and not is_count:
            moved[:, FIELD["need"]] *= 1 + sign * distance
        moved[:, FIELD["offset"]] -= sign * EDGE
        moved[:, FIELD["offset_h"]] -= sign * EDGE
        pair = torch.cat([moved[:, None], plain.double()], 1)
        found.append(reference.survivors(x, pair, x.shape[1]).keep)
    low, high = found
    if not is_floor and int(cut[0, FIELD["order"]]) == BY_TYPICALITY:
        key = (d - mean).abs()
        blur = KEY * (1 + d.abs())
        edges = [torch.where(mask, key, -math.inf).amax(1, keepdim=True) for mask in found]
        low, high = low & (key < edges[0] - blur), (x > -math.inf) & (key <= edges[1] + blur)
    return low, high
