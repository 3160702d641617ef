"""The GPU benchmarks where there is no GPU: that the peers are called as they are declared, what a misbehaving one takes with it, that a
wrong answer gets no time, and how the stages of `make gpu-lease` end. Every time in here is made up (bench/gpu/stand_in.py).

The stand-ins have the signatures of FlashInfer 0.6.18 (flashinfer/sampling.py) and of vLLM in August 2026
(vllm/v1/sample/ops/topk_topp_triton.py, topk_topp_sampler.py), and refuse what those refuse.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import types
from pathlib import Path

import pytest
import torch

import fastdecode as fd
from bench.gpu import candidates, check, clock, grid, stand_in
from bench.gpu.lines import append, read
from bench.gpu.table import table
from fastdecode import dispatch
from tests import ROOT
from tests.support.cases import normal


def first(p: torch.Tensor) -> torch.Tensor:
    assert p.dtype == torch.float32 and p.is_contiguous() and p.ndim == 2
    return p.argmax(-1).int()


class FlashInfer(types.ModuleType):
    @staticmethod
    def softmax(logits, temperature=None, enable_pdl=None):
        assert logits.dtype == torch.float32
        return (logits / temperature).softmax(-1)

    @staticmethod
    def sampling_from_logits(
        logits, indices=None, deterministic=True, generator=None, check_nan=False, seed=None, offset=None
    ):
        return first(logits)

    @staticmethod
    def sampling_from_probs(
        probs,
        indices=None,
        deterministic=True,
        generator=None,
        check_nan=False,
        seed=None,
        offset=None,
        return_valid=False,
    ):
        assert (seed is None) == (offset is None)
        return first(probs)

    @staticmethod
    def top_p_sampling_from_probs(
        probs,
        top_p,
        indices=None,
        deterministic=True,
        generator=None,
        check_nan=False,
        seed=None,
        offset=None,
        return_valid=False,
    ):
        assert 0 < top_p < 1 and (seed is None) == (offset is None)
        return first(probs)

    @staticmethod
    def top_k_sampling_from_probs(
        probs,
        top_k,
        indices=None,
        deterministic=True,
        generator=None,
        check_nan=False,
        seed=None,
        offset=None,
        return_valid=False,
    ):
        assert isinstance(top_k, int) and (seed is None) == (offset is None)
        return first(probs)

    min_p_sampling_from_probs = top_p_sampling_from_probs

    @staticmethod
    def top_k_top_p_sampling_from_probs(
        probs, top_k, top_p, indices=None, filter_apply_order="top_k_first", deterministic=True, generator=None,
        check_nan=False, seed=None, offset=None, return_valid=False,
    ):  # fmt: skip
        assert isinstance(top_k, int) and 0 < top_p < 1
        return first(probs)

    @staticmethod
    def top_k_top_p_sampling_from_logits(
        logits, top_k, top_p, indices=None, filter_apply_order="top_k_first", deterministic=True, generator=None,
        check_nan=False, seed=None, offset=None,
    ):  # fmt: skip
        assert isinstance(top_k, int) and 0 < top_p < 1
        return first(logits)


class Vllm(types.ModuleType):
    @staticmethod
    def apply_top_k_top_p_triton(logits, k, p, mask_value=float("-inf")):
        assert logits.dtype == torch.float32 and (k is not None or p is not None)
        assert k is None or (k.dtype == torch.int32 and k.shape == (len(logits),))
        assert p is None or (p.dtype == torch.float32 and p.shape == (len(logits),))
        return logits.mul_(1)  # may be in place

    @staticmethod
    def random_sample(probs, generators, use_fp64_gumbel=False):
        assert not generators
        return first(probs).long()


@pytest.fixture
def installed(monkeypatch):
    for name in ("flashinfer", "vllm", "vllm.v1", "vllm.v1.sample", "vllm.v1.sample.ops"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    monkeypatch.setitem(sys.modules, "flashinfer.sampling", FlashInfer("flashinfer.sampling"))
    for name in ("topk_topp_triton", "topk_topp_sampler"):
        monkeypatch.setitem(sys.modules, f"vllm.v1.sample.ops.{name}", Vllm(name))


def test_peers_are_called_as_they_are_declared(installed):
    x = normal(3, 500, 3.0, 1).bfloat16()
    kept = x.clone()
    asked = {}
    for rule in candidates.RULES:
        for name in ("flashinfer", "flashinfer, logits", "vllm", "transformers"):
            step = candidates.CANDIDATES[name](rule, 1.5)
            if step is not None:
                tokens = step(x)
                assert tokens.numel() == 3 and (
                    "transformers" in name or torch.equal(tokens.long(), x.float().argmax(-1))
                )
                asked.setdefault(name, []).append(rule)
    assert torch.equal(x, kept), "a peer wrote into the logits that others are measured on"
    assert asked["flashinfer"] == ["none", "top_k", "top_p", "min_p", candidates.CHAIN]
    assert asked["flashinfer, logits"] == ["none", candidates.CHAIN] and asked["vllm"] == [
        "top_k",
        "top_p",
        candidates.CHAIN,
    ]


# ---- what is measured ------------------------------------------------------------------------------------------------------------


def test_the_most_valuable_cases_come_first():
    ours, theirs = grid.cases(peer=False), grid.cases(peer=True)
    assert len(set(ours)) == len(ours) and set(ours) < set(theirs)
    first = ours[: len(candidates.RULES)]
    assert {case.rule for case in first} == set(candidates.RULES)
    assert {(c.V, c.kind, c.dtype, c.B, c.T) for c in first} == {(128256, "real", torch.float32, 1, 1.0)}
    assert {c.B for c in ours} == {1, 8, 64, 128, 256, 512}
    assert {c.kind for c in ours} == {"real", "flat", "peaked", "ties", "N(0,1)", "N(0,5)"}
    converted = [c for c in theirs if c.converted]
    assert converted and all(c.dtype == torch.bfloat16 for c in converted)
    inputs = [case.input for case in grid.cases(peer=True)]
    assert len({*inputs}) < len(inputs) / 5, "cases of one input follow each other"


@pytest.mark.parametrize(
    "batch, dtype", [(1, torch.bfloat16), (1, torch.float32), (64, torch.bfloat16), (512, torch.float32)]
)
def test_cold_inputs_do_not_fit_into_the_cache(batch, dtype):
    l2_bytes = 50 * 2**20
    inputs = clock.copies(torch.empty(batch, 128256, dtype=dtype, device="meta"), l2_bytes)
    between = sum(x.numel() * x.element_size() for x in inputs[1:])  # what is read before an input comes again
    assert len(inputs) > 1 and between >= 2 * l2_bytes


def test_a_limit_of_recompilations_is_an_error(monkeypatch):
    """Each case starts afresh; past the limit torch.compile would go on in eager mode and say nothing."""
    import torch._dynamo as dynamo

    monkeypatch.setattr(
        torch, "compile", lambda f, compile=torch.compile, **options: compile(f, backend="eager", **options)
    )
    with dynamo.config.patch(recompile_limit=1):
        for rule in candidates.RULES:
            step = candidates.compiled_step(rule, 2.0)
            assert step is None or step(normal(4, 500, 3.0, 1)).shape == (4, 1)
        step = candidates.compiled_step("top_k", 1.0)
        step(normal(4, 500, 3.0, 1))
        with pytest.raises(dynamo.exc.FailOnRecompileLimitHit):
            step(normal(5, 500, 3.0, 1))
    dynamo.reset()


# ---- a wrong answer gets no time ----------------------------------------------------------------------------------------------------


class Wrong(stand_in.OfCpu):
    """The CPU engine, but for one thing."""

    def __init__(self, how: str):
        super().__init__()
        self.how = how

    def __getattribute__(self, name: str):
        made = object.__getattribute__(self, "__getattr__")(name) if name in ("sample", "truncate") else None
        if made is None:
            return object.__getattribute__(self, name)

        def call(x: torch.Tensor, cuts: torch.Tensor, *arguments):
            found = made(x, cuts, *arguments)
            if name == "sample" and self.how in found:
                found[self.how][-1] += 1e-3 if found[self.how].is_floating_point() else 1
            if name == "truncate" and self.how == "masks":
                arguments[0][-1, x[-1].argmax()] = -torch.inf
            return found

        return call


@pytest.mark.parametrize(
    "how", ["nothing", "tokens", "kept", "logprobs", "entropy", "margin", "top_ids", "logprobs_of", "masks"]
)
def test_a_wrong_answer_is_seen(how):
    plan = fd.plan(fd.temperature(1.3), fd.top_p(0.9))
    with stand_in.Placing():
        if how == "nothing":
            found = check.check_engine(Wrong(how), normal(3, 600, 2.0, 1), plan, masks=True)
            assert found["rows"] == 3 and found["judged"] == 0 and found["kept"] > 3
            return
        with pytest.raises(AssertionError):
            check.check_engine(Wrong(how), normal(3, 600, 2.0, 1), plan, masks=True)


def test_another_answer_that_is_right_too_passes():
    """Where the reference sees a tie, its judge lets either token through: it is asked, and the difference is counted."""
    x, plan = normal(3, 600, 2.0, 1), fd.plan(fd.top_p(0.9))
    with dispatch.use("cpu"):
        answer = check.answer(x, plan, masks=True)
    assert len(check.differing(answer, answer)) == 0
    assert check.judged(x, plan, answer, torch.tensor([0, 2])) == (0, 0)


def test_a_peers_token_must_survive():
    x, plan = normal(3, 600, 2.0, 1), fd.plan(fd.top_k(5))
    check.check_peer(x.argmax(-1).repeat(2), x, plan)
    for tokens in (x.argmin(-1), torch.tensor([0, 1, 600]), torch.tensor([-1, 0, 1])):
        with pytest.raises(AssertionError):
            check.check_peer(tokens, x, plan)


# ---- processes ------------------------------------------------------------------------------------------------------------------------

MISBEHAVES = """
import os, torch
from bench.gpu import stand_in
def softmax(x, temperature): return (x / temperature).softmax(-1)
def largest(p, *_, seed, offset): return p.argmax(-1)
def sampling_from_probs(p, **_): os._exit(9)
def top_k_sampling_from_probs(p, k, **_): return p.argmin(-1)
def top_p_sampling_from_probs(p, *_, **__):
    if stand_in.MODE.noted is not None: raise RuntimeError("operation not permitted when stream is capturing")
    return p.argmax(-1)
