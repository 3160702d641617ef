"""Here torch's defaults are changed, as programs do before they load a model: no answer may depend on them. The engines write float32
and int64 into memory that Python allocates, so an output of another type would be too small for what is written into it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import pytest
import torch

import fastdecode as fd
from tests.support.cases import normal
from tests.support.judge import same


@contextlib.contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


# The meta device stands for a GPU: tensors made there hold nothing, and reading one is an error.
DEFAULTS: dict[str, Callable[[], contextlib.AbstractContextManager]] = {
    "bfloat16": lambda: default_dtype(torch.bfloat16),
    "float64": lambda: default_dtype(torch.float64),
    "another device": lambda: torch.device("meta"),
}
X, IDS, TABLE = normal(3, 600, 3.0, 5), torch.tensor([[0, 5], [1, 2], [3, 3]]), normal(600, 16, 1.0, 6)
TEMPERATURES = torch.tensor([0.5, 1.0, 2.0])


def answers() -> dict[str, torch.Tensor | None]:
    plan = fd.plan(fd.temperature(0.7), fd.top_k(50), fd.typical_p(0.9))
    by_row = fd.plan(fd.temperature(TEMPERATURES), fd.min_p(0.05))
    sample = fd.sample(X, plan, seed=1, step=2, num_samples=2, stats=True, top_logprobs=3, logprobs_of=IDS)
    several = fd.sample_temperatures(X, (0.0, 0.7, 1.5), fd.plan(fd.top_p(0.9)), seed=1, stats=True)
    found = {
        "mask": fd.truncate(X, plan),
        "mask by row": fd.truncate(X, by_row),
        "tokens": fd.sample(X, by_row, seed=3).tokens,
    }
    for name, answer in (("sample", sample), ("temperatures", several)):
        found |= {f"{name}.{field}": getattr(answer, field) for field in type(answer).__slots__}
    for noise in ("none", "gumbel", "dirichlet", "multi"):
        soft = fd.soft_tokens(X, plan, noise=noise, seed=4)
        found |= {
            f"{noise}.{field}": getattr(soft, field)
            for field in ("ids", "weights", "tokens", "log_pi", "noise", "logprobs")
        }
        found[f"{noise}.embedding"] = fd.soft_embedding(soft, TABLE)
        if noise != "none":
            found[f"{noise}.soft_logprobs"] = fd.soft_logprobs(X, soft, plan)
    return found


@pytest.mark.parametrize("defaults", DEFAULTS)
def test_no_answer_depends_on_torch_s_defaults(engine, defaults):
    want = answers()
    with DEFAULTS[defaults]():
        got = answers()
        torch.manual_seed(0)
        unseeded = fd.sample(X).tokens  # the seed comes from torch's generator
    torch.manual_seed(0)
    assert torch.equal(unseeded, fd.sample(X).tokens)
    for name, value in want.items():
        if value is not None:
            assert got[name].dtype == value.dtype and got[name].device == value.device, name
            assert same(got[name], value).all(), name


@pytest.mark.parametrize("defaults", DEFAULTS)
def test_the_self_test_passes(defaults):
    with DEFAULTS[defaults]():
        shown = str(fd.info())
    assert "FAILED" not in shown
