"""Here plain arithmetic, finite differences and torch's own gumbel_softmax judge soft tokens on the reference, and the reference
judges every engine. What is random about them is judged in test_soft_law.py.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import special

import fastdecode as fd
from fastdecode import philox
from fastdecode.engines.gamma import log_gamma
from fastdecode.soft import NOISES
from tests.support.cases import normal
from tests.support.tolerance import ENTROPY_NATS, NATS, PROBABILITY, QUANTILE, SOFT_DENSITY, SOFT_FLOAT64

PLANS = {
    "softmax": fd.plan(),
    "thinking": fd.plan(fd.temperature(0.6), fd.top_k(30), fd.top_p(0.95)),
    "typical": fd.plan(fd.temperature(1.3), fd.typical_p(0.2)),  # drops the largest logit
    "greedy": fd.plan(fd.temperature(0.0)),
    "each row": fd.plan(fd.temperature(torch.tensor([0.0, 0.7, 1.0, 1.5, 2.0])), fd.min_p(0.02)),
}
LOGITS = torch.cat([normal(3, 600, 2.0, 70), normal(2, 600, 2.0, 71).round()])  # the last two have ties
FLOATS = ("weights", "entropy", "log_pi", "noise", "logprobs")


def dense(soft: fd.SoftTokens, vocab: int) -> torch.Tensor:
    """The weights where their tokens are, [B, V]."""
    spare = torch.where(soft.ids < 0, vocab, soft.ids)
    return torch.zeros(len(soft.ids), vocab + 1, dtype=soft.weights.dtype).scatter_add(1, spare, soft.weights)[
        :, :vocab
    ]


def by_definition(logits: torch.Tensor, plan: fd.Plan, top_m: int) -> torch.Tensor:
    """ln pi [B, V] in float64, -inf outside."""
    scaled = fd.truncate(logits, plan).double()
    order = scaled.sort(dim=1, descending=True, stable=True).indices[:, top_m:]
    return scaled.scatter(1, order, -math.inf).log_softmax(1)


# ---- the formulas ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("top_m", [1, 5, 40])
def test_mixtures_by_plain_arithmetic(reference, plan, top_m):
    log_pi = by_definition(LOGITS, PLANS[plan], top_m)
    ids = torch.arange(600).expand(5, -1)
    where = (torch.full((5, 1), 9), torch.full((5, 1), 4), philox.stream_for(2, 0, torch.arange(5))[:, None])
    g = philox.noise(ids, *where)
    tau = torch.tensor([0.3, 0.5, 0.9, 2.0, 1e-3])
    wanted = {
        "none": log_pi.softmax(1),
        "gumbel": ((log_pi + 1.5 * g) / tau[:, None]).softmax(1),
    }
    for noise, y in wanted.items():
        soft = fd.soft_tokens(LOGITS, PLANS[plan], noise=noise, tau=tau, top_m=top_m, scale=1.5, seed=9, step=4)
        assert soft.ids.shape == (5, top_m) and soft.status.tolist() == [0] * 5
        assert (dense(soft, 600) - y).abs().max() < PROBABILITY
        real = soft.ids >= 0
        assert torch.equal(real.sum(1), (log_pi > -math.inf).sum(1)) and (soft.weights[~real] == 0).all()
        assert (soft.weights[:, 1:] <= soft.weights[:, :-1]).all() and torch.equal(soft.tokens, soft.ids[:, 0])
        assert torch.equal(soft.tokens, (log_pi + (1.5 * g if noise == "gumbel" else 0)).argmax(1))
        told = torch.where(real, soft.log_pi - log_pi.gather(1, soft.ids.clamp(min=0)), 0.0)
        assert told.abs().max() < NATS
        if noise == "gumbel":
            assert torch.equal(soft.noise[real], g.gather(1, soft.ids.clamp(min=0))[real].float())
    s = fd.sample(LOGITS, PLANS[plan], seed=9, step=4, stats=("entropy",))
    assert torch.equal(soft.entropy, s.entropy) and torch.equal(soft.kept, s.kept)


def test_all_survivors_are_gumbel_softmax_of_torch(reference, monkeypatch):
    x = LOGITS[:3].double()
    soft = fd.soft_tokens(x, tau=0.7, top_m=None, seed=5)
    g = dense(fd.soft_tokens(x, noise="none", top_m=None), 600).scatter(1, soft.ids, soft.noise)
    monkeypatch.setattr(torch.Tensor, "exponential_", lambda _: (-g).exp())
    theirs = torch.nn.functional.gumbel_softmax(x, tau=0.7)
    monkeypatch.undo()
    assert soft.ids.shape == (3, 600) and (dense(soft, 600) - theirs).abs().max() < SOFT_FLOAT64
    assert theirs.amax(1).min() > 0.1  # not flat: the noise has been used


def test_multi_is_the_mean_of_the_draws_of_sample(reference):
    s = fd.sample(LOGITS, PLANS["each row"], seed=2, num_samples=7)
    soft = fd.soft_tokens(LOGITS, PLANS["each row"], noise="multi", k=7, seed=2)
    counts = torch.stack([row.bincount(minlength=600) for row in s.tokens])
    assert torch.equal(dense(soft, 600), (counts.double() / 7).float()) and counts.max() < 7 * len(counts)
    assert (soft.logprobs - s.logprobs.mean(1)).abs().max() < NATS
    flat = torch.zeros(40, 5)  # where counts are often equal: then what was drawn first
    soft, drawn = (
        fd.soft_tokens(flat, noise="multi", k=7, seed=2),
        fd.sample(flat, seed=2, num_samples=7).tokens.tolist(),
    )
    assert soft.tokens.tolist() == [max(row, key=lambda t, row=row: (row.count(t), -row.index(t))) for row in drawn]


@pytest.mark.parametrize("noise", NOISES)
def test_ordinary_rows_are_those_of_sample(reference, noise):
    chosen = torch.tensor([True, False, True, False, False])
    soft = fd.soft_tokens(LOGITS, PLANS["thinking"], noise=noise, seed=3, soft_rows=chosen)
    alone = fd.soft_tokens(LOGITS, PLANS["thinking"], noise=noise, seed=3)
    s = fd.sample(LOGITS, PLANS["thinking"], seed=3)
    for name in (*FLOATS, "ids"):
        assert torch.equal(getattr(soft, name)[chosen], getattr(alone, name)[chosen])
    assert torch.equal(soft.tokens[~chosen], s.tokens[~chosen])
    assert (soft.weights[~chosen, 0] == 1).all() and (soft.weights[~chosen, 1:] == 0).all()
    assert (soft.ids[~chosen, 1:] == -1).all() and torch.equal(soft.soft, chosen)
    assert (soft.logprobs - s.logprobs)[~chosen].abs().max() < NATS
    assert (soft.logprobs != s.logprobs)[chosen].any()


@pytest.mark.parametrize("noise", NOISES)
def test_a_row_draws_the_same_alone(reference, noise):
    whole = fd.soft_tokens(LOGITS, PLANS["thinking"], noise=noise, seed=3, step=8)
    for row in (0, 4):
        one = fd.soft_tokens(LOGITS[row], PLANS["thinking"], noise=noise, seed=3, step=8, streams=row)
        assert one.ids.ndim == 1
        for name in (*FLOATS, "ids", "tokens", "kept"):
            assert torch.equal(getattr(one, name), getattr(whole, name)[row]), name
    for changed in ({"seed": 4, "step": 8}, {"seed": 3, "step": 9}, {"seed": 3, "step": 8, "streams": 9}):
        other = fd.soft_tokens(LOGITS[0], PLANS["thinking"], noise=noise, **changed)
        assert noise == "none" or not torch.equal(other.weights, whole.weights[0]) or other.tokens != whole.tokens[0]


def test_compiled_uniforms_are_those_of_torch():
    """Bit for bit, at both ends of every coordinate, and from numbers that stand for all rows."""
    native = pytest.importorskip("fastdecode.engines.cpu")
    ids = torch.tensor([[0, 1, 2, 3, 4], [2**32 - 1, 5, 128255, 6, 7]])
    seeds, streams = torch.tensor([-(2**63), 2**63 - 1]), torch.tensor([0, 2**40 - 1])
    for use in (philox.SOFT_GUMBEL, philox.SOFT_GAMMA, philox.SOFT_BOOST):
        for where in (
            (seeds, torch.tensor([2**32 - 1]).expand(2), streams),
            (seeds[:1].expand(2), streams, streams[:1].expand(2)),
        ):
            got = native.uniforms(use, ids.T.contiguous().T, *where)
            assert torch.equal(got, philox.uniforms(use, ids, *where)) and len(got.unique()) == 10


def test_gamma_numbers_by_their_definition():
    """Against scipy's quantiles, from concentrations where half of the numbers underflow to large ones."""
    a = torch.tensor([1e-6, 1e-3, 0.05, 0.5, 1.0, 4.0, 30.0, 1e3], dtype=torch.float64)[:, None]
    u = torch.tensor([2.0**-33, 1e-6, 0.1, 0.4999, 0.5, 0.73, 1 - 1e-6, 1 - 2.0**-33], dtype=torch.float64)
    got = log_gamma(*torch.broadcast_tensors(a, u, torch.tensor(0.7, dtype=torch.float64)))
    exact = special.gammaincinv((a + 1).numpy(), u.numpy())
    assert (got - math.log(0.7) / a - torch.from_numpy(exact).log()).abs().max() < QUANTILE * got.abs().max()
    tame = (a >= 0.05).flatten()  # elsewhere ln v / a hides the quantile
    assert (got - math.log(0.7) / a - torch.from_numpy(exact).log())[tame].abs().max() < QUANTILE


