"""Here arguments.py is judged by what callers write: memory that overlaps, coordinates out of range, lists where tensors are usual,
a rule where a plan is asked for, names from other libraries.
"""

from __future__ import annotations

import itertools
import math
import subprocess
import sys
import warnings

import numpy as np
import pytest
import torch

import fastdecode as fd
from fastdecode import arguments
from tests import ROOT
from tests.core.test_ops import raises
from tests.support.cases import normal

PLAN = fd.plan(fd.temperature(1.5), fd.top_p(0.9))
X = normal(3, 300, 2.0, 80)
VERBS = {
    "truncate": lambda x, plan, **more: fd.truncate(x, plan, **more),
    "sample": lambda x, plan, **more: fd.sample(x, plan, seed=1, **more).tokens,
    "sample_temperatures": lambda x, plan, **more: fd.sample_temperatures(x, [0.5, 1.0], plan, seed=1, **more).tokens,
    "soft_tokens": lambda x, plan, **more: fd.soft_tokens(x, plan, seed=1, **more).weights,
}

# ---- where answers are written ---------------------------------------------------------------------------------------

ITSELF = "out must have a place of its own for each element; got strides ... for shape ...: pass out.clone()."
IN_PART = "out must be the very memory of logits, or none of it; got a tensor that overlaps logits in part: pass torch.empty_like(logits), or out=logits."


def test_out_that_overlaps_itself():
    row = torch.arange(6.0)
    raises(ValueError, ITSELF, fd.truncate, row[None].expand(3, 6), PLAN, out=row[None].expand(3, 6))
    raises(ValueError, ITSELF, fd.truncate, torch.zeros(3, 6), PLAN, out=row[None].expand(3, 6))
    raises(ValueError, ITSELF, fd.truncate, torch.zeros(3, 4), PLAN, out=torch.zeros(8).as_strided((3, 4), (2, 1)))
    raises(ValueError, ITSELF, fd.truncate, torch.zeros(4), PLAN, out=torch.zeros(1).expand(4))
    assert torch.equal(row, torch.arange(6.0)), "written to in spite of the error"
    numbers = np.zeros(8, np.float32)
    windows = np.lib.stride_tricks.as_strided(numbers, (3, 4), (8, 4))
    raises(ValueError, ITSELF, fd.truncate, np.zeros((3, 4), np.float32), PLAN, out=windows)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_out_that_overlaps_the_logits_in_part(dtype):
    room = normal(4, 300, 2.0, 81).to(dtype)
    before = room.clone()
    raises(ValueError, IN_PART, fd.truncate, room[:3], PLAN, out=room[1:])
    raises(ValueError, IN_PART, fd.truncate, room[0, :200], PLAN, out=room[0, 1:201])
    raises(ValueError, IN_PART, fd.truncate, room[:, :200], PLAN, out=room[:, 100:])
    raises(ValueError, IN_PART, fd.truncate, room[:2], PLAN, out=room[::2])  # other strides
    raises(ValueError, IN_PART, fd.truncate, room[:1].expand(4, -1), PLAN, out=room)
    assert torch.equal(room, before), "written to in spite of the error"
    numbers = normal(4, 300, 2.0, 81).numpy()
    raises(ValueError, IN_PART, fd.truncate, numbers[:3], PLAN, out=numbers[1:])


def test_out_beside_the_logits_and_in_their_place(engine):
    want = fd.truncate(X, PLAN)
    room = torch.cat([X, torch.zeros_like(X)], 1)
    assert torch.equal(fd.truncate(room[:, :300], PLAN, out=room[:, 300:]), want), "rows that take turns"
    woven = torch.stack([X, torch.zeros_like(X)], 2).flatten(1)
    assert torch.equal(fd.truncate(woven[:, ::2], PLAN, out=woven[:, 1::2]), want), "columns that take turns"
    for x in (X.clone(), X.t().contiguous().t(), room[:, :300], X[:1].clone(), X[0].clone()):
        expected = fd.truncate(x, PLAN)
        assert torch.equal(fd.truncate(x, PLAN, out=x), expected)
    one = X[:1].clone()  # the stride of a single row says nothing
    assert torch.equal(fd.truncate(one, PLAN, out=one.as_strided((1, 300), (7, 1))), want[:1])


