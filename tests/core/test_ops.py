"""Here ops.py is judged by what it promises: errors of one sentence before anything is written, numpy as torch, one row as a
batch of one.
"""

from __future__ import annotations

import math
import os
import re
import subprocess
import sys

import numpy as np
import pytest
import torch

import fastdecode as fd
from fastdecode import dispatch
from tests import ROOT
from tests.support.cases import INPUTS, normal

PLAN = fd.plan(fd.temperature(1.5), fd.top_p(0.9))
X = normal(3, 300, 2.0, 80)


def raises(kind: type[Exception], sentence: str, call, *args, **kwargs) -> None:
    """The whole message is this one sentence; `...` stands for anything."""
    pattern = ".*".join(map(re.escape, sentence.split("...")))
    with pytest.raises(kind, match=f"^{pattern}$") as caught:
        call(*args, **kwargs)
    assert str(caught.value).endswith((".", "!")) and "\n" not in str(caught.value)


# ---- errors --------------------------------------------------------------------------------------------------------

BAD_LOGITS = [
    (TypeError, "logits must be a torch.Tensor or a numpy array; got list.", [[1.0, 2.0]]),
    (TypeError, "logits must be a torch.Tensor or a numpy array; got NoneType.", None),
    (
        TypeError,
        "logits must be float32, float16 or bfloat16; got torch.float64: convert them with .float().",
        X.double(),
    ),
    (TypeError, "logits must be float32, float16 or bfloat16; got torch.int64: convert them with .float().", X.long()),
    (ValueError, "logits must be [B, V] or [V] with V >= 1; got shape [].", torch.tensor(1.0)),
    (ValueError, "logits must be [B, V] or [V] with V >= 1; got shape [3, 0].", torch.zeros(3, 0)),
    (
        ValueError,
        "logits must be [B, V] or [V] with V >= 1; got shape [2, 3, 4]: logits[:, -1] is the last position of each sequence.",
        torch.zeros(2, 3, 4),
    ),
    (ValueError, "logits must be [B, V] or [V] with V >= 1; got shape [1, 2, 3, 4].", torch.zeros(1, 2, 3, 4)),
    (
        TypeError,
        "logits must be a float32 or float16 numpy array; got float64: convert with logits.astype(np.float32).",
        np.zeros((2, 3)),
    ),
    (
        TypeError,
        "logits must be a float32 or float16 numpy array; got int32: convert with logits.astype(np.float32).",
        np.zeros((2, 3), np.int32),
    ),
]


@pytest.mark.parametrize("kind, sentence, logits", BAD_LOGITS, ids=[case[1] for case in BAD_LOGITS])
def test_logits(kind, sentence, logits):
    raises(kind, sentence, fd.truncate, logits, PLAN)
    raises(kind, sentence, fd.sample, logits, PLAN)


@pytest.mark.parametrize("wrong", [None, 0.9, "top_p", {"top_p": 0.9}, [0.9], [fd.top_p(0.9), PLAN]], ids=repr)
def test_plan(wrong):
    sentence = (
        "plan must be made with fastdecode.plan(...), or be one rule such as fastdecode.min_p(0.05), or a list of rules; got "
        f"{wrong!r}."
    )
    raises(TypeError, sentence, fd.truncate, X, wrong)
    if wrong is not None:  # sample takes None for the plain softmax
        raises(TypeError, sentence, fd.sample, X, wrong)
        raises(TypeError, sentence, fd.sample_temperatures, X, [1.0], wrong)
        raises(TypeError, sentence, fd.soft_tokens, X, wrong)
    raises(TypeError, "plan must be ... got the function top_p: call it with its parameter.", fd.sample, X, fd.top_p)


@pytest.mark.parametrize("wrong", [0, -1, 301, 1.5, True, "5"], ids=repr)
def test_vocab_limit(wrong):
    sentence = f"vocab_limit must be a whole number in [1, 300]; got {wrong!r}."
    raises(ValueError, sentence, fd.truncate, X, PLAN, vocab_limit=wrong)
    raises(ValueError, sentence, fd.sample, X, PLAN, vocab_limit=wrong)


BAD_OUT = [
    (TypeError, "out must be a torch.Tensor; got list.", lambda x: []),
    (TypeError, "out must be a torch.Tensor; got ndarray.", lambda x: x.numpy()),
    (ValueError, "out must be like logits, torch.float32 [3, 300] on cpu; got torch.float16 [3, 300] on cpu.", lambda x: x.half()),
    (ValueError, "out must be like logits, torch.float32 [3, 300] on cpu; got torch.float32 [2, 300] on cpu.", lambda x: x[:2].clone()),
    (ValueError, "out must be like logits, torch.float32 [3, 300] on cpu; got torch.float32 [3, 300] on meta.", lambda x: x.to("meta")),
]  # fmt: skip


