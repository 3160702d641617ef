"""Several temperatures from one look at a row: the draws of separate calls, on every engine."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import fastdecode as fd
from fastdecode import dispatch
from tests.support.cases import CHAINS, HOSTILE, INPUTS, PLANS, SINGLE

T = (0.4, 0.0, 1.0, 2.5)
COORDINATES = {"seed": 7, "step": 3, "num_samples": 3, "stats": True}


@pytest.fixture(autouse=True)
def the_cpu_engine_otherwise(request):
    """The fixture `engine` lives as long as its parameter: tests that do not ask for it would run on the last one."""
    if "engine" in request.fixturenames:
        return (yield)
    with dispatch.use("cpu"):
        yield


def rows(n: int = 3, vocab: int = 3000) -> torch.Tensor:
    return 3 * torch.randn(n, vocab, generator=torch.Generator().manual_seed(0))


def separately(logits, temperatures, plan, **coordinates) -> list[fd.Sample]:
    """One call for each temperature: numbers, or the columns of a tensor."""
    columns = temperatures.unbind(1) if isinstance(temperatures, torch.Tensor) else temperatures
    return [fd.sample(logits, fd.plan(fd.temperature(t), *plan.rules), **coordinates) for t in columns]


def check_equal(together: fd.Sample, separate: list[fd.Sample]) -> None:
    """Every field, bit for bit."""
    compared = 0
    for name in fd.Sample.__slots__:
        found = getattr(together, name)
        if found is None:
            assert getattr(separate[0], name) is None
            continue
        expected = torch.stack([getattr(one, name) for one in separate], dim=1)
        assert found.shape == expected.shape and found.dtype == expected.dtype, name
        same = (found == expected) | (found.isnan() & expected.isnan())
        assert same.all(), f"{name}: {found[~same]} and {expected[~same]}"
        compared += 1
    assert compared >= 4


@pytest.mark.parametrize("kind", ["one", "chain"])
def test_equal_to_separate_calls(engine, kind):
    """Every plan, with one set of values for all rows or one for each; its own temperatures come after."""
    removed = 0
    for case in engine.few({"one": SINGLE, "chain": CHAINS}[kind], 1, kind):
        logits, temperatures = rows(3, 3000 if engine.sees_all else 300), engine.few(T, 2)
        plan = case.make(len(logits))
        together = fd.sample_temperatures(logits, temperatures, plan, **COORDINATES)
        assert together.tokens.shape == (3, len(temperatures), 3) and together.kept.shape == (3, len(temperatures))
        check_equal(together, separately(logits, temperatures, plan, **COORDINATES))
        removed += int((together.kept < logits.shape[1]).sum())
    assert removed


@pytest.mark.parametrize("plan", ["nothing", "min_p(0.1)", "top_h(0.4)"])
def test_hostile_rows_at_several_temperatures(engine, plan):
    """Rows that cannot be sampled, +inf, -inf, ties: what was found out about a row once holds at each temperature."""
    made = PLANS[plan].make if plan in PLANS else lambda b: fd.plan(eval(f"fd.{plan}"))
    statuses = set()
    for given in engine.few([h for h in HOSTILE if h.name in INPUTS], 1, plan):
        logits = given.logits()
        together = fd.sample_temperatures(logits, T[1:], made(len(logits)), **COORDINATES)
        check_equal(together, separately(logits, T[1:], made(len(logits)), **COORDINATES))
        statuses |= set(together.status.flatten().tolist())
    assert not engine.sees_all or statuses == {fd.STATUS_OK, fd.STATUS_NAN, fd.STATUS_EMPTY}


def test_half_precision_and_a_limit(engine):
    for dtype in (torch.float16, torch.bfloat16):
        logits = rows(2, 400).to(dtype)
        plan, options = fd.plan(fd.min_p(0.01)), {**COORDINATES, "vocab_limit": 333}
        together = fd.sample_temperatures(logits, [1.5, 0.7], plan, **options)
        check_equal(together, separately(logits, [1.5, 0.7], plan, **options))


def test_coordinates_and_temperatures_of_each_row(engine):
    logits, plan = rows(3, 300), fd.plan(fd.min_p(torch.tensor([0.0, 0.1, 0.3])))
    options = {"seed": torch.tensor([5, 6, 7]), "step": torch.tensor([1, 0, 2]), "streams": torch.tensor([9, 3, 4])}
    temperatures = torch.tensor([[0.5, 2.0], [1.0, 0.0], [3.0, 0.9]])
    for given in (temperatures, (0.5, 2.0)):
        together = fd.sample_temperatures(logits, given, plan, num_samples=4, **options)
        check_equal(together, separately(logits, given, plan, num_samples=4, **options))


def test_threads_do_not_matter(threads):
    logits = rows(9)
    found = []
    for count in (1, 2):
        torch.set_num_threads(count)
        found.append(fd.sample_temperatures(logits, T, fd.plan(fd.min_p(0.05)), **COORDINATES))
    assert torch.equal(found[0].tokens, found[1].tokens) and torch.equal(found[0].logprobs, found[1].logprobs)


def test_the_cpu_engine_opens_a_row_once(monkeypatch):
    """One call of the extension, whatever T is."""
    native = dispatch.ENGINES["cpu"]
    calls, real = [], native._native.sample_cpu

    class Spy:
        def __getattr__(self, name):
            return getattr(native_module, name)

        def sample_cpu(self, *arguments):
            calls.append(1)
            return real(*arguments)

    native_module = native._native
    monkeypatch.setattr(native, "_native", Spy())
    with dispatch.use("cpu"):
        fd.sample_temperatures(rows(), T)
    assert len(calls) == 1


def test_an_engine_takes_all_temperatures_at_once(engine, monkeypatch):
    """Not in a call for each: one kernel, or one chain of them, reads the rows."""
    asked = dispatch.ENGINES[engine.name]
    monkeypatch.setattr(asked.engine if engine.device else asked, "sample", None)
    assert fd.sample_temperatures(rows(2, 300), T, seed=1).tokens.shape == (2, 4, 1)


def test_shapes():
    logits = rows(2)
    plain = fd.sample_temperatures(logits, T)
    assert plain.tokens.shape == plain.logprobs.shape == (2, 4, 1) and plain.kept.shape == plain.status.shape == (2, 4)
    assert plain.entropy is None and (plain.tokens[:, 1, 0] == logits.argmax(1)).all()
    alone = fd.sample_temperatures(logits[0], torch.tensor(T), num_samples=2, seed=1, stats=True)
    assert alone.tokens.shape == (4, 2) and alone.entropy.shape == (4,)
    assert alone.entropy[1] == 0 and alone.entropy[0] < alone.entropy[2] < alone.entropy[3]
    numpy = fd.sample_temperatures(logits.numpy(), np.array(T), num_samples=2, seed=1, stats=True)
    assert isinstance(numpy.tokens, np.ndarray)
    assert (numpy.tokens[0] == alone.tokens.numpy()).all()
    assert fd.sample_temperatures(logits[:0], T, num_samples=2).tokens.shape == (0, 4, 2)


def test_a_plan_remembers_the_temperatures_it_was_packed_with():
    plan, logits = fd.plan(fd.top_k(50)), rows()
    for temperatures in ((0.5, 1.5), (1.5, 0.5), (0.5,), (0.5, 1.5)):
        check_equal(
            fd.sample_temperatures(logits, temperatures, plan, seed=1),
            separately(logits, temperatures, plan, seed=1, num_samples=1),
        )
    first = plan.packed_at((0.5, 1.5), logits.device)
    assert plan.packed_at((0.5, 1.5), logits.device) is first


def test_no_seed_follows_torch():
    logits = rows()
    torch.manual_seed(3)
    first = fd.sample_temperatures(logits, T, num_samples=4).tokens
    torch.manual_seed(3)
    assert torch.equal(fd.sample_temperatures(logits, T, num_samples=4).tokens, first)


def test_compiled():
    @torch.compile(backend="eager", fullgraph=True)
    def run(logits):
        return fd.sample_temperatures(logits, (0.5, 1.5), num_samples=2, seed=1).tokens

    logits = rows()
    assert torch.equal(run(logits), fd.sample_temperatures(logits, (0.5, 1.5), num_samples=2, seed=1).tokens)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ([], "temperatures must hold one or more numbers"),
        (0.7, "temperatures must hold one or more numbers"),
        ("0.7", "temperatures must hold one or more numbers"),
        ([None], "temperatures must hold one or more numbers"),
        ([torch.ones(3)], "temperatures must hold one or more numbers"),
        (torch.ones(2, 4), r"or for each row \[3, T\]; got a torch.float32 tensor of shape \[2, 4\]"),
        (torch.ones(3, 0), r"got a torch.float32 tensor of shape \[3, 0\]"),
        ([-1.0], "temperature must be a number in"),
        ([1.0, True], "temperature must be a number in"),
        ([float("nan")], "temperature must be a number in"),
        (torch.tensor([[1.0, -1.0]] * 3), "temperature must be a number in"),
    ],
)
def test_bad_temperatures(bad, message):
    with pytest.raises(ValueError, match=message):
        fd.sample_temperatures(rows(), bad)


def test_other_bad_arguments():
    with pytest.raises(ValueError, match=r"per row of logits \(3\); got 2"):
        fd.sample_temperatures(rows(), T, fd.plan(fd.min_p(torch.tensor([0.1, 0.2]))))
    with pytest.raises(TypeError, match="plan must be made with"):
        fd.sample_temperatures(rows(), T, 0.1)
    broken = rows()
    broken[1, 5] = float("nan")
    with pytest.raises(ValueError, match=r"1 \(NaN\)\."):
        fd.sample_temperatures(broken, T, check=True)
