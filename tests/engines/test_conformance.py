"""Here the reference judges every engine (and every instruction set of the cpu engine): masks, values, tokens, statistics.

Masks are equal but for tokens within a stated distance of an edge, survivors hold x / T bit for bit, tokens are identical but
where the winning margin is below a stated epsilon. How that is decided stands in judge.py, the distances in tolerance.py.
"""

from __future__ import annotations

import math

import pytest
import torch

import fastdecode as fd
from tests.support.cases import (
    CHAINS,
    EMPTY_BATCH,
    HOSTILE,
    INDISTINGUISHABLE,
    INPUTS,
    LARGE,
    LARGE_PLANS,
    LAYOUTS,
    PLANS,
    REAL,
    SINGLE,
    SIZES,
    TYPICAL,
    cycle,
    ordinary,
)
from tests.support.judge import SEED, STEP, TOP, Verdict, check_sample, check_values, engine_keeps, judge, same, verdict
from tests.support.tolerance import EDGE_FEW, EDGE_TOKENS, LEAD_ROWS

SMALL = (*HOSTILE, *(i for i in SIZES if int(i.name[2:]) <= 1000), EMPTY_BATCH)
BIG = (*(i for i in SIZES if int(i.name[2:]) > 1000), *LARGE)


def sampled(of: Verdict, logits: torch.Tensor | None = None, **options) -> fd.Sample:
    """The engine's sample with the coordinates and statistics of the verdict."""
    ids = torch.arange(len(of.logits))[:, None] * 7 % of.limit
    options = {"seed": SEED, "step": STEP, "num_samples": of.found["tokens"].shape[1], **options}
    return fd.sample(
        of.logits if logits is None else logits, of.plan, vocab_limit=of.limit, stats=True, top_logprobs=min(TOP, of.limit),
        logprobs_of=ids, **options,
    )  # fmt: skip


class Tally:
    """What was seen over all inputs of a test, so that it can fail for having looked at nothing."""

    def __init__(self) -> None:
        self.kept = self.removed = self.near = self.lost = self.draws = 0

    def check(self, of: Verdict, count_edges: bool = True) -> None:
        """Masks, values, tokens and statistics of the engine against one verdict."""
        out = fd.truncate(of.logits, of.plan, vocab_limit=of.limit)
        near = check_values(of, out)
        kept = engine_keeps(of.logits, of.cuts, of.limit) if near else of.keep
        lost, draws = check_sample(of, sampled(of), kept)
        fine = (of.status == fd.STATUS_OK)[:, None]
        assert (of.keep.any(1) | ~fine.squeeze(1)).all()
        self.kept += int((of.keep & fine).sum())
        self.removed += int((~of.keep & (of.logits > -math.inf) & fine).sum())
        self.near += near if count_edges else 0
        self.lost, self.draws = self.lost + lost, self.draws + draws

    def finish(self, removes: bool = True) -> None:
        assert self.kept > 0 and (self.removed > 0 or not removes)
        assert self.near <= EDGE_FEW + EDGE_TOKENS * self.kept, f"{self.near} tokens near an edge, {self.kept} kept"
        assert self.lost <= LEAD_ROWS * self.draws, f"{self.lost} of {self.draws} draws differ"


@pytest.mark.parametrize("case", (*SINGLE, *CHAINS), ids=lambda c: c.name)
def test_hostile_rows(engine, case):
    tally = Tally()
    for given in engine.few(SMALL, 1, case.name):
        tally.check(verdict(given.name, case.name), given.name not in INDISTINGUISHABLE)
    tally.finish((case.removes or "greedy" in case.name) and engine.sees_all)


@pytest.mark.parametrize("case", LARGE_PLANS, ids=lambda c: c.name)
def test_large_rows(engine, case):
    tally = Tally()
    for given in engine.few(BIG, 1, case.name):
        tally.check(verdict(given.name, case.name))
    tally.finish(case.removes and engine.sees_all)


REAL_PLANS = [c.name for c in TYPICAL[1:]] + ["hf: temperature, top_k, top_p", "temperature, top_h", "min_p, typical"]


