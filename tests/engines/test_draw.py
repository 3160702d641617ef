"""Here statistics judge the draw: G-tests of the reference's tokens against the distribution, at a sample size that was shown to
catch planted faults; every engine then has to draw the very same tokens. Seeds are fixed, so nothing here is a matter of luck.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache

import numpy as np
import pytest
import torch

import fastdecode as fd
from fastdecode import dispatch, philox
from fastdecode.engines import reference
from fastdecode.record import Draw
from tests.support.cases import INPUTS, PLANS, long_tail, normal, with_holes
from tests.support.tolerance import CAUGHT, FAIR, LEAD, LEAD_ROWS


def scipy_stats():
    """Asked for only where it judges: the engines are compared with the reference on a machine without scipy too."""
    return pytest.importorskip("scipy.stats")


STREAMS, SAMPLES = 64, 512
DRAWS = STREAMS * SAMPLES
SOFTMAX = fd.plan()
LEAST_EXPECTED = 5  # tokens expected less often share one bin


@dataclass(frozen=True)
class Shape:
    """One distribution, drawn from DRAWS times."""

    name: str
    seed: int
    plan: fd.Plan = SOFTMAX

    def logits(self) -> torch.Tensor:
        return {
            "flat 10": lambda: normal(1, 10, 0.5, 40),
            "flat 768": lambda: torch.zeros(1, 768),
            "tied 300": lambda: normal(1, 300, 1.5, 41).round(),
            "peaked 300": lambda: normal(1, 300, 3.0, 42),
            "long tail 2000": lambda: long_tail(1, 2000, 1.1, 43),
        }[self.name]()  # fmt: skip

    def packed(self) -> torch.Tensor:
        return self.plan.packed(torch.device("cpu"))


SHAPES = (
    Shape("flat 10", 1),
    Shape("flat 768", 2),
    Shape("tied 300", 3),
    Shape("peaked 300", 4),
    Shape("long tail 2000", 5),
    Shape("long tail 2000", 6, fd.plan(fd.temperature(1.3), fd.top_p(0.8))),
)


def probabilities(shape: Shape) -> np.ndarray:
    """The distribution to draw from, by plain arithmetic on the survivors."""
    rows = reference.survivors(shape.logits(), shape.packed(), shape.logits().shape[1])
    return torch.where(rows.keep, rows.x / rows.temperature, -math.inf).softmax(1)[0].numpy()


@cache
def drawn(shape: Shape) -> tuple[torch.Tensor, torch.Tensor]:
    """The reference's tokens and leads, [STREAMS, SAMPLES]."""
    one = reference.survivors(shape.logits(), shape.packed(), shape.logits().shape[1])
    found = []
    for streams in torch.arange(STREAMS).split(2):  # what fits into the cache is several times faster
        rows = reference.Survivors(*(part.expand(len(streams), *part.shape[1:]) for part in one))
        found.append(reference.draw_tokens(rows, Draw(shape.seed, 0, streams, SAMPLES, rows.x.shape[1])))
    tokens, leads = zip(*found)
    return torch.cat(tokens), torch.cat(leads)


def g_test(tokens: torch.Tensor, q: np.ndarray) -> float:
    """The p-value of a G-test; 0 if a token of probability 0 was drawn."""
    counts = np.bincount(tokens.flatten().numpy(), minlength=len(q)).astype(float)
    if counts[q == 0].any():
        return 0.0
    expected = q * counts.sum()
    often = expected >= LEAST_EXPECTED
    pairs = [(counts[often], expected[often])]
    if expected[~often].sum() >= LEAST_EXPECTED:
        pairs.append((counts[~often].sum(keepdims=True), expected[~often].sum(keepdims=True)))
    elif (~often & (q > 0)).any():  # too rare even together: they join the last bin
        pairs[0][0][-1] += counts[~often].sum()
        pairs[0][1][-1] += expected[~often].sum()
    observed, expected = (np.concatenate(part) for part in zip(*pairs))
    return (
        scipy_stats()
        .power_divergence(observed, expected * observed.sum() / expected.sum(), lambda_="log-likelihood")
        .pvalue
    )


@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: f"{s.name} {s.plan}")
def test_the_reference_draws_the_distribution(shape):
    assert g_test(drawn(shape)[0], probabilities(shape)) > FAIR


