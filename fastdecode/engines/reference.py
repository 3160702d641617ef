"""The reference, in plain float64 torch with sort and cumsum: the oracle of the tests, and the engine of last resort on any device.
This file defines what an engine must compute; it is not fast.

The steps have the names they have in every engine: measure, search, narrow, draw.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch

from .. import philox
from ..philox import uniforms as uniforms
from ..record import EMPTY, NAN, OK, Draw, Wanted, drop_samples, sample_one_by_one
from ..rules import (
    BY_LOGIT,
    CERTAIN,
    COUNT,
    ENTROPY,
    FIELDS,
    FLOOR,
    MASKED,
    MASKED_FLOAT16,
    MASS,
    SLACK,
    STOP_AFTER,
)
from .reference_soft import embed as embed
from .reference_soft import soften as soften


class Survivors(NamedTuple):
    """A batch of rows after the plan: what was kept, and the scale at which it is drawn."""

    x: torch.Tensor  # float64 [B, V]: logits less the largest; -inf past the limit and in rows that cannot be sampled
    keep: torch.Tensor  # bool [B, V]
    temperature: torch.Tensor  # float64 [B, 1]; 0: the row is greedy
    status: torch.Tensor  # uint8 [B]


def survivors(logits: torch.Tensor, cuts: torch.Tensor, vocab_limit: int) -> Survivors:
    """Run the cuts of a packed plan on logits [B, V]."""
    x = logits.double()
    x = torch.where(torch.arange(x.shape[1], device=x.device) < vocab_limit, x, -math.inf)
    is_nan = x.isnan().any(1)
    is_empty = (x == -math.inf).all(1)
    status = torch.where(is_nan, NAN, torch.where(is_empty, EMPTY, OK)).to(torch.uint8)
    x = torch.where(is_nan[:, None], -math.inf, x)
    # +inf tokens share all the mass: the row becomes "equal logits there, nothing elsewhere".
    overflow = x == math.inf
    x = torch.where(overflow.any(1, keepdim=True), torch.where(overflow, 0.0, -math.inf), x)
    masked = x <= (MASKED_FLOAT16 if logits.dtype == torch.float16 else MASKED)
    if x.shape[1]:
        # Relative to the largest: near 1e30, an absolute ln sum exp would lose the ln of the number of tokens.
        top = x.amax(1, keepdim=True)
        x = x - torch.where(top > -math.inf, top, 0.0)

    keep = x > -math.inf
    for packed in cuts.unbind(1)[:-1]:
        cut = dict(zip(FIELDS, packed.double().unsqueeze(-1).unbind(1)))  # each field [B or 1, 1]
        narrowed = _narrow(x, keep, masked, cut)
        keep = torch.where(cut["temperature"] == 0, keep, narrowed)  # a greedy row has nothing left to cut

    temperature = cuts[:, -1, FIELDS.index("temperature")].double()[:, None].expand(len(x), 1)
    if x.shape[1]:
        first = torch.where(keep, x, -math.inf).argmax(1, keepdim=True)  # lowest id among the largest
        greedy = keep & (torch.arange(x.shape[1], device=x.device) == first)
        keep = torch.where(temperature == 0, greedy, keep)
    return Survivors(x, keep, temperature, status)


def _narrow(x: torch.Tensor, keep: torch.Tensor, masked: torch.Tensor, cut: dict[str, torch.Tensor]) -> torch.Tensor:
    if not x.numel():
        return keep
    d = _scaled(x, keep, cut["temperature"])
    if int(cut["kind"][0]) == FLOOR:
        return keep & (d >= _floor(d, keep, masked, cut))
    return keep & _prefix(d, keep, cut)


def _scaled(x: torch.Tensor, keep: torch.Tensor, temperature: torch.Tensor) -> torch.Tensor:
    """(x - max) / T over the survivors, -inf elsewhere."""
    kept = torch.where(keep, x, -math.inf)
    top = kept.amax(1, keepdim=True)
    return torch.where(keep, (x - torch.where(top > -math.inf, top, 0.0)) / temperature, -math.inf)


def _floor(d: torch.Tensor, keep: torch.Tensor, masked: torch.Tensor, cut: dict[str, torch.Tensor]) -> torch.Tensor:
    """The smallest scaled logit that a floor keeps."""
    w = d.exp()
    z = w.sum(1, keepdim=True)
    entropy = z.log() - _times(w, d).sum(1, keepdim=True) / z
    counted = keep & ~masked
    n = counted.sum(1, keepdim=True)
    mean = torch.where(counted, d, 0.0).sum(1, keepdim=True) / n.clamp(min=1)
    squares = torch.where(counted, (d - mean) ** 2, 0.0).sum(1, keepdim=True)
    sd = (squares / (n - 1).clamp(min=1)).sqrt()
    ln_p2 = ((w / z) ** 2).sum(1, keepdim=True).log()
    offset = torch.minimum(cut["offset"], cut["offset_h"] - entropy)
    floor = cut["w_lse"] * z.log() + cut["w_sd"] * sd + cut["w_p2"] * ln_p2 + offset - SLACK
    floor = torch.where(floor.isnan(), 0.0, floor)  # from an unchecked parameter on a GPU
    # The `keep` largest always stay; with keep = 1 that is the maximum, which is 0 on this scale.
    place = (cut["keep"].long().expand(len(d), 1) - 1).clamp(max=d.shape[1] - 1)
    return torch.minimum(floor, d.sort(1, descending=True).values.gather(1, place))


def _prefix(d: torch.Tensor, keep: torch.Tensor, cut: dict[str, torch.Tensor]) -> torch.Tensor:
    """The tokens that a prefix keeps: walk groups of tied tokens in order, and stop where the measure meets the need."""
    w = d.exp()
    if int(cut["order"][0]) == BY_LOGIT:
        key = d
    else:  # |-ln p - H| = |d - mean of d under p|
        key = -(d - _times(w, d).sum(1, keepdim=True) / w.sum(1, keepdim=True)).abs()
    key, order = torch.where(keep, key, -math.inf).sort(dim=1, descending=True, stable=True)
    d, w = d.gather(1, order), w.gather(1, order)

    place = torch.arange(key.shape[1], device=key.device).expand_as(key)
    changes = torch.ones(key.shape[0], key.shape[1] + 1, dtype=torch.bool, device=key.device)
    changes[:, 1:-1] = key[:, 1:] != key[:, :-1]
    starts, ends = changes[:, :-1], changes[:, 1:]
    start = torch.where(starts, place, 0).cummax(1).values  # of the group of tied tokens, for each of its members
    end = torch.where(ends, place, key.shape[1]).flip(1).cummin(1).values.flip(1)
    n_before, n = start.double(), (end + 1).double()

    # A tied group that straddles `within` counts for its share; the groups after it do not exist for this cut.
    share = ((cut["within"] - n_before) / (n - n_before)).clamp(0.0, 1.0)
    w = w * share
    z = w.sum(1, keepdim=True)
    wd = _times(w, d)
    mass, moment = w.cumsum(1).gather(1, end), wd.cumsum(1).gather(1, end)
    entropy = z.log() - wd.sum(1, keepdim=True) / z
    share_of_entropy = torch.where((entropy < CERTAIN) & (cut["need"] < math.inf), -math.inf, cut["need"] * entropy)
    share_of_entropy = torch.where(cut["need"] == math.inf, math.inf, share_of_entropy)  # off in this row
    measure = int(cut["measure"][0])
    if measure == COUNT:
        measured, need = n, cut["need"]
    elif measure == MASS:
        measured, need = mass, cut["need"] * z
    elif measure == ENTROPY:
        measured, need = mass.log() - moment / mass, share_of_entropy
    else:
        measured, need = (mass * z.log() - moment) / z, share_of_entropy

    if int(cut["stop"][0]) == STOP_AFTER:  # keep a group if the need was not yet met before it
        slack = 0.0 if measure == COUNT else SLACK
        unmet = ~(measured >= need * (1 - slack))
        unmet_before = unmet.gather(1, (start - 1).clamp(min=0)) | (start == 0)
        stays = unmet_before | (n_before < cut["keep"])
    else:  # keep a group if neither it nor one before it goes past the need
        past = (measured > need * (1 + SLACK)) & (n_before >= cut["keep"])
        stays = past.cumsum(1) == 0
    stays &= share > 0
    return torch.zeros_like(keep).scatter(1, order, stays)


def _times(w: torch.Tensor, d: torch.Tensor) -> torch.Tensor:
    """w * d with 0 * -inf = 0."""
    return torch.where(w > 0, w * d, 0.0)


def truncate(
    logits: torch.Tensor, cuts: torch.Tensor, out: torch.Tensor, filter_value: float, vocab_limit: int
) -> None:
    """Write x / T where a token survives and `filter_value` elsewhere; a row with a NaN becomes x / T throughout. Where the type
    cannot hold x / T, it becomes the largest number that it can hold: an infinity would be a NaN in the next softmax."""
    rows = survivors(logits, cuts, vocab_limit)
    temperature = rows.temperature.to(torch.float32)
    scaled = logits.float() / torch.where(temperature == 0, 1.0, temperature)
    largest = min(torch.finfo(logits.dtype).max, torch.finfo(torch.float32).max)
    scaled = torch.where(logits.isinf(), scaled, scaled.clamp(-largest, largest))  # clamp keeps a NaN
    keep = rows.keep | (rows.status == NAN)[:, None]
    out.copy_(torch.where(keep, scaled, filter_value))


def sample(logits: torch.Tensor, cuts: torch.Tensor, draw: Draw, wanted: Wanted) -> dict[str, torch.Tensor]:
    """Tokens and statistics; the fields are those of `fastdecode.Sample`."""
    rows = survivors(logits, cuts, draw.vocab_limit)
    tokens, _ = draw_tokens(rows, draw)
    return drop_samples({"tokens": tokens, **statistics(rows, tokens, wanted)}, draw)


def sample_temperatures(
    logits: torch.Tensor, cuts: torch.Tensor, draw: Draw, wanted: Wanted
) -> dict[str, torch.Tensor]:
    """See `dispatch.Engine`."""
    return sample_one_by_one(sample, logits, cuts, draw, wanted)


def targets() -> list[None]:
    """See `dispatch.Engine`."""
    return [None]


def draw_tokens(rows: Survivors, draw: Draw) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens [B, num_samples], -1 in flagged rows, and the margin by which each won: the smaller of its two levels' leads, in nats."""
    batch, vocab = rows.x.shape
    device = rows.x.device
    size = philox.GROUP_SIZE
    if not vocab or not batch:
        return (
            torch.full((batch, draw.num_samples), -1, device=device),
            torch.zeros(batch, draw.num_samples, dtype=torch.float32, device=device),
        )
    greedy = rows.temperature == 0
    score = torch.where(rows.keep, rows.x / torch.where(greedy, 1.0, rows.temperature), -math.inf)
    score = torch.nn.functional.pad(score, (0, -vocab % size), value=-math.inf).view(batch, 1, -1, size)

    seed, step, request = (column[:, None, None] for column in draw.columns(batch, device))
    sample = torch.arange(draw.num_samples, device=device)[None, :, None]
    groups = torch.arange(score.shape[2], device=device)

    noisy = score.logsumexp(-1) + philox.noise(groups, seed, step, philox.stream_for(philox.GROUP, sample, request))
    noisy = torch.where(greedy[:, :, None], score.amax(-1), noisy)
    group, group_lead = _winner(noisy)
    ids = group[:, :, None] * size + torch.arange(size, device=device)
    members = (
        score.expand(-1, draw.num_samples, -1, -1).gather(2, group[:, :, None, None].expand(-1, -1, 1, size)).squeeze(2)
    )
    noisy = members + philox.noise(ids, seed, step, philox.stream_for(philox.TOKEN, sample, request))
    member, token_lead = _winner(torch.where(greedy[:, :, None], members, noisy))
    tokens = torch.where((rows.status == OK)[:, None], group * size + member, -1)
    return tokens, torch.where(greedy, math.inf, torch.minimum(group_lead, token_lead))


