"""Here every engine is judged against itself: a row's answer may depend on its values, its plan and its coordinates alone; not on
its batch, its place in it, its memory layout, its type, the number of threads or the instruction set.
"""

from __future__ import annotations

import math
from dataclasses import fields

import pytest
import torch

import fastdecode as fd
from fastdecode import dispatch
from tests.support.cases import CHAINS, LAYOUTS, PLANS, REAL, TYPICAL, normal, ordinary

PLAN_NAMES = [case.name for case in (*TYPICAL, *CHAINS)]
BATCH = 64
SEED, STEP = 33, 4


def rows() -> torch.Tensor:
    """64 rows of many kinds, all exact in bfloat16."""
    kinds = [
        normal(16, 600, 3.0, 70),
        normal(16, 600, 0.4, 71),
        normal(16, 600, 2.0, 72).round(),
        ordinary(16, 600, 73),
    ]
    x = torch.cat(kinds).bfloat16().float()
    x[5, 100:500] = -math.inf
    x[6, 17] = math.nan
    x[7] = -math.inf
    x[8, 599] = math.inf
    return x


def plan_of(name: str, batch: int, which: torch.Tensor | None = None) -> fd.Plan:
    """The plan for rows `which` of a batch: its per-row parameters follow the rows."""
    plan = PLANS[name].make(batch)
    if plan.rows is None or which is None:
        return plan
    moved = []
    for rule in plan.rules:
        arguments = tuple(a[which] if isinstance(a, torch.Tensor) else a for a in rule.arguments)
        moved.append(getattr(fd, rule.name)(*arguments, **dict(rule.options)))
    return fd.plan(moved)


def answer(x: torch.Tensor, plan: fd.Plan, streams: torch.Tensor, **where) -> list[torch.Tensor]:
    """All that an engine says about rows: the masked values and every field of a sample."""
    where = {"seed": SEED, "step": STEP, "num_samples": 2, **where}
    s = fd.sample(
        x,
        plan,
        streams=streams,
        stats=True,
        top_logprobs=3,
        logprobs_of=torch.tensor([[0, 599, 300]]).expand(len(x), 3),
        **where,
    )
    return [fd.truncate(x, plan), *(getattr(s, field.name) for field in fields(s))]


def assert_same(got: list[torch.Tensor], want: list[torch.Tensor]) -> None:
    for one, other in zip(got, want):
        assert one.shape == other.shape and torch.equal(one.nan_to_num(nan=7e7), other.nan_to_num(nan=7e7))


def pick(found: list[torch.Tensor], which: torch.Tensor) -> list[torch.Tensor]:
    return [one[which] for one in found]


@pytest.mark.parametrize("name", PLAN_NAMES)
def test_a_row_does_not_see_its_batch(engine, name):
    x, streams = rows(), torch.arange(100, 100 + BATCH)
    want = answer(x, plan_of(name, BATCH), streams)
    shuffled = torch.randperm(BATCH, generator=torch.Generator().manual_seed(1))
    assert_same(answer(x[shuffled], plan_of(name, BATCH, shuffled), streams[shuffled]), pick(want, shuffled))
    for row in (0, 5, 6, 7, 8, 20, 40, 63):
        one = torch.tensor([row])
        assert_same(answer(x[one], plan_of(name, BATCH, one), streams[one]), pick(want, one))


@pytest.mark.parametrize("name", PLAN_NAMES)
def test_a_row_does_not_see_where_it_lies(engine, name):
    x, streams = rows(), torch.arange(BATCH)
    plan = plan_of(name, BATCH)
    want = answer(x, plan, streams)
    for layout in LAYOUTS.values():
        assert_same(answer(layout(x), plan, streams), want)
    one = x[3].expand(5, -1)  # row stride 0
    which = torch.full((5,), 3)
    assert_same(answer(one, plan_of(name, BATCH, which), which), pick(want, which))


@pytest.mark.parametrize("name", PLAN_NAMES)
def test_a_row_does_not_see_its_type(engine, name):
    """The same values as float32, float16 or bfloat16: the same tokens, masks and statistics."""
    x, streams = rows().half().float(), torch.arange(BATCH)
    plan = plan_of(name, BATCH)
    for dtype in (torch.float16, torch.bfloat16):
        exact = x.to(dtype).float()
        want, got = answer(exact, plan, streams), answer(exact.to(dtype), plan, streams)
        assert_same(got[1:], want[1:])
        assert_same([got[0]], [want[0].to(dtype)])


@pytest.mark.parametrize("name", [c.name for c in TYPICAL] + ["nothing", "hf: all warpers", "every parameter by row"])
def test_threads(engine, threads, name):
    x, streams = rows(), torch.arange(BATCH)
    answers = []
    for count in (1, 2, 3):
        torch.set_num_threads(count)
        answers.append(answer(x, plan_of(name, BATCH), streams))
    assert_same(answers[1], answers[0])
    assert_same(answers[2], answers[0])


