"""Here the machine invents the cases: random chains of rules with random parameters, per-row ones among them, on random rows of any
size, type, stride and vocabulary limit. The reference judges, as in test_conformance.py. And the process around the calls: many
threads at once, a fork, Ctrl-C, ten thousand calls.
"""

from __future__ import annotations

import gc
import math
import os
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

import fastdecode as fd
from fastdecode import dispatch
from tests.support.cases import LAYOUTS, ROWS, RuleRow, normal
from tests.support.judge import SEED, STEP, TOP, check_sample, check_values, engine_keeps, judge
from tests.support.tolerance import EDGE_FEW, EDGE_TOKENS, LEAD_ROWS, LEAK

# derandomize: the same cases at every run, so that a failure is somebody's doing; `make fuzz` looks elsewhere each time.
COMMON = settings(
    derandomize=True, deadline=None, max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
STATM = Path("/proc/self/statm")
SIZES = st.one_of(st.integers(1, 70), st.sampled_from((255, 256, 257, 511, 513, 768)), st.integers(1, 1300))


@st.composite
def logits(draw) -> torch.Tensor:
    """Rows of several kinds, [B, V] float32; NaN and infinities among them."""
    batch, vocab, seed = draw(st.integers(1, 4)), draw(SIZES), draw(st.integers(0, 2**32 - 1))
    dice = np.random.default_rng(seed)
    kinds = {
        "normal": lambda: dice.standard_normal(vocab) * dice.choice([0.1, 1.0, 3.0, 10.0]),
        "tied": lambda: np.round(dice.standard_normal(vocab) * 3),
        "equal": lambda: np.full(vocab, dice.choice([0.0, -7.5, 1e4])),
        "long tail": lambda: -1.3 * np.log1p(dice.permutation(vocab)),
        "far away": lambda: dice.standard_normal(vocab) * 2 + dice.choice([-1e4, 1e4]),
        "holes": lambda: np.where(dice.random(vocab) < 0.7, -math.inf, dice.standard_normal(vocab) * 3),
        "special": lambda: np.where(
            dice.random(vocab) < 0.01, dice.choice([math.nan, math.inf]), dice.standard_normal(vocab)
        ),
        "nothing": lambda: np.full(vocab, -math.inf),
    }
    names = draw(st.lists(st.sampled_from(sorted(kinds)), min_size=batch, max_size=batch))
    return torch.from_numpy(np.stack([kinds[name]() for name in names])).float()


@st.composite
def rule(draw, row: RuleRow, batch: int) -> fd.Rule:
    """A rule with a parameter anywhere between the ends of its row in cases.py, one for all rows or one for each."""
    if not row.values:
        return row()
    low, high = sorted((row.values[0], row.values[-1]))
    one = (
        st.integers(low, high)
        if isinstance(low, int) and isinstance(high, int) and low < high > 1
        else st.floats(low, high)
    )
    if row.off is not None:
        one = st.one_of(one, one, one, st.just(row.off))
    if row.rule is fd.temperature:
        one = st.one_of(one, one, one, st.just(0.0))
    value = draw(one)
    if draw(st.booleans()):
        value = torch.tensor([float(value), *(float(draw(one)) for _ in range(batch - 1))])
    options = {}
    if row.keeps_at_least() and draw(st.integers(0, 3)) == 0:
        options["min_tokens_to_keep"] = draw(st.integers(1, 30))
    return row(value, **options)


@st.composite
def problems(draw) -> tuple[torch.Tensor, fd.Plan, int]:
    x = draw(logits())
    x = x.to(draw(st.sampled_from((torch.float32, torch.float16, torch.bfloat16))))
    chain = [draw(rule(draw(st.sampled_from(ROWS)), len(x))) for _ in range(draw(st.integers(0, 4)))]
    limit = draw(st.one_of(st.just(x.shape[1]), st.integers(1, x.shape[1])))
    return x, fd.plan(chain), limit


@pytest.mark.parametrize("target", dispatch.ENGINES["cpu"].targets() if "cpu" in dispatch.ENGINES else ["cpu"])
def test_any_plan_on_any_rows(target):
    """All that the public functions answer, on each instruction set."""
    native = dispatch.ENGINES["cpu"]
    seen = {"kept": 0, "removed": 0, "near": 0, "lost": 0, "draws": 0, "by row": 0, "flagged": 0}

    @COMMON
    @given(problems(), st.sampled_from((None, *LAYOUTS)))
    def check(problem, layout):
        x, plan, limit = problem
        laid = x if layout is None else LAYOUTS[layout](x)
        of = judge(x, plan, limit)
        near = check_values(of, fd.truncate(laid, plan, vocab_limit=limit))
        kept = engine_keeps(x, of.cuts, limit) if near else of.keep
        ids = torch.arange(len(x))[:, None] * 7 % limit
        got = fd.sample(
            laid, plan, seed=SEED, step=STEP, num_samples=3, vocab_limit=limit, stats=True, top_logprobs=min(TOP, limit), logprobs_of=ids
        )  # fmt: skip
        lost, draws = check_sample(of, got, kept)
        fine = (of.status == fd.STATUS_OK)[:, None]
        found = {
            "kept": of.keep & fine, "removed": ~of.keep & fine, "near": near, "lost": lost, "draws": draws,
            "by row": plan.rows is not None, "flagged": ~fine,
        }  # fmt: skip
        for name, count in found.items():
            seen[name] += int(torch.as_tensor(count).sum())

    before = native.build_info()["target"]
    native.use_target(target)
    try:
        with dispatch.use("cpu"):
            check()
    finally:
        native.use_target(before)
    assert min(seen[name] for name in ("kept", "removed", "draws", "by row", "flagged")) > 20, seen
    assert seen["near"] <= EDGE_FEW + EDGE_TOKENS * seen["kept"] and seen["lost"] <= LEAD_ROWS * seen["draws"], seen


@COMMON
@given(problems(), st.data())
def test_a_row_of_any_batch_answers_as_it_does_alone(problem, data):
    x, plan, limit = problem
    assume(plan.rows is None)
    order = torch.tensor(data.draw(st.permutations(range(len(x)))))
    streams = torch.arange(len(x)) + data.draw(st.integers(0, 2**39))
    want = fd.sample(x, plan, seed=3, streams=streams, num_samples=2, vocab_limit=limit).tokens
    got = fd.sample(x[order], plan, seed=3, streams=streams[order], num_samples=2, vocab_limit=limit).tokens
    assert torch.equal(got, want[order])
    one = int(order[0])
    alone = fd.sample(x[one], plan, seed=3, streams=streams[one : one + 1], num_samples=2, vocab_limit=limit).tokens
    assert torch.equal(alone, want[one])


# ---- the process around the calls ----------------------------------------------------------------------------------


def test_many_threads_at_once(threads):
    """Python threads that share a plan, each with rows of its own and helpers of the engine: what one thread alone answers."""
    torch.set_num_threads(3)
    plan = fd.plan(fd.temperature(1.2), fd.top_p(0.9), fd.min_p(0.01))
    rows = [normal(5, 900 + 37 * i, 2.0, i) for i in range(8)]
    want = [(fd.sample(x, plan, seed=i, num_samples=4).tokens, fd.truncate(x, plan)) for i, x in enumerate(rows)]
    wrong: list[object] = []
    start = threading.Barrier(len(rows))

    def call(i: int) -> None:
        start.wait()
        try:
            for _ in range(400):
                tokens = fd.sample(rows[i], plan, seed=i, num_samples=4).tokens
                if not torch.equal(tokens, want[i][0]) or not torch.equal(fd.truncate(rows[i], plan), want[i][1]):
                    wrong.append(i)
        except Exception as error:
            wrong.append(error)

    callers = [threading.Thread(target=call, args=(i,)) for i in range(len(rows))]
    for each in callers:
        each.start()
    for each in callers:
        each.join()
    assert not wrong


def script(body: str, **how) -> subprocess.CompletedProcess[str]:
    """Run it in a process of its own."""
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(body)], capture_output=True, text=True, timeout=120, **how
    )


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_fork_after_use_can_sample():
    """The child has none of its parent's threads; and both go on, while other threads of the parent call."""
    done = script("""
        import os, threading, torch, fastdecode as fd
        torch.set_num_threads(3)
        x, plan = torch.randn(6, 3000), fd.plan(fd.top_p(0.9))
        want = fd.sample(x, plan, seed=1).tokens
        stop = threading.Event()
        def busy():
            while not stop.is_set():
                fd.sample(x, plan, seed=1)
        others = [threading.Thread(target=busy) for _ in range(2)]
        [each.start() for each in others]
        codes = []
        for _ in range(10):
            child = os.fork()
            if child == 0:
                same = all(torch.equal(fd.sample(x, plan, seed=1).tokens, want) for _ in range(5))
                os._exit(7 if same else 8)
            codes.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
        stop.set()
        [each.join() for each in others]
        assert torch.equal(fd.sample(x, plan, seed=1).tokens, want)
        print(codes)
    """)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str([7] * 10)