@pytest.mark.parametrize("plan", REAL_PLANS)
def test_real_rows(engine, plan):
    tally = Tally()
    rows = engine.few(range(64), 1, plan)
    tally.check(verdict("real", plan) if len(rows) == 64 else judge(REAL.logits()[rows], PLANS[plan].make(len(rows))))
    tally.finish()


@pytest.mark.parametrize(
    "given", [i for i in INPUTS.values() if i is not REAL and i.logits().shape[0]], ids=lambda i: i.name
)
def test_every_input_has_something_kept_and_something_removed(given):
    """By the reference: an input on which no plan does anything would test nothing."""
    plans = [case.name for case in (LARGE_PLANS if given in BIG else SINGLE)]
    fine = verdict(given.name, plans[0]).status == fd.STATUS_OK
    alive = given.logits() > -math.inf
    masks = [verdict(given.name, plan).keep[fine] for plan in plans]
    assert all(mask.any(1).all() for mask in masks)
    nothing_to_choose = ("V=1", "one survivor", "all equal", "all at the lowest float", "all equal 128256")
    assert given.name in nothing_to_choose or any((alive[fine] & ~mask).any() for mask in masks)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("plan", [c.name for c in (*TYPICAL, *CHAINS)])
def test_half_precision_rows(engine, plan, dtype):
    tally = Tally()
    names = (
        "flat",
        "peaked",
        "integer ties",
        "+1e4",
        "subnormal",
        "holes",
        "nan",
        "+inf",
        "all -inf",
        "V=1",
        "V=31",
        "V=257",
    )
    for name in engine.few(names, 2, plan):
        tally.check(verdict(name, plan, dtype), name not in INDISTINGUISHABLE)
    tally.finish(removes=False)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=list(LAYOUTS))
def test_memory_layouts(engine, layout, dtype):
    plans = (
        "top_p(0.9)",
        "hf: temperature, top_k, top_p",
        "temperature, top_h",
        "typical, min_p: the maximum may be gone",
    )
    for name in engine.few(("peaked", "holes", "nan", "V=33", "V=257"), 1, f"{layout.__name__}{dtype}"):
        for plan in engine.few(plans, 1, f"{layout.__name__}{dtype}"):
            of = verdict(name, plan, dtype)
            laid = layout(of.logits)
            assert laid.stride() != of.logits.stride() or laid.data_ptr() % 16
            check_values(of, fd.truncate(laid, of.plan))
            check_sample(of, sampled(of, laid), engine_keeps(of.logits, of.cuts, of.limit))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    "plan", ["top_p(0.9)", "three temperatures", "min_p(0.05)", "typical_p(0.9)", "nothing", "greedy"]
)
def test_out(engine, plan, dtype):
    key = f"{plan}{dtype}"
    for name in engine.few(("peaked", "+1e4", "holes", "nan", "V=33", "V=1"), 1, key):
        of = verdict(name, plan, dtype)
        for value in engine.few((-math.inf, -1e4, 0.0, math.nan), 1, key):
            check_values(of, fd.truncate(of.logits, of.plan, filter_value=value), value)
            for lay in engine.few((lambda x: x.clone(), *LAYOUTS.values()), 1, key):
                place = lay(torch.full_like(of.logits, 7.0))
                assert fd.truncate(of.logits, of.plan, out=place, filter_value=value) is place
                check_values(of, place, value)
                place.copy_(of.logits)  # in place
                assert fd.truncate(place, of.plan, out=place, filter_value=value) is place
                check_values(of, place, value)


def test_out_leaves_what_lies_between_its_rows(engine):
    of = verdict("V=257", "top_p(0.9)")
    room = torch.full((64, 300), 7.0)
    fd.truncate(of.logits, of.plan, out=room[:, 20:277])
    check_values(of, room[:, 20:277])
    assert (room[:, :20] == 7).all() and (room[:, 277:] == 7).all()