def test_dirichlet_by_the_quotient_of_gammas(reference):
    soft = fd.soft_tokens(LOGITS.double(), PLANS["thinking"], noise="dirichlet", gamma=3.0, seed=6, step=1)
    where = (torch.full((5, 1), 6), torch.full((5, 1), 1))
    u, v = (
        philox.uniform(soft.ids.clamp(min=0), *where, philox.stream_for(use, 0, torch.arange(5))[:, None])
        for use in (3, 4)
    )
    a = 3 * soft.log_pi.exp()
    g = torch.from_numpy(special.gammaincinv((a + 1).numpy(), u.numpy())) * v ** (1 / a)
    g = torch.where(soft.ids < 0, 0.0, g)
    assert (soft.weights - g / g.sum(1, keepdim=True)).abs().max() < QUANTILE
    inside = torch.distributions.Dirichlet(a[0]).log_prob(soft.weights[0])
    assert (soft.ids[0] >= 0).all() and (inside - soft.logprobs[0]).abs() < QUANTILE * (1 + inside.abs())


# ---- gradients ---------------------------------------------------------------------------------------------------------

X = normal(2, 12, 1.5, 72).double()
TAU = torch.tensor([0.5, 1.2], dtype=torch.float64)
CUT = fd.plan(fd.temperature(0.8), fd.top_p(0.97))


