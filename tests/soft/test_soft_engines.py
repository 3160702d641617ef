"""Here the reference judges what engines fuse: soft tokens of every kind and width on hostile rows, embeddings of every type; and the
torch code that has the gradients judges what has none.
"""

from __future__ import annotations

import math

import pytest
import torch
from scipy import special

import fastdecode as fd
from fastdecode import dispatch
from fastdecode.engines import reference_soft
from fastdecode.record import NOISES
from tests import ROOT
from tests.conftest import INTERPRETED
from tests.engines.test_draw import g_test
from tests.support.cases import normal
from tests.support.tolerance import CAUGHT, EMBEDDED, FAIR, QUANTILE, SOFT_RELATIVE

FLOATS = ("weights", "log_pi", "noise", "logprobs")
EXACT = ("ids", "tokens", "kept", "status", "soft")
V = 500
PLANS = {
    "all": fd.plan(),
    "some": fd.plan(fd.temperature(0.6), fd.top_k(30), fd.top_p(0.95)),
    "typical": fd.plan(fd.temperature(1.3), fd.typical_p(0.5)),
    "rows": fd.plan(fd.temperature(torch.tensor([0.0, 0.01, 1.0, 50.0, 2.0, 1.0, 1.0, 1.0])), fd.min_p(1e-4)),
}


def hostile() -> torch.Tensor:
    """Ties, one survivor, far logits, a NaN, nothing, +inf twice; the last row is ordinary."""
    x = normal(8, V, 3.0, 90)
    x[0] = x[0].round()
    x[1, 1:] = -math.inf
    x[2, ::7] *= 1e4
    x[3, 5] = math.nan
    x[4] = -math.inf
    x[5, [7, 300]] = math.inf
    return x


SOFT_ROWS = torch.tensor([True] * 7 + [False])
TAUS = torch.tensor([0.1, 0.5, 1.0, 0.5, 0.5, 3.0, 1e-6, 1.0], dtype=torch.float64)


def agree(got: fd.SoftTokens, want: fd.SoftTokens) -> None:
    for name in EXACT:
        assert torch.equal(getattr(got, name), getattr(want, name)), name
    for name in FLOATS:
        a, b = getattr(got, name), getattr(want, name)
        assert torch.equal(a.isnan(), b.isnan()), name
        a, b = a.nan_to_num(), b.nan_to_num()
        assert ((a - b).abs() <= SOFT_RELATIVE * (1 + b.abs())).all(), (name, float((a - b).abs().max()))


@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("noise", NOISES)
def test_every_kind_and_width_on_hostile_rows(engine, noise, plan):
    x = hostile()
    widths = (5,) if noise == "multi" else engine.few((1, 5, 32, 33, 300, None), 1, noise + plan)
    for top_m in widths:
        for strength in (
            (0.01, 4.0, 3e4)
            if noise == "dirichlet"
            else (0.3, 1.0)
            if noise == "gumbel" and engine.sees_all
            else (1.0,)
        ):
            options = {"top_m": top_m, "scale": strength, "gamma": strength, "tau": TAUS, "k": 9, "seed": 3, "step": 2}
            options |= {"noise": noise, "soft_rows": SOFT_ROWS, "vocab_limit": V - 1}
            got = fd.soft_tokens(x, PLANS[plan], **options)
            with dispatch.use("reference"):
                want = fd.soft_tokens(x, PLANS[plan], **options)
            agree(got, want)
            assert want.status.tolist() == [0, 0, 0, 1, 2, 0, 0, 0] and (want.ids[6, 1:] >= 0).any() == (
                want.ids.shape[1] > 1
            )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_coordinates_types_and_strides(engine, dtype):
    wide = normal(4, V + 20, 3.0, 91).to(dtype)
    x = wide[:, 3 : V + 3]
    seed, step, streams = (torch.tensor(n) for n in ([1, 2**63 - 1, -5, 7], [0, 1, 2**32 - 1, 9], [5, 2**40 - 1, 0, 3]))
    for noise in engine.few(("gumbel", "dirichlet"), 1, str(dtype)):
        for options in (
            {"seed": seed, "step": step, "streams": streams, "tau": TAUS[:4]},
            {"seed": seed[1:2], "step": 3, "straight_through": True},
        ):
            got = fd.soft_tokens(x, PLANS["some"], noise=noise, **options)
            with dispatch.use("reference"):
                agree(got, fd.soft_tokens(x, PLANS["some"], noise=noise, **options))
            assert ("straight_through" in options) == (got.weights[:, 0] == 1).all()


