"""Here rules.py and plan.py are judged by their own words: ranges, messages, repr, per-row parameters, what switches a rule off."""

from __future__ import annotations

import inspect
import math
import re

import numpy as np
import pytest
import torch

import fastdecode as fd
from fastdecode import dispatch
from fastdecode.rules import DRAW, FIELDS, RULES, Cut
from tests.support.cases import CHAINS, ROWS, normal

NAN, INF = math.nan, math.inf

# For each rule: the interval as its message must show it, values just inside, values just outside.
RANGES = {
    fd.temperature: ("a number in [0, 3.40282e+38]", (0, 1e-45, 1, 3.4e38), (-1e-9, -1, 3.41e38, INF, NAN)),
    fd.top_k: ("a whole number in [0, inf) (0 is off)", (0, 1, 50, 10**9), (-1, 1.5, INF, NAN)),
    fd.top_p: ("a number in (0, 1] (1 is off)", (1e-9, 0.5, 1), (0, 1.3, -0.1, NAN)),
    fd.min_p: ("a number in [0, 1] (0 is off)", (0, 0.05, 1), (-0.01, 1.01, NAN)),
    fd.typical_p: ("a number in (0, 1] (1 is off)", (1e-9, 0.2, 1), (0, 1.0001, NAN)),
    fd.top_h: ("a number in (0, 1] (1 is off)", (1e-9, 0.4, 1), (0, 1.5, NAN)),
    fd.epsilon_cutoff: ("a number in [0, 1) (0 is off)", (0, 3e-4, 0.999), (1, -1e-4, NAN)),
    fd.eta_cutoff: ("a number in [0, 1) (0 is off)", (0, 2e-3, 0.999), (1, -1e-4, NAN)),
    fd.top_n_sigma: ("a number in (0, inf] (inf is off)", (1e-9, 1, 100, INF), (0, -1, -INF, NAN)),
    fd.top_a: ("a number in [0, 1] (0 is off)", (0, 0.2, 1), (-0.1, 1.1, NAN)),
}


def cuts(plan: fd.Plan) -> list[dict[str, float]]:
    """The packed cuts of a plan of plain numbers, field by field."""
    return [dict(zip(FIELDS, row)) for row in plan.packed(torch.device("cpu"))[0].tolist()]


@pytest.mark.parametrize("rule", RANGES, ids=lambda rule: rule.__name__)
def test_ranges(rule):
    interval, inside, outside = RANGES[rule]
    expected = f"{rule.__name__} must be {interval}, or one for each row: a list, or a 1-D tensor or array; got "
    for value in inside:
        rule(value)
        rule(torch.tensor([float(value)] * 2))
    for value in outside:
        with pytest.raises(ValueError, match=re.escape(expected) + re.escape(repr(value)) + r"\.$"):
            rule(value)
        with pytest.raises(ValueError, match=re.escape(f"{expected}a tensor with {value:g}") + r"\.$"):
            rule(torch.tensor([float(inside[0]), float(value)], dtype=torch.float64))
        with pytest.raises(ValueError, match=re.escape(f"{expected}a list with {value:g}") + r"\.$"):
            rule([inside[0], value])
        with pytest.raises(ValueError, match=re.escape(f"{expected}a numpy array with {value:g}") + r"\.$"):
            rule(np.array([float(inside[0]), float(value)]))
    for value in (
        "0.5",
        None,
        True,
        1j,
        ["0.5"],
        [True],
        np.array([True]),
        np.array([[0.5]]),
        torch.tensor(True),
        torch.zeros(2, 2),
        torch.tensor([True]),
        torch.tensor([1j]),
    ):
        with pytest.raises(ValueError, match="^" + re.escape(expected)):
            rule(value)


@pytest.mark.parametrize(
    "rule", [r for r in RULES if "min_tokens_to_keep" in inspect.signature(r).parameters], ids=lambda r: r.__name__
)
def test_min_tokens_to_keep(rule):
    value = next(row for row in ROWS if row.rule is rule).values[1]
    assert cuts(fd.plan(rule(value, min_tokens_to_keep=5)))[0]["keep"] == 5
    assert cuts(fd.plan(rule(value)))[0]["keep"] == 1
    for wrong in (0, -1, 1.0, True, None, "2"):
        expected = f"min_tokens_to_keep must be a whole number >= 1; got {wrong!r}."
        with pytest.raises(ValueError, match=f"^{re.escape(expected)}$"):
            rule(value, min_tokens_to_keep=wrong)


