"""The border between Python and C++: every number of a call stands at its name, on both sides."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import fastdecode as fd
from fastdecode import dispatch
from fastdecode.engines import addresses

pytest.importorskip("fastdecode._native")
from fastdecode import _native
from fastdecode.engines import cpu as native
from fastdecode.record import Draw, Mixing


class Recorder:
    """Stands for the extension and notes the arguments of calls. It runs none: with a number at the wrong place it would crash."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, tuple]] = []

    def __getattr__(self, name: str) -> Any:
        def call(*arguments: object) -> None:
            self.calls.append((name, arguments))

        return call


@pytest.fixture
def recorder(monkeypatch):
    recorder = Recorder()
    monkeypatch.setattr(native, "_native", recorder)
    with dispatch.use("cpu"):
        yield recorder


def numbers(call: tuple[str, tuple]) -> dict[str, float]:
    """The numbers of a call by name. Its last argument is the number of threads."""
    name, (*groups, threads) = call
    assert threads == torch.get_num_threads()
    flat = [number for group in groups for number in group]
    names = addresses.ARGUMENTS[name.removesuffix("_cpu")]
    assert len(flat) == len(names)
    return dict(zip(names, flat))


def logits_of(rows: int, vocab: int) -> torch.Tensor:
    return torch.randn(rows, 2 * vocab + 3).to(torch.float16)[:, :vocab]  # a stride of its own


def plan_per_row(rows: int) -> fd.Plan:
    return fd.plan(fd.top_k(torch.arange(5, 5 + rows)), fd.top_p(0.9))


def spaced(rows: int, step: int) -> torch.Tensor:
    return torch.arange(rows * step)[::step]


def test_a_sample_passes_each_number_at_its_name(recorder):
    rows, vocab = 3, 50
    x, ids = logits_of(rows, vocab), torch.tensor([[1, 2], [3, 4], [5, 6]])
    seed, step, streams = spaced(rows, 2), spaced(rows, 3), spaced(rows, 5)
    s = fd.sample(
        x, plan_per_row(rows), seed=seed, step=step, streams=streams, num_samples=4, vocab_limit=41, stats=True,
        top_logprobs=7, logprobs_of=ids,
    )  # fmt: skip
    named = numbers(recorder.calls[-1])
    assert named.pop("rows.cuts") > 0 and named.pop("statistics.ids") == ids.data_ptr()
    assert named == {
        "rows.logits": x.data_ptr(), "rows.dtype": 1, "rows.rows": rows, "rows.vocab": vocab, "rows.row_stride": 2 * vocab + 3,
        "rows.vocab_limit": 41, "rows.plans": rows, "rows.cuts_of_plan": 3,
        "seed.number": 0, "seed.address": seed.data_ptr(), "seed.stride": 2,
        "step.number": 0, "step.address": step.data_ptr(), "step.stride": 3,
        "streams.address": streams.data_ptr(), "streams.stride": 5,
        "drawn.temperatures": 1, "drawn.num_samples": 4, "drawn.tokens": s.tokens.data_ptr(), "drawn.logprobs": s.logprobs.data_ptr(),
        "drawn.kept": s.kept.data_ptr(), "drawn.status": s.status.data_ptr(),
        **{f"statistics.{name}": getattr(s, name).data_ptr() for name in ("raw_logprobs", "entropy", "kept_mass", "max_prob", "margin")},
        "statistics.top": 7, "statistics.top_logprobs": s.top_logprobs.data_ptr(), "statistics.top_ids": s.top_ids.data_ptr(),
        "statistics.ids_per_row": 2, "statistics.logprobs_of": s.logprobs_of.data_ptr(),
    }  # fmt: skip
    fd.sample(x, plan_per_row(rows), seed=11, step=12)
    named = numbers(recorder.calls[-1])
    assert [named[f"{name}.number"] for name in ("seed", "step")] == [11, 12]
    assert [named[f"{name}.address"] for name in ("seed", "step", "streams")] == [0, 0, 0]
    assert all(number == 0 for name, number in named.items() if name.startswith("statistics."))


def test_a_truncation_passes_each_number_at_its_name(recorder):
    x = logits_of(2, 40)
    out = torch.empty(2, 64, dtype=x.dtype)[:, :40]
    fd.truncate(x, fd.plan(fd.min_p(0.1)), out=out, filter_value=-5.0)
    named = numbers(recorder.calls[-1])
    assert named.pop("rows.cuts") > 0
    assert named == {
        "rows.logits": x.data_ptr(), "rows.dtype": 1, "rows.rows": 2, "rows.vocab": 40, "rows.row_stride": 83, "rows.vocab_limit": 40,
        "rows.plans": 1, "rows.cuts_of_plan": 2, "output.out": out.data_ptr(), "output.row_stride": 64, "output.filter_value": -5.0,
    }  # fmt: skip