@pytest.mark.parametrize("kind, sentence, make", BAD_OUT, ids=[case[1] for case in BAD_OUT])
def test_out(kind, sentence, make):
    out = make(X.clone())
    raises(kind, sentence, fd.truncate, X, PLAN, out=out)
    if isinstance(out, torch.Tensor) and out.device.type == "cpu":
        assert torch.equal(out, X[: len(out)].to(out.dtype)), "written to in spite of the error"


def test_out_of_logits_that_require_a_gradient():
    x, out = X.clone().requires_grad_(), torch.full_like(X, 7.0)
    raises(
        ValueError,
        "out cannot be used with logits that require a gradient; leave it out, or detach the logits.",
        fd.truncate,
        x,
        PLAN,
        out=out,
    )
    assert (out == 7).all()
    with torch.no_grad():
        assert fd.truncate(x, PLAN, out=out) is out


def test_nothing_is_written_when_another_argument_is_wrong():
    out = torch.full_like(X, 7.0)
    for wrong in ({"vocab_limit": 0}, {"plan": 0.9}, {"plan": fd.plan(fd.top_k(torch.tensor([1.0, 2.0])))}):
        with pytest.raises((TypeError, ValueError)):
            fd.truncate(X, **{"plan": PLAN, "out": out, **wrong})
    assert (out == 7).all()


COORDINATES = [
    *(("seed", wrong, "a 64-bit whole number") for wrong in (2**64, -(2**63) - 1, 1.0, True, "a", [1, 2.0, 3], [1, True, 3])),
    *(("step", wrong, "a whole number in [0, 4294967296)") for wrong in (-1, 2**32, None, 1.5)),
    *(("streams", wrong, "a whole number in [0, 1099511627776)") for wrong in (-1, 2**40, "a", ["a", "b", "c"])),
]  # fmt: skip


@pytest.mark.parametrize("name, wrong, number", COORDINATES, ids=[f"{c[0]}={c[1]!r}" for c in COORDINATES])
def test_coordinates(name, wrong, number):
    expected = f"{name} must be {number}, or one for each row: a list or an int64 tensor of shape [3]; got {wrong!r}"
    remedy = ": seed, streams = fastdecode.seed_and_streams(seed, ids) takes ids of 64 bits, and texts"
    raises(ValueError, f"{expected}{remedy if name == 'streams' else ''}.", fd.sample, X, PLAN, **{name: wrong})


@pytest.mark.parametrize("name", ["seed", "step", "streams"])
def test_coordinate_tensors(name):
    for wrong, got in (
        (torch.zeros(2, dtype=torch.int64), "a torch.int64 tensor of shape [2]"),
        (torch.zeros(3), "a torch.float32 tensor of shape [3]"),
        (torch.zeros(3, dtype=torch.int32), "a torch.int32 tensor of shape [3]"),
        (torch.zeros(3, 1, dtype=torch.int64), "a torch.int64 tensor of shape [3, 1]"),
        (np.zeros(3), "a numpy array of float64, shape [3]"),
        (np.zeros(2, np.int64), "a numpy array of int64, shape [2]"),
    ):
        raises(
            ValueError,
            f"{name} must be ... or one for each row: a list or an int64 tensor of shape [3]; got {got}.",
            fd.sample,
            X,
            PLAN,
            **{name: wrong},
        )


def test_counts():
    for wrong in (0, -1, 2**16 + 1, 1.0, True):
        raises(
            ValueError,
            f"num_samples must be a whole number in [1, 65536]; got {wrong!r}.",
            fd.sample,
            X,
            PLAN,
            num_samples=wrong,
        )
    for wrong in (-1, 301, 1.5, True):
        raises(
            ValueError,
            f"top_logprobs must be a whole number in [0, 300]; got {wrong!r}.",
            fd.sample,
            X,
            PLAN,
            top_logprobs=wrong,
        )
    raises(
        ValueError,
        "top_logprobs must be a whole number in [0, 10]; got 11.",
        fd.sample,
        X,
        PLAN,
        top_logprobs=11,
        vocab_limit=10,
    )


def test_stats():
    names = "raw_logprobs, entropy, kept_mass, max_prob, margin"
    for wrong, shown in (("entropies", "'entropies'"), (("entropy", "mass"), "'mass'"), (["logprobs"], "'logprobs'")):
        raises(
            ValueError, f"stats must be True, False or some of {names}; got {shown}.", fd.sample, X, PLAN, stats=wrong
        )
    assert fd.sample(X, PLAN, seed=1, stats="entropy").entropy is not None


