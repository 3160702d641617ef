"""Exact comparisons, to the last bit or to float32 rounding: masks, noise, independence of the batch, flagged rows, and replays of a
CUDA graph. The reference judges, in float64.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from functools import partial

import numpy as np
import torch

import fastdecode as fd

from .. import dispatch, philox
from ..engines import reference
from ..record import NAN, Draw
from ..rules import (
    BY_TYPICALITY,
    COUNT,
    ENTROPY,
    FLOOR,
    MASS,
    PREFIX,
    STOP_BEFORE,
    SURPRISAL,
    Cut,
    Rule,
)
from . import draws, masks
from .finding import Check, Finding, Tick
from .samplers import Effort, Engine
from .tolerance import LEAD

# One cut of each kind that rules are made of, tight and loose. New rules are made of the same cuts.
CUTS = (
    Cut(PREFIX, measure=COUNT, need=50.0),
    Cut(PREFIX, measure=MASS, need=0.9),
    Cut(PREFIX, measure=MASS, need=0.3, keep=7.0),
    Cut(PREFIX, measure=MASS, need=0.9, order=BY_TYPICALITY),
    Cut(PREFIX, measure=ENTROPY, need=0.4, stop=STOP_BEFORE),
    Cut(PREFIX, measure=ENTROPY, need=0.9, stop=STOP_BEFORE),
    Cut(PREFIX, measure=SURPRISAL, need=0.4, stop=STOP_BEFORE, within=100.0),
    Cut(FLOOR, offset=math.log(0.05)),
    Cut(FLOOR, w_lse=1.0, offset=math.log(6e-4), offset_h=math.log(6e-4) / 2),
    Cut(FLOOR, w_lse=-1.0, offset=math.log(0.2)),
    Cut(FLOOR, w_sd=-1.5),
    Cut(FLOOR, w_lse=1.0, w_p2=1.0),
)


def plans() -> list[fd.Plan]:
    """Each cut alone, at temperatures below and above 1, and chains."""
    rules = [Rule("cut", (i,), cuts=(cut,)) for i, cut in enumerate(CUTS)]
    alone = [fd.plan(fd.temperature((0.7, 1.5)[i % 2]), rule) for i, rule in enumerate(rules)]
    loose = Rule("cut", (), cuts=(replace(CUTS[0], need=2000.0),))
    chains = [
        fd.plan(loose, rules[1], fd.temperature(1.5), rules[7]),
        fd.plan(fd.temperature(1.3), rules[3], rules[5], rules[10]),
    ]
    return [*alone, *chains, fd.plan(rules[1], fd.temperature(0.0))]


def checks(engine: Engine, effort: Effort, seed: int) -> Iterator[Check]:
    yield Check("masks against float64", partial(exact_masks, engine, effort))
    yield Check("tokens against float64", partial(exact_tokens, engine, effort, seed))
    yield Check("noise at its quantiles", partial(quantiles, engine))
    yield Check("rows do not see their batch", partial(batch_invariance, engine, seed))
    yield Check("every row has its own seed", partial(per_row_seeds, engine, seed))
    yield Check("NaN and empty rows are flagged", partial(flagged_rows, engine, seed))
    yield Check("replays of a CUDA graph", partial(graph_replay, engine, seed))


def _logits(effort: Effort) -> torch.Tensor:
    """Rows of four kinds, one of them with holes, and the same rows in bfloat16 precision, which have ties."""
    x = torch.stack(list(draws.rows(effort.vocab).values()))[: effort.rows] * 2.0
    x[0, ::3] = -math.inf
    return torch.cat([x, x.bfloat16().float()])


def _keeps(engine: Engine, logits: torch.Tensor, cuts: torch.Tensor, limit: int) -> torch.Tensor:
    x = logits.to(engine.device)
    out = torch.empty_like(x)
    dispatch.engine_for(engine.device).truncate(x, cuts.to(engine.device), out, math.nan, limit)
    return ~out.isnan().cpu()


def exact_masks(engine: Engine, effort: Effort, tick: Tick) -> Finding:
    x = _logits(effort)
    compared = at_edge = removed = 0
    for place, plan in enumerate(tried := plans()):
        packed = plan.packed(torch.device("cpu"))
        want = reference.survivors(x, packed, x.shape[1]).keep
        got = _keeps(engine, x, packed, x.shape[1])
        if not torch.equal(got, want):
            rows = (got != want).any(1)
            cuts = packed.expand(int(rows.sum()), -1, -1).contiguous()
            _, complaint = masks.follow(x[rows], cuts, x.shape[1], partial(_keeps, engine))
            if complaint:
                return Finding(False, f"{complaint}, of plan {place}: {plan.cuts[0]}")
        compared, at_edge = compared + want.numel(), at_edge + int((got != want).sum())
        removed += int((~want).sum())
        tick((place + 1) / len(tried))
    seen = (
        f"{len(tried)} plans x {len(x)} rows: {compared - removed} tokens kept, {removed} removed; {at_edge} at an edge"
    )
    return Finding(True, seen, "one token that does not lie at an edge")


def exact_tokens(engine: Engine, effort: Effort, seed: int, tick: Tick) -> Finding:
    """The tokens are those of the reference, except where its winner leads by less than rounding."""
    x, samples = _logits(effort), 64
    plan = fd.plan(fd.temperature(1.2), Rule("cut", (), cuts=(CUTS[8],)))
    differ = drawn = 0
    for each in (fd.plan(), plan):
        rows = reference.survivors(x, each.packed(torch.device("cpu")), x.shape[1])
        want, lead = reference.draw_tokens(rows, Draw(seed, 3, None, samples, x.shape[1]))
        got = fd.sample(x.to(engine.device), each, seed=seed, step=3, num_samples=samples).tokens.cpu()
        lost = (got != want) & ~(lead < LEAD)
        if lost.any():
            return Finding(False, f"{int(lost.sum())} of {want.numel()} draws of {each!r} differ")
        differ, drawn = differ + int((got != want).sum()), drawn + want.numel()
    return Finding(True, f"{drawn} draws, {differ} of them within {LEAD:g} nats of another token", "one wrong draw")


# Coordinates (use, step, index) of seed 1, stream 0 at which the noise reaches the quantile 1 - 10^-n. They were found by search: a
# draw of probability 1e-9 would take too long. Every run computes their words again.
QUANTILES = (
    (philox.TOKEN, 2, 57, 2), (philox.TOKEN, 2, 2, 3), (philox.TOKEN, 52, 24, 4), (philox.TOKEN, 9107, 28, 5),
    (philox.TOKEN, 44970, 32, 6), (philox.TOKEN, 660030, 32, 7), (philox.TOKEN, 3759942, 3, 8),
    (philox.TOKEN, 2754631, 54, 9), (philox.TOKEN, 33682058, 39, 10),
    (philox.GROUP, 6, 1, 2), (philox.GROUP, 1058, 1, 3), (philox.GROUP, 1358, 3, 4), (philox.GROUP, 102925, 3, 5),
    (philox.GROUP, 51299, 1, 6), (philox.GROUP, 8424698, 1, 7), (philox.GROUP, 13730697, 2, 8),
    (philox.GROUP, 918493767, 5, 10),
)  # fmt: skip
NOISE = 1e-4  # nats: ten times the error of float32 noise and logits


def quantiles(engine: Engine, tick: Tick) -> Finding:
    """A token whose logit lies NOISE above the break-even wins; NOISE below, it loses. The same holds for a group."""
    least = 1.0
    for use, step, index, digits in QUANTILES:
        other = index ^ 1
        pair, streams = torch.tensor([index, other]), philox.stream_for(use, 0, torch.tensor(0))
        noise = philox.noise(pair, torch.tensor(1), torch.tensor(step), streams)
        v = philox.uniform(pair[:1], torch.tensor(1), torch.tensor(step), streams)
        assert -math.log10(1 - float(v)) > digits - 0.2
        size = philox.GROUP_SIZE if use == philox.GROUP else 1
        even = float(noise[1] - noise[0])  # the logit at which the two are equal
        x = torch.full((2, 2048), -math.inf)
        x[:, other * size], x[:, index * size] = 0.0, torch.tensor([even - NOISE, even + NOISE])
        got = fd.sample(x.to(engine.device), seed=1, step=step, streams=0).tokens.tolist()
        if got != [other * size, index * size]:
            what = "group" if use == philox.GROUP else "token"
            return Finding(
                False, f"the noise of a {what} at its quantile 1 - 1e-{digits} is off by more than {NOISE:g}"
            )
        least = min(least, math.exp(even))
    return Finding(
        True, f"{len(QUANTILES)} tokens and groups, down to a probability of {least:.0e}", f"noise {NOISE:g} off"
    )


def batch_invariance(engine: Engine, seed: int, tick: Tick) -> Finding:
    """A row draws the same tokens alone, at any place of a batch, with other strides and in other types."""
    x = torch.cat([row[None, :1000] for row in draws.rows(2048).values()]).repeat(16, 1) * 2.0
    x = (x + torch.linspace(-1, 1, 64000).view(64, 1000)).bfloat16().float().to(engine.device)
    streams = torch.arange(500, 564, device=engine.device)
    plan = fd.plan(fd.temperature(1.2), Rule("cut", (), cuts=(CUTS[1],)))

    def tokens(rows: torch.Tensor, of: torch.Tensor) -> torch.Tensor:
        return fd.sample(rows, plan, seed=seed, step=2, streams=of, num_samples=16).tokens

    want = tokens(x, streams)
    order = torch.randperm(64, generator=torch.Generator().manual_seed(seed)).to(engine.device)
    padded = torch.cat([x, torch.full_like(x[:, :3], math.nan)], 1)[:, :1000]
    found = {
        "in another place": torch.equal(tokens(x[order], streams[order]), want[order]),
        "alone": all(torch.equal(tokens(x[i : i + 1], streams[i : i + 1]), want[i : i + 1]) for i in range(0, 64, 5)),
        "with another stride": torch.equal(tokens(padded, streams), want),
        "in bfloat16": torch.equal(tokens(x.bfloat16(), streams), want),
    }
    wrong = [name for name, right in found.items() if not right]
    return Finding(
        not wrong, f"other tokens {', '.join(wrong)}" if wrong else f"64 rows x 16 draws: {', '.join(found)}"
    )


def per_row_seeds(engine: Engine, seed: int, tick: Tick) -> Finding:
    """Row i of a batch draws by its own seed; another seed changes that row and no other."""
    x = torch.linspace(0, 1, 600).expand(8, -1).contiguous().to(engine.device)
    seeds, streams = torch.arange(8, device=engine.device) * 7919 + seed, torch.full((8,), 5, device=engine.device)
    want = fd.sample(x, seed=seeds, streams=streams, num_samples=16).tokens
    for row in range(8):
        alone = fd.sample(x[:1], seed=int(seeds[row]), streams=5, num_samples=16).tokens
        if not torch.equal(alone, want[row : row + 1]):
            return Finding(False, f"row {row} does not draw what its seed draws alone")
        moved = seeds.clone()
        moved[row] += 1
        differs = (fd.sample(x, seed=moved, streams=streams, num_samples=16).tokens != want).any(1).tolist()
        if differs != [other == row for other in range(8)]:
            return Finding(False, f"another seed for row {row} changes rows {np.flatnonzero(differs).tolist()}")
    return Finding(True, "8 rows, each against its seed alone and against a change of its seed")


def flagged_rows(engine: Engine, seed: int, tick: Tick) -> Finding:
    """NaN: status 1, token -1; nothing finite: status 2, token -1; +inf takes all mass; other rows of the batch do not change."""
    x = torch.sin(torch.arange(6 * 700.0)).view(6, 700) * 4
    clean = fd.sample(x.to(engine.device), seed=seed, num_samples=8).tokens.cpu()
    x[1, 699], x[2], x[3, 17] = math.nan, -math.inf, math.inf
    got = fd.sample(x.to(engine.device), seed=seed, num_samples=8, stats=True)
    assert got.entropy is not None
    tokens, status = got.tokens.cpu(), got.status.tolist()
    masked = fd.truncate(x.to(engine.device), fd.plan(Rule("cut", (), cuts=(CUTS[0],)))).cpu()
    found = {
        "status": status == [0, NAN, 2, 0, 0, 0],
        "tokens of flagged rows": bool((tokens[1:3] == -1).all()) and got.kept.tolist()[1:3] == [0, 0],
        "statistics of flagged rows": bool(torch.stack([got.logprobs[:, 0], got.entropy]).cpu()[:, 1:3].isnan().all()),
        "+inf": bool((tokens[3] == 17).all()),
        "rows beside them": torch.equal(tokens[[0, 4, 5]], clean[[0, 4, 5]]),
        "the NaN in a mask": bool(masked[1, 699].isnan()) and not bool(masked[[0, 2, 3, 4, 5]].isnan().any()),
    }
    wrong = [name for name, right in found.items() if not right]
    return Finding(not wrong, f"wrong: {', '.join(wrong)}" if wrong else ", ".join(found))


def graph_replay(engine: Engine, seed: int, tick: Tick) -> Finding:
    """A replay of a captured call draws what an eager call draws at the step that the tensor holds then."""
    if engine.device.type != "cuda":
        return Finding(None, "no GPU in use")
    if engine.name == "reference":
        return Finding(None, "the reference is not made for graphs")
    x = draws.rows(128256)["long-tailed"].to(engine.device).repeat(4, 1)
    plan = fd.plan(fd.temperature(1.2), Rule("cut", (), cuts=(CUTS[1],)))
    plan.packed(x.device)
    step, streams = torch.zeros(4, dtype=torch.int64, device=x.device), torch.arange(4, device=x.device)
    seeds = torch.full((4,), seed, device=x.device)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        fd.sample(x, plan, seed=seeds, step=step, streams=streams)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = fd.sample(x, plan, seed=seeds, step=step, streams=streams).tokens
    seen = []
    for now in range(20):
        step.fill_(now)
        graph.replay()
        seen.append(captured.tolist())
        if seen[-1] != fd.sample(x, plan, seed=seed, step=now).tokens.tolist():
            return Finding(False, f"replay {now} draws other tokens than an eager call")
    different = len({tuple(tokens) for tokens in seen})
    return Finding(different > 10, f"20 replays as eager calls, {different} different answers")
