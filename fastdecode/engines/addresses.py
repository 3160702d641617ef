"""Tensors to the addresses, strides and sizes that the compiled engines take, in the order of csrc/bindings.cpp. What belongs to one
engine alone (threads, a stream) comes after these. The caller keeps the tensors alive.
"""

from __future__ import annotations

import torch

from ..record import NOISES, Draw, Mixing

CODE = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}


def rows_of(logits: torch.Tensor, cuts: torch.Tensor, vocab_limit: int) -> tuple:
    """Logits and plans: [B or 1, number of cuts, ...], or with several temperatures [B or 1, T, number of cuts, ...]."""
    batch, vocab = logits.shape
    shape = cuts.shape
    return (
        logits.data_ptr(), CODE[logits.dtype], batch, vocab, logits.stride()[0], vocab_limit, cuts.data_ptr(), shape[0], shape[-2]
    )  # fmt: skip


def coordinate(value: int | torch.Tensor) -> tuple[int, int, int]:
    """A number; or the address and stride of one number for each row."""
    if isinstance(value, int):  # torch.Tensor is slow to say no
        return value, 0, 0
    return 0, value.data_ptr(), value.stride(0)


def streams_of(draw: Draw) -> tuple[int, int]:
    return (0, 0) if draw.streams is None else (draw.streams.data_ptr(), draw.streams.stride(0))


def softening(
    logits: torch.Tensor, cuts: torch.Tensor, candidates: torch.Tensor, draw: Draw, mixing: Mixing, found: dict[str, torch.Tensor]
) -> tuple[dict[str, torch.Tensor], tuple]:  # fmt: skip
    """The answers of `soften` of an engine, still empty, and its arguments."""
    shape, device = candidates.shape, logits.device
    made = {
        "ids": torch.empty(shape, dtype=torch.int64, device=device), "weights": torch.empty(shape, dtype=torch.float32, device=device),
        "tokens": torch.empty(shape[:1], dtype=torch.int64, device=device), "log_pi": torch.empty(shape, dtype=torch.float32, device=device),
        "noise": torch.empty(shape, dtype=torch.float32, device=device), "logprobs": torch.empty(shape[:1], dtype=torch.float32, device=device),
    }  # fmt: skip
    tau: tuple = (mixing.tau, 0, 0)
    if isinstance(mixing.tau, torch.Tensor):
        tau = (0.0, mixing.tau.data_ptr(), mixing.tau.stride(0))
    arguments = (
        *rows_of(logits, cuts, draw.vocab_limit), *coordinate(draw.seed), *coordinate(draw.step), *streams_of(draw),
        NOISES.index(mixing.noise), mixing.strength, *tau, 0 if mixing.soft_rows is None else mixing.soft_rows.data_ptr(),
        mixing.straight_through, shape[1], candidates.data_ptr(), draw.num_samples,
        *(found[name].data_ptr() for name in ("tokens", "logprobs", "kept", "status")), *(value.data_ptr() for value in made.values()),
    )  # fmt: skip
    return made, arguments


def embedding(ids: torch.Tensor, weights: torch.Tensor, table: torch.Tensor) -> tuple[torch.Tensor, tuple]:
    """The answer of `embed` of an engine, still empty, and its arguments."""
    out = torch.empty(len(ids), table.shape[1], dtype=table.dtype, device=table.device)
    return out, (
        table.data_ptr(), CODE[table.dtype], *table.shape, table.stride(0), *ids.shape, ids.data_ptr(), weights.data_ptr(), out.data_ptr()
    )  # fmt: skip