def addresses(x: torch.Tensor) -> list[int]:
    steps = itertools.product(*map(range, x.shape))
    return [x.storage_offset() + sum(i * s for i, s in zip(place, x.stride())) for place in steps]


def test_overlaps_are_found_exactly():
    """Against the list of all addresses, for every small shape and stride."""
    room, seen = torch.zeros(60), set()
    views = []
    for n, m, s, t in itertools.product((1, 2, 3), (1, 2, 4), (0, 1, 2, 3, 5), (0, 1, 2, 3)):
        x = room.as_strided((n, m), (s, t))
        places = addresses(x)
        assert arguments._meets_itself(x) == (len(set(places)) < len(places)), (n, m, s, t)
        if len(set(places)) == len(places):
            views += [room.as_strided((n, m), (s, t), offset) for offset in (0, 1, 4)]
    for a, b in itertools.product(views[::3], views[::2]):
        shared = bool(set(addresses(a)) & set(addresses(b)))
        assert arguments._share_memory(a, b) == shared, (a.shape, a.stride(), b.shape, b.stride())
        seen.add(shared)
    assert seen == {True, False}


def test_out_that_requires_a_gradient():
    out = torch.full_like(X, 7.0).requires_grad_()
    sentence = "out must not require a gradient, as writing into it is not recorded; pass out.detach()."
    raises(ValueError, sentence, fd.truncate, X, PLAN, out=out)
    assert (out == 7).all()
    with torch.no_grad():
        assert fd.truncate(X, PLAN, out=out) is out


# ---- coordinates -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name, end", [("step", 2**32), ("streams", 2**40)])
@pytest.mark.parametrize("verb", [fd.sample, fd.soft_tokens])
def test_tensors_of_steps_and_streams_are_in_range(verb, name, end):
    expected = f"{name} must be a whole number in [0, {end}), or one for each row: ...; got a "
    for wrong in (end, -1, 7 + end, 7 - end):
        numbers = [7, wrong, 9]
        raises(ValueError, f"{expected}tensor with {wrong}...", verb, X, PLAN, **{name: torch.tensor(numbers)})
        raises(ValueError, f"{expected}tensor with {wrong}...", verb, X, PLAN, **{name: torch.tensor([wrong])})
        raises(ValueError, f"{expected}list with {wrong}...", verb, X, PLAN, **{name: numbers})
        raises(ValueError, f"{expected}numpy array with {wrong}...", verb, X, PLAN, **{name: np.array(numbers)})
    largest = np.array([1, 2, 2**64 - 1], np.uint64)
    raises(ValueError, f"{expected}numpy array with {2**64 - 1}...", verb, X, PLAN, **{name: largest})
    verb(X, PLAN, **{name: torch.tensor([0, 5, end - 1])})
    verb(X[:0], PLAN, **{name: torch.zeros(0, dtype=torch.int64)})


def test_seeds_are_any_64_bits(reference):
    seeds = [2**64 - 1, -(2**63), 2**63]
    want = fd.sample(X, PLAN, seed=torch.tensor([-1, -(2**63), -(2**63)])).tokens
    assert torch.equal(fd.sample(X, PLAN, seed=seeds).tokens, want)
    assert torch.equal(fd.sample(X, PLAN, seed=np.array([n % 2**64 for n in seeds], np.uint64)).tokens, want)