def test_threads_on_real_rows(engine, threads):
    x = REAL.logits()
    plan = fd.plan(fd.temperature(1.5), fd.typical_p(0.9))
    torch.set_num_threads(2)
    two = fd.truncate(x, plan), fd.sample(x, plan, seed=1, num_samples=3).tokens
    torch.set_num_threads(1)
    assert torch.equal(fd.truncate(x, plan), two[0]) and torch.equal(
        fd.sample(x, plan, seed=1, num_samples=3).tokens, two[1]
    )


@pytest.mark.parametrize("name", PLAN_NAMES)
def test_instruction_sets_agree(name):
    """Masks, tokens and values are the same on every instruction set, so a request may move between machines."""
    cpu = dispatch.ENGINES.get("cpu")
    if cpu is None:
        (pytest.fail if "cpu" in dispatch.required() else pytest.skip)(dispatch.MISSING["cpu"])
    before = cpu.build_info()["target"]
    found = {}
    try:
        for target in cpu.targets():
            cpu.use_target(target)
            with dispatch.use("cpu"):
                masked, sample = (
                    fd.truncate(rows(), PLANS[name].make(BATCH)),
                    fd.sample(rows(), PLANS[name].make(BATCH), seed=2, num_samples=4),
                )
            found[target] = [masked, sample.tokens, sample.kept, sample.status]
    finally:
        cpu.use_target(before)
    first = found.pop(cpu.targets()[0])
    for others in found.values():
        assert_same(others, first)


# ---- every coordinate matters, row by row ----------------------------------------------------------------------------


@pytest.mark.parametrize("what", ["seed", "step", "streams"])
def test_each_row_has_coordinates_of_its_own(engine, what):
    """Changing one row's seed, step or stream changes that row's tokens and no other row's."""
    x = normal(8, 600, 0.5, 75)
    where = {"seed": torch.full((8,), 5), "step": torch.full((8,), 6), "streams": torch.arange(8)}
    want = fd.sample(x, num_samples=16, **where).tokens
    for row in range(8):
        moved = {name: value.clone() for name, value in where.items()}
        moved[what][row] += 1000
        differs = (fd.sample(x, num_samples=16, **moved).tokens != want).any(1)
        assert differs.tolist() == [r == row for r in range(8)]


@pytest.mark.parametrize(
    "what, values",
    [("seed", (0, 1, -1, 2**32, 2**63)), ("step", (0, 1, 2**31, 2**32 - 1)), ("streams", (0, 1, 2**32, 2**40 - 1))],
)
def test_a_number_is_the_same_coordinate_as_a_tensor_of_it(engine, what, values):
    x = normal(3, 600, 0.5, 76)
    seen = set()
    for value in values:
        signed = value - 2**64 if value >= 2**63 else value
        want = fd.sample(x, num_samples=8, **{"seed": 1, what: value}).tokens
        for tensor in (torch.tensor(signed), torch.tensor([signed]), torch.full((3,), signed)):
            assert torch.equal(fd.sample(x, num_samples=8, **{"seed": 1, what: tensor}).tokens, want)
        seen.add(tuple(want.flatten().tolist()))
    assert len(seen) == len(values)


def test_streams_default_to_the_places_in_the_batch(engine):
    x = normal(5, 600, 0.5, 77)
    assert torch.equal(fd.sample(x, seed=1).tokens, fd.sample(x, seed=1, streams=torch.arange(5)).tokens)
    same = x[:1].expand(5, -1)
    assert len(set(fd.sample(same, seed=1).tokens.tolist())) > 1
    assert len(set(fd.sample(same, seed=1, streams=7).tokens.tolist())) == 1


def test_the_first_samples_do_not_depend_on_how_many_are_drawn(engine):
    x = normal(5, 600, 0.5, 78)
    many = fd.sample(x, seed=1, num_samples=40).tokens
    for n in (1, 2, 39):
        assert torch.equal(fd.sample(x, seed=1, num_samples=n).tokens, many[:, :n])
    assert torch.equal(fd.sample(x, seed=1).tokens, many[:, 0])


def test_every_rule_takes_a_seed(engine):
    """The same seed, the same tokens; other seeds, other tokens (but where a rule leaves one token)."""
    x = normal(64, 600, 0.5, 79)
    for case in TYPICAL:
        plan = case.make(64)
        one, again, other = (fd.sample(x, plan, seed=s).tokens for s in (1, 1, 2))
        assert torch.equal(one, again) and not torch.equal(one, other)
