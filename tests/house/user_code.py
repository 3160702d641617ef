"""A program of a user who checks it with `mypy --strict` and pyright: `make lint` reads it (user_types.py), test_build.py runs it.

A comment that lets an error pass fails the check where there is no error, so the wrong calls below show that mistakes are found.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch

import fastdecode as fd
import fastdecode.hf
from fastdecode.scaling import selection, texts


def next_tokens(logits: torch.Tensor, step: int) -> list[int]:
    plan: fd.Plan = fd.plan(fd.temperature(0.8), fd.top_k(50), fd.min_p(torch.tensor([0.05, 0.1])))
    s: fd.Sample = fd.sample(logits, plan, seed=1, step=step, streams=torch.tensor([4, 5]), stats=("entropy",))
    tokens: torch.Tensor = s.tokens
    entropy: torch.Tensor | None = s.entropy
    assert entropy is not None and (s.status == fd.STATUS_OK).all()
    return [int(token) for token in tokens]


def values_for_each_row(logits: torch.Tensor) -> torch.Tensor:
    plan = fd.plan(fd.temperature([0.8, 1.2]), fd.min_p(np.array([0.05, 0.1]))) + fd.top_k(50)
    seed, streams = fd.seed_and_streams(7, ["request a", "request b"])
    drawn = fd.sample(logits, plan, seed=seed, step=[3, 9], streams=streams)
    assert plan == fd.plan(*plan.rules)
    return (
        drawn.tokens + fd.sample(logits, fd.top_p(0.9)).tokens + fd.sample(logits, [fd.top_k(5), fd.top_p(0.9)]).tokens
    )


def answers(logits: torch.Tensor) -> str:
    drawn: fd.Sample = fd.sample_temperatures(logits, [0.5, 1.0], fd.plan(fd.top_h(0.4)), num_samples=3, seed=2)
    vote: selection.Vote = selection.majority_vote([str(int(token)) for token in drawn.tokens.flatten()])
    return str(vote.answer)


def masked(rows: npt.NDArray[np.float32]) -> torch.Tensor:
    rule: fd.Rule = fd.typical_p(0.9, min_tokens_to_keep=2)
    return fd.truncate(torch.from_numpy(rows), fd.plan([rule, fd.eta_cutoff(3e-4)]))


def numpy_in_numpy_out(rows: npt.NDArray[np.float32]) -> list[int]:
    plan = fd.plan(fd.top_n_sigma(1.0))
    same: npt.NDArray[np.float32] = fd.truncate(rows, plan)
    drawn: fd.Sample[npt.NDArray[Any]] = fd.sample(same, plan, seed=1, stats="margin")
    several: fd.Sample[npt.NDArray[Any]] = fd.sample_temperatures(rows, np.array([0.5, 1.0]), plan)
    return [int(drawn.margin.argmax()), *map(int, drawn.tokens.astype(np.int32)), several.tokens.size]


def thought(logits: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
    soft: fd.SoftTokens = fd.soft_tokens(
        logits, noise="gumbel", tau=[0.5, 0.7], top_m=5, seed=3, soft_rows=[True, False]
    )
    return fd.soft_embedding(soft, table)


def drawn(logits: torch.Tensor, tokenizer: object) -> None:
    fd.plot(logits, [fd.top_p(0.9), fd.plan(fd.temperature(0.8), fd.min_p(0.05))], tokenizer).savefig("kept.png")
    fd.plot(logits.numpy(), fd.top_k(50), title="one rule", sweep=True)


def machine() -> dict[str, dict[str, str]]:
    return fd.info()


def of_transformers() -> list[object]:
    return [
        fd.hf.MinPLogitsWarper(0.05),
        fastdecode.hf.FusedLogitsProcessor(fd.plan(fd.epsilon_cutoff(3e-4))),
        fastdecode.hf.sample_with(),
    ]


def mistakes(logits: torch.Tensor, rows: npt.NDArray[np.float32], some: list[texts.Text]) -> None:
    fd.top_k("fifty")  # type: ignore[arg-type]
    fd.top_h(0.4, variant="authors")  # type: ignore[arg-type]
    fd.sample(logits, 0.9)  # type: ignore[call-overload]
    fd.sample(logits, sed=1)  # type: ignore[call-overload]
    fd.sample(logits, stats="entropies")  # type: ignore[arg-type]
    fd.soft_tokens(logits, noise="normal")  # type: ignore[arg-type]
    fd.soft_tokens(logits, sed=1)  # type: ignore[arg-type]
    fd.plot(logits, "top_k")  # type: ignore[arg-type]
    print(fd.sample(logits).token)  # type: ignore[attr-defined]
    print(fd.sample(rows).tokens.cpu())  # type: ignore[attr-defined]
    print(fd.truncate(rows, fd.top_k(5)).cpu())  # type: ignore[attr-defined]
    print(some[0].words)  # type: ignore[attr-defined]


if __name__ == "__main__":
    logits = torch.randn(2, 1000, generator=torch.Generator().manual_seed(0))
    print(
        next_tokens(logits, 0),
        answers(logits),
        masked(logits.numpy()).shape,
        thought(logits, torch.ones(1000, 8)).shape,
    )
    print(numpy_in_numpy_out(logits.numpy()), values_for_each_row(logits).shape)
    print(len(machine()), len(of_transformers()))
