"""Here statistics judge what is random about soft tokens, at sample sizes that were shown to catch planted faults. Seeds are fixed,
so nothing here is a matter of luck.
"""

from __future__ import annotations

import math
from functools import cache

import pytest
import torch

import fastdecode as fd
from fastdecode import philox
from tests import ROOT
from tests.engines.test_draw import g_test
from tests.support.cases import normal
from tests.support.tolerance import CAUGHT, ERRORS_CAUGHT, ERRORS_FAIR, FAIR

N = 40_000
PI = torch.tensor([0.6, 0.3, 0.1])

# SPEC 4.2, from 200 000 draws: mean y, mean max y, mean entropy.
TABLE = {
    ("gumbel", 0.3): ((0.589, 0.304, 0.106), 0.890, 0.27),
    ("gumbel", 0.5): ((0.572, 0.312, 0.117), 0.823, 0.42),
    ("gumbel", 0.9): ((0.533, 0.324, 0.144), 0.715, 0.66),
    ("dirichlet", 1.0): ((0.600, 0.300, 0.100), 0.804, 0.44),
    ("dirichlet", 4.0): ((0.600, 0.300, 0.100), 0.673, 0.71),
}
ARGMAX = {1.0: (0.630, 0.283, 0.087), 4.0: (0.733, 0.223, 0.044)}  # of dirichlet; of gumbel it is PI


@cache
def mixtures(noise: str, strength: float, pi: tuple = tuple(PI.tolist()), **options) -> torch.Tensor:
    """[N, tokens] weights of N streams."""
    x = torch.tensor(pi).log().expand(N, -1)
    named = (
        {"tau": strength}
        if noise == "gumbel"
        else {"gamma": strength}
        if noise == "dirichlet"
        else {"k": int(strength)}
    )
    soft = fd.soft_tokens(x, noise=noise, top_m=len(pi), seed=77, **named, **options)
    assert (soft.status == 0).all()
    spare = torch.where(soft.ids < 0, len(pi), soft.ids)
    return torch.zeros(N, len(pi) + 1).scatter(1, spare, soft.weights)[:, : len(pi)].double()


def errors(sample: torch.Tensor, mean: float, rounded: float = 0.0) -> float:
    """How many standard errors the mean of a sample is off; `rounded`: by how much the expected one may be."""
    return max(0.0, float((sample.mean() - mean).abs()) - rounded) / float(sample.std() / math.sqrt(len(sample)))


@pytest.mark.parametrize("noise, strength", TABLE)
def test_the_table_of_the_recipe(noise, strength):
    """Its digits are those of another sample of 200 000, whose errors are under half of ours."""
    y = mixtures(noise, strength)
    means, largest, entropy = TABLE[noise, strength]
    half = {3: 0.0005, 2: 0.005}
    for i, mean in enumerate(means):
        assert errors(y[:, i], mean, half[3]) < ERRORS_FAIR
    assert errors(y.amax(1), largest, half[3]) < ERRORS_FAIR
    assert errors(torch.special.entr(y).sum(1), entropy, half[2]) < ERRORS_FAIR
    for i, share in enumerate(PI.tolist() if noise == "gumbel" else ARGMAX[strength]):
        assert errors((y.argmax(1) == i).double(), share, half[3]) < ERRORS_FAIR


def test_the_table_tells_its_lines_apart():
    """Each line's means are far from those of its neighbour: tau .5 is not tau .3, gamma 1 is not gamma 4."""
    for line, other in ((("gumbel", 0.5), ("gumbel", 0.3)), (("dirichlet", 4.0), ("dirichlet", 1.0))):
        assert errors(mixtures(*line).amax(1), TABLE[other][1], 0.0005) > ERRORS_CAUGHT


@pytest.mark.parametrize("tau", [0.05, 0.5, 3.0])
def test_the_largest_weight_of_gumbel_is_a_draw_from_pi(tau):
    assert g_test(mixtures("gumbel", tau).argmax(1), PI.numpy()) > FAIR