@pytest.mark.parametrize("noise", ["none", "gumbel", "dirichlet"])
@pytest.mark.parametrize("top_m", [4, None])
def test_gradients_of_weights(noise, top_m):
    x, tau = X.clone().requires_grad_(), TAU.clone().requires_grad_()

    def weights(x, tau):
        return fd.soft_tokens(x, CUT, noise=noise, tau=tau, top_m=top_m, seed=1).weights

    assert weights(x, tau).shape[1] > 3
    assert torch.autograd.gradcheck(weights, (x, tau))
    got = torch.autograd.grad(weights(x, tau)[:, 0].sum(), (x, tau), allow_unused=True)
    assert got[0].abs().max() > 0.01 and (got[1] is None) == (noise != "gumbel")


@pytest.mark.parametrize("noise", NOISES)
def test_gradients_of_recorded_log_probabilities(noise):
    chosen = torch.tensor([True, False])
    soft = fd.soft_tokens(X, CUT, noise=noise, seed=1, soft_rows=chosen)
    x = X.clone().requires_grad_()
    value = fd.soft_logprobs(x, soft, CUT)
    assert (value - soft.logprobs).abs().max() < SOFT_FLOAT64
    assert torch.autograd.gradcheck(lambda x: fd.soft_logprobs(x, soft, CUT), (x,))
    through = torch.autograd.grad(fd.soft_tokens(x, CUT, noise=noise, seed=1, soft_rows=chosen).logprobs.sum(), x)[0]
    assert (through - torch.autograd.grad(value.sum(), x)[0]).abs().max() < SOFT_FLOAT64
    assert (through[0].abs().max() > 0.01) == (noise != "none") and through[1].abs().max() > 0.01