def _winner(noisy: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The place of the largest, the lowest place on ties, and its lead over the runner-up."""
    place = noisy.argmax(-1)
    best = noisy.topk(min(2, noisy.shape[-1]), -1).values
    lead = best[..., 0] - best[..., 1] if best.shape[-1] > 1 else torch.full_like(best[..., 0], math.inf)
    return place, lead


def statistics(rows: Survivors, tokens: torch.Tensor, wanted: Wanted) -> dict[str, torch.Tensor]:
    """The fields of `fastdecode.Sample` except the tokens: logprobs, kept and status always, the others as wanted."""
    ok = rows.status == OK
    greedy = rows.temperature == 0
    scaled = rows.x / torch.where(greedy, 1.0, rows.temperature)
    place = tokens.clamp(min=0)

    def pick(log_p: torch.Tensor, at: torch.Tensor) -> torch.Tensor:
        return log_p.gather(1, at) if log_p.shape[1] else torch.zeros(at.shape, dtype=log_p.dtype, device=at.device)

    def finish(value: torch.Tensor) -> torch.Tensor:  # float32, NaN in flagged rows
        return torch.where(ok if value.ndim == 1 else ok[:, None], value, math.nan).float()

    kept_lse = torch.where(rows.keep, scaled, -math.inf).logsumexp(1, keepdim=True)
    logprobs = torch.where(greedy, 0.0, pick(scaled, place) - kept_lse)
    outputs = {"logprobs": finish(logprobs), "kept": torch.where(ok, rows.keep.sum(1), 0), "status": rows.status}

    raw = rows.x - rows.x.logsumexp(1, keepdim=True)
    if "raw_logprobs" in wanted.stats:
        outputs["raw_logprobs"] = finish(pick(raw, place))
    if wanted.top_logprobs:
        best = rows.x.sort(dim=1, descending=True, stable=True).indices[:, : wanted.top_logprobs]
        outputs["top_logprobs"] = finish(raw.gather(1, best))
        outputs["top_ids"] = torch.where(ok[:, None], best, -1)
    if wanted.logprobs_of is not None:
        outputs["logprobs_of"] = finish(pick(raw, wanted.logprobs_of.to(rows.x.device)))

    log_p = scaled - scaled.logsumexp(1, keepdim=True)
    p = log_p.exp()
    one = torch.ones_like(rows.temperature[:, 0])
    if "entropy" in wanted.stats:
        outputs["entropy"] = finish(torch.where(greedy[:, 0], 0.0, -_times(p, log_p).sum(1)))
    if "kept_mass" in wanted.stats:
        outputs["kept_mass"] = finish(torch.where(greedy[:, 0], one, torch.where(rows.keep, p, 0.0).sum(1)))
    if wanted.stats & {"max_prob", "margin"}:
        best = torch.nn.functional.pad(p, (0, 2)).topk(2, 1).values
        if "max_prob" in wanted.stats:
            outputs["max_prob"] = finish(torch.where(greedy[:, 0], one, best[:, 0]))
        if "margin" in wanted.stats:
            outputs["margin"] = finish(torch.where(greedy[:, 0], one, best[:, 0] - best[:, 1]))
    return outputs
