"""Here the CUDA engine is judged beyond conformance. That no answer depends on the cluster: on a GPU where one is, else by emulation.
Without a GPU: that the emulation sees what it is there to see, how the real thing compiles. With one: graphs, streams and devices.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from dataclasses import fields
from pathlib import Path

import pytest
import torch

import fastdecode as fd
from fastdecode import dispatch
from fastdecode.engines import cuda
from tests import ROOT
from tests.conftest import OnDevice, stand_in
from tests.engines.test_conformance import Tally
from tests.support import emulated
from tests.support.cases import CHAINS, HOSTILE, PLANS, SIZES, TYPICAL, normal, ordinary
from tests.support.judge import verdict

ON_GPU = "cuda" in dispatch.ENGINES


# ---- the same answer from every cluster, bit for bit ------------------------------------------------------------------


def everything(logits: torch.Tensor, plan: fd.Plan) -> list[torch.Tensor]:
    limit = logits.shape[1]
    ids = torch.full((len(logits), 1), limit // 2)
    s = fd.sample(logits, plan, seed=5, step=2, num_samples=2, stats=True, top_logprobs=min(3, limit), logprobs_of=ids)
    return [fd.truncate(logits, plan), *(getattr(s, field.name) for field in fields(s))]


def assert_same(got: list[torch.Tensor], want: list[torch.Tensor]) -> None:
    for one, other in zip(got, want):
        assert torch.equal(one.nan_to_num(nan=7e7), other.nan_to_num(nan=7e7))


def answers_of(ranks: int, device: int, rows: list[torch.Tensor], plans: list[str]) -> list[list[torch.Tensor]]:
    """Of a GPU where one is; `ranks` 0 there: as many blocks as the launcher takes."""
    if ON_GPU:
        from fastdecode import _native

        engine = OnDevice(cuda.Engine(_native, ranks), "cuda")
    else:
        engine = emulated.Engine(ranks, device)
    with stand_in("cuda", engine), dispatch.use("cuda"):
        return [everything(x, PLANS[name].make(len(x))) for x in rows for name in plans]


# One row of each hostile input and size; every plan would take minutes, so each row goes through the next three of them.
ROWS = [given.logits()[-1:] for given in (*HOSTILE, *SIZES) if given.logits().shape[1] <= 32000]
NAMES = [case.name for case in (*TYPICAL, *CHAINS)]


# Whether a row stays on chip is for the emulation to choose, and a cluster of 16 is more than every device promises.
ON_CHIP_OR_NOT = {"on chip": emulated.ROOMY} if ON_GPU else {"on chip": emulated.ROOMY, "from memory": emulated.CRAMPED}
RANKS = [pytest.param(n, marks=pytest.mark.gpu) for n in (1, 2, 4, 8)] if ON_GPU else [1, 2, 4, 8, 16]


@pytest.mark.parametrize("device", ON_CHIP_OR_NOT.values(), ids=list(ON_CHIP_OR_NOT))
@pytest.mark.parametrize("ranks", RANKS)
def test_no_answer_depends_on_the_cluster(ranks, device):
    plans = [[NAMES[(3 * i + k) % len(NAMES)] for k in range(3)] for i in range(len(ROWS))]
    for x, names in zip(ROWS, plans):
        for got, want in zip(answers_of(ranks, device, [x], names), _judged(x, names)):
            assert_same(got, want)


_KNOWN: dict[tuple, list[list[torch.Tensor]]] = {}


def _judged(x: torch.Tensor, names: list[str]) -> list[list[torch.Tensor]]:
    """By the cluster of which the conformance suite is a judge: the launcher's own choice on a GPU, two blocks in the emulation."""
    key = (x.data_ptr(), *names)
    if key not in _KNOWN:
        _KNOWN[key] = answers_of(0 if ON_GPU else 2, emulated.ROOMY, [x], names)
    return _KNOWN[key]


def test_the_longest_rows(engine):
    """A million tokens; one more is refused by the launcher on a GPU."""
    if engine.name != "cuda":
        pytest.skip("of the CUDA engine")
    x = torch.from_numpy(normal(1, 2**20, 2.0, 91).numpy())
    plan = fd.plan(fd.top_k(50), fd.top_p(0.9))
    with dispatch.use("cpu"):
        want = fd.sample(x, plan, seed=1, num_samples=8)
    got = fd.sample(x, plan, seed=1, num_samples=8)
    assert torch.equal(got.tokens, want.tokens) and torch.equal(got.kept, want.kept)