def test_ratios_are_those_of_the_papers():
    """SofT-GRPO's sum and CoT2's root of a product, written out."""
    new = X + 0.1 * normal(2, 12, 1.0, 73).double()
    soft = fd.soft_tokens(X, noise="gumbel", top_m=None, seed=1)
    e = soft.log_pi + soft.noise - new.log_softmax(1).gather(1, soft.ids)
    assert (fd.soft_logprobs(new, soft) - (-e - (-e).exp()).sum(1)).abs().max() < SOFT_FLOAT64
    soft, drawn = fd.soft_tokens(X, noise="multi", k=5, seed=1), fd.sample(X.float(), seed=1, num_samples=5).tokens
    ratio = (new.log_softmax(1) - X.log_softmax(1)).gather(1, drawn).exp().prod(1) ** (1 / 5)
    assert ((fd.soft_logprobs(new, soft) - soft.logprobs).exp() - ratio).abs().max() < SOFT_FLOAT64
    assert (ratio - 1).abs().min() > 1e-3


def test_straight_through():
    x, tau = X.clone().requires_grad_(), TAU.clone().requires_grad_()
    hard = fd.soft_tokens(x, CUT, tau=tau, seed=1, straight_through=True)
    soft = fd.soft_tokens(x, CUT, tau=tau, seed=1)
    assert torch.equal(hard.weights, torch.eye(5, dtype=torch.float64)[[0, 0]]) and not torch.equal(
        soft.weights, hard.weights
    )
    pull = normal(2, 5, 1.0, 74).double()
    for a, b in zip(*(torch.autograd.grad((s.weights * pull).sum(), (x, tau)) for s in (hard, soft))):
        assert torch.equal(a, b) and a.abs().max() > 0.01


def test_gradients_of_the_embedding():
    table = normal(12, 3, 1.0, 75).double().requires_grad_()
    soft = fd.soft_tokens(X, CUT, seed=1, soft_rows=torch.tensor([True, False]))
    assert torch.autograd.gradcheck(lambda t: fd.soft_embedding(soft, t), (table,))
    x = X.clone().requires_grad_()
    ids = fd.soft_tokens(X, CUT, seed=1).ids
    assert len(ids.unique()) < ids.numel()  # rows that share a token add up in the table's gradient

    def embedded(x, table):
        return fd.soft_embedding(fd.soft_tokens(x, CUT, seed=1), table)

    assert torch.autograd.gradcheck(embedded, (x, table))
    embedded(x.float().requires_grad_(), table.float()).square().sum().backward()
    assert table.grad.abs().max() > 0


# ---- the embedding -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_the_embedding_is_the_weighted_sum(dtype):
    table = normal(600, 8, 1.0, 76).to(dtype)
    table[:, 0] = -0.0
    soft = fd.soft_tokens(LOGITS, PLANS["thinking"], seed=1, soft_rows=torch.tensor([True, False, True, False, True]))
    got = fd.soft_embedding(soft, table)
    exact = dense(soft, 600).double() @ table.double()
    assert (
        got.dtype == dtype
        and (got.double() - exact).abs().max() <= exact.abs().max() * torch.finfo(dtype).eps + PROBABILITY
    )
    bits = {2: torch.int16, 4: torch.int32, 8: torch.int64}[dtype.itemsize]
    one_hot = [1, 3]
    assert torch.equal(got[one_hot].view(bits), table[soft.tokens[one_hot]].view(bits))
    assert torch.equal(fd.soft_embedding(fd.soft_tokens(LOGITS[0], PLANS["thinking"], seed=1), table), got[0])