def min_p_sampling_from_probs(p, *_, **__): raise RuntimeError("CUDA error: an illegal memory access was encountered")
top_k_top_p_sampling_from_probs = largest
"""


def bench(out: Path, *whos: str, **environment: str) -> list[str]:
    return [sys.executable, "-m", "bench.gpu", "--out", str(out), *(word for who in whos for word in ("--only", who))]


def dry(**environment: str) -> dict[str, str]:
    return {**os.environ, "FASTDECODE_GPU_DRY": "1", **environment}


def test_a_peer_that_misbehaves_loses_itself_alone(tmp_path):
    """It exits, it is wrong, it cannot be captured, it breaks the device: each is a line, and the cases after it are measured."""
    (tmp_path / "flashinfer").mkdir()
    (tmp_path / "flashinfer/__init__.py").write_text("")
    (tmp_path / "flashinfer/sampling.py").write_text(MISBEHAVES)
    out = tmp_path / "bench.jsonl"
    command = [*bench(out, "flashinfer", "fastdecode, cuda"), "--seconds", "400"]
    done = subprocess.run(
        command, cwd=ROOT, env=dry(PYTHONPATH=str(tmp_path)), text=True, capture_output=True, timeout=500
    )
    assert done.returncode == 0, done.stderr[-2000:]
    records = read(out)
    theirs = [r for r in records if r["who"] == "flashinfer"]
    of = {rule: [r for r in theirs if r.get("rule") == rule and r.get("B", 1) == 1] for rule in candidates.RULES}
    assert [r["died"] for r in of["none"] if "died" in r] and not any("us_cold" in r for r in of["none"])
    assert "are not among those" in of["top_k"][0]["wrong"] and "us_cold" not in of["top_k"][0]
    assert "capturing" in of["top_p"][0]["cannot_capture"] and of["top_p"][1]["us_cold"] and not of["top_p"][1]["graph"]
    assert "illegal memory access" in of["min_p"][0]["failed"]
    assert of[candidates.CHAIN][0]["us_cold"] and of[candidates.CHAIN][0]["graph"]
    ours = [r for r in records if r["who"] == "fastdecode, cuda"]
    assert len(ours) == len(grid.few(peer=False)) and all(r["us_cold"] and r["graph"] and r["dry_run"] for r in ours)
    assert "died: flashinfer" in done.stdout and done.stdout.startswith("A DRY RUN")


def test_a_kill_leaves_whole_lines(tmp_path):
    """Of the parent: its child sees that and stops. Every line that is there is whole."""
    out = tmp_path / "bench.jsonl"
    parent = subprocess.Popen(bench(out, "fastdecode, cuda"), cwd=ROOT, env=dry(), stdout=subprocess.DEVNULL)
    while parent.poll() is None and len(lines(out)) < 3:
        time.sleep(0.01)
    parent.send_signal(signal.SIGKILL)
    assert parent.wait() == -signal.SIGKILL, "it ended before it was killed"
    before = -1
    while len(lines(out)) != before:  # the child ends after the case that it is at
        before = len(lines(out))
        time.sleep(2)
    assert out.read_bytes().endswith(b"\n") and 3 <= len(read(out)) == before < len(grid.few(peer=False))
    assert "stopped" in read(out)[-1]


def lines(path: Path) -> list[bytes]:
    return path.read_bytes().splitlines() if path.exists() else []


def test_a_line_is_one_write(tmp_path, monkeypatch):
    """What a kill may come between are writes."""
    writes = []
    monkeypatch.setattr(os, "write", lambda file, data, write=os.write: writes.append(data) or write(file, data))
    append(tmp_path / "new" / "a.jsonl", {"a": "b" * 100_000})
    append(tmp_path / "new" / "a.jsonl", {"c": 1})
    assert len(writes) == 2 and all(data.endswith(b"\n") for data in writes)
    assert [len(r) for r in read(tmp_path / "new" / "a.jsonl")] == [1, 1] and read(tmp_path / "none") == []


def test_the_table_has_a_column_for_each_candidate():
    case = {"rows": "real", "V": 128256, "T": 1.0, "rule": "top_k", "dtype": "bfloat16", "converted": True, "B": 64}
    ours = {**case, "who": "ours", "us_cold": 12.34, "us_hot": 9.0, "graph": True, "one_read_us": 10.0}
    theirs = {**ours, "who": "theirs", "us_cold": 99.0, "graph": False}
    head, line, told, _ = (*table([ours, theirs, {**case, "who": "theirs", "wrong": "as can be"}]).splitlines(), "")
    assert head.split()[-4:] == ["one", "read", "ours", "theirs"]
    assert line.startswith("real 128256 bfloat16 given as float32 B=64 T=1 top_k ")
    assert line.split()[-5:] == ["10.0", "12.3", "9.0", "99.0", "9.0*"]
    assert told == "wrong: theirs, real 128256 bfloat16 given as float32 B=64 T=1 top_k: as can be"
