"""Soft tokens in two calls of the engine, against the straightforward torch code that research forks run.

python -m bench.studies.soft [--quick] [--out FOLDER]      one thread, candidates in turn; a line of JSON for each case

**mix**: logits to ids, weights, token and entropy: temperature .6, top-k 30, top-p .95, the five largest, noise. **embed**: those
weights to the embedding, 2048 columns; tables have 32768 rows, far more than a cache holds, and ids are taken modulo that. "op by
op" sorts the row, as the forks do, and "topk" is what a careful reader makes of it. Nothing is timed before pi, entropy, the noise's
formula and embeddings agree. For multi the torch code counts no token twice: it returns the k drawn tokens.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch

import fastdecode as fd
from fastdecode.record import NOISES

from .. import RESULTS, machine
from ..rows import rows
from ..timing import Candidate, measure

T, TOP_K, TOP_P, TOP_M, TAU, GAMMA, K = 0.6, 30, 0.95, 5, 0.5, 4.0, 3
PLAN = fd.plan(fd.temperature(T), fd.top_k(TOP_K), fd.top_p(TOP_P))
COLUMNS, TABLE_ROWS = 2048, 32768
OURS, SORTED, PICKED = "fd", "op by op", "topk"
ALLOWED = 2e-5  # of weights and entropies, absolute: a float32 softmax over a whole vocabulary, and sums of it


def truncated(x: torch.Tensor, sort: bool) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Probabilities, largest first, their ids, and the entropy."""
    p = torch.softmax(x / T, dim=-1)
    entropy = -(p * p.clamp(min=1e-12).log()).sum(-1)
    if sort:
        p, ids = p.sort(dim=-1, descending=True)
        p = torch.where(torch.arange(p.shape[1]) < TOP_K, p, 0.0)
    else:
        p, ids = p.topk(TOP_K, dim=-1)
    p = p / p.sum(-1, keepdim=True)
    p = torch.where(p.cumsum(-1) - p < TOP_P, p, 0.0)
    return p / p.sum(-1, keepdim=True), ids, entropy


def by_torch(x: torch.Tensor, noise: str, sort: bool) -> tuple[torch.Tensor, ...]:
    p, ids, entropy = truncated(x, sort)
    if noise == "multi":
        place = torch.multinomial(p, K, replacement=True)
        drawn = ids.gather(1, place)
        return drawn, torch.full(drawn.shape, 1 / K), drawn.mode(1).values, entropy
    pi, place = p.topk(TOP_M, dim=-1)
    pi, ids = pi / pi.sum(-1, keepdim=True), ids.gather(1, place)
    if noise == "gumbel":
        g = -torch.empty_like(pi).exponential_().log()
        pi = torch.softmax((pi.log() + g) / TAU, dim=-1)
    elif noise == "dirichlet":
        y = torch.where(pi > 0, torch._standard_gamma(torch.where(pi > 0, pi * GAMMA, 1.0)), 0.0)
        pi = y / y.sum(-1, keepdim=True)
    pi, order = pi.sort(dim=-1, descending=True)
    ids = ids.gather(1, order)
    return ids, pi, ids[:, 0], entropy


def ours(x: torch.Tensor, noise: str) -> fd.SoftTokens:
    return fd.soft_tokens(x, PLAN, noise=noise, tau=TAU, top_m=TOP_M, gamma=GAMMA, k=K, seed=1)


def check_mixing(x: torch.Tensor) -> None:
    """pi, entropy, and the formula of gumbel given its noise; the law of dirichlet and multi is a matter of the tests."""
    soft = ours(x, "none")
    for sort in (True, False):
        ids, pi, _, entropy = by_torch(x, "none", sort)
        there = pi > 0
        if not torch.equal(torch.where(there, ids, -1), soft.ids) or (pi - soft.weights).abs().max() > ALLOWED:
            raise SystemExit("the torch code finds another pi")
        if (entropy - soft.entropy).abs().max() > 10 * ALLOWED:
            raise SystemExit("the torch code finds another entropy")
    noisy = ours(x, "gumbel")
    y = ((noisy.log_pi + noisy.noise) / TAU).masked_fill(noisy.ids < 0, -torch.inf).softmax(1)
    if (y - noisy.weights).abs().max() > ALLOWED:
        raise SystemExit("gumbel's weights are not those of its noise")