def test_noise_scaled_by_tau_would_be_caught():
    """What a fault in the formula would do: softmax(ln pi / tau + g) sharpens pi; here the scale is off by a tenth only."""
    y = mixtures("gumbel", 0.5, scale=0.9)
    assert g_test(y.argmax(1), PI.numpy()) < CAUGHT


def test_small_tau_is_sampling():
    """The weights become one-hot, and their tokens follow the law of `fd.sample` on a row that a plan has cut."""
    x, plan = normal(1, 300, 2.0, 80), fd.plan(fd.temperature(1.4), fd.top_k(12))
    soft = fd.soft_tokens(x.expand(N, -1), plan, tau=1e-4, top_m=12, seed=78)
    q = fd.truncate(x, plan).softmax(1)[0].numpy()
    drawn = fd.sample(x.expand(N, -1), plan, seed=78).tokens
    assert g_test(soft.tokens, q) > FAIR and g_test(drawn, q) > FAIR
    assert (soft.weights[:, 0] == 1).double().mean() > 0.99 and (soft.weights[:, 0] > 0.4).all()
    assert 0.02 < (soft.tokens == drawn).double().mean() < 0.5  # and yet other noise


SMALL = (0.97, 0.02, 0.009, 0.001)


@pytest.mark.parametrize("gamma, pi", [(4.0, tuple(PI.tolist())), (1.0, SMALL), (0.05, SMALL), (40.0, SMALL)])
def test_mean_and_variance_of_dirichlet(gamma, pi):
    """Down to concentrations of 5e-5. E y = pi, Var y = pi (1 - pi) / (gamma + 1)."""
    y = mixtures("dirichlet", gamma, pi)
    for i, p in enumerate(pi):
        p = float(torch.tensor(p))
        assert errors(y[:, i], p) < ERRORS_FAIR
        assert errors((y[:, i] - p) ** 2, p * (1 - p) / (gamma + 1)) < ERRORS_FAIR


def test_dirichlet_faults_would_be_caught():
    """A concentration off by a tenth, and a gamma without the factor that small concentrations need."""
    p = SMALL[0]
    assert errors((mixtures("dirichlet", 4.4)[:, 0] - 0.6) ** 2, 0.24 / 5) > ERRORS_FAIR
    at = (torch.arange(4), torch.tensor(77), torch.tensor(0))
    u = philox.uniform(*at, philox.stream_for(philox.SOFT_GAMMA, 0, torch.arange(N))[:, None])
    plain = torch.distributions.Exponential(1.0).icdf(u)  # Gamma(a + 1) near a = 0, not boosted
    assert errors((plain / plain.sum(1, keepdim=True))[:, 0], p) > ERRORS_CAUGHT


def test_multi_is_unbiased():
    y = mixtures("multi", 3)
    assert set((y * 3).round().int().flatten().tolist()) == {0, 1, 2, 3}
    for i, p in enumerate(PI.tolist()):
        assert errors(y[:, i], p) < ERRORS_FAIR
        assert errors((y[:, i] - p) ** 2, p * (1 - p) / 3) < ERRORS_FAIR  # with replacement: less without
    assert errors((y[:, 0] - 0.6) ** 2, 0.24 / 2) > ERRORS_CAUGHT


def test_uses_of_the_stream_are_disjoint():
    uses = (philox.TOKEN, philox.GROUP, philox.SOFT_GUMBEL, philox.SOFT_GAMMA, philox.SOFT_BOOST)
    streams = {int(philox.stream_for(use, 0, torch.tensor(2**40 - 1))) for use in uses}
    assert len(streams) == len(uses) and uses == (0, 1, 2, 3, 4)  # as in csrc/philox.h
    header = (ROOT / "csrc" / "philox.h").read_text(encoding="utf-8")
    assert "enum Use { kToken = 0, kGroup = 1, kSoftGumbel = 2, kSoftGamma = 3, kSoftBoost = 4 };" in header
