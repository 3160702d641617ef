"""The GPU benchmarks where there is no GPU: that the peers are called as they are declared, and who is left out. No time is taken.

The stand-ins have the signatures of FlashInfer 0.6.18 (flashinfer/sampling.py) and of vLLM in August 2026
(vllm/v1/sample/ops/topk_topp_triton.py, topk_topp_sampler.py), and refuse what those refuse.
"""

from __future__ import annotations

import sys
import types
from pathlib import Path

import pytest
import torch
from cases import normal

sys.path.insert(0, str(Path(__file__).parent.parent))

from bench import gpu


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
    for rule in gpu.RULES:
        for name in ("flashinfer", "flashinfer, logits", "vllm", "transformers"):
            step = gpu.PEERS[name](rule, 1.5)
            if step is not None:
                tokens = step(x)
                assert tokens.numel() == 3 and (
                    "transformers" in name or torch.equal(tokens.long(), x.float().argmax(-1))
                )
                asked.setdefault(name, []).append(rule)
    assert torch.equal(x, kept), "a peer wrote into the logits that others are measured on"
    assert asked["flashinfer"] == ["none", "min_p", "top_k", "top_p", gpu.CHAIN]
    assert asked["flashinfer, logits"] == ["none", gpu.CHAIN] and asked["vllm"] == ["top_k", "top_p", gpu.CHAIN]


def test_who_is_not_there_is_told_once(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "flashinfer", None)
    monkeypatch.setitem(sys.modules, "vllm", None)
    candidates = gpu.Candidates()
    found = [name for rule in ("none", "top_k") for name, _ in candidates.make(rule, 1.0)]
    assert "transformers" in found and not any(name.startswith(("flashinfer", "vllm")) for name in found)
    candidates.leave_out("transformers", "top_k", RuntimeError("it broke"))
    assert "transformers" not in [name for name, _ in candidates.make("top_k", 1.0)]
    assert "transformers" in [name for name, _ in candidates.make("none", 1.0)]
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(":")[1].strip() for line in lines] == [
        "flashinfer",
        "flashinfer, logits",
        "vllm",
        "transformers, top_k",
    ]


def test_the_table_has_a_column_for_each_candidate():
    case = {"rows": "real", "V": 128256, "T": 1.0, "rule": "top_k", "dtype": "float32", "B": 64, "one_read_us": 10.0}
    found = [{**case, "who": "ours", "us": 12.34, "graph": True}, {**case, "who": "theirs", "us": 99.0, "graph": False}]
    head, line = gpu.table([*found, {**found[0], "rows": "flat"}]).splitlines()
    assert head.split() == ["rule", "dtype", "B", "one", "read", "ours", "theirs"]
    assert line.split() == ["top_k", "float32", "64", "10.0", "12.3", "99.0*"]