def embed_by_torch(soft: fd.SoftTokens, table: torch.Tensor) -> torch.Tensor:
    return (soft.weights.to(table.dtype)[..., None] * table[soft.ids.clamp(min=0)]).sum(1)


def embedding_of(x: torch.Tensor) -> fd.SoftTokens:
    soft = ours(x, "gumbel")
    return replace(soft, ids=torch.where(soft.ids < 0, -1, soft.ids % TABLE_ROWS))


def embedding(function: Callable, table: torch.Tensor) -> Callable:
    def bind(x: torch.Tensor) -> Callable:
        soft = embedding_of(x)
        return lambda: function(soft, table)

    return bind


def check_embedding(x: torch.Tensor, table: torch.Tensor) -> None:
    soft = embedding_of(x)
    exact = embed_by_torch(soft, table.double())
    if (fd.soft_embedding(soft, table) - exact).abs().max() > 4 * torch.finfo(table.dtype).eps * exact.abs().max():
        raise SystemExit("the embedding is another")


def case(
    what: str, noise: str, inputs: list[torch.Tensor], candidates: dict[str, Callable], rounds: int, **more: object
) -> dict:
    neighbours = machine.Neighbours()
    found = measure([Candidate(name, bind) for name, bind in candidates.items()], inputs, rounds)
    medians = {name: timing.median for name, timing in found.items()}
    record = {
        "what": what, "noise": noise, "V": inputs[0].shape[1], "B": len(inputs[0]), "M": TOP_M, "threads": torch.get_num_threads(), **more,
        "us_per_row": {name: timing.summary() for name, timing in found.items()},
        "times_ours": {name: round(median / medians[OURS], 2) for name, median in medians.items() if name != OURS},
        "others_busy": neighbours.share(), **machine.commit(), "machine": machine.machine(),
    }  # fmt: skip
    told = ", ".join(f"{name} {median:.1f}" for name, median in medians.items())
    print(f"{what} {noise:9} V={record['V']} B={record['B']} {more.get('dtype', '')}: {told} us a row", flush=True)
    return record


def some_rows(vocab: int, batch: int) -> torch.Tensor:
    """Real rows, whose float16 ties are broken: the torch code keeps any of those at an edge, and agrees with nobody about them."""
    x = rows("real", vocab, 6 if batch == 1 else batch)
    return x + 1e-3 * torch.randn(x.shape, generator=torch.Generator().manual_seed(batch))


def run(vocabularies: tuple[int, ...], batches: tuple[int, ...], noises: tuple[str, ...], rounds: int) -> list[dict]:
    records = []
    for vocab in vocabularies:
        for batch in batches:
            x = some_rows(vocab, batch)
            check_mixing(x)
            inputs = [x[i : i + 1] for i in range(len(x))] if batch == 1 else [x]
            for noise in noises:
                candidates = {
                    OURS: lambda x, noise=noise: lambda: ours(x, noise),
                    SORTED: lambda x, noise=noise: lambda: by_torch(x, noise, True),
                    PICKED: lambda x, noise=noise: lambda: by_torch(x, noise, False),
                }
                records.append(case("mix", noise, inputs, candidates, rounds, dtype="float32"))
    for dtype in (torch.float32, torch.bfloat16):
        table = torch.randn(TABLE_ROWS, COLUMNS, generator=torch.Generator().manual_seed(1)).to(dtype)
        for batch in batches:
            x = some_rows(vocabularies[0], batch)
            check_embedding(x, table)
            inputs = [x[i : i + 1] for i in range(len(x))] if batch == 1 else [x]
            candidates = {OURS: embedding(fd.soft_embedding, table), SORTED: embedding(embed_by_torch, table)}
            name = str(dtype).removeprefix("torch.")
            records.append(case("embed", "gumbel", inputs, candidates, rounds, dtype=name, D=COLUMNS))
    return records


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.studies.soft", description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="one vocabulary and two kinds of noise; writes nothing")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder for the results")
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    torch.manual_seed(1)
    if given.quick:
        run((128256,), (1,), ("none", "gumbel"), 2)
        return 0
    records = run((128256, 151936), (1, 8, 64), NOISES, 5)
    path = given.out / f"soft-{machine.short_name()}.jsonl"
    path.write_text("".join(json.dumps(r) + "\n" for r in records), encoding="utf-8")
    print(f"written: {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
