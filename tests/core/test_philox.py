"""Here published vectors (Random123) judge the generator, and vectors of our own, generated once from the torch reference and
then fixed, judge the way from coordinates to a word, to noise, to a token: in the reference and in every engine.
"""

from __future__ import annotations

import hashlib
import math

import numpy as np
import pytest
import torch

import fastdecode as fd
from fastdecode import dispatch, philox
from tests import ROOT
from tests.support.tolerance import NOISE, NOISE_OF_ENGINE

VECTORS = ROOT / "tests" / "vectors"


def lines(name: str, kind: str) -> list[list[str]]:
    found = [line.split()[1:] for line in (VECTORS / name).read_text().splitlines() if line.startswith(kind + " ")]
    assert found, f"{name} holds no line {kind!r}"
    return found


def known_answers() -> list[tuple[list[int], list[int], list[int]]]:
    rows = [[int(word, 16) for word in line[1:]] for line in lines("philox.txt", "philox4x32") if line[0] == "10"]
    assert all(any(row[6:]) for row in rows)
    return [(row[:4], row[4:6], row[6:]) for row in rows]


NOISES = [(*map(int, line[:6]), int(line[6], 16), float(line[7])) for line in lines("draws.txt", "noise")]
TOKENS = [(*map(int, line[:5]), float(line[5]), int(line[6])) for line in lines("draws.txt", "token")]


def logits_of(vocab: int) -> torch.Tensor:
    """A row that any language can make: x[i] = ((7919 i) mod 1009) / 64."""
    return (torch.arange(vocab) * 7919 % 1009).float() / 64


@pytest.mark.parametrize("counter, key, expected", known_answers())
def test_published_vectors(counter, key, expected):
    as_tensors = [tuple(torch.tensor([word]) for word in words) for words in (counter, key)]
    assert [int(word) for word in philox.philox4x32_10(*as_tensors)] == expected


@pytest.mark.parametrize("counter, key, expected", known_answers())
def test_published_vectors_in_the_engine(engine, counter, key, expected):
    compiled = getattr(dispatch.ENGINES[engine.name], "_native", None)
    if compiled is None:
        pytest.skip("this engine shows its generator through its tokens alone")
    assert list(compiled.philox4x32_10(counter, key)) == expected


def coordinates(use: int, seed: int, step: int, sample: int, request: int, index: int) -> tuple[torch.Tensor, ...]:
    stream = philox.stream_for(use, sample, torch.tensor([request]))
    return torch.tensor([index]), torch.tensor([seed]), torch.tensor([step]), stream


def test_words_and_noise():
    assert {w for *_, w, _ in NOISES} >= {0, 0xFFFFFFFF}, "both ends of the words must be among the vectors"
    for *where, word, noise in NOISES:
        assert int(philox.words(*coordinates(*where))) == word
        got = float(philox.noise(*coordinates(*where)))
        assert abs(got - noise) <= NOISE * abs(noise)
        v = 1 - (word + 0.5) * 2.0**-32
        assert abs(noise + math.log(-math.log(v))) <= NOISE * abs(noise)


def test_noise_in_the_engine(engine):
    compiled = getattr(dispatch.ENGINES[engine.name], "_native", None)
    if compiled is None:
        pytest.skip("this engine shows its noise through its tokens alone")
    for use, seed, step, sample, request, index, _, noise in NOISES:
        stream = int(philox.stream_for(use, sample, torch.tensor(request)))
        exponential = compiled.exponential(seed % 2**64, step, stream % 2**64, index)
        assert abs(exponential - math.exp(-noise)) <= NOISE_OF_ENGINE * math.exp(-noise)


def check_tokens() -> None:
    for seed, step, request, sample, vocab, temperature, token in TOKENS:
        drawn = fd.sample(
            logits_of(vocab), fd.plan(fd.temperature(temperature)), seed=seed, step=step, streams=request, num_samples=sample + 1
        )  # fmt: skip
        assert int(drawn.tokens[sample]) == token


def test_tokens_of_the_reference(reference):
    check_tokens()


def test_tokens_of_the_engine(engine):
    check_tokens()


def test_noise_has_both_tails():
    """The largest noise is finite and belongs to word 0; a uniform of 24 bits would end at 16.6, one that rounds to 1 at inf."""
    ends = {word: noise for *_, word, noise in NOISES if word in (0, 0xFFFFFFFF)}
    assert math.floor(ends[0] * 10) == 228 and math.ceil(ends[0xFFFFFFFF] * 10) == -31


