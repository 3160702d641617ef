"""Rows of logits to measure on, all from tests/support/cases.py: real ones, stand-ins for other vocabularies, and synthetic ones.

"real" at V = 49152 are rows of SmolLM2-135M. At other sizes there is no real data here, so these are STAND-INS: for a smaller V
the same random subset of the tokens of every row; for a larger one the row, followed by copies of itself, each OFFSET nats
below the one before and blurred by normal noise of JITTER nats. So they keep the shape of a real row (a few candidates, a
long tail), and the tail gets longer; they are not rows of a model of that vocabulary. A random subset often loses a row's best
candidates: at V = 32000 some rows are flatter than real ones, and top-p and typical keep more.
"""

from __future__ import annotations

from functools import cache

import torch

from fastdecode.cli.plot import check_finite, rows_of_file
from tests.support import cases

OFFSET, JITTER = 2.0, 0.25
V_MAIN = 128256
SYNTHETIC = ("flat", "peaked", "ties")
NORMAL = ("N(0,1)", "N(0,5)")  # what other projects measure on
KINDS = ("real", *SYNTHETIC, *NORMAL)


def rows(kind: str, vocab: int, count: int) -> torch.Tensor:
    """float32 [count, vocab] of one of KINDS; the same at every call."""
    if kind == "real":
        return _real(vocab, count)
    if kind == "flat":  # the scales of the inputs of these names in tests/support/cases.py
        return cases.normal(count, vocab, 0.3, 1)
    if kind == "peaked":
        return cases.normal(count, vocab, 8.0, 2)
    if kind == "ties":
        return cases.normal(count, vocab, 3.0, 5).round()
    if kind in NORMAL:
        return cases.normal(count, vocab, float(kind[4]), 6)
    raise ValueError(f"rows are {', '.join(KINDS)}; got {kind!r}.")


MOST_ROWS, SHORTEST = 64, 128  # of one's own; transformers' Top-H looks at 100 logits and fails where there are fewer


def own(path: str) -> torch.Tensor:
    """float32 [B, V] of a file.

    Raises:
        ValueError: it does not hold logits that every candidate can take.
    """
    found = rows_of_file(path)[:MOST_ROWS].float().contiguous()
    if found.shape[1] < SHORTEST:
        raise ValueError(
            f"--logits must hold rows of at least {SHORTEST} logits; those of {path!r} have {found.shape[1]}"
        )
    check_finite(found, path)
    return found


@cache
def _real(vocab: int, count: int) -> torch.Tensor:
    given = cases.real()
    step = max(1, len(given) // count)
    given = given[::step][:count]  # from all of the prompts
    own = given.shape[1]
    seeded = torch.Generator().manual_seed(vocab)
    if vocab <= own:
        chosen = torch.randperm(own, generator=seeded)[:vocab].sort().values
        return given[:, chosen].contiguous()
    tiles = [given]
    for i in range(1, -(-vocab // own)):
        tiles.append(given - OFFSET * i + JITTER * torch.randn(given.shape, generator=seeded))
    return torch.cat(tiles, 1)[:, :vocab].contiguous()
