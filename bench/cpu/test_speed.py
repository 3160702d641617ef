"""For regression work; not part of `make test`, and nothing here asserts a time.

pytest bench --benchmark-autosave       before a change
pytest bench --benchmark-compare        after it
"""

from __future__ import annotations

import pytest
import torch

from bench import plans, rows
from bench.cpu import ours, verify

pytest.importorskip("pytest_benchmark")

CASES = [(name, t) for name in plans.BY_NAME for t in (1.0, 2.0)]
ROWS = 8


@pytest.fixture(scope="module")
def logits() -> torch.Tensor:
    return rows.rows("real", 128256, ROWS)


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(("name", "temperature"), CASES, ids=lambda v: f"T={v:g}" if isinstance(v, float) else v)
@pytest.mark.parametrize("what", ["token", "mask"])
def test_engine(benchmark, logits, name, temperature, what):
    """The C++ time of eight real rows, one thread."""
    plan = plans.BY_NAME[name].plan(temperature)
    verify.verify(logits[:2], plan)
    call = (ours.sample_engine if what == "token" else ours.truncate_engine)(plan)(logits)
    benchmark.group = f"{what} of {ROWS} rows"
    benchmark(call)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_python_call(benchmark, logits, dtype):
    """`fd.sample` of one row: the Python overhead shows here."""
    benchmark.group = "fd.sample of one row"
    benchmark(ours.sample(plans.BY_NAME["min_p .05"].plan(1.0))(logits[:1].to(dtype)))


@pytest.mark.parametrize("ceiling", [ours.read_once, ours.exp_pass], ids=lambda f: f.__name__)
def test_ceiling(benchmark, logits, ceiling):
    """What the machine does today: read this before the others."""
    benchmark.group = f"ceilings, {ROWS} rows"
    benchmark(ceiling(logits))