@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: f"{s.name} {s.plan}")
def test_the_engine_draws_the_same_tokens(engine, shape):
    tokens, lead = drawn(shape)
    got = fd.sample(shape.logits().expand(STREAMS, -1), shape.plan, seed=shape.seed, num_samples=SAMPLES).tokens
    differ = got != tokens
    assert not (differ & ~(lead < LEAD)).any()
    assert differ.sum() <= LEAD_ROWS * DRAWS


@pytest.mark.parametrize("num_samples", (1, 4))
@pytest.mark.parametrize("rule", (fd.top_p(0.9), fd.typical_p(0.9), fd.top_k(9000)), ids=str)
def test_a_temperature_after_a_rule_that_keeps_many_tokens(engine, rule, num_samples):
    """An engine may know sums at the temperature of the rule; the draw needs them at its own."""
    plan = fd.plan(fd.temperature(1.7), rule, fd.temperature(0.4))
    rows = normal(1, 32000, 3.0, 44).expand(8, -1)
    where = {"seed": 1, "streams": torch.arange(8), "num_samples": num_samples}
    got = [fd.sample(rows, plan, step=step, **where) for step in range(2)]
    with dispatch.use("reference"):
        right = [fd.sample(rows, plan, step=step, **where) for step in range(2)]
    assert int(right[0].kept[0]) > 4000, "few tokens are gathered and weighed anew"
    assert all(torch.equal(one.tokens, other.tokens) for one, other in zip(got, right))


# ---- faults that these tests must catch at this sample size -----------------------------------------------------------

PEAKED = SHAPES[3]


def test_three_per_cent_uniform_would_be_caught():
    tokens = drawn(PEAKED)[0].clone()
    dice = torch.Generator().manual_seed(50)
    mixed = torch.rand(tokens.shape, generator=dice) < 0.03
    tokens[mixed] = torch.randint(300, tokens.shape, generator=dice)[mixed]
    assert g_test(tokens, probabilities(PEAKED)) < CAUGHT


def test_a_temperature_five_per_cent_off_would_be_caught():
    hot = drawn(Shape(PEAKED.name, PEAKED.seed, fd.plan(fd.temperature(1.05))))[0]
    assert g_test(hot, probabilities(PEAKED)) < CAUGHT


@pytest.mark.parametrize("shape", [SHAPES[1], SHAPES[4]], ids=lambda s: s.name)
def test_missing_group_noise_would_be_caught(monkeypatch, shape):
    noise = philox.noise

    def silent_groups(index, seed, step, stream):
        return torch.where(stream >> 56 == philox.GROUP, 0.0, noise(index, seed, step, stream))

    monkeypatch.setattr(philox, "noise", silent_groups)
    faulty = Shape(shape.name, shape.seed + 1000)
    assert g_test(drawn(faulty)[0], probabilities(shape)) < CAUGHT


def test_a_lost_vector_would_be_caught():
    """The last 16 tokens, say, that a loop over vectors forgot."""
    shape = SHAPES[1]
    tokens = drawn(shape)[0].clone()
    tokens[tokens >= 752] -= 16
    assert g_test(tokens, probabilities(shape)) < CAUGHT


# ---- independence --------------------------------------------------------------------------------------------------

PAIRS = 2048


def independent(first: torch.Tensor, second: torch.Tensor, faces: int) -> float:
    """The p-value of a chi-square test of a table of pairs."""
    table = np.zeros((faces, faces))
    np.add.at(table, (first.numpy(), second.numpy()), 1)
    return scipy_stats().chi2_contingency(table).pvalue