def test_logprobs_of():
    ids = torch.zeros(3, 2, dtype=torch.int64)
    raises(
        TypeError, "logprobs_of must be an int64 tensor; got torch.int32.", fd.sample, X, PLAN, logprobs_of=ids.int()
    )
    raises(TypeError, "logprobs_of must be an int64 tensor; got list.", fd.sample, X, PLAN, logprobs_of=[1])
    raises(
        ValueError, "logprobs_of must be [B, n] with B = 3; got shape [2, 2].", fd.sample, X, PLAN, logprobs_of=ids[:2]
    )
    raises(ValueError, "logprobs_of must be [B, n] with B = 3; got shape [2].", fd.sample, X, PLAN, logprobs_of=ids[0])
    for wrong, limit in ((-1, 300), (300, 300), (20, 20)):
        out_of_range = ids.clone()
        out_of_range[2, 1] = wrong
        raises(
            ValueError, f"logprobs_of must hold token ids in [0, {limit}); got one outside.", fd.sample, X, PLAN,
            logprobs_of=out_of_range, vocab_limit=limit,
        )  # fmt: skip


def test_check_names_the_rows(engine):
    x = X.clone().repeat(6, 1)
    fd.sample(x, PLAN, check=True)
    sentence = "every row of logits must hold a finite logit and no NaN; rows that do not: {}."
    x[1, 0], x[2] = math.nan, -math.inf
    raises(ValueError, sentence.format("1 (NaN), 2 (all -inf)"), fd.sample, x, PLAN, check=True)
    assert fd.sample(x, PLAN).status.tolist() == [0, 1, 2] + [0] * 15
    x[3:13] = math.nan
    named = "1 (NaN), 2 (all -inf), 3 (NaN), 4 (NaN), 5 (NaN), 6 (NaN), 7 (NaN), 8 (NaN) and 4 more"
    raises(ValueError, sentence.format(named), fd.sample, x, PLAN, check=True)


def test_engines_that_cannot_be_used(monkeypatch):
    monkeypatch.setitem(dispatch.MISSING, "missing", "it was not built")
    for name in ("missing", "nonsense"):
        with dispatch.use(name):
            raises(RuntimeError, f"the engine {name!r} was asked for and cannot be used: ...", fd.truncate, X, PLAN)


def test_required_engines(monkeypatch):
    """A skip becomes a failure for these (conftest.py)."""
    monkeypatch.delenv("FASTDECODE_REQUIRE", raising=False)
    assert dispatch.required() == {"cpu"}
    monkeypatch.setenv("FASTDECODE_REQUIRE", "cpu,cuda")
    assert dispatch.required() == {"cpu", "cuda"}


# ---- numpy ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_numpy(engine, dtype):
    x = X.numpy().astype(dtype)
    want = fd.truncate(torch.from_numpy(x), PLAN, filter_value=-9.0, vocab_limit=200).numpy()
    got = fd.truncate(x, PLAN, filter_value=-9.0, vocab_limit=200)
    assert isinstance(got, np.ndarray) and got.dtype == dtype and np.array_equal(got, want)
    out = np.full_like(x, 7.0)
    assert fd.truncate(x, PLAN, filter_value=-9.0, vocab_limit=200, out=out) is out and np.array_equal(out, want)
    strided = np.full((3, 600), 7.0, dtype)
    fd.truncate(x, PLAN, filter_value=-9.0, vocab_limit=200, out=strided[:, ::2])
    assert np.array_equal(strided[:, ::2], want) and (strided[:, 1::2] == 7).all()
    assert np.array_equal(x, X.numpy().astype(dtype)), "the logits were written to"
    assert fd.truncate(x, PLAN, out=x) is x and np.array_equal(x, fd.truncate(X.numpy().astype(dtype), PLAN))


def test_numpy_sample(engine):
    ids, seed, streams = np.array([[0, 5]] * 3), np.array([3, 4, 5]), np.array([9, 8, 7])
    options = {"step": 2, "num_samples": 2, "stats": True, "top_logprobs": 2}
    got = fd.sample(X.numpy(), PLAN, seed=seed, streams=streams, logprobs_of=ids, **options)
    as_torch = {
        "seed": torch.from_numpy(seed),
        "streams": torch.from_numpy(streams),
        "logprobs_of": torch.from_numpy(ids),
    }
    want = fd.sample(X, PLAN, **as_torch, **options)
    for name in fd.Sample.__slots__:
        assert isinstance(getattr(got, name), np.ndarray) and np.array_equal(
            getattr(got, name), getattr(want, name).numpy()
        )
    assert fd.sample(X.numpy(), PLAN, seed=1).entropy is None