def test_noise_of_many_words_is_gumbel():
    """Mean and variance of 2^18 noises: Euler's constant and pi^2 / 6, within four standard errors."""
    noise = philox.noise(torch.arange(2**18), *(torch.tensor([n]) for n in (1, 2, 3)))
    assert noise.isfinite().all() and noise.dtype == torch.float64
    n, variance = noise.numel(), math.pi**2 / 6
    assert abs(noise.mean() - 0.5772156649) < 4 * math.sqrt(variance / n)
    assert abs(noise.var() - variance) < 4 * math.sqrt(4.4 / n) * variance


def test_streams_never_share_a_word():
    """Uses, samples and requests take disjoint bits."""
    pairs = {
        int(philox.stream_for(use, sample, torch.tensor(request)))
        for use in (philox.TOKEN, philox.GROUP) for sample in (0, 1, 2**16 - 1) for request in (0, 1, 2**40 - 1)
    }  # fmt: skip
    assert len(pairs) == 18
    assert philox.GROUP_SIZE == 256 and (philox.STREAM_BITS, philox.SAMPLE_BITS) == (40, 16)


# ---- ids of 64 bits --------------------------------------------------------------------------------------------------


def by_hand(seed: int, number: int) -> tuple[int, int]:
    """The formula of the docstring, in Python's own whole numbers; the seed signed, as int64 has it."""
    mixed = (seed + (number % 2**64 >> 40) * 0x9E3779B97F4A7C15) % 2**64
    return (mixed + 2**63) % 2**64 - 2**63, number % 2**40


IDS = [0, 5, 2**40 - 1, 2**40, 2**63 - 1, 2**63, 2**64 - 1, -1, -(2**63), 0x0123456789ABCDEF]


@pytest.mark.parametrize("seed", [0, 7, -3, 2**63, 2**64 - 1])
def test_seed_and_streams_by_hand(seed):
    want = [by_hand(seed, n) for n in IDS]
    assert [fd.seed_and_streams(seed, n) for n in IDS] == want
    signed = torch.tensor([(n + 2**63) % 2**64 - 2**63 for n in IDS])
    for given in (IDS, tuple(IDS), signed, np.array([n % 2**64 for n in IDS], np.uint64)):
        for start in (seed, [seed] * len(IDS)):
            seeds, streams = fd.seed_and_streams(start, given)
            assert list(zip(seeds.tolist(), streams.tolist())) == want
    assert fd.seed_and_streams(7, 2**40) == (7 - 0x61C8864680B583EB, 0), "a vector: 2^64 - 0x9E37... is 0x61C8..."


def test_texts_stand_for_their_hash():
    for text in ("", "req-7", "Grüße"):
        data = text.encode("utf-8")
        number = int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little")
        assert fd.seed_and_streams(7, text) == fd.seed_and_streams(7, data) == by_hand(7, number)
        seeds, streams = fd.seed_and_streams(7, [text, 5])
        assert list(zip(seeds.tolist(), streams.tolist())) == [by_hand(7, number), (7, 5)]
    # Computed once with `b2sum -l 64`, bytes in the order of the digest: it must never change.
    assert fd.seed_and_streams(0, "request-1") == by_hand(
        0, int.from_bytes(bytes.fromhex("fa817c4d2a037864"), "little")
    )


def test_ids_of_64_bits_never_share_noise():
    """No two ids of a seed share a place; and seeds that lie near each other have no place in common."""
    multiples = np.arange(1, 2**24, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    ordered = np.sort(multiples)  # np.unique takes twenty times as long
    assert (ordered[1:] > ordered[:-1]).all()
    assert int(np.minimum(multiples, ~multiples + np.uint64(1)).min()) > 2**39


def test_ids_of_64_bits_draw(engine):
    x = torch.zeros(4, 1000)
    ids = torch.tensor([3, 3 + 2**40, 3 - 2**40, 3 + 2**62])
    seed, streams = fd.seed_and_streams(9, ids)
    drawn = fd.sample(x, seed=seed, streams=streams, num_samples=8).tokens
    assert len({tuple(row) for row in drawn.tolist()}) == 4
    assert torch.equal(drawn[0], fd.sample(x[:1], seed=9, streams=3, num_samples=8).tokens[0]), "small ids are streams"
    for row, number in enumerate(ids.tolist()):
        seed, stream = fd.seed_and_streams(9, number)
        assert torch.equal(drawn[row], fd.sample(x[0], seed=seed, streams=stream, num_samples=8).tokens)


@pytest.mark.parametrize(
    "wrong", [2**64, -(2**63) - 1, 1.5, None, [1, "a", 2.0], torch.zeros(2), torch.zeros(2, 2, dtype=torch.int64)]
)
def test_ids_that_are_none(wrong):
    with pytest.raises(
        ValueError,
        match=r"^ids must be a 64-bit whole number, or one for each row: a list or an int64 tensor; got .*\.$",
    ):
        fd.seed_and_streams(1, wrong)