# ---- how a row is cut up ----------------------------------------------------------------------------------------------


H200 = (132, 227 << 10, 8)
RTX3090 = (82, 99 << 10, 1)
FLOAT32, BFLOAT16 = 0, 2


@pytest.mark.parametrize(
    "device, dtype, rows, vocab, ranks, resident",
    [
        (H200, FLOAT32, 1, 128256, 8, True),  # as many blocks as there may be: nobody else wants the chip
        (H200, BFLOAT16, 1, 128256, 8, True),
        (H200, FLOAT32, 256, 128256, 8, True),  # two of its blocks on a multiprocessor: 64 kB of logits each
        (H200, BFLOAT16, 256, 128256, 4, True),
        (H200, FLOAT32, 256, 32000, 2, True),
        (H200, BFLOAT16, 4096, 32000, 1, True),
        (H200, FLOAT32, 1, 1000, 1, True),  # too short to share
        (H200, FLOAT32, 1, 2**20, 8, False),  # 4 MB do not fit: read again from the L2 cache
        (RTX3090, FLOAT32, 1, 128256, 1, False),  # no clusters before sm_90
        (RTX3090, BFLOAT16, 1, 8192, 1, True),
    ],
)
def test_the_shape_of_a_launch(device, dtype, rows, vocab, ranks, resident):
    got_ranks, threads, got_resident, shared = emulated.module().cuda_shape(*device, dtype, rows, vocab)
    assert (got_ranks, got_resident) == (ranks, resident)
    assert threads % 32 == 0 and 128 <= threads <= 1024 and shared <= device[1]
    assert shared >= (vocab * (4 if dtype == FLOAT32 else 2) // ranks if resident else 0)


# ---- what the emulation is there to see -------------------------------------------------------------------------------


def test_the_kernels_touch_nothing_that_is_not_theirs():
    """AddressSanitizer and UBSan, over rows of every size, type and alignment."""
    done = emulated.check(ROOT, ["-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"])
    assert done.returncode == 0 and "answers alike" in done.stdout, done.stdout


@pytest.fixture
def broken(tmp_path):
    """Makes a tree of the sources in which one place is another."""

    def plant(file: str, right: str, wrong: str) -> Path:
        for folder in ("csrc", "tests/emulation"):
            shutil.copytree(ROOT / folder, tmp_path / folder)
        path = tmp_path / "csrc" / "cuda" / file
        text = path.read_text()
        assert text.count(right) == 1, f"{file} has {right!r} {text.count(right)} times"
        path.write_text(text.replace(right, wrong))
        return tmp_path

    return plant


ALIKE = "another answer"

# What clusters of other sizes, or the emulation itself, have to say about.
FAULTS = {
    "a block's barrier is left out": ("team.cuh", "    sync_block();\n    set_turns(now ^ 1);", "    set_turns(now ^ 1);", "another answer|barrier is not reached"),
    "a row changes while others read it": ("row.cuh", "  sync_block();\n  if (thread() == 0) how", "  if (thread() == 0) how", "another answer|barrier is not reached"),
    "a row is read before it has changed": ("row.cuh", "how(row_to_change());\n  sync_block();", "how(row_to_change());", "another answer|barrier is not reached"),
    "what was posted is not waited for": (
        "team.cuh", "await(mail().bars + (now >> 1 & 1), now >> 2 & 1);", "sync_warp();", "another answer|had arrived|barrier|promises",
    ),
    "the parity of a round before": ("team.cuh", "now >> 2 & 1);", "~now >> 2 & 1);", "another answer|had arrived|nothing comes|barrier|promises"),
    "rounds do not take turns": ("team.cuh", "mail().bars + (now >> 1 & 1), now", "mail().bars, now", "another answer|nothing comes|had arrived|barrier"),
    "letters lie in one place": ("team.cuh", "int64_t (*box)[kSlots] = mail().box[turn()];", "int64_t (*box)[kSlots] = mail().box[0];", ALIKE),
    "too little is promised": ("team.cuh", "16 * chunks);", "16 * chunks - 16);", "nothing comes|had arrived|another answer"),
    "more is promised than comes": ("team.cuh", "16 * chunks);", "16 * chunks + 16);", "nothing comes|had arrived"),
    "a block ends early": (
        "kernel.cuh", "  const Status status = open(team, opening_scale(args));", "  if (rank() == 1) return;\n  const Status status = open(team, opening_scale(args));",
        "has ended|barrier is not reached|nothing comes|not there yet",
    ),
    "a word to a block that has not started": (
        "measure.cuh", "  if (ranks() > 1) wait_for_cluster();", "  if (false) wait_for_cluster();", "has not started|not there yet",
    ),
    "a copy is not waited for": ("slice.cuh", "      await(bars + batch, 0);", "      sync_warp();", "another answer|had arrived"),
    "a batch is shifted while others read it": ("slice.cuh", "      sync_warp();  // all have read", "      // all have read", "another answer"),
    "some lanes do not come to a shuffle": ("list.cuh", "    if (!any) return;", "    if (!wanted[0]) return;", "barrier is not reached by all threads|another answer"),
    "a slice one group too short": ("kernel.cuh", "? slice.first + per_block : groups;\n  slice.overflow", "? slice.first + per_block - 1 : groups;\n  slice.overflow", ALIKE),
    "an index one too high": ("list.cuh", "if (place < room) to[place] =", "if (place < room) to[place + 1] =", "past the end|another answer|barrier is not reached"),
    "an answer that depends on the number of warps": ("table.cuh", "    *a += one, *b += other;", "    *a += one * warps(), *b += other * warps();", ALIKE),
    "a list without an end": ("list.cuh", "  if (all > kList) return all;", "  if (all > 64 * kList) return all;", "past the end|another answer|not in shared memory"),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_seen(broken, fault):
    file, right, wrong, said = FAULTS[fault]
    done = emulated.check(broken(file, right, wrong), ["-O1"])
    assert done.returncode != 0, "nothing was seen"
    assert re.search(said, done.stdout), done.stdout


# What all clusters get wrong alike: the reference has to notice, on an input with a plan.
WRONG = {
    "the highest id wins a tie": ("draw.cuh", "if (logits[j] == x && -id > v[0]) v[0] = -id;", "if (logits[j] == x && (v[0] == -kMaxVocab || -id < v[0])) v[0] = -id;", "all equal", "greedy"),
    "a tie is kept in part": ("kernel.cuh", "bool stays = x[j] >= bottom && x[j] <= hi;", "bool stays = (x[j] > bottom || (x[j] == bottom && j % 2 == 0)) && x[j] <= hi;", "all equal", "top_k(50)"),
    "a tie is drawn in part": ("draw.cuh", "if (!(x >= bottom && x <= hi)) continue;", "if (!(x >= bottom && x <= hi) || (i % 4 != 0 && x == bottom)) continue;", "all equal", "top_k(50)"),
    "the crossing group goes": ("list.cuh", "at + 1 : at;", "at + 1 : at + 1;", "flat", "top_p(0.9)"),
    "the group that overshoots stays": ("list.cuh", "at + 1 : at;", "at : at;", "flat", "top_h(0.4)"),
    "a group at the bound is passed over": ("row.cuh", "    if (!(maxima[g] >= bound)) continue;", "    if (!(maxima[g] > bound)) continue;", "one ahead", "greedy"),
    "the first batch of a warp is left out": ("table.cuh", "#pragma unroll 1\n  for (int b = mine.first; b < mine.end; ++b) {", "#pragma unroll 1\n  for (int b = mine.first + 1; b < mine.end; ++b) {", "flat", "min_p(0.05)"),
    "groups share a stream with tokens": ("draw.cuh", "at_sample(at, kGroup,", "at_sample(at, kToken,", "flat", "nothing"),
}  # fmt: skip


def judged(engine: emulated.Engine, given: str, plan: str) -> None:
    tally = Tally()
    with stand_in("cuda", engine), dispatch.use("cuda"):
        tally.check(verdict(given, plan))
    tally.finish(removes=False)


@pytest.mark.parametrize("fault", WRONG)
def test_the_reference_notices_a_fault(broken, fault):
    file, right, wrong, given, plan = WRONG[fault]
    judged(emulated.Engine(2), given, plan)
    with pytest.raises(AssertionError):
        judged(emulated.Engine(2, tree=broken(file, right, wrong)), given, plan)


# ---- the launch shape of a real device ------------------------------------------------------------------------------------

# Given, plan: cuts of each kind, on rows of which every block has a part.
ON_LARGE_ROWS = (
    ("flat 128256", "top_p(0.9)"),
    ("V=128256", "hf: temperature, top_k, top_p"),
    ("holes of 128256", "typical, min_p: the maximum may be gone"),
    ("bf16 rounded 128256", "temperature, top_h"),
)


@pytest.mark.parametrize("ranks", [8, 4])
def test_conformance_at_the_launch_shape_of_a_real_device(ranks):
    """8 and 4 blocks of 256 threads, as an H100 gets them."""
    assert {emulated.module().cuda_shape(*H200, t, b, 128256)[:2] for t, b in ((FLOAT32, 1), (BFLOAT16, 256))} == {
        (8, 256),
        (4, 256),
    }
    for given, plan in ON_LARGE_ROWS:
        judged(emulated.Engine(ranks, emulated.REAL), given, plan)


def test_a_fault_of_many_warps_shows_at_that_shape_only(broken):
    sum_of_warps = "      for (int w = 1; w < warps(); ++w) all = op("
    tree = broken("team.cuh", sum_of_warps, sum_of_warps.replace("w < warps()", "w < warps() && w < 4"))
    judged(emulated.Engine(8, tree=tree), *ON_LARGE_ROWS[0])
    with pytest.raises(AssertionError):
        judged(emulated.Engine(8, emulated.REAL, tree), *ON_LARGE_ROWS[0])


def test_a_read_past_the_row_is_seen(broken):
    """The last tokens of a row, without asking whether they exist."""
    tree = broken(
        "slice.cuh", "const bool exists = int64_t(group) * kGroupSize + i < limit;", "const bool exists = true;"
    )
    printed = emulated.check(tree, ["-O1", "-fsanitize=address"]).stdout
    assert "heap-buffer-overflow" in printed, printed


# ---- the real thing, compiled ------------------------------------------------------------------------------------------


def spilling(log: str) -> tuple[list[str], list[str]]:
    """The functions that ptxas speaks of, and those that keep a variable in memory for want of registers."""
    said = re.findall(
        r"Function properties for (\S+)\n\s+\d+ bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads",
        log,
    )
    return [name for name, *_ in said], [
        f"{name}: {out}, {back}" for name, out, back in said if (out, back) != ("0", "0")
    ]


# They look at tokens, in a loop each.
PASSES = ("open_slice", "open_overflowed", "pass_of_sums", "pass_of_spread", "gather", "leave_tokens", "winning_groups")


def test_no_pass_spills_registers():
    """None of the passes over tokens, on any architecture. (What calls them keeps a few numbers of a row in memory meanwhile: how
    many, and that none lies in a loop over tokens, is held by the budget of bench/gpu/model.)"""
    logs = sorted(ROOT.glob("build/objects-cuda-*/launch.log"), key=lambda path: path.stat().st_mtime)
    if not logs:
        (pytest.fail if "cuda" in dispatch.required() else pytest.skip)("this build has no CUDA")
    log = logs[-1].read_text()
    names, bad = spilling(log)
    architectures = set(re.findall(r"for '(sm_\d+)'", log))
    for kernel in ("sample_kernel", "truncate_kernel"):
        assert architectures and sum(kernel in name for name in names) == len(architectures), "ptxas says it otherwise"
    # What is called is a function of its own: inlined, it would need registers of its caller.
    sources = [path.read_text() for path in ROOT.glob("csrc/cuda/*.cuh") if not path.name.startswith("soft")]
    called = re.findall(r"^FD_CALLED [\w:]+ (\w+)\(", "".join(sources), re.M)
    assert len(called) > 20 and all(any(re.search(rf"\d{name}[EI]", function) for function in names) for name in called)
    assert set(PASSES) <= set(called)
    assert [line for line in bad if re.search(rf"\d({'|'.join(PASSES)})[EI]", line)] == []
    hot = log.index("Function properties for", log.index("pass_of_sums"))
    one = log[:hot] + log[hot:].replace(" 0 bytes spill loads", " 4 bytes spill loads", 1)
    assert len(spilling(one)[1]) == len(spilling(log)[1]) + 1, "a spill would not be seen"


def test_a_build_without_a_driver_says_so():
    """Importing is fine; using it is an error with CUDA's own words."""
    from fastdecode import _native

    if ON_GPU or not hasattr(_native, "sample_cuda"):
        pytest.skip("only for a build with CUDA on a machine without")
    with pytest.raises(RuntimeError, match=r"CUDA engine could not .*\(cudaError"):
        _native.cuda_devices()
    assert "torch sees no CUDA device" in dispatch.MISSING["cuda"]


# ---- on a GPU ----------------------------------------------------------------------------------------------------------


def test_a_replayed_graph_draws_fresh_tokens(gpu):
    x = ordinary(4, 32000, 92).to(gpu)
    step = torch.zeros(4, dtype=torch.int64, device=gpu)
    plan = fd.plan(fd.temperature(1.5), fd.top_p(0.95))
    fd.sample(x, plan, seed=3, step=step)  # sets the kernel's attributes, which a capture may not
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        s = fd.sample(x, plan, seed=3, step=step)
        step += 1
    seen = []
    for at in range(8):
        graph.replay()
        seen.append(s.tokens.clone())
        assert torch.equal(seen[-1], fd.sample(x, plan, seed=3, step=at).tokens)
    assert len({tuple(tokens.tolist()) for tokens in seen}) > 1


def test_it_runs_on_the_current_stream(gpu):
    """On a stream that is kept busy, the answer comes after what was enqueued before it."""
    x = torch.zeros(64, 128256, device=gpu)
    stream = torch.cuda.Stream(gpu)
    with torch.cuda.stream(stream):
        torch.cuda._sleep(20_000_000)
        x[:, 77] = 50.0
        tokens = fd.sample(x, fd.plan(fd.min_p(0.5)), seed=1).tokens
    stream.synchronize()
    assert (tokens == 77).all()


def test_what_needs_a_gpu_is_marked_and_ends_at_once_without_one():
    """The marker's tests are those of this section; where they must run and cannot, one sentence comes before any is collected."""

    def run(*options: str, required: str) -> subprocess.CompletedProcess:
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "gpu", *options, __file__]
        return subprocess.run(
            command, cwd=ROOT, env={**os.environ, "FASTDECODE_REQUIRE": required}, text=True, timeout=120,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip

    listed = re.findall(r"::(\w+)", run("--collect-only", required="cpu").stdout)
    text = Path(__file__).read_text()
    assert set(listed) >= set(re.findall(r"^def (test_\w+)\(gpu\)", text, re.M)) and len(listed) >= 5
    if ON_GPU:
        return
    began = time.monotonic()
    done = run(required="cpu,cuda")
    assert done.returncode == 4 and time.monotonic() - began < 20
    assert len(done.stdout.splitlines()) == 1 and "the engine 'cuda'" in done.stdout


def test_several_devices(gpu):
    if torch.cuda.device_count() < 2:
        pytest.skip("one device")
    x = ordinary(3, 1000, 93)
    want = fd.sample(x.to("cuda:0"), seed=1).tokens.cpu()
    assert torch.equal(fd.sample(x.to("cuda:1"), seed=1).tokens.cpu(), want)
    assert torch.cuda.current_device() == gpu.index


def test_batches_of_all_sizes_on_a_gpu(gpu):
    """The launcher takes another cluster for each; a row's answer stays the same."""
    x = ordinary(8, 128256, 94).to(gpu)
    plan = fd.plan(fd.temperature(2.0), fd.typical_p(0.9))
    want = fd.sample(x, plan, seed=1, stats=True)
    for copies in (1, 2, 16, 64, 512):
        many = x.repeat(copies, 1)
        got = fd.sample(many, plan, seed=1, streams=torch.arange(8, device=gpu).repeat(copies), stats=True)
        for name in ("tokens", "logprobs", "kept", "entropy", "kept_mass"):
            assert torch.equal(getattr(got, name), getattr(want, name).repeat(copies))


def test_too_long_a_row_is_refused(gpu):
    with pytest.raises(RuntimeError, match="1048576"):
        fd.sample(torch.zeros(1, 2**20 + 1, device=gpu), seed=1)