@pytest.mark.parametrize("value", (10**400, -(10**400), [1, 10**400]))
def test_numbers_that_no_float_holds(value):
    for rule in (fd.top_k, fd.temperature, fd.top_p, fd.top_n_sigma):
        if rule is fd.top_n_sigma and value != -(10**400):
            continue  # inf, which is off
        with pytest.raises(ValueError, match=f"^{rule.__name__} must be "):
            rule(value)
    assert fd.plan(fd.top_n_sigma(1e39)).cuts[0].kind == DRAW  # off, as inf is


def test_the_rules_of_transformers_take_min_tokens_to_keep():
    taken = {r.__name__ for r in RULES if "min_tokens_to_keep" in inspect.signature(r).parameters}
    # A rule that transformers lacks needs no such argument; one that it has gets its name here.
    assert taken == {"top_k", "top_p", "min_p", "typical_p", "epsilon_cutoff", "eta_cutoff"}


def test_top_h_variant():
    with pytest.raises(ValueError, match=r"^top_h's variant must be 'paper' or 'hf'; got 'authors'\.$"):
        fd.top_h(0.4, variant="authors")
    paper, hf = (cuts(fd.plan(fd.top_h(0.4, variant=v)))[0] for v in ("paper", "hf"))
    assert paper["within"] == INF and hf["within"] == 100 and paper["measure"] != hf["measure"]


@pytest.mark.parametrize(
    "text",
    [
        "plan()",
        "plan(temperature(1.5), top_h(0.4))",
        "plan(top_h(0.4, variant='hf'))",
        "plan(top_k(50), top_p(0.9), min_p(0.05, min_tokens_to_keep=3))",
        "plan(typical_p(0.2), epsilon_cutoff(0.0003), eta_cutoff(0.002), top_n_sigma(1), top_a(0.2), p_less())",
        "plan(temperature(0))",
    ],
)
def test_a_plan_prints_as_it_is_written(text):
    assert repr(eval(text, vars(fd))) == text


def test_a_plan_of_tensors_prints_how_many_they_are():
    assert repr(fd.plan(fd.top_p(torch.tensor([0.5, 0.9, 1.0])))) == "plan(top_p(<3 values>))"


def test_a_plan_takes_rules_or_one_list_of_them():
    rules = [fd.temperature(2.0), fd.min_p(0.1)]
    assert repr(fd.plan(*rules)) == repr(fd.plan(rules)) == repr(fd.plan(rule for rule in rules))
    assert repr(fd.plan(rules[0]) + fd.plan(rules[1])) == repr(fd.plan(*rules))
    assert fd.plan(*rules).rules == tuple(rules)
    for wrong in (0.5, "top_p", fd.plan(), fd.min_p):
        with pytest.raises(TypeError, match=r"^plan\(\) takes rules such as fastdecode\.min_p\(0\.05\); got "):
            fd.plan(fd.top_k(5), wrong)
    for wrong in (0.5, "top_p", b"top_p", {"top_p": 0.9}):
        with pytest.raises(TypeError, match=rf"fastdecode\.min_p\(0\.05\); got {re.escape(repr(wrong))}\.$"):
            fd.plan(wrong)


@pytest.mark.parametrize("row", [row for row in ROWS if row.values], ids=lambda row: row.name)
def test_lists_arrays_and_0d_tensors_are_values(row):
    """They pack as a tensor, or a number, of the same values does."""
    want = fd.plan(row(torch.tensor([float(v) for v in row.values], dtype=torch.float64)))
    cpu = torch.device("cpu")
    for given in (
        list,
        tuple,
        np.array,
        lambda v: np.array(v)[::-1].copy()[::-1],
        lambda v: [np.float64(x) for x in v],
    ):
        plan = fd.plan(row(given(row.values)))
        assert torch.equal(plan.packed(cpu), want.packed(cpu)) and plan == want and repr(plan) == repr(want)
    for given in (np.float64, np.array, lambda v: torch.tensor(v, dtype=torch.float64)):
        plan = fd.plan(row(given(row.values[1])))
        assert plan == fd.plan(row(row.values[1])) and plan.rows is None
        assert repr(plan).replace(".0", "") == repr(fd.plan(row(row.values[1]))).replace(".0", "")