def test_padding_reads_nothing_and_flagged_rows_show():
    table = torch.ones(600, 2)
    table[0] = math.inf  # where a -1 would be looked up
    x = LOGITS.clone()
    x[:, 0], x[1, 5], x[2] = -math.inf, math.nan, -math.inf
    for noise in NOISES:
        soft = fd.soft_tokens(
            x.requires_grad_(), fd.plan(fd.top_k(2)), noise=noise, seed=1, soft_rows=torch.arange(5) < 4
        )
        assert soft.status.tolist() == [0, fd.STATUS_NAN, fd.STATUS_EMPTY, 0, 0]
        assert soft.tokens[[1, 2]].tolist() == [-1, -1] and (soft.ids[[1, 2]] == -1).all() and soft.kept[1] == 0
        assert all(getattr(soft, name)[[1, 2]].isnan().all() for name in FLOATS)
        assert not any(getattr(soft, name)[[0, 3, 4]].isnan().any() for name in FLOATS)
        mixed = fd.soft_embedding(soft, table)
        assert (mixed[[0, 3, 4]] == 1).all() and mixed[[1, 2]].isnan().all()
        if noise != "none":
            (grad,) = torch.autograd.grad(soft.logprobs[[0, 3, 4]].sum(), x)
            assert not grad.isnan().any() and (grad[[1, 2]] == 0).all()
        with pytest.raises(ValueError, match=r"1 \(NaN\), 2 \(all -inf\)"):
            fd.soft_tokens(x, noise=noise, check=True)


def test_infinite_logits_and_limits():
    inf = math.inf
    x = torch.tensor([[0.0, inf, 5.0, inf], [1.0, 2.0, 9.0, 9.0]])
    soft = fd.soft_tokens(x, noise="none", top_m=9, vocab_limit=4)
    assert soft.ids[0].tolist() == [1, 3, -1, -1] and soft.weights[0].tolist() == [0.5, 0.5, 0, 0]
    soft = fd.soft_tokens(x, noise="none", vocab_limit=2)
    assert soft.ids.tolist() == [[1, -1], [1, 0]]
    assert fd.soft_tokens(x[:0]).ids.shape == (0, 4)


# ---- engines -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("plan", PLANS)
def test_the_engine_agrees_with_the_reference(engine, plan):
    chosen = torch.tensor([True, True, False, True, True])
    for noise in NOISES:
        for top_m in engine.few((5, None), 1, noise):
            options = {"noise": noise, "top_m": top_m, "seed": 11, "step": 2, "soft_rows": chosen, "vocab_limit": 590}
            got, again = (fd.soft_tokens(LOGITS, PLANS[plan], **options) for _ in range(2))
            rescored = fd.soft_logprobs(LOGITS, got, PLANS[plan], vocab_limit=590)
            with fd.dispatch.use("reference"):
                want = fd.soft_tokens(LOGITS, PLANS[plan], **options)
            if plan == "typical":
                assert not (want.ids == LOGITS.argmax(1)[:, None]).any()
            for name in ("ids", "tokens", "kept", "status", "soft"):
                assert torch.equal(getattr(got, name), getattr(want, name)), name
            assert (got.weights - want.weights).abs().max() < PROBABILITY and torch.equal(got.weights, again.weights)
            assert (got.log_pi - want.log_pi).abs().max() < NATS
            assert (got.entropy - want.entropy).abs().max() < ENTROPY_NATS
            for other in (want.logprobs, rescored):
                assert (got.logprobs - other).abs().max() < SOFT_DENSITY * (1 + other.abs().max())


