"""Here torch's own checkers (opcheck, torch.compile, autograd) judge the registered operators of torch_ops.py; what they compute must
be what a plain call computes.
"""

from __future__ import annotations

import math

import pytest
import torch

import fastdecode as fd
from fastdecode import dispatch, torch_ops
from fastdecode.record import Draw, Wanted
from fastdecode.rules import FIELDS
from tests.support.cases import PLANS, cycle, normal

PLAN = fd.plan(fd.temperature(1.5), fd.top_p(0.9))
X = normal(3, 300, 2.0, 80)


@pytest.mark.parametrize("plan", ["hf: temperature, top_k, top_p", "nothing", "every parameter by row"])
def test_opcheck(engine, plan):
    cuts = PLANS[plan].make(3).packed(torch.device("cpu"))
    torch.library.opcheck(torch.ops.fastdecode.truncate.default, (X, cuts, -math.inf, 300))
    torch.library.opcheck(torch.ops.fastdecode.truncate.default, (X.clone().requires_grad_(), cuts, -1e4, 200))
    columns = Draw(1, 2, None, 2, 300).columns(3, X.device)
    arguments = (X, cuts, *columns, 2, 300, "entropy margin raw_logprobs", 2, torch.zeros(3, 4, dtype=torch.int64))
    torch.library.opcheck(torch.ops.fastdecode.sample.default, arguments)
    torch.library.opcheck(torch.ops.fastdecode.sample.default, (X.half(), cuts, *columns, 1, 100, "", 0, None))


def test_the_operator_returns_what_the_engine_returns(engine):
    draw = Draw(1, 2, None, 2, 300)
    wanted = Wanted(frozenset(("entropy", "margin")), 2, torch.zeros(3, 4, dtype=torch.int64))
    cuts = PLAN.packed(X.device)
    registered, direct = (
        torch_ops.sample(X, cuts, draw, wanted),
        dispatch.engine_for(X.device).sample(X, cuts, draw, wanted),
    )
    assert set(registered) == set(direct)
    assert all(torch.equal(registered[name], direct[name]) for name in direct)


def step_of(x: torch.Tensor, plan: fd.Plan, position: int, **options) -> tuple[torch.Tensor, ...]:
    masked = fd.truncate(x * 1.5, plan)
    s = fd.sample(x * 1.5, plan, seed=3, step=position, stats=("entropy",), **options)
    return masked, s.tokens, s.logprobs, s.entropy


@pytest.mark.parametrize("plan", ["hf: temperature, top_k, top_p", "nothing", "greedy in some rows"])
def test_compile(engine, plan):
    torch.compiler.reset()
    plan = PLANS[plan].make(3)
    compiled = torch.compile(step_of, fullgraph=True, backend="aot_eager")
    for position in (0, 1, 5):
        for got, want in zip(compiled(X, plan, position, num_samples=2), step_of(X, plan, position, num_samples=2)):
            assert torch.equal(got, want)


def test_compile_takes_other_shapes_and_half_precision():
    torch.compiler.reset()
    compiled = torch.compile(step_of, fullgraph=True, backend="aot_eager", dynamic=True)
    for x in (X, normal(5, 300, 1.0, 81), normal(2, 77, 1.0, 82), X.bfloat16()):
        for got, want in zip(compiled(x, PLAN, 4), step_of(x, PLAN, 4)):
            assert torch.equal(got, want)


def test_compile_draws_a_seed_of_its_own():
    torch.compiler.reset()
    compiled = torch.compile(lambda x: fd.sample(x, PLAN, num_samples=4).tokens, fullgraph=True, backend="aot_eager")
    torch.manual_seed(1)
    first, second = compiled(X), compiled(X)
    torch.manual_seed(1)
    assert torch.equal(compiled(X), first) and not torch.equal(first, second)


def test_compile_with_inductor():
    torch.compiler.reset()
    compiled = torch.compile(step_of, fullgraph=True)
    for got, want in zip(compiled(X, PLAN, 4), step_of(X, PLAN, 4)):
        assert torch.equal(got, want)


@pytest.mark.parametrize("filter_value", [-math.inf, -5.0])
@pytest.mark.parametrize(
    "plan", ["hf: temperature, top_k, top_p", "greedy in some rows", "every parameter by row", "top_h(0.4)"]
)
def test_gradient(engine, plan, filter_value):
    """That of where(kept, x / T, filter_value), whatever the survivors' logits are."""
    plan = PLANS[plan].make(3)
    x, by_hand = X.clone().requires_grad_(), X.clone().requires_grad_()
    keep = fd.truncate(X, plan, filter_value=math.nan).isnan().logical_not()
    t = plan.packed(X.device)[:, -1, FIELDS.index("temperature")][:, None]
    weights = normal(3, 300, 1.0, 83)
    got = fd.truncate(x, plan, filter_value=filter_value)
    want = torch.where(keep, by_hand / torch.where(t == 0, 1.0, t), filter_value)
    assert torch.equal(got, want) and got.requires_grad
    for out in (got, want):
        (torch.where(keep, out, 0.0) * weights).sum().backward()
    assert torch.allclose(x.grad, by_hand.grad) and (x.grad != 0).any() and (x.grad == 0).any()


def test_no_gradient_where_none_is_wanted(engine):
    x = X.clone().requires_grad_()
    with torch.no_grad():
        assert not fd.truncate(x, PLAN).requires_grad
    assert not fd.sample(x, PLAN, seed=1).logprobs.requires_grad
    assert fd.truncate(x[0], PLAN).requires_grad
    loss = fd.truncate(x, fd.plan(fd.temperature(cycle((0.5, 2.0), 3)))).logsumexp(1).sum()
    loss.backward()
    assert torch.allclose(x.grad.sum(1), torch.tensor([2.0, 0.5, 2.0]))