@pytest.mark.parametrize("what", ["streams", "steps", "seeds", "samples", "far streams", "far seeds"])
def test_neighbours_are_independent(what):
    """Draws whose coordinates differ in one place only, by one or by one high bit, at a vocabulary of six."""
    count = torch.arange(2 * PAIRS)
    pair, other = count // 2, count % 2
    where = {
        "streams": {"streams": count},
        "steps": {"step": count, "streams": torch.tensor(5)},
        "seeds": {"seed": count, "streams": torch.tensor(5)},
        "far streams": {"streams": pair + (other << 39)},
        "far seeds": {"seed": pair + (other << 62), "streams": torch.tensor(5)},
        "samples": {},
    }[what]
    with dispatch.use("reference"):
        if what == "samples":
            tokens = fd.sample(torch.zeros(2 * PAIRS // 64, 6), seed=9, num_samples=64).tokens.flatten()
        else:
            tokens = fd.sample(torch.zeros(2 * PAIRS, 6), **{"seed": 9, **where}).tokens
    assert g_test(tokens, np.full(6, 1 / 6)) > FAIR
    assert independent(tokens[::2], tokens[1::2], 6) > FAIR
    assert independent(tokens[::2], tokens[::2], 6) < CAUGHT  # what the test sees where both are the same draw


def test_group_and_place_in_the_group_are_independent():
    tokens = drawn(SHAPES[1])[0].flatten()
    table = np.zeros((3, 16))
    np.add.at(table, ((tokens // 256).numpy(), (tokens % 256 // 16).numpy()), 1)
    assert scipy_stats().chi2_contingency(table).pvalue > FAIR


# ---- what may never be drawn ---------------------------------------------------------------------------------------


def check_never_drawn(draws: int) -> None:
    x = with_holes(normal(4, 1000, 3.0, 44), 900, 45)
    tokens = fd.sample(x, seed=11, num_samples=draws).tokens
    assert (x.gather(1, tokens) > -math.inf).all()
    x[:, 700:] += 20.0
    tokens = fd.sample(x, seed=12, num_samples=draws, vocab_limit=700).tokens
    assert (tokens >= 0).all() and (tokens < 700).all() and (x.gather(1, tokens) > -math.inf).all()
    kept = fd.truncate(x, PLANS["top_p(0.1)"].make(4)) > -math.inf
    assert kept.gather(1, fd.sample(x, PLANS["top_p(0.1)"].make(4), seed=13, num_samples=draws).tokens).all()


def check_ends_of_the_noise() -> None:
    """Coordinates of the words 0 and 2^32 - 1 (vectors/draws.txt): their noise is 22.87 and -3.13, neither infinite nor NaN."""
    token = {
        "seed": 1,
        "step": 3195072,
        "streams": torch.tensor([0]),
    }  # word 0 is that of token 667, in the group 512 .. 767
    x = torch.full((1, 1000), -math.inf)
    x[0, 512:768] = 0.0
    x[0, 667] = -10.0
    assert fd.sample(x, **token).tokens == 667
    x[0, 667] = -30.0
    assert fd.sample(x, **token).tokens != 667
    x[0, 667] = -math.inf
    assert fd.sample(x, **token).tokens != 667
    x[0, :] = -math.inf
    x[0, 656] = 0.0  # word 2^32 - 1, and the only one there is
    assert fd.sample(x, **{**token, "step": 354349}).tokens == 656

    group = {"seed": 1, "step": 918493767, "streams": torch.tensor([0])}  # word 0 is that of the group 1280 .. 1535
    x = torch.zeros(1, 4096)
    x[0, 1280:1536] = -12.0
    assert 1280 <= int(fd.sample(x, **group).tokens) < 1536
    x[0, 1280:1536] = -math.inf
    assert not 1280 <= int(fd.sample(x, **group).tokens) < 1536


def test_what_the_reference_never_draws(reference):
    check_never_drawn(256)
    check_ends_of_the_noise()


def test_what_the_engine_never_draws(engine):
    check_never_drawn(2**14)
    check_ends_of_the_noise()


# ---- seeds ---------------------------------------------------------------------------------------------------------


def test_no_seed_follows_torch(engine):
    x = INPUTS["V=257"].logits()
    torch.manual_seed(7)
    first, second = fd.sample(x).tokens, fd.sample(x).tokens
    torch.manual_seed(7)
    assert torch.equal(fd.sample(x).tokens, first) and torch.equal(fd.sample(x).tokens, second)
    assert not torch.equal(first, second)
    torch.manual_seed(8)
    assert not torch.equal(fd.sample(x).tokens, first)


def test_a_seed_leaves_torch_alone(engine):
    torch.manual_seed(7)
    expected = torch.rand(1)
    torch.manual_seed(7)
    fd.sample(INPUTS["V=257"].logits(), seed=3)
    assert torch.rand(1) == expected