def test_gradients_of_the_engine(engine):
    """Float32 logits against float64 on the reference."""
    x = LOGITS.clone().requires_grad_()
    for noise in ("none", "gumbel", "dirichlet"):
        pull = normal(5, 5, 1.0, 77)

        def gradient(x, pull=pull, noise=noise):
            soft = fd.soft_tokens(x, PLANS["thinking"], noise=noise, seed=1)
            return torch.autograd.grad((soft.weights * pull).sum(), x)[0]

        got = gradient(x)
        want = gradient(x.double())
        assert (got - want).abs().max() < PROBABILITY * (1 + want.abs().max()) and want.abs().max() > 0.01


# ---- errors ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options, sentence",
    [
        ({"noise": "normal"}, "noise must be one of none, gumbel, dirichlet, multi; got 'normal'."),
        ({"tau": 0.0}, "tau must be a number above 0; got 0.0."),
        ({"tau": torch.tensor([1.0, 1, 1, 1, -1])}, "tau must be above 0 in every row; got -1."),
        (
            {"tau": torch.ones(3)},
            r"tau must be a number above 0, or one for each row: a list or a float tensor of shape \[5\]; got a torch.float32 tensor of",
        ),
        ({"top_m": 0}, r"top_m must be a whole number in \[1, 2147483648\]; got 0."),
        ({"noise": "dirichlet", "gamma": -1}, "gamma must be a number above 0; got -1."),
        ({"scale": math.inf}, "scale must be a number above 0; got inf."),
        ({"noise": "multi", "k": 0}, r"k must be a whole number in \[1, 256\]; got 0."),
        ({"noise": "multi", "straight_through": True}, "straight_through needs weights with a gradient"),
        ({"soft_rows": [True]}, r"soft_rows must be a bool tensor of shape \[5\]; got \[True\]."),
        ({"streams": -1}, r"streams must be a whole number in"),
    ],
)
def test_errors(options, sentence):
    with pytest.raises(ValueError, match=sentence):
        fd.soft_tokens(LOGITS, **options)


def test_lists_and_arrays_are_taken(reference):
    tau, some = [0.3, 0.5, 0.9, 2.0, 1e-3], [True, False, True, True, False]
    want = fd.soft_tokens(
        LOGITS, seed=1, tau=torch.tensor(tau, dtype=torch.float64), soft_rows=torch.tensor(some)
    ).weights
    for given in (list, tuple, np.array):
        assert torch.equal(fd.soft_tokens(LOGITS, seed=1, tau=given(tau), soft_rows=given(some)).weights, want)
    want = fd.soft_tokens(LOGITS, seed=1, tau=0.25, scale=2.0).weights
    for number in (np.float32, np.array, torch.tensor):
        assert torch.equal(fd.soft_tokens(LOGITS, seed=1, tau=number(0.25), scale=number(2.0)).weights, want)


def test_errors_of_the_others():
    with pytest.raises(TypeError, match=r"logits must be a torch.Tensor; got ndarray: pass torch.from_numpy"):
        fd.soft_tokens(LOGITS.numpy())
    for wrong in (
        torch.zeros(2, 3, 4),
        torch.zeros(2, 3, 4, dtype=torch.float64),
    ):  # the shape is wrong, and not the dtype
        with pytest.raises(
            ValueError, match=r"^logits must be \[B, V\] or \[V\] with V >= 1; got shape \[2, 3, 4\]: logits\[:, -1\]"
        ):
            fd.soft_tokens(wrong)
    with pytest.raises(
        TypeError, match=r"^logits must be float32, float16, bfloat16 or float64; got torch.int64: convert"
    ):
        fd.soft_tokens(LOGITS.long())
    soft = fd.soft_tokens(LOGITS)
    with pytest.raises(ValueError, match=r"one mixture per row of logits \(2\); got 5"):
        fd.soft_logprobs(LOGITS[:2], soft)
    with pytest.raises(TypeError, match=r"soft must be what fastdecode.soft_tokens returned; got Tensor"):
        fd.soft_embedding(soft.ids, LOGITS)
    with pytest.raises(ValueError, match=r"weight must be an embedding table \[V, D\] of floats; got a torch.int64"):
        fd.soft_embedding(soft, soft.ids)