def test_logits_where_a_parameter_is_asked_for():
    for logits in (torch.zeros(3, 300), np.zeros((3, 300), np.float32)):
        with pytest.raises(
            ValueError,
            match=r"^top_p must be .*shape \[3, 300\]: to apply the rule to logits, call fastdecode\.truncate\(logits, plan\)",
        ):
            fd.top_p(logits, 0.9)


def test_a_plan_grows_by_rules_and_plans():
    k, p = fd.top_k(5), fd.top_p(0.9)
    assert fd.plan(k) + p == fd.plan(k) + fd.plan(p) == fd.plan(k, p) != fd.plan(p, k)
    for wrong in (0.9, [p], "top_p"):
        with pytest.raises(TypeError, match="unsupported operand"):
            fd.plan(k) + wrong


def test_plans_and_rules_are_compared_by_value():
    def make() -> list[fd.Plan]:
        return [case.make(3) for case in CHAINS] + [fd.plan(row.typical()) for row in ROWS]

    ours, theirs = make(), make()
    for i, a in enumerate(ours):
        assert [a == b for b in theirs] == [i == j for j in range(len(theirs))] and hash(a) == hash(theirs[i])
        assert a.rules == theirs[i].rules
    assert len({*ours, *theirs}) == len(ours)
    assert fd.top_k(50) == fd.top_k(50.0) and hash(fd.top_k(50)) == hash(fd.top_k(50.0))
    assert fd.min_p(0.1) != fd.min_p(0.1, min_tokens_to_keep=2) and fd.top_h(0.4) != fd.top_h(0.4, variant="hf")
    assert fd.min_p([0.1, 0.2]) != fd.min_p([0.1, 0.3]) != fd.min_p([0.1]) != fd.min_p(0.1)
    assert fd.temperature([1.0, 2.0]) == fd.temperature(np.array([1, 2])) != fd.temperature([1.0, 3.0])
    assert fd.plan(fd.top_k(5)) != fd.top_k(5) and fd.plan() != "plan()"


def test_per_row_parameters_must_agree_in_length():
    with pytest.raises(
        ValueError,
        match=r"^all per-row parameters of a plan must have one value per row; got lengths \[2, 3\] in top_p",
    ):
        fd.plan(fd.top_p(torch.tensor([0.5, 0.9])), fd.min_p(torch.tensor([0.1, 0.1, 0.1])))
    plan = fd.plan(fd.top_p(torch.tensor([0.5, 0.9])), fd.min_p(0.1), fd.temperature(torch.tensor([1, 2])))
    assert plan.rows == 2 and plan.packed(torch.device("cpu")).shape == (2, 3, len(FIELDS))
    for logits in (torch.zeros(3, 10), torch.zeros(1, 10), torch.zeros(10)):
        with pytest.raises(
            ValueError, match=r"^the plan's per-row parameters must have one value per row of logits \(\d\); got 2\.$"
        ):
            fd.truncate(logits, plan)


def test_a_plan_does_not_change_with_the_tensor_it_was_made_from():
    p = torch.tensor([0.5, 0.9])
    plan = fd.plan(fd.top_p(p))
    before = plan.packed(torch.device("cpu")).clone()
    p.fill_(0.1)
    assert torch.equal(fd.plan(*plan.rules).packed(torch.device("cpu")), before)


def test_temperatures_multiply_from_left_to_right():
    t = [
        c["temperature"]
        for c in cuts(fd.plan(fd.top_k(5), fd.temperature(2.0), fd.top_k(4), fd.temperature(0.25), fd.top_k(3)))
    ]
    assert t == [1.0, 2.0, 0.5, 0.5]
    by_row = fd.plan(fd.temperature(torch.tensor([1.0, 2.0])), fd.top_k(3), fd.temperature(3.0)).packed(
        torch.device("cpu")
    )
    assert by_row[:, :, FIELDS.index("temperature")].tolist() == [[1.0, 3.0], [2.0, 6.0]]


