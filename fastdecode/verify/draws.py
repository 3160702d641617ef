"""Is the distribution right? The tests look at draws alone, so they can judge any sampler: an engine, or a peer.

Every test has the level statistics.LEVEL, and says which fault it finds with probability statistics.POWER.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import partial

import numpy as np
import torch

from . import statistics
from .finding import Check, Finding, Tick
from .samplers import Effort, Sampler
from .statistics import LEVEL, POWER

# Noise made of 24-bit uniforms ends 24 ln 2 above its centre. A token HEAD above VOCAB - 1 equal ones then takes the draws that they
# would win beyond that end, 84 % of their share. At this height the loss shows in the fewest draws.
HEAD = 24 * math.log(2) + math.log(3.3)
TAIL_VOCAB = 128256
LOST = 0.84


def rows(vocab: int) -> dict[str, torch.Tensor]:
    """Logits [V] of four kinds, the same at every call."""
    dice = np.random.default_rng(2026)
    ranks = np.log(np.arange(1, vocab + 1))
    made = {
        "flat": dice.standard_normal(vocab) * 0.3,
        "peaked": dice.permutation(-2.0 * ranks),
        "tied": np.round(dice.standard_normal(vocab) * 1.5),
        "long-tailed": dice.permutation(-1.05 * ranks),
    }
    return {name: torch.from_numpy(row).float() for name, row in made.items()}


def checks(sampler: Sampler, effort: Effort, seed: int) -> Iterator[Check]:
    for place, (name, row) in enumerate(rows(effort.vocab).items()):
        yield Check(f"draws, {name} row", partial(distribution, sampler, row, effort.draws, seed + place))
    yield Check("draws, thin tail", partial(tail, sampler, effort.tail_draws, seed + 10))
    yield Check("draws are independent", partial(independence, sampler, effort.pairs, seed + 11))
    yield Check("-inf is never drawn", partial(never, sampler, effort, seed + 12))


# ---- the distribution ------------------------------------------------------------------------------------------------


def distribution(sampler: Sampler, row: torch.Tensor, draws: int, seed: int, tick: Tick) -> Finding:
    """G-tests of the same draws in three binnings: by rank, by id, and by place in a group of 256."""
    p = row.double().softmax(0).numpy()
    ids = np.arange(len(p))
    orders = {"rank": np.argsort(-p, kind="stable"), "id": ids, "id mod 256": np.argsort(ids % 256, kind="stable")}
    into = {name: statistics.bins(p, order, draws) for name, order in orders.items()}
    tokens = sampler.draw(row, draws, seed).numpy()
    tick(0.7)
    p_values = {}
    for name, b in into.items():
        counts = b.counts(tokens)
        p_values[name] = 0.0 if counts is None else statistics.g_test(counts, b.mass)
    worst = min(p_values, key=p_values.__getitem__)
    seen = f"least p {p_values[worst]:.2g}, binned by {worst}; {_many(draws)} draws, V = {len(p)}"
    return Finding(p_values[worst] >= LEVEL, seen, _smallest(row.double().numpy(), list(into.values()), draws))


def _smallest(x: np.ndarray, into: list[statistics.Bins], draws: int) -> str:
    p, ascending = _softmax(x), np.argsort(x, kind="stable")

    def dropped(share: float) -> np.ndarray:
        q = p.copy()
        q[ascending[: int(share * len(q))]] = 0.0
        return q / q.sum()

    faults: dict[str, tuple[Callable[[float], np.ndarray], float]] = {
        "temperature {} off": (lambda size: _softmax(x / (1 + size)), 1.0),
        "{} uniform mixed in": (lambda size: (1 - size) * p + size / len(p), 1.0),
        "lowest {} of V lost": (dropped, 1 - 2 / len(p)),
    }
    found = []
    for words, (fault, largest) in faults.items():
        size = statistics.smallest(fault, into, draws, largest)
        if size is not None and size < 0.5 * largest:
            found.append(words.format(_percent(size)))
    return ", ".join(found)


def _softmax(x: np.ndarray) -> np.ndarray:
    w = np.exp(x - x.max())
    return w / w.sum()


# ---- the tail --------------------------------------------------------------------------------------------------------


def tail(sampler: Sampler, draws: int, seed: int, tick: Tick) -> Finding:
    """The number of draws that fall on 128255 tokens, each with 2e-8 of the largest probability."""
    p = (TAIL_VOCAB - 1) / (TAIL_VOCAB - 1 + math.exp(HEAD))
    power = statistics.binomial_power(draws, p, p * (1 - LOST)) if draws else 0.0
    if power < POWER:
        return Finding(None, "left out: so few draws would not find 24-bit noise; run it without --quick")
    row = torch.zeros(TAIL_VOCAB)
    row[777] = HEAD
    count, done = 0, 0
    while done < draws:
        some = min(draws - done, max(1, draws // 16))
        count += int((sampler.draw(row, some, seed + 1000 * done) != 777).sum())
        done += some
        tick(done / draws)
    value = statistics.binomial_test(count, draws, p)
    seen = (
        f"p {value:.2g}: {count} draws from the tail, {p * draws:.0f} expected; {_many(draws)} draws, V = {TAIL_VOCAB}"
    )
    return Finding(
        value >= LEVEL,
        seen,
        f"this tail {_percent(statistics.thinner(draws, p))} too thin; 24-bit noise takes {_percent(LOST)} of it",
    )


# ---- independence ----------------------------------------------------------------------------------------------------

FACES = 8


def independence(sampler: Sampler, pairs: int, seed: int, tick: Tick) -> Finding:
    """G-tests of tables of pairs of draws at neighbouring coordinates."""
    row = torch.linspace(0.0, 1.0, FACES)
    p = row.double().softmax(0).numpy()
    table = np.outer(p, p).ravel()
    p_values = {}
    for name, drawn in sampler.pairs(row, pairs, seed).items():
        cells = (drawn[:, 0] * FACES + drawn[:, 1]).numpy()
        p_values[name] = statistics.g_test(np.bincount(cells, minlength=FACES * FACES), table)
    worst = min(p_values, key=p_values.__getitem__)
    whole = statistics.Bins(np.arange(FACES * FACES), table)
    copied = np.diag(p).ravel()
    share = statistics.smallest(lambda size: (1 - size) * table + size * copied, [whole], pairs)
    seen = f"least p {p_values[worst]:.2g}, neighbouring {worst}; {_many(pairs)} pairs each of {', '.join(p_values)}"
    return Finding(p_values[worst] >= LEVEL, seen, f"{_percent(share or 1.0)} of draws copied from a neighbour")


# ---- what may never be drawn -----------------------------------------------------------------------------------------


def never(sampler: Sampler, effort: Effort, seed: int, tick: Tick) -> Finding:
    """-inf is never drawn. The rows are narrow or have few finite tokens, so that many draws are cheap. An engine is tested on two paths:
    over the whole row, and, through a cut that removes nothing, over a list of survivors."""
    made = (
        (0.65, _with_holes(effort.holes_vocab, 3, 1), True),
        (0.15, _with_holes(64, 3, 2), True),
        (0.1, _with_holes(8, 1, 3), False),
        (0.1, _with_holes(256, 128, 4), False),
    )
    wrong, done = 0, 0
    for share, row, listed in made:
        forbidden = row == -math.inf
        left = math.ceil(share * effort.never)
        while left > 0:
            some = min(left, 2**20)
            wrong += int(forbidden[sampler.draw(row, some, seed + done, listed)].sum())
            left, done = left - some, done + some
            tick(done / effort.never)
    widths = ", ".join(f"{int((row > -math.inf).sum())} of {len(row)}" for _, row, _ in made)
    seen = f"{wrong} in {_many(done)} draws; rows with {widths} tokens finite"
    return Finding(wrong == 0, seen, f"a rate of {statistics.unseen(done):.1g} a draw")


def _with_holes(vocab: int, finite: int, seed: int) -> torch.Tensor:
    dice = np.random.default_rng(seed)
    row = np.full(vocab, -math.inf)
    row[dice.permutation(vocab)[:finite]] = dice.standard_normal(finite)
    return torch.from_numpy(row).float()


def _many(count: int) -> str:
    return f"{count:.1e}" if count >= 10**6 else str(count)


def _percent(share: float) -> str:
    return f"{100 * share:.2g} %"