@pytest.mark.parametrize("noise", NOISES)
def test_without_gradients_the_engine_mixes_and_with_them_torch_does(engine, noise, monkeypatch):
    """And both say the same."""
    x = hostile()
    options = {"noise": noise, "seed": 3, "soft_rows": SOFT_ROWS}
    want = fd.soft_tokens(x.requires_grad_(), PLANS["some"], **options)
    assert want.weights.requires_grad == (noise != "multi")
    monkeypatch.setattr(reference_soft, "_keys", None)
    if noise != "dirichlet" or engine.name != "triton":  # soft.py says why
        agree(fd.soft_tokens(x.detach(), PLANS["some"], **options), want)
        with torch.no_grad():
            agree(fd.soft_tokens(x, PLANS["some"], **options), want)
    with pytest.raises(TypeError, match="'NoneType' object is not callable"):
        fd.soft_tokens(x, PLANS["some"], **options)
    tau = torch.ones(8, requires_grad=True)
    with pytest.raises(TypeError, match="'NoneType' object is not callable"):
        fd.soft_tokens(x.detach(), PLANS["some"], tau=tau, **options)


def test_tau_to_zero_is_a_draw(engine):
    """One token of all the weight, and that of every other tau: as the noise is the same, and the largest key wins."""
    n = 8 if INTERPRETED and engine.name == "triton" else 4000
    pi = torch.tensor([0.45, 0.3, 0.15, 0.1])
    x = pi.log().expand(n, -1).contiguous()
    cold, warm = (fd.soft_tokens(x, seed=21, tau=tau, top_m=4) for tau in (1e-9, 0.7))
    assert torch.equal(cold.tokens, warm.tokens) and torch.equal(cold.ids, warm.ids)
    assert (cold.weights[:, 0] == 1).float().mean() > 0.99 and warm.weights[:, 0].max() < 1
    assert torch.equal(fd.soft_tokens(x, seed=21, tau=1e-300, top_m=4).weights, torch.eye(4)[[0] * n])
    with dispatch.use("reference"):
        assert torch.equal(cold.tokens, fd.soft_tokens(x, seed=21, tau=1e-9, top_m=4).tokens)
    if n > 8:
        assert g_test(cold.tokens, pi.numpy()) > FAIR
        assert g_test(cold.tokens, torch.tensor([0.35, 0.4, 0.15, 0.1]).numpy()) < CAUGHT


def test_threads_change_nothing():
    x, table = normal(24, V, 3.0, 92), normal(V, 3000, 1.0, 93)
    before = torch.get_num_threads()
    found = []
    try:
        for threads in (1, 4):
            torch.set_num_threads(threads)
            soft = fd.soft_tokens(x, noise="dirichlet", seed=1, top_m=9)
            found.append([*(getattr(soft, name) for name in (*EXACT, *FLOATS)), fd.soft_embedding(soft, table)])
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for a, b in zip(*found)) and len(found[0][1].unique()) > 9