def test_an_empty_plan_is_a_draw_alone():
    (draw,) = cuts(fd.plan())
    assert draw["kind"] == DRAW and draw["temperature"] == 1


OFF = [row for row in ROWS if row.off is not None]


@pytest.mark.parametrize("row", OFF, ids=lambda row: row.name)
def test_off_values(row, reference):
    """As a number the rule leaves no cut behind; in a tensor it keeps everything in its rows and works in the others."""
    assert len(cuts(fd.plan(row(row.off)))) == 1
    x = normal(2, 500, 3.0, 60)
    for plan in (fd.plan(row(row.off)), fd.plan(fd.temperature(5.0), row(row.off))):
        assert (fd.truncate(x, plan) > -INF).all()
    kept = (fd.truncate(x, fd.plan(row(torch.tensor([row.off, row.values[0]])))) > -INF).sum(1)
    assert kept[0] == 500 and 1 <= kept[1] < 500


def test_temperature_and_top_h_of_1():
    """The one divides by 1; the other is off as the paper's rule, and in transformers' rule all of its 100 tokens stay."""
    x = normal(2, 500, 3.0, 61)
    assert torch.equal(fd.truncate(x, fd.temperature(1)), x)
    assert ((fd.truncate(x, fd.top_h(1, variant="hf")) > -INF).sum(1) == 100).all()


@pytest.mark.parametrize("rule", [fd.top_n_sigma, fd.top_h], ids=lambda rule: rule.__name__)
def test_off_where_there_is_nothing_to_measure(engine, rule):
    """No deviation and no entropy: infinity times 0 is no bound."""
    x = torch.full((3, 70), -INF)
    x[0, 5], x[1, 3:60], x[2] = 2.0, 1.0, torch.linspace(0, 1e4, 70)
    off = INF if rule is fd.top_n_sigma else 1.0
    for plan in (fd.plan(rule([off] * 3)), fd.plan(rule(off)), fd.plan(fd.top_k(60), rule([off] * 3))):
        kept = (fd.truncate(x, plan) > -INF).sum(1).tolist()
        assert kept == [1, 57, 60 if len(plan.rules) == 2 else 70]
        assert fd.sample(x, plan, seed=1).kept.tolist() == kept


def test_no_off_value_is_forgotten():
    """Where a message says which value is off, cases.py says so too."""
    for rule, (interval, *_) in RANGES.items():
        if " is off)" in interval:
            rows = [row.off for row in ROWS if row.rule is rule]
            assert any(off is not None for off in rows), (
                f"give {rule.__name__} its `off` in ROWS of tests/support/cases.py."
            )
    assert len({row.rule for row in OFF}) == sum(" is off)" in interval for interval, *_ in RANGES.values()) == 9


def test_fields_are_those_of_the_engine(engine):
    """The order is the contract between a packed plan and `struct Cut`; every engine that names its fields must agree."""
    fields = getattr(dispatch.ENGINES[engine.name], "fields", None)
    if fields is None:
        pytest.skip("this engine reads the fields in Python")
    assert tuple(fields()) == FIELDS


def test_every_field_is_used_by_some_rule():
    plain = vars(Cut(DRAW))
    used = {
        name for row in ROWS for cut in row.typical().cuts for name, value in vars(cut).items() if value != plain[name]
    }
    assert used | {"temperature", "keep"} >= set(FIELDS)


@pytest.mark.parametrize("case", CHAINS, ids=lambda case: case.name)
def test_chains_pack_one_cut_for_each_rule_that_cuts(case):
    plan = case.make(4)
    packed = plan.packed(torch.device("cpu"))
    assert packed.dtype == torch.float32 and not packed.isnan().any()
    assert packed.shape[1] == sum(len(rule.cuts) for rule in plan.rules) + 1
    assert plan.packed(torch.device("cpu")) is packed