@pytest.mark.parametrize("name", ["seed", "step", "streams"])
def test_lists_and_arrays_of_coordinates(engine, name):
    numbers = [3, 5, 4]
    want = fd.sample(X, PLAN, **{"seed": 1, name: torch.tensor(numbers)}).tokens
    assert len(set(want.tolist())) > 1
    for given in (
        numbers,
        tuple(numbers),
        np.array(numbers),
        np.array(numbers, np.int32),
        [np.int64(n) for n in numbers],
    ):
        assert torch.equal(fd.sample(X, PLAN, **{"seed": 1, name: given}).tokens, want)
        assert np.array_equal(fd.sample(X.numpy(), PLAN, **{"seed": 1, name: given}).tokens, want.numpy())
    one = fd.sample(X, PLAN, **{"seed": 1, name: 5}).tokens
    for given in (torch.tensor(5), np.array(5), np.int64(5), [5]):
        assert torch.equal(fd.sample(X, PLAN, **{"seed": 1, name: given}).tokens, one)


# ---- rules and plans -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("verb", VERBS)
def test_a_rule_or_a_list_of_rules_is_a_plan(reference, verb):
    rules = [fd.top_k(20), fd.min_p(0.05)]
    call = VERBS[verb]
    assert torch.equal(call(X, rules[0]), call(X, fd.plan(rules[0])))
    assert torch.equal(call(X, rules), call(X, fd.plan(rules))) and torch.equal(call(X, tuple(rules)), call(X, rules))
    assert not torch.equal(call(X, rules), call(X, fd.plan(fd.top_k(1))))


@pytest.mark.parametrize("verb", VERBS)
def test_rules_as_keywords_are_answered_with_the_plan(verb):
    sentence = f"{verb}() takes rules as a plan; got top_p=: pass plan=fastdecode.plan(fastdecode.top_p(0.9))."
    raises(TypeError, sentence, VERBS[verb], X, None, top_p=0.9)
    both = "plan=fastdecode.plan(fastdecode.temperature(0.7), fastdecode.min_p(0.1))."
    raises(
        TypeError,
        f"{verb}() ...; got temperature=, min_p=: pass {both}",
        VERBS[verb],
        X,
        None,
        min_p=0.1,
        temperature=0.7,
    )


def test_unknown_keywords():
    raises(TypeError, "sample() has no argument sed=: pass seed= instead.", fd.sample, X, sed=1)
    raises(
        TypeError,
        "soft_tokens() has no argument do_sample=: it takes logits, plan, ...",
        fd.soft_tokens,
        X,
        do_sample=True,
    )
    raises(TypeError, "truncate() takes rules as a plan; got top_k=: pass ...", fd.truncate, X, top_k=5)
    soft = fd.soft_tokens(X, PLAN)
    raises(
        TypeError,
        "soft_logprobs() has no argument vocab=: pass vocab_limit= instead.",
        fd.soft_logprobs,
        X,
        soft,
        vocab=9,
    )


@pytest.mark.parametrize("thing", [fd.top_p(0.9), PLAN], ids=repr)
def test_a_plan_in_logits_processor_names_the_class_for_it(thing):
    raises(
        TypeError,
        "a ... cannot be called: ...; in logits_processor=[...], pass fastdecode.hf.FusedLogitsProcessor(...",
        thing,
        None,
        X,
    )


def test_stats_that_are_no_names():
    names = "raw_logprobs, entropy, kept_mass, max_prob, margin"
    for wrong in (1, 0.5, np.True_):
        raises(
            ValueError, f"stats must be True, False or some of {names}; got {wrong!r}.", fd.sample, X, PLAN, stats=wrong
        )


def test_messages_stay_on_one_line():
    """Whatever came: a tensor, an array or a long list."""
    for wrong in (X, X.numpy(), list(range(1000))):
        for call in (
            lambda w: fd.sample(X, w), lambda w: fd.sample(X, num_samples=w), lambda w: fd.sample(X, seed=w), lambda w: fd.sample(X, stats=w),
            lambda w: fd.top_h(0.4, w), lambda w: fd.top_p(0.9, w), lambda w: fd.plan(fd.top_k(1), w), lambda w: fd.sample(X, top_p=w),
            lambda w: fd.soft_tokens(X, scale=w), lambda w: fd.soft_tokens(X, noise=str(w)), lambda w: fd.soft_tokens(X, soft_rows=w),
        ):  # fmt: skip
            with pytest.raises((TypeError, ValueError)) as caught:
                call(wrong)
            assert len(str(caught.value)) < 400 and "\n" not in str(caught.value)