def test_compiled_gamma_quantiles_by_their_definition():
    """Against scipy, where it has the digits: at large shapes its own small quantiles are rough."""
    native = pytest.importorskip("fastdecode._native")
    tails = [2.0**-33, 1e-6, 0.01, 0.3, 0.499, 0.5, 0.501, 0.9, 0.9999, 1 - 2.0**-33]
    for shape in (1.0, 1 + 1e-9, 1.05, 2.5, 9.9, 10.0, 40.0, 1e3, 9.9e3, 1.1e4, 1e5):
        for u in tails:
            exact = special.gammaincinv(shape, u) if u <= 0.5 else special.gammainccinv(shape, 1 - u)
            assert abs(native.ln_gamma_quantile(shape, u) - math.log(exact)) < QUANTILE / math.sqrt(shape)
    for shape in (1e7, 1e10, 1e13):  # a normal distribution, and its first correction
        for u in tails[1:-1]:
            z = float(special.ndtri(u))
            told = (native.ln_gamma_quantile(shape, u) - math.log(shape)) * math.sqrt(shape)
            assert (
                abs(told - (z + (2 * z * z - 2) / 6 / math.sqrt(shape) - z * z / 2 / math.sqrt(shape)))
                < 20 / shape**0.5 / 1e2
            )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_embeddings_by_every_engine(engine, dtype):
    soft = fd.soft_tokens(hostile(), PLANS["some"], noise="none", seed=3, soft_rows=SOFT_ROWS, top_m=9)
    for columns in engine.few((1, 255, 1025), 1, str(dtype)):
        table = normal(V, columns + 3, 1.0, 94).to(dtype)[:, 2 : columns + 2]
        table[:, 0] = -0.0
        got = fd.soft_embedding(soft, table)
        with dispatch.use("reference"):
            want = fd.soft_embedding(soft, table)
        fine = soft.status == 0
        assert got.dtype == dtype and got.shape == (8, columns) and got[~fine].isnan().all()
        a, b = got[fine].double(), want[fine].double()
        assert ((a - b).abs() <= torch.finfo(dtype).eps * (b.abs() + EMBEDDED)).all() and (
            columns == 1 or b.abs().max() > 1
        )
        bits = torch.int16 if dtype.itemsize == 2 else torch.int32
        assert torch.equal(got[[1, 7]].view(bits), table[soft.tokens[[1, 7]]].view(bits))


def test_a_table_that_is_too_short(engine):
    soft, table = fd.soft_tokens(normal(2, V, 1.0, 95), seed=1), torch.ones(3, 7)
    soft.ids[0, 1], soft.ids[1] = 3, torch.tensor([0, 1, 2, 0, 1])
    if engine.name == "cpu":
        with pytest.raises(
            IndexError, match="weight must have a row for every id of the soft tokens; got 3 rows and the id"
        ):
            fd.soft_embedding(soft, table)
    else:  # nobody waits for a GPU
        soft.ids[0, [0, 2, 3, 4]] = 0
        got = fd.soft_embedding(soft, table)
        assert got[0].isnan().all() and not got[1].isnan().any()


def test_gradients_through_what_the_engine_sums(engine):
    """loss.backward() through a soft step in float32, against float64 on the reference."""
    x, table = normal(3, V, 2.0, 96), normal(V, 16, 1.0, 97)

    def gradients(dtype: torch.dtype) -> list[torch.Tensor]:
        logits, weight = (t.detach().to(dtype).requires_grad_() for t in (x, table))
        fd.soft_embedding(fd.soft_tokens(logits, PLANS["some"], seed=1), weight).square().sum().backward()
        return [t.grad.double() for t in (logits, weight) if t.grad is not None]

    got, want = gradients(torch.float32), gradients(torch.float64)
    for a, b in zip(got, want, strict=True):
        assert (a - b).abs().max() <= SOFT_RELATIVE * 10 * b.abs().max() and b.abs().max() > 0.1


def test_the_benchmark_verifies_before_it_measures(monkeypatch):
    """On a tiny case; and a wrong mixture is not timed."""
    monkeypatch.syspath_prepend(str(ROOT))
    from bench.studies import soft as bench

    bench.check_mixing(x := bench.some_rows(1000, 2))
    records = bench.run((1000,), (1, 2), ("dirichlet", "multi"), 1)
    assert {(r["what"], r["noise"], r["B"]) for r in records} >= {("mix", "multi", 2), ("embed", "gumbel", 1)}
    assert all(r["us_per_row"][name]["median"] > 0 for r in records for name in ("fd", "op by op"))
    assert all(set(r["times_ours"]) >= {"op by op"} for r in records)
    honest = bench.ours
    monkeypatch.setattr(bench, "ours", lambda x, noise: honest(x * 1.01, noise))
    with pytest.raises(SystemExit, match="the torch code finds another"):
        bench.check_mixing(x)