def test_numpy_arrays_in_odd_places(engine):
    """Read-only, negative strides, and the 12-byte strides of llama-cpp-python's record arrays."""
    want = fd.truncate(X, PLAN).numpy()
    fixed = X.numpy().copy()
    fixed.flags.writeable = False
    assert np.array_equal(fd.truncate(fixed, PLAN), want)
    assert np.array_equal(fd.truncate(np.ascontiguousarray(X.numpy()[:, ::-1])[:, ::-1], PLAN), want)
    records = np.zeros(300, [("id", np.int32), ("logit", np.float32), ("p", np.float32)])
    records["logit"] = X.numpy()[0]
    assert np.array_equal(fd.truncate(records["logit"], PLAN), want[0])
    raises(
        ValueError,
        "out must be a writeable numpy array with ordinary strides; pass a fresh array.",
        fd.truncate,
        X.numpy(),
        PLAN,
        out=fixed,
    )
    raises(
        TypeError,
        "out must be a numpy array where logits are one; got Tensor.",
        fd.truncate,
        X.numpy(),
        PLAN,
        out=X,
    )


# ---- shapes --------------------------------------------------------------------------------------------------------


def test_one_row_is_a_batch_of_one(engine):
    options = {"seed": 3, "stats": True, "top_logprobs": 2, "num_samples": 4}
    one = fd.sample(X[0], PLAN, logprobs_of=torch.tensor([1, 2]), **options)
    batch = fd.sample(X[:1], PLAN, logprobs_of=torch.tensor([[1, 2]]), **options)
    for name in fd.Sample.__slots__:
        assert torch.equal(getattr(one, name), getattr(batch, name)[0])
    assert fd.sample(X[0], PLAN, seed=3).tokens.shape == ()
    assert torch.equal(fd.truncate(X[0], PLAN), fd.truncate(X[:1], PLAN)[0])
    out = torch.empty(600)[::2]
    assert fd.truncate(X[0], PLAN, out=out) is out and torch.equal(out, fd.truncate(X[0], PLAN))


def test_shapes_and_types_of_a_sample(engine):
    for batch, n in ((3, None), (3, 1), (3, 5), (0, None), (0, 2), (1, None)):
        x = X[:1].expand(batch, -1)
        s = fd.sample(
            x,
            PLAN,
            seed=1,
            num_samples=n,
            stats=True,
            top_logprobs=2,
            logprobs_of=torch.zeros(batch, 4, dtype=torch.int64),
        )
        drawn = (batch,) if n is None else (batch, n)
        assert s.tokens.shape == s.logprobs.shape == s.raw_logprobs.shape == drawn
        assert (
            s.kept.shape
            == s.status.shape
            == s.entropy.shape
            == s.kept_mass.shape
            == s.max_prob.shape
            == s.margin.shape
            == (batch,)
        )
        assert s.top_ids.shape == s.top_logprobs.shape == (batch, 2) and s.logprobs_of.shape == (batch, 4)
        assert (s.tokens.dtype, s.kept.dtype, s.top_ids.dtype, s.status.dtype) == (
            torch.int64,
            torch.int64,
            torch.int64,
            torch.uint8,
        )
        assert fd.truncate(x, PLAN).shape == (batch, 300)


def test_per_row_plans_on_an_empty_batch(engine):
    plan = fd.plan(fd.temperature(torch.zeros(0)), fd.top_p(torch.zeros(0)))
    assert fd.truncate(X[:0], plan).shape == (0, 300) and fd.sample(X[:0], plan).tokens.shape == (0,)


def test_the_logits_are_left_alone(engine):
    for name in ("nan", "+inf", "peaked"):
        x = INPUTS[name].logits()
        before = x.clone()
        fd.truncate(x, PLAN)
        fd.sample(x, PLAN, num_samples=3, stats=True)
        assert torch.equal(x.nan_to_num(nan=7e7), before.nan_to_num(nan=7e7))


def test_parameters_and_inference_tensors(engine):
    """nn.Parameter and tensors of inference mode go the same way as plain ones."""
    want = fd.sample(X, PLAN, seed=1).tokens
    assert torch.equal(fd.sample(torch.nn.Parameter(X.clone()), PLAN, seed=1).tokens, want)
    with torch.inference_mode():
        assert torch.equal(fd.sample(X.clone(), PLAN, seed=1).tokens, want)
        assert torch.equal(fd.truncate(X.clone(), PLAN), fd.truncate(X, PLAN))


def test_an_instruction_set_that_is_not_there_is_one_sentence():
    """The import works, so that the doctor can say it; a call does not run on another engine in silence."""
    code = "import fastdecode as fd, torch\ntry: fd.sample(torch.zeros(1, 5), seed=1)\nexcept RuntimeError as error: print(error)"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "FASTDECODE_CPU": "nosuch"},
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.stdout.startswith("FASTDECODE_CPU: the instruction set must be one of baseline") and not done.stderr
    assert "'nosuch'" in done.stdout
