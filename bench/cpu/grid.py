"""Which cases are measured: the full grid within ten minutes on two cores, the quick one within one."""

from __future__ import annotations

from dataclasses import dataclass

from ..plans import MAIN, RULES
from ..rows import V_MAIN

V_REAL = 49152  # where the rows are a model's own
VOCABULARIES = (32000, V_REAL, V_MAIN, 151936, 262144)
ALL_PEERS = frozenset({"hf", "torch", "torch, cumsum", "numpy", "llama.cpp"})


@dataclass(frozen=True)
class Group:
    """Rows and rules that are verified once and then measured in each of the shapes: (B, threads)."""

    rows: str
    vocab: int
    temperature: float
    rules: tuple[str, ...]
    dtype: str = "float32"
    count: int = 16  # rows; a batch of one is measured on each of them
    shapes: tuple[tuple[int, int], ...] = ((1, 1),)
    whats: tuple[str, ...] = ("token", "mask")
    peers: frozenset[str] = frozenset({"hf"})
    peer_rows: int = 8  # of a batch of one
    rounds: int = 5  # a batch of one
    batch_rounds: int = 21


BATCHES = ((8, 1), (8, 2), (32, 1), (32, 2))


def full() -> list[Group]:
    names = tuple(case.name for case in RULES)
    groups = [Group("real", V_MAIN, t, names, count=32, peers=ALL_PEERS, peer_rows=16, rounds=9) for t in (1.0, 2.0)]
    groups.append(Group("real", V_MAIN, 1.5, ("top_h .4", "top_k 50, top_p .95"), peers=ALL_PEERS))
    groups += [Group("real", V_REAL, t, names, count=32, peer_rows=16, rounds=9, peers=ALL_PEERS) for t in (1.0, 2.0)]
    groups += [
        Group("real", vocab, t, MAIN, count=16 if vocab < 200_000 else 8)
        for vocab in VOCABULARIES if vocab not in (V_MAIN, V_REAL) for t in (1.0, 2.0)
    ]  # fmt: skip
    groups += [
        Group("real", V_MAIN, t, MAIN, dtype="bfloat16", peers=frozenset({"hf", "hf given float32"}))
        for t in (1.0, 2.0)
    ]
    groups.append(Group("real", V_MAIN, 1.0, MAIN, count=32, shapes=BATCHES))
    groups.append(Group("real", V_MAIN, 2.0, ("min_p .05", "top_p .95"), count=32, shapes=BATCHES, whats=("token",)))
    groups += [
        Group("real", vocab, 1.0, ("min_p .05", "top_p .95"), count=32, shapes=((32, 1), (32, 2)), whats=("token",))
        for vocab in VOCABULARIES if vocab != V_MAIN
    ]  # fmt: skip
    groups.append(
        Group("real", V_MAIN, 1.0, ("min_p .05", "top_p .95"), "bfloat16", 32, ((32, 1), (32, 2)), ("token",))
    )
    groups += [Group(rows, V_MAIN, 1.0, MAIN, count=8, peer_rows=4) for rows in ("flat", "peaked", "ties")]
    return groups


def quick(rules: tuple[str, ...] = MAIN[1:], rows: str = "real", vocab: int = V_MAIN, count: int = 16) -> list[Group]:
    return [Group(rows, vocab, 1.0, rules, count=count, whats=("token",), rounds=9, peers=ALL_PEERS)]


def own(vocab: int, count: int) -> list[Group]:
    """One's own rows; batches of them where they suffice."""
    names = tuple(case.name for case in RULES)
    groups = [Group("own", vocab, t, names, count=count, peer_rows=16, rounds=9, peers=ALL_PEERS) for t in (1.0, 2.0)]
    shapes = tuple((batch, threads) for batch, threads in BATCHES if batch <= count)
    return [*groups, Group("own", vocab, 1.0, MAIN, count=count, shapes=shapes)] if shapes else groups


def tiny() -> list[Group]:
    """For the tests: seconds."""
    some = ("none", "top_p .95")
    return [
        Group("real", 2000, 1.0, some, count=4, peers=ALL_PEERS, peer_rows=2, rounds=2),
        Group(
            "real", 2000, 2.0, some[1:], "bfloat16", 8, ((8, 2),), rounds=2, peers=frozenset({"hf", "hf given float32"})
        ),
    ]