@pytest.mark.parametrize("limit", [1, 255, 256, 500, 999, 1000])
@pytest.mark.parametrize(
    "plan", ["nothing", "top_p(0.9)", "top_k(50)", "typical_p(0.9)", "top_n_sigma(1.0)", "greedy in some rows"]
)
def test_vocab_limit(engine, plan, limit):
    for name in engine.few(("peaked", "ascending", "holes", "+inf"), 1, f"{plan}{limit}"):
        logits = INPUTS[name].logits()
        logits[:, limit:] += 30.0  # what lies past the limit would win
        of = judge(logits, PLANS[plan].make(len(logits)), limit)
        check_values(of, fd.truncate(logits, of.plan, vocab_limit=limit))
        check_sample(of, sampled(of), engine_keeps(logits, of.cuts, limit))
        logits[:, limit:] = math.nan  # and a NaN there is nobody's business
        assert torch.equal(sampled(of, logits).tokens, sampled(of).tokens)


@pytest.mark.parametrize("samples", [1, 7, 64])
def test_num_samples(engine, samples):
    pairs = (
        ("V=257", "nothing"),
        ("long tail", "top_p(0.9)"),
        ("peaked", "greedy in some rows"),
        ("nan", "min_p(0.05)"),
    )
    for name, plan in engine.few(pairs, 1, f"{samples}"):
        of = judge(INPUTS[name].logits(), PLANS[plan].make(len(INPUTS[name].logits())), samples=samples)
        lost, draws = check_sample(of, sampled(of))
        assert lost <= LEAD_ROWS * draws


def test_many_draws_are_those_of_the_reference(engine):
    """Enough of them that a share of one in a thousand would show."""
    lost = draws = 0
    for plan in ("nothing", "typical value: top_p(0.9)"):
        found = judge(ordinary(16, 2000, 77), PLANS[plan].make(16), samples=512)
        found = check_sample(found, sampled(found))
        lost, draws = lost + found[0], draws + found[1]
    assert draws == 2**14 and lost <= LEAD_ROWS * draws


def test_coordinates_by_row(engine):
    """Seeds, steps and streams of their own in each row, over their whole ranges."""
    seed = torch.tensor([0, -1, 2**63 - 1, -(2**63), 12345, 2**32, -(2**32), 7])
    step = torch.tensor([0, 1, 2**32 - 1, 2**31, 5, 0, 7, 2**16])
    streams = torch.tensor([0, 2**40 - 1, 2**32, 2**39, 1, 2**31, 77, 2**33 + 1])
    logits = normal_rows = ordinary(8, 1000, 90)
    of = judge(normal_rows, fd.plan(fd.min_p(1e-3)), samples=16, seed=seed, step=step, streams=streams)
    check_sample(of, sampled(of, logits, seed=seed, step=step, streams=streams))
    assert len({tuple(row) for row in of.found["tokens"].tolist()}) == 8


def test_only_the_statistics_asked_for(engine):
    logits = INPUTS["peaked"].logits()
    everything = fd.sample(logits, seed=1, stats=True)
    plain = fd.sample(logits, seed=1)
    for name in ("raw_logprobs", "entropy", "kept_mass", "max_prob", "margin"):
        assert getattr(plain, name) is None
        alone = fd.sample(logits, seed=1, stats=(name,))
        assert [
            s for s in ("raw_logprobs", "entropy", "kept_mass", "max_prob", "margin") if getattr(alone, s) is not None
        ] == [name]
        assert torch.equal(getattr(alone, name), getattr(everything, name))
    for name in ("tokens", "logprobs", "kept", "status"):
        assert torch.equal(getattr(plain, name), getattr(everything, name))


def test_flagged_rows_say_nothing(engine):
    for name, status in (("nan", [1, 1, 0, 1, 0]), ("all -inf", [2, 0, 0])):
        of = verdict(name, "top_p(0.9)")
        got = sampled(of)
        assert got.status.tolist() == status
        bad = got.status != 0
        assert (got.tokens[bad] == -1).all() and (got.top_ids[bad] == -1).all() and (got.kept[bad] == 0).all()
        for field in (
            "logprobs",
            "raw_logprobs",
            "entropy",
            "kept_mass",
            "max_prob",
            "margin",
            "top_logprobs",
            "logprobs_of",
        ):
            assert getattr(got, field)[bad].isnan().all() and not getattr(got, field)[~bad].isnan().any()