def test_soft_tokens_pass_each_number_at_its_name(recorder):
    rows, vocab, width = 3, 50, 4
    x, tau, soft_rows = (
        logits_of(rows, vocab),
        torch.rand(rows, dtype=torch.float64) + 0.5,
        torch.tensor([True, False, True]),
    )
    candidates = torch.arange(rows * width).reshape(rows, width)
    found = {
        "tokens": torch.zeros(rows, 1, dtype=torch.int64), "logprobs": torch.zeros(rows, 1),
        "kept": torch.full((rows,), width), "status": torch.zeros(rows, dtype=torch.uint8),
    }  # fmt: skip
    cuts = fd.plan(fd.top_p(0.9)).packed(torch.device("cpu"))
    seed = spaced(rows, 2)
    draw = Draw(seed, 7, None, 1, vocab)
    mixing = Mixing("dirichlet", 0.25, tau, soft_rows, True)
    made, groups = addresses.softening(x, cuts, candidates, draw, mixing, found)
    named = dict(zip(addresses.ARGUMENTS["soften"], [number for group in groups for number in group], strict=True))
    assert {name: number for name, number in named.items() if not name.startswith("rows.")} == {
        "seed.number": 0, "seed.address": seed.data_ptr(), "seed.stride": 2, "step.number": 7, "step.address": 0, "step.stride": 0,
        "streams.address": 0, "streams.stride": 0,
        "noise.noise": 2, "noise.strength": 0.25, "noise.tau": 0.0, "noise.taus": tau.data_ptr(), "noise.tau_stride": 1,
        "noise.soft_rows": soft_rows.data_ptr(), "noise.straight": True,
        "sampled.width": width, "sampled.candidates": candidates.data_ptr(), "sampled.num_samples": 1,
        **{f"sampled.{name}": value.data_ptr() for name, value in found.items()},
        **{f"mixture.{name}": made[name].data_ptr() for name in ("ids", "weights", "tokens", "log_pi", "noise", "logprobs")},
    }  # fmt: skip


def test_an_embedding_passes_each_number_at_its_name():
    table, ids, weights = torch.rand(9, 16)[:, :5].bfloat16(), torch.tensor([[1, 2, 3]] * 2), torch.rand(2, 3)
    out, groups = addresses.embedding(ids, weights, table)
    assert dict(zip(addresses.ARGUMENTS["embed"], [number for group in groups for number in group], strict=True)) == {
        "table.table": table.data_ptr(), "table.dtype": 2, "table.vocab": 9, "table.columns": 5, "table.row_stride": table.stride(0),
        "mixture.rows": 2, "mixture.width": 3, "mixture.ids": ids.data_ptr(), "mixture.weights": weights.data_ptr(),
        "mixture.out": out.data_ptr(),
    }  # fmt: skip


@pytest.mark.parametrize("function", ["cut", "truncate", "sample", "soften", "embed"])
def test_an_extension_with_two_numbers_swapped_is_refused(function):
    addresses.check(_native)

    class Swapped:
        def fields(self):
            return swapped if function == "cut" else _native.fields()

        def arguments(self):
            return _native.arguments() | ({} if function == "cut" else {function: swapped})

    swapped = list(addresses.ARGUMENTS[function])
    swapped[3], swapped[4] = swapped[4], swapped[3]
    with pytest.raises(ImportError, match=f"takes '{swapped[3]}' where number 3 of '{function}' is '{swapped[4]}'"):
        addresses.check(Swapped())
    swapped = list(addresses.ARGUMENTS[function])[:-1]
    with pytest.raises(ImportError, match="takes nothing where number"):
        addresses.check(Swapped())


def test_groups_of_another_shape_are_refused(recorder):
    fd.truncate(logits_of(1, 9), fd.plan(fd.min_p(0.1)))
    (name, (rows, output, threads)) = recorder.calls[-1]
    for wrong, message in (
        ((rows, output[:-1], threads), "expected 3 numbers in output; got 2"),
        ((rows, (*output, 0), threads), "expected 3 numbers in output; got 4"),
        ((output, rows, threads), "expected 9 numbers in rows; got 3"),
        ((rows, threads, output), "expected a tuple for output"),
        ((rows, output), "expected an argument for threads"),
        ((rows, output, threads, 0), "expected 3 arguments"),
        ((rows, ("here", *output[1:]), threads), "int"),
    ):
        with pytest.raises(TypeError, match=message):
            getattr(_native, name)(*wrong)
