"""Hostile parameters: whatever numbers a plan holds, every engine draws an id inside the vocabulary, or answers -1 with a status, and the
process lives. First what users have met; then random plans over the whole range of float32; then numbers that no check would let
through, as tensors on a GPU may hold them."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

import fastdecode as fd
from fastdecode import dispatch
from fastdecode.record import Draw, Wanted
from fastdecode.rules import COLDEST, DRAW, FIELDS, HOTTEST, RULES
from tests.support.tolerance import ENTROPY_NATS

LARGEST, SMALLEST = torch.finfo(torch.float32).max, 2.0**-149
COLD = (SMALLEST, 1e-44, 1e-40, 1e-39, 2.9e-39, 5e-39, COLDEST, 2e-38, 1e-36, 1e-30)
HOT = (1e30, 1e36, HOTTEST, 2e37, 1e38, 3e38, LARGEST)


def rows(vocab: int, seed: int = 0) -> torch.Tensor:
    """Ordinary logits, and some that float32 can just hold."""
    x = torch.randn(6, vocab, generator=torch.Generator().manual_seed(seed))
    x[1] *= 1e-42
    x[2, ::2] = -math.inf
    x[3] *= 1e37
    x[4] = x[4].sign() * LARGEST
    x[5] = torch.finfo(torch.float32).min
    return x


def check(s: fd.Sample, limit: int) -> None:
    """An id in [0, limit) where the status is fine, -1 elsewhere; and numbers that can be."""
    fine = s.status == fd.STATUS_OK
    tokens = s.tokens if s.tokens.ndim > 1 else s.tokens[:, None]
    assert ((tokens >= 0) & (tokens < limit))[fine].all() and (tokens[~fine] == -1).all()
    assert ((s.kept >= 1) & (s.kept <= limit))[fine].all() and (s.kept[~fine] == 0).all()
    if s.entropy is not None:
        entropy, mass = s.entropy[fine], s.kept_mass[fine]
        assert ((entropy >= -ENTROPY_NATS) & (entropy <= math.log(limit) + ENTROPY_NATS)).all()
        assert ((mass >= 0) & (mass <= 1)).all() and (s.max_prob[fine] <= 1).all()


def test_a_temperature_whose_reciprocal_overflows_is_greedy(engine):
    x = torch.tensor([[1.0, 5.0, 2.0]])
    for t in COLD[:6]:
        s = fd.sample(x, fd.plan(fd.temperature(t)), seed=1, check=True, stats=True)
        assert s.tokens.tolist() == [1] and s.kept.tolist() == [1] and s.logprobs.tolist() == [0], t
        assert fd.sample_temperatures(x, [t, 1.0], seed=1).tokens[0, 0, 0] == 1
        assert fd.truncate(x, fd.plan(fd.temperature(t))).tolist() == [[-math.inf, 5.0, -math.inf]]
    chained = fd.plan(fd.temperature(1e-20), fd.temperature(1e-20))
    by_row = fd.plan(fd.temperature(torch.tensor([1e-39])), fd.temperature(torch.tensor([1.0])))
    for plan in (chained, by_row, fd.plan(fd.temperature(torch.tensor([1e-20])), fd.temperature(1e-20))):
        assert fd.sample(x, plan, seed=1).tokens.tolist() == [1]


def test_the_reference_is_no_exception(reference):
    test_a_temperature_whose_reciprocal_overflows_is_greedy(None)
    test_a_hot_row_is_flat(None)
    test_top_h_of_a_certain_row_keeps_its_token_alone(None)


def test_temperatures_may_leave_the_range_of_float32_and_come_back(engine):
    x = torch.tensor([[1.0, 5.0, 2.0, 4.5]])
    for there, back in ((1e-30, 1e30), (1e30, 1e-30)):
        numbers = fd.plan(*[fd.temperature(there)] * 2, *[fd.temperature(back)] * 2)
        tensors = fd.plan(*[fd.temperature(torch.tensor([there]))] * 2, *[fd.temperature(torch.tensor([back]))] * 2)
        for plan in (numbers, tensors):
            s, expected = fd.sample(x, plan, seed=3, stats=True), fd.sample(x, seed=3, stats=True)
            assert s.tokens.tolist() == expected.tokens.tolist()
            assert abs(s.entropy.item() - expected.entropy.item()) <= ENTROPY_NATS


@pytest.mark.parametrize("vocab", (20, 50, 100, 257))
def test_no_temperature_draws_outside_the_vocabulary(engine, vocab):
    x = rows(vocab)
    for t in engine.few((*COLD, *HOT), 1, str(vocab)):
        for rule in ((), (fd.top_n_sigma(1.0),), (fd.top_p(0.5),), (fd.typical_p(0.5),), (fd.top_h(0.4),)):
            plan = fd.plan(fd.temperature(t), *rule)
            check(fd.sample(x, plan, seed=1, stats=True, num_samples=3), vocab)
            assert not torch.isnan(fd.truncate(x, plan)).any()


def test_a_hot_row_is_flat(engine):
    x = torch.tensor([[1.0, 5.0, 2.0]])
    for t in HOT:
        s = fd.sample(x, fd.plan(fd.temperature(t), fd.top_p(0.5)), seed=1, stats=True)
        assert s.kept.item() == 2, t
        assert abs(s.entropy.item() - math.log(3)) <= ENTROPY_NATS
    with pytest.raises(ValueError, match=r"^temperature must be a number in \[0, 3\.40282e\+38\]"):
        fd.temperature(1e39)


def test_top_h_of_a_certain_row_keeps_its_token_alone(engine):
    """With less entropy than 1e-10 nats nothing else can be drawn, and a later rule must not see what is left of rounding."""
    x = torch.linspace(0, 1, 5000)
    x[7] = 100.0
    for variant in ("paper", "hf"):
        s = fd.sample(x[None], fd.plan(fd.top_h(0.4, variant=variant)), seed=1)
        assert (s.kept.item(), s.tokens.item()) == (1, 7), variant
        at = fd.plan(fd.temperature(torch.tensor([0.02, 0.1, 0.5])), fd.top_h(0.4, variant=variant))
        assert fd.sample(x.expand(3, -1).contiguous(), at, seed=1).kept.tolist() == [1, 1, 1]


@pytest.mark.parametrize("dtype", (torch.float16, torch.bfloat16, torch.float32))
def test_truncate_never_makes_an_infinity_of_a_finite_logit(engine, dtype):
    largest = torch.finfo(dtype).max
    x = torch.tensor([[3.0, -2.0, 0.0, 1e-3], [largest, -largest, 1.0, -1.0], [math.inf, 1.0, 2.0, 3.0]], dtype=dtype)
    for t in (2e-38, 1e-6, 1e-4, 0.3):
        out = fd.truncate(x, fd.plan(fd.temperature(t)))
        expected = (x[:2].float() / torch.tensor(t)).clamp(-largest, largest).to(dtype)
        assert torch.isfinite(out[:2]).all() and out[2].tolist() == [math.inf, -math.inf, -math.inf, -math.inf]
        assert torch.equal(out[:2], expected)
        assert torch.isfinite(out[:2].float().softmax(-1)).all()
        assert torch.equal(fd.truncate(x, fd.plan(fd.temperature(t), fd.min_p(0)), out=x.clone()), out)
    few = fd.truncate(x[:1], fd.plan(fd.temperature(1e-6), fd.top_k(2)))  # by the way of few survivors
    assert (few > -math.inf).sum() == 2 and torch.isfinite(few[few > -math.inf]).all()


@pytest.mark.parametrize("dtype", (torch.float16, torch.bfloat16, torch.float32))
def test_a_mask_of_the_lowest_number_does_not_switch_a_standard_deviation_off(engine, dtype):
    x = torch.randn(4, 1000, generator=torch.Generator().manual_seed(5)).to(dtype)
    at = torch.rand(4, 1000, generator=torch.Generator().manual_seed(6)) < 0.5
    plan = fd.plan(fd.top_n_sigma(1.0))
    expected = fd.truncate(x.masked_fill(at, -math.inf), plan) > -math.inf
    assert expected.sum(1).min() > 1 and expected.sum(1).max() < 400
    lowest = {torch.finfo(dtype).min, -65504.0 if dtype is torch.float16 else torch.finfo(torch.bfloat16).min}
    for value in lowest:
        masked = x.masked_fill(at, value)
        assert torch.equal(fd.truncate(masked, plan, filter_value=0.5) != 0.5, expected)
        chained = fd.plan(fd.top_k(990), fd.top_n_sigma(1.0))  # gathered, with masked ones among them
        assert torch.equal(fd.truncate(masked, chained, filter_value=0.5) != 0.5, expected)
    assert fd.sample(torch.full((1, 50), torch.finfo(dtype).min, dtype=dtype), plan, seed=1).kept.item() == 50


# ---- random plans ----------------------------------------------------------------------------------------------------

CHAINS, ROWS = 2500, 4


def any_number(random: np.random.Generator, low: float, high: float) -> np.ndarray:
    """Of the whole range of float32, each exponent as often as another; now and then an end of the range."""
    with np.errstate(over="ignore"):
        x = np.exp2(random.uniform(-149, 128, ROWS)).astype(np.float32)
    if high <= 1:
        x = np.where(random.random(ROWS) < 0.5, random.random(ROWS, dtype=np.float32), x)
    x = np.where(random.random(ROWS) < 0.1, [low, high][random.integers(2)], x)
    return np.clip(x.astype(np.float64), max(low, SMALLEST if low == 0 and random.random() < 0.5 else low), high)


def any_rule(random: np.random.Generator) -> fd.Rule:
    make = RULES[random.integers(len(RULES))]
    if make is fd.p_less:
        return make()
    if make is fd.top_k:
        values = np.exp2(random.uniform(0, 40, ROWS)).round() * (random.random(ROWS) < 0.9)
        return fd.top_k(torch.tensor(values))
    low, high = {
        fd.temperature: (0.0, LARGEST), fd.top_n_sigma: (SMALLEST, LARGEST), fd.top_p: (SMALLEST, 1.0), fd.typical_p: (SMALLEST, 1.0),
        fd.top_h: (SMALLEST, 1.0), fd.epsilon_cutoff: (0.0, 1 - 2.0**-24), fd.eta_cutoff: (0.0, 1 - 2.0**-24),
    }.get(make, (0.0, 1.0))  # fmt: skip
    values = torch.tensor(any_number(random, low, high))
    options = {"variant": ["paper", "hf"][random.integers(2)]} if make is fd.top_h else {}
    return make(float(values[0]) if random.random() < 0.3 else values, **options)


def any_row(random: np.random.Generator, vocab: int) -> torch.Tensor:
    x = rows(vocab, int(random.integers(1000)))[random.integers(6, size=ROWS)]
    return torch.where(torch.tensor(random.random((ROWS, 1)) < 0.03), math.nan, x)


def test_random_plans(engine):
    """No id outside the vocabulary, no signal, and the statuses of the reference."""
    emulated = (engine.target or "").startswith("emulated")
    chains = 12 if not engine.sees_all else 150 if emulated else CHAINS
    flagged = 0
    for case in range(chains):
        random = np.random.default_rng(case)
        vocab = int(random.choice([1, 2, 7, 33, 100, 300] if engine.sees_all else [1, 2, 7, 33]))
        limit = int(random.integers(1, vocab + 1))
        x = any_row(random, vocab)
        x = x.to((torch.float32, torch.float16, torch.bfloat16)[random.integers(3)])
        plan = fd.plan([any_rule(random) for _ in range(random.integers(1, 5))])
        s = fd.sample(x, plan, seed=case, vocab_limit=limit, stats=bool(case % 2))
        check(s, limit)
        with dispatch.use("reference"):
            expected = fd.sample(x, plan, seed=case, vocab_limit=limit, stats=bool(case % 2))
        check(expected, limit)
        assert expected.status.tolist() == s.status.tolist(), (case, plan)
        assert not torch.isnan(fd.truncate(x, plan, vocab_limit=limit)[(s.status != fd.STATUS_NAN)]).any()
        flagged += int((s.status != fd.STATUS_OK).sum())
    assert flagged > 0 or chains < 100


# ---- numbers that nobody has looked at -------------------------------------------------------------------------------

UNCHECKED = (math.nan, math.inf, -math.inf, -1.0, -1e30, 0.0, 1e30, 5.0)


def test_unchecked_numbers(engine):
    """A plan of tensors on a GPU is not read back to check it. What an engine draws is a token of the row, or none."""
    shapes = {name: i for i, name in enumerate(FIELDS) if name in ("kind", "order", "measure", "stop")}
    numbers = [
        i for i, name in enumerate(FIELDS) if name not in shapes and name not in ("temperature", "keep", "within")
    ]
    run = dispatch.engine_for(torch.device("cpu"))
    for case in range(400 if engine.sees_all else 6):
        random = np.random.default_rng(case)
        vocab = int(random.choice([1, 5, 40, 300] if engine.sees_all else [5, 40]))
        plan = fd.plan([any_rule(random) for _ in range(random.integers(1, 4))])
        cuts = plan.packed(torch.device("cpu")).expand(ROWS, -1, -1).clone()
        for cut in range(cuts.shape[1]):
            if cuts[0, cut, shapes["kind"]] != DRAW:
                for field in random.choice(numbers, 3):
                    cuts[:, cut, field] = torch.tensor(random.choice(UNCHECKED, ROWS), dtype=torch.float32)
        draw, x = Draw(case, 0, None, 2, vocab), rows(vocab, case)[:ROWS]
        check(fd.Sample(**run.sample(x, cuts, draw, Wanted())), vocab)
        run.truncate(x, cuts, torch.empty_like(x), -math.inf, vocab)


def test_unchecked_temperatures():
    """The plan makes numbers of them that engines can divide by; this is what a tensor on a GPU goes through."""
    made = fd.plan(fd.temperature(1.0), fd.top_p(0.5))
    unchecked = torch.tensor([math.nan, math.inf, -math.inf, -1.0, 0.0, SMALLEST, COLDEST, 1.0, HOTTEST, LARGEST])
    hidden = fd.Rule("temperature", (unchecked,), temperature=unchecked)
    packed = fd.plan(hidden, *made.rules[1:]).packed(torch.device("cpu"))
    expected = [0.0, HOTTEST, 0.0, 0.0, 0.0, 0.0, COLDEST, 1.0, HOTTEST, HOTTEST]
    for cut in packed.unbind(1):
        assert cut[:, FIELDS.index("temperature")].tolist() == expected