RULES_TO_CHAIN = (
    lambda u: fd.temperature(0.3 + 2.5 * u), lambda u: fd.top_k(1 + int(300 * u)), lambda u: fd.top_p(0.05 + 0.94 * u),
    lambda u: fd.min_p(0.5 * u**3), lambda u: fd.typical_p(0.05 + 0.94 * u), lambda u: fd.top_h(0.05 + 0.9 * u),
    lambda u: fd.top_h(0.05 + 0.9 * u, variant="hf"), lambda u: fd.epsilon_cutoff(0.02 * u), lambda u: fd.eta_cutoff(0.02 * u),
    lambda u: fd.top_n_sigma(0.2 + 4 * u), lambda u: fd.top_a(u), lambda u: fd.p_less(), lambda u: fd.top_p(u or 1, min_tokens_to_keep=9),
)  # fmt: skip


def test_random_chains(engine):
    """Two to five rules in any order, on inputs of any kind."""
    choose = torch.Generator().manual_seed(6)
    names = [i.name for i in SMALL if i is not EMPTY_BATCH]
    tally = Tally()
    for _ in engine.few(range(150), 6):
        length, which = (
            int(torch.randint(2, 6, (), generator=choose)),
            int(torch.randint(len(names), (), generator=choose)),
        )
        picks = torch.randint(len(RULES_TO_CHAIN), (length,), generator=choose).tolist()
        plan = fd.plan(RULES_TO_CHAIN[i](float(torch.rand((), generator=choose))) for i in picks)
        tally.check(judge(INPUTS[names[which]].logits(), plan), names[which] not in INDISTINGUISHABLE)
    tally.finish()


def test_extreme_temperatures(engine):
    chains = ((), (fd.top_p(0.9),), (fd.min_p(0.1), fd.top_h(0.4)), (fd.typical_p(0.5),))
    for t in (1e-30, 1e-6, 1e-3, 50.0, 1e6, 1e30):
        for name in engine.few(("peaked", "integer ties", "+1e4", "V=33", "holes"), 1, f"{t}"):
            for rules in engine.few(chains, 1, f"{t}"):
                of = judge(INPUTS[name].logits(), fd.plan(fd.temperature(t), *rules))
                got = fd.truncate(of.logits, of.plan)
                check_values(of, got)
                check_sample(of, sampled(of), engine_keeps(of.logits, of.cuts, of.limit))


def test_greedy_is_the_largest_logit_and_so_is_top_k_of_one(engine):
    x = ordinary(16, 1000, 95)
    for plan in (fd.plan(fd.temperature(0)), fd.plan(fd.top_k(1)), fd.plan(fd.temperature(1.5), fd.top_k(1))):
        assert torch.equal(fd.sample(x, plan, seed=1).tokens, x.argmax(1))
    tied = INPUTS["integer ties"].logits()  # greedy takes the lowest id of the largest, top_k(1) any of them
    largest = tied == tied.amax(1, keepdim=True)
    assert (largest.sum(1) > 1).any()
    assert torch.equal(fd.sample(tied, fd.plan(fd.temperature(0)), seed=1).tokens, largest.long().argmax(1))
    assert torch.equal(fd.truncate(tied, fd.plan(fd.top_k(1))) > -math.inf, largest)


def test_per_row_plans_are_the_plans_of_the_rows(engine):
    """A row of a per-row plan gives what that row gives alone with plain numbers."""
    logits = ordinary(8, 700, 31)
    values = {
        fd.temperature: (0.5, 1.0, 0.0, 2.0),
        fd.top_k: (0, 3, 40),
        fd.top_p: (1.0, 0.7),
        fd.min_p: (0.0, 0.02, 0.2),
        fd.typical_p: (0.9, 1.0),
    }
    together = fd.truncate(logits, fd.plan(*(rule(cycle(v, 8)) for rule, v in values.items())))
    tokens = fd.sample(logits, fd.plan(*(rule(cycle(v, 8)) for rule, v in values.items())), seed=4).tokens
    for row in range(8):
        alone = fd.plan(*(rule(v[row % len(v)]) for rule, v in values.items()))
        assert same(fd.truncate(logits[row], alone), together[row]).all()
        assert fd.sample(logits[row], alone, seed=4, streams=row).tokens == tokens[row]