def test_ctrl_c_leaves_the_process_usable():
    """SIGINT during a long call: the call ends, KeyboardInterrupt is raised, and the next call answers as before."""
    done = script("""
        import signal, threading, time, os, torch, fastdecode as fd
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs inherit that it is ignored
        torch.set_num_threads(2)
        x = torch.randn(4, 5000)
        want = fd.sample(x, seed=1).tokens
        caught = 0
        for _ in range(3):
            timer = threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGINT))
            timer.start()
            try:
                begin = time.perf_counter()
                while time.perf_counter() - begin < 60:
                    fd.sample(x, seed=1, num_samples=30_000)
            except KeyboardInterrupt:
                caught += 1
            timer.join()
            assert torch.equal(fd.sample(x, seed=1).tokens, want)
        print("caught", caught)
    """)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "caught 3"


@pytest.mark.skipif(not STATM.exists(), reason="needs /proc")
def test_ten_thousand_calls_leak_nothing(threads):
    torch.set_num_threads(2)
    x = normal(2, 700, 2.0, 5)

    def calls(count: int) -> None:
        for i in range(count):
            plan = fd.plan(fd.temperature(1.0 + i % 7), fd.top_p(0.9))
            s = fd.sample(x, plan, seed=i, num_samples=64, stats=True, top_logprobs=5)
            fd.truncate(x, plan)
            del s

    def resident() -> int:
        return int(STATM.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    def tensors() -> int:
        gc.collect()
        return sum(issubclass(type(one), torch.Tensor) for one in gc.get_objects())

    calls(1000)
    many, size = tensors(), resident()
    calls(10_000)
    assert tensors() <= many
    assert resident() - size < LEAK