# ---- probabilities ---------------------------------------------------------------------------------------------------

PROBABILITIES = "^logits should be scores before the softmax, and these look like probabilities"


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_probabilities_are_warned_of_once(monkeypatch, verb, dtype):
    monkeypatch.setattr(arguments, "unseen_calls", 3)
    p = X.softmax(1).to(dtype)
    with pytest.warns(UserWarning, match=PROBABILITIES) as seen:
        VERBS[verb](p, PLAN)
    caught = [each for each in seen if each.category is UserWarning]  # Triton's interpreter has warnings of its own
    assert len(caught) == 1 and caught[0].filename == __file__, "the line that called"
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        VERBS[verb](p, PLAN)


def test_what_is_not_probabilities(monkeypatch):
    shifted = X.softmax(1)
    shifted[1, 0] += 0.1
    for x in (
        X,
        shifted,
        X.log_softmax(1),
        torch.ones(3, 1),
        torch.zeros(0, 5),
        torch.full((2, 4), math.nan),
        torch.ones(2, 4),
    ):
        monkeypatch.setattr(arguments, "unseen_calls", 3)
        with warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)
            fd.sample(x)
        assert arguments.unseen_calls == 2


def test_probabilities_are_looked_for_three_times_and_never_in_a_compiled_call(monkeypatch):
    monkeypatch.setattr(arguments, "unseen_calls", 3)
    compiled = torch.compile(lambda x: fd.sample(x, PLAN, seed=1).tokens, fullgraph=True, backend="eager")
    compiled(X.softmax(1))
    assert arguments.unseen_calls == 3
    for _ in range(5):
        fd.sample(X, PLAN)
    assert arguments.unseen_calls == 0


# ---- the package -----------------------------------------------------------------------------------------------------


def fresh(code: str) -> str:
    """What a new process prints."""
    root = ROOT
    return subprocess.run([sys.executable, "-c", code], cwd=root, check=True, capture_output=True, text=True).stdout


def test_modules_are_imported_when_they_are_asked_for():
    heavy = "print(sorted({'transformers', 'scipy', 'matplotlib', 'fastdecode.scaling.selection'} & set(sys.modules)))"
    assert fresh(f"import sys, fastdecode; dir(fastdecode); {heavy}") == "[]\n"
    assert fresh("import fastdecode; print(fastdecode.selection.pass_at_k(5, 5, 1))") == "1.0\n"
    pytest.importorskip("transformers")
    assert fresh("import fastdecode; print(fastdecode.hf.patch.__module__)") == "fastdecode.hf.patch\n"


def test_a_module_that_cannot_be_imported_is_no_attribute():
    code = "import sys; sys.modules['transformers'] = None; import fastdecode; print(hasattr(fastdecode, 'hf')); fastdecode.hf"
    got = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert got.stdout == "False\n"
    assert got.stderr.splitlines()[-1].startswith("AttributeError: fastdecode.hf cannot be imported here: ")


@pytest.mark.parametrize(
    "wrong, right", [("typical", "typical_p"), ("epsilon", "epsilon_cutoff"), ("eta", "eta_cutoff"), ("top_pp", "top_p"), ("smaple", "sample")]
)  # fmt: skip
def test_names_that_are_not_there(wrong, right):
    raises(AttributeError, f"module 'fastdecode' has no {wrong!r}: the nearest name is {right}.", getattr, fd, wrong)


def test_help_shows_what_is_public():
    public = {name for name in dir(fd) if not name.startswith("__")}
    assert public == set(fd.__all__) | {"hf", "selection", "texts", "verify"}
    assert all(name in fd.__doc__ for name in public)
    raises(AttributeError, "module 'fastdecode' has no 'xyzzy': see help(fastdecode).", getattr, fd, "xyzzy")
